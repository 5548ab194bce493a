//! How many looks read files and are judged at a time.
//!
//! A look at a whole node takes the engine some milliseconds and a core longer, and there may be a thousand calls. So those of clients
//! take turns, and whoever asks for something else waits for one of them, not for all. Looks at few containers have turns of their own:
//! who waits for one pod's limits does not wait for those who look at all.
//!
//! Never held while the runtime or a checkpoint is waited for.

use tokio::sync::{Semaphore, SemaphorePermit};

/// Containers of a look that is small.
const SMALL: usize = 16;

/// See the module's description.
#[derive(Debug)]
pub(super) struct Turns {
    small: Semaphore,
    large: Semaphore,
}

impl Default for Turns {
    fn default() -> Self {
        Self { small: Semaphore::new(2), large: Semaphore::new(1) }
    }
}

impl Turns {
    /// The turn of a look at so many containers, until it is dropped.
    pub(super) async fn take(&self, containers: usize) -> Option<SemaphorePermit<'_>> {
        let turns = if containers <= SMALL { &self.small } else { &self.large };
        // None is ever closed.
        turns.acquire().await.ok()
    }
}
