//! Answers after their events: who takes container events on a connection learns there of a container's start before the call that
//! started it is answered, as from containerd itself.
//!
//! A kubelet with `EventedPLEG` relies on it. It takes all that it knows for fresh every five seconds (`updateGlobalCache` in
//! `pkg/kubelet/pleg/evented.go`), and starts a container a second time if the event of the first start comes after that.
//!
//! ```text
//!   trailers of the runtime's answer ──▶ Held ──▶ passed on: the event was sent on this connection's streams
//!            │                            └─────▶ passed on: it did not come in time, these streams are ended
//!            ├─ passed on at once: an error, no stream of events on this connection, or the event was sent
//!            └─ passed on at once, and counted: too many are held, the last one was passed on without its event and none has
//!               come since, or the id cannot be read
//! ```
//!
//! `CreateContainer` is not held: there is no event before the container starts, and one that was not started does not run twice.
//!
//! A stream on which a start is missing must not be relied on: a kubelet whose stream ends lists everything and subscribes again, and
//! after five ends in its life it polls the runtime for good. So a source that hangs costs one end.
//!
//! Owns the wait, bounded in number and time. The answer itself passes unchanged, its message at once: only its end is held.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use hyper::HeaderMap;
use kwitness_cri::events::ContainerEventType;
use kwitness_cri::runtime as cri;
use prost::Message as _;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tonic::Status;

use super::counters::Counters;
use super::events::{ConnectionEvents, EventName};
use super::first::{Copied, CopiedBody, First};
use super::limits;
use super::status_code;

/// Holds answers. Clones share the bounds.
#[derive(Clone, Debug)]
pub struct Order {
    longest: Duration,
    places: Arc<Semaphore>,
    counters: Arc<Counters>,
}

/// Where a call has the id of what it starts.
#[derive(Clone, Copy, Debug)]
enum Starts {
    /// `RunPodSandbox`: in the answer.
    Sandbox,
    /// `StartContainer`: in the request.
    Container,
}

/// A call that starts something, under way.
#[derive(Debug)]
pub struct OrderedCall {
    order: Order,
    events: ConnectionEvents,
    starts: Starts,
    request: Copied,
    answer: First,
}

impl Order {
    /// Answers are held for that time at most.
    pub fn new(longest: Duration, counters: Arc<Counters>) -> Self {
        let places = Arc::new(Semaphore::new(limits::ANSWERS_HELD));
        Self { longest, places, counters }
    }

    /// Follows a call, if it starts something and its client takes events.
    pub fn follow(&self, path: &str, events: &ConnectionEvents) -> Option<OrderedCall> {
        let starts = match path {
            "/runtime.v1.RuntimeService/RunPodSandbox" => Starts::Sandbox,
            "/runtime.v1.RuntimeService/StartContainer" => Starts::Container,
            _ => return None,
        };
        events.come().then(|| OrderedCall {
            order: self.clone(),
            events: events.clone(),
            starts,
            request: Copied::default(),
            answer: First::default(),
        })
    }
}

impl OrderedCall {
    /// The request's body, copied from as it passes.
    pub fn request<B>(&self, body: B) -> CopiedBody<B> {
        self.request.of(body)
    }

    /// A piece of the answer.
    pub fn data(&mut self, data: &[u8]) {
        if matches!(self.starts, Starts::Sandbox) {
            self.answer.push(data);
        }
    }

    /// What the end of the answer has to wait for; none: nothing.
    pub fn wait(self, trailers: &HeaderMap) -> Option<BoxFuture<'static, ()>> {
        if status_code(trailers) != Some(0) || !self.events.come() {
            return None;
        }
        let event = self.event();
        let Self { order, events, .. } = self;
        if event.as_ref().is_some_and(|event| events.were_sent(event)) {
            return None;
        }
        let place = || Arc::clone(&order.places).try_acquire_owned().ok();
        let Some((event, place)) = event.filter(|_| !events.are_late()).zip(place()) else {
            order.counters.answers_before_event.count();
            return None;
        };
        order.counters.answers_held.count();
        Some(Box::pin(async move {
            let _place = place;
            if timeout(order.longest, events.wait_until_sent(&event)).await.is_err() {
                order.counters.answers_before_event.count();
                let id = String::from_utf8_lossy(&event.container_id);
                tracing::warn!(id = &*id, after = ?order.longest, "no event of a start: the client's event stream is ended");
                events.missed(&Status::unavailable(format!(
                    "the event of the start of {id} did not come; list everything, and subscribe again"
                )));
            }
        }))
    }

    fn event(&self) -> Option<EventName> {
        let container_id = match self.starts {
            Starts::Sandbox => {
                let First::Whole(message) = &self.answer else { return None };
                cri::RunPodSandboxResponse::decode(message.as_slice()).ok()?.pod_sandbox_id
            }
            Starts::Container => {
                let First::Whole(message) = self.request.take() else { return None };
                cri::StartContainerRequest::decode(message.as_slice()).ok()?.container_id
            }
        };
        Some(EventName {
            container_id: container_id.into(),
            kind: ContainerEventType::ContainerStartedEvent.into(),
        })
    }
}
