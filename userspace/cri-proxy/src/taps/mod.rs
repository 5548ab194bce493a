//! Calls that ask for limits, told to the daemon: `CreateContainer`, `UpdateContainerResources`, `UpdatePodSandboxResources`.
//!
//! ```text
//!  client ──▶ Noted request ──▶ runtime      frames pass as they are; a copy of the first message is kept aside
//!  client ◀── Tap ◀── answer ◀── runtime     likewise; its status and its end are noted
//!              └── dropped: the call is over ──bounded──▶ teller ──▶ the daemon's `ReportCriRequests`
//! ```
//!
//! Best effort: what cannot be kept, read or told is counted, and the call is none the wiser. No more than limits, id, times and status
//! leave the proxy: a container's environment and commands do not. Never delays or alters a call.

mod first;
mod teller;
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
pub use teller::wanted;

/// Where calls are noted. Clones share it.
#[derive(Clone, Debug)]
pub struct Taps {
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
pub fn start(daemon: PathBuf, counters: Arc<Counters>) -> (Taps, impl Future<Output = ()>) {
    let (to, from) = mpsc::channel(limits::CALLS_NOTED);
    (Taps { to, counters: Arc::clone(&counters) }, teller::run(daemon, from, counters))
}

impl Taps {
    /// Begins to note a call, if it is one that asks for limits and there is room.
    pub fn tap(&self, path: &str) -> Option<Tap> {
        let method = match path {
            "/runtime.v1.RuntimeService/CreateContainer" => CriMethod::CreateContainer,
            "/runtime.v1.RuntimeService/UpdateContainerResources" => CriMethod::UpdateContainerResources,
            "/runtime.v1.RuntimeService/UpdatePodSandboxResources" => CriMethod::UpdatePodSandboxResources,
            _ => return None,
        };
        // The place is kept until the teller has the call.
        let Ok(place) = self.to.clone().try_reserve_owned() else {
            self.counters.requests_missed.count();
            return None;
        };
        Some(Tap {
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
pub struct Tap {
    place: Option<mpsc::OwnedPermit<Call>>,
    method: CriMethod,
    received: u64,
    request: Arc<Mutex<First>>,
    answer: First,
    code: Option<i32>,
}

impl Tap {
    /// The request's body, which notes what passes.
    pub fn request(&self, body: Incoming) -> Noted {
        Noted { body, first: Arc::clone(&self.request) }
    }

    /// The answer's headers or trailers: they have the status.
    pub fn status(&mut self, headers: &HeaderMap) {
        let code = headers.get("grpc-status").and_then(|code| code.to_str().ok()?.parse().ok());
        self.code = self.code.or(code);
    }

    /// A piece of the answer.
    pub fn data(&mut self, data: &[u8]) {
        // Who it was that was created is not in the request.
        if self.method == CriMethod::CreateContainer {
            self.answer.push(data);
        }
    }
}

impl Drop for Tap {
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

/// A body as it is, whose first message is noted.
#[derive(Debug)]
pub struct Noted {
    body: Incoming,
    first: Arc<Mutex<First>>,
}

impl Body for Noted {
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
