//! The API on a loopback port, for `kubectl port-forward` and what does the same: the kubelet connects to the port in the pod's own
//! network namespace.
//!
//! ```text
//!  kubectl kwitness ──▶ API server ──▶ kubelet ──▶ 127.0.0.1:PORT in the pod ──▶ Kwitness without the calls that report
//!                       (pods/portforward)
//! ```
//!
//! There is no authentication but the API server's: whoever reaches the port may read what the socket's clients may. So it is an
//! address of loopback only, and the service is one that takes nothing in. Owns the bound on connections. Calls have limits like
//! the socket's, apart from them: whoever is forwarded takes none of the calls that the guard and the exporter need.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use futures_util::Stream;
use kwitness_service::{Beginning, Binding, BindingState, ConnectionCounters, ConnectionId, Origin, Peer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use super::kwitness_server::KwitnessServer;
use super::{GRACE, REQUEST_BYTES_MAX, Service, WINDOW, connection_window};

/// Connections at a time. One more waits in the kernel's queue until one of them ends.
const CONNECTIONS: usize = 64;
/// How often an idle client is asked whether it is there; one that does not answer within [`KEEPALIVE_ANSWER`] is closed.
const KEEPALIVE: Duration = Duration::from_secs(60);
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(20);
/// How long a client may take to begin with HTTP/2.
const SILENCE: Duration = Duration::from_secs(10);
/// The wait after an error of accept(2).
const PAUSE: Duration = Duration::from_millis(500);

/// A loopback address that is listened on, or is going to be.
#[derive(Debug)]
pub struct Loopback {
    address: SocketAddr,
    binding: Binding,
    listener: Option<TcpListener>,
}

impl Loopback {
    /// Listens, if the address can be had; otherwise once it can, while it is served. Within a tokio runtime.
    pub fn new(address: SocketAddr) -> Self {
        let mut binding = Binding::new("api.listen");
        let listener = binding.attempt(|| bind(address));
        Self { address, binding, listener }
    }

    /// Whether it listens.
    pub fn binding(&self) -> BindingState {
        self.binding.state()
    }

    /// Where it listens.
    #[cfg(test)]
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.listener.as_ref()?.local_addr().ok()
    }

    /// Serves until stopped, and not much longer.
    pub(super) async fn serve(self, service: Service, stop: CancellationToken) -> anyhow::Result<()> {
        let Self { address, mut binding, listener } = self;
        let listening = async {
            match listener {
                Some(listener) => listener,
                None => binding.listen(|| bind(address)).await,
            }
        };
        let Some(listener) = stop.run_until_cancelled(listening).await else { return Ok(()) };
        let server = Server::builder()
            .initial_connection_window_size(connection_window(service.admission().max()))
            .initial_stream_window_size(WINDOW)
            .max_concurrent_streams(service.admission().max())
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE_ANSWER))
            .layer(service.admission().apart())
            .add_service(
                KwitnessServer::new(service.read_only()).max_decoding_message_size(REQUEST_BYTES_MAX),
            )
            .serve_with_incoming_shutdown(connections(listener), stop.clone().cancelled_owned());
        tokio::pin!(server);
        let served = tokio::select! {
            served = &mut server => served,
            () = stop.cancelled() => tokio::time::timeout(GRACE, server).await.unwrap_or(Ok(())),
        };
        served.context("cannot serve the API on its port")
    }
}

fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let failed = || format!("cannot listen on {address} for the API");
    let listener = std::net::TcpListener::bind(address).with_context(failed)?;
    listener.set_nonblocking(true).with_context(failed)?;
    TcpListener::from_std(listener).with_context(failed)
}

fn connections(listener: TcpListener) -> impl Stream<Item = io::Result<Forwarded>> {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    futures_util::stream::unfold((listener, room, ConnectionId(u64::MAX)), async |(listener, room, id)| {
        let permit = Arc::clone(&room).acquire_owned().await.ok()?;
        let stream = loop {
            match listener.accept().await {
                Ok((stream, _)) => break stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept forwarded connections: trying again");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        };
        let next = ConnectionId(id.0.wrapping_sub(1));
        let beginning = Beginning::within(SILENCE, Arc::<ConnectionCounters>::default());
        Some((Ok(Forwarded { stream, id, beginning, _permit: permit }), (listener, room, next)))
    })
}

/// A connection, with its place.
#[derive(Debug)]
struct Forwarded {
    stream: TcpStream,
    /// Counted down from the highest, so that it is none of the socket's.
    id: ConnectionId,
    beginning: Beginning,
    _permit: OwnedSemaphorePermit,
}

impl Connected for Forwarded {
    type ConnectInfo = Origin;

    /// Whoever forwards says nothing of the client: each connection is one.
    fn connect_info(&self) -> Origin {
        Origin { connection: self.id, peer: Peer::default() }
    }
}

impl AsyncRead for Forwarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.beginning.poll_read(&mut this.stream, context, buffer)
    }
}

impl AsyncWrite for Forwarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
