//! `runtime.v1.RuntimeService/GetContainerEvents`: the CRI's own event stream, made of what the kernel showed and of the statuses
//! that the container runtime gives.
//!
//! ```text
//!  hub ── hints: this container was started, has ended ──▶ machine ── requests ──▶ runtime
//!                                                            │  ◀── lists, statuses ──┘
//!                                                            ▼
//!                                                         events ──▶ one bounded queue a subscriber
//! ```
//!
//! A hint of the kernel is never an event: it says what to ask the runtime, and when. An event goes out once the runtime agrees,
//! with the statuses that it then gave, as the bytes that they came as. What the runtime knows and the kernel cannot show (a
//! container made and not started, one removed after its end) is found by lists.
//!
//! | Module | Knows |
//! |---|---|
//! | `entity` | how far a sandbox or container has come, and the event of each step |
//! | `pod` | one pod: what was sent, what is expected of the runtime, which events a reading makes. Pure |
//! | `machine` | all pods: whose a container is, what to ask next and when. Pure |
//! | `runtime` | the calls |
//! | `worker` | the task that brings them together, while anyone is subscribed |
//! | `subscribers` | the queues |
//! | `service` | the gRPC side |
//!
//! Never calls a method that changes anything, never subscribes to the runtime's own events: on containerd 1.7 that would take them
//! from the kubelet.

mod entity;
mod machine;
#[cfg(test)]
mod model;
mod pod;
mod runtime;
mod service;
mod subscribers;
#[cfg(test)]
mod tests;
mod worker;

pub use service::{RuntimeEvents, Unserved};
pub use worker::{Events, start};
