//! When the cgroup tree is walked: at once at the start; after a loss not sooner than the last walk allows, so that a lasting
//! overflow does not keep a core busy with walking.
//!
//! ```text
//!  Idle ──want──▶ Due(at) ──time──▶ Walking ──done──▶ Idle, or Due again if it was wanted meanwhile
//! ```

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use kwitness_core::model::ScanReason;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::cgroupfs::{CgroupFs, Roots, ScanError, Scanned, scan};
use crate::probe::Tracker;

/// Walks the tree once.
type Walk = Arc<dyn Fn(ScanReason) -> Result<Scanned, ScanError> + Send + Sync>;

/// Between the end of a walk and the next, at least.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The share of the time that walking may take: one part in so many and one.
const PAUSE_FACTOR: u32 = 4;

pub(crate) struct Scans {
    walk: Walk,
    state: State,
    /// Not before.
    earliest: Instant,
    made: u64,
}

enum State {
    Idle,
    Due(ScanReason),
    Walking { walk: JoinHandle<Result<Scanned, ScanError>>, began: Instant, again: Option<ScanReason> },
}

impl Scans {
    pub(crate) fn new(cgroups: CgroupFs, roots: Roots, tracker: Tracker) -> Self {
        Self::by(move |reason| scan(&cgroups, &roots, &tracker, reason))
    }

    /// Walks that are made by that.
    pub(crate) fn by(
        walk: impl Fn(ScanReason) -> Result<Scanned, ScanError> + Send + Sync + 'static,
    ) -> Self {
        Self { walk: Arc::new(walk), state: State::Idle, earliest: Instant::now(), made: 0 }
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

    /// What the next walk gives; pending while none is wanted. Nothing is lost when it is dropped before it is ready.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Scanned> {
        loop {
            match &mut self.state {
                State::Idle => std::future::pending().await,
                State::Due(reason) => {
                    let reason = *reason;
                    tokio::time::sleep_until(self.earliest).await;
                    let walk = self.walk.clone();
                    let walk = tokio::task::spawn_blocking(move || walk(reason));
                    self.state = State::Walking { walk, began: Instant::now(), again: None };
                }
                State::Walking { walk, began, again } => {
                    let walked = walk.await;
                    let now = Instant::now();
                    self.earliest = now + PAUSE_MIN.max((now - *began) * PAUSE_FACTOR);
                    self.state = again.take().map_or(State::Idle, State::Due);
                    self.made += 1;
                    return Ok(walked.context("the scan panicked")??);
                }
            }
        }
    }
}
