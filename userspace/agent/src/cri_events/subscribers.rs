//! Who gets the events: one bounded queue a subscriber, and the last events for one that comes back.
//!
//! Every subscriber gets everything from its subscription on. One that does not read fills its own queue and nothing else; then
//! its stream ends, after what is queued, with `RESOURCE_EXHAUSTED`. Ending is the honest way: the CRI has no word for "some events
//! are missing", and a kubelet whose stream ends lists everything at once and subscribes again.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};

/// Events that wait for a subscriber at most; the kubelet's own queue has 1000 places. Statuses are shared between subscribers, some
/// kilobytes an event.
const QUEUE: usize = 1024;
/// Events kept for one that comes back.
const KEPT: usize = 4096;
/// Bytes of them at most.
const KEPT_BYTES: usize = 16 << 20;

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Subscribers {
    inner: Mutex<Inner>,
    came: Notify,
    /// Streams that were ended because nobody read them.
    pub(super) ended: AtomicU64,
}

#[derive(Debug, Default)]
struct Inner {
    all: Vec<Subscriber>,
    kept: VecDeque<(i64, Bytes)>,
    kept_bytes: usize,
    /// What the next session begins with, by the wall clock.
    since: Option<i64>,
    in_session: bool,
}

#[derive(Debug)]
struct Subscriber {
    queue: mpsc::Sender<Bytes>,
    lagged: Arc<AtomicBool>,
}

/// A subscriber's end of its queue.
#[derive(Debug)]
pub(super) struct Subscription {
    replay: VecDeque<Bytes>,
    queue: mpsc::Receiver<Bytes>,
    lagged: Arc<AtomicBool>,
}

/// The subscriber did not read, and its queue ran over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this subscriber did not read {QUEUE} events, and more came: list what there is, then subscribe again"
)]
pub(super) struct Lagged;

impl Subscribers {
    /// One more. It gets what happens from now on, or from a time of the wall clock on, as far as that is still known.
    pub(super) fn subscribe(&self, now: i64, since: Option<i64>) -> Subscription {
        let (sender, queue) = mpsc::channel(QUEUE);
        let lagged = Arc::new(AtomicBool::new(false));
        let mut inner = self.lock();
        let wanted = since.unwrap_or(i64::MAX);
        let replay =
            inner.kept.iter().filter(|(at, _)| *at > wanted).map(|(_, event)| event.clone()).collect();
        if !inner.in_session {
            let begin = since.unwrap_or(now);
            inner.since = Some(inner.since.map_or(begin, |other| other.min(begin)));
        }
        inner.all.push(Subscriber { queue: sender, lagged: lagged.clone() });
        drop(inner);
        self.came.notify_one();
        Subscription { replay, queue, lagged }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        let mut inner = self.lock();
        inner.all.retain(|subscriber| !subscriber.queue.is_closed());
        inner.all.len()
    }

    /// Waits for someone; gives the time from which on events are wanted.
    pub(super) async fn begin_session(&self) -> i64 {
        loop {
            let came = self.came.notified();
            {
                let mut inner = self.lock();
                inner.all.retain(|subscriber| !subscriber.queue.is_closed());
                if let (false, Some(since)) = (inner.all.is_empty(), inner.since) {
                    inner.in_session = true;
                    inner.since = None;
                    return since;
                }
            }
            came.await;
        }
    }

    /// Nobody is left; unless someone came just now.
    pub(super) fn end_session(&self) -> bool {
        let mut inner = self.lock();
        inner.all.retain(|subscriber| !subscriber.queue.is_closed());
        if inner.all.is_empty() {
            (inner.in_session, inner.kept_bytes) = (false, 0);
            inner.kept.clear();
        }
        !inner.in_session
    }

    /// Gives an event to all. Never waits.
    pub(super) fn publish(&self, at: i64, event: &Bytes) {
        let mut inner = self.lock();
        inner.all.retain(|subscriber| match subscriber.queue.try_send(event.clone()) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Closed(_)) => false,
            Err(mpsc::error::TrySendError::Full(_)) => {
                subscriber.lagged.store(true, Relaxed);
                self.ended.fetch_add(1, Relaxed);
                tracing::warn!("a subscriber to CRI events does not read: its stream ends");
                false
            }
        });
        inner.kept_bytes += event.len();
        inner.kept.push_back((at, event.clone()));
        while inner.kept.len() > KEPT || inner.kept_bytes > KEPT_BYTES {
            let Some((_, oldest)) = inner.kept.pop_front() else { break };
            inner.kept_bytes -= oldest.len();
        }
    }

    /// Nothing that could panic runs while the lock is held: what it guards is whole.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscription {
    /// The next event; none: nothing will come any more.
    pub(super) async fn next(&mut self) -> Option<Result<Bytes, Lagged>> {
        if let Some(event) = self.replay.pop_front() {
            return Some(Ok(event));
        }
        match self.queue.recv().await {
            Some(event) => Some(Ok(event)),
            None if self.lagged.swap(false, Relaxed) => Some(Err(Lagged)),
            None => None,
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
    async fn who_does_not_read_ends_and_the_others_get_everything() {
        let subscribers = Subscribers::default();
        let mut slow = subscribers.subscribe(0, None);
        let mut quick = subscribers.subscribe(0, None);
        for number in 0..QUEUE + 10 {
            subscribers.publish(number as i64, &event(number));
            assert_eq!(quick.next().await, Some(Ok(event(number))));
        }
        for number in 0..QUEUE {
            assert_eq!(slow.next().await, Some(Ok(event(number))), "what was queued still comes");
        }
        assert_eq!(slow.next().await, Some(Err(Lagged)));
        assert_eq!(slow.next().await, None);
        assert_eq!((subscribers.count(), subscribers.ended.load(Relaxed)), (1, 1));
    }

    #[tokio::test]
    async fn who_comes_back_gets_what_it_missed() {
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
