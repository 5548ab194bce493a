//! Events numbered, and a bounded window of them kept for whoever reads later.
//!
//! A reader is a [`Cursor`], nothing more: it takes what is there in batches, at its own pace. The journal never
//! waits for one. A reader that falls behind the window learns exactly which numbers it missed, and goes on with
//! the oldest that is left.
//!
//! ```text
//!  … expired │ kept │ given up: 2 of a, 1 of b │ kept │ kept │ given up: 1 of a │ kept │
//!            └ first_seq                                                  last_seq ┘
//! ```
//!
//! An event in the middle can be given up for others' sake. In its place it is remembered whose it was, so that a reader learns
//! there who lost how many.
//!
//! Never decides whose event goes. Never knows what it keeps, never locks: whoever shares it puts it behind a lock.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The name of one run of the daemon; numbers of two epochs do not compare.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub Arc<str>);

/// A place in a journal: that of the event with this number; 0 is the place before the first.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Position {
    /// Whose numbers.
    pub epoch: Epoch,
    /// The number.
    pub seq: u64,
}

/// How far a reader has come: it stands after the event with this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor(u64);

impl Cursor {
    /// After the event with that number.
    pub fn after(seq: u64) -> Self {
        Self(seq)
    }

    /// The number of the last event read; 0 before the first.
    pub fn seq(self) -> u64 {
        self.0
    }
}

/// Owners that are distinguished among adjacent events that were given up; those of further ones are counted without a name.
const OWNERS: usize = 8;
/// Slots of events that were given up may be so many more before adjacent ones are put together, and an eighth of all.
const SCATTERED: usize = 64;

/// Events that a reader can no longer have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missed {
    /// The first of them.
    pub first: u64,
    /// The last of them.
    pub last: u64,
}

/// Why a reader cannot go on from a position.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ResumeError {
    /// It is another run's.
    #[error("epoch {requested} is over: the daemon was restarted since, its epoch is {current}", requested = requested.0, current = current.0)]
    OtherEpoch {
        /// The position's.
        requested: Epoch,
        /// This journal's.
        current: Epoch,
    },
    /// No event has had that number yet.
    #[error("sequence number {requested} has not been issued: the last one is {last}")]
    NotYet {
        /// The position's.
        requested: u64,
        /// The journal's last.
        last: u64,
    },
}

/// Adjacent events that were given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenUp<O> {
    /// The number of the first of them.
    pub first: u64,
    /// The number of the last of them.
    pub last: u64,
    /// Whose they were, and how many; none: of owners that are not distinguished. For a reader that has come to a place between the
    /// first and the last, these are upper bounds.
    pub of: Vec<(Option<O>, u64)>,
}

/// What a reader comes across.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece<T, O> {
    /// An event, with its number.
    Item(u64, T),
    /// The place of events that were given up.
    GivenUp(GivenUp<O>),
}

/// A bounded window of numbered events.
#[derive(Debug)]
pub struct Journal<T, O> {
    epoch: Epoch,
    /// The number of the last event pushed; 0 before the first.
    last: u64,
    /// Each number from the first slot's on is in one of them.
    slots: VecDeque<Slot<T, O>>,
    kept: usize,
    /// Events given up since adjacent ones were put together.
    scattered: usize,
    /// Bytes that [`Slot::Many`] has beside the slots.
    beside: usize,
    capacity: NonZeroUsize,
}

#[derive(Debug)]
enum Slot<T, O> {
    Kept(u64, T),
    One(u64, O),
    Many(Box<GivenUp<O>>),
}

impl<T, O: Copy + Eq> Journal<T, O> {
    /// An empty journal; `capacity` events stay readable, the oldest goes when one more comes.
    pub fn new(epoch: Epoch, capacity: NonZeroUsize) -> Self {
        Self { epoch, last: 0, slots: VecDeque::new(), kept: 0, scattered: 0, beside: 0, capacity }
    }

    /// An empty journal whose next event has the number after that place.
    pub fn resumed(position: Position, capacity: NonZeroUsize) -> Self {
        Self { last: position.seq, ..Self::new(position.epoch, capacity) }
    }

    /// Appends an event, and gives its number: 1, 2, 3, …
    pub fn push(&mut self, item: T) -> u64 {
        if self.is_full() {
            self.pop_oldest();
        }
        self.last += 1;
        self.slots.push_back(Slot::Kept(self.last, item));
        self.kept += 1;
        self.last
    }

