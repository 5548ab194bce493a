//! The socket that the proxy serves: systemd's, which outlives the proxy, or one of its own.

use std::path::Path;

use anyhow::Context as _;
use listenfd::ListenFd;
use tokio::net::UnixListener;

use kwitness_service::Socket;

/// A listening socket; the file of one of our own is removed when this is dropped.
#[derive(Debug)]
pub struct Listening {
    /// Within a tokio runtime.
    pub listener: UnixListener,
    /// Kept for its file.
    pub own: Option<Socket>,
}

/// Takes the socket that systemd passed, or listens at `path`.
///
/// # Errors
/// What was passed is no listening Unix socket; or another process listens at `path`, or it cannot be made.
pub fn listen(path: &Path) -> anyhow::Result<Listening> {
    let mut passed = ListenFd::from_env();
    if passed.len() > 1 {
        anyhow::bail!("systemd passed {} sockets; one ListenStream= is expected", passed.len());
    }
    let what = "the socket that systemd passed cannot be used; it must be a ListenStream= with a path";
    if let Some(listener) = passed.take_unix_listener(0).context(what)? {
        listener.set_nonblocking(true).context(what)?;
        tracing::info!("listening on systemd's socket");
        return Ok(Listening { listener: UnixListener::from_std(listener).context(what)?, own: None });
    }
    Socket::make_directory(path)?;
    let mut own = Socket::listen(path)?;
    Ok(Listening { listener: own.listener()?, own: Some(own) })
}
