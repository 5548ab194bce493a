//! The part of the Container Runtime Interface that kwitness speaks: messages, client, what failures mean, and where runtimes listen.
//!
//! Owns no connection and no policy: the daemon's are in its `cri` and `cri_events`, the guard's in its `raise`, the
//! proxy's in its own modules.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

mod failure;
mod raw;

pub use failure::{Failure, is_answer};
pub use raw::Raw;

/// The messages of `runtime.v1` that are decoded, and a client.
#[expect(missing_docs, clippy::allow_attributes, reason = "generated; the protobuf files document it")]
pub mod runtime {
    tonic::include_proto!("runtime.v1");
}

/// The messages of a CRI event stream, whose embedded statuses stay the runtime's own bytes.
#[expect(missing_docs, reason = "generated; the protobuf files document it")]
pub mod events {
    tonic::include_proto!("kwitness.cri.events");
}

/// Where the runtimes listen by default: containerd, containerd within k3s, CRI-O, cri-dockerd.
pub const CANDIDATES: [&str; 4] = [
    "/run/containerd/containerd.sock",
    "/run/k3s/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/cri-dockerd.sock",
];

/// The first of [`CANDIDATES`] that exists now; none: no runtime's socket is there.
pub fn find_socket() -> Option<&'static Path> {
    CANDIDATES.iter().map(Path::new).find(|socket| socket.exists())
}

/// Request metadata of `GetContainerEvents` at the daemon: begin with events since that time, in nanoseconds since the Unix
/// epoch. The proxy sends it when it comes back to a daemon.
pub const SINCE: &str = "kwitness-since";

/// Now, as `ContainerEventResponse.created_at` has it: nanoseconds since the Unix epoch.
pub fn wall_clock() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}

/// The key of `LinuxContainerResources.unified` for swap.
pub const UNIFIED_SWAP_MAX: &str = "memory.swap.max";
/// The key of `LinuxContainerResources.unified` for the throttling threshold of memory.
pub const UNIFIED_MEMORY_HIGH: &str = "memory.high";
