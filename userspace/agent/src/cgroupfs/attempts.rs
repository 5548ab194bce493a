//! Attempts to read what the kernel reports, some of which fail: when the next one is made, and whether that is a problem.
//!
//! ```text
//!  error ──▶ a problem ──▶ again after 10 ms, 20 ms … 10 s ──▶ 10 s more without an error: no problem any more
//! ```
//!
//! Never reads or waits itself, and never gives up.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kwitness_core::model::Problem;
use nix::errno::Errno;
use nix::poll::PollTimeout;

/// The wait after an error, doubled each time.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(10));
/// Without an error for so long after that wait, reading works again.
const QUIET: Duration = Duration::from_secs(10);

/// Whether limit writes can be read from fanotify. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct WatchState(Arc<Mutex<Option<Errno>>>);

impl WatchState {
    /// That they cannot be read at present, if so.
    pub fn problem(&self) -> Option<Problem> {
        let error = (*self.0.lock().unwrap_or_else(PoisonError::into_inner))?;
        Some(Problem::LimitWritesUnread { error: io::Error::from(error).to_string().into() })
    }

    fn set(&self, error: Option<Errno>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Attempts {
    state: WatchState,
    /// Since an error: the wait after it, and when it is over unless there is another.
    failing: Option<(Duration, Instant)>,
}

impl Attempts {
    /// None was made yet.
    pub(super) fn new(state: WatchState) -> Self {
        Self { state, failing: None }
    }

    /// What was read, if it could be, and how long to wait before the next attempt.
    pub(super) fn judge<T>(&mut self, read: nix::Result<T>, now: Instant) -> (Option<T>, Duration) {
        match read {
            Ok(read) => {
                if self.failing.is_some_and(|(_, over)| now >= over) {
                    self.failing = None;
                    self.state.set(None);
                }
                (Some(read), Duration::ZERO)
            }
            Err(error) => {
                let pause = self.failing.map_or(PAUSE.0, |(pause, _)| (pause * 2).min(PAUSE.1));
                self.failing = Some((pause, now + pause + QUIET));
                self.state.set(Some(error));
                (None, pause)
            }
        }
    }

    /// How long the next attempt may wait for something to read.
    pub(super) fn patience(&self) -> PollTimeout {
        match self.failing {
            None => PollTimeout::NONE,
            Some(_) => QUIET.try_into().unwrap_or(PollTimeout::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_grows_while_errors_repeat_and_the_problem_ends_with_them() {
        let state = WatchState::default();
        let mut attempts = Attempts::new(state.clone());
        let mut now = Instant::now();
        assert_eq!((attempts.patience(), state.problem()), (PollTimeout::NONE, None));
        let mut waits = Vec::new();
        for _ in 0..12 {
            let (read, pause) = attempts.judge::<()>(Err(Errno::EMFILE), now);
            assert_eq!(read, None);
            waits.push(pause.as_millis());
            now += pause;
            // What can be read in between is read, and does not end it.
            assert_eq!(attempts.judge(Ok(()), now), (Some(()), Duration::ZERO));
        }
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10_000, 10_000]);
        let problem = state.problem().unwrap();
        let is_named =
            matches!(&problem, Problem::LimitWritesUnread { error } if error.contains("open files"));
        assert!(is_named, "{problem:?}");
        assert_ne!(attempts.patience(), PollTimeout::NONE, "the end is noticed if nothing comes");
        attempts.judge(Ok(()), now + QUIET);
        assert_eq!((attempts.patience(), state.problem()), (PollTimeout::NONE, None));
        assert_eq!(attempts.judge::<()>(Err(Errno::ENOMEM), now).1, PAUSE.0, "from the beginning");
    }
}
