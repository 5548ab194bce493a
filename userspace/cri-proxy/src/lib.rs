//! `kwitness cri-proxy`: between a kubelet and its container runtime.
//!
//! ```text
//!                        ┌─ every method, as raw HTTP/2 frames ─▶ the runtime's socket, one connection for each of the clients'
//!                        │     └─ those that ask for limits: noted ─▶ taps ─▶ the daemon's socket
//!   kubelet ─▶ cri.sock ─┤
//!                        └─ GetContainerEvents ─▶ relay ─▶ the daemon's socket, or else the runtime's
//! ```
//!
//! A call is passed on by its path, whatever that is: headers, data and trailers as they come, without a look at the messages. So status,
//! details, metadata, deadlines and cancellation are the runtime's and the client's own, and a method or a field that does not exist
//! yet passes as well. Data waits for its reader call by call.
//!
//! Owns its listening socket and nothing else that lasts: it can be restarted at any time. It needs its two sockets and no privilege.
//! Never decodes a call on its way, never calls the runtime on its own account but for the runtime's events.

mod counters;
mod events;
#[cfg(test)]
mod fuzz;
mod limits;
mod listen;
mod runtime;
mod serve;
mod taps;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

pub use counters::Counters;
pub use runtime::RuntimeSocket;

use events::Timing;
use runtime::Runtime;
use serve::Front;

/// Where the proxy listens if nothing else is said.
pub const DEFAULT_SOCKET: &str = "/run/kwitness-cri/cri.sock";

/// What the proxy is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to listen, unless systemd passes a socket.
    pub listen: PathBuf,
    /// Where the runtime listens.
    pub runtime: RuntimeSocket,
    /// Where the daemon listens.
    pub daemon: PathBuf,
}

/// Serves until SIGTERM or SIGINT. SIGUSR1 writes the counts to the log.
///
/// # Errors
/// What keeps it from starting; each with what to do.
pub async fn run(options: Options) -> anyhow::Result<()> {
    check(&options)?;
    let Options { listen, runtime, daemon } = options;
    raise_file_limit();
    let listening = listen::listen(&listen)?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let mut tell = signal(SignalKind::user_defined1()).context("cannot handle SIGUSR1")?;
    tracing::info!(
        socket = %listen.display(), runtime = %runtime.path().display(), daemon = %daemon.display(), "ready"
    );
    kwitness_service::notify_ready();
    let counters = Arc::new(Counters::default());
    let stop = CancellationToken::new();
    let serving = serve(listening, runtime, daemon, Timing::default(), Arc::clone(&counters), stop.clone());
    let mut serving = tokio::spawn(serving);
    loop {
        tokio::select! {
            ended = &mut serving => {
                tracing::info!(%counters, "stopped");
                return ended.context("the proxy panicked");
            }
            _ = terminate.recv() => stop.cancel(),
            _ = interrupt.recv() => stop.cancel(),
            _ = tell.recv() => tracing::info!(%counters, "counts"),
        }
    }
}

async fn serve(
    listening: listen::Listening,
    runtime: RuntimeSocket,
    daemon: PathBuf,
    timing: Timing,
    counters: Arc<Counters>,
    stop: CancellationToken,
) {
    let (taps, telling) = taps::start(daemon.clone(), Arc::clone(&counters));
    let (events, relay) = events::start(daemon, runtime.clone(), Arc::clone(&counters), timing);
    let runtime = Arc::new(Runtime::new(runtime, Arc::clone(&counters)));
    let listen::Listening { listener, own: _own } = listening;
    let tidied = Arc::clone(&runtime);
    tokio::select! {
        () = Front { runtime, events, taps, counters }.serve(listener, stop) => {}
        () = tidied.tidy() => {}
        () = relay => {}
        () = telling => {}
    }
}

/// Room for [`limits::CONNECTIONS`], each with one to the runtime: the limit that programs begin with is for those that use select(2).
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard));
    match raised {
        Ok(limit) if limit < 2 * limits::CONNECTIONS as u64 + 64 => {
            tracing::warn!(
                limit,
                "few file descriptors: set LimitNOFILE= to take as many connections as can be"
            );
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "cannot raise the number of file descriptors"),
    }
}

/// A proxy that is its own runtime would call itself for ever.
fn check(Options { listen, runtime, daemon }: &Options) -> anyhow::Result<()> {
    let same = |one: &Path, other: &Path| {
        one == other
            || one.canonicalize().is_ok_and(|one| other.canonicalize().is_ok_and(|other| one == other))
    };
    for (name, path) in [("the runtime's", runtime.path()), ("the daemon's", daemon.as_path())] {
        if same(listen, path) {
            bail!("the proxy would listen on {name} socket {}; name another with --listen", path.display());
        }
    }
    Ok(())
}

/// tonic's own words are "transport error".
fn innermost(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), innermost)
}
