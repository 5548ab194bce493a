//! What the domain knows, in the API's shape. Never the other way.

pub mod containers;
pub mod convert;
mod guard;
mod kubernetes;
mod limits;
mod probe;
mod problems;
mod subject;
pub mod verdicts;

pub use probe::{capability, program};
pub use problems::{problem, unserved};

use kwitness_service::{BoundedCodec, BoundedDecoder, Requests};

/// Bytes that each request may need besides four times its own: as many as 512 entries that have nothing but defaults, 256 of each kind.
const REQUEST_FREE: usize = 128 << 10;

/// The codec of the API's methods.
pub type RequestCodec<T, U> = BoundedCodec<T, U, Requests, REQUEST_FREE>;
/// Its decoder.
pub type RequestDecoder<U> = BoundedDecoder<U, Requests, REQUEST_FREE>;
