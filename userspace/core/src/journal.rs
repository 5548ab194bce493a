//! Events numbered, and a bounded window of them kept for whoever reads later.
//!
//! A reader is a [`Cursor`], nothing more: it takes what is there in batches, at its own pace. The journal never
//! waits for one. A reader that falls behind the window learns exactly which numbers it missed, and goes on with
//! the oldest that is left.
//!
//! Never knows what it keeps, never locks: whoever shares it puts it behind a lock.

use std::collections::{VecDeque, vec_deque};
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

/// What a reader gets.
#[derive(Debug)]
pub struct Batch<'a, T> {
    /// What it missed before, if anything.
    pub missed: Option<Missed>,
    /// The number of the first of `items`.
    pub first_seq: u64,
    /// Events in the order of their numbers, without holes.
    pub items: vec_deque::Iter<'a, T>,
    /// Where to read on.
    pub next: Cursor,
}

/// A bounded window of numbered events.
#[derive(Debug)]
pub struct Journal<T> {
    epoch: Epoch,
    /// The number of the last event pushed; 0 before the first.
    last: u64,
    window: VecDeque<T>,
    capacity: NonZeroUsize,
}

impl<T> Journal<T> {
    /// An empty journal; `capacity` events stay readable, the oldest goes when one more comes.
    pub fn new(epoch: Epoch, capacity: NonZeroUsize) -> Self {
        Self { epoch, last: 0, window: VecDeque::new(), capacity }
    }

    /// An empty journal whose next event has the number after that place.
    pub fn resumed(position: Position, capacity: NonZeroUsize) -> Self {
        Self { last: position.seq, ..Self::new(position.epoch, capacity) }
    }

    /// Appends an event, and gives its number: 1, 2, 3, …
    pub fn push(&mut self, item: T) -> u64 {
        if self.window.len() == self.capacity.get() {
            self.window.pop_front();
        }
        self.window.push_back(item);
        self.last += 1;
        self.last
    }

    /// Whose numbers these are.
    pub fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    /// The oldest event, which is no longer readable then.
    pub fn pop_oldest(&mut self) -> Option<T> {
        self.window.pop_front()
    }

    /// The event with that number, if it is still there.
    pub fn get(&self, seq: u64) -> Option<&T> {
        self.window.get(usize::try_from(seq.checked_sub(self.first_seq())?).ok()?)
    }

    /// How many events are readable.
    pub fn len(&self) -> usize {
        self.window.len()
    }

    /// Whether no event is readable.
    pub fn is_empty(&self) -> bool {
        self.window.is_empty()
    }

    /// Whether one more event makes the oldest go.
    pub fn is_full(&self) -> bool {
        self.window.len() == self.capacity.get()
    }

    /// How many events stay readable at most.
    pub fn capacity(&self) -> NonZeroUsize {
        self.capacity
    }

    /// The number of the oldest event that can be read; one more than [`Self::last_seq`] when there is none.
    pub fn first_seq(&self) -> u64 {
        self.last - self.window.len() as u64 + 1
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

    /// A reader that goes on after a position. That its next events are no longer there is no error: the first
    /// [`Self::read`] says which are missed.
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
    /// from now on if none does.
    ///
    /// Looks at one event after the other, for times are not strictly ordered.
    pub fn since(&self, test: impl FnMut(&T) -> bool) -> Cursor {
        match self.window.iter().position(test) {
            Some(index) => Cursor(self.first_seq() - 1 + index as u64),
            None => self.end(),
        }
    }

    /// Up to `max` events after a cursor.
    pub fn read(&self, after: Cursor, max: NonZeroUsize) -> Batch<'_, T> {
        let first_kept = self.first_seq();
        let missed = (after.0 + 1 < first_kept).then(|| Missed { first: after.0 + 1, last: first_kept - 1 });
        let first_seq = (after.0 + 1).max(first_kept);
        let skip = usize::try_from(first_seq - first_kept).unwrap_or(usize::MAX).min(self.window.len());
        let end = skip.saturating_add(max.get()).min(self.window.len());
        let items = self.window.range(skip..end);
        let next = Cursor(first_seq - 1 + items.len() as u64);
        Batch { missed, first_seq, items, next }
    }
}
