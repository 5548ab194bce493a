//! The questions that are open, and the task that gets them answered.
//!
//! ```text
//!  ask ──▶ open: id ──▶ one list of everything answers all that are due ──▶ found: answered with facts
//!            ▲                       │
//!            └── 50 ms, 100 ms, … 2 s┘ not listed yet (a runtime lists a sandbox only once it runs);
//!                                      30 s after the first list without it: answered with nothing,
//!                                      and once more when a later list has it
//! ```
//!
//! Without a question, the runtime is listed twice a minute: whether it still answers, and which containers it runs.
//!
//! While the runtime is away, questions stay open. There is at most one open question a container, and a bound on all of
//! them: one more is counted and not queried now. Once half of them are answered, whoever asked is to ask again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kwitness_core::model::{ContainerId, Observation};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::calls::Calls;
use super::client::{self, Connection, Error, Listing};
use crate::clock::Clock;
use crate::config::RuntimeChoice;
use crate::oldest_first::OldestFirst;
use kwitness_api::proto;

/// Open questions at most.
const OPEN_MAX: usize = 16_384;
/// Containers that are remembered after they were answered with nothing; the oldest is forgotten first.
const GIVEN_UP_MAX: usize = 4096;
/// The share of the time that listing may take: one part in so many and one. Whatever is queried, a long list is not made again and
/// again.
const PAUSE_FACTOR: u32 = 4;

/// How often and how long a container is queried.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    /// The longest that a call may take.
    pub(super) deadline: Duration,
    /// Between two lists at least.
    pub(super) list_pause: Duration,
    /// Between two tries for the same container at most.
    pub(super) retry_max: Duration,
    /// How long a container is queried after the first list without it.
    pub(super) give_up: Duration,
    /// Between two lists at most.
    pub(super) idle: Duration,
    /// Between two attempts to connect: at first, and at most.
    pub(super) reconnect: (Duration, Duration),
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(5),
            list_pause: Duration::from_millis(50),
            retry_max: Duration::from_secs(2),
            give_up: Duration::from_secs(30),
            idle: Duration::from_secs(30),
            reconnect: (Duration::from_millis(250), Duration::from_secs(2)),
        }
    }
}

/// Accepts queries, and reports the runtime's status. Clones share it.
#[derive(Clone, Debug)]
pub struct Resolver {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    open: Mutex<HashMap<ContainerId, Question>>,
    /// Questions were turned away, and have not been asked again.
    turned_away: AtomicBool,
    queried: Notify,
    timing: Timing,
    status: Mutex<proto::RuntimeStatus>,
    /// As long as the runtime answers.
    connection: Mutex<Option<Connection>>,
    /// Of the last list.
    running: Mutex<Arc<BTreeSet<ContainerId>>>,
    enabled: bool,
    counts: Counts,
    calls: Calls,
}

#[derive(Debug, Default)]
struct Counts {
    lists: AtomicU64,
    failures: AtomicU64,
    resolved: AtomicU64,
    unknown: AtomicU64,
    refused: AtomicU64,
}

#[derive(Debug)]
struct Question {
    /// When it is due.
    at: Instant,
    /// How long it waits after a list that did not answer it.
    pause: Duration,
    /// When it was missing in a list first.
    missing_since: Option<Instant>,
}

/// Makes a resolver, and the task that works for it until the resolver's answers are no longer wanted.
pub fn start(
    choice: RuntimeChoice,
    answers: mpsc::Sender<Observation>,
) -> (Resolver, impl Future<Output = ()> + Send + 'static) {
    start_with(Timing::default(), choice, answers)
}

