//! When a filler rests, so that it fills at a rate. Pure: the time is given to it.

use std::time::Duration;

use super::Rate;

/// What is filled between two rests takes that long at the rate.
const SLICE_PER_SECOND: u64 = 200;
/// What a filler may be late by and make up for at full speed. Beyond that it was held, throttled or not scheduled, and a burst
/// afterwards would be another rate.
const LATE: Duration = Duration::from_millis(20);
const PAGE: u64 = 4096;
/// Without a rate, what is filled between two looks at the clock.
const UNPACED: u64 = 1 << 20;

#[derive(Debug)]
pub(super) struct Pace {
    rate: Rate,
    forgiven: Duration,
}

impl Pace {
    /// One that keeps to the rate from now on.
    pub(super) fn new(rate: Rate) -> Self {
        Self { rate, forgiven: Duration::ZERO }
    }

    pub(super) fn slice(&self) -> u64 {
        self.rate.0.map_or(UNPACED, |rate| (rate / SLICE_PER_SECOND).max(PAGE))
    }

    /// How long to rest after so many bytes in all, so long after the beginning.
    pub(super) fn rest(&mut self, filled: u64, now: Duration) -> Duration {
        let Some(rate) = self.rate.0 else { return Duration::ZERO };
        let due = self.forgiven + Duration::from_secs_f64(filled as f64 / rate as f64);
        self.forgiven += now.saturating_sub(due + LATE);
        due.saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn pace() -> Pace {
        Pace::new(Rate(Some(10_000_000)))
    }

    #[test]
    fn what_is_filled_in_time_rests_until_its_time() {
        assert_eq!(pace().slice(), 50_000);
        assert_eq!(pace().rest(50_000, MS), 4 * MS);
        assert_eq!(pace().rest(100_000, 7 * MS), 3 * MS);
    }

    #[test]
    fn a_short_delay_is_made_up_for() {
        let mut pace = pace();
        assert_eq!(pace.rest(50_000, 25 * MS), Duration::ZERO);
        assert_eq!(pace.rest(300_000, 26 * MS), 4 * MS);
    }

    #[test]
    fn after_a_hold_there_is_no_burst() {
        let mut pace = pace();
        // Due after 5 ms, and 980 ms later than may be made up for.
        assert_eq!(pace.rest(50_000, 1005 * MS), Duration::ZERO);
        // Of the hold, 20 ms are made up for: four slices.
        assert_eq!(pace.rest(250_000, 1005 * MS), Duration::ZERO);
        assert_eq!(pace.rest(300_000, 1005 * MS), 5 * MS);
    }

    #[test]
    fn at_full_speed_nothing_rests_and_no_rate_is_too_slow_for_a_page() {
        assert_eq!(Pace::new(Rate(None)).rest(1 << 30, MS), Duration::ZERO);
        assert_eq!(Pace::new(Rate(Some(1))).slice(), PAGE);
    }
}
