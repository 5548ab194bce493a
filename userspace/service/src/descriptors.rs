//! The number of file descriptors that this process may have open.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the soft limit to the hard one: the soft limit that programs start with is for those that use select(2). Returns
/// the limit from now on.
pub fn raise_limit() -> u64 {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard));
    raised.unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot raise the limit of file descriptors");
        getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft)
    })
}
