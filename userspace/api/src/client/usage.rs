//! A stream of samples that survives restarts of the daemon. There is nothing to resume: the next sample is the state.

use tokio::time::Instant;

use super::watch::retry_pause;
use super::{Client, Error};
use crate::proto;

/// What a [`Watch`] yields.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// What the containers use now: it replaces the sample before.
    Sample(proto::UsageSample),
    /// The daemon is gone, or the reason why it cannot be reached is another one. The watch reconnects by itself.
    Disconnected(Error),
    /// The daemon is back; a sample follows.
    Reconnected,
}

/// A stream of samples; see [`Client::watch_usage`].
#[derive(Debug)]
pub struct Watch {
    client: Client,
    request: proto::WatchUsageRequest,
    state: State,
    /// Yielded after [`Item::Reconnected`].
    ready: Option<proto::UsageSample>,
    /// Attempts that failed since the last sample.
    failures: u32,
    /// The reason that was yielded last, while disconnected.
    disconnected: Option<Error>,
}

#[derive(Debug)]
enum State {
    Streaming(Box<tonic::Streaming<proto::UsageSample>>),
    Waiting { until: Instant },
}

impl Watch {
    pub(super) async fn open(mut client: Client, request: proto::WatchUsageRequest) -> Result<Self, Error> {
        let stream = client.usage_stream(request.clone()).await?;
        let state = State::Streaming(Box::new(stream));
        Ok(Self { client, request, state, ready: None, failures: 0, disconnected: None })
    }

    /// The next item. Safe to cancel.
    ///
    /// # Errors
    /// Errors that are not [transient](Error::is_transient).
    pub async fn next(&mut self) -> Result<Item, Error> {
        loop {
            if let Some(sample) = self.ready.take() {
                return Ok(Item::Sample(sample));
            }
            let failed = match &mut self.state {
                State::Streaming(stream) => match stream.message().await {
                    Ok(Some(sample)) => {
                        self.failures = 0;
                        self.ready = Some(sample);
                        if self.disconnected.take().is_some() {
                            return Ok(Item::Reconnected);
                        }
                        continue;
                    }
                    // A daemon never ends the stream without a status.
                    Ok(None) => Error::unreachable(self.client.address(), "it ended the stream"),
                    Err(status) => Error::streaming(self.client.address(), &status),
                },
                State::Waiting { until } => {
                    tokio::time::sleep_until(*until).await;
                    match self.client.usage_stream(self.request.clone()).await {
                        Ok(stream) => {
                            self.state = State::Streaming(Box::new(stream));
                            continue;
                        }
                        Err(error) => error,
                    }
                }
            };
            if !failed.is_transient() {
                return Err(failed);
            }
            self.state = State::Waiting { until: Instant::now() + retry_pause(self.failures) };
            self.failures = self.failures.saturating_add(1);
            if self.disconnected.as_ref() != Some(&failed) {
                self.disconnected = Some(failed.clone());
                return Ok(Item::Disconnected(failed));
            }
        }
    }
}
