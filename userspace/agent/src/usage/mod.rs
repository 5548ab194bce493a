//! What containers use, sampled as long as clients watch.
//!
//! ```text
//!  WatchUsage ── subscribe ──▶ Demand ──the shortest interval──▶ one sampler: containers and verdicts from the engine,
//!      ▲                                                            │         files on a thread of its own (read),
//!      │                                                            │         OOM kills from the journal (kills)
//!      └── Subscription, at its own interval ◀── the newest sample ─┘
//! ```
//!
//! Owns the intervals and the rates. A sample is a state, so each replaces the one before: there is no queue, and a slow client
//! costs the others nothing. Without a subscriber nothing is read and nothing is kept.

mod kills;
mod read;
mod sample;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kwitness_core::model::CgroupId;
use kwitness_core::usage::Meter;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::cgroupfs::CgroupFs;
use crate::clock::Clock;
use crate::engine::{Handle, Stopped};
use crate::hub::{Hub, JournalReader};
use kills::Kills;
use read::{FileReader, Hierarchies};
pub use sample::Sample;

/// Between two samples, at least, and at most.
const INTERVAL: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// Without a word about it.
const INTERVAL_DEFAULT: Duration = Duration::from_secs(1);

/// The interval that a client requests, in milliseconds; 0: the usual one.
///
/// # Errors
/// Samples may not be that close, or that far apart.
pub fn interval(millis: u32) -> Result<Duration, String> {
    if millis == 0 {
        return Ok(INTERVAL_DEFAULT);
    }
    let asked = Duration::from_millis(millis.into());
    let (least, most) = INTERVAL;
    if asked < least || asked > most {
        return Err(format!("`interval_ms` is not from {} to {}", least.as_millis(), most.as_millis()));
    }
    Ok(asked)
}

/// The usage of the node's containers. Clones share the sampler.
#[derive(Clone, Debug)]
pub struct Usage(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    engine: Handle,
    hub: Arc<Hub>,
    hierarchies: Hierarchies,
    demand: Mutex<Demand>,
    /// The demand has changed.
    changed: Notify,
    newest: watch::Sender<Option<Arc<Sample>>>,
}

/// What subscribers want.
#[derive(Debug, Default)]
struct Demand {
    /// How many want each interval.
    intervals: BTreeMap<Duration, usize>,
    /// One of them has not seen a sample yet.
    is_awaited: bool,
    /// The sampler; none: it was to end. One that has panicked is finished, and the next subscriber starts another.
    sampler: Option<JoinHandle<()>>,
    /// When the last sample was begun, by whatever sampler: none is closer to it than the shortest interval there is.
    last: Option<Instant>,
}

impl Usage {
    /// Of the containers that the engine knows, with the OOM kills that the journal has.
    pub fn new(cgroups: CgroupFs, engine: Handle, hub: Arc<Hub>) -> Self {
        Self::within(Hierarchies::find(cgroups), engine, hub)
    }

    fn within(hierarchies: Hierarchies, engine: Handle, hub: Arc<Hub>) -> Self {
        Self(Arc::new(Shared {
            engine,
            hub,
            hierarchies,
            demand: Mutex::default(),
            changed: Notify::new(),
            newest: watch::Sender::new(None),
        }))
    }

    /// Samples at that interval from now on, until the subscription is dropped. Within a tokio runtime.
    pub fn subscribe(&self, interval: Duration) -> Subscription {
        let shared = &self.0;
        let mut demand = shared.demand();
        let newest = shared.newest.subscribe();
        *demand.intervals.entry(interval).or_default() += 1;
        demand.is_awaited = true;
        if demand.sampler.as_ref().is_none_or(JoinHandle::is_finished) {
            demand.sampler = Some(tokio::spawn(Sampler::new(Arc::clone(shared)).run()));
        }
        drop(demand);
        shared.changed.notify_one();
        Subscription { shared: Arc::clone(shared), interval, newest, last: None }
    }
}

impl Shared {
    /// Nothing that could panic runs while it is held.
    fn demand(&self) -> MutexGuard<'_, Demand> {
        self.demand.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A sample begins now.
    fn begins(&self) {
        let mut demand = self.demand();
        (demand.is_awaited, demand.last) = (false, Some(Instant::now()));
    }

