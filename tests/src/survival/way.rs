//! The ways to see that a container nears its limit, which are compared, and the order in which they take turns.

use std::time::Duration;

use serde::Serialize;

use super::watch::Source;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Nothing: what survives this was not in danger.
    Nothing,
    /// `memory.high` at the threshold brakes it; no process raises the limit.
    High,
    /// `memory.current` is read every second.
    PollSecond,
    /// `memory.current` is read every 100 ms.
    Poll100ms,
    /// A PSI trigger at its finest: any stall, in the shortest window that the kernel takes of 10 and 500 ms.
    Pressure,
    /// inotify on `memory.events`.
    Events,
    /// The same with `memory.high` at the threshold, which makes an event before the limit does.
    HighEvents,
    Guard,
}

impl Way {
    pub const ALL: [Self; 8] = [
        Self::Nothing,
        Self::High,
        Self::PollSecond,
        Self::Poll100ms,
        Self::Pressure,
        Self::Events,
        Self::HighEvents,
        Self::Guard,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::High => "memory.high",
            Self::PollSecond => "poll, 1 s",
            Self::Poll100ms => "poll, 100 ms",
            Self::Pressure => "PSI trigger",
            Self::Events => "memory.events",
            Self::HighEvents => "high + events",
            Self::Guard => "guard",
        }
    }

    pub(super) const fn container(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::High => "high",
            Self::PollSecond => "poll-second",
            Self::Poll100ms => "poll-100ms",
            Self::Pressure => "pressure",
            Self::Events => "events",
            Self::HighEvents => "high-events",
            Self::Guard => "guard",
        }
    }

    pub(super) const fn source(self) -> Option<Source> {
        match self {
            Self::Nothing | Self::High | Self::Guard => None,
            Self::PollSecond => Some(Source::Usage(Duration::from_secs(1))),
            Self::Poll100ms => Some(Source::Usage(Duration::from_millis(100))),
            Self::Pressure => Some(Source::Pressure),
            Self::Events | Self::HighEvents => Some(Source::Events),
        }
    }

    pub(super) const fn has_high(self) -> bool {
        matches!(self, Self::High | Self::HighEvents)
    }
}

/// The order of the ways in a run: in turn, each is the first.
pub(super) fn order(run: u32) -> [Way; 8] {
    let mut order = Way::ALL;
    order.rotate_left(run as usize % Way::ALL.len());
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_is_the_first_in_turn_and_none_is_left_out() {
        let firsts: Vec<_> = (0..8).map(|run| order(run)[0]).collect();
        assert_eq!(firsts, Way::ALL);
        let mut ninth = order(8 + 3);
        assert_eq!(ninth, order(3));
        ninth.sort();
        assert_eq!(ninth, Way::ALL);
    }
}
