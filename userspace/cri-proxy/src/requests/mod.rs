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

mod reporter;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use hyper::HeaderMap;
use hyper::body::Incoming;
use nix::time::{ClockId, clock_gettime};
use tokio::sync::mpsc;

use super::counters::Counters;
use super::first::{Copied, CopiedBody, First};
use super::limits;
use super::status_code;
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
            request: Copied::default(),
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
    request: Copied,
    answer: First,
    code: Option<i32>,
}

impl ObservedCall {
    /// The request's body, observed as it passes.
    pub fn request(&self, body: Incoming) -> CopiedBody<Incoming> {
        self.request.of(body)
    }

    /// The answer's headers or trailers: they have the status.
    pub fn status(&mut self, headers: &HeaderMap) {
        self.code = self.code.or_else(|| status_code(headers));
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
            request: self.request.take(),
            answer: std::mem::take(&mut self.answer),
        });
    }
}
