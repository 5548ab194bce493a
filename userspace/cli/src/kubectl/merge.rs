//! Events of several nodes, in the order of their times.
//!
//! Each is held for a moment, for one that happened before it may still be on its way from another node. What comes later than that is
//! shown when it comes. Never drops an event: with too many held, the earliest goes at once.

use std::collections::BTreeMap;
use std::time::Duration;

use kwitness_api::Timestamp;
use tokio::time::Instant;

/// How long an event is held: more than two nodes differ in how fast their events arrive, less than a person notices.
const HOLD: Duration = Duration::from_millis(300);
/// The most events that are held.
const HELD_MAX: usize = 16 << 10;

/// What is held.
#[derive(Debug)]
pub struct Merge<T> {
    /// By time, and of one time by arrival.
    held: BTreeMap<(Timestamp, u64), T>,
    /// When each arrived, by its number.
    arrived: BTreeMap<u64, Instant>,
    next: u64,
}

impl<T> Merge<T> {
    /// Nothing is held.
    pub const fn new() -> Self {
        Self { held: BTreeMap::new(), arrived: BTreeMap::new(), next: 0 }
    }

    /// Takes in what happened at `time`.
    pub fn push(&mut self, time: Timestamp, value: T, now: Instant) {
        self.held.insert((time, self.next), value);
        self.arrived.insert(self.next, now);
        self.next += 1;
    }

    /// When there is something to take; none while nothing is held.
    pub fn due(&self) -> Option<Instant> {
        let (_, arrived) = self.arrived.first_key_value()?;
        Some(if self.held.len() > HELD_MAX { *arrived } else { *arrived + HOLD })
    }

    /// What has been held for long enough, after all that happened before it.
    pub fn take(&mut self, now: Instant) -> Vec<T> {
        let mut taken = Vec::new();
        while self.due().is_some_and(|due| due <= now) {
            let Some(((_, number), value)) = self.held.pop_first() else { break };
            self.arrived.remove(&number);
            taken.push(value);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp { seconds, nanos: 0 }
    }

    #[test]
    fn what_arrives_within_the_hold_comes_in_order() {
        let now = Instant::now();
        let mut merge = Merge::new();
        assert_eq!((merge.due(), merge.take(now).len()), (None, 0));
        merge.push(at(2), "worker-1, later", now);
        merge.push(at(1), "worker-2, earlier", now + HOLD / 2);
        assert_eq!(merge.take(now + HOLD / 2), [""; 0]);
        assert_eq!(merge.due(), Some(now + HOLD));
        assert_eq!(merge.take(now + HOLD), ["worker-2, earlier", "worker-1, later"]);
        assert_eq!(merge.due(), None);
    }

    #[test]
    fn what_is_late_comes_when_it_comes_and_what_is_early_waits() {
        let now = Instant::now();
        let mut merge = Merge::new();
        merge.push(at(5), "first", now);
        assert_eq!(merge.take(now + HOLD), ["first"]);
        merge.push(at(1), "late", now + HOLD);
        merge.push(at(9), "new", now + 2 * HOLD);
        assert_eq!(merge.take(now + 2 * HOLD), ["late"]);
        assert_eq!(merge.take(now + 3 * HOLD), ["new"]);
    }

    #[test]
    fn events_of_one_time_stay_in_the_order_of_their_arrival() {
        let now = Instant::now();
        let mut merge = Merge::new();
        for number in 0..4 {
            merge.push(at(1), number, now);
        }
        assert_eq!(merge.take(now + HOLD), [0, 1, 2, 3]);
    }

    #[test]
    fn with_too_many_the_earliest_goes_and_none_is_lost() {
        let now = Instant::now();
        let mut merge = Merge::new();
        let all = HELD_MAX + 3;
        for number in (0..all).rev() {
            merge.push(at(i64::try_from(number).unwrap()), number, now);
        }
        assert_eq!(merge.take(now), [0, 1, 2]);
        assert_eq!(merge.take(now + HOLD).len(), HELD_MAX);
    }
}
