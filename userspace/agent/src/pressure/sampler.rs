//! The thread that samples: which level is due next, and how many files may be read.
//!
//! Owns the queue of levels by when they are due. At most [`FILES_PER_REFRESH`] files are read: levels that are due beyond that
//! wait for the next second, the longest due first, and are counted. Of each level the first sample is handed on, and each that
//! stands otherwise towards the thresholds than the one before: whatever the engine observes is recorded, and a level whose page
//! cache is at its limit would be sampled into the ledger four times a second for ever. The next one is handed on, too, if the core
//! has it above another number of thresholds than the last one stood for: the kernel has recorded a charge meanwhile.
//!
//! Where the kernel does not record charges, it gives a notice of each level that has reached its limit ([`LimitNotices`]): that is
//! due at once, unless its last sample was above all thresholds already.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use kwitness_core::model::{
    Bound, CgroupId, MemoryLevel, MemorySample, MemorySamples, Observation, Thresholds,
};
use kwitness_core::pressure::sampling::{FillRate, LONGEST, SHORTEST, Standing, interval};
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

    /// By name.
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

/// Starts the thread; it ends once `levels` gives `None`, or nothing receives samples any more. With `notices`, levels that reach
/// their limits are sampled at once.
///
/// # Errors
/// No thread can be made.
pub(crate) fn start(
    files: MemoryFiles,
    thresholds: Thresholds,
    notices: Option<LimitNotices>,
    mut levels: impl FnMut() -> Option<Vec<MemoryLevel>> + Send + 'static,
    answers: mpsc::Sender<Observation>,
) -> io::Result<Arc<Sampling>> {
    let counted = Arc::new(Sampling { thresholds: Arc::new(thresholds), ..Sampling::default() });
    let mut sampler = Sampler::new(files, notices, Arc::clone(&counted));
    std::thread::Builder::new().name("memory-sampler".to_owned()).spawn(move || {
        while let Some(levels) = levels() {
            sampler.refresh(levels, Instant::now());
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
    rate: FillRate,
    /// How the last sample that was handed on stands; none: there was none.
    standing: Option<Standing>,
    /// A notice of it is due; none: there was one since, it is above all thresholds, or there is nothing to give notice.
    watch: Option<WatchDescriptor>,
}

#[derive(Debug)]
struct Sampler {
    files: MemoryFiles,
    notices: Option<LimitNotices>,
    levels: HashMap<CgroupId, Level>,
    queue: BTreeSet<(Instant, CgroupId)>,
    /// Files that may be read until the next refresh.
    files_left: u64,
    counted: Arc<Sampling>,
}

impl Sampler {
    fn new(files: MemoryFiles, notices: Option<LimitNotices>, counted: Arc<Sampling>) -> Self {
        let (levels, queue) = (HashMap::new(), BTreeSet::new());
        Self { files, notices, levels, queue, files_left: 0, counted }
    }

    /// Takes the levels that there are: new ones are due at once.
    fn refresh(&mut self, levels: Vec<MemoryLevel>, now: Instant) {
        let there: HashMap<CgroupId, MemoryLevel> =
            levels.into_iter().map(|level| (level.cgroup, level)).collect();
        let Self { queue, notices, .. } = self;
        self.levels.retain(|cgroup, level| {
            let stays = there.contains_key(cgroup);
            if !stays {
                queue.remove(&(level.due, *cgroup));
                if let Some((watch, notices)) = level.watch.zip(notices.as_mut()) {
                    notices.forget(*cgroup, watch);
                }
            }
            stays
        });
        for (cgroup, MemoryLevel { path, above, .. }) in there {
            let level = self.levels.entry(cgroup).or_insert_with(|| {
                self.queue.insert((now, cgroup));
                Level { path, due: now, sampled: now, rate: FillRate::default(), standing: None, watch: None }
            });
            level.standing.take_if(|standing| standing.above(above) != above);
        }
        self.files_left = FILES_PER_REFRESH;
    }

    /// Waits until then, or until a level has reached its limit.
    fn wait(&mut self, until: Instant) {
        let pause = until.saturating_duration_since(Instant::now());
        let Some(notices) = &mut self.notices else { return std::thread::sleep(pause) };
        match notices.wait(pause) {
            Ok(levels) => levels.into_iter().for_each(|level| self.noticed(level, Instant::now())),
            Err(error) => {
                tracing::warn!(%error, "cannot wait for memory limits that are reached: usage is only sampled");
                self.notices = None;
            }
        }
    }

    /// A level has reached its limit: it is due, but no sooner after its last sample than any other.
    fn noticed(&mut self, cgroup: CgroupId, now: Instant) {
        self.counted.noticed.fetch_add(1, Relaxed);
        let Some(level) = self.levels.get_mut(&cgroup) else { return };
        level.watch = None;
        let due = now.max(level.sampled + SHORTEST);
        if due < level.due && self.queue.remove(&(level.due, cgroup)) {
            level.due = due;
            self.queue.insert((due, cgroup));
        }
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
        let level = self.levels.get_mut(&cgroup)?;
        self.files_left -= FILES;
        self.counted.samples.fetch_add(1, Relaxed);
        let read = self.files.read(cgroup, &level.path);
        let at = Clock::read().now();
        let (sample, pause) = match read {
            Ok(memory) => {
                let usage = memory.usage.unwrap_or_default();
                let fill_rate = memory.usage.and_then(|usage| level.rate.push(at, usage));
                if memory.limit == Bound::Unlimited {
                    level.rate = FillRate::default();
                }
                let pause = interval(&self.counted.thresholds, usage, memory.limit, fill_rate);
                (Some(MemorySample { at, cgroup, usage, limit: memory.limit, fill_rate }), pause)
            }
            // It is gone, as the engine will see, too; or the controller is not enabled for it, which may change.
            Err(error) if gone(&error) => (None, LONGEST),
            Err(error) => {
                self.counted.failed.fetch_add(1, Relaxed);
                tracing::debug!(path = %level.path, %error, "cannot sample memory usage");
                (None, LONGEST)
            }
        };
        (level.sampled, level.due) = (now, now + pause);
        self.queue.insert((level.due, cgroup));
        let sample = sample?;
        let thresholds = &self.counted.thresholds;
        let standing = Standing::of(thresholds, sample.usage, sample.limit);
        if level.watch.is_none()
            && sample.limit != Bound::Unlimited
            && !standing.is_above_all(thresholds)
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
        (level.standing.replace(standing) != Some(standing)).then_some(sample)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;
    use std::path::Path;

    use super::*;
    use crate::cgroupfs::CgroupFs;

    const LIMIT: u64 = 1 << 20;

    fn set(root: &Path, name: &str, usage: u64) -> MemoryLevel {
        let directory = root.join(name);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("memory.max"), LIMIT.to_string()).unwrap();
        fs::write(directory.join("memory.current"), usage.to_string()).unwrap();
        let cgroup = CgroupId(fs::metadata(&directory).unwrap().ino());
        MemoryLevel { cgroup, path: format!("/{name}").into(), above: 0 }
    }

    fn sampler(root: &Path) -> Sampler {
        Sampler::new(MemoryFiles::V2(CgroupFs::at(root)), LimitNotices::new().ok(), Arc::default())
    }

    fn usages(samples: &[MemorySample]) -> Vec<u64> {
        samples.iter().map(|sample| sample.usage).collect()
    }

    #[test]
    fn the_first_sample_is_handed_on_and_each_that_stands_otherwise_than_the_one_before_or_than_the_core() {
        let root = tempfile::tempdir().unwrap();
        let mut sampler = sampler(root.path());
        let now = Instant::now();
        let levels = vec![set(root.path(), "a", 0)];
        sampler.refresh(levels.clone(), now);
        assert_eq!(usages(&sampler.take_due(now)), [0]);
        let mut later = now;
        let samples = [
            (10, 0, false),
            (LIMIT, 0, true),
            (LIMIT - 1, 3, false),
            (20, 3, true),
            (30, 0, false),
            (40, 1, true),
        ];
        for (usage, above, handed_on) in samples {
            set(root.path(), "a", usage);
            later += LONGEST;
            let levels = levels.iter().map(|level| MemoryLevel { above, ..level.clone() });
            sampler.refresh(levels.collect(), later);
            let taken = usages(&sampler.take_due(later));
            assert_eq!(taken, if handed_on { vec![usage] } else { vec![] }, "{usage}");
        }
        assert!(sampler.take_due(later).is_empty(), "nothing is due");
    }

    #[test]
    fn a_level_that_is_gone_is_not_sampled_any_more() {
        let root = tempfile::tempdir().unwrap();
        let mut sampler = sampler(root.path());
        let now = Instant::now();
        sampler.refresh(vec![set(root.path(), "a", 0), set(root.path(), "b", 0)], now);
        fs::remove_dir_all(root.path().join("a")).unwrap();
        assert_eq!(sampler.take_due(now).len(), 1, "its directory is gone already");
        sampler.refresh(Vec::new(), now);
        assert!(sampler.levels.is_empty() && sampler.queue.is_empty());
        assert_eq!(sampler.counted.counters()[2].1, 0, "that is no failure");
    }

    #[test]
    fn a_level_that_reaches_its_limit_is_due_at_once_unless_it_is_known_to_be_above_all() {
        let root = tempfile::tempdir().unwrap();
        let mut sampler = sampler(root.path());
        let now = Instant::now();
        let level = set(root.path(), "a", 0);
        let events = root.path().join("a/memory.events.local");
        fs::write(&events, "max 0\n").unwrap();
        sampler.refresh(vec![level.clone()], now);
        assert_eq!(usages(&sampler.take_due(now)), [0]);
        let calm = sampler.next_due().unwrap();
        set(root.path(), "a", LIMIT);
        fs::write(&events, "max 1\n").unwrap();
        sampler.wait(now + LONGEST);
        let due = sampler.next_due().unwrap();
        assert!((now + SHORTEST..calm).contains(&due), "{:?}", due - now);
        assert_eq!(usages(&sampler.take_due(due)), [LIMIT]);
        let calm = sampler.next_due();
        fs::write(&events, "max 2\n").unwrap();
        sampler.wait(now);
        assert_eq!(sampler.next_due(), calm, "that would be nothing new");
        assert_eq!(
            sampler.counted.counters()[3..],
            [("pressure_notices", 1), ("pressure_watches_failed", 0)]
        );
        sampler.refresh(Vec::new(), now);
        sampler.noticed(level.cgroup, now);
        assert_eq!(sampler.next_due(), None, "it is gone");
    }

    #[test]
    fn no_more_files_are_read_than_allowed_and_the_rest_is_counted() {
        let root = tempfile::tempdir().unwrap();
        let mut sampler = sampler(root.path());
        let now = Instant::now();
        let count = FILES_PER_REFRESH / FILES + 7;
        let levels: Vec<_> = (0..count).map(|index| set(root.path(), &index.to_string(), LIMIT)).collect();
        sampler.refresh(levels.clone(), now);
        assert_eq!(sampler.take_due(now).len() as u64, FILES_PER_REFRESH / FILES);
        assert_eq!(sampler.next_due(), None, "it waits for the next refresh");
        assert_eq!(sampler.counted.counters()[1].1, 7);
        sampler.refresh(levels, now);
        assert_eq!(sampler.take_due(now).len(), 7);
    }
}
