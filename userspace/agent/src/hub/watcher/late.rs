//! What a watcher that asks for names gets of the time before they were known: a container's events, delivered late, or a gap where
//! the journal no longer has them.
//!
//! ```text
//!  unnamed  unnamed  updated  …     the `updated` event makes the container match: those before are delivered, then itself
//!  └── given up ──┘  └ kept         one gap for them, right before the late ones that are left
//!  └────── given up ───────┘        one gap for all of them, where the watcher comes across the place of the `updated` event
//! ```
//!
//! Decides in one place which of the two gaps stands for what was given up ([`Watcher::comes_late`]).

use std::sync::Arc;

use kwitness_api::{EventKind, proto};
use kwitness_core::journal::{GivenUp, Missed};
use kwitness_core::model::{CgroupId, KernelTime};

use super::super::batch::Item;
use super::super::names::Gone;
use super::super::{EncodedSubject, Entry, window};
use super::{BATCH, Matching, Watcher};

/// Where the late delivery of a container's events stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Late {
    of: CgroupId,
    next: u64,
    /// The time of the event with that number, or of the last one that was delivered late, if it is known.
    at: Option<KernelTime>,
    /// The number of the `updated` event that they come before.
    before: u64,
}

/// A container of which events were given up, as it is known by now.
struct Known {
    latest: Arc<EncodedSubject>,
    /// The number of the oldest event that is left of it, and that event.
    oldest: (u64, Entry),
    gone: Option<Gone>,
}

impl Watcher {
    /// Says whose events are no longer there, of those that the watcher asks for.
    pub(super) fn given_up(&self, given_up: &GivenUp<CgroupId>, next: Option<&Entry>, items: &mut Vec<Item>) {
        let is_over = self.last_seq.is_some_and(|last| given_up.first > last) || self.remaining == Some(0);
        if is_over || self.until.is_some_and(|(until, _)| self.last_at.is_some_and(|at| at > until)) {
            return;
        }
        let of: Vec<_> = self.hub.window.look(|journal, names| {
            let known = |container| {
                let (latest, oldest) = names.of(container)?;
                let oldest = (oldest, journal.get(oldest)?.clone());
                Some(Known { latest: latest.clone(), oldest, gone: names.gone(container) })
            };
            given_up.of.iter().map(|(container, count)| (container.and_then(known), *count)).collect()
        });
        let is_wanted = |of: &Known| of.latest.matches(&self.filter) && !self.comes_late(of, given_up.last);
        let mut wanted: Vec<_> = of.into_iter().filter(|(of, _)| of.as_ref().is_none_or(is_wanted)).collect();
        // Each has a number of its own, the last ones: whoever resumes after one of them gets the others.
        let room = usize::try_from(given_up.last - given_up.first + 1).unwrap_or(usize::MAX);
        let wanted = wanted.split_off(wanted.len().saturating_sub(room));
        let first = given_up.last + 1 - wanted.len() as u64;
        for (seq, (of, count)) in (first..=given_up.last).zip(wanted) {
            let missed = Missed { first: given_up.first, last: given_up.last };
            let before = of.as_ref().and_then(|of| self.owed_before(of, &missed));
            let gap = match before {
                None => self.gap(missed, count, self.last_at, next),
                Some(before) => {
                    let missed = Missed { first: before.first, ..missed };
                    // Of a part of what was given up, the count is an upper bound.
                    let count = (before.count + count).min(missed.last + 1 - missed.first);
                    self.gap(missed, count, None, next)
                }
            };
            let container = of.and_then(|of| of.latest.container());
            items.push(Item::Own(Box::new(proto::Event { container, ..self.hub.own_event(seq, gap) })));
        }
    }

    /// Whether the gap for a container's events that were given up, the last with that number, comes later: with its names.
    fn comes_late(&self, of: &Known, last: u64) -> bool {
        let Some(gone) = of.gone.filter(|_| self.waits_for_names(&of.latest)) else { return false };
        let (oldest, entry) = &of.oldest;
        let is_read = |seq: u64| self.last_seq.is_none_or(|end| seq <= end);
        match gone.named {
            Some(named) => named > last && is_read(named),
            None if entry.kind == EventKind::Updated => {
                is_read(*oldest) && self.until.is_none_or(|(until, _)| entry.at <= until)
            }
            None => !entry.subject.as_ref().is_some_and(|of| of.matches(&self.filter)),
        }
    }

    /// Where the event that named a container was given up: what the watcher did not get before, because the container had no names,
    /// and will not get late.
    fn owed_before(&self, of: &Known, given_up: &Missed) -> Option<Gone> {
        let gone = of.gone.filter(|gone| is_named_in(gone, given_up))?;
        self.owed(gone, &of.latest)?.until(given_up.first - 1)
    }

