//! The task that brings the kernel's hints, the machine and the runtime together while anyone is subscribed.
//!
//! ```text
//!  unused ──▶ a subscriber ──▶ connect ──▶ serve: hints in, requests out, answers in, events out
//!    ▲                            ▲            │
//!    │                            └─ 0.1…2 s ──┤ the runtime does not answer any more
//!    └── unused for 60 s ──────────────────────┘
//! ```
//!
//! While the runtime is away the machine keeps what it knows and the hints; once it is back, everything is read again, and what
//! happened meanwhile is sent then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::entity::Progress;
use super::machine::{Answer, Counts, Hint, Listing, Machine, Request};
use super::runtime::Runtime;
use super::subscribers::{Subscribers, Subscription};
use crate::clock::Clock;
use crate::cri::{self, Connection, Resolver};
use crate::hub::{Filter, Hub, Watcher};
use kwitness_api::{EventKind, Timestamp};
use kwitness_cri::wall_clock;

/// Requests under way at most; each is a few calls.
const AT_ONCE: usize = 4;
/// How long what is known is kept for a subscriber that comes back.
const LINGER: Duration = Duration::from_secs(60);
/// How often is looked whether anyone is left.
const LOOK: Duration = Duration::from_secs(5);
/// Between two attempts to serve: at first, and at most.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// The stream's source, for whoever serves it. Clones share it.
#[derive(Clone, Debug)]
pub struct Events {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    subscribers: Subscribers,
    /// Has the connection to the runtime, and reconnects.
    resolver: Resolver,
    calls: Arc<AtomicU64>,
    failures: AtomicU64,
    counts: std::sync::Mutex<Counts>,
}

/// Makes the source, and the task that works for it, forever.
pub fn start(resolver: Resolver, hub: Arc<Hub>) -> (Events, impl Future<Output = ()> + Send + 'static) {
    let shared = Arc::new(Shared {
        subscribers: Subscribers::default(),
        resolver,
        calls: Arc::default(),
        failures: AtomicU64::new(0),
        counts: std::sync::Mutex::default(),
    });
    let events = Events { shared: shared.clone() };
    let work = async move {
        loop {
            let since = shared.subscribers.begin_session().await;
            Session::new(&shared, &hub, since).run().await;
        }
    };
    (events, work)
}

impl Events {
    pub(super) fn subscribe(&self, since: Option<i64>) -> Subscription {
        self.shared.subscribers.subscribe(wall_clock(), since)
    }

    #[cfg(test)]
    pub(super) fn publish(&self, event: &Bytes) {
        self.shared.subscribers.publish(0, event);
    }

    /// How many are subscribed.
    pub fn subscribers(&self) -> usize {
        self.shared.subscribers.count()
    }

    /// The runtime's own answer to `Version`, as bytes.
    pub(super) async fn version(&self, request: Bytes) -> Result<Bytes, tonic::Status> {
        let connection = self.shared.connection().map_err(tonic::Status::unavailable)?;
        connection.version_as_it_is(request).await.map_err(|error| match error {
            cri::Error::Call { status, .. } => *status,
            error => tonic::Status::unavailable(format!("the container runtime does not answer: {error}")),
        })
    }

    /// What was counted.
    pub fn counters(&self) -> BTreeMap<String, u64> {
        let Shared { subscribers, calls, failures, counts, .. } = &*self.shared;
        let counts = *counts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        [
            ("cri_events_sent", counts.events),
            ("cri_events_withheld", counts.withheld),
            ("cri_events_never_found", counts.never_found),
            ("cri_events_unread_ends", counts.unread_ends),
            ("cri_events_clock_behind", counts.clock_behind),
            ("cri_events_calls", calls.load(Relaxed)),
            ("cri_events_failures", failures.load(Relaxed)),
            ("cri_events_subscribers", subscribers.count() as u64),
            ("cri_events_slow_subscribers", subscribers.ended()),
        ]
        .map(|(name, count)| (name.to_owned(), count))
        .into()
    }
}

impl Shared {
    /// The connection to the runtime, or why there is none.
    fn connection(&self) -> Result<Connection, String> {
        self.resolver.connection().ok_or_else(|| match self.resolver.status().error {
            error if error.is_empty() => "no container runtime is connected".to_owned(),
            error => format!("the container runtime does not answer: {error}"),
        })
    }
}

type Reply = (Request, Result<Answered, tonic::Status>);

enum Answered {
    Listing(Listing),
    Pod(Answer),
}

/// From the first subscriber until a while after the last.
struct Session<'a> {
    shared: &'a Shared,
    /// What the kernel showed before the session, since the time from which on events are wanted.
    past: Watcher,
    watcher: Watcher,
    machine: Machine,
    began: Instant,
    /// When a subscriber was there last.
    wanted: Instant,
    /// Of sessions before this one.
    before: Counts,
    /// The runtime has, since it was served last: the next attempt comes soon.
    has_answered: bool,
}

/// Why a connection is served no longer.
enum End {
    Unused,
    RuntimeAway,
}

impl<'a> Session<'a> {
    fn new(shared: &'a Shared, hub: &Arc<Hub>, since: i64) -> Self {
        let hints = [EventKind::Created, EventKind::Started, EventKind::Stopped, EventKind::Deleted];
        // What the kernel showed while no daemon ran, too: the statuses do not say when a sandbox stopped.
        let shown_since = Clock::read().kernel(Timestamp::from_unix_nanos(since));
        let [past, watcher] = hub.watch_since(shown_since, Filter::of_kinds(hints));
        let before = *shared.counts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let now = Instant::now();
        Self {
            shared,
            past,
            watcher,
            machine: Machine::new(since),
            began: now,
            wanted: now,
            before,
            has_answered: false,
        }
    }

