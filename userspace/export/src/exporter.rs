//! The exporter at work: one task that reads the daemon's events, fills the queue, and moves the position with the collector's answers.
//!
//! ```text
//!  Watch ──▶ take ──▶ record ──▶ Queue ──▶ dispatch ──▶ Collector::deliver (one message, until there is an answer)
//!              │                   ▲                         │
//!              └──▶ Reporter       └── answered: position ◀──┘──▶ state file
//! ```
//!
//! A full queue is not read into. The daemon then keeps the events in its journal for as long as that has room, and sends a gap in place
//! of those that it had to give up. Nor does a disk hold anything up: the state file is written on a thread for files, the newest
//! position after each other one.

use std::borrow::Cow;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use kwitness_api::client::{Address, Error, Item, Watch};
use kwitness_api::proto::{self, Event};
use kwitness_api::{Client, EventKind, Timestamp};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, timeout};

use crate::collector::{Collector, Delivered};
use crate::counters::Shared;
use crate::kubernetes::Reporter;
use crate::queue::Queue;
use crate::record::{Mapping, first_missed};
use crate::replay::Replay;
use crate::retry;
use crate::state::StateFile;

/// Between two looks at what has become due for Kubernetes.
const TICK: Duration = Duration::from_secs(1);
/// How long the end of the program waits for the collector's answer.
const STOP_LIMIT: Duration = Duration::from_secs(1);
/// And then for the state file.
const SAVE_LIMIT: Duration = Duration::from_millis(500);

/// Connects to the daemon, and waits for it as long as it is away.
///
/// # Errors
/// What waiting does not mend.
pub async fn connect(address: &Address) -> anyhow::Result<Client> {
    retried(async || Client::connect(address.clone()).await).await.context("connect to the daemon")
}

/// The name of the daemon's node.
///
/// # Errors
/// As [`connect`].
pub async fn node_name(client: &Client) -> anyhow::Result<String> {
    let status = retried(async || client.clone().status().await).await;
    Ok(status.context("ask the daemon for its node's name")?.node_name)
}

/// All events after that position; without one, all that the daemon has.
///
/// # Errors
/// As [`connect`].
pub async fn watch(client: &Client, after: Option<proto::Position>) -> anyhow::Result<Watch> {
    let request = proto::WatchRequest {
        since: after.is_none().then(Timestamp::default),
        after,
        resolve_names: true,
        ..Default::default()
    };
    retried(async || client.watch(request.clone()).await).await.context("watch the daemon's events")
}

async fn retried<T>(mut attempt: impl AsyncFnMut() -> Result<T, Error>) -> Result<T, Error> {
    let mut failures: u32 = 0;
    loop {
        match attempt().await {
            Err(error) if error.is_transient() => {
                if failures == 0 {
                    tracing::warn!(%error, "waiting for the daemon");
                }
                failures = failures.saturating_add(1);
                tokio::time::sleep(retry::pause(failures.min(4), Duration::ZERO, u32::MAX)).await;
            }
            answer => return answer,
        }
    }
}

/// The exporter.
pub struct Exporter {
    mapping: Mapping,
    collector: Option<Collector>,
    reporter: Option<Reporter>,
    queue: Queue,
    state: StateFile,
    /// As long as what comes has come before.
    replay: Option<Replay>,
    is_connected: bool,
    /// There is more to save than is saved, or is being saved.
    is_unsaved: bool,
    saving: Option<JoinHandle<io::Result<()>>>,
    delivery: Option<Pin<Box<dyn Future<Output = Delivered> + Send>>>,
    next_tick: Instant,
    shared: Arc<Shared>,
}

