//! The thread that samples: which level is due next, and how many files may be read.
//!
//! Owns the queue of levels by when they are due. At most [`FILES_PER_REFRESH`] files are read: levels that are due beyond that
//! wait for the next second, the longest due first, and are counted. Of each level the first sample is handed on, and each that
//! stands otherwise towards the thresholds than the one before: whatever the engine observes is recorded, and a level whose page
//! cache is at its limit would be sampled into the ledger four times a second for ever. The next one is handed on, too, if the core
//! has it above another number of thresholds than the last one stood for: the kernel has recorded a charge meanwhile.
//!
//! A level without a limit is left alone for long where a limit that is set would be seen: the core then has another limit for it than
//! its last sample, and it is due. The same goes for one that has no such files, as far as can be seen. However many levels these are,
//! looking at them costs no more: at most [`RARE_PER_SECOND`] of them are due in a second.
//!
//! Where the kernel does not record charges, it gives a notice of each level that has reached its limit ([`LimitNotices`]): that is
//! due at once, unless its last sample was above all thresholds already.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use kwitness_core::model::{
    Bound, CgroupId, MemoryLevel, MemoryLevels, MemorySample, MemorySamples, Observation, Thresholds,
};
use kwitness_core::node::LevelsRevision;
use kwitness_core::pressure::sampling::{FillRate, LONGEST, SHORTEST, ThresholdState, interval};
use nix::errno::Errno;
use nix::sys::inotify::WatchDescriptor;
use tokio::sync::mpsc;

use super::MemoryFiles;
use super::notices::LimitNotices;
use crate::cgroupfs::gone;
use crate::clock::Clock;

/// Between two looks at which levels there are.
const REFRESH: Duration = Duration::from_secs(1);
/// Files read in that time, at most: some ten milliseconds' work.
const FILES_PER_REFRESH: u64 = 1000;
/// Files of one sample: the limit, then usage.
const FILES: u64 = 2;
/// Between two samples of a level that has no limit as far as the core knows, or whose files are not there: at least.
const RARELY: Duration = Duration::from_secs(60);
/// How many of those levels are due in a second at most, on average.
const RARE_PER_SECOND: u32 = 50;

/// What is sampled for, and what was counted since the start.
#[derive(Debug, Default)]
pub(crate) struct Sampling {
    thresholds: Arc<Thresholds>,
    samples: AtomicU64,
    deferred: AtomicU64,
    failed: AtomicU64,
    noticed: AtomicU64,
    unwatched: AtomicU64,
}

impl Sampling {
    /// An observation of the thresholds alone: the kernel may have recorded charges before anything is sampled.
    pub(crate) fn begin(&self) -> Observation {
        let thresholds = Arc::clone(&self.thresholds);
        Observation::MemorySampled(MemorySamples { thresholds, samples: Vec::new() })
    }

    /// What was counted, by name.
    pub(crate) fn counters(&self) -> [(&'static str, u64); 5] {
        [
            ("pressure_samples", self.samples.load(Relaxed)),
            ("pressure_samples_deferred", self.deferred.load(Relaxed)),
            ("pressure_samples_failed", self.failed.load(Relaxed)),
            ("pressure_notices", self.noticed.load(Relaxed)),
            ("pressure_watches_failed", self.unwatched.load(Relaxed)),
        ]
    }
}

/// Starts the thread; it ends once `levels` gives `None`, or nothing receives samples any more. `levels` gives what has changed
/// since the revision that it is given. With `notices`, levels that reach their limits are sampled
/// at once.
///
/// # Errors
/// No thread can be made.
pub(crate) fn start(
    files: MemoryFiles,
    thresholds: Thresholds,
    notices: Option<LimitNotices>,
    mut levels: impl FnMut(Option<LevelsRevision>) -> Option<Option<(LevelsRevision, MemoryLevels)>>
    + Send
    + 'static,
    answers: mpsc::Sender<Observation>,
) -> io::Result<Arc<Sampling>> {
    let counted = Arc::new(Sampling { thresholds: Arc::new(thresholds), ..Sampling::default() });
    let mut sampler = Sampler::new(files, notices, Arc::clone(&counted));
    std::thread::Builder::new().name("memory-sampler".to_owned()).spawn(move || {
        let mut known = None;
        while let Some(changed) = levels(known) {
            if let Some((revision, levels)) = changed {
                sampler.refresh(levels, Instant::now());
                known = Some(revision);
            }
            sampler.refill();
            let until = Instant::now() + REFRESH;
            loop {
                let samples = sampler.take_due(Instant::now());
                if !samples.is_empty() {
                    let thresholds = Arc::clone(&sampler.counted.thresholds);
                    let sampled = Observation::MemorySampled(MemorySamples { thresholds, samples });
                    if answers.blocking_send(sampled).is_err() {
                        return;
                    }
                }
                sampler.wait(sampler.next_due().map_or(until, |next| next.min(until)));
                if Instant::now() >= until {
                    break;
                }
            }
        }
    })?;
    Ok(counted)
}

/// A level, and what is known of it.
#[derive(Debug)]
struct Level {
    path: Arc<str>,
    due: Instant,
    /// When it was sampled last, or else became known.
    sampled: Instant,
    /// Its limit by the last sample; none: there was none.
    limit: Option<Bound>,
    /// Its limit as the core has it.
    known: Option<Bound>,
    /// Samples in a row for which its files were not there.
    missing: u32,
    /// By its last sample, it is one of those that are sampled rarely.
    is_rare: bool,
    rate: FillRate,
    /// How the last sample that was handed on stands; none: there was none.
    state: Option<ThresholdState>,
    /// A notice of it is due; none: there was one since, it is above all thresholds, or there is nothing to give notice.
    watch: Option<WatchDescriptor>,
}

#[derive(Debug)]
struct Sampler {
    files: MemoryFiles,
    notices: Option<LimitNotices>,
    levels: HashMap<CgroupId, Level>,
    queue: BTreeSet<(Instant, CgroupId)>,
    /// How many levels are sampled rarely.
    rare: u32,
    /// What times of samples are counted from, so that those of many levels come together.
    began: Instant,
    /// Files that may be read until the next refresh.
    files_left: u64,
    counted: Arc<Sampling>,
}

impl Sampler {
    fn new(files: MemoryFiles, notices: Option<LimitNotices>, counted: Arc<Sampling>) -> Self {
        let (levels, queue) = (HashMap::new(), BTreeSet::new());
        let began = Instant::now();
        Self { files, notices, levels, queue, rare: 0, began, files_left: FILES_PER_REFRESH, counted }
    }