    /// Goes on after events that were given up elsewhere: those that follow the newest one. False if they do not.
    pub fn skip(&mut self, given_up: GivenUp<O>) -> bool {
        if given_up.first != self.last + 1 || given_up.last < given_up.first {
            return false;
        }
        self.last = given_up.last;
        let slot = match given_up.of[..] {
            [(Some(owner), 1)] if given_up.first == given_up.last => Slot::One(given_up.first, owner),
            _ => Slot::Many(Box::new(given_up)),
        };
        match self.slots.back_mut().filter(|before| !before.is_kept()) {
            Some(before) => {
                self.beside -= before.beside();
                before.join(&slot);
                self.beside += before.beside();
            }
            None => {
                self.beside += slot.beside();
                self.slots.push_back(slot);
            }
        }
        true
    }

    /// Whose numbers these are.
    pub fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    /// The oldest event, which is no longer readable then; what was given up before it is forgotten.
    pub fn pop_oldest(&mut self) -> Option<T> {
        while let Some(slot) = self.slots.pop_front() {
            self.beside -= slot.beside();
            if let Slot::Kept(_, item) = slot {
                self.kept -= 1;
                return Some(item);
            }
        }
        None
    }

    /// The event with that number, which is no longer readable then: it is given up for being that owner's.
    pub fn give_up(&mut self, seq: u64, owner: O) -> Option<T> {
        let index = self.index(seq)?;
        let slot = self.slots.get_mut(index).filter(|slot| slot.is_kept())?;
        let Slot::Kept(_, item) = std::mem::replace(slot, Slot::One(seq, owner)) else { return None };
        self.kept -= 1;
        self.scattered += 1;
        if index == 1 && !self.slots[0].is_kept() {
            // One owner has nearly all.
            self.slots.remove(1);
            self.beside -= self.slots[0].beside();
            self.slots[0].join(&Slot::One(seq, owner));
            self.beside += self.slots[0].beside();
            self.scattered -= 1;
        }
        if self.scattered > SCATTERED + self.slots.len() / 8 {
            self.put_together();
        }
        Some(item)
    }

    /// The event with that number, if it is still there.
    pub fn get(&self, seq: u64) -> Option<&T> {
        self.slots.get(self.index(seq)?)?.item()
    }

    /// The oldest event that is readable.
    pub fn oldest(&self) -> Option<&T> {
        self.slots.iter().find_map(Slot::item)
    }

    /// How many events are readable.
    pub fn len(&self) -> usize {
        self.kept
    }

    /// Whether no event is readable.
    pub fn is_empty(&self) -> bool {
        self.kept == 0
    }

    /// Whether one more event makes the oldest go.
    pub fn is_full(&self) -> bool {
        self.kept == self.capacity.get()
    }

    /// How many events stay readable at most.
    pub fn capacity(&self) -> NonZeroUsize {
        self.capacity
    }

    /// The bytes that the memory of what was given up takes.
    pub fn given_up_bytes(&self) -> usize {
        (self.slots.len() - self.kept) * size_of::<Slot<T, O>>() + self.beside
    }

    /// The oldest number that is readable, or of which it is known whose it was; one more than [`Self::last_seq`] when there is none.
    pub fn first_seq(&self) -> u64 {
        self.slots.front().map_or(self.last + 1, Slot::first)
    }

    /// The number of the newest event; 0 before the first.
    pub fn last_seq(&self) -> u64 {
        self.last
    }

    /// The place of the newest event.
    pub fn position(&self) -> Position {
        Position { epoch: self.epoch.clone(), seq: self.last }
    }

    /// A reader of what comes from now on.
    pub fn end(&self) -> Cursor {
        Cursor(self.last)
    }

    /// A reader of all that the window holds.
    pub fn start(&self) -> Cursor {
        Cursor(self.first_seq() - 1)
    }

    /// A reader that goes on after a position. That its next events are no longer there is no error: [`Self::missed`] and
    /// [`Self::after`] say which.
    pub fn resume(&self, after: &Position) -> Result<Cursor, ResumeError> {
        if after.epoch != self.epoch {
            return Err(ResumeError::OtherEpoch {
                requested: after.epoch.clone(),
                current: self.epoch.clone(),
            });
        }
        if after.seq > self.last {
            return Err(ResumeError::NotYet { requested: after.seq, last: self.last });
        }
        Ok(Cursor(after.seq))
    }

    /// A reader of the window's first event that passes the test, and of all that come after it; of what comes
    /// from now on if none does. What was given up right before that event may have passed the test, too: the reader learns of it.
    ///
    /// Looks at one event after the other, for times are not strictly ordered.
    pub fn since(&self, mut test: impl FnMut(&T) -> bool) -> Cursor {
        let mut before = self.start();
        for slot in &self.slots {
            if let Slot::Kept(seq, item) = slot {
                if test(item) {
                    return before;
                }
                before = Cursor(*seq);
            }
        }
        self.end()
    }

