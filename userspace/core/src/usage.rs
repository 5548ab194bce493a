//! How fast memory fills up, when it reaches its limit at that rate, and how much of its CPU time a container is refused.
//!
//! Owns the rule for each, over whatever time: `kwitness top` looks at the last seconds, memory pressure
//! ([`crate::pressure::sampling`]) at the last one. Remembers a cgroup's last points. Times come in with each.

use std::collections::VecDeque;
use std::time::Duration;

use crate::model::KernelTime;

/// What rates are taken over: long enough that one large allocation is no trend, short enough that a leak is.
pub const WINDOW: Duration = Duration::from_secs(5);
/// The most points that are remembered of a cgroup: as many as [`WINDOW`] has at the shortest interval, and some.
const POINTS_MAX: usize = 16;

/// What was read at one time; absent is what could not be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Point {
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Periods of the CPU quota so far, and how many of them were throttled.
    pub periods: Option<(u64, u64)>,
}

/// The last points of a cgroup.
#[derive(Clone, Debug, Default)]
pub struct Meter(VecDeque<(KernelTime, Point)>);

impl Meter {
    /// Takes the next point.
    pub fn push(&mut self, at: KernelTime, point: Point) {
        self.0.push_back((at, point));
        let is_old =
            |(second, _): &(KernelTime, Point)| elapsed(*second, at).is_some_and(|age| age >= WINDOW);
        while self.0.len() > POINTS_MAX
            || self.0.get(1).is_some_and(|second| self.0.len() > 2 && is_old(second))
        {
            self.0.pop_front();
        }
    }

    /// Bytes per second by which memory rises; negative: it falls. None: it is not known twice.
    pub fn fill_rate(&self) -> Option<i64> {
        let known = || self.0.iter().filter_map(|(at, point)| Some((*at, point.memory?)));
        let ((from, first), (to, last)) = (known().next()?, known().next_back()?);
        rate(elapsed(from, to)?, first, last)
    }

    /// The share of the periods that were throttled, from 0 to 1. None: none passed, or it is not known twice.
    pub fn throttled_share(&self) -> Option<f64> {
        let known = || self.0.iter().filter_map(|(_, point)| point.periods);
        let (first, last) = (known().next()?, known().next_back()?);
        let periods = last.0.checked_sub(first.0).filter(|periods| *periods > 0)?;
        let throttled = last.1.checked_sub(first.1)?;
        Some((throttled as f64 / periods as f64).min(1.0))
    }
}

/// Bytes per second from one amount to another in that time, rounded towards zero. None: no time has passed.
pub(crate) fn rate(time: Duration, was: u64, is: u64) -> Option<i64> {
    let nanos = i128::try_from(time.as_nanos()).ok()?;
    let grown = i128::from(is) - i128::from(was);
    let rate = (grown * 1_000_000_000).checked_div(nanos)?;
    Some(i64::try_from(rate).unwrap_or(if rate < 0 { i64::MIN } else { i64::MAX }))
}

/// How long it takes until usage reaches the limit; no time if it has, whatever the rate. None: at this rate, never.
pub fn time_to_limit(usage: u64, limit: u64, fill_rate: i64) -> Option<Duration> {
    let left = limit.saturating_sub(usage);
    if left == 0 {
        return Some(Duration::ZERO);
    }
    let rate = u64::try_from(fill_rate).ok().filter(|rate| *rate > 0)?;
    Duration::try_from_secs_f64(left as f64 / rate as f64).ok()
}

/// None: `to` is earlier.
pub(crate) fn elapsed(from: KernelTime, to: KernelTime) -> Option<Duration> {
    to.0.checked_sub(from.0).map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn meter(points: &[(u64, Option<u64>)]) -> Meter {
        let mut meter = Meter::default();
        for (millis, memory) in points {
            meter.push(KernelTime(millis * 1_000_000), Point { memory: *memory, periods: None });
        }
        meter
    }

    #[test]
    fn a_rate_is_that_of_the_last_seconds() {
        assert_eq!(meter(&[]).fill_rate(), None);
        assert_eq!(meter(&[(0, Some(MIB))]).fill_rate(), None, "one point has no rate");
        assert_eq!(meter(&[(0, Some(MIB)), (500, Some(2 * MIB))]).fill_rate(), Some(2 * MIB as i64));
        assert_eq!(meter(&[(0, Some(2 * MIB)), (1000, Some(MIB))]).fill_rate(), Some(-(MIB as i64)));
        // What was before the window does not count; its first point does, however far back it is.
        let points: Vec<_> = (0..20).map(|second| (second * 1000, Some(second.max(14) * MIB))).collect();
        assert_eq!(meter(&points).fill_rate(), Some(MIB as i64));
        assert_eq!(meter(&[(0, Some(0)), (60_000, Some(60 * MIB))]).fill_rate(), Some(MIB as i64));
    }

    #[test]
    fn what_is_not_known_has_no_rate_and_is_not_zero() {
        assert_eq!(meter(&[(0, None), (1000, Some(MIB))]).fill_rate(), None);
        assert_eq!(
            meter(&[(0, Some(0)), (1000, None), (2000, Some(MIB))]).fill_rate(),
            Some((MIB / 2) as i64)
        );
        assert_eq!(meter(&[(1000, Some(0)), (1000, Some(MIB))]).fill_rate(), None, "no time has passed");
        assert_eq!(meter(&[(0, Some(0)), (1, Some(u64::MAX))]).fill_rate(), Some(i64::MAX));
        assert_eq!(meter(&[(0, Some(u64::MAX)), (1, Some(0))]).fill_rate(), Some(i64::MIN));
    }

    #[test]
    fn points_are_bounded() {
        let points: Vec<_> = (0..1000).map(|milli| (milli, Some(milli))).collect();
        assert_eq!(meter(&points).0.len(), POINTS_MAX);
        let spaced: Vec<_> = (0..1000).map(|half| (half * 500, Some(half))).collect();
        assert!(meter(&spaced).0.len() <= POINTS_MAX);
    }

    #[test]
    fn throttling_is_a_share_of_the_periods_that_passed() {
        let meter = |points: &[Option<(u64, u64)>]| {
            let mut meter = Meter::default();
            for (second, periods) in (0..).zip(points) {
                meter.push(KernelTime(second * 1_000_000_000), Point { memory: None, periods: *periods });
            }
            meter.throttled_share()
        };
        assert_eq!(meter(&[Some((100, 50)), Some((110, 55))]), Some(0.5));
        assert_eq!(meter(&[Some((100, 50)), Some((100, 50))]), None, "no period passed");
        assert_eq!(meter(&[None, Some((100, 50))]), None);
        assert_eq!(meter(&[Some((100, 50)), Some((10, 5))]), None, "another counter");
    }

    #[test]
    fn a_limit_that_is_not_approached_is_never_reached() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(time_to_limit(32 * MIB, 64 * MIB, MIB as i64), seconds(32));
        assert_eq!(time_to_limit(64 * MIB, 64 * MIB, 0), seconds(0), "it is reached already");
        assert_eq!(time_to_limit(65 * MIB, 64 * MIB, -1), seconds(0));
        assert_eq!(time_to_limit(800, 1000, 100), seconds(2));
        for rate in [0, -1, i64::MIN] {
            assert_eq!(time_to_limit(0, MIB, rate), None);
        }
    }
}
