//! The doors of the core: observations go in, events and actions come out.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::container::{RuntimeFacts, Subject};
use super::event::{Basis, Event, GapCause, Kind};
use super::guard::GuardReport;
use super::ids::{CgroupId, ContainerId, KernelTime};
use super::kernel::{KernelEvent, TaskInfo};
use super::limit::{LimitsAnswer, ReadLimits};
use super::pressure::MemorySamples;
use super::verdict::{Evidence, VerdictScope};

/// A record, an answer or a request; the whole input of the core.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Observation {
    /// A record of the kernel.
    Kernel(KernelEvent),
    /// Records were lost.
    Lost(Loss),
    /// The cgroup tree was walked, and every record that the kernel had made until then has been observed.
    Scan(Scan),
    /// The container runtime answered a [`Action::Resolve`], or reported by itself.
    Runtime {
        /// When the answer came.
        at: KernelTime,
        /// The container that was queried.
        container: ContainerId,
        /// What; none: the runtime does not know it, and will not be queried again.
        facts: Option<Arc<RuntimeFacts>>,
    },
    /// Limit files were read: the answer to an [`Action::ReadLimits`].
    LimitsRead(LimitsAnswer),
    /// What was gathered to judge a limit: the answer to an [`Action::Judge`], or for a client's `Verify`.
    Evidence(Box<Evidence>),
    /// Memory usage was sampled.
    MemorySampled(MemorySamples),
    /// A CRI request to set limits was observed.
    LimitsRequested {
        /// When that was reported.
        at: KernelTime,
        /// Containers and sandboxes whose limits these are.
        containers: Vec<ContainerId>,
        /// Those whose earlier requests are not remembered any more, for there were too many.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        forgotten: Vec<ContainerId>,
    },
    /// CRI requests to set limits were not observed, or not kept until they could be reported.
    RequestsMissed {
        /// When that was reported.
        at: KernelTime,
        /// The container or sandbox whose limits these are; none: that is not known, it may be any.
        container: Option<ContainerId>,
        /// When the first of them was made.
        from: KernelTime,
        /// When the last was answered.
        to: KernelTime,
        /// How many these were.
        count: u64,
    },
    /// The guard did something.
    Guard(GuardReport),
    /// The guard dropped reports.
    GuardReportsDropped {
        /// When that was observed.
        at: KernelTime,
        /// When the first of them happened.
        from: KernelTime,
        /// When the last did.
        to: KernelTime,
        /// How many these were.
        count: u64,
    },
    /// Another daemon goes on where one ended.
    AgentRestarted {
        /// When the earlier one was last seen to work.
        from: KernelTime,
        /// When the records of that time had been read.
        to: KernelTime,
        /// How many these were.
        records: u64,
    },
    /// Time passed: what was kept for a while may go.
    Tick {
        /// The time of the tick.
        at: KernelTime,
    },
}

/// Records were lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// Nothing was lost before this time.
    pub from: KernelTime,
    /// Nothing was lost after this time.
    pub to: KernelTime,
    /// Why they were lost.
    pub cause: GapCause,
    /// How many, by record kind's name.
    pub lost: BTreeMap<String, u64>,
    /// [`GapCause::RingFull`] only: whose of these it is known, by the container's [`kwitness_abi::container_number`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub by_container: BTreeMap<u32, BTreeMap<String, u64>>,
    /// [`GapCause::AgentDown`] only: the capabilities that recorded nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
}

/// A walk of the cgroup tree below all tracked roots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scan {
    /// Why it was made.
    pub reason: ScanReason,
    /// When it began: younger records weigh more than what it found.
    pub began: KernelTime,
    /// When it ended.
    pub ended: KernelTime,
    /// Cgroups that were found and that the kernel side cannot track, for its set is full: their records do not come.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub untracked: u64,
    /// What could not be read, and is missing here with all that is below it.
    #[serde(default, skip_serializing_if = "Unreadable::is_empty")]
    pub unreadable: Unreadable,
    /// Parents before their children.
    pub cgroups: Vec<ScannedCgroup>,
}

