//! Who gets the events: readers of one [`Window`], which also serves one that comes back.
//!
//! Every subscriber gets everything from its subscription on. One that does not read delays no other: it holds at most one batch, and once
//! the window has moved on without it, its stream ends with `RESOURCE_EXHAUSTED`. Ending is the honest way: the CRI has no word
//! for "some events are missing", and a kubelet whose stream ends lists everything at once and subscribes again.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use kwitness_core::journal::{Cursor, Epoch, Journal, Piece};
use tokio::sync::{Notify, watch};

use crate::hub::window::{BatchMax, Capacity, Item, Window};

/// Events that wait at most, for all subscribers together; the kubelet's own queue has 1000 places. An event has the statuses of a
/// whole pod, mostly some kilobytes.
const CAPACITY: Capacity = Capacity { items: NonZeroUsize::new(4096).expect("not zero"), bytes: 16 << 20 };
/// What a subscriber takes out at a time.
const BATCH: BatchMax = BatchMax { items: NonZeroUsize::new(64).expect("not zero"), bytes: 256 << 10 };

/// All subscribers.
#[derive(Debug)]
pub(super) struct Subscribers {
    window: Arc<Window<Event>>,
    session: Mutex<Session>,
    came: Notify,
    /// Streams that were ended because they were not read.
    ended: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Session {
    /// What the next session begins with, by the wall clock.
    since: Option<i64>,
    is_on: bool,
}

#[derive(Clone, Debug)]
struct Event {
    /// By the wall clock.
    at: i64,
    bytes: Bytes,
}

impl Item for Event {
    /// Of no one: what one subscriber does not get, it has to list, whosever it is.
    type Owner = Infallible;
    type Index = ();

    fn owner(&self) -> Option<Infallible> {
        None
    }

    fn gives_up(owner: Infallible, (): &()) -> Option<u64> {
        match owner {}
    }

    fn own_bytes(&self) -> usize {
        self.wire_bytes()
    }

    fn enter(&self, _: u64, (): &mut ()) -> usize {
        self.wire_bytes()
    }

    fn leave(&self, (): &mut ()) -> usize {
        self.wire_bytes()
    }

    fn wire_bytes(&self) -> usize {
        size_of::<Self>() + self.bytes.len()
    }
}

/// A subscriber's place in the window.
#[derive(Debug)]
pub(super) struct Subscription {
    window: Arc<Window<Event>>,
    cursor: Cursor,
    changed: watch::Receiver<u64>,
    /// Taken out of the window.
    ready: VecDeque<Bytes>,
    ended: Arc<AtomicU64>,
    lagged: bool,
}

/// The subscriber did not read, and the window moved on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this subscriber read too slowly and missed {missed} events: list all containers, then subscribe again"
)]
pub(super) struct Lagged {
    missed: u64,
}

impl Default for Subscribers {
    fn default() -> Self {
        // The numbers are not shown to anyone: their epoch needs no name.
        let window = Arc::new(Window::new(Epoch("cri".into()), CAPACITY));
        Self { window, session: Mutex::default(), came: Notify::new(), ended: Arc::default() }
    }
}

