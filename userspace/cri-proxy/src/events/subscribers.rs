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

#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<Bytes>,
    bytes: usize,
    /// After what is in the queue.
    end: Option<End>,
}

#[derive(Debug)]
struct Shared {
    of: Peer,
    queue: Mutex<Queue>,
    changed: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, end: End) {
        self.lock().end.get_or_insert(end);
        self.changed.notify_one();
    }

    /// Ends it at once: what is in the queue is freed.
    fn cut(&self, why: &str) {
        *self.lock() = Queue { end: Some(Err(Status::resource_exhausted(why))), ..Queue::default() };
        self.changed.notify_one();
    }
}

/// All subscribers.
#[derive(Clone, Debug)]
pub struct Subscribers(watch::Sender<Vec<Arc<Shared>>>);

impl Default for Subscribers {
    fn default() -> Self {
        Self(watch::Sender::new(Vec::new()))
    }
}

impl Subscribers {
    /// One more of that client, and whether there were [`limits::EVENT_STREAMS`]: then one of another's has ended for it, or it is
    /// refused.
    pub fn add(&self, of: Peer) -> (Result<Subscriber, Status>, bool) {
        let shared = Arc::new(Shared { of, queue: Mutex::default(), changed: Notify::new() });
        let mut was_full = false;
        let added = self.0.send_if_modified(|all| {
            was_full = all.len() >= limits::EVENT_STREAMS;
            if was_full {
                // The newest is the last.
                let held = all.iter().zip(0..).map(|(one, newest)| Held { by: one.of, count: 1, newest });
                let Some(other) =
                    gives_way(by_client(held).values().copied(), of, limits::EVENT_STREAMS_KEPT)
                else {
                    return false;
                };
                let Some(newest) = all.iter().rposition(|one| one.of == other) else { return false };
                all.remove(newest).cut("another client subscribes to events, and this one has most streams");
            }
            all.push(Arc::clone(&shared));
            true
        });
        let subscriber = added.then(|| Subscriber { shared, all: self.clone() });
        let refused = || {
            let max = limits::EVENT_STREAMS;
            Status::resource_exhausted(format!(
                "{max} streams of events, the maximum, and no client has more than this one"
            ))
        };
        (subscriber.ok_or_else(refused), was_full)
    }

    /// Queues an event for every client; returns how many overflowed, whose streams end.
    pub fn send(&self, event: &Bytes) -> u64 {
        let mut overflowed = 0;
        for subscriber in &*self.0.borrow() {
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
            queue.events.push_back(event.clone());
            drop(queue);
            subscriber.changed.notify_one();
        }
        overflowed
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.borrow().len()
    }

    /// Ends every stream; returns how many.
    pub fn end_all(&self, end: &End) -> u64 {
        let all = self.0.borrow();
        all.iter().for_each(|subscriber| subscriber.end(end.clone()));
        all.len() as u64
    }

    /// Waits until a client is subscribed.
    pub async fn wait_until_used(&self) {
        self.wait_for(|all| !all.is_empty()).await;
    }

    /// Waits until no client is subscribed.
    pub async fn wait_until_unused(&self) {
        self.wait_for(|all| all.is_empty()).await;
    }

    async fn wait_for(&self, condition: impl FnMut(&Vec<Arc<Shared>>) -> bool) {
        // It cannot fail: this holds a sender.
        let _ = self.0.subscribe().wait_for(condition).await;
    }
}

/// What each client holds, of single streams in the order in which they came.
fn by_client(streams: impl Iterator<Item = Held>) -> BTreeMap<Peer, Held> {
    let mut clients = BTreeMap::new();
    for one in streams {
        let held = clients.entry(one.by).or_insert(Held { count: 0, ..one });
        *held = Held { count: held.count + 1, ..one };
    }
    clients
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
                if let Some(event) = queue.events.pop_front() {
                    queue.bytes -= event.len();
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
        self.all.0.send_modify(|all| all.retain(|other| !Arc::ptr_eq(other, &self.shared)));
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    fn add(all: &Subscribers, process: i32) -> Result<Subscriber, Status> {
        all.add(Peer { user: Some(1000), process: Some(process) }).0
    }

    #[tokio::test]
    async fn a_full_queue_ends_its_own_stream_only() {
        let all = Subscribers::default();
        let (mut slow, mut quick) = (add(&all, 1).unwrap(), add(&all, 2).unwrap());
        let event = Bytes::from(vec![7; limits::EVENTS_WAITING / 4]);
        for _ in 0..4 {
            assert_eq!(all.send(&event), 0);
            assert_eq!(quick.next().await.unwrap().unwrap(), event);
        }
        assert_eq!(all.send(&event), 1);
        assert_eq!(quick.next().await.unwrap().unwrap(), event);
        let end = slow.next().await.unwrap().unwrap_err();
        assert_eq!(end.code(), Code::ResourceExhausted);
        assert!(end.message().contains("4 events were waiting"), "{end}");
        assert_eq!(all.send(&event), 0, "it is counted once");
        drop(slow);
        assert_eq!(all.0.borrow().len(), 1);
    }

    #[tokio::test]
    async fn what_was_sent_before_the_end_is_delivered() {
        let all = Subscribers::default();
        let mut one = add(&all, 1).unwrap();
        all.send(&Bytes::from_static(b"1"));
        assert_eq!(all.end_all(&Ok(())), 1);
        assert_eq!(all.send(&Bytes::from_static(b"2")), 0);
        assert_eq!(&*one.next().await.unwrap().unwrap(), b"1");
        assert!(one.next().await.is_none());
    }

    #[tokio::test]
    async fn a_client_that_takes_all_streams_keeps_no_other_out() {
        let all = Subscribers::default();
        let kubelet = add(&all, 1).unwrap();
        let mut many: Vec<_> = (1..limits::EVENT_STREAMS).map(|_| add(&all, 2).unwrap()).collect();
        assert_eq!(add(&all, 2).unwrap_err().code(), Code::ResourceExhausted, "its own is one too many");
        all.send(&Bytes::from_static(b"1"));
        let (other, was_full) = all.add(Peer { user: Some(0), process: Some(3) });
        assert!(was_full && all.count() == limits::EVENT_STREAMS);
        let end = many.pop().unwrap().next().await.unwrap().unwrap_err();
        assert_eq!(end.code(), Code::ResourceExhausted, "without what it had not read");
        let mut those = [kubelet, other.unwrap(), many.pop().unwrap()];
        all.send(&Bytes::from_static(b"2"));
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
        assert!(all.add(Peer { user: Some(0), process: Some(1) }).0.is_ok(), "another user");
        drop(each);
        assert!(add(&all, 100).is_ok(), "room is made again");
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
