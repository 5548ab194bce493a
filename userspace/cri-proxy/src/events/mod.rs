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
//! kubelet must not rely on it: when no source has events for a while, which the kubelet then learns as it does without a proxy, or when this
//! client does not read.
//!
//! Owns the choice of source and the memory of forwarded events. Never makes up an event, never delays a source.

mod seen;
mod source;
mod subscribers;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
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
use kwitness_service::Peer;
#[cfg(test)]
pub use seen::EventName;
pub use seen::{Seen, Verdict};
pub use source::SourceKind;
use source::{CloseReason, Source, Update, follow};
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
    silent: Duration,
    overlap: Duration,
    patience: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self { silent: SILENT, overlap: OVERLAP, patience: PATIENCE }
    }
}

/// The clients' side.
#[derive(Clone, Debug)]
pub struct Events {
    subscribers: Subscribers,
    counters: Arc<Counters>,
    in_use: InUse,
    /// Whose calls these are.
    of: Peer,
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

impl tonic::server::ServerStreamingService<Bytes> for Events {
    type Response = Bytes;
    type ResponseStream = Stream;
    type Future = std::future::Ready<Result<Response<Stream>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        std::future::ready(match GetEventsRequest::decode(request.into_inner()) {
            Ok(GetEventsRequest {}) => {
                self.counters.event_streams.count();
                let (one, ended) = self.subscribers.add(self.of);
                if ended {
                    self.counters.event_streams_exhausted.count();
                }
                one.map(|one| Response::new(one.into_stream().boxed()))
            }
            // grpc-go's code and words.
            Err(error) => Err(Status::internal(format!("grpc: error unmarshalling request: {error}"))),
        })
    }
}

impl Events {
    /// The same for one client's calls.
    pub fn of(&self, client: Peer) -> Self {
        Self { of: client, ..self.clone() }
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
    let events = Events {
        subscribers: subscribers.clone(),
        counters: Arc::clone(&counters),
        in_use: in_use.clone(),
        of: Peer::default(),
    };
    let relay = Relay {
        daemon: Source::Daemon(daemon),
        runtime: Source::Runtime(runtime),
        subscribers,
        counters,
        in_use,
        timing,
        seen: Seen::default(),
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
    seen: Seen,
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
            }
            // The daemon serves, or does soon.
            (SourceKind::Runtime, Update::Closed(_)) if session.state == State::Daemon => {}
            (SourceKind::Runtime, Update::Closed(CloseReason::Away(reason))) => {
                tracing::debug!(reason, "the runtime's events ended");
                session.give_up = None;
            }
            (SourceKind::Runtime, Update::Closed(CloseReason::Refused(end))) => {
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
        self.in_use.set(Some(SourceKind::Runtime));
        session.turn = None;
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
        match self.seen.judge(event) {
            Verdict::Double => return self.counters.events_double.count(),
            Verdict::New => {}
            Verdict::Opaque => {
                tracing::warn!(
                    bytes = event.len(),
                    ?kind,
                    "an event cannot be decoded: it is passed on as it is"
                );
                self.counters.events_opaque.count();
            }
        }
        let overflowed = self.subscribers.send(event);
        if overflowed > 0 {
            tracing::warn!(streams = overflowed, "a client read its events too slowly: its stream was ended");
            self.counters.event_streams_overflowed.add(overflowed);
        }
    }
}

/// Never without a time.
async fn until(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}