impl Subscribers {
    /// One more. It gets what happens from now on, or from a time of the wall clock on, as far as that is still known.
    pub(super) fn subscribe(&self, now: i64, since: Option<i64>) -> Subscription {
        let mut session = self.session();
        let changed = self.window.last();
        let wanted = since.unwrap_or(i64::MAX);
        let cursor = self
            .window
            .look(|journal: &Journal<Event, Infallible>, ()| journal.since(|event| event.at > wanted));
        if !session.is_on {
            let begin = since.unwrap_or(now);
            session.since = Some(session.since.map_or(begin, |other| other.min(begin)));
        }
        drop(session);
        self.came.notify_one();
        Subscription {
            window: self.window.clone(),
            cursor,
            changed,
            ready: VecDeque::new(),
            ended: self.ended.clone(),
            lagged: false,
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.window.readers()
    }

    /// Streams that were ended because they were not read.
    pub(super) fn ended(&self) -> u64 {
        self.ended.load(Relaxed)
    }

    /// Waits for a subscriber; gives the time from which on events are wanted.
    pub(super) async fn begin_session(&self) -> i64 {
        loop {
            let came = self.came.notified();
            {
                let mut session = self.session();
                if self.count() > 0
                    && let Some(since) = session.since.take()
                {
                    session.is_on = true;
                    return since;
                }
            }
            came.await;
        }
    }

    /// No subscriber is left, unless one came just now. What was kept is freed.
    pub(super) fn end_session(&self) -> bool {
        let mut session = self.session();
        if self.count() == 0 {
            session.is_on = false;
            self.window.clear();
            kwitness_service::memory::give_back();
        }
        !session.is_on
    }

    /// Gives an event to all. Never waits.
    pub(super) fn publish(&self, at: i64, event: &Bytes) {
        self.window.append([Event { at, bytes: event.clone() }]);
    }

    /// Nothing that could panic runs while the lock is held: what it guards is whole.
    fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscription {
    /// The next event; none: nothing will come any more. Nothing is lost when the future is dropped before it is ready.
    pub(super) async fn next(&mut self) -> Option<Result<Bytes, Lagged>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            if self.lagged {
                return None;
            }
            self.changed.mark_unchanged();
            let read = self.window.read(self.cursor, BATCH, |event, ()| event);
            if let Some(missed) = read.missed {
                self.lagged = true;
                self.ended.fetch_add(1, Relaxed);
                tracing::warn!("a subscriber to CRI events reads too slowly; its stream ends");
                return Some(Err(Lagged { missed: missed.last - missed.first + 1 }));
            }
            self.cursor = read.next;
            self.ready.extend(read.pieces.into_iter().filter_map(|piece| match piece {
                Piece::Item(_, event) => Some(event.bytes),
                Piece::GivenUp(_) => None,
            }));
            if self.ready.is_empty() {
                self.changed.changed().await.ok()?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(number: usize) -> Bytes {
        Bytes::from(number.to_string())
    }

    #[tokio::test]
    async fn a_subscriber_that_does_not_read_ends_and_the_others_get_everything() {
        let subscribers = Subscribers::default();
        let mut slow = subscribers.subscribe(0, None);
        let mut quick = subscribers.subscribe(0, None);
        let count = CAPACITY.items.get() + 10;
        for number in 0..count {
            subscribers.publish(number as i64, &event(number));
            assert_eq!(quick.next().await, Some(Ok(event(number))));
        }
        assert_eq!(slow.next().await, Some(Err(Lagged { missed: 10 })));
        assert_eq!(slow.next().await, None);
        drop(slow);
        assert_eq!((subscribers.count(), subscribers.ended()), (1, 1));
    }

    #[tokio::test]
    async fn large_events_are_bounded_in_bytes_whatever_the_number_of_subscribers() {
        let subscribers = Subscribers::default();
        let all: Vec<_> = (0..64).map(|_| subscribers.subscribe(0, None)).collect();
        for at in 0..280 {
            subscribers.publish(at, &Bytes::from(vec![0; 1 << 20]));
        }
        assert!(subscribers.window.usage().bytes <= CAPACITY.bytes, "{:?}", subscribers.window.usage());
        let held: usize = all.iter().map(|subscription| subscription.ready.len()).sum();
        assert_eq!(held, 0, "a subscriber has no queue of its own");
        drop(all);
        assert!(subscribers.end_session());
        assert_eq!(subscribers.window.usage().bytes, 0, "given back with the last one");
    }

    #[tokio::test]
    async fn a_subscriber_that_comes_back_gets_what_it_missed() {
        let subscribers = Subscribers::default();
        let first = subscribers.subscribe(5, None);
        assert_eq!(subscribers.begin_session().await, 5);
        for at in 6..10 {
            subscribers.publish(at, &event(at as usize));
        }
        drop(first);
        let mut second = subscribers.subscribe(20, Some(7));
        subscribers.publish(21, &event(21));
        for number in [8, 9, 21] {
            assert_eq!(second.next().await, Some(Ok(event(number))));
        }
        let mut third = subscribers.subscribe(22, None);
        subscribers.publish(23, &event(23));
        assert_eq!(third.next().await, Some(Ok(event(23))), "nothing from before");
    }

    #[tokio::test]
    async fn a_session_begins_with_the_first_and_ends_after_the_last() {
        let subscribers = Subscribers::default();
        let first = subscribers.subscribe(5, Some(3));
        let second = subscribers.subscribe(6, None);
        assert_eq!(subscribers.begin_session().await, 3, "the earliest that anyone wants");
        drop(first);
        assert!(!subscribers.end_session(), "one is left");
        drop(second);
        assert!(subscribers.end_session());
        let _third = subscribers.subscribe(9, None);
        assert_eq!(subscribers.begin_session().await, 9);
    }
}
