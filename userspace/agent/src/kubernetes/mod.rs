//! The Kubernetes API as a source: what it says of this node's pods, beside what the kernel has.
//!
//! ```text
//!  API server ◀── list, watch (fieldSelector spec.nodeName) ── watch ──▶ store ──view──▶ verify ──▶ core: compared, shown
//!             ◀── get, one pod after the other ─────────────── reader ──▶ │  ▲
//!                                                                 ▲──────────┘ confirm: what differs is read again
//! ```
//!
//! Opt-in. Owns the connection, its state and a bounded store of the few fields that a comparison needs. Changes nothing in the API,
//! requests nothing but pods, and decides nothing: what the API says is no desired limit and changes no verdict.

mod access;
mod failure;
mod lines;
mod pod;
mod store;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kwitness_api::proto;
use kwitness_core::model::{ApiOutage, ApiView, KernelTime, Resource};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::clock::Clock;
use failure::Failure;
use store::{Store, Whose};

/// Requests to read pods again that wait. One more is not read.
const READS_WAITING: usize = 16;
/// How long a call waits for its pods to be read.
const CONFIRM_LIMIT: Duration = Duration::from_secs(10);

/// How to reach the API, and whose pods to watch.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The kubeconfig; none: the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// The node's name in the API.
    pub node: String,
}

/// What is known of the API's side. Clones share it.
#[derive(Clone, Debug)]
pub struct Kubernetes(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    settings: Settings,
    /// From then on, writes to limit files are observed.
    began: KernelTime,
    state: Mutex<State>,
    counters: SourceCounters,
    reads: mpsc::Sender<Read>,
}

#[derive(Debug)]
struct State {
    store: Store,
    connection: Connection,
    server: String,
    /// When anything was received last.
    last_event: Option<KernelTime>,
    /// The failure of the last read that failed; none: it has succeeded since.
    read_failure: Option<Failure>,
}

#[derive(Debug)]
enum Connection {
    Connecting { since: KernelTime },
    Watching { since: KernelTime },
    Failed { since: KernelTime, failure: Failure },
}

#[derive(Debug, Default)]
struct SourceCounters {
    lists: AtomicU64,
    watches: AtomicU64,
    reads: AtomicU64,
    events: AtomicU64,
    bytes: AtomicU64,
    /// The watch failed.
    failures: AtomicU64,
    /// Pods that the store had no room for.
    refused: AtomicU64,
    /// Objects longer than is taken in, or that are no pods.
    malformed: AtomicU64,
}

/// Pods that are to be read again.
#[derive(Debug)]
struct Read {
    uids: Vec<Arc<str>>,
    done: oneshot::Sender<()>,
}

impl Kubernetes {
    /// Starts the watch. It goes on, whatever fails, until it is aborted.
    pub fn start(settings: Settings, began: KernelTime) -> (Self, JoinHandle<()>) {
        let (this, reads) = Self::new(settings, began);
        let watching = tokio::spawn(watch::run(Arc::clone(&this.0), reads, watch::Timing::default()));
        (this, watching)
    }

    fn new(settings: Settings, began: KernelTime) -> (Self, mpsc::Receiver<Read>) {
        let (reads, receiver) = mpsc::channel(READS_WAITING);
        let state = State {
            store: Store::default(),
            connection: Connection::Connecting { since: began },
            server: String::new(),
            last_event: None,
            read_failure: None,
        };
        let (state, counters) = (Mutex::new(state), SourceCounters::default());
        (Self(Arc::new(Shared { settings, began, state, counters, reads })), receiver)
    }

    /// What the API says of a container's limit or, without a container, of a pod's.
    pub fn view(&self, uid: &str, container: Option<(&str, Option<&str>)>, resource: Resource) -> ApiView {
        let state = self.0.lock();
        let whose = container.map_or(Whose::Pod, |(id, name)| Whose::Container { id, name });
        ApiView {
            observed_from: self.0.began,
            outage: state.outage(),
            said: state.store.limit(uid, whose, resource),
        }
    }

    /// Why the API cannot be queried now; by the last pod that was read, too, for whoever has had pods read.
    pub fn unavailable(&self, has_read: bool) -> Option<String> {
        let state = self.0.lock();
        let read = state.read_failure.as_ref().filter(|_| has_read);
        let read = read.map(|failure| format!("cannot read a pod: {failure}"));
        state.outage().map(|outage| outage.why.to_string()).or(read)
    }

