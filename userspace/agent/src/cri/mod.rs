//! The container runtime's answers over CRI to what the kernel cannot know: names, labels, image, sandbox or app.
//!
//! Owns the connection and the open queries. Nothing waits for it: a container's events go out with what is
//! known, and the answer comes later, as an observation. A runtime that is away, slow or answers nonsense costs no
//! event; it is counted, and shown in the status. Never calls a method that changes anything.

mod calls;
mod client;
mod resolver;
#[cfg(test)]
mod tests;

pub use calls::{Calls, MethodCalls};
pub use client::{ANSWER_MAX, Connection, Error, Listing, list_once};
pub use resolver::{Resolver, start};

use kwitness_service::{Answers, BoundedCodec};

/// Bytes that an answer of the runtime's may need besides four times its own.
const ANSWER_FREE: usize = 8 << 20;

/// The codec of calls to the runtime whose answers are decoded.
pub type AnswerCodec<Q, A> = BoundedCodec<Q, A, Answers, ANSWER_FREE>;
