//! `GetContainerEvents`, the one method that is not passed on: the daemon's events, or else the runtime's.
//!
//! One relay follows the sources for all clients together, so that on containerd 1.7, whose subscribers take events from each other,
//! no client loses one to another. It follows no source while no client wants events.
//!
//! ```text
//!                  a client comes                        the daemon accepts the subscription
//!     Idle ───────────────────────────▶ Seeking ─────────────────────────────────────────▶ Daemon
//!      ▲                                   │                                               │    ▲
//!      │ the last client goes,             │ the daemon is away, has no events,            │    │ it accepts again; for
//!      │ from any state                    │ or says nothing for SILENT                    │    │ OVERLAP both are read,
//!      │                                   ▼                                               │    │ and duplicates dropped
//!      └────────────────────────────── Runtime ◀───────────────────────────────────────────┘    │
//!                                       │    │       its stream ends, or it stops answering     │
//!                                       │    └──────────────────────────────────────────────────┘
//!                                       ▼ the runtime has no events, for PATIENCE
//!                           every stream is ended, as the runtime ended its own
//! ```
//!
//! In every state both sources are tried again and again, the runtime only where the daemon is not followed. A client's stream stays
//! open whatever comes and goes behind it; a kubelet gives up events for good after five streams that ended. It is ended where the
//! kubelet must not rely on it: when no source has events for a while, which the kubelet then learns as it does without a proxy,
//! or when this client does not read.
//!
//! Owns the choice of source and the memory of forwarded events, and knows which of them a connection was sent. Never makes up an
//! event, never delays a source.

mod seen;
mod source;
mod subscribers;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tonic::{Request, Response, Status};

use super::counters::Counters;
use super::limits;
use super::runtime::RuntimeSocket;
pub use seen::{Dedup, EventName, Seen};
pub use source::SourceKind;
use source::{CloseReason, Source, Update, follow};
pub use subscribers::ConnectionId;
use subscribers::{End, Subscribers};

/// The method's path.
pub const METHOD: &str = "/runtime.v1.RuntimeService/GetContainerEvents";

/// How long the daemon may take to accept the subscription before the runtime is followed, too.
const SILENT: Duration = Duration::from_secs(1);
/// How long both are read after the daemon is back: longer than an event of the runtime is in flight.
const OVERLAP: Duration = Duration::from_millis(300);
/// How long clients wait for a source of events: longer than a daemon takes to be replaced.
const PATIENCE: Duration = Duration::from_secs(60);

/// The times, shorter in tests.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// See [`SILENT`].
    pub silent: Duration,
    /// See [`OVERLAP`].
    pub overlap: Duration,
    /// See [`PATIENCE`].
    pub patience: Duration,
    /// See [`limits::ANSWER_HELD`].
    pub answer_held: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self { silent: SILENT, overlap: OVERLAP, patience: PATIENCE, answer_held: limits::ANSWER_HELD }
    }
}

/// The clients' side.
#[derive(Clone, Debug)]
pub struct Events {
    subscribers: Subscribers,
    seen: Arc<Mutex<Seen>>,
    /// An event did not come in time, and none has come since.
    is_late: Arc<AtomicBool>,
    counters: Arc<Counters>,
    in_use: InUse,
}

/// One connection's side.
#[derive(Clone, Debug)]
pub struct ConnectionEvents {
    events: Events,
    connection: ConnectionId,
}

/// Which source serves the clients, if one does; the relay says so.
#[derive(Clone, Debug, Default)]
struct InUse(Arc<Mutex<Option<SourceKind>>>);

impl InUse {
    fn set(&self, source: Option<SourceKind>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = source;
    }

    fn get(&self) -> Option<SourceKind> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request without fields.
#[derive(Clone, Copy, PartialEq, prost::Message)]
struct GetEventsRequest {}

/// What a client gets.
pub type Stream = futures_util::stream::BoxStream<'static, Result<Bytes, Status>>;

impl tonic::server::ServerStreamingService<Bytes> for ConnectionEvents {
    type Response = Bytes;
    type ResponseStream = Stream;
    type Future = std::future::Ready<Result<Response<Stream>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        std::future::ready(match GetEventsRequest::decode(request.into_inner()) {
            Ok(GetEventsRequest {}) => self.events.subscribe(self.connection),
            // grpc-go's code and words.
            Err(error) => Err(Status::internal(format!("grpc: error unmarshalling request: {error}"))),
        })
    }
}

impl ConnectionEvents {
    /// Whether events come on this connection.
    pub fn come(&self) -> bool {
        self.events.source().is_some() && self.events.subscribers.has(self.connection)
    }