    /// Whether a container's events without its names do not match, and those with them may.
    fn waits_for_names(&self, of: &EncodedSubject) -> bool {
        !self.resolve_names && self.filter.asks_for_names() && !of.matches_unnamed(&self.filter)
    }

    /// Of the events that have left the journal without their container's names, those that the watcher has neither got nor a gap for.
    fn owed(&self, gone: Gone, of: &EncodedSubject) -> Option<Gone> {
        let gone = gone.from(self.first_seq).filter(|_| self.waits_for_names(of))?;
        match &self.missed {
            Some(missed) => gone.without(missed),
            None => Some(gone),
        }
    }

    /// The first of a container's events, before the `updated` event with the number `before`, whose subject was not yet known
    /// to be one that the watcher asks for.
    pub(super) fn late_start(&mut self, subject: &EncodedSubject, before: u64) -> Option<Late> {
        if self.resolve_names || !self.filter.asks_for_names() || self.late_before >= before {
            return None;
        }
        self.late_before = before;
        let of = subject.subject.cgroup_id;
        let (mut start, mut at, mut found_all) = (before, None, false);
        while !found_all {
            let range = self.first_seq..start;
            let newest_first: Vec<(u64, Entry)> = self.hub.window.look(|journal, names| {
                let seqs = names.events(of, range).rev().take(BATCH.items.get());
                seqs.filter_map(|seq| Some((seq, journal.get(seq)?.clone()))).collect()
            });
            if newest_first.is_empty() {
                break;
            }
            let mut matching = Matching::default();
            found_all = newest_first.iter().any(|(seq, entry)| {
                let delivered = entry.subject.as_ref().is_some_and(|of| matching.matches(&self.filter, of));
                if !delivered {
                    (start, at) = (*seq, Some(entry.at));
                }
                delivered || entry.kind == EventKind::Created
            });
        }
        let gone = self.hub.window.look(|_, names| names.gone(of));
        // Where events with the names were given up, the gap in their place stands for those before, too.
        let comes_after_names = |gone: &Gone| {
            gone.named.is_none() || self.missed.is_some_and(|missed| is_named_in(gone, &missed))
        };
        let gone = gone.filter(comes_after_names).and_then(|gone| self.owed(gone, subject));
        if let Some(gone) = gone.filter(|gone| !found_all && gone.first < start) {
            (start, at) = (gone.first, None);
        }
        (start < before).then_some(Late { of, next: start, at, before })
    }

    pub(super) fn read_late(&mut self, late: Late) -> Vec<Item> {
        let Late { of, next, at, before } = late;
        let (first_kept, latest, gone, entries, is_cut) = self.hub.window.look(|journal, names| {
            let (mut entries, mut bytes) = (Vec::new(), 0);
            for seq in names.events(of, next..before).take(BATCH.items.get()) {
                let Some(entry) = journal.get(seq) else { continue };
                bytes += window::Item::wire_bytes(entry);
                entries.push((seq, entry.clone()));
                if bytes >= BATCH.bytes {
                    break;
                }
            }
            let is_cut = entries.len() == BATCH.items.get() || bytes >= BATCH.bytes;
            let latest = names.of(of).map(|(latest, _)| latest.clone());
            (journal.first_seq(), latest, names.gone(of), entries, is_cut)
        });
        let mut items = Vec::with_capacity(entries.len() + 1);
        // It is not known of all if the container had no event there for a while.
        let gone = gone.filter(|gone| gone.first <= next).zip(latest.as_deref());
        let gone = gone.and_then(|(gone, latest)| self.owed(gone, latest)?.from(next));
        if gone.is_some() || first_kept > next {
            let last = gone.map_or(first_kept - 1, |gone| gone.last).min(before - 1);
            let missed = Missed { first: next, last };
            let count = gone.map_or(last - next + 1, |gone| gone.count);
            // What was read last is later than they were.
            let gap = self.gap(missed, count, at, entries.first().map(|(_, entry)| entry));
            let container = gone.and(latest).and_then(|latest| latest.container());
            let event = proto::Event { container, ..self.hub.own_event(missed.last, gap) };
            items.push(Item::Own(Box::new(event)));
        }
        if let Some((last, entry)) = entries.last().filter(|_| is_cut) {
            self.late = Some(Late { of, next: last + 1, at: Some(entry.at), before });
        }
        for (seq, entry) in entries {
            if self.remaining == Some(0) {
                break;
            }
            if self.until.is_none_or(|(until, _)| entry.at <= until) {
                self.deliver(seq, entry, &mut items);
            }
        }
        items
    }
}

/// Whether the first event with the names is in that range.
fn is_named_in(gone: &Gone, range: &Missed) -> bool {
    gone.named.is_some_and(|named| (range.first..=range.last).contains(&named))
}
