//! A journal that one writes and many read independently. Both event services are made of it.
//!
//! ```text
//!  append ──▶ [ oldest … newest ] ──▶ read(cursor): clones up to a batch out, then unlocks
//!                 │
//!                 └── more items or bytes than the bounds: whoever has not read what goes misses it
//! ```
//!
//! What goes is the oldest item of the owner that holds most, as long as one holds more than its share (`SHARES`); what is left in its
//! place says so. Otherwise the oldest item of all goes. So an owner of many items costs no other one an item, and items that are
//! long past do not stay for being few.
//!
//! A reader has no queue: what waits for it is in the journal, which is bounded whatever the number of readers. Under the lock
//! runs nothing but pushing, popping and cloning a batch of cheap handles; never a client's filter.

use std::fmt::Debug;
use std::hash::Hash;
use std::num::NonZeroUsize;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use kwitness_core::journal::{Cursor, Epoch, GivenUp, Journal, Missed, Piece, Position};
use tokio::sync::watch;

use super::holdings::Holdings;

/// An owner's share is this part of the bounds, and an owner gives up an item for another's only if it holds more.
const SHARES: usize = 256;
/// It is at least what so many items weigh that are as large as the bounds allow on average.
const SHARE_MIN: usize = 64;

/// What a window keeps. Clones are cheap: they share what is large.
pub trait Item: Clone {
    /// Who can have a share of the window.
    type Owner: Copy + Debug + Hash + Ord;
    /// What is known beside the items, about those that are in the window.
    type Index: Default + Debug;
    /// Whose it is; none: it stays until it is the oldest.
    fn owner(&self) -> Option<Self::Owner>;
    /// The number of the oldest item of one that has more than one in the window.
    fn gives_up(owner: Self::Owner, index: &Self::Index) -> Option<u64>;
    /// The bytes that the window holds for this item alone.
    fn own_bytes(&self) -> usize;
    /// Takes the item with that number into the index; returns the bytes that the window holds because of it.
    fn enter(&self, seq: u64, index: &mut Self::Index) -> usize;
    /// Takes the item, its owner's oldest, out of the index; returns the bytes that the window no longer holds.
    fn leave(&self, index: &mut Self::Index) -> usize;
    /// The bytes that a reader gets.
    fn wire_bytes(&self) -> usize;
}

/// What a window holds at most. The newest item always stays.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// The most items.
    pub items: NonZeroUsize,
    /// Bytes of all items together.
    pub bytes: usize,
}

impl Capacity {
    /// The bytes that an item may have on average: what its place weighs, so that who holds many items and who holds many bytes
    /// compare.
    fn item_bytes(self) -> usize {
        self.bytes / self.items
    }
}

/// What one reading gives at most: so many items, or the first that exceeds so many bytes.
#[derive(Clone, Copy, Debug)]
pub struct BatchMax {
    /// The most items.
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
    journal: Journal<T, T::Owner>,
    index: T::Index,
    holdings: Holdings<T::Owner>,
    bytes: usize,
    bytes_max: usize,
}

/// What a reader gets.
#[derive(Debug)]
pub struct Read<T: Item> {
    /// What it missed before, if anything, and of which no more is known.
    pub missed: Option<Missed>,
    /// The items, and what was given up between them.
    pub pieces: Vec<Piece<T, T::Owner>>,
    /// Where to read on.
    pub next: Cursor,
}

/// The bytes in use, and the maximum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes in use.
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
        // Bytes, and places that weigh as much.
        let share = (2 * capacity.bytes / SHARES).max(2 * SHARE_MIN * capacity.item_bytes());
        let inner = Inner {
            journal: Journal::resumed(position, capacity.items),
            index: T::Index::default(),
            holdings: Holdings::new(share, capacity.item_bytes()),
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

    /// Goes on after items that an earlier window gave up. False if they do not follow the newest one.
    pub fn skip(&self, given_up: GivenUp<T::Owner>) -> bool {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let follows = inner.journal.skip(given_up);
        self.last.send_replace(inner.journal.last_seq());
        follows
    }

    /// Changes what is known beside the items.
    pub fn amend(&self, amend: impl FnOnce(&mut T::Index)) {
        amend(&mut self.inner.write().unwrap_or_else(PoisonError::into_inner).index);
    }

    /// Forgets every item. Numbers go on.
    pub fn clear(&self) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        while inner.pop() {}
    }

    /// A batch after a cursor; `each` may exchange an item for what the index knows.
    pub fn read(&self, after: Cursor, max: BatchMax, each: impl Fn(T, &T::Index) -> T) -> Read<T> {
        let inner = self.inner();
        let missed = inner.journal.missed(after);
        let mut next = missed.map_or(after, |missed| Cursor::after(missed.last));
        let (mut pieces, mut items, mut bytes) = (Vec::new(), 0, 0);
        for piece in inner.journal.after(after) {
            match piece {
                Piece::Item(seq, item) => {
                    let item = each(item.clone(), &inner.index);
                    (items, bytes) = (items + 1, bytes + item.wire_bytes());
                    next = Cursor::after(seq);
                    pieces.push(Piece::Item(seq, item));
                }
                Piece::GivenUp(given_up) => {
                    next = Cursor::after(given_up.last);
                    pieces.push(Piece::GivenUp(given_up));
                }
            }
            if items >= max.items.get() || bytes >= max.bytes {
                break;
            }
        }
        Read { missed, pieces, next }
    }

    /// Looks at the journal and the index. `look` runs under the lock: it takes time that no client determines.
    pub fn look<R>(&self, look: impl FnOnce(&Journal<T, T::Owner>, &T::Index) -> R) -> R {
        let inner = self.inner();
        look(&inner.journal, &inner.index)
    }

    /// The bytes in use.
    pub fn usage(&self) -> Usage {
        let inner = self.inner();
        Usage { bytes: inner.bytes(), max: inner.bytes_max }
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
    fn bytes(&self) -> usize {
        self.bytes + self.journal.given_up_bytes()
    }

    fn push(&mut self, item: T) {
        if self.journal.is_full() {
            self.make_room();
        }
        if let Some(owner) = item.owner() {
            self.holdings.take(owner, item.own_bytes());
        }
        self.bytes += item.enter(self.journal.last_seq() + 1, &mut self.index);
        self.journal.push(item);
        while self.bytes() > self.bytes_max && self.journal.len() > 1 {
            self.make_room();
        }
    }

    fn make_room(&mut self) {
        let Self { journal, index, holdings, .. } = self;
        let given_up = holdings.beyond_share().find_map(|owner| {
            let seq = T::gives_up(owner, index)?;
            journal.give_up(seq, owner)
        });
        if let Some(item) = given_up {
            self.left(&item);
        } else {
            self.pop();
        }
    }

    fn pop(&mut self) -> bool {
        let Some(oldest) = self.journal.pop_oldest() else { return false };
        self.left(&oldest);
        true
    }

    fn left(&mut self, item: &T) {
        if let Some(owner) = item.owner() {
            self.holdings.give_back(owner, item.own_bytes());
        }
        self.bytes -= item.leave(&mut self.index);
    }
}
