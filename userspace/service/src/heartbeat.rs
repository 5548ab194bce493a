//! Whether a program's thread still runs: a beat every few seconds, and how long ago the last one was.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Between two beats.
pub const BEAT: Duration = Duration::from_secs(5);
/// How long there may be none before the program counts as dead.
pub const SILENCE_MAX: Duration = Duration::from_secs(60);

/// The beats of one thread.
#[derive(Debug)]
pub struct Heartbeat {
    began: Instant,
    /// The last beat, in milliseconds since then.
    last: AtomicU64,
}

impl Default for Heartbeat {
    /// The first beat is now.
    fn default() -> Self {
        Self { began: Instant::now(), last: AtomicU64::new(0) }
    }
}

impl Heartbeat {
    /// Beats, on the thread that is to be seen running.
    pub async fn beat(&self) -> Infallible {
        loop {
            let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.last.store(now, Ordering::Relaxed);
            tokio::time::sleep(BEAT).await;
        }
    }

    /// Since the last beat.
    pub fn silence(&self) -> Duration {
        let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
        self.began.elapsed().saturating_sub(last)
    }
}