    /// Takes what has changed: new levels are due at once, and so are those whose limit has changed.
    fn refresh(&mut self, levels: MemoryLevels, now: Instant) {
        match levels {
            MemoryLevels::All(levels) => {
                let there: HashSet<CgroupId> = levels.iter().map(|level| level.cgroup).collect();
                let gone = self.levels.keys().filter(|cgroup| !there.contains(*cgroup));
                let gone: Vec<_> = gone.copied().collect();
                gone.into_iter().for_each(|cgroup| self.forget(cgroup));
                levels.into_iter().for_each(|level| self.take(level, now));
            }
            MemoryLevels::Changed(levels) => {
                for (cgroup, level) in levels {
                    match level {
                        Some(level) => self.take(level, now),
                        None => self.forget(cgroup),
                    }
                }
            }
        }
    }

    fn take(&mut self, level: MemoryLevel, now: Instant) {
        let MemoryLevel { cgroup, path, above, limit } = level;
        let level = self.levels.entry(cgroup).or_insert_with(|| {
            self.queue.insert((now, cgroup));
            Level::new(path, now)
        });
        level.state.take_if(|state| state.above(above) != above);
        level.known = limit;
        if limit.is_some() && limit != level.limit {
            level.missing = 0;
            self.hasten(cgroup, now);
        }
    }

    fn forget(&mut self, cgroup: CgroupId) {
        let Some(level) = self.levels.remove(&cgroup) else { return };
        self.queue.remove(&(level.due, cgroup));
        self.rare -= u32::from(level.is_rare);
        if let Some((watch, notices)) = level.watch.zip(self.notices.as_mut()) {
            notices.forget(cgroup, watch);
        }
    }

    /// Another second has begun.
    fn refill(&mut self) {
        self.files_left = FILES_PER_REFRESH;
    }

    /// A level is due, but no sooner after its last sample than any other.
    fn hasten(&mut self, cgroup: CgroupId, now: Instant) {
        let Some(level) = self.levels.get_mut(&cgroup) else { return };
        let due = now.max(level.sampled + SHORTEST);
        if due < level.due && self.queue.remove(&(level.due, cgroup)) {
            level.due = due;
            self.queue.insert((due, cgroup));
        }
    }

    /// Waits until then, or until a level has reached its limit.
    fn wait(&mut self, until: Instant) {
        let pause = until.saturating_duration_since(Instant::now());
        let Some(notices) = &mut self.notices else { return std::thread::sleep(pause) };
        match notices.wait(pause) {
            Ok(levels) => levels.into_iter().for_each(|level| self.noticed(level, Instant::now())),
            Err(error) => {
                tracing::warn!(%error, "cannot read inotify events: limit hits are detected by sampling only");
                self.notices = None;
            }
        }
    }

