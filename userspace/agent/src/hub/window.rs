//! A journal that one writes and many read independently. Both event services are made of it.
//!
//! ```text
//!  append ──▶ [ oldest … newest ] ──▶ read(cursor): clones up to a batch out, then unlocks
//!                 │
//!                 └── more items or bytes than the bounds: the oldest go, whoever has not read them misses them
//! ```
//!
//! A reader has no queue: what waits for it is in the journal, which is bounded whatever the number of readers. Under the lock
//! runs nothing but pushing, popping and cloning a batch of cheap handles; never a client's filter.

use std::num::NonZeroUsize;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use kwitness_core::journal::{Cursor, Epoch, Journal, Missed, Position};
use tokio::sync::watch;

/// What a window keeps. Clones are cheap: they share what is large.
pub trait Item: Clone {
    /// What is known beside the items, about those that are in the window.
    type Index: Default + std::fmt::Debug;
    /// Takes the item with that number into the index; returns the bytes that the window holds because of it.
    fn enter(&self, seq: u64, index: &mut Self::Index) -> usize;
    /// Takes the item, the oldest, out of the index; returns the bytes that the window no longer holds.
    fn leave(&self, index: &mut Self::Index) -> usize;
    /// The bytes that a reader gets.
    fn wire_bytes(&self) -> usize;
}

/// What a window holds at most. The newest item always stays.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Items.
    pub items: NonZeroUsize,
    /// Bytes of all items together.
    pub bytes: usize,
}

/// What one reading gives at most: so many items, or the first that exceeds so many bytes.
#[derive(Clone, Copy, Debug)]
pub struct BatchMax {
    /// Items.
    pub items: NonZeroUsize,
    /// Bytes on the wire.
    pub bytes: usize,
}

/// The journal, shared.
#[derive(Debug)]
pub struct Window<T: Item> {
    inner: RwLock<Inner<T>>,
    /// The number of the last item; 0 before the first.
    last: watch::Sender<u64>,
}

#[derive(Debug)]
struct Inner<T: Item> {
    journal: Journal<T>,
    index: T::Index,
    bytes: usize,
    bytes_max: usize,
}

/// What a reader gets.
#[derive(Debug)]
pub struct Read<T> {
    /// What it missed before, if anything.
    pub missed: Option<Missed>,
    /// The items with their numbers.
    pub items: Vec<(u64, T)>,
    /// Where to read on.
    pub next: Cursor,
}

/// The bytes in use, and the maximum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// In use.
    pub bytes: usize,
    /// The maximum.
    pub max: usize,
}

impl<T: Item> Window<T> {
    /// An empty window.
    pub fn new(epoch: Epoch, capacity: Capacity) -> Self {
        Self::resumed(Position { epoch, seq: 0 }, capacity)
    }

    /// An empty window whose next item has the number after that place.
    pub fn resumed(position: Position, capacity: Capacity) -> Self {
        let last = position.seq;
        let inner = Inner {
            journal: Journal::resumed(position, capacity.items),
            index: T::Index::default(),
            bytes: 0,
            bytes_max: capacity.bytes,
        };
        Self { inner: RwLock::new(inner), last: watch::Sender::new(last) }
    }

    /// Appends items, and wakes the readers once.
    pub fn append(&self, items: impl IntoIterator<Item = T>) {
        let last = {
            let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
            for item in items {
                inner.push(item);
            }
            inner.journal.last_seq()
        };
        self.last.send_if_modified(|known| std::mem::replace(known, last) != last);
    }

    /// Forgets every item. Numbers go on.
    pub fn clear(&self) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        while inner.pop() {}
    }

    /// A batch after a cursor; `each` may exchange an item for what the index knows.
    pub fn read(&self, after: Cursor, max: BatchMax, each: impl Fn(T, &T::Index) -> T) -> Read<T> {
        let inner = self.inner();
        let batch = inner.journal.read(after, max.items);
        let (mut items, mut bytes) = (Vec::with_capacity(batch.items.len()), 0);
        let mut next = batch.next;
        for (seq, item) in (batch.first_seq..).zip(batch.items) {
            let item = each(item.clone(), &inner.index);
            bytes += item.wire_bytes();
            items.push((seq, item));
            if bytes >= max.bytes {
                next = Cursor::after(seq);
                break;
            }
        }
        Read { missed: batch.missed, items, next }
    }

    /// Looks at the journal and the index. `look` runs under the lock: it takes time that no client determines.
    pub fn look<R>(&self, look: impl FnOnce(&Journal<T>, &T::Index) -> R) -> R {
        let inner = self.inner();
        look(&inner.journal, &inner.index)
    }

    /// The bytes in use.
    pub fn usage(&self) -> Usage {
        let inner = self.inner();
        Usage { bytes: inner.bytes, max: inner.bytes_max }
    }

    /// The number of the last item, to wait for the next.
    pub fn last(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }

    /// How many wait for items.
    pub fn readers(&self) -> usize {
        self.last.receiver_count()
    }

    /// Nothing that could panic runs while the lock is held for writing: what it guards is whole.
    fn inner(&self) -> RwLockReadGuard<'_, Inner<T>> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Item> Inner<T> {
    fn push(&mut self, item: T) {
        if self.journal.is_full() {
            self.pop();
        }
        self.bytes += item.enter(self.journal.last_seq() + 1, &mut self.index);
        self.journal.push(item);
        while self.bytes > self.bytes_max && self.journal.len() > 1 {
            self.pop();
        }
    }

    fn pop(&mut self) -> bool {
        let Some(oldest) = self.journal.pop_oldest() else { return false };
        self.bytes -= oldest.leave(&mut self.index);
        true
    }
}
