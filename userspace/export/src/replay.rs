//! What is read a second time, for Kubernetes Events alone: see [`crate::waiting`].
//!
//! Owns the rule that the collector gets no event again that it has answered for. Pure.

use std::borrow::Cow;

use kwitness_api::proto::event::Kind;
use kwitness_api::proto::{Event, Position};

use crate::record::is_of_watcher;
use crate::waiting::Waiting;

/// From the first of what waits up to where the collector is.
#[derive(Debug)]
pub struct Replay {
    exported: Position,
    /// How many there are to find.
    waiting: u64,
}

impl Replay {
    /// What is read again by an exporter that starts with that position and has this to wait for, and the position to read on after; none
    /// if nothing is.
    pub fn plan(exported: Option<&Position>, waiting: &Waiting) -> Option<(Self, Position)> {
        let exported = exported?;
        let after = waiting.after(exported)?;
        Some((Self::new(exported.clone(), waiting.events), after))
    }

    /// Up to that position.
    fn new(exported: Position, waiting: u64) -> Self {
        Self { exported, waiting }
    }

    /// How many are not found again, because of this event: it is a gap in their place.
    pub fn lost(&mut self, event: &Event) -> u64 {
        if is_of_watcher(event) { std::mem::take(&mut self.waiting) } else { 0 }
    }

    /// Whether what waited is lost: there is nothing left to find.
    pub fn is_lost(&self) -> bool {
        self.waiting == 0
    }

    /// Whether it is the last event that is read again: then what waited is found.
    pub fn is_last(&self, event: &Event) -> bool {
        let Some(position) = &event.position else { return false };
        position.epoch == self.exported.epoch && position.seq >= self.exported.seq
    }

    /// What of an event is new to the collector. Once something is, there is nothing more to replay.
    pub fn new_part<'a>(&self, event: &'a Event) -> Option<Cow<'a, Event>> {
        let exported = self.exported.seq;
        let position = event.position.as_ref();
        if position.is_none_or(|position| position.epoch != self.exported.epoch || position.seq > exported) {
            let mut event = Cow::Borrowed(event);
            if let Some(Kind::Gap(gap)) = &event.kind
                && let (Some(first), Some(last)) = (gap.first_seq, gap.last_seq)
                && is_of_watcher(&event)
                && (first..=last).contains(&exported)
                && let Some(Kind::Gap(gap)) = &mut event.to_mut().kind
            {
                gap.first_seq = Some(exported + 1);
                // Of a container's gap, not all in between were that container's.
                gap.lost.values_mut().for_each(|count| *count = (*count).min(last - exported));
            }
            return Some(event);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use kwitness_api::proto::{Deleted, Gap, GapCause};

    use super::*;
    use crate::testing::{named, position};

    fn gap(first: Option<u64>, last: u64) -> Event {
        let gap = Gap {
            cause: GapCause::ReplayExpired.into(),
            lost: first.map(|first| ("event".to_owned(), last + 1 - first)).into_iter().collect(),
            first_seq: first,
            last_seq: first.map(|_| last),
            ..Default::default()
        };
        named(last, Kind::Gap(gap))
    }

    #[test]
    fn the_collector_gets_what_is_after_its_position() {
        let replay = Replay::new(position(10), 2);
        let event = |seq| named(seq, Kind::Deleted(Deleted { actor: None }));
        assert_eq!(replay.new_part(&event(10)), None);
        assert_eq!([9, 10].map(|seq| replay.is_last(&event(seq))), [false, true]);
        assert_eq!(replay.new_part(&event(11)).as_deref(), Some(&event(11)));
        let mut other = event(3);
        other.position.as_mut().unwrap().epoch = "other".to_owned();
        assert_eq!(replay.new_part(&other).as_deref(), Some(&other));
        assert_eq!(replay.new_part(&gap(Some(5), 10)), None, "the collector has these");
        assert_eq!(replay.new_part(&gap(Some(5), 12)).as_deref(), Some(&gap(Some(11), 12)));
        assert_eq!(replay.new_part(&gap(Some(11), 12)).as_deref(), Some(&gap(Some(11), 12)));
    }

    #[test]
    fn what_a_gap_stands_for_is_lost_once() {
        let mut replay = Replay::new(position(10), 2);
        assert_eq!(replay.lost(&named(4, Kind::Deleted(Deleted { actor: None }))), 0);
        assert!(!replay.is_lost());
        assert_eq!((replay.lost(&gap(Some(3), 7)), replay.lost(&gap(Some(8), 9))), (2, 0));
        assert!(replay.is_lost());
        assert_eq!(Replay::new(position(10), 2).lost(&gap(None, 4)), 2, "another epoch");
    }
}
