//! Accepts connections, for all programs, and keeps the socket reachable.
//!
//! ```text
//!   accept ──▶ a slot? ── none ──▶ closed, counted
//!     │            └─ yes ──▶ Connection (closed and counted if it stays silent before the HTTP/2 preface)
//!     ├─ error (EMFILE) ──▶ wait, longer each time, logged once; "accepting again" at the next success
//!     └─ every WATCH: is the socket's file still ours? ── no ──▶ listen again
//! ```
//!
//! Which connection goes where there are too many, the slots decide. Never reads from one.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Interval, MissedTickBehavior, interval, sleep};

use crate::beginning::ConnectionCounters;
use crate::connection::Connection;
use crate::slots::{Admitted, Peer, Slot, Slots};
use crate::socket::Socket;

/// Bounds of what clients may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time; for one more, one of the client with most is closed.
    pub connections: usize,
    /// How long a client may take to send its HTTP/2 preface and the head of its first frame.
    pub silence: Duration,
    /// How often the socket's file is looked at.
    pub watch: Duration,
}

/// More than any node's clients; [`Limits::for_descriptors`] lowers it where descriptors are few.
const CONNECTIONS: u64 = 4096;
/// grpc-go's `ConnectionTimeout`.
const SILENCE: Duration = Duration::from_secs(120);
const WATCH: Duration = Duration::from_secs(2);
/// Descriptors for everything but connections.
const OTHER_DESCRIPTORS: u64 = 256;
/// The wait after an error of accept(2), doubled each time.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

impl Limits {
    /// As many connections as there are descriptors for, at so many each.
    pub fn for_descriptors(limit: u64, each: u64) -> Self {
        let room = limit.saturating_sub(OTHER_DESCRIPTORS) / each;
        if room < CONNECTIONS {
            tracing::warn!(limit, connections = room.max(1), "few file descriptors: raise LimitNOFILE=");
        }
        let connections = usize::try_from(room.clamp(1, CONNECTIONS)).unwrap_or(1);
        Self { connections, silence: SILENCE, watch: WATCH }
    }
}

/// A socket that clients connect to.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    socket: Socket,
    limits: Limits,
    slots: Slots,
    counters: Arc<ConnectionCounters>,
    watch: Interval,
    /// The wait after the next error; none while accepting works.
    pause: Option<Duration>,
    /// Whether connections are being refused.
    full: bool,
    /// Whether the socket's file is known to be gone.
    gone: bool,
}

impl Listener {
    /// Within a tokio runtime.
    ///
    /// # Errors
    /// The socket cannot be registered with the runtime.
    pub fn new(mut socket: Socket, limits: Limits) -> anyhow::Result<Self> {
        let mut watch = interval(limits.watch);
        watch.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            listener: socket.listener()?,
            socket,
            limits,
            slots: Slots::new(limits.connections),
            counters: Arc::default(),
            watch,
            pause: None,
            full: false,
            gone: false,
        })
    }

    /// What is counted.
    pub fn counters(&self) -> Arc<ConnectionCounters> {
        Arc::clone(&self.counters)
    }

    /// The next connection. May be dropped and called again.
    pub async fn accept(&mut self) -> Connection {
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                _ = self.watch.tick() => {
                    self.keep_reachable();
                    continue;
                }
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    self.failed(&error).await;
                    continue;
                }
            };
            if self.pause.take().is_some() {
                tracing::info!("accepting connections again");
            }
            self.counters.connections.count();
            if let Some(slot) = self.slot(&stream) {
                return Connection::new(stream, slot, self.limits.silence, Arc::clone(&self.counters));
            }
        }
    }

    /// A place for a new connection, if there is or can be made one. One of them goes where there are too many, which is counted.
    fn slot(&mut self, stream: &UnixStream) -> Option<Slot> {
        let peer = Peer::of(stream);
        let (slot, closed) = match self.slots.admit(peer, stream) {
            Admitted::Room(slot) => {
                if std::mem::take(&mut self.full) {
                    let closed = self.counters.connections_refused.get();
                    tracing::info!(closed, "below the limit of connections again");
                }
                return Some(slot);
            }
            Admitted::InPlaceOf(slot, other) => (Some(slot), other),
            Admitted::Refused => (None, peer),
        };
        self.counters.connections_refused.count();
        if !std::mem::replace(&mut self.full, true) {
            let (limit, Peer { user, process }) = (self.limits.connections, closed);
            tracing::warn!(
                limit,
                user,
                process,
                "too many connections: for each new one, one of the client with most is closed"
            );
        }
        slot
    }

    /// All of them, one after the other, for as long as it is polled.
    pub fn into_stream(self) -> impl Stream<Item = io::Result<Connection>> {
        futures_util::stream::unfold(self, async |mut this| {
            let connection = this.accept().await;
            Some((Ok(connection), this))
        })
    }

    async fn failed(&mut self, error: &io::Error) {
        if self.pause.is_none() {
            tracing::warn!(%error, "cannot accept connections: trying again");
        }
        let pause = self.pause.map_or(PAUSE.0, |pause| (pause * 2).min(PAUSE.1));
        self.pause = Some(pause);
        sleep(pause).await;
    }

    /// Listens again where the socket's file is no longer this socket's.
    fn keep_reachable(&mut self) {
        if self.socket.is_reachable() {
            if std::mem::take(&mut self.gone) {
                tracing::info!(path = %self.socket.path().display(), "the socket's file is back");
            }
            return;
        }
        match self.socket.listen_again().and_then(|()| self.socket.listener()) {
            Ok(listener) => {
                self.gone = false;
                self.listener = listener;
                let path = self.socket.path().display();
                tracing::warn!(%path, "the socket's file was removed or replaced: listening on a new one");
            }
            Err(error) => {
                if !std::mem::replace(&mut self.gone, true) {
                    let error = format_args!("{error:#}");
                    tracing::error!(%error, "the socket's file was removed or replaced: clients cannot connect");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
