//! The clients that want events, each with a bounded queue of its own.
//!
//! Owns the queues. Sending never waits: a client whose queue is full has its stream ended with an error, and no other notices.
//! Every queue is an uninterrupted end of the same sequence of events, and events are shared between queues: all queues together are
//! never larger than the largest may be. Where there are too many, the client with most has its newest stream ended, as the client with
//! most connections has its newest one closed ([`gives_way`]).

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::{Notify, watch};
use tonic::Status;

use super::super::limits;
use kwitness_service::{Held, Peer, gives_way};

/// How a stream ends.
pub type End = Result<(), Status>;

/// A client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionId {
    /// Its number, of all that this process accepted.
    pub number: u64,
    /// Whose it is.
    pub of: Peer,
}

#[derive(Debug, Default)]
struct Queue {
    /// Each with its number.
    events: VecDeque<(u64, Bytes)>,
    bytes: usize,
    /// The number of the last event that was taken from it, or else of the last one before the subscription.
    taken: u64,
    /// After what is in the queue.
    end: Option<End>,
}

#[derive(Debug)]
struct Shared {
    connection: ConnectionId,
    queue: Mutex<Queue>,
    changed: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it had not ended before.
    fn end(&self, end: End) -> bool {
        let mut queue = self.lock();
        let is_first = queue.end.is_none();
        queue.end.get_or_insert(end);
        drop(queue);
        self.changed.notify_one();
        is_first
    }

    /// Ends it at once: what is in the queue is freed.
    fn cut(&self, why: &str) {
        *self.lock() = Queue { end: Some(Err(Status::resource_exhausted(why))), ..Queue::default() };
        self.changed.notify_one();
    }
}

#[derive(Debug, Default)]
struct All {
    subscribers: Vec<Arc<Shared>>,
    /// The number of the last event.
    last: u64,
}

impl All {
    /// Ends a stream of the client with most, for one more of another's.
    fn make_room(&mut self, of: Peer) -> bool {
        let mut clients: BTreeMap<Peer, Held> = BTreeMap::new();
        for (newest, one) in (0..).zip(&self.subscribers) {
            let by = one.connection.of;
            let held = clients.entry(by).or_insert(Held { by, count: 0, newest });
            *held = Held { by, count: held.count + 1, newest };
        }
        let other = gives_way(clients.values().copied(), of, limits::EVENT_STREAMS_KEPT);
        let newest =
            other.and_then(|other| self.subscribers.iter().rposition(|one| one.connection.of == other));
        let Some(newest) = newest else { return false };
        let ended = self.subscribers.remove(newest);
        ended.cut("another client subscribes to events, and this one has most streams");
        true
    }
}

/// All subscribers.
#[derive(Clone, Debug, Default)]
pub struct Subscribers {
    all: watch::Sender<All>,
    /// An event was taken, or a stream has ended.
    progress: Arc<Notify>,
}

impl Subscribers {
    /// One more of that client, and whether there were [`limits::EVENT_STREAMS`]: then one of another's has ended for it, or it is
    /// refused.
    pub fn add(&self, connection: ConnectionId) -> (Result<Subscriber, Status>, bool) {
        let (mut added, mut was_full) = (None, false);
        self.all.send_if_modified(|all| {
            was_full = all.subscribers.len() >= limits::EVENT_STREAMS;
            if was_full && !all.make_room(connection.of) {
                return false;
            }
            let queue = Mutex::new(Queue { taken: all.last, ..Queue::default() });
            let shared = Arc::new(Shared { connection, queue, changed: Notify::new() });
            all.subscribers.push(Arc::clone(&shared));
            added = Some(shared);
            true
        });
        if was_full {
            self.progress.notify_waiters();
        }
        let subscriber = added.map(|shared| Subscriber { shared, all: self.clone() });
        let refused = || {
            let max = limits::EVENT_STREAMS;
            Status::resource_exhausted(format!(
                "{max} streams of events, the maximum, and no client has more than this one"
            ))
        };
        (subscriber.ok_or_else(refused), was_full)
    }

    /// Queues an event for every client; returns how many overflowed, whose streams end. Numbers ascend.
    pub fn send(&self, number: u64, event: &Bytes) -> u64 {
        let mut overflowed = 0;
        // No task waits for this change.
        self.all.send_if_modified(|all| {
            all.last = number;
            overflowed = Self::queue(&all.subscribers, number, event);
            false
        });
        if overflowed > 0 {
            self.progress.notify_waiters();
        }
        overflowed
    }

