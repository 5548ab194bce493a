//! The clients that want events, each with a bounded queue of its own.
//!
//! Owns the queues. Sending never waits: a client whose queue is full has its stream ended with an error, and no other notices.
//! Every queue is an uninterrupted end of the same sequence of events, and events are shared between queues: all queues together are
//! never larger than the largest may be.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::{Notify, watch};
use tonic::Status;

use super::super::limits;

/// How a stream ends.
pub type End = Result<(), Status>;

#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<Bytes>,
    bytes: usize,
    /// After what is in the queue.
    end: Option<End>,
}

#[derive(Debug, Default)]
struct Shared {
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
    /// One more; none: there are [`limits::EVENT_STREAMS`].
    pub fn add(&self) -> Option<Subscriber> {
        let shared = Arc::new(Shared::default());
        let added = self.0.send_if_modified(|all| {
            let has_room = all.len() < limits::EVENT_STREAMS;
            if has_room {
                all.push(Arc::clone(&shared));
            }
            has_room
        });
        added.then(|| Subscriber { shared, all: self.clone() })
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
                *queue = Queue::default();
                drop(queue);
                overflowed += 1;
                subscriber.end(Err(Status::resource_exhausted(format!(
                    "the client reads too slowly: {waiting} events were waiting; list everything, and subscribe again"
                ))));
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

    #[tokio::test]
    async fn a_full_queue_ends_its_own_stream_only() {
        let all = Subscribers::default();
        let (mut slow, mut quick) = (all.add().unwrap(), all.add().unwrap());
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
        let mut one = all.add().unwrap();
        all.send(&Bytes::from_static(b"1"));
        assert_eq!(all.end_all(&Ok(())), 1);
        assert_eq!(all.send(&Bytes::from_static(b"2")), 0);
        assert_eq!(&*one.next().await.unwrap().unwrap(), b"1");
        assert!(one.next().await.is_none());
    }

    #[test]
    fn there_are_no_more_than_allowed() {
        let all = Subscribers::default();
        let mut held: Vec<_> = (0..limits::EVENT_STREAMS).map(|_| all.add().unwrap()).collect();
        assert!(all.add().is_none());
        held.pop();
        assert!(all.add().is_some(), "room is made again");
    }

    #[tokio::test]
    async fn it_is_known_whether_there_are_clients() {
        let all = Subscribers::default();
        all.wait_until_unused().await;
        let one = all.add().unwrap();
        all.wait_until_used().await;
        drop(one);
        all.wait_until_unused().await;
    }
}