    /// A level has reached its limit.
    fn noticed(&mut self, cgroup: CgroupId, now: Instant) {
        self.counted.noticed.fetch_add(1, Relaxed);
        let Some(level) = self.levels.get_mut(&cgroup) else { return };
        level.watch = None;
        self.hasten(cgroup, now);
    }

    /// When the next level is due that may be read; none before the next refresh.
    fn next_due(&self) -> Option<Instant> {
        self.queue.first().map(|(due, _)| *due).filter(|_| self.files_left >= FILES)
    }

    /// Samples what is due, as far as it may; what is to be handed on.
    fn take_due(&mut self, now: Instant) -> Vec<MemorySample> {
        let mut samples = Vec::new();
        while self.next_due().is_some_and(|due| due <= now)
            && let Some((_, cgroup)) = self.queue.pop_first()
        {
            samples.extend(self.sample(cgroup, now));
            if self.files_left < FILES {
                let deferred = self.queue.range(..=(now, CgroupId(u64::MAX))).count();
                self.counted.deferred.fetch_add(deferred as u64, Relaxed);
            }
        }
        samples
    }

    fn sample(&mut self, cgroup: CgroupId, now: Instant) -> Option<MemorySample> {
        // How long it takes until each of the rare ones has had its turn.
        let turn = Duration::from_secs(1) * self.rare / RARE_PER_SECOND;
        let level = self.levels.get_mut(&cgroup)?;
        self.files_left -= FILES;
        self.counted.samples.fetch_add(1, Relaxed);
        let read = self.files.read(cgroup, &level.path);
        let at = Clock::read().now();
        let (sample, pause, is_rare) = match read {
            Ok(memory) => {
                (level.limit, level.missing) = (Some(memory.limit), 0);
                let usage = memory.usage.unwrap_or_default();
                let fill_rate = memory.usage.and_then(|usage| level.rate.push(at, usage));
                if memory.limit == Bound::Unlimited {
                    level.rate = FillRate::default();
                }
                let is_rare = (memory.limit, level.known) == (Bound::Unlimited, Some(Bound::Unlimited));
                let pause = if is_rare {
                    RARELY.max(turn)
                } else {
                    interval(&self.counted.thresholds, usage, memory.limit, fill_rate)
                };
                (Some(MemorySample { at, cgroup, usage, limit: memory.limit, fill_rate }), pause, is_rare)
            }
            // It is gone, as the engine will see, too; or the controller is not enabled for it, which may change.
            Err(error) if gone(&error) => {
                let pause = LONGEST * 4_u32.saturating_pow(level.missing);
                level.missing = level.missing.saturating_add(1);
                (None, pause.min(RARELY).max(turn), true)
            }
            Err(error) => {
                self.counted.failed.fetch_add(1, Relaxed);
                tracing::debug!(path = %level.path, %error, "cannot sample memory usage");
                (None, LONGEST, false)
            }
        };
        let was_rare = std::mem::replace(&mut level.is_rare, is_rare);
        self.rare = self.rare + u32::from(is_rare) - u32::from(was_rare);
        (level.sampled, level.due) = (now, self.began + aligned(now - self.began, pause));
        self.queue.insert((level.due, cgroup));
        let sample = sample?;
        let thresholds = &self.counted.thresholds;
        let state = ThresholdState::of(thresholds, sample.usage, sample.limit);
        if level.watch.is_none()
            && sample.limit != Bound::Unlimited
            && !state.is_above_all(thresholds)
            && let Some(notices) = &mut self.notices
            && let Some(file) = self.files.limit_events(&level.path)
        {
            match notices.watch(cgroup, &file) {
                Ok(watch) => level.watch = Some(watch),
                // It is gone meanwhile.
                Err(Errno::ENOENT) => {}
                Err(error) => {
                    self.counted.unwatched.fetch_add(1, Relaxed);
                    tracing::debug!(file = %file.display(), %error, "cannot watch for a limit that is reached");
                }
            }
        }
        (level.state.replace(state) != Some(state)).then_some(sample)
    }
}

impl Level {
    fn new(path: Arc<str>, now: Instant) -> Self {
        let rate = FillRate::default();
        Self {
            path,
            due: now,
            sampled: now,
            limit: None,
            known: None,
            missing: 0,
            is_rare: false,
            rate,
            state: None,
            watch: None,
        }
    }
}

/// A time up to an eighth of `pause` before `now + pause`, such that those of many levels are the same few: a thread that wakes for
/// each of thousands does little else.
fn aligned(now: Duration, pause: Duration) -> Duration {
    let grain = (pause / 8).as_millis().checked_ilog2().map_or(1, |log2| 1_u128 << log2);
    let due = (now + pause).as_millis();
    Duration::from_millis(u64::try_from(due - due % grain).unwrap_or(u64::MAX)).max(now + SHORTEST)
}

#[cfg(test)]
mod tests;
