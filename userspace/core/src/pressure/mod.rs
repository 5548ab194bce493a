//! Memory pressure: which thresholds of its limit the usage of each level has crossed, and what is reported of it.
//!
//! ```text
//!            usage ≥ threshold: up
//!  below ──────────────────────────────▶ above
//!        ◀──────────────────────────────
//!            usage < threshold − hysteresis: down
//! ```
//!
//! Each level has one such state for each threshold. Crossings are reported in order, one event each: from below 80 % to above
//! 95 % is three. A level has a budget of events; crossings beyond it are counted, and as soon as there is budget again, what
//! was reported is brought in line with what is.
//!
//! Usage is known from two sides, which come to one state: samples, and the kernel's records of charges, which say who charges.
//! So a crossing that both show is reported once, by whichever comes first. A sample that was made before the last record says
//! nothing any more. Owns no usage but the last of each level, and never reads a file: see [`sampling`] for how often a level is to
//! be looked at.

pub mod sampling;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::{
    Basis, Bound, CgroupId, CgroupIndex, CgroupInfo, Charger, Direction, Event, KernelTime, Kind, LevelRole,
    MemoryCharge, MemorySample, MemorySamples, Output, Pressure, Thresholds,
};
use crate::usage::{elapsed, rate};
use sampling::ThresholdState;

/// One more event is in a level's budget each time so many nanoseconds have passed.
const REFILL: u64 = 1_000_000_000;

/// What was counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PressureCounters {
    /// Crossings that were seen.
    pub crossings: u64,
    /// Crossings that were reported by an event of their own.
    pub reported: u64,
}

/// All levels that are, or lately were, above a threshold.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PressureTracker {
    thresholds: Arc<Thresholds>,
    /// Sorted, so that two nodes with the same history report in the same order.
    #[serde(with = "crate::pairs")]
    levels: BTreeMap<CgroupId, Level>,
    counters: PressureCounters,
}

/// A level's state; thresholds are counted from the lowest.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Level {
    last: MemorySample,
    #[serde(default)]
    seen: Seen,
    /// How many thresholds usage is above.
    above: usize,
    /// How many it is above by what was reported.
    reported: usize,
    /// Crossings seen and not reported; at least the difference of the two.
    unreported: u64,
    /// How many events it may have at once.
    budget: u64,
    refilled: KernelTime,
}

/// How a level's last usage was seen.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Seen {
    #[default]
    Sampled,
    Charged(Option<Charger>),
}

impl PressureTracker {
    /// What was counted.
    pub fn counters(&self) -> PressureCounters {
        self.counters
    }

    /// Takes samples; appends the crossings that they show. Of what is no level any more, a sample says nothing.
    pub fn sampled(&mut self, sampled: &MemorySamples, index: &impl CgroupIndex, output: &mut Output) {
        if self.thresholds != sampled.thresholds {
            self.adopt(Arc::clone(&sampled.thresholds));
        }
        for sample in &sampled.samples {
            let is_outdated = |level: &Level| level.last.at > sample.at;
            if !self.levels.get(&sample.cgroup).is_some_and(is_outdated) {
                let before = self.above(sample.cgroup);
                self.take(*sample, Seen::Sampled, before, 0, index, output);
            }
        }
    }

    /// Takes a record of a charge; appends the crossings that it shows, by the thresholds that came with the last samples. What it
    /// counts as above is believed as far as its usage allows: the kernel may have gone by other thresholds, of an earlier daemon.
    pub fn charged(
        &mut self,
        at: KernelTime,
        cgroup: CgroupId,
        charge: &MemoryCharge,
        index: &impl CgroupIndex,
        output: &mut Output,
    ) {
        let MemoryCharge { usage, limit, earlier, suppressed, above, charger } = charge;
        let fill_rate = earlier.and_then(|(since, was)| rate(elapsed(since, at)?, was, *usage));
        let sample = MemorySample { at, cgroup, usage: *usage, limit: Bound::At(*limit), fill_rate };
        let charger = charger.clone().map(|process| {
            let cgroup = process.cgroup.and_then(|cgroup| index.info(cgroup));
            Charger { process, cgroup_path: cgroup.map(|info| info.path) }
        });
        self.take(sample, Seen::Charged(charger), *above, *suppressed, index, output);
    }

    /// How many thresholds the usage of that cgroup counts as above.
    pub fn above(&self, cgroup: CgroupId) -> usize {
        self.levels.get(&cgroup).map_or(0, |level| level.above)
    }