    /// What a reader has missed of which no more is known than that.
    pub fn missed(&self, after: Cursor) -> Option<Missed> {
        let (first, known) = (after.0 + 1, self.first_seq());
        (first < known).then(|| Missed { first, last: known - 1 })
    }

    /// What comes after a cursor, in the order of the numbers.
    pub fn after(&self, cursor: Cursor) -> impl Iterator<Item = Piece<&T, O>> {
        let next = (cursor.0 + 1).max(self.first_seq());
        let begin = self.index(next).unwrap_or(self.slots.len());
        let mut slots = self.slots.range(begin..).peekable();
        std::iter::from_fn(move || {
            let mut given_up = match slots.next()? {
                Slot::Kept(seq, item) => return Some(Piece::Item(*seq, item)),
                Slot::One(seq, owner) => GivenUp::one(*seq, *owner),
                Slot::Many(many) => many.after(cursor.0),
            };
            while let Some(more) = slots.next_if(|slot| !slot.is_kept()) {
                given_up.join(more);
            }
            Some(Piece::GivenUp(given_up))
        })
    }

    /// Where the slot of a number is.
    fn index(&self, seq: u64) -> Option<usize> {
        let offset = usize::try_from(seq.checked_sub(self.first_seq())?).ok()?;
        // There it is where nothing was given up.
        if self.slots.get(offset).is_some_and(|slot| slot.first() == seq) {
            return Some(offset);
        }
        (seq <= self.last).then(|| self.slots.partition_point(|slot| slot.first() <= seq) - 1)
    }

    /// Makes adjacent events that were given up one slot.
    fn put_together(&mut self) {
        let mut end = 0_usize;
        for index in 0..self.slots.len() {
            let mut both = self.slots.range_mut(end.saturating_sub(1)..=index);
            match (both.next(), both.next_back()) {
                (Some(before), Some(slot)) if !before.is_kept() && !slot.is_kept() => before.join(slot),
                _ => {
                    self.slots.swap(end, index);
                    end += 1;
                }
            }
        }
        self.slots.truncate(end);
        self.scattered = 0;
        self.beside = self.slots.iter().map(Slot::beside).sum();
    }
}

impl<T, O: Copy + Eq> Slot<T, O> {
    fn first(&self) -> u64 {
        match self {
            Self::Kept(seq, _) | Self::One(seq, _) => *seq,
            Self::Many(many) => many.first,
        }
    }

    fn is_kept(&self) -> bool {
        matches!(self, Self::Kept(..))
    }

    fn item(&self) -> Option<&T> {
        match self {
            Self::Kept(_, item) => Some(item),
            Self::One(..) | Self::Many(_) => None,
        }
    }

    /// Adds what was given up right after what was given up here.
    fn join(&mut self, next: &Self) {
        if let Self::One(seq, owner) = *self {
            *self = Self::Many(Box::new(GivenUp::one(seq, owner)));
        }
        if let Self::Many(many) = self {
            many.join(next);
        }
    }

    fn beside(&self) -> usize {
        match self {
            Self::Kept(..) | Self::One(..) => 0,
            Self::Many(many) => size_of::<GivenUp<O>>() + many.of.capacity() * size_of::<(Option<O>, u64)>(),
        }
    }
}

impl<O: Copy + Eq> GivenUp<O> {
    fn one(seq: u64, owner: O) -> Self {
        Self { first: seq, last: seq, of: vec![(Some(owner), 1)] }
    }

    fn join<T>(&mut self, next: &Slot<T, O>) {
        match next {
            Slot::Kept(..) => {}
            Slot::One(seq, owner) => {
                self.last = *seq;
                self.add(Some(*owner), 1);
            }
            Slot::Many(many) => {
                self.last = many.last;
                many.of.iter().for_each(|(owner, count)| self.add(*owner, *count));
            }
        }
    }

    fn add(&mut self, owner: Option<O>, count: u64) {
        let is_known = self.of.iter().any(|(known, _)| *known == owner);
        let owner = owner.filter(|_| is_known || self.of.len() < OWNERS);
        match self.of.iter_mut().find(|(known, _)| *known == owner) {
            Some((_, known)) => *known += count,
            None => self.of.push((owner, count)),
        }
    }

    /// As much of it as comes after a number before its last. Of the last numbers, which a reader gives its own gaps, whoever comes back
    /// may have heard of some owners and not of the others, of whom all counts then.
    fn after(&self, seq: u64) -> Self {
        let left = self.last - seq.max(self.first - 1);
        let most = if left > OWNERS as u64 { left } else { u64::MAX };
        let of = self.of.iter().map(|(owner, count)| (*owner, most.min(*count))).collect();
        Self { first: self.first.max(seq + 1), last: self.last, of }
    }
}
