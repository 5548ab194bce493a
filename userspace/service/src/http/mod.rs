//! The HTTP listener of a program, apart from its API: metrics, and the kubelet's three probes.
//!
//! ```text
//!  accept ──▶ full? ── yes ──▶ the oldest connection of the address with most is closed, counted
//!     │                              │
//!     ▼                              ▼
//!  one request (head ≤ 5 s, ≤ 16 KiB; all ≤ 30 s) ──▶ /metrics /livez /readyz /startupz ──▶ close
//! ```
//!
//! Owns a thread of its own, so that no scrape, however many there are, takes a turn from what the program is for. A connection
//! serves one request: what is slow or silent is closed after a time, and a newcomer displaces another rather than being refused. So a
//! client that opens connections without end closes its own, and cannot keep the kubelet's probes out. Scrapes within a second share
//! their text. Never reads a request's body, never changes anything, and knows neither TLS nor users: who may connect is up to the
//! address, a socket's mode or a NetworkPolicy.

mod accept;
mod address;
mod answer;

use std::borrow::Cow;
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use crate::metrics::Exposition;
use crate::{Binding, BindingState};
use accept::{Acceptor, Stream};
pub use address::{EXPECTS, HttpAddress};
use answer::Scrapes;

/// How many connections may be open unless a setting says otherwise: a kubelet's three probes and a few Prometheus servers.
pub const CONNECTIONS: usize = 16;

crate::counters! {
    /// What the listener counted.
    HttpCounters {
        /// Connections that were accepted.
        connections,
        /// Of those: closed for a newer one, because too many were open, most of them from the same address.
        connections_displaced,
        /// Of those: closed because the request or the reading of its answer took too long.
        connections_timed_out,
        /// Of those: closed because what came was no HTTP/1 request.
        connections_broken,
        /// Requests that were answered.
        requests,
        /// Of those: with another status than 200.
        requests_failed,
    }
}

/// Bounds of what clients may take.
#[derive(Clone, Copy, Debug)]
pub struct HttpLimits {
    /// Connections at a time; one more closes the oldest of the address that has most.
    pub connections: usize,
    /// How long a client may take to send the request's head.
    pub head: Duration,
    /// How long a connection may last.
    pub whole: Duration,
}

impl HttpLimits {
    /// With so many connections; a scrape of Prometheus takes at most 10 seconds unless configured otherwise.
    pub const fn with_connections(connections: usize) -> Self {
        Self { connections, head: Duration::from_secs(5), whole: Duration::from_secs(30) }
    }
}

/// Bytes of a request's head.
const HEAD_BYTES: usize = 16 << 10;
const HEADERS: usize = 64;

/// What the kubelet wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Whether the program works at all; if not, a restart may help.
    Live,
    /// Whether it serves.
    Ready,
    /// Whether it has started.
    Startup,
}

/// The answer to a probe: yes or no, each with the reason in one line.
pub type Health = Result<Cow<'static, str>, Cow<'static, str>>;

/// What is served.
pub trait Pages: Send + Sync + 'static {
    /// The samples of this moment. It runs on the listener's thread and waits for no other.
    fn metrics(&self) -> Exposition;
    /// The answer to a probe, likewise.
    fn probe(&self, probe: Probe) -> Health;
    /// Runs on the listener's thread for as long as it serves.
    fn work(&self) -> impl Future<Output = Infallible> {
        std::future::pending()
    }
}

/// A listener that serves until it is dropped, as soon as its address can be had.
#[derive(Debug)]
pub struct HttpServer {
    address: HttpAddress,
    binding: BindingState,
    stop: Option<oneshot::Sender<Infallible>>,
    thread: Option<JoinHandle<()>>,
}

