//! How many looks read files and are judged at a time, and of how many limits usage is watched.
//!
//! A look at a whole node takes the engine some milliseconds and a core longer, and there may be a thousand calls. So those of clients
//! take turns, and whoever asks for something else waits for one of them, not for all. Looks at few containers, and at one, have turns
//! of their own: who waits for one pod's limits does not wait for those who look at all.
//!
//! Held until the files are read, even if the call has ended: reading them cannot be ended. The runtime and the checkpoints are waited
//! for before; by a look that had to wait for its turn, once more, for a quarter of a second at most.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Containers of a look that is small.
const SMALL: usize = 16;
/// Limits whose usage is watched at a time; each takes a kilobyte, and its files are read some twenty times.
pub(super) const WATCHED_MAX: usize = 16 << 10;

/// Until it is dropped.
pub(super) type Turn = OwnedSemaphorePermit;

/// See the module's description.
#[derive(Debug)]
pub(super) struct Turns {
    one: Arc<Semaphore>,
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
    watched: Arc<Semaphore>,
}

impl Default for Turns {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, 8));
        let of = |turns| Arc::new(Semaphore::new(turns));
        Self { one: of(cores), small: of(cores), large: of(1), watched: of(WATCHED_MAX) }
    }
}

impl Turns {
    /// The turn of a look at so many containers.
    pub(super) async fn take(&self, containers: usize) -> Option<Turn> {
        // None is ever closed.
        Arc::clone(self.of(containers)).acquire_owned().await.ok()
    }

    fn of(&self, containers: usize) -> &Arc<Semaphore> {
        match containers {
            0..=1 => &self.one,
            2..=SMALL => &self.small,
            _ => &self.large,
        }
    }

    /// How many have such a turn or wait for one.
    #[cfg(test)]
    pub(super) fn asked_for(&self, containers: usize) -> usize {
        Arc::strong_count(self.of(containers)) - 1
    }

    /// The share of one who watches the usage of so many limits; none: too many are watched. One alone may watch any number.
    pub(super) fn watch(&self, limits: usize) -> Option<Turn> {
        let share = u32::try_from(limits.min(WATCHED_MAX)).ok()?;
        Arc::clone(&self.watched).try_acquire_many_owned(share).ok()
    }
}
