//! The socket that the proxy serves: systemd's, which outlives the proxy, or one of its own.

use std::path::Path;

use anyhow::Context as _;
use listenfd::ListenFd;

use kwitness_service::Socket;

/// Takes the socket that systemd passed, or listens at `path`.
///
/// # Errors
/// What was passed is no listening Unix socket; or another process listens at `path`, or it cannot be made.
pub fn listen(path: &Path) -> anyhow::Result<Socket> {
    let mut passed = ListenFd::from_env();
    if passed.len() > 1 {
        anyhow::bail!("systemd passed {} sockets; one ListenStream= is expected", passed.len());
    }
    let what = "the socket that systemd passed cannot be used; it must be a ListenStream= with a path";
    if let Some(listener) = passed.take_unix_listener(0).context(what)? {
        tracing::info!("listening on systemd's socket");
        return Socket::passed(listener).context(what);
    }
    Socket::make_directory(path)?;
    Socket::listen(path)
}