    async fn run(mut self) {
        // Before the first list: what that finds ended, is taken for reported unless the kernel has shown when.
        while let Some(batch) = self.past.next().await {
            self.hints(&batch);
        }
        let mut pause = RECONNECT.0;
        loop {
            // Hints that come meanwhile are in the hub's journal, which is as long as it is.
            match self.shared.connection() {
                Ok(connection) => {
                    let runtime = Runtime::new(
                        connection.channel(),
                        connection.calls().clone(),
                        self.shared.calls.clone(),
                    );
                    self.has_answered = false;
                    match self.serve(&runtime).await {
                        End::Unused => return,
                        End::RuntimeAway if self.has_answered => pause = RECONNECT.0,
                        End::RuntimeAway => {}
                    }
                }
                Err(reason) => tracing::debug!(reason, "CRI event stream unavailable"),
            }
            self.shared.failures.fetch_add(1, Relaxed);
            if self.is_unused() {
                return;
            }
            sleep(pause).await;
            pause = RECONNECT.1.min(pause * 2);
        }
    }

    /// Whether there was no subscriber for a while.
    fn is_unused(&mut self) -> bool {
        if self.shared.subscribers.count() > 0 {
            self.wanted = Instant::now();
        }
        self.wanted.elapsed() >= LINGER && self.shared.subscribers.end_session()
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    async fn serve(&mut self, runtime: &Runtime) -> End {
        let mut tasks: JoinSet<Reply> = JoinSet::new();
        self.machine.connected(self.now());
        let mut look = Instant::now() + LOOK;
        loop {
            let now = self.now();
            while tasks.len() < AT_ONCE
                && let Some(request) = self.machine.poll(now)
            {
                let runtime = runtime.clone();
                tasks.spawn(async move {
                    let answer = ask(&runtime, &request).await;
                    (request, answer)
                });
            }
            let due = if tasks.len() < AT_ONCE { self.machine.due() } else { None };
            let due = due.map_or(look, |due| look.min(self.began + due));
            tokio::select! {
                biased;
                batch = self.watcher.next() => {
                    let Some(batch) = batch else { return End::Unused };
                    self.hints(&batch);
                }
                Some(reply) = tasks.join_next() => {
                    // A task that panicked gave no answer: everything is fetched again.
                    let Ok((request, answer)) = reply else { return End::RuntimeAway };
                    match answer {
                        Ok(answered) => self.answered(&request, answered),
                        Err(status) => {
                            tracing::debug!(?request, %status, "the container runtime did not answer");
                            self.machine.failed(self.now(), &request);
                            self.shared.failures.fetch_add(1, Relaxed);
                            if !kwitness_cri::is_answer(&status) && runtime.check().await.is_err() {
                                return End::RuntimeAway;
                            }
                        }
                    }
                }
                () = sleep_until(due) => {}
            }
            if Instant::now() >= look {
                look = Instant::now() + LOOK;
                if self.is_unused() {
                    return End::Unused;
                }
            }
        }
    }

    fn hints(&mut self, batch: &crate::hub::Batch) {
        let now = self.now();
        for (kind, subject) in batch.facts() {
            let hint = match kind {
                EventKind::Created => Hint::Reached(Progress::Created),
                EventKind::Started => Hint::Reached(Progress::Started),
                EventKind::Stopped => Hint::Reached(Progress::Stopped),
                EventKind::Deleted => Hint::Removed,
                _ => {
                    match subject {
                        Some(subject) => self.machine.gap_of(now, &subject.container_id),
                        None => self.machine.gap(now),
                    }
                    continue;
                }
            };
            if let Some(subject) = subject {
                self.machine.hint(now, &subject.container_id, hint);
            }
        }
    }

    fn answered(&mut self, request: &Request, answered: Answered) {
        let now = self.now();
        self.has_answered = true;
        match (request, answered) {
            (Request::List, Answered::Listing(listing)) => self.machine.list(now, &listing),
            (Request::Find(id), Answered::Listing(listing)) => self.machine.found(now, id, &listing),
            (Request::Read(key, _), Answered::Pod(answer)) => {
                let withheld = self.machine.counts().withheld;
                for event in self.machine.answer(now, key, answer) {
                    let at = event.created_at;
                    self.shared.subscribers.publish(at, &Bytes::from(event.encode_to_vec()));
                }
                if self.machine.counts().withheld > withheld {
                    tracing::warn!(
                        pod = %key,
                        "the container runtime does not agree with what the kernel showed: no CRI event is sent until it does"
                    );
                }
            }
            (Request::List | Request::Find(_), Answered::Pod(_))
            | (Request::Read(..), Answered::Listing(_)) => {}
        }
        let counts = self.before.plus(self.machine.counts());
        *self.shared.counts.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = counts;
    }
}

async fn ask(runtime: &Runtime, request: &Request) -> Result<Answered, tonic::Status> {
    match request {
        Request::List => runtime.list(None).await.map(Answered::Listing),
        Request::Find(id) => runtime.list(Some(id)).await.map(Answered::Listing),
        Request::Read(_, plan) => runtime.read(plan.clone()).await.map(Answered::Pod),
    }
}
