//! How long the steps of an episode took. Pure.

use crate::status::Steps;

/// When the steps of an episode ended: `CLOCK_BOOTTIME` in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// The first hold was seen.
    pub seen: u64,
    /// The raise was planned, or refused.
    pub planned: u64,
    /// It was accepted.
    pub raised: Option<u64>,
}

impl Times {
    /// The steps of an episode whose first hold began, and which was decided, at these times.
    pub fn steps(self, since: u64, decided: u64) -> Steps {
        let us = |from: u64, to: u64| to.saturating_sub(from) / 1000;
        Steps {
            detect_us: us(since, self.seen),
            decide_us: us(self.seen, self.planned),
            raise_us: self.raised.map(|raised| us(self.planned, raised)),
            verify_us: self.raised.map(|raised| us(raised, decided)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steps_of_a_hold_add_up_to_it() {
        let times = Times { seen: 2_000, planned: 5_000, raised: Some(45_000) };
        let steps = times.steps(1_000, 52_000);
        let expected = Steps { detect_us: 1, decide_us: 3, raise_us: Some(40), verify_us: Some(7) };
        assert_eq!(steps, expected);
        let refused = Times { raised: None, ..times }.steps(1_000, 5_000);
        assert_eq!(refused, Steps { raise_us: None, verify_us: None, ..expected });
    }
}