impl Scan {
    /// A walk that took no time and met nothing.
    pub fn empty(reason: ScanReason, at: KernelTime) -> Self {
        let unreadable = Unreadable::default();
        Self { reason, began: at, ended: at, untracked: 0, unreadable, cgroups: Vec::new() }
    }
}

/// Cgroups that a walk could not read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreadable {
    /// How many there are.
    pub count: u64,
    /// The first [`Unreadable::NAMED`] of them.
    pub cgroups: Vec<UnreadableCgroup>,
}

/// A cgroup that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnreadableCgroup {
    /// Its path from the root of the hierarchy.
    pub path: Arc<str>,
    /// The parent's id.
    pub parent: CgroupId,
    /// Why it cannot be read.
    pub error: Arc<str>,
}

impl Unreadable {
    /// How many are named at most.
    pub const NAMED: usize = 32;

    /// Notes one.
    pub fn push(&mut self, cgroup: UnreadableCgroup) {
        self.count += 1;
        if self.cgroups.len() < Self::NAMED {
            self.cgroups.push(cgroup);
        }
    }

    /// Whether everything could be read.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether a cgroup of that path may be there, though the walk did not meet it.
    pub fn may_hide(&self, path: &str) -> bool {
        self.count > self.cgroups.len() as u64
            || self.cgroups.iter().any(|cgroup| is_within(path, &cgroup.path))
    }

    /// Whether one of those that are named lies in the cgroup of that path.
    pub fn is_in(&self, path: &str) -> bool {
        self.cgroups.iter().any(|cgroup| is_within(&cgroup.path, path))
    }
}

fn is_within(path: &str, top: &str) -> bool {
    path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Why a scan is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScanReason {
    /// The daemon started.
    Initial,
    /// Records were lost.
    Repair,
}

/// A cgroup that a scan found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScannedCgroup {
    /// Its id.
    pub id: CgroupId,
    /// Its parent's.
    pub parent: CgroupId,
    /// Its path from the root of the hierarchy. Of one whose path is longer than the walk keeps, a path of a cgroup above it,
    /// with `/...` at its end.
    pub path: Arc<str>,
    /// The kernel side does not track it, for its container has more than its share of what is tracked; what is below is left out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub beyond_share: bool,
    /// `cgroup.events`' `populated`; none if the file could not be read.
    pub populated: Option<bool>,
    /// The processes in the cgroup itself, by age; those that went away while being read are left out.
    pub processes: Vec<ScannedProcess>,
}

/// A process that a scan found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScannedProcess {
    /// The process.
    pub task: TaskInfo,
    /// The program that it runs (`/proc/PID/exe`); none if that could not be read.
    pub program: Option<Arc<str>>,
}

/// What the core wants done; the engine does it and observes the outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Ask the container runtime; answer with [`Observation::Runtime`].
    Resolve(ContainerId),
    /// Walk the cgroup tree; answer with [`Observation::Scan`].
    Rescan,
    /// Take a cgroup out of the kernel side's set: it is beyond its container's share.
    Untrack(CgroupId),
    /// Read limit files; answer with [`Observation::LimitsRead`].
    ReadLimits(ReadLimits),
    /// Gather what is to be known of these limits, until the verdict is final; answer with [`Observation::Evidence`].
    Judge(VerdictScope),
}

/// What follows from an observation. Reused: whoever takes the contents leaves the capacity.
#[derive(Debug, Default)]
pub struct Output {
    /// To be reported, in this order.
    pub events: Vec<Event>,
    /// Actions for the engine, in this order.
    pub actions: Vec<Action>,
}

impl Output {
    pub(crate) fn emit(&mut self, at: KernelTime, basis: Basis, subject: &Arc<Subject>, kind: Kind) {
        self.events.push(Event { at, basis, subject: Some(Arc::clone(subject)), kind });
    }

    pub(crate) fn emit_own(&mut self, at: KernelTime, kind: Kind) {
        self.events.push(Event { at, basis: Basis::Daemon, subject: None, kind });
    }
}