    /// Whether an event was sent on each of the connection's streams, or will come on none.
    pub fn were_sent(&self, event: &EventName) -> bool {
        if !self.come() {
            return true;
        }
        let number = lock(&self.events.seen).number(event);
        number.is_some_and(|number| self.events.subscribers.has_taken(self.connection, number))
    }

    /// Waits until [`Self::were_sent`].
    pub async fn wait_until_sent(&self, event: &EventName) {
        self.events.subscribers.wait_until_taken(|| self.were_sent(event)).await;
    }

    /// Whether an event did not come in time, and none has come since: its source may hang, and is not waited for again.
    pub fn are_late(&self) -> bool {
        self.events.is_late.load(Relaxed)
    }

    /// An event did not come in time. Ends the connection's streams, on which it is missing.
    pub fn missed(&self, status: &Status) {
        self.events.is_late.store(true, Relaxed);
        let ended = self.events.subscribers.end_of(self.connection, &Err(status.clone()));
        self.events.counters.event_streams_late.add(ended);
    }
}

impl Events {
    /// For a new connection.
    pub fn of_connection(&self, connection: ConnectionId) -> ConnectionEvents {
        ConnectionEvents { events: self.clone(), connection }
    }

    fn subscribe(&self, connection: ConnectionId) -> Result<Response<Stream>, Status> {
        self.counters.event_streams.count();
        let (subscriber, was_full) = self.subscribers.add(connection);
        if was_full {
            self.counters.event_streams_exhausted.count();
        }
        Ok(Response::new(subscriber?.into_stream().boxed()))
    }

    /// Which source serves the clients; none: there are none, or neither source has answered yet.
    pub fn source(&self) -> Option<SourceKind> {
        self.in_use.get()
    }

    /// How many streams there are.
    pub fn streams(&self) -> usize {
        self.subscribers.count()
    }

    /// Ends every stream: the proxy is stopping.
    pub fn end(&self) {
        self.subscribers.end_all(&Err(Status::unavailable("the proxy is stopping")));
    }
}

/// The clients' side, and what must run for it.
pub fn start(
    daemon: PathBuf,
    runtime: RuntimeSocket,
    counters: Arc<Counters>,
    timing: Timing,
) -> (Events, impl Future<Output = ()>) {
    let subscribers = Subscribers::default();
    let in_use = InUse::default();
    let (seen, is_late) = (Arc::<Mutex<Seen>>::default(), Arc::<AtomicBool>::default());
    let events = Events {
        subscribers: subscribers.clone(),
        seen: Arc::clone(&seen),
        is_late: Arc::clone(&is_late),
        counters: Arc::clone(&counters),
        in_use: in_use.clone(),
    };
    let relay = Relay {
        daemon: Source::Daemon(daemon),
        runtime: Source::Runtime(runtime),
        subscribers,
        counters,
        in_use,
        timing,
        seen,
        is_late,
        forwarded: 0,
        refused: None,
    };
    (events, relay.run())
}

struct Relay {
    daemon: Source,
    runtime: Source,
    subscribers: Subscribers,
    counters: Arc<Counters>,
    in_use: InUse,
    timing: Timing,
    seen: Arc<Mutex<Seen>>,
    is_late: Arc<AtomicBool>,
    /// How many events were forwarded: the number of the last one.
    forwarded: u64,
    /// No source has events: the runtime's status. Clients got it, and new ones get it at once, until a source has events.
    refused: Option<End>,
}

/// Which source serves the clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Seeking,
    Daemon,
    Runtime,
}

/// What a set of clients is served with, from the first that came to the last that went.
struct Session {
    state: State,
    to: mpsc::Sender<(SourceKind, Update)>,
    daemon: JoinSet<()>,
    /// Empty where the runtime is not followed.
    runtime: JoinSet<()>,
    /// When the runtime is to be followed, if the daemon has not answered by then; or no longer, once the daemon is back.
    turn: Option<Instant>,
    /// When the clients' streams are ended, and how, as no source has events.
    give_up: Option<(Instant, End)>,
}

impl Relay {
    async fn run(mut self) {
        loop {
            self.subscribers.wait_until_used().await;
            self.serve().await;
            self.in_use.set(None);
        }
    }

    /// Serves clients until there are none.
    async fn serve(&mut self) {
        let (to, mut from) = mpsc::channel(limits::EVENTS_FROM_SOURCE);
        let mut session = Session {
            state: State::Seeking,
            to: to.clone(),
            daemon: JoinSet::new(),
            runtime: JoinSet::new(),
            turn: Some(Instant::now() + self.timing.silent),
            give_up: None,
        };
        session.daemon.spawn(follow(self.daemon.clone(), to));
        let subscribers = self.subscribers.clone();
        let unused = subscribers.wait_until_unused();
        tokio::pin!(unused);
        loop {
            let turn = session.turn;
            let give_up = session.give_up.as_ref().map(|(when, _)| *when);
            tokio::select! {
                biased;
                () = &mut unused => return,
                update = from.recv() => match update {
                    Some((kind, update)) => self.handle(&mut session, kind, update),
                    None => return,
                },
                () = until(turn) => self.turn(&mut session),
                () = until(give_up) => self.give_up(&mut session),
            }
        }
    }

