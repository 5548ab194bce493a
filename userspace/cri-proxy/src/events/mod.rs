//! `GetContainerEvents`, the one method that is not passed on: the daemon's events, or else the runtime's.
//!
//! One relay follows the sources for all clients together, so that on containerd 1.7, whose subscribers take events from each other,
//! no client loses one to another. It follows nobody while no client wants events.
//!
//! ```text
//!                  a client comes                        the daemon takes the subscription
//!     Idle ───────────────────────────▶ Seeking ─────────────────────────────────────────▶ Daemon
//!      ▲                                   │                                               │    ▲
//!      │ the last client goes,             │ the daemon is away, has no events,            │    │ the daemon takes it; for
//!      │ from any state                    │ or says nothing for SILENT                    │    │ OVERLAP both are read,
//!      │                                   ▼                                               │    │ and doubles left out
//!      └────────────────────────────── Runtime ◀───────────────────────────────────────────┘    │
//!                                       │    │       its stream ends, or it stops answering     │
//!                                       │    └──────────────────────────────────────────────────┘
//!                                       ▼ the runtime has no events, for PATIENCE
//!                           every stream is ended, as the runtime ended its own
//! ```
//!
//! In every state both sources are tried again and again, the runtime only where the daemon is not followed. A client's stream stays
//! open whatever comes and goes behind it; a kubelet gives up events for good after five streams that ended. It is ended where the
//! kubelet must not rely on it: when nobody has events for a while, which the kubelet then gets to know as without a proxy, or when this
//! client does not read.
//!
//! Owns the choice and the memory of what was told. Never makes up an event, never holds up a source.

mod leg;
mod seen;
mod subscribers;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tonic::{Request, Response, Status};

use super::counters::Counters;
use super::limits;
use super::runtime::RuntimeSocket;
use leg::{Place, Told, Who, Why, follow};
#[cfg(test)]
pub use seen::EventName;
pub use seen::{Seen, Verdict};
use subscribers::{End, Subscribers};

/// The method's path.
pub const METHOD: &str = "/runtime.v1.RuntimeService/GetContainerEvents";

/// How long the daemon may take to take the subscription before the runtime is asked, too.
const SILENT: Duration = Duration::from_secs(1);
/// How long both are read after the daemon is back: longer than an event that the runtime has told takes to here.
const OVERLAP: Duration = Duration::from_millis(300);
/// How long clients wait for somebody who has events: longer than a daemon takes to be replaced.
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
                Ok(Response::new(Box::pin(self.subscribers.add().into_stream())))
            }
            // grpc-go's code and words.
            Err(error) => Err(Status::internal(format!("grpc: error unmarshalling request: {error}"))),
        })
    }
}

impl Events {
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
    let events = Events { subscribers: subscribers.clone(), counters: Arc::clone(&counters) };
    let relay = Relay {
        daemon: Place::Daemon(daemon),
        runtime: Place::Runtime(runtime),
        subscribers,
        counters,
        timing,
        seen: Seen::default(),
        refused: None,
    };
    (events, relay.run())
}

struct Relay {
    daemon: Place,
    runtime: Place,
    subscribers: Subscribers,
    counters: Arc<Counters>,
    timing: Timing,
    seen: Seen,
    /// Nobody has events, as the runtime said. Clients were told, and new ones are at once, until somebody has.
    refused: Option<End>,
}

/// From whom the clients have their events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Seeking,
    Daemon,
    Runtime,
}

/// What a set of clients is served with, from the first that came to the last that went.
struct Session {
    state: State,
    to: mpsc::Sender<(Who, Told)>,
    daemon: JoinSet<()>,
    /// Empty where the runtime is not followed.
    runtime: JoinSet<()>,
    /// When the runtime is to be asked, if the daemon said nothing by then; or no longer, once the daemon is back.
    turn: Option<Instant>,
    /// When the clients are ended, and how, as nobody has events.
    give_up: Option<(Instant, End)>,
}

impl Relay {
    async fn run(mut self) {
        loop {
            self.subscribers.wait(true).await;
            self.serve().await;
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
        let nobody = subscribers.wait(false);
        tokio::pin!(nobody);
        loop {
            let turn = session.turn;
            let give_up = session.give_up.as_ref().map(|(when, _)| *when);
            tokio::select! {
                biased;
                () = &mut nobody => return,
                told = from.recv() => match told {
                    Some((who, told)) => self.hear(&mut session, who, told),
                    None => return,
                },
                () = until(turn) => self.turn(&mut session),
                () = until(give_up) => self.give_up(&mut session),
            }
        }
    }

    fn hear(&mut self, session: &mut Session, who: Who, told: Told) {
        match (who, told) {
            (_, Told::Event(event)) => self.pass_on(who, &event),
            (Who::Daemon, Told::Open) => {
                tracing::info!("container events come from the daemon");
                self.counters.moves_to_daemon.count();
                session.state = State::Daemon;
                // What the runtime told just before is still on its way here.
                session.turn = Some(Instant::now() + self.timing.overlap);
                session.give_up = None;
                self.refused = None;
            }
            (Who::Daemon, Told::Closed(why)) => self.without_daemon(session, &why),
            (Who::Runtime, Told::Open) => {
                if session.state != State::Daemon {
                    session.give_up = None;
                    self.refused = None;
                }
            }
            // Its place is taken, or it is soon.
            (Who::Runtime, Told::Closed(_)) if session.state == State::Daemon => {}
            (Who::Runtime, Told::Closed(Why::Away(reason))) => {
                tracing::debug!(reason, "the runtime's events ended");
                session.give_up = None;
            }
            (Who::Runtime, Told::Closed(Why::Refused(end))) => {
                let now = Instant::now();
                let patience = if self.refused.is_some() { Duration::ZERO } else { self.timing.patience };
                session.give_up.get_or_insert((now + patience, end));
            }
        }
    }

    fn without_daemon(&mut self, session: &mut Session, why: &Why) {
        if session.state == State::Runtime {
            return;
        }
        tracing::warn!(
            reason = match why {
                Why::Away(reason) => reason.as_str(),
                Why::Refused(Err(status)) => status.message(),
                Why::Refused(Ok(())) => "it has no events",
            },
            "the daemon does not tell events: they come from the runtime"
        );
        self.use_runtime(session);
    }

    fn use_runtime(&mut self, session: &mut Session) {
        self.counters.moves_to_runtime.count();
        session.state = State::Runtime;
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
            tracing::warn!("the daemon takes long: events come from the runtime until it answers");
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
                "neither the daemon nor the runtime has events: clients are told as the runtime does"
            );
        }
        self.refused = Some(end);
    }

    fn pass_on(&mut self, who: Who, event: &Bytes) {
        match who {
            Who::Daemon => &self.counters.events_daemon,
            Who::Runtime => &self.counters.events_runtime,
        }
        .count();
        match self.seen.judge(event) {
            Verdict::Double => return self.counters.events_double.count(),
            Verdict::New => {}
            Verdict::Opaque => {
                tracing::warn!(
                    bytes = event.len(),
                    ?who,
                    "an event cannot be decoded: it is passed on as it is"
                );
                self.counters.events_opaque.count();
            }
        }
        let overflowed = self.subscribers.tell(event);
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
