//! Accepts connections on either kind of address, as soon as it can be had. Never gives up: an error is logged once and tried again.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context as _;
use nix::libc::{EADDRNOTAVAIL, EAFNOSUPPORT};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::either::Either;

use super::HttpAddress;
use crate::{Binding, BindingState, Socket};

/// The wait after an error of accept(2), doubled each time.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// An address that is listened on, or is going to be.
#[derive(Debug)]
pub(super) struct Acceptor {
    listener: Option<Listener>,
    binding: Binding,
    address: HttpAddress,
    /// The wait after the next error; none while accepting works.
    pause: Option<Duration>,
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix {
        listener: UnixListener,
        /// Removes its file when dropped.
        _socket: Socket,
    },
}

impl Listener {
    /// Listens, and gives where; within a tokio runtime.
    fn bind(address: &HttpAddress) -> anyhow::Result<(Self, HttpAddress)> {
        let failed = || format!("cannot listen on {address} for HTTP");
        let (listener, address) = match address {
            HttpAddress::Tcp(tcp) => {
                let listener = bind(*tcp).with_context(failed)?;
                listener.set_nonblocking(true).with_context(failed)?;
                let address = HttpAddress::Tcp(listener.local_addr().with_context(failed)?);
                (Self::Tcp(TcpListener::from_std(listener).with_context(failed)?), address)
            }
            HttpAddress::Unix(path) => {
                Socket::make_directory(path)?;
                let mut socket = Socket::listen(path).with_context(failed)?;
                (Self::Unix { listener: socket.listener()?, _socket: socket }, address.clone())
            }
        };
        tracing::info!(%address, "serving metrics and probes over HTTP");
        Ok((listener, address))
    }
}

impl Acceptor {
    /// Listens, if the address can be had; otherwise once it can, which [`Self::accept`] waits for. Within a tokio runtime.
    pub(super) fn new(mut binding: Binding, address: &HttpAddress) -> Self {
        let (listener, address) = match binding.attempt(|| Listener::bind(address)) {
            Some((listener, address)) => (Some(listener), address),
            None => (None, address.clone()),
        };
        Self { listener, binding, address, pause: None }
    }

    pub(super) fn address(&self) -> &HttpAddress {
        &self.address
    }

    /// Whether it is listened on.
    pub(super) fn state(&self) -> BindingState {
        self.binding.state()
    }

    /// The next connection. May be dropped and called again.
    pub(super) async fn accept(&mut self) -> Stream {
        loop {
            let accepted = match &self.listener {
                None => {
                    let bound = self.binding.listen(|| Listener::bind(&self.address)).await;
                    self.listener = Some(bound.0);
                    continue;
                }
                Some(Listener::Tcp(listener)) => {
                    listener.accept().await.map(|(stream, _)| Either::Left(stream))
                }
                Some(Listener::Unix { listener, .. }) => {
                    listener.accept().await.map(|(stream, _)| Either::Right(stream))
                }
            };
            match accepted {
                Ok(stream) => {
                    if self.pause.take().is_some() {
                        tracing::info!("accepting HTTP connections again");
                    }
                    return stream;
                }
                Err(error) => {
                    if self.pause.is_none() {
                        tracing::warn!(%error, "cannot accept HTTP connections: trying again");
                    }
                    let pause = self.pause.map_or(PAUSE.0, |pause| (pause * 2).min(PAUSE.1));
                    self.pause = Some(pause);
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }
}

/// `[::]` stands for all addresses also on a node without IPv6, so that one configuration serves both.
fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let bound = std::net::TcpListener::bind(address);
    match bound.as_ref().map_err(io::Error::raw_os_error) {
        Err(Some(EAFNOSUPPORT | EADDRNOTAVAIL)) if address.is_ipv6() && address.ip().is_unspecified() => {
            std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port()))
        }
        _ => bound,
    }
}

/// A connection of either kind.
pub(super) type Stream = Either<TcpStream, UnixStream>;

/// Where the client is, if it has an address.
pub(super) fn client(stream: &Stream) -> Option<IpAddr> {
    match stream {
        Either::Left(stream) => stream.peer_addr().ok().map(|address| address.ip().to_canonical()),
        Either::Right(_) => None,
    }
}
