//! What the guard reports of a container: other people's data, checked before it gets here.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::container::LevelRole;
use super::ids::{ContainerId, KernelTime, ProcKey};

/// A report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardReport {
    /// When it happened.
    pub at: KernelTime,
    /// To which container.
    pub container: ContainerId,
    /// What the guard did.
    pub act: GuardAct,
}

/// What the guard did. Amounts of memory are in bytes, durations in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuardAct {
    /// A process was stopped before it would have crossed the threshold.
    Held {
        /// The process.
        process: GuardedProcess,
        /// Whose limit it is.
        level: LevelRole,
        /// What is used of it, with what was about to be charged.
        usage: u64,
        /// The limit then.
        limit: u64,
    },
    /// The limit was raised, and is in force.
    Raised {
        /// Whose limit it is.
        level: LevelRole,
        /// The limit before.
        from: u64,
        /// The limit since.
        to: u64,
        /// Since the first process was held.
        held: u64,
    },
    /// A process is not held any more.
    Continued {
        /// The process.
        process: GuardedProcess,
        /// How long it was.
        held: u64,
        /// What it was seen to be.
        state: GuardedState,
        /// Why the guard did not end the hold itself, in one word; none: it did.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<Arc<str>>,
    },
    /// The limit was not changed.
    Refused {
        /// What was attempted.
        attempt: GuardAttempt,
        /// Why, in one word.
        reason: Arc<str>,
        /// Why, for people.
        detail: Arc<str>,
        /// Whose limit prevented it, or else whose limit it is.
        level: LevelRole,
        /// The container's limit then; none: it has none any more.
        limit: Option<u64>,
        /// Since the first process was held; none: none was.
        held: Option<u64>,
    },
    /// The limit was lowered again, and is in force.
    Returned {
        /// Whose limit it is.
        level: LevelRole,
        /// The limit before.
        from: u64,
        /// The limit since.
        to: u64,
        /// The limit before the first raise.
        original: u64,
    },
}

impl GuardAct {
    /// Whether it decides what limit the guard desires: verdicts on it may be other ones from then on.
    pub fn decides_limit(&self) -> bool {
        match self {
            Self::Raised { .. } | Self::Refused { .. } | Self::Returned { .. } => true,
            Self::Held { .. } | Self::Continued { .. } => false,
        }
    }
}

/// A process as the guard knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardedProcess {
    /// Its pid and start time.
    pub key: ProcKey,
    /// Its name.
    pub comm: Arc<str>,
}

/// What a process was seen to be after its hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuardedState {
    /// It runs.
    Running,
    /// It has ended.
    Gone,
    /// Another process stops it again each time that it is continued.
    Stopped,
}

/// What the guard attempted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuardAttempt {
    /// To raise a limit.
    Raise,
    /// To give a raise back.
    Return,
}
