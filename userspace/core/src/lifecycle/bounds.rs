//! How much the machine remembers, and what it counts when that is not enough.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How much is remembered. Each bound says what is lost when it is reached; [`LifecycleCounters`] says how often it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// Cgroups that exist. One more is not followed: if it is a container's, that is not reported.
    pub cgroups: usize,
    /// Processes of all containers together. One more is not remembered: its role is said to be `child`, and
    /// `before_exec` is not claimed of it.
    pub processes: usize,
    /// Removed cgroups remembered for late records and late answers of the runtime. The oldest goes first: what
    /// comes later about it is counted, and not reported.
    pub removed: usize,
    /// For how long.
    pub removed_for: Duration,
    /// Records about cgroups that are not known yet, kept until a scan identifies them. One more is dropped: the scan still
    /// shows the state, but not what happened on the way there.
    pub parked: usize,
}

impl Bounds {
    /// As many cgroups as that, and in proportion to the defaults what belongs to them.
    pub fn for_cgroups(cgroups: usize) -> Self {
        let defaults = Self::default();
        let scaled = |bound: usize| bound.max(bound.saturating_mul(cgroups) / defaults.cgroups);
        Self {
            cgroups,
            processes: scaled(defaults.processes),
            removed: scaled(defaults.removed),
            parked: scaled(defaults.parked),
            removed_for: defaults.removed_for,
        }
    }
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            cgroups: 65_536,
            processes: 131_072,
            removed: 8_192,
            removed_for: Duration::from_secs(30),
            parked: 16_384,
        }
    }
}

/// What was dropped or could not be placed, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LifecycleCounters {
    /// Cgroups not followed: [`Bounds::cgroups`].
    pub cgroups_full: u64,
    /// Processes not remembered: [`Bounds::processes`].
    pub processes_full: u64,
    /// Removed cgroups forgotten early: [`Bounds::removed`].
    pub removed_forgotten: u64,
    /// Records about cgroups that were not known when they came.
    pub unknown_cgroup: u64,
    /// Of these, records given up: [`Bounds::parked`], or not identified by a scan either.
    pub unknown_dropped: u64,
    /// Answers of the runtime about containers that are not known, or no longer.
    pub runtime_unmatched: u64,
}

impl LifecycleCounters {
    /// Every counter with its name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let Self {
            cgroups_full,
            processes_full,
            removed_forgotten,
            unknown_cgroup,
            unknown_dropped,
            runtime_unmatched,
        } = *self;
        [
            ("cgroups_full", cgroups_full),
            ("processes_full", processes_full),
            ("removed_forgotten", removed_forgotten),
            ("unknown_cgroup", unknown_cgroup),
            ("unknown_dropped", unknown_dropped),
            ("runtime_unmatched", runtime_unmatched),
        ]
        .into_iter()
    }
}