    /// Takes usage of a level that counted as above so many thresholds up to now.
    fn take(
        &mut self,
        sample: MemorySample,
        seen: Seen,
        above: usize,
        suppressed: u64,
        index: &impl CgroupIndex,
        output: &mut Output,
    ) {
        let Some(info) = index.info(sample.cgroup).filter(|info| info.exists && is_level(info.role)) else {
            return;
        };
        let before = self.above(sample.cgroup);
        let Self { thresholds, levels, counters } = self;
        let above = ThresholdState::of(thresholds, sample.usage, sample.limit).above(above);
        if above == 0 && suppressed == 0 && !levels.contains_key(&sample.cgroup) {
            return;
        }
        let level = levels.entry(sample.cgroup).or_insert_with(|| Level::new(sample, thresholds));
        let crossed = (above.abs_diff(before) as u64).saturating_add(suppressed);
        (level.last, level.seen, level.above) = (sample, seen, above);
        level.unreported = level.unreported.saturating_add(crossed);
        counters.crossings = counters.crossings.saturating_add(crossed);
        counters.reported += level.report(sample.at, thresholds, &info, output);
    }

    /// Reports what had no budget, and forgets the levels that are gone, or are below every threshold as reported.
    pub fn tick(&mut self, at: KernelTime, index: &impl CgroupIndex, output: &mut Output) {
        let Self { thresholds, levels, counters } = self;
        levels.retain(|cgroup, level| {
            let Some(info) = index.info(*cgroup).filter(|info| info.exists) else { return false };
            counters.reported += level.report(at, thresholds, &info, output);
            level.above > 0 || level.reported > 0 || level.unreported > 0 || level.budget < budget(thresholds)
        });
    }

    /// Other thresholds than before: a level counts as reported above those that are no higher than the highest it was above.
    fn adopt(&mut self, thresholds: Arc<Thresholds>) {
        let (old, new) = (self.thresholds.percent(), thresholds.percent());
        let place = |count: usize| match count.checked_sub(1).and_then(|highest| old.get(highest)) {
            Some(highest) => new.partition_point(|percent| percent <= highest),
            None => 0,
        };
        for level in self.levels.values_mut() {
            (level.above, level.reported) = (place(level.above), place(level.reported));
            level.unreported = level.pending();
            level.budget = level.budget.min(budget(&thresholds));
        }
        self.thresholds = thresholds;
    }
}

impl Level {
    fn new(first: MemorySample, thresholds: &Thresholds) -> Self {
        let (budget, refilled) = (budget(thresholds), first.at);
        Self { last: first, seen: Seen::Sampled, above: 0, reported: 0, unreported: 0, budget, refilled }
    }

    fn pending(&self) -> u64 {
        self.above.abs_diff(self.reported) as u64
    }

    /// Reports until what was reported is what is, or the budget is used up; how many events that made.
    fn report(
        &mut self,
        at: KernelTime,
        thresholds: &Thresholds,
        info: &CgroupInfo,
        output: &mut Output,
    ) -> u64 {
        let passed = at.0.saturating_sub(self.refilled.0) / REFILL;
        self.refilled.0 += passed * REFILL;
        self.budget = self.budget.saturating_add(passed).min(budget(thresholds));
        let mut suppressed = self.unreported - self.pending();
        let events = self.pending().min(self.budget);
        let (basis, charger) = match &self.seen {
            Seen::Sampled => (Basis::MemorySample, None),
            Seen::Charged(charger) => (Basis::MemoryCharge, charger.as_ref()),
        };
        for _ in 0..events {
            let direction = if self.reported < self.above { Direction::Up } else { Direction::Down };
            let crossed = match direction {
                Direction::Up => self.reported,
                Direction::Down => self.reported - 1,
            };
            self.reported = match direction {
                Direction::Up => crossed + 1,
                Direction::Down => crossed,
            };
            let pressure = Pressure {
                cgroup: self.last.cgroup,
                path: Arc::clone(&info.path),
                role: info.role,
                pod: info.pod.clone(),
                usage: self.last.usage,
                limit: self.last.limit,
                threshold: thresholds.percent()[crossed],
                direction,
                fill_rate: self.last.fill_rate,
                charger: charger.filter(|_| direction == Direction::Up).cloned(),
                suppressed: std::mem::take(&mut suppressed),
            };
            let (subject, kind) = (info.subject.clone(), Kind::Pressure(Box::new(pressure)));
            output.events.push(Event { at: self.last.at, basis, subject, kind });
        }
        if events > 0 {
            self.budget -= events;
            self.unreported = self.pending();
        }
        events
    }
}

/// Whether usage of that is watched. An inner cgroup's limits are the container's own business.
pub(crate) fn is_level(role: LevelRole) -> bool {
    match role {
        LevelRole::Container | LevelRole::Pod | LevelRole::Qos | LevelRole::Kubepods => true,
        LevelRole::Inner | LevelRole::Other => false,
    }
}

/// Events that a level may have at once: twice up and down.
fn budget(thresholds: &Thresholds) -> u64 {
    4 * thresholds.percent().len() as u64
}
