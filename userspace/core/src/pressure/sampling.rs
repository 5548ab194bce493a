//! How often a level's memory usage is to be sampled, which samples say anything, and how fast it fills.
//!
//! Of an idle level it is assumed that it may begin to fill at any moment, within [`ASSUMED_FILL`] from nothing to its limit. It
//! is looked at [`LOOKS`] times on the way to the next threshold, at that rate or at the measured one, whichever is faster.
//! Pure: whoever samples brings the time.

use std::collections::VecDeque;
use std::time::Duration;

use crate::model::{Bound, KernelTime, Thresholds};
use crate::usage::{elapsed, rate};

/// No level is sampled less often than this: a limit may be set meanwhile.
pub const LONGEST: Duration = Duration::from_secs(5);
/// One that does not grow is sampled no more often than this.
pub const CALM: Duration = Duration::from_millis(250);
/// And none more often than this.
pub const SHORTEST: Duration = Duration::from_millis(20);
/// How long an idle level is taken to need at least from nothing to its limit.
pub const ASSUMED_FILL: Duration = Duration::from_secs(20);
/// Samples on the way to the next threshold.
pub const LOOKS: u32 = 4;

/// What a fill rate is measured over, in nanoseconds.
const WINDOW: u64 = 1_000_000_000;
/// Samples of that time that are kept, at most: more than [`SHORTEST`] allows in it.
const KEPT: usize = 64;

/// A level's usage during the last second.
#[derive(Clone, Debug, Default)]
pub struct FillRate {
    samples: VecDeque<(KernelTime, u64)>,
}

impl FillRate {
    /// Takes a sample, which is younger than the ones before; how many bytes per second usage grew by over the last second, or
    /// since the last sample if that is older. None: there was none.
    pub fn push(&mut self, at: KernelTime, usage: u64) -> Option<i64> {
        let is_old = |(at_then, _): &(KernelTime, u64)| at_then.0.saturating_add(WINDOW) <= at.0;
        // The youngest that is a second old is what this one is compared with.
        while self.samples.len() >= KEPT || self.samples.get(1).is_some_and(is_old) {
            self.samples.pop_front();
        }
        let rate = self.samples.front().and_then(|(since, was)| rate(elapsed(*since, at)?, *was, usage));
        self.samples.push_back((at, usage));
        rate
    }
}

/// When to sample a level again.
pub fn interval(thresholds: &Thresholds, usage: u64, limit: Bound, fill_rate: Option<i64>) -> Duration {
    let Bound::At(limit) = limit else { return LONGEST };
    let of_limit = |percent: u8| u128::from(limit) * u128::from(percent) / 100;
    let next =
        thresholds.percent().iter().map(|percent| of_limit(*percent)).find(|next| *next > u128::from(usage));
    // Above all of them, only the way down is left.
    let Some(next) = next else { return CALM };
    let distance = next - u128::from(usage);
    let looks = |nanos_to_next: u128, shortest: Duration| {
        let nanos = u64::try_from(nanos_to_next / u128::from(LOOKS)).unwrap_or(u64::MAX);
        Duration::from_nanos(nanos).clamp(shortest, LONGEST)
    };
    // `next` is above `usage`, so there is a limit to divide by.
    let calm = looks(distance * ASSUMED_FILL.as_nanos() / u128::from(limit), CALM);
    match fill_rate.and_then(|rate| u128::try_from(rate).ok()).filter(|rate| *rate > 0) {
        Some(rate) => calm.min(looks(distance * 1_000_000_000 / rate, SHORTEST)),
        None => calm,
    }
}

/// How a sample stands towards the thresholds: all of it that decides what is reported. Of two samples in a row that stand the same,
/// the second makes no event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThresholdState {
    /// Thresholds that usage is at or above.
    reached: usize,
    /// Thresholds that usage has not fallen below by the hysteresis: no fewer.
    kept: usize,
}

impl ThresholdState {
    /// That of usage of a limit.
    pub fn of(thresholds: &Thresholds, usage: u64, limit: Bound) -> Self {
        let Bound::At(limit) = limit else { return Self { reached: 0, kept: 0 } };
        let is_at = |percent: u8| u128::from(usage) * 100 >= u128::from(limit) * u128::from(percent);
        let percent = thresholds.percent();
        Self {
            reached: percent.partition_point(|percent| is_at(*percent)),
            kept: percent.partition_point(|percent| is_at(*percent - thresholds.hysteresis())),
        }
    }

    /// Whether usage is at or above all of these thresholds.
    pub fn is_above_all(self, thresholds: &Thresholds) -> bool {
        self.reached == thresholds.percent().len()
    }

    /// How many thresholds usage counts as above, if it was above so many before.
    pub fn above(self, before: usize) -> usize {
        before.clamp(self.reached, self.kept)
    }
}
