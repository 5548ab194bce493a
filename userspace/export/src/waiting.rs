//! What is yet to become a Kubernetes Event: how far back a restarted exporter reads for it.
//!
//! Nothing that waits is stored. The daemon's journal has it, and reading that again makes it anew: a limit that is out of force, a series
//! that goes on, an event that the API server has not answered for. So all that is kept is where the first of these began.

use kwitness_api::proto::Position;
use serde::{Deserialize, Serialize};

/// What waits for a Kubernetes Event.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// Where the first begins that can be read again.
    #[serde(default)]
    pub first: Option<Position>,
    /// How many can be.
    #[serde(default)]
    pub events: u64,
    /// How many cannot: they are of an earlier epoch.
    #[serde(default)]
    pub stale: u64,
}

impl Waiting {
    /// What begins at these places, while the journal is in that epoch.
    pub fn of<'a>(epoch: &str, places: impl IntoIterator<Item = &'a Position>) -> Self {
        let mut waiting = Self::default();
        for place in places {
            if place.epoch != epoch {
                waiting.stale += 1;
                continue;
            }
            waiting.events += 1;
            if waiting.first.as_ref().is_none_or(|first| place.seq < first.seq) {
                waiting.first = Some(place.clone());
            }
        }
        waiting
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The position to read on after, where the collector has everything up to `exported`; none if nothing before that waits.
    pub fn after(&self, exported: &Position) -> Option<Position> {
        let first = self.first.as_ref()?;
        let is_before = first.epoch == exported.epoch && first.seq <= exported.seq;
        is_before.then(|| Position { seq: first.seq.saturating_sub(1), ..first.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::position;

    #[test]
    fn a_restart_reads_from_where_the_first_begins() {
        let other = Position { epoch: "other".to_owned(), seq: 1 };
        let waiting = Waiting::of("e", &[position(9), other.clone(), position(4), position(7)]);
        assert_eq!(waiting, Waiting { first: Some(position(4)), events: 3, stale: 1 });
        assert_eq!(waiting.after(&position(20)), Some(position(3)));
        assert_eq!(waiting.after(&position(4)), Some(position(3)));
        assert_eq!(waiting.after(&position(3)), None, "it comes anyway");
        assert_eq!(waiting.after(&other), None, "numbers of two epochs do not compare");
        assert!(Waiting::of("e", &[]).is_empty() && !waiting.is_empty());
    }
}