pub(super) fn start_with(
    timing: Timing,
    choice: RuntimeChoice,
    answers: mpsc::Sender<Observation>,
) -> (Resolver, impl Future<Output = ()> + Send + 'static) {
    let shared = Arc::new(Shared {
        open: Mutex::default(),
        turned_away: AtomicBool::new(false),
        queried: Notify::new(),
        timing,
        status: Mutex::default(),
        connection: Mutex::default(),
        running: Mutex::default(),
        enabled: choice != RuntimeChoice::Never,
        counts: Counts::default(),
        calls: Calls::default(),
    });
    let resolver = Resolver { shared: shared.clone() };
    let sockets = client::sockets(&choice);
    let work = async move {
        if sockets.is_empty() {
            return;
        }
        let given_up = OldestFirst::new(GIVEN_UP_MAX);
        let worker = Worker { shared, sockets, answers: answers.clone(), given_up };
        tokio::select! {
            () = worker.run() => {}
            () = answers.closed() => {}
        }
    };
    (resolver, work)
}

impl Resolver {
    /// Asks what a container is. Returns at once.
    pub fn ask(&self, container: ContainerId) {
        if !self.shared.enabled {
            return;
        }
        let mut open = self.shared.open();
        if open.len() >= OPEN_MAX && !open.contains_key(&container) {
            self.shared.counts.refused.fetch_add(1, Relaxed);
            self.shared.turned_away.store(true, Relaxed);
            return;
        }
        open.entry(container).or_insert_with(|| Question {
            at: Instant::now(),
            pause: self.shared.timing.list_pause,
            missing_since: None,
        });
        drop(open);
        self.shared.queried.notify_one();
    }

    /// Whether questions were turned away that have not been asked again: containers stay without their names.
    pub fn has_turned_away(&self) -> bool {
        self.shared.turned_away.load(Relaxed)
    }

    /// Whether there is room by now for the questions that were turned away. If so, the caller asks all of them again.
    pub fn ask_again(&self) -> bool {
        let has_room = self.shared.open().len() <= OPEN_MAX / 2;
        has_room && self.shared.turned_away.swap(false, Relaxed)
    }

    /// The connection to the runtime, for other calls; none: it does not answer.
    pub fn connection(&self) -> Option<Connection> {
        self.shared.connection().clone()
    }

    /// The containers that the runtime's last list says are running, without sandboxes; none before the first list.
    pub fn running(&self) -> Arc<BTreeSet<ContainerId>> {
        self.shared.running().clone()
    }

    /// How the runtime is.
    pub fn status(&self) -> proto::RuntimeStatus {
        self.shared.status().clone()
    }

    /// The calls to the runtime, of whoever made them.
    pub fn calls(&self) -> &Calls {
        &self.shared.calls
    }

    /// What was counted.
    pub fn counters(&self) -> BTreeMap<String, u64> {
        let Counts { lists, failures, resolved, unknown, refused } = &self.shared.counts;
        let open = self.shared.open().len() as u64;
        [
            ("cri_lists", lists.load(Relaxed)),
            ("cri_failures", failures.load(Relaxed)),
            ("cri_resolved", resolved.load(Relaxed)),
            ("cri_unknown", unknown.load(Relaxed)),
            ("cri_refused", refused.load(Relaxed)),
            ("cri_open", open),
        ]
        .map(|(name, count)| (name.to_owned(), count))
        .into()
    }
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, HashMap<ContainerId, Question>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn status(&self) -> MutexGuard<'_, proto::RuntimeStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connection(&self) -> MutexGuard<'_, Option<Connection>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn running(&self) -> MutexGuard<'_, Arc<BTreeSet<ContainerId>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the next question is due; none: none is open.
    fn due(&self) -> Option<Instant> {
        self.open().values().map(|question| question.at).min()
    }
}

struct Worker {
    shared: Arc<Shared>,
    sockets: Vec<PathBuf>,
    answers: mpsc::Sender<Observation>,
    /// Answered with nothing. It may be listed yet: to start a sandbox takes a busy node longer.
    given_up: OldestFirst<ContainerId, ()>,
}

impl Worker {
    async fn run(mut self) {
        let (first, longest) = self.shared.timing.reconnect;
        let mut pause = first;
        loop {
            let (error, answered) = match self.connect().await {
                Ok(connection) => self.serve(connection).await,
                Err(error) => (error, false),
            };
            self.failed(&error);
            if answered {
                pause = first;
            }
            tokio::time::sleep(pause).await;
            pause = longest.min(pause * 2);
        }
    }