impl HttpServer {
    /// Listens and serves. An address that is taken is tried again until it can be had; `binding` has the setting that names it.
    ///
    /// # Errors
    /// There is no thread.
    pub fn start(
        binding: impl Into<Binding>,
        address: &HttpAddress,
        limits: HttpLimits,
        pages: Arc<impl Pages>,
        counters: Arc<HttpCounters>,
    ) -> anyhow::Result<Self> {
        let (report, listening) = std::sync::mpsc::sync_channel(1);
        let (stop, stopped) = oneshot::channel();
        let (binding, wanted) = (binding.into(), address.clone());
        let thread = std::thread::Builder::new()
            .name("kwitness-http".to_owned())
            .spawn(move || match listen(binding, &wanted) {
                Ok((runtime, acceptor)) => {
                    // The other end waits for it.
                    let _ = report.send(Ok((acceptor.address().clone(), acceptor.state())));
                    runtime.block_on(serve(acceptor, limits, &*pages, &counters, stopped));
                }
                Err(error) => {
                    let _ = report.send(Err(error));
                }
            })
            .context("cannot start the thread of the HTTP listener")?;
        let (address, binding) = listening.recv().context("the thread of the HTTP listener panicked")??;
        Ok(Self { address, binding, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens, or is going to; the port is the kernel's choice where 0 was configured.
    pub fn address(&self) -> &HttpAddress {
        &self.address
    }

    /// Whether it listens.
    pub fn binding(&self) -> BindingState {
        self.binding.clone()
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.stop = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread of the HTTP listener panicked");
        }
    }
}

/// On the listener's own thread: within another runtime none may be dropped.
fn listen(binding: Binding, address: &HttpAddress) -> anyhow::Result<(Runtime, Acceptor)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the runtime of the HTTP listener")?;
    let acceptor = {
        let _within = runtime.enter();
        Acceptor::new(binding, address)
    };
    Ok((runtime, acceptor))
}

async fn serve(
    mut acceptor: Acceptor,
    limits: HttpLimits,
    pages: &impl Pages,
    counters: &HttpCounters,
    mut stopped: oneshot::Receiver<Infallible>,
) {
    let scrapes = Scrapes::default();
    let mut connections = FuturesUnordered::new();
    // Oldest first.
    let mut open: Vec<Open> = Vec::new();
    let mut last = 0;
    let work = pages.work();
    tokio::pin!(work);
    loop {
        tokio::select! {
            stream = acceptor.accept() => {
                counters.connections.count();
                let client = accept::client(&stream);
                if open.len() >= limits.connections
                    && let Some(displaced) = displaced(&open, client)
                {
                    counters.connections_displaced.count();
                    open.remove(displaced);
                }
                let (displace, displaced) = oneshot::channel();
                last += 1;
                open.push(Open { number: last, client, _displace: displace });
                let service = Service { pages, scrapes: &scrapes, counters };
                connections.push(connection(last, stream, limits, service, displaced));
            }
            Some(ended) = connections.next() => open.retain(|open| open.number != ended),
            never = &mut work => match never {},
            _ = &mut stopped => return,
        }
    }
}

/// An open connection.
struct Open {
    number: u64,
    client: Option<IpAddr>,
    /// Dropping it closes the connection.
    _displace: oneshot::Sender<Infallible>,
}

/// Which of the open connections, oldest first, gives way to one more of that client: the oldest of the client that has most.
fn displaced(open: &[Open], newcomer: Option<IpAddr>) -> Option<usize> {
    let mut counts = HashMap::from([(newcomer, 1)]);
    for open in open {
        *counts.entry(open.client).or_insert(0) += 1;
    }
    // Of several maxima the last is taken.
    let newest_first = open.iter().enumerate().rev();
    newest_first.max_by_key(|(_, open)| counts.get(&open.client).copied()).map(|(index, _)| index)
}

/// What every connection serves.
struct Service<'a, P> {
    pages: &'a P,
    scrapes: &'a Scrapes,
    counters: &'a HttpCounters,
}

/// Serves one request; returns the connection's number.
async fn connection(
    number: u64,
    stream: Stream,
    limits: HttpLimits,
    Service { pages, scrapes, counters }: Service<'_, impl Pages>,
    displaced: oneshot::Receiver<Infallible>,
) -> u64 {
    let service = service_fn(|request| {
        let response = answer::answer(&request, pages, scrapes);
        counters.requests.count();
        if !response.status().is_success() {
            counters.requests_failed.count();
        }
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .keep_alive(false)
        .max_headers(HEADERS)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        served = tokio::time::timeout(limits.whole, connection) => match served {
            Ok(Ok(())) => {}
            Ok(Err(error)) if error.is_timeout() => counters.connections_timed_out.count(),
            Ok(Err(_)) => counters.connections_broken.count(),
            Err(_) => counters.connections_timed_out.count(),
        },
        _ = displaced => {}
    }
    number
}

#[cfg(test)]
mod tests;