impl Exporter {
    /// One that goes on from where the queue's progress says.
    pub fn new(
        mapping: Mapping,
        collector: Option<Collector>,
        reporter: Option<Reporter>,
        queue: Queue,
        state: StateFile,
        replay: Option<Replay>,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            mapping,
            collector,
            reporter,
            queue,
            state,
            replay,
            is_connected: true,
            is_unsaved: false,
            saving: None,
            delivery: None,
            next_tick: Instant::now(),
            shared,
        }
    }

    /// Exports until there is an error that waiting does not mend. Safe to cancel.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn run(&mut self, watch: &mut Watch) -> anyhow::Result<()> {
        self.shared.daemon_up.set(1);
        loop {
            self.dispatch();
            tokio::select! {
                delivered = done(&mut self.delivery) => self.answered(delivered),
                saved = done(&mut self.saving) => self.saved(saved),
                item = watch.next(), if self.queue.has_room() => match item {
                    Ok(Some(item)) => self.take(item),
                    Ok(None) => bail!("the daemon has ended the stream of events"),
                    Err(error) => return Err(error).context("watch the daemon's events"),
                },
                () = tokio::time::sleep_until(self.next_tick), if self.reporter.is_some() => self.tick(),
            }
        }
    }

    /// Waits a moment for the answer that is still to come, so that the next exporter does not send the same again.
    pub async fn finish(mut self) {
        if self.delivery.is_some() {
            // Without an answer in time, the next exporter sends it again.
            let _ = timeout(STOP_LIMIT, self.next_answer()).await;
        }
        self.save();
        if timeout(SAVE_LIMIT, self.settle_state()).await.is_err() {
            tracing::warn!("the state file is not written in time: the next exporter sends records again");
        }
    }

    /// Sends the next message, unless one is on its way.
    pub(crate) fn dispatch(&mut self) {
        if let Some(collector) = &self.collector {
            let (mapping, now) = (&self.mapping, now());
            if let Some(message) = self.queue.take(|progress| mapping.gaps(progress, now)) {
                self.delivery = Some(Box::pin(collector.clone().deliver(message)));
            }
        }
        self.measure();
    }

    /// Sends what waits, until there is an answer for all of it, and that is saved.
    pub(crate) async fn drain(&mut self) {
        self.dispatch();
        while self.delivery.is_some() {
            self.next_answer().await;
            self.dispatch();
        }
        self.settle_state().await;
    }

    /// Waits for the answer to the message that is on its way.
    pub(crate) async fn next_answer(&mut self) {
        let delivered = done(&mut self.delivery).await;
        self.answered(delivered);
    }

    /// Waits until everything is saved.
    pub(crate) async fn settle_state(&mut self) {
        while self.saving.is_some() {
            let saved = done(&mut self.saving).await;
            self.saved(saved);
        }
    }

    pub(crate) fn take(&mut self, item: Item) {
        match item {
            Item::Events(events) => {
                let observed = now();
                events.iter().for_each(|event| self.take_event(event, observed));
                self.account();
                if self.collector.is_none() {
                    self.queue.skip();
                    self.is_unsaved = true;
                }
            }
            Item::Disconnected(error) => {
                self.is_connected = false;
                self.shared.daemon_up.set(0);
                self.shared.counters.daemon_lost.count();
                tracing::warn!(%error, "the daemon is gone: waiting for it");
            }
            Item::Reconnected => {
                self.is_connected = true;
                self.shared.daemon_up.set(1);
                tracing::info!("the daemon is back");
            }
            // It is never requested.
            Item::Snapshot(_) => {}
        }
    }

    fn take_event(&mut self, event: &Event, observed: u64) {
        let counters = &self.shared.counters;
        counters.events.count();
        if EventKind::of(event) == Some(EventKind::Gap) {
            counters.gaps.count();
        }
        if let Some(reporter) = &mut self.reporter {
            let forgotten = reporter.observe(event, std::time::Instant::now());
            // What was found again before a gap is among those that waited, or was over before the exporter was started.
            reporter.lose(self.replay.as_mut().map_or(forgotten, |replay| replay.lost(event)));
        }
        let new = match &self.replay {
            None => Cow::Borrowed(event),
            Some(replay) => match replay.new_part(event) {
                None => {
                    if replay.is_last(event) {
                        self.replay = None;
                    }
                    return;
                }
                Some(new) => {
                    self.replay = None;
                    new
                }
            },
        };
        if let Some(position) = &new.position {
            self.queue.begin(&position.epoch, first_missed(&new).unwrap_or(position.seq));
        }
        self.queue.push(self.mapping.record(&new, observed));
    }

    pub(crate) fn tick(&mut self) {
        self.next_tick = Instant::now() + TICK;
        if let Some(reporter) = &mut self.reporter {
            let now = std::time::Instant::now();
            if !self.is_connected || !self.queue.has_room() {
                reporter.is_blind(now);
            }
            reporter.tick(now);
        }
        self.account();
        if self.is_unsaved {
            self.save();
        }
    }

    /// Takes over what the reporter lost, and what it waits for. What an earlier exporter waited for stays in the state until it is found
    /// again, or lost: the reporter does not know of it before.
    fn account(&mut self) {
        if let Some(reporter) = &mut self.reporter {
            self.queue.lose_kubernetes(reporter.take_lost());
            if self.replay.as_ref().is_none_or(Replay::is_lost) {
                self.is_unsaved |= self.queue.set_kubernetes(reporter.waiting());
            }
        }
    }

    fn answered(&mut self, delivered: Delivered) {
        self.delivery = None;
        let counters = &self.shared.counters;
        let sent = self.queue.in_flight();
        match delivered {
            Delivered::Accepted { rejected, reason } => {
                let rejected = rejected.min(sent);
                counters.records_accepted.add(sent - rejected);
                counters.records_rejected.add(rejected);
                if rejected > 0 {
                    tracing::warn!(rejected, reason, "the collector rejected records: a gap will say so");
                }
                self.queue.accepted(rejected, &reason);
            }
            Delivered::Refused(reason) => {
                counters.records_refused.add(sent);
                tracing::warn!(records = sent, reason, "the collector refused records: a gap will say so");
                self.queue.refused(&reason);
            }
        }
        self.save();
    }

    /// Saves the progress, or has that done once what is being saved is.
    fn save(&mut self) {
        self.account();
        self.is_unsaved = self.saving.is_some();
        if !self.is_unsaved {
            let (state, progress) = (self.state.clone(), self.queue.progress().clone());
            self.saving = Some(tokio::task::spawn_blocking(move || state.save(&progress)));
        }
    }

    fn saved(&mut self, saved: Result<io::Result<()>, JoinError>) {
        self.saving = None;
        if let Err(error) = saved.map_err(io::Error::other).flatten() {
            if self.shared.counters.state_failed.get() == 0 {
                tracing::error!(%error, "cannot write the state file: a restarted exporter will send records again");
            }
            self.shared.counters.state_failed.count();
        }
        if self.is_unsaved {
            self.save();
        }
    }

    fn measure(&self) {
        let (bytes, records) = self.queue.size();
        self.shared.queue_bytes.set(bytes as u64);
        self.shared.queue_records.set(records);
        self.shared.oldest.set(self.queue.oldest().unwrap_or(0));
    }
}

/// What is waited for; never, if that is nothing.
async fn done<F: Future + Unpin>(waited_for: &mut Option<F>) -> F::Output {
    match waited_for {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

/// Nanoseconds since the Unix epoch.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
