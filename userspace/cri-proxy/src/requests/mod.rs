//! Reports calls that carry limits to the daemon: `CreateContainer`, `UpdateContainerResources`, `UpdatePodSandboxResources`.
//!
//! ```text
//!  client ──▶ Observed request ──▶ runtime    frames pass unchanged; the first message is copied
//!  client ◀── ObservedCall ◀── answer ◀── runtime    likewise; its status and its end are recorded
//!              └── dropped: the call is over ──report──▶ Backlog ──▶ reporter ──▶ the daemon's `ReportCriRequests`
//! ```
//!
//! What waits when the proxy ends is left for the next one.
//!
//! What is not observed, cannot be read or cannot be kept until the daemon takes it is counted, and reported as missed. Only limits, id,
//! times and status leave the proxy: a container's environment and commands do not. Never delays or alters a call.

mod backlog;
mod left;
mod report;
mod reporter;
#[cfg(test)]
mod tests;

use std::mem;
use std::path::PathBuf;
use std::sync::Arc;

use hyper::HeaderMap;
use hyper::body::Incoming;
use nix::time::{ClockId, clock_gettime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tonic::body::Body;

use super::counters::Counters;
use super::first::{Copied, First};
use super::limits;
use super::status_code;
use backlog::Backlog;
use kwitness_api::proto::{self, CriMethod};
pub use left::Left;
use report::Report;
#[cfg(test)]
pub use report::requested;

/// Observes calls that carry limits. Clones share what waits for the daemon.
#[derive(Clone, Debug)]
pub struct RequestObserver {
    backlog: Arc<Backlog>,
    left: Left,
    counters: Arc<Counters>,
}

/// One connection's side. Its calls share its places, so that no other connection's go unobserved for them.
#[derive(Debug)]
pub struct ConnectionObserver {
    observer: RequestObserver,
    places: Arc<Semaphore>,
}

/// A call that is over, and what was kept of it.
#[derive(Debug)]
struct Call {
    method: CriMethod,
    received: u64,
    answered: u64,
    code: Option<i32>,
    /// None: it was not copied.
    request: Option<First>,
    answer: First,
}

/// Where what is reported goes.
#[derive(Clone, Debug)]
pub struct Daemon {
    /// Where it listens.
    pub socket: PathBuf,
    /// Where what it has not taken waits for the next proxy.
    pub left: Left,
}

/// The calls' side, and what must run for it. Begins with what an earlier proxy left.
pub fn start(daemon: Daemon, counters: Arc<Counters>) -> (RequestObserver, impl Future<Output = ()>) {
    let Daemon { socket, left } = daemon;
    let backlog = Arc::new(Backlog::new(Arc::clone(&counters)));
    if let Some(proto::ReportCriRequestsRequest { requests, missed }) = left.take() {
        let requests = requests.into_iter().map(Report::Request);
        requests.chain(missed.into_iter().map(Report::Missed)).for_each(|report| backlog.push(report));
    }
    let reporting = reporter::run(socket, Arc::clone(&backlog), Arc::clone(&counters));
    (RequestObserver { backlog, left, counters }, reporting)
}

impl RequestObserver {
    /// For a new connection.
    pub fn of_connection(&self) -> ConnectionObserver {
        ConnectionObserver {
            observer: self.clone(),
            places: Arc::new(Semaphore::new(limits::CALLS_OBSERVED)),
        }
    }

    /// Gives the daemon some time to take what is to be reported, and leaves the rest for the next proxy.
    pub async fn end(&self) {
        if timeout(limits::LAST_REPORTS, self.backlog.emptied()).await.is_ok() {
            return;
        }
        match self.left.put(&self.backlog.all()) {
            Ok(()) => {
                tracing::info!(
                    "the daemon has not taken the last reports of requested limits: the next proxy sends them"
                );
            }
            Err(error) => {
                tracing::warn!(%error, "the daemon has not taken the last reports of requested limits: they are lost");
            }
        }
    }
}

impl ConnectionObserver {
    /// Observes a call, if it is one that carries limits; without a place, only that there was one.
    pub fn observe(&self, path: &str) -> Option<ObservedCall> {
        let method = match path {
            "/runtime.v1.RuntimeService/CreateContainer" => CriMethod::CreateContainer,
            "/runtime.v1.RuntimeService/UpdateContainerResources" => CriMethod::UpdateContainerResources,
            "/runtime.v1.RuntimeService/UpdatePodSandboxResources" => CriMethod::UpdatePodSandboxResources,
            _ => return None,
        };
        Some(ObservedCall {
            observer: self.observer.clone(),
            place: Arc::clone(&self.places).try_acquire_owned().ok(),
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
    observer: RequestObserver,
    place: Option<OwnedSemaphorePermit>,
    method: CriMethod,
    received: u64,
    request: Copied,
    answer: First,
    code: Option<i32>,
}

impl ObservedCall {
    /// The request's body, observed as it passes.
    pub fn request(&self, body: Incoming) -> Body {
        match self.place {
            Some(_) => Body::new(self.request.of(body)),
            None => Body::new(body),
        }
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
        let call = Call {
            method: self.method,
            received: self.received,
            answered: now(),
            code: self.code,
            request: self.place.is_some().then(|| self.request.take()),
            answer: mem::take(&mut self.answer),
        };
        if let Some(report) = report::report(call, &self.observer.counters) {
            self.observer.backlog.push(report);
        }
    }
}