    /// Has these pods read again, as far as that is possible within ten seconds.
    pub async fn confirm(&self, uids: BTreeSet<Arc<str>>) {
        if !matches!(self.0.lock().connection, Connection::Watching { .. }) {
            return;
        }
        let (done, is_done) = oneshot::channel();
        if self.0.reads.try_send(Read { uids: uids.into_iter().collect(), done }).is_ok() {
            // What was not read in time stays unconfirmed.
            drop(tokio::time::timeout(CONFIRM_LIMIT, is_done).await);
        }
    }

    /// The watch, for `Status`.
    pub fn status(&self, clock: Clock) -> proto::KubernetesStatus {
        let state = self.0.lock();
        let (connected, since, failure) = match &state.connection {
            Connection::Connecting { since } => (false, *since, None),
            Connection::Watching { since } => (true, *since, None),
            Connection::Failed { since, failure } => (false, *since, Some(failure)),
        };
        let counters = &self.0.counters;
        proto::KubernetesStatus {
            server: state.server.clone(),
            node_name: self.0.settings.node.clone(),
            connected,
            since: Some(clock.wall(since)),
            last_event: state.last_event.map(|at| clock.wall(at)),
            failure: failure.map_or(proto::KubernetesFailure::Unspecified, Failure::kind).into(),
            error: failure.map(Failure::to_string).unwrap_or_default(),
            pods: u32::try_from(state.store.len()).unwrap_or(u32::MAX),
            bytes: state.store.bytes() as u64,
            not_stored: counters.refused.load(Relaxed) + counters.malformed.load(Relaxed),
            lists: counters.lists.load(Relaxed),
            watches: counters.watches.load(Relaxed),
            reads: counters.reads.load(Relaxed),
            bytes_received: counters.bytes.load(Relaxed),
        }
    }

    /// Its counters, by name.
    pub fn counters(&self) -> BTreeMap<String, u64> {
        let SourceCounters { lists, watches, reads, events, bytes, failures, refused, malformed } =
            &self.0.counters;
        let all = [
            ("kubernetes_lists", lists),
            ("kubernetes_watches", watches),
            ("kubernetes_reads", reads),
            ("kubernetes_events", events),
            ("kubernetes_bytes_received", bytes),
            ("kubernetes_failures", failures),
            ("kubernetes_pods_refused", refused),
            ("kubernetes_objects_malformed", malformed),
        ];
        all.into_iter().map(|(name, count)| (name.to_owned(), count.load(Relaxed))).collect()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The watch is open.
    fn connected(&self) {
        let since = now();
        let mut state = self.lock();
        state.last_event = Some(since);
        if !matches!(state.connection, Connection::Watching { .. }) {
            let (server, node) = (state.server.clone(), &self.settings.node);
            tracing::info!(server, node, pods = state.store.len(), "watching this node's pods");
            state.connection = Connection::Watching { since };
        }
    }

    /// The watch has failed; the same failure is logged once.
    fn failed(&self, failure: Failure) {
        count(&self.counters.failures, 1);
        let mut state = self.lock();
        let (since, is_same) = match &state.connection {
            Connection::Failed { since, failure: last } => (*since, last.kind() == failure.kind()),
            Connection::Connecting { .. } | Connection::Watching { .. } => (now(), false),
        };
        if !is_same {
            tracing::warn!(error = %failure, "the Kubernetes API cannot be watched; verdicts do without it");
        }
        state.connection = Connection::Failed { since, failure };
    }
}

impl State {
    fn outage(&self) -> Option<ApiOutage> {
        match &self.connection {
            Connection::Watching { .. } => None,
            Connection::Connecting { since } => {
                Some(ApiOutage { since: *since, why: "the pods are not listed yet".into() })
            }
            Connection::Failed { since, failure } => {
                Some(ApiOutage { since: *since, why: failure.to_string().into() })
            }
        }
    }
}

fn count(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Relaxed);
}

fn now() -> KernelTime {
    Clock::read().now()
}

#[cfg(test)]
mod tests;