    fn handle(&mut self, session: &mut Session, kind: SourceKind, update: Update) {
        match (kind, update) {
            (_, Update::Event(event)) => self.pass_on(kind, &event),
            (SourceKind::Daemon, Update::Open) => {
                tracing::info!("container events come from the daemon");
                self.counters.moves_to_daemon.count();
                session.state = State::Daemon;
                self.in_use.set(Some(SourceKind::Daemon));
                // What the runtime sent just before is still in flight.
                session.turn = Some(Instant::now() + self.timing.overlap);
                session.give_up = None;
                self.refused = None;
            }
            (SourceKind::Daemon, Update::Closed(why)) => self.without_daemon(session, &why),
            (SourceKind::Runtime, Update::Open) => {
                if session.state != State::Daemon {
                    session.give_up = None;
                    self.refused = None;
                }
                if session.state == State::Runtime {
                    self.in_use.set(Some(SourceKind::Runtime));
                }
            }
            // The daemon serves, or does soon.
            (SourceKind::Runtime, Update::Closed(_)) if session.state == State::Daemon => {}
            (SourceKind::Runtime, Update::Closed(CloseReason::Away(reason))) => {
                self.in_use.set(None);
                tracing::debug!(reason, "the runtime's events ended");
                session.give_up = None;
            }
            (SourceKind::Runtime, Update::Closed(CloseReason::Refused(end))) => {
                self.in_use.set(None);
                let now = Instant::now();
                let patience = if self.refused.is_some() { Duration::ZERO } else { self.timing.patience };
                session.give_up.get_or_insert((now + patience, end));
            }
        }
    }

    fn without_daemon(&mut self, session: &mut Session, why: &CloseReason) {
        if session.state == State::Runtime {
            return;
        }
        tracing::warn!(
            reason = match why {
                CloseReason::Away(reason) => reason.as_str(),
                CloseReason::Refused(Err(status)) => status.message(),
                CloseReason::Refused(Ok(())) => "it has no events",
            },
            "no events from the daemon: falling back to the runtime"
        );
        self.use_runtime(session);
    }

    fn use_runtime(&mut self, session: &mut Session) {
        self.counters.moves_to_runtime.count();
        session.state = State::Runtime;
        session.turn = None;
        // Until the runtime accepts, there is none.
        self.in_use.set((!session.runtime.is_empty()).then_some(SourceKind::Runtime));
        if session.runtime.is_empty() {
            session.runtime.spawn(follow(self.runtime.clone(), session.to.clone()));
        }
    }

    /// The daemon said nothing for too long; or it is back for long enough.
    fn turn(&mut self, session: &mut Session) {
        session.turn = None;
        if session.state == State::Daemon {
            session.runtime = JoinSet::new();
        } else {
            tracing::warn!("the daemon does not answer: events come from the runtime until it does");
            self.use_runtime(session);
        }
    }

    fn give_up(&mut self, session: &mut Session) {
        let Some((_, end)) = session.give_up.take() else { return };
        let ended = self.subscribers.end_all(&end);
        self.counters.event_streams_refused.add(ended);
        if self.refused.is_none() {
            tracing::warn!(
                streams = ended,
                "neither the daemon nor the runtime has events: clients get the runtime's status"
            );
        }
        self.refused = Some(end);
    }

    fn pass_on(&mut self, kind: SourceKind, event: &Bytes) {
        match kind {
            SourceKind::Daemon => &self.counters.events_daemon,
            SourceKind::Runtime => &self.counters.events_runtime,
        }
        .count();
        self.is_late.store(false, Relaxed);
        let number = self.forwarded + 1;
        let dedup = lock(&self.seen).check(event, number);
        match dedup {
            Dedup::Duplicate => return self.counters.events_double.count(),
            Dedup::New => {}
            Dedup::Undecodable => {
                tracing::warn!(
                    bytes = event.len(),
                    ?kind,
                    "an event cannot be decoded: it is passed on as it is"
                );
                self.counters.events_opaque.count();
            }
        }
        self.forwarded = number;
        let overflowed = self.subscribers.send(number, event);
        if overflowed > 0 {
            tracing::warn!(streams = overflowed, "a client read its events too slowly: its stream was ended");
            self.counters.event_streams_overflowed.add(overflowed);
        }
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Never without a time.
async fn until(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}