    async fn connect(&self) -> Result<Connection, Error> {
        let Shared { timing, calls, .. } = &*self.shared;
        let connection = client::connect(&self.sockets, timing.deadline, calls).await?;
        self.connected(&connection);
        *self.shared.connection() = Some(connection.clone());
        Ok(connection)
    }

    fn connected(&self, connection: &Connection) {
        let Connection { socket, name, version, .. } = connection;
        let mut status = self.shared.status();
        let endpoint = format!("unix://{}", socket.display());
        if (&status.endpoint, &status.name, &status.version) != (&endpoint, name, version) {
            tracing::info!(endpoint, name, version, "connected to the container runtime");
        }
        // That it said its name is no answer to what it did not answer before: a list is.
        let error = std::mem::take(&mut status.error);
        *status = proto::RuntimeStatus { endpoint, name: name.clone(), version: version.clone(), error };
    }

    fn failed(&self, error: &Error) {
        self.shared.counts.failures.fetch_add(1, Relaxed);
        *self.shared.connection() = None;
        let text = error.to_string();
        let mut status = self.shared.status();
        // Once for each outage, whose reason may change with each attempt.
        if status.error.is_empty() {
            tracing::warn!(
                error = text,
                "the container runtime does not answer; names stay unknown until it does"
            );
        }
        status.error = text;
    }

    fn recovered(&self) {
        if !std::mem::take(&mut self.shared.status().error).is_empty() {
            tracing::info!("recovered: the container runtime answers");
        }
    }

    /// Answers questions until the connection fails; whether any list came before.
    async fn serve(&mut self, connection: Connection) -> (Error, bool) {
        let Timing { list_pause, idle, .. } = self.shared.timing;
        // The end of the last list, and how long it took.
        let mut listed: Option<(Instant, Duration)> = None;
        loop {
            let shared = Arc::clone(&self.shared);
            let queried = shared.queried.notified();
            let now = Instant::now();
            let due = listed.map_or(now, |(listed, took)| {
                let (earliest, regular) = (listed + list_pause.max(took * PAUSE_FACTOR), listed + idle);
                self.shared.due().map_or(regular, |due| regular.min(due.max(earliest)))
            });
            if due > now {
                tokio::select! {
                    () = tokio::time::sleep_until(due) => {}
                    // Another question may be due earlier.
                    () = queried => continue,
                }
            }
            let began = Instant::now();
            match connection.list().await {
                Ok(listing) => {
                    let took = began.elapsed();
                    self.shared.counts.lists.fetch_add(1, Relaxed);
                    self.recovered();
                    self.answer(listing, began).await;
                    listed = Some((Instant::now(), took));
                }
                Err(error) => return (error, listed.is_some()),
            }
        }
    }

    /// Answers what a list answers; the others are postponed, or given up.
    async fn answer(&mut self, listing: Listing, began: Instant) {
        let Listing { facts, running } = listing;
        *self.shared.running() = Arc::new(running);
        let timing = self.shared.timing;
        let mut answered = Vec::new();
        for (container, facts) in &facts {
            if self.given_up.remove(container).is_some() {
                answered.push((container.clone(), Some(facts.clone())));
            }
        }
        self.shared.open().retain(|container, question| {
            if let Some(facts) = facts.get(container) {
                answered.push((container.clone(), Some(facts.clone())));
                return false;
            }
            if question.at > began {
                return true;
            }
            let missing_since = *question.missing_since.get_or_insert(began);
            if began.duration_since(missing_since) >= timing.give_up {
                answered.push((container.clone(), None));
                return false;
            }
            question.at = Instant::now() + question.pause;
            question.pause = timing.retry_max.min(question.pause * 2);
            true
        });
        let at = Clock::read().now();
        for (container, facts) in answered {
            let count =
                if facts.is_some() { &self.shared.counts.resolved } else { &self.shared.counts.unknown };
            count.fetch_add(1, Relaxed);
            if facts.is_none() {
                self.given_up.insert(container.clone(), ());
            }
            // The engine is gone: there is no receiver.
            if self.answers.send(Observation::Runtime { at, container, facts }).await.is_err() {
                return;
            }
        }
    }
}
