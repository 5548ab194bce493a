//! How far a sandbox or a container has come in its life.
//!
//! ```text
//!  Unseen ──▶ Created ──▶ Started ──▶ Stopped ──▶ (gone)
//!     └──────────┴─ a container may end without having started
//! ```
//!
//! The runtime's states map onto it one to one; a sandbox is `Started` while it is ready. There is no way back: the CRI starts a
//! container once.

use bytes::Bytes;
use prost::Message as _;

use kwitness_cri::events as wire;

/// How far a container has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Progress {
    /// No event of it was sent.
    #[default]
    Unseen,
    /// `CONTAINER_CREATED`.
    Created,
    /// `CONTAINER_RUNNING`, `SANDBOX_READY`.
    Started,
    /// `CONTAINER_EXITED`, `SANDBOX_NOTREADY`.
    Stopped,
}

/// What the kernel showed of one after the time from which on events are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shown {
    /// How far it came.
    pub(super) reached: Progress,
    /// Its beginning, and not only its end.
    pub(super) began: bool,
}

impl Shown {
    /// One thing more.
    pub(super) fn add(&mut self, progress: Progress) {
        self.reached = self.reached.max(progress);
        self.began |= matches!(progress, Progress::Created | Progress::Started);
    }
}

/// Whether it is a container or a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Sandbox,
    Container,
}

impl Kind {
    /// What a state of the runtime means; none: the runtime does not know it itself.
    pub(super) fn progress(self, state: i32) -> Option<Progress> {
        match (self, state) {
            (Self::Sandbox, 0) | (Self::Container, 1) => Some(Progress::Started),
            (Self::Sandbox, 1) | (Self::Container, 2) => Some(Progress::Stopped),
            (Self::Container, 0) => Some(Progress::Created),
            (Self::Sandbox | Self::Container, _) => None,
        }
    }
}

/// A status as the runtime gave it, and what was looked at in it. Times are wall-clock nanoseconds, 0: not yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) bytes: Bytes,
    pub(super) progress: Option<Progress>,
    pub(super) created_at: i64,
    pub(super) started_at: i64,
    pub(super) finished_at: i64,
}

impl Status {
    /// Looks at it.
    ///
    /// # Errors
    /// It is no status.
    pub(super) fn new(kind: Kind, bytes: Bytes) -> Result<Self, prost::DecodeError> {
        let (state, created_at, started_at, finished_at) = match kind {
            Kind::Sandbox => {
                let seen = wire::PodSandboxStatus::decode(bytes.clone())?;
                (seen.state, seen.created_at, seen.created_at, 0)
            }
            Kind::Container => {
                let seen = wire::ContainerStatus::decode(bytes.clone())?;
                (seen.state, seen.created_at, seen.started_at, seen.finished_at)
            }
        };
        Ok(Self { bytes, progress: kind.progress(state), created_at, started_at, finished_at })
    }

    /// Where it was at a time, by the runtime's own times.
    pub(super) fn progress_at(&self, time: i64) -> Progress {
        let now = self.progress.unwrap_or(Progress::Unseen);
        if self.created_at > time {
            Progress::Unseen
        } else if now >= Progress::Started && (self.started_at > time || self.never_started()) {
            if self.finished_at > time || self.started_at > time { Progress::Created } else { now }
        } else if now == Progress::Stopped && self.finished_at > time {
            Progress::Started
        } else {
            now
        }
    }

    /// It ended, or is about to, without ever having run.
    pub(super) fn never_started(&self) -> bool {
        self.progress == Some(Progress::Stopped) && self.started_at <= 0
    }

    /// When a step was made, as far as the runtime says.
    pub(super) fn time_of(&self, step: Progress) -> i64 {
        match step {
            Progress::Unseen | Progress::Created => self.created_at,
            Progress::Started => self.started_at.max(self.created_at),
            Progress::Stopped => self.finished_at.max(self.started_at).max(self.created_at),
        }
    }
}

/// The steps that take it from one place to another, in order. One that ended without having started has not started.
pub(super) fn steps(from: Progress, to: Progress, never_started: bool) -> impl Iterator<Item = Progress> {
    [Progress::Created, Progress::Started, Progress::Stopped]
        .into_iter()
        .filter(move |step| *step > from && *step <= to)
        .filter(move |step| !(never_started && *step == Progress::Started))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(state: i32, created_at: i64, started_at: i64, finished_at: i64) -> Status {
        let bytes =
            wire::ContainerStatus { state, created_at, started_at, finished_at }.encode_to_vec().into();
        Status::new(Kind::Container, bytes).unwrap()
    }

    #[test]
    fn where_it_was_follows_from_the_runtimes_times() {
        let exited = container(2, 10, 20, 30);
        for (time, progress) in [
            (9, Progress::Unseen),
            (10, Progress::Created),
            (19, Progress::Created),
            (20, Progress::Started),
            (29, Progress::Started),
            (30, Progress::Stopped),
        ] {
            assert_eq!(exited.progress_at(time), progress, "{time}");
        }
        let never_ran = container(2, 10, 0, 30);
        assert_eq!(never_ran.progress_at(29), Progress::Created);
        assert_eq!(never_ran.progress_at(30), Progress::Stopped);
        // cri-dockerd, by Docker's time of the year 1.
        let never_ran = container(2, 10, -6_795_364_578_871_345_152, 30);
        assert!(never_ran.never_started());
        assert_eq!(never_ran.progress_at(29), Progress::Created);
        assert_eq!(never_ran.time_of(Progress::Started), 10);
        assert_eq!(container(0, 10, 0, 0).progress_at(10), Progress::Created);
        assert_eq!(container(1, 10, 20, 0).progress_at(25), Progress::Started);
    }

    #[test]
    fn steps_are_sent_once_and_in_order() {
        use Progress::*;
        assert_eq!(steps(Unseen, Stopped, false).collect::<Vec<_>>(), [Created, Started, Stopped]);
        assert_eq!(steps(Unseen, Stopped, true).collect::<Vec<_>>(), [Created, Stopped]);
        assert_eq!(steps(Started, Stopped, false).collect::<Vec<_>>(), [Stopped]);
        assert_eq!(steps(Stopped, Started, false).count(), 0);
    }

    #[test]
    fn an_unknown_state_says_nothing() {
        assert_eq!(Kind::Container.progress(3), None);
        assert_eq!(Kind::Sandbox.progress(7), None);
    }
}