    fn queue(subscribers: &[Arc<Shared>], number: u64, event: &Bytes) -> u64 {
        let mut overflowed = 0;
        for subscriber in subscribers {
            let mut queue = subscriber.lock();
            if queue.end.is_some() {
                continue;
            }
            if queue.bytes + event.len() > limits::EVENTS_WAITING {
                let waiting = queue.events.len();
                drop(queue);
                overflowed += 1;
                subscriber.cut(&format!(
                    "the client reads too slowly: {waiting} events were waiting; list everything, and subscribe again"
                ));
                continue;
            }
            queue.bytes += event.len();
            queue.events.push_back((number, event.clone()));
            drop(queue);
            subscriber.changed.notify_one();
        }
        overflowed
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.all.borrow().subscribers.len()
    }

    /// Whether a connection has a stream that has not ended.
    pub fn has(&self, connection: ConnectionId) -> bool {
        self.open(connection, |_| true)
    }

    /// Whether every stream of a connection has taken what was sent up to that number.
    pub fn has_taken(&self, connection: ConnectionId, number: u64) -> bool {
        !self.open(connection, |queue| queue.taken < number)
    }

    fn open(&self, connection: ConnectionId, is: impl Fn(&Queue) -> bool) -> bool {
        self.all.borrow().subscribers.iter().any(|subscriber| {
            let queue = subscriber.lock();
            subscriber.connection == connection && queue.end.is_none() && is(&queue)
        })
    }

    /// Waits for a condition on what streams have taken.
    pub async fn wait_until_taken(&self, condition: impl Fn() -> bool) {
        loop {
            let progress = self.progress.notified();
            tokio::pin!(progress);
            // From now on, nothing is missed.
            progress.as_mut().enable();
            if condition() {
                return;
            }
            progress.await;
        }
    }

    /// Ends every stream that has not ended; returns how many.
    pub fn end_all(&self, end: &End) -> u64 {
        self.end_where(|_| true, end)
    }

    /// The same of a connection's.
    pub fn end_of(&self, connection: ConnectionId, end: &End) -> u64 {
        self.end_where(|of| of == connection, end)
    }

    fn end_where(&self, is: impl Fn(ConnectionId) -> bool, end: &End) -> u64 {
        let mut count = 0;
        for subscriber in self.all.borrow().subscribers.iter().filter(|subscriber| is(subscriber.connection))
        {
            count += u64::from(subscriber.end(end.clone()));
        }
        self.progress.notify_waiters();
        count
    }

    /// Waits until a client is subscribed.
    pub async fn wait_until_used(&self) {
        self.wait_for(|subscribers| !subscribers.is_empty()).await;
    }

    /// Waits until no client is subscribed.
    pub async fn wait_until_unused(&self) {
        self.wait_for(|subscribers| subscribers.is_empty()).await;
    }

    async fn wait_for(&self, condition: impl Fn(&[Arc<Shared>]) -> bool) {
        // It cannot fail: this holds a sender.
        let _ = self.all.subscribe().wait_for(|all| condition(&all.subscribers)).await;
    }
}

/// One client's end.
#[derive(Debug)]
pub struct Subscriber {
    shared: Arc<Shared>,
    all: Subscribers,
}

impl Subscriber {
    /// The next event; none at a good end.
    pub async fn next(&mut self) -> Option<Result<Bytes, Status>> {
        loop {
            {
                let mut queue = self.shared.lock();
                if let Some((number, event)) = queue.events.pop_front() {
                    queue.bytes -= event.len();
                    queue.taken = number;
                    drop(queue);
                    self.all.progress.notify_waiters();
                    return Some(Ok(event));
                }
                match &queue.end {
                    Some(Err(status)) => return Some(Err(status.clone())),
                    Some(Ok(())) => return None,
                    None => {}
                }
            }
            self.shared.changed.notified().await;
        }
    }

    /// As a stream that ends after an error.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, Status>> {
        futures_util::stream::unfold(Some(self), async |subscriber| {
            let mut subscriber = subscriber?;
            let next = subscriber.next().await?;
            let more = next.is_ok().then_some(subscriber);
            Some((next, more))
        })
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.all.all.send_modify(|all| all.subscribers.retain(|other| !Arc::ptr_eq(other, &self.shared)));
        self.all.progress.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    const ONE: ConnectionId = of(1000, 1);

    const fn of(user: u32, process: i32) -> ConnectionId {
        ConnectionId { number: 1, of: Peer { user: Some(user), process: Some(process) } }
    }

    fn add(all: &Subscribers, process: i32) -> Result<Subscriber, Status> {
        all.add(of(1000, process)).0
    }

