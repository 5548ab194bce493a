//! The machine of a container's life.

use std::sync::Arc;
use std::time::Duration;

use crate::event::{Event, ExitStatus, Process, Subject};
use crate::ids::KernelTime;
use crate::observation::{Action, Observation};

/// How much is remembered. Each bound says what is lost when it is reached; [`Counters`] says how often it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Cgroups that exist. One more is not followed: its container is not reported.
    pub cgroups: usize,
    /// Processes of all containers together. One more is not remembered: its role is said to be `child`, and
    /// `before_exec` is not claimed of it.
    pub processes: usize,
    /// Removed cgroups remembered for late records and late answers of the runtime. The oldest goes first: what
    /// comes later about it is counted, and a late answer of the runtime is not reported.
    pub removed: usize,
    /// For how long.
    pub removed_for: Duration,
    /// Records about cgroups that are not known yet, kept until a scan tells. One more is dropped.
    pub parked: usize,
}

impl Default for Limits {
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

/// What follows from an observation. Reused: whoever takes the contents leaves the capacity.
#[derive(Debug, Default)]
pub struct Output {
    /// To be reported, in this order.
    pub events: Vec<Event>,
    /// To be done.
    pub actions: Vec<Action>,
}

/// What was dropped or could not be placed, since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Cgroups not followed: [`Limits::cgroups`].
    pub cgroups_full: u64,
    /// Processes not remembered: [`Limits::processes`].
    pub processes_full: u64,
    /// Removed cgroups forgotten early: [`Limits::removed`].
    pub removed_forgotten: u64,
    /// Records about cgroups that were not known.
    pub unknown_cgroup: u64,
    /// Of these, records not kept: [`Limits::parked`], or still nobody's after a scan.
    pub parked_dropped: u64,
    /// Answers of the runtime about containers that are not known, or no longer.
    pub runtime_unmatched: u64,
}

impl Counters {
    /// Every counter with its name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let Self {
            cgroups_full,
            processes_full,
            removed_forgotten,
            unknown_cgroup,
            parked_dropped,
            runtime_unmatched,
        } = *self;
        [
            ("cgroups_full", cgroups_full),
            ("processes_full", processes_full),
            ("removed_forgotten", removed_forgotten),
            ("unknown_cgroup", unknown_cgroup),
            ("parked_dropped", parked_dropped),
            ("runtime_unmatched", runtime_unmatched),
        ]
        .into_iter()
    }
}

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// The cgroup exists; the container's own program does not run yet.
    Created,
    /// It runs.
    Running,
    /// No process is left.
    Stopped,
}

/// A container as it is now; the same shape as `kwitness.v1.ContainerState`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerState {
    /// Which.
    pub subject: Arc<Subject>,
    /// Where it is in its life.
    pub state: State,
    /// When its cgroup was made, if that was seen.
    pub created_at: Option<KernelTime>,
    /// When its own first program was executed, if that was seen.
    pub started_at: Option<KernelTime>,
    /// When its last process went, if that was seen.
    pub stopped_at: Option<KernelTime>,
    /// The process of its own first program, if known.
    pub main: Option<Process>,
    /// That program, if known.
    pub program: Option<Arc<str>>,
    /// How the main process ended, if that was seen.
    pub main_status: Option<ExitStatus>,
    /// Processes made in it, as far as seen.
    pub forks: u64,
    /// Programs executed in it, as far as seen.
    pub execs: u64,
    /// Processes gone from it, as far as seen.
    pub exits: u64,
}

/// The machine: all containers of the node.
#[derive(Debug)]
pub struct Lifecycle {
    limits: Limits,
    counters: Counters,
}

impl Lifecycle {
    /// A machine that knows no container yet, and expects the observation of an initial scan.
    pub fn new(limits: Limits) -> Self {
        Self { limits, counters: Counters::default() }
    }

    /// Takes one observation; appends what follows from it.
    pub fn observe(&mut self, observation: Observation, output: &mut Output) {
        let _ = (observation, output);
    }

    /// The containers whose cgroup exists, in no particular order.
    pub fn containers(&self) -> impl Iterator<Item = ContainerState> + '_ {
        std::iter::empty()
    }

    /// How much is remembered at most.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What was dropped or could not be placed.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}
