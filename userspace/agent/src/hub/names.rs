//! What the journal's window knows of each container that it has events of: their numbers, those that have left it, and the names
//! known by now.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use kwitness_core::journal::Missed;
use kwitness_core::model::CgroupId;

use super::subject::EncodedSubject;

/// Numbers of events that a container may have room for.
const ROOM: usize = 16;

/// The containers of the window's events.
#[derive(Debug, Default)]
pub(super) struct Names(HashMap<CgroupId, Named>);

#[derive(Debug)]
struct Named {
    /// Of the newest event. It leaves the window last.
    latest: Arc<EncodedSubject>,
    /// The numbers of the container's events, ascending.
    events: VecDeque<u64>,
    gone: Option<Gone>,
}

/// A container's events that have left the window since it had none of it, and were without its names: no others come late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gone {
    /// The number of the first.
    pub(super) first: u64,
    /// The number of the last.
    pub(super) last: u64,
    /// How many there are.
    pub(super) count: u64,
    /// The number of the first one with the names, if one has left after them.
    pub(super) named: Option<u64>,
}

impl Gone {
    /// Those from a number on, at most.
    pub(super) fn from(self, seq: u64) -> Option<Self> {
        let first = self.first.max(seq);
        let most = (self.last + 1).checked_sub(first).filter(|most| *most > 0)?;
        Some(Self { first, count: self.count.min(most), ..self })
    }

    /// Those up to a number, at most.
    pub(super) fn until(self, seq: u64) -> Option<Self> {
        let last = self.last.min(seq);
        let most = (last + 1).checked_sub(self.first).filter(|most| *most > 0)?;
        Some(Self { last, count: self.count.min(most), ..self })
    }

    /// Those outside of a range, at most.
    pub(super) fn without(self, range: &Missed) -> Option<Self> {
        match (self.until(range.first - 1), self.from(range.last + 1)) {
            (Some(before), Some(after)) => {
                Some(Self { count: self.count.min(before.count + after.count), ..self })
            }
            (before, after) => before.or(after),
        }
    }

    /// Those and others.
    pub(super) fn and(self, other: Self) -> Self {
        let (first, last) = (self.first.min(other.first), self.last.max(other.last));
        Self { first, last, count: self.count + other.count, named: self.named.or(other.named) }
    }
}

impl Names {
    pub(super) fn enter(&mut self, seq: u64, subject: &Arc<EncodedSubject>) {
        let named = self.0.entry(subject.subject.cgroup_id).or_insert_with(|| Named {
            latest: subject.clone(),
            events: VecDeque::new(),
            gone: None,
        });
        named.events.push_back(seq);
        if !Arc::ptr_eq(&named.latest, subject) {
            named.latest = subject.clone();
        }
    }

    pub(super) fn leave(&mut self, subject: &EncodedSubject) {
        let Some(named) = self.0.get_mut(&subject.subject.cgroup_id) else { return };
        let seq = named.events.pop_front();
        // What it had room for when it filled the window is counted for no event any more.
        if named.events.capacity() > 4 * named.events.len().max(ROOM) {
            named.events.shrink_to(2 * named.events.len());
        }
        if named.events.is_empty() {
            self.0.remove(&subject.subject.cgroup_id);
        } else if let Some(seq) = seq {
            match (&mut named.gone, &subject.subject.facts) {
                (Some(gone), Some(_)) => gone.named = gone.named.or(Some(seq)),
                (None, Some(_)) => {}
                (gone, None) => {
                    let before = gone.unwrap_or(Gone { first: seq, last: seq, count: 0, named: None });
                    *gone = Some(Gone { last: seq, count: before.count + 1, ..before });
                }
            }
        }
    }

    /// The number of the oldest event of a container that has more than one.
    pub(super) fn gives_up(&self, of: CgroupId) -> Option<u64> {
        let events = &self.0.get(&of)?.events;
        events.front().copied().filter(|_| events.len() > 1)
    }

    /// Events of a container had left an earlier window, before those that it has in this one.
    pub(super) fn had_left(&mut self, of: CgroupId, earlier: Gone) {
        let Some(named) = self.0.get_mut(&of) else { return };
        named.gone = Some(named.gone.map_or(earlier, |gone| gone.and(earlier)));
    }

    /// What has left the window of a container's events.
    pub(super) fn gone(&self, of: CgroupId) -> Option<Gone> {
        self.0.get(&of)?.gone
    }

    /// What is known by now of a container, and the number of its oldest event.
    pub(super) fn of(&self, container: CgroupId) -> Option<(&Arc<EncodedSubject>, u64)> {
        let named = self.0.get(&container)?;
        Some((&named.latest, *named.events.front()?))
    }

    /// What is known of the same container by now; none: nothing, it has no event in the window.
    pub(super) fn latest(&self, of: &EncodedSubject) -> Option<&Arc<EncodedSubject>> {
        self.0.get(&of.subject.cgroup_id).map(|named| &named.latest)
    }

    /// The numbers of a container's events from one number to before another, ascending.
    pub(super) fn events(
        &self,
        of: CgroupId,
        range: std::ops::Range<u64>,
    ) -> impl DoubleEndedIterator<Item = u64> {
        let events = self.0.get(&of).map(|named| &named.events);
        let place = |seq: u64| events.map_or(0, |events| events.partition_point(|event| *event < seq));
        let (from, to) = (place(range.start), place(range.end));
        events.into_iter().flat_map(move |events| events.range(from..to.max(from)).copied())
    }
}
