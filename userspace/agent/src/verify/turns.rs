//! How many looks read files and are judged at a time, and of how many limits usage is watched.
//!
//! A look at a whole node takes the engine some milliseconds and a core longer, and there may be a thousand calls. So those of clients
//! take turns, and whoever asks for something else waits for one of them, not for all. Looks at few containers, and at one, have turns
//! of their own: who waits for one pod's limits does not wait for those who look at all. Of the clients that wait, each has a turn
//! before any has another: one with many calls waits for its own.
//!
//! Held until the files are read, even if the call has ended: reading them cannot be ended. The runtime and the checkpoints are waited
//! for before; by a look that had to wait for its turn, once more, for a quarter of a second at most.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kwitness_service::Client;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Containers of a look that is small.
const SMALL: usize = 16;
/// Limits whose usage is watched at a time; each takes a kilobyte, and its files are read some twenty times.
pub(super) const WATCHED_MAX: usize = 16 << 10;

/// A share of what is watched, until it is dropped.
pub(super) type Share = OwnedSemaphorePermit;

/// See the module's description.
#[derive(Debug)]
pub(super) struct Turns {
    one: Arc<Queue>,
    small: Arc<Queue>,
    large: Arc<Queue>,
    watched: Arc<Semaphore>,
}

impl Default for Turns {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, 8));
        let of = |free| Arc::new(Queue(Mutex::new(Waiting { free, clients: VecDeque::new() })));
        let watched = Arc::new(Semaphore::new(WATCHED_MAX));
        Self { one: of(cores), small: of(cores), large: of(1), watched }
    }
}

impl Turns {
    /// The turn of a client's look at so many containers.
    pub(super) async fn take(&self, client: Client, containers: usize) -> Option<Turn> {
        let queue = self.of(containers);
        let turn = match queue.lock().enter(client) {
            None => return Some(Turn { queue: Arc::clone(queue), client }),
            Some(turn) => turn,
        };
        // None that is waited for is ever dropped.
        turn.await.ok()
    }

    fn of(&self, containers: usize) -> &Arc<Queue> {
        match containers {
            0..=1 => &self.one,
            2..=SMALL => &self.small,
            _ => &self.large,
        }
    }

    /// How many calls are known to wait for such a turn, and how many of them have not ended.
    #[cfg(test)]
    pub(super) fn waiting(&self, containers: usize) -> (usize, usize) {
        let queue = self.of(containers).lock();
        let calls = || queue.clients.iter().flat_map(|(_, calls)| calls);
        (calls().count(), calls().filter(|call| !call.is_closed()).count())
    }

    /// The share of one who watches the usage of so many limits; none: too many are watched. One alone may watch any number.
    pub(super) fn watch(&self, limits: usize) -> Option<Share> {
        let share = u32::try_from(limits.min(WATCHED_MAX)).ok()?;
        Arc::clone(&self.watched).try_acquire_many_owned(share).ok()
    }
}

/// A turn, until it is dropped: then the next one's.
#[derive(Debug)]
pub(super) struct Turn {
    queue: Arc<Queue>,
    client: Client,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let next = self.queue.lock().leave(self.client);
        if let Some((client, call)) = next {
            // A call that has ended just now drops it, and so passes it on.
            drop(call.send(Self { queue: Arc::clone(&self.queue), client }));
        }
    }
}

/// Who waits for turns of one kind.
#[derive(Debug)]
struct Queue(Mutex<Waiting>);

#[derive(Debug)]
struct Waiting {
    free: usize,
    /// Those that wait, each with its calls: the next one first. As many as there are calls, at most.
    clients: VecDeque<(Client, VecDeque<oneshot::Sender<Turn>>)>,
}

impl Queue {
    /// Nothing that could panic runs while it is held.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// Has a turn begin, or else what to wait for.
    fn enter(&mut self, client: Client) -> Option<oneshot::Receiver<Turn>> {
        if let Some(free) = self.free.checked_sub(1) {
            self.free = free;
            return None;
        }
        self.forget_ended();
        let (call, turn) = oneshot::channel();
        match self.clients.iter_mut().find(|(of, _)| *of == client) {
            Some((_, calls)) => calls.push_back(call),
            None => self.clients.push_back((client, [call].into())),
        }
        Some(turn)
    }

    /// Whose turn it is after one of that client's; none: nobody waits.
    fn leave(&mut self, client: Client) -> Option<(Client, oneshot::Sender<Turn>)> {
        self.forget_ended();
        if self.clients.front().is_some_and(|(first, _)| *first == client) {
            self.clients.rotate_left(1);
        }
        let next = self.clients.pop_front().and_then(|(client, mut calls)| {
            let call = calls.pop_front()?;
            if !calls.is_empty() {
                self.clients.push_back((client, calls));
            }
            Some((client, call))
        });
        self.free += usize::from(next.is_none());
        next
    }

    fn forget_ended(&mut self) {
        self.clients.retain_mut(|(_, calls)| {
            calls.retain(|call| !call.is_closed());
            !calls.is_empty()
        });
    }
}
