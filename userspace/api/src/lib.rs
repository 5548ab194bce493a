//! The API of kwitness for its clients: the messages of `kwitness.v1alpha1` with their canonical JSON, the
//! client, and recordings that answer like a daemon.
//!
//! Builds on any operating system. Owns nothing of a node: the daemon is known by its socket alone.

mod cause;
pub mod client;
mod event_kind;
pub mod filter;
pub mod recording;
mod source;
pub mod text;
mod timestamp;
pub mod transport;

pub use cause::{causes, innermost};
pub use client::Client;
pub use event_kind::{EventKind, UnknownKind};
pub use source::{Error as SourceError, Events, Source};
pub use timestamp::Timestamp;

/// Where the daemon listens by default.
pub const DEFAULT_SOCKET: &str = "/run/kwitness/kwitness.sock";

/// The service's full name, as gRPC health and reflection have it.
pub const SERVICE: &str = "kwitness.v1alpha1.Kwitness";

/// The most requests that one `ReportCriRequests` call may carry, and entries of what was missed.
pub const REQUESTS_MAX: usize = 256;
/// The most bytes in the id of one; those of the runtimes have 64.
pub const REQUEST_ID_BYTES_MAX: usize = 256;

/// The most reports that one `ReportGuardEvents` call may carry.
pub const GUARD_REPORTS_MAX: usize = 256;
/// The most bytes in the reason of one.
pub const GUARD_REASON_BYTES_MAX: usize = 64;
/// The most bytes in its text for people.
pub const GUARD_DETAIL_BYTES_MAX: usize = 512;

/// The messages and the client that `build.rs` generates. The module is named without the version: a client moves to the
/// next one by moving to the next release of this crate.
#[expect(missing_docs, clippy::allow_attributes, reason = "generated; the protobuf files document it")]
#[cfg_attr(
    test,
    expect(clippy::items_after_test_module, reason = "the generated server is for the client's tests only")
)]
pub mod proto {
    tonic::include_proto!("kwitness.v1alpha1");
    include!(concat!(env!("OUT_DIR"), "/kwitness.v1alpha1.serde.rs"));

    /// The descriptors of the API and of all it imports, for gRPC reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kwitness.v1alpha1.bin"));
}
