//! Reports calls that carry limits to the daemon: `CreateContainer`, `UpdateContainerResources`, `UpdatePodSandboxResources`.
//!
//! ```text
//!  client ──▶ Observed request ──▶ runtime    frames pass unchanged; the first message is copied
//!  client ◀── ObservedCall ◀── answer ◀── runtime    likewise; its status and its end are recorded
//!              └── dropped: the call is over ──bounded──▶ reporter ──▶ the daemon's `ReportCriRequests`
//! ```
//!
//! Best effort: what cannot be kept, decoded or reported is counted, and the call is unaffected. Only limits, id, times and status leave
//! the proxy: a container's environment and commands do not. Never delays or alters a call.

mod first;
mod reporter;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::HeaderMap;
use hyper::body::Incoming;
use nix::time::{ClockId, clock_gettime};
use tokio::sync::mpsc;

use super::counters::Counters;
use super::limits;
pub use first::First;
use first::Unusable;
use kwitness_api::proto::CriMethod;
#[cfg(test)]
pub use reporter::wanted;

/// Observes calls that carry limits. Clones share the queue to the reporter.
#[derive(Clone, Debug)]
pub struct RequestObserver {
    to: mpsc::Sender<Call>,
    counters: Arc<Counters>,
}

/// A call that is over, and what was kept of it.
#[derive(Debug)]
struct Call {
    method: CriMethod,
    received: u64,
    answered: u64,
    code: Option<i32>,
    request: First,
    answer: First,
}

/// The calls' side, and what must run for it.
pub fn start(daemon: PathBuf, counters: Arc<Counters>) -> (RequestObserver, impl Future<Output = ()>) {
    let (to, from) = mpsc::channel(limits::CALLS_OBSERVED);
    (RequestObserver { to, counters: Arc::clone(&counters) }, reporter::run(daemon, from, counters))
}

impl RequestObserver {
    /// Observes a call, if it is one that carries limits and there is room.
    pub fn observe(&self, path: &str) -> Option<ObservedCall> {
        let method = match path {
            "/runtime.v1.RuntimeService/CreateContainer" => CriMethod::CreateContainer,
            "/runtime.v1.RuntimeService/UpdateContainerResources" => CriMethod::UpdateContainerResources,
            "/runtime.v1.RuntimeService/UpdatePodSandboxResources" => CriMethod::UpdatePodSandboxResources,
            _ => return None,
        };
        // The place is kept until the reporter has the call.
        let Ok(place) = self.to.clone().try_reserve_owned() else {
            self.counters.requests_missed.count();
            return None;
        };
        Some(ObservedCall {
            place: Some(place),
            method,
            received: now(),
            request: Arc::default(),
            answer: First::default(),
            code: None,
        })
    }
}

/// `CLOCK_BOOTTIME` in nanoseconds, as the kernel stamps its records. It exists on every kernel, and reading it fails for no other reason.
fn now() -> u64 {
    let read = clock_gettime(ClockId::CLOCK_BOOTTIME);
    read.map_or(0, |time| (time.tv_sec() * 1_000_000_000 + time.tv_nsec()).unsigned_abs())
}

/// A call under way. When it is dropped, the call is over.
#[derive(Debug)]
pub struct ObservedCall {
    place: Option<mpsc::OwnedPermit<Call>>,
    method: CriMethod,
    received: u64,
    request: Arc<Mutex<First>>,
    answer: First,
    code: Option<i32>,
}

impl ObservedCall {
    /// The request's body, observed as it passes.
    pub fn request(&self, body: Incoming) -> ObservedBody {
        ObservedBody { body, first: Arc::clone(&self.request) }
    }

    /// The answer's headers or trailers: they have the status.
    pub fn status(&mut self, headers: &HeaderMap) {
        let code = headers.get("grpc-status").and_then(|code| code.to_str().ok()?.parse().ok());
        self.code = self.code.or(code);
    }

    /// A piece of the answer.
    pub fn data(&mut self, data: &[u8]) {
        // The id of the created container is in the answer only.
        if self.method == CriMethod::CreateContainer {
            self.answer.push(data);
        }
    }
}

impl Drop for ObservedCall {
    fn drop(&mut self) {
        let Some(place) = self.place.take() else { return };
        place.send(Call {
            method: self.method,
            received: self.received,
            answered: now(),
            code: self.code,
            request: std::mem::take(&mut *lock(&self.request)),
            answer: std::mem::take(&mut self.answer),
        });
    }
}

fn lock(first: &Mutex<First>) -> MutexGuard<'_, First> {
    first.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An unchanged body whose first message is copied.
#[derive(Debug)]
pub struct ObservedBody {
    body: Incoming,
    first: Arc<Mutex<First>>,
}

impl Body for ObservedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            lock(&self.first).push(data);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