    /// When the next sample is due; none: no client wants one, and the sampler is to end.
    fn due(&self) -> Option<Instant> {
        let mut demand = self.demand();
        let Some(shortest) = demand.intervals.keys().next().copied() else {
            demand.sampler = None;
            self.newest.send_replace(None);
            return None;
        };
        let pause = if demand.is_awaited { INTERVAL.0 } else { shortest };
        Some(demand.last.map_or_else(Instant::now, |last| last + pause))
    }
}

/// A client's samples.
#[derive(Debug)]
pub struct Subscription {
    shared: Arc<Shared>,
    interval: Duration,
    newest: watch::Receiver<Option<Arc<Sample>>>,
    /// When the last sample was handed out.
    last: Option<Instant>,
}

impl Subscription {
    /// The newest sample once the interval is over, and how many intervals have passed without one.
    pub async fn next(&mut self) -> (Arc<Sample>, u64) {
        if let Some(last) = self.last {
            tokio::time::sleep_until(last + self.interval).await;
        }
        loop {
            // The sender is this subscription's, too.
            let _ = self.newest.changed().await;
            let sample = self.newest.borrow_and_update().clone();
            let Some(sample) = sample else { continue };
            let now = Instant::now();
            let intervals = self.last.map_or(1, |last| (now - last).as_nanos() / self.interval.as_nanos());
            self.last = Some(now);
            return (sample, u64::try_from(intervals.saturating_sub(1)).unwrap_or(u64::MAX));
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut demand = self.shared.demand();
        if let Some(count) = demand.intervals.get_mut(&self.interval) {
            *count -= 1;
            if *count == 0 {
                demand.intervals.remove(&self.interval);
            }
        }
        drop(demand);
        self.shared.changed.notify_one();
    }
}

/// The one that reads, for all subscribers.
struct Sampler {
    shared: Arc<Shared>,
    files: FileReader,
    reader: Option<JournalReader>,
    kills: Kills,
    meters: HashMap<CgroupId, Meter>,
}

impl Sampler {
    fn new(shared: Arc<Shared>) -> Self {
        Self {
            files: FileReader::new(shared.hierarchies.clone()),
            reader: Some(shared.hub.reader()),
            kills: Kills::default(),
            meters: HashMap::new(),
            shared,
        }
    }

    async fn run(mut self) {
        while let Some(due) = self.shared.due() {
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                () = self.shared.changed.notified() => continue,
            }
            self.shared.begins();
            // Without an engine the daemon is going down, and streams end with it.
            let Ok(sample) = self.sample().await else { return };
            self.shared.newest.send_replace(Some(Arc::new(sample)));
        }
    }

    async fn sample(&mut self) -> Result<Sample, Stopped> {
        let (snapshot, verdicts) = self.shared.engine.state().await?;
        self.follow_kills().await;
        let clock = Clock::read();
        let subjects: Vec<_> = snapshot.containers.into_iter().map(|state| state.subject).collect();
        let outcomes = self.files.read(&subjects).await;
        let there = outcomes.iter().zip(&subjects).filter(|(outcome, _)| !outcome.is_gone());
        let mut meters: HashMap<_, _> = there
            .map(|(_, subject)| {
                (subject.cgroup_id, self.meters.remove(&subject.cgroup_id).unwrap_or_default())
            })
            .collect();
        let sample = Sample::new(clock, subjects, outcomes, &mut meters, &self.kills, &verdicts);
        self.meters = meters;
        Ok(sample)
    }

    /// The journal's beginning may hold many events: not on a thread that others wait for.
    async fn follow_kills(&mut self) {
        let Some(mut reader) = self.reader.take() else { return };
        let mut kills = std::mem::take(&mut self.kills);
        let read = tokio::task::spawn_blocking(move || {
            reader.read(|event| kills.take(event));
            (reader, kills)
        });
        // A panic while reading is an error of ours; what was known is gone with it.
        if let Ok((reader, kills)) = read.await {
            (self.reader, self.kills) = (Some(reader), kills);
        }
    }
}

#[cfg(test)]
mod tests;
