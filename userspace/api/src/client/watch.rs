//! A stream of events that survives restarts of the daemon. The one place that knows how to resume.
//!
//! ```text
//!             first message             broken off
//!  Waiting ────────────────▶ Streaming ────────────▶ Waiting      every failed attempt doubles the wait
//!     │                          │
//!     └──────── final error ─────┴── no_follow: end of history ──▶ Ended
//! ```
//!
//! History is there when it is requested: a daemon that goes silent in the middle of it does not answer, which is an error. Of events
//! that are still to happen, any silence is right.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::{ANSWER_LIMIT, Client, Error};
use crate::{EventKind, proto};

/// The wait before the first attempt to reconnect, and the longest between two.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// The wait before the next attempt, after so many that failed.
pub(super) fn retry_pause(failures: u32) -> Duration {
    RETRY_MIN.saturating_mul(1 << failures.min(8)).min(RETRY_MAX)
}

/// What a [`Watch`] yields.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// Events, in the batches in which the daemon sent them; never empty. A loss is one of them: a `gap`.
    Events(Vec<proto::Event>),
    /// All matching containers: what was known of them before is void. First of all if the request asks for a
    /// snapshot, and again when the daemon cannot resume after the last event.
    Snapshot(proto::Snapshot),
    /// The daemon is gone, or the reason why it cannot be reached is another one. The watch reconnects by itself.
    Disconnected(Error),
    /// The daemon is back; what was missed follows, or a `gap` that says so.
    Reconnected,
}

/// A stream of events; see [`Client::watch`].
#[derive(Debug)]
pub struct Watch {
    client: Client,
    /// What to request next time: `after` is the highest position so far, `limit` what is left of it.
    request: proto::WatchRequest,
    state: State,
    ready: VecDeque<Item>,
    /// Attempts that failed since the last message.
    failures: u32,
    /// The reason that was yielded last, while disconnected.
    disconnected: Option<Error>,
}

#[derive(Debug)]
enum State {
    Streaming(Box<tonic::Streaming<proto::WatchResponse>>),
    Waiting { until: Instant },
    Ended,
}

impl Watch {
    pub(super) async fn open(mut client: Client, request: proto::WatchRequest) -> Result<Self, Error> {
        let stream = client.stream(request.clone()).await?;
        Ok(Self { state: State::Streaming(Box::new(stream)), ..Self::waiting(client, request) })
    }

    pub(super) fn waiting(client: Client, request: proto::WatchRequest) -> Self {
        Self {
            client,
            request,
            state: State::Waiting { until: Instant::now() },
            ready: VecDeque::new(),
            failures: 0,
            disconnected: None,
        }
    }

    /// Asks for other events from here on: what matches `filter`, after the last event so far. Before the first message there is
    /// nothing to go on after, and the request is made anew.
    pub fn refilter(&mut self, filter: proto::Filter) {
        if !matches!(self.state, State::Ended) {
            self.request.filter = Some(filter);
            self.state = State::Waiting { until: Instant::now() };
        }
    }

    /// The highest position so far: what a later watch resumes after.
    pub fn position(&self) -> Option<&proto::Position> {
        self.request.after.as_ref()
    }

    /// The next item; none when a request with `no_follow` (or with a limit or an end in time) has been answered. Safe to
    /// cancel.
    ///
    /// # Errors
    /// Errors that are not [transient](Error::is_transient), and with `no_follow` all, a daemon that goes silent included: the stream
    /// has ended.
    pub async fn next(&mut self) -> Result<Option<Item>, Error> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Ok(Some(item));
            }
            match &mut self.state {
                State::Ended => return Ok(None),
                State::Streaming(stream) => {
                    let message = async {
                        match self.request.no_follow {
                            true => tokio::time::timeout(ANSWER_LIMIT, stream.message()).await,
                            false => Ok(stream.message().await),
                        }
                    };
                    match message.await {
                        Ok(Ok(Some(message))) => self.take(message),
                        // A daemon that ends says so with a status.
                        Ok(Ok(None)) => self.state = State::Ended,
                        Ok(Err(status)) => {
                            let error = Error::streaming(self.client.address(), &status);
                            self.fail(error)?;
                        }
                        Err(_) => {
                            let reason = format!("it has sent nothing for {} s", ANSWER_LIMIT.as_secs());
                            let error = Error::unreachable(self.client.address(), reason);
                            self.fail(error)?;
                        }
                    }
                }
                State::Waiting { until } => {
                    tokio::time::sleep_until(*until).await;
                    match self.client.stream(self.request.clone()).await {
                        Ok(stream) => self.state = State::Streaming(Box::new(stream)),
                        Err(error) => self.fail(error)?,
                    }
                }
            }
        }
    }

    fn take(&mut self, message: proto::WatchResponse) {
        self.failures = 0;
        if self.disconnected.take().is_some() {
            self.ready.push_back(Item::Reconnected);
        }
        let proto::WatchResponse { snapshot, events, begins_after, .. } = message;
        let of_events = events.iter().filter_map(|event| event.position.as_ref());
        let of_snapshot = snapshot.as_ref().and_then(|snapshot| snapshot.position.as_ref());
        for position in begins_after.as_ref().into_iter().chain(of_snapshot).chain(of_events) {
            // Late events have lower numbers; another epoch is another daemon's.
            let after = &self.request.after;
            if after.as_ref().is_none_or(|after| after.epoch != position.epoch || after.seq < position.seq) {
                self.request.after = Some(position.clone());
                self.request.since = None;
            }
        }
        self.ready.extend(snapshot.map(Item::Snapshot));
        self.count(&events);
        if !events.is_empty() {
            self.ready.push_back(Item::Events(events));
        }
    }

    /// Asks for as many events less after a reconnection. A stream that has all of them does not reconnect.
    fn count(&mut self, events: &[proto::Event]) {
        let of_node = |event: &&proto::Event| EventKind::of(event).is_some_and(EventKind::is_of_node);
        if self.request.limit == 0 {
            return;
        }
        let counted = events.len() - events.iter().filter(of_node).count();
        self.request.limit = self.request.limit.saturating_sub(u32::try_from(counted).unwrap_or(u32::MAX));
        if self.request.limit == 0 {
            self.state = State::Ended;
        }
    }

    fn fail(&mut self, error: Error) -> Result<(), Error> {
        if self.request.no_follow || !error.is_transient() {
            self.state = State::Ended;
            return Err(error);
        }
        let pause = retry_pause(self.failures);
        self.failures = self.failures.saturating_add(1);
        self.state = State::Waiting { until: Instant::now() + pause };
        if self.disconnected.as_ref() != Some(&error) {
            self.ready.push_back(Item::Disconnected(error.clone()));
            self.disconnected = Some(error);
        }
        Ok(())
    }
}
