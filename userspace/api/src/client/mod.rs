//! The client: connecting, the calls, and a [`Watch`] that survives restarts of the daemon.
//!
//! Owns what every client would otherwise do by itself: message sizes, deadlines, the meaning of errors, resuming. Never
//! prints, and never looks at the node.

mod address;
mod error;
#[cfg(test)]
#[cfg(unix)]
mod tests;
mod usage;
mod watch;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use crate::proto;
use crate::proto::kwitness_client::KwitnessClient;
use crate::transport::{DialError, unix_endpoint};

pub use address::Address;
pub use error::Error;
pub use usage::{Item as UsageItem, Watch as UsageWatch};
pub use watch::{Item, Watch};

/// A snapshot of a large node is larger than gRPC's default of 4 MiB.
const MESSAGE_MAX: usize = 256 << 20;
/// The longest that a daemon takes to accept a connection, to answer, in addition to what the call itself waits for, or to go on with
/// its history.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// A connection to a daemon. Clones share it, and it reconnects by itself for the next call.
#[derive(Clone, Debug)]
pub struct Client {
    inner: KwitnessClient<Channel>,
    address: Arc<Address>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// [`Error::PermissionDenied`] and [`Error::Unreachable`].
    pub async fn connect(address: Address) -> Result<Self, Error> {
        match dial(&address).await {
            Ok(channel) => Ok(Self::from_channel(channel, address)),
            Err(error) => Err(Error::connecting(&address, &error)),
        }
    }

    /// A client on a channel that the caller has made (TLS, a tunnel); `address` is what errors call it.
    pub fn from_channel(channel: Channel, address: Address) -> Self {
        let inner = KwitnessClient::new(channel).max_decoding_message_size(MESSAGE_MAX);
        Self { inner, address: Arc::new(address) }
    }

    /// Where the daemon listens.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The containers that match.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list(&mut self, filter: proto::Filter) -> Result<proto::ListResponse, Error> {
        let request = proto::ListRequest { filter: Some(filter) };
        answer(&self.address, Duration::ZERO, self.inner.list(request)).await
    }

    /// Whether limits are in force; waits as long as the request says.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::NotFound`]: no container matches.
    pub async fn verify(&mut self, request: proto::VerifyRequest) -> Result<proto::VerifyResponse, Error> {
        let waits = Duration::from_millis(u64::from(request.wait_ms) + u64::from(request.prove_ms));
        answer(&self.address, waits, self.inner.verify(request)).await
    }

    /// Version, health, hooks and counters of the daemon.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn status(&mut self) -> Result<proto::StatusResponse, Error> {
        answer(&self.address, Duration::ZERO, self.inner.status(proto::StatusRequest {})).await
    }

    /// Reports what the guard did.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn report_guard_events(
        &mut self,
        request: proto::ReportGuardEventsRequest,
    ) -> Result<proto::ReportGuardEventsResponse, Error> {
        answer(&self.address, Duration::ZERO, self.inner.report_guard_events(request)).await
    }

    /// Opens a stream of events that survives restarts of the daemon.
    ///
    /// # Errors
    /// See [`Error`]: the first attempt is not repeated.
    pub async fn watch(&self, request: proto::WatchRequest) -> Result<Watch, Error> {
        Watch::open(self.clone(), request).await
    }

    /// The same for a daemon that may not answer yet: the first attempt is repeated as well, and what kept it is an
    /// [`Item::Disconnected`].
    pub fn watch_eventually(&self, request: proto::WatchRequest) -> Watch {
        Watch::waiting(self.clone(), request)
    }

    /// Opens a stream of samples of containers' usage that survives restarts of the daemon.
    ///
    /// # Errors
    /// See [`Error`]: the first attempt is not repeated.
    pub async fn watch_usage(&self, request: proto::WatchUsageRequest) -> Result<UsageWatch, Error> {
        UsageWatch::open(self.clone(), request).await
    }

    /// Opens one stream of samples, which ends with the connection.
    async fn usage_stream(
        &mut self,
        request: proto::WatchUsageRequest,
    ) -> Result<tonic::Streaming<proto::UsageSample>, Error> {
        answer(&self.address, Duration::ZERO, self.inner.watch_usage(request)).await
    }

    /// Opens one stream, which ends with the connection.
    async fn stream(
        &mut self,
        request: proto::WatchRequest,
    ) -> Result<tonic::Streaming<proto::WatchResponse>, Error> {
        answer(&self.address, Duration::ZERO, self.inner.watch(request)).await
    }
}

async fn dial(address: &Address) -> Result<Channel, DialError> {
    let endpoint = match address {
        Address::Uri(uri) => Endpoint::from_shared(uri.clone())?,
        Address::Unix(path) => unix_endpoint(path)?,
        Address::Node(_) => return Err(DialError::NoTunnel),
    };
    Ok(endpoint.connect_timeout(ANSWER_LIMIT).connect().await?)
}

async fn answer<T>(
    address: &Address,
    waits: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Error> {
    match tokio::time::timeout(ANSWER_LIMIT + waits, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(Error::calling(address, &status)),
        Err(_) => Err(Error::unreachable(address, "it accepts connections and does not answer")),
    }
}