    #[tokio::test]
    async fn a_full_queue_ends_its_own_stream_only() {
        let all = Subscribers::default();
        let (mut slow, mut quick) = (add(&all, 1).unwrap(), add(&all, 1).unwrap());
        let event = Bytes::from(vec![7; limits::EVENTS_WAITING / 4]);
        for _ in 0..4 {
            assert_eq!(all.send(1, &event), 0);
            assert_eq!(quick.next().await.unwrap().unwrap(), event);
        }
        assert_eq!(all.send(1, &event), 1);
        assert_eq!(quick.next().await.unwrap().unwrap(), event);
        let end = slow.next().await.unwrap().unwrap_err();
        assert_eq!(end.code(), Code::ResourceExhausted);
        assert!(end.message().contains("4 events were waiting"), "{end}");
        assert_eq!(all.send(1, &event), 0, "it is counted once");
        drop(slow);
        assert_eq!(all.count(), 1);
    }

    #[tokio::test]
    async fn what_was_sent_before_the_end_is_delivered() {
        let all = Subscribers::default();
        let mut one = add(&all, 1).unwrap();
        all.send(1, &Bytes::from_static(b"1"));
        assert_eq!(all.end_all(&Ok(())), 1);
        assert_eq!(all.send(1, &Bytes::from_static(b"2")), 0);
        assert_eq!(&*one.next().await.unwrap().unwrap(), b"1");
        assert!(one.next().await.is_none());
    }

    #[tokio::test]
    async fn a_client_that_takes_all_streams_keeps_no_other_out() {
        let all = Subscribers::default();
        let kubelet = add(&all, 1).unwrap();
        let mut many: Vec<_> = (1..limits::EVENT_STREAMS).map(|_| add(&all, 2).unwrap()).collect();
        assert_eq!(add(&all, 2).unwrap_err().code(), Code::ResourceExhausted, "its own is one too many");
        all.send(1, &Bytes::from_static(b"1"));
        let (other, was_full) = all.add(of(0, 3));
        assert!(was_full && all.count() == limits::EVENT_STREAMS);
        let end = many.pop().unwrap().next().await.unwrap().unwrap_err();
        assert_eq!(end.code(), Code::ResourceExhausted, "without what it had not read");
        let mut those = [kubelet, other.unwrap(), many.pop().unwrap()];
        all.send(2, &Bytes::from_static(b"2"));
        for (one, event) in those.iter_mut().zip([b"1", b"2", b"1"]) {
            assert_eq!(&*one.next().await.unwrap().unwrap(), event);
        }
        drop(those);
        assert_eq!(all.count(), limits::EVENT_STREAMS - 3, "the one that was ended does not count");
    }

    #[test]
    fn of_one_users_many_clients_none_that_is_subscribed_gives_way() {
        let all = Subscribers::default();
        let each: Vec<_> =
            (0..limits::EVENT_STREAMS).map(|process| add(&all, process as i32).unwrap()).collect();
        assert!(add(&all, 100).is_err());
        assert!(all.add(of(0, 1)).0.is_ok(), "another user");
        drop(each);
        assert!(add(&all, 100).is_ok(), "room is made again");
    }

    #[tokio::test]
    async fn what_a_connection_has_taken_is_known() {
        let all = Subscribers::default();
        let other = ConnectionId { number: 2, ..ONE };
        assert!(!all.has(ONE));
        all.send(1, &Bytes::from_static(b"before"));
        let mut stream = add(&all, 1).unwrap();
        assert!(all.has(ONE) && !all.has(other));
        assert!(all.has_taken(ONE, 1), "nothing of before comes");
        for number in [2, 3] {
            all.send(number, &Bytes::from_static(b"event"));
        }
        assert!(!all.has_taken(ONE, 2) && all.has_taken(other, 3));
        stream.next().await.unwrap().unwrap();
        assert!(all.has_taken(ONE, 2) && !all.has_taken(ONE, 3));
        let waiting = tokio::spawn({
            let all = all.clone();
            async move { all.wait_until_taken(|| all.has_taken(ONE, 3)).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        stream.next().await.unwrap().unwrap();
        waiting.await.unwrap();
        all.send(4, &Bytes::from_static(b"event"));
        all.end_all(&Ok(()));
        assert!(all.has_taken(ONE, 4), "a stream that has ended is not waited for");
        assert_eq!(all.end_of(ONE, &Ok(())), 0, "it is counted once");
    }

    #[tokio::test]
    async fn it_is_known_whether_there_are_clients() {
        let all = Subscribers::default();
        all.wait_until_unused().await;
        let one = add(&all, 1).unwrap();
        all.wait_until_used().await;
        drop(one);
        all.wait_until_unused().await;
    }
}
