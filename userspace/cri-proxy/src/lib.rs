//! `kwitness cri-proxy`: between a kubelet and its container runtime.
//!
//! ```text
//!                        ┌─ every method, as raw HTTP/2 frames ─▶ the runtime's socket, one connection for each of the clients'
//!                        │     └─ those that carry limits: observed ─▶ requests ─▶ the daemon's socket
//!   kubelet ─▶ cri.sock ─┤
//!                        │     └─ those that start something: their answers wait for their events (order)
//!                        └─ GetContainerEvents ─▶ relay ─▶ the daemon's socket, or else the runtime's
//! ```
//!
//! A call is forwarded by its path, whatever that is: headers, data and trailers as they come, without decoding messages. So status,
//! details, metadata, deadlines and cancellation are the runtime's and the client's own, and a method or a field that does not exist
//! yet passes as well. Data waits for its reader call by call.
//!
//! Owns its listening socket, what the daemon has not taken when it ends, and nothing else that lasts: it can be restarted at any time.
//! It needs its two sockets and no privilege. Never decodes a call on its way but for the id of what it starts (order), never calls the
//! runtime on its own account but for the runtime's events.

mod budget;
mod counters;
mod events;
mod first;
mod frontend;
#[cfg(test)]
mod fuzz;
mod limits;
mod listen;
mod metrics;
mod order;
mod requests;
mod runtime;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use tokio_util::sync::CancellationToken;

pub use counters::Counters;
pub use metrics::CATALOG;
pub use runtime::RuntimeSocket;

use budget::Budget;
use events::Timing;
use frontend::Frontend;
use hyper::HeaderMap;
use kwitness_service::heartbeat::Heartbeat;
use kwitness_service::http::{CONNECTIONS, HttpAddress, HttpCounters, HttpLimits, HttpServer};
use kwitness_service::memory::CountingAllocator;
use kwitness_service::program::Program;
use kwitness_service::{Limits, Listener, Signal, Signals, descriptors};
use metrics::{Metrics, Sources};
use order::Order;
use requests::{Daemon, Left};
use runtime::Runtime;

// What clients cost is measured.
#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Where the proxy listens if nothing else is said.
pub const DEFAULT_SOCKET: &str = "/run/kwitness-cri/cri.sock";

/// The proxy's settings.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to listen, unless systemd passes a socket.
    pub listen: PathBuf,
    /// Where the runtime listens.
    pub runtime: RuntimeSocket,
    /// Where the daemon listens.
    pub daemon: PathBuf,
    /// Where metrics and probes are served, if anywhere.
    pub http: Option<HttpAddress>,
}

/// Serves until SIGTERM or SIGINT. SIGUSR1 writes the counters to the log.
///
/// # Errors
/// What keeps it from starting; each with what to do.
pub async fn run(options: Options) -> anyhow::Result<()> {
    check(&options)?;
    // Until then, every signal ends the process, SIGHUP and SIGUSR1 as well.
    let mut signals = Signals::handle()?;
    let Options { listen, runtime, daemon, http } = options;
    // Each connection needs another one to the runtime.
    let limits = Limits::for_descriptors(descriptors::raise_limit(), 2);
    let listener = Listener::new(listen::listen(&listen)?, limits)?;
    let connections = listener.counters();
    tracing::info!(
        socket = %listen.display(), runtime = %runtime.path().display(), daemon = %daemon.display(), "ready"
    );
    kwitness_service::notify_ready();
    let counters = Arc::new(Counters::default());
    let budget = Budget::new(limits::CLIENTS_MEMORY, limits::CALLS_MEMORY, Arc::clone(&counters));
    let stop = CancellationToken::new();
    let daemon = Daemon { left: Left::beside(&listen), socket: daemon };
    let (sources, serving) =
        serve(listener, runtime, daemon, Timing::default(), budget, Arc::clone(&counters), stop.clone());
    let mut serving = tokio::spawn(serving);
    let _http = http.and_then(|address| serve_metrics(&address, sources));
    loop {
        tokio::select! {
            ended = &mut serving => {
                tracing::info!("stopped: {connections} {counters}");
                return ended.context("the proxy panicked");
            }
            signal = signals.next() => match signal {
                Signal::Stop => stop.cancel(),
                Signal::LogCounters => tracing::info!("counters: {connections} {counters}"),
                // Its options are all on the command line.
                Signal::Reload => tracing::info!("SIGHUP ignored: restart to apply other options"),
            },
        }
    }
}

/// What serves clients until it is stopped, and what metrics read of it.
fn serve(
    listener: Listener,
    runtime: RuntimeSocket,
    daemon: Daemon,
    timing: Timing,
    budget: Arc<Budget>,
    counters: Arc<Counters>,
    stop: CancellationToken,
) -> (Sources, impl Future<Output = ()>) {
    let order = Order::new(timing.answer_held, Arc::clone(&counters));
    let (observer, reporting) = requests::start(daemon.clone(), Arc::clone(&counters));
    let (events, relay) = events::start(daemon.socket, runtime.clone(), Arc::clone(&counters), timing);
    let runtime = Arc::new(Runtime::new(runtime, Arc::clone(&counters)));
    let sources = Sources {
        connections: listener.counters(),
        counters: Arc::clone(&counters),
        events: events.clone(),
        runtime: Arc::clone(&runtime),
        budget: Arc::clone(&budget),
    };
    let tidied = Arc::clone(&runtime);
    let last = observer.clone();
    let serving = async move {
        let answering = async {
            Frontend { runtime, events, observer, order, budget, counters }.serve(listener, stop).await;
            last.end().await;
        };
        tokio::select! {
            () = answering => {}
            () = tidied.tidy() => {}
            () = relay => {}
            () = reporting => {}
        }
    };
    (sources, serving)
}

/// gRPC's status code in headers or trailers, if they have one.
fn status_code(headers: &HeaderMap) -> Option<i32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// Serves metrics and probes. Not even that there is no thread for it is a reason to leave the kubelet without its runtime.
fn serve_metrics(address: &HttpAddress, sources: Sources) -> Option<HttpServer> {
    let (http, heartbeat) = (Arc::<HttpCounters>::default(), Arc::<Heartbeat>::default());
    let metrics = Arc::new(Metrics::new(Program::new(Arc::clone(&http)), sources, Arc::clone(&heartbeat)));
    let limits = HttpLimits::with_connections(CONNECTIONS);
    let server = HttpServer::start("--http-listen", address, limits, metrics, http)
        .inspect_err(|error| {
            tracing::error!(error = format!("{error:#}"), "no metrics and no probes are served")
        })
        .ok()?;
    drop(tokio::spawn(async move { heartbeat.beat().await }));
    Some(server)
}

/// A proxy that is its own runtime would call itself for ever.
fn check(Options { listen, runtime, daemon, http }: &Options) -> anyhow::Result<()> {
    let same = |one: &Path, other: &Path| {
        one == other
            || one.canonicalize().is_ok_and(|one| other.canonicalize().is_ok_and(|other| one == other))
    };
    for (name, path) in [("the runtime's", runtime.path()), ("the daemon's", daemon.as_path())] {
        if same(listen, path) {
            bail!("the proxy would listen on {name} socket {}; name another with --listen", path.display());
        }
        if let Some(HttpAddress::Unix(http)) = http
            && (same(http, path) || same(http, listen))
        {
            bail!("{} is another socket already; name another with --http-listen", http.display());
        }
    }
    Ok(())
}
