//! When the cgroup tree is walked: at once at the start; after a loss not sooner than the last walk allows, so that a lasting
//! overflow does not keep a core busy with walking.
//!
//! ```text
//!  Idle ──want──▶ Due(at) ──time──▶ Walking ──done──▶ Idle, or Due again if it was wanted meanwhile
//!   ▲                                                    │
//!   └── Due by itself, later each time, while walks fail or leave something out
//! ```

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use kwitness_core::model::{Scan, ScanReason};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::cgroupfs::{CgroupFs, Roots, ScanError, scan};
use crate::probe::Tracker;
use kwitness_service::metrics::Histogram;

/// Walks the tree once.
type Walk = Arc<dyn Fn(ScanReason) -> Result<Scan, ScanError> + Send + Sync>;

/// Between the end of a walk and the next, at least.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The share of the time that walking may take: one part in so many and one.
const PAUSE_FACTOR: u32 = 4;
/// From a millisecond to ten seconds: a tree of a thousand containers takes tens of milliseconds.
const DURATIONS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Between a walk that failed, or could not read everything, and its repetition: the first time, and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

pub(crate) struct Scans {
    walk: Walk,
    state: State,
    /// The next scan does not begin before.
    earliest: Instant,
    /// When the last walk is repeated by itself, and how long after it.
    retry: Option<(Instant, Duration)>,
    made: u64,
    /// How long those that ended well took, by why they were made.
    durations: [(ScanReason, Histogram); 2],
}

enum State {
    Idle,
    Due(ScanReason),
    Walking { walk: JoinHandle<Result<Scan, ScanError>>, began: Instant, again: Option<ScanReason> },
}

impl Scans {
    /// Walks of the tree that have tracked what is new, in a set with room for so many cgroups.
    pub(crate) fn new(cgroups: CgroupFs, roots: Roots, tracker: Tracker, capacity: usize) -> Self {
        Self::by(move |reason| scan(&cgroups, &roots, &tracker, capacity, reason))
    }

    /// Walks that are made by that.
    pub(crate) fn by(walk: impl Fn(ScanReason) -> Result<Scan, ScanError> + Send + Sync + 'static) -> Self {
        Self {
            walk: Arc::new(walk),
            state: State::Idle,
            earliest: Instant::now(),
            retry: None,
            made: 0,
            durations: [ScanReason::Initial, ScanReason::Repair]
                .map(|reason| (reason, Histogram::new(DURATIONS))),
        }
    }

    /// Asks for a walk that begins after this call.
    pub(crate) fn want(&mut self, reason: ScanReason) {
        match &mut self.state {
            State::Idle => self.state = State::Due(reason),
            State::Due(_) => {}
            State::Walking { again, .. } => *again = Some(reason),
        }
    }

    /// How many walks have ended.
    pub(crate) fn made(&self) -> u64 {
        self.made
    }

    /// How long walks took, by why they were made; those that failed are left out.
    pub(crate) fn durations(&self) -> &[(ScanReason, Histogram)] {
        &self.durations
    }

    /// What the next walk gives; pending while none is wanted. Nothing is lost when it is dropped before it is ready. A walk that
    /// failed is repeated.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Scan> {
        loop {
            match &mut self.state {
                State::Idle => {
                    let Some((at, _)) = self.retry else { return std::future::pending().await };
                    tokio::time::sleep_until(at).await;
                    self.state = State::Due(ScanReason::Repair);
                }
                State::Due(reason) => {
                    let reason = *reason;
                    tokio::time::sleep_until(self.earliest).await;
                    let walk = self.walk.clone();
                    let walk = tokio::task::spawn_blocking(move || walk(reason));
                    self.state = State::Walking { walk, began: Instant::now(), again: None };
                }
                State::Walking { walk, began, again } => {
                    let walked = walk.await.context("the scan panicked").and_then(|walked| Ok(walked?));
                    let now = Instant::now();
                    let took = now - *began;
                    self.earliest = now + PAUSE_MIN.max(took * PAUSE_FACTOR);
                    if let Ok(scan) = &walked {
                        let of = self.durations.iter_mut().filter(|(reason, _)| *reason == scan.reason);
                        of.for_each(|(_, durations)| durations.observe(took.as_secs_f64()));
                    }
                    self.state = again.take().map_or(State::Idle, State::Due);
                    self.made += 1;
                    self.plan_retry(now, walked.as_ref().is_ok_and(|scan| scan.unreadable.is_empty()));
                    return walked;
                }
            }
        }
    }

    fn plan_retry(&mut self, now: Instant, is_complete: bool) {
        let after = self.retry.map_or(RETRY.0, |(_, after)| RETRY.1.min(after * 2));
        self.retry = (!is_complete).then_some((now + after, after));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use kwitness_core::model::{CgroupId, KernelTime, Unreadable, UnreadableCgroup};

    use super::*;

    fn scan(reason: ScanReason, is_complete: bool) -> Scan {
        let mut unreadable = Unreadable::default();
        if !is_complete {
            let (path, error) = ("/kubepods/a".into(), "Permission denied".into());
            unreadable.push(UnreadableCgroup { path, parent: CgroupId(1), error });
        }
        Scan { unreadable, ..Scan::empty(reason, KernelTime(1)) }
    }

    #[tokio::test(start_paused = true)]
    async fn what_could_not_be_read_is_tried_again_later_each_time_until_it_is() {
        let walks = Arc::new(Mutex::new(Vec::new()));
        let times = walks.clone();
        let mut scans = Scans::by(move |reason| {
            let mut times = times.lock().unwrap();
            times.push(Instant::now());
            match times.len() {
                2 => Err(ScanError::test()),
                count => Ok(scan(reason, count > 9)),
            }
        });
        scans.want(ScanReason::Initial);
        for walk in 1..=10 {
            assert_eq!(scans.next().await.is_err(), walk == 2);
        }
        let times = walks.lock().unwrap().clone();
        let pauses: Vec<u128> = times.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);
        let counts: Vec<_> = scans.durations().iter().map(|(_, durations)| durations.count()).collect();
        assert_eq!(counts, [1, 8], "the one that failed took no time that counts");
        let rest = tokio::time::timeout(Duration::from_secs(3600), scans.next()).await;
        assert!(rest.is_err(), "nothing is left to be read");
    }
}
