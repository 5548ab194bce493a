//! What kwitness reports: the same shape as `kwitness.v1alpha1.Event`, without sequence number and wall clock.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::container::{LevelRole, PodNames, Process, Subject};
use super::guard::GuardAct;
use super::ids::{CgroupId, KernelTime};
use super::kernel::{Actor, Caller, ExitStatus, OomChoice, OomUsage};
use super::limit::LimitChange;
use super::pressure::Pressure;
use super::verdict::Judged;

/// Something happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The hook's time, or the scan's for what a scan found.
    pub at: KernelTime,
    /// What the event rests on.
    pub basis: Basis,
    /// Whom it concerns; none for [`Kind::Gap`], [`Kind::Resynced`], and what concerns a pod or the node.
    pub subject: Option<Arc<Subject>>,
    /// What happened.
    pub kind: Kind,
}

/// The fact that an event rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// The kernel's record of that name.
    CgroupMkdir,
    /// The kernel's record of that name.
    CgroupRmdir,
    /// The kernel's record of that name.
    CgroupRelease,
    /// The kernel's record of that name.
    CgroupPopulated,
    /// The kernel's record of that name.
    TaskExec,
    /// The kernel's record of that name.
    TaskExit,
    /// The kernel's record of that name.
    LimitWrite,
    /// Found by reading a limit file.
    LimitRead,
    /// Found by sampling memory usage.
    MemorySample,
    /// The kernel's record of that name.
    MemoryCharge,
    /// The kernel's record of that name.
    OomKill,
    /// Found at start-up: it happened before.
    InitialScan,
    /// Found after a gap: it happened within.
    RepairScan,
    /// Reported by the container runtime.
    Runtime,
    /// Our own doing.
    Daemon,
    /// Reported by the guard.
    Guard,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The cgroup exists.
    Created {
        /// Who made it; unknown when a scan found it.
        actor: Option<Actor>,
    },
    /// The container's own first program runs.
    Started {
        /// The process; unknown when a scan found the container running, but not which process is its own first.
        process: Option<Process>,
        /// The program, as given to execve(2), or as a scan found it; unknown where the process is.
        program: Option<Arc<str>>,
    },
    /// A later program was executed.
    Exec {
        /// The process.
        process: Process,
        /// The program, as given to execve(2).
        program: Arc<str>,
    },
    /// A process is gone.
    Exited {
        /// The process.
        process: Process,
        /// Its exit code or signal.
        status: ExitStatus,
        /// It never executed a program in the container.
        before_exec: bool,
    },
    /// No process is left.
    Stopped {
        /// How the main process ended, if that was seen.
        main_status: Option<ExitStatus>,
        /// No program of the container's own was seen to run.
        never_started: bool,
        /// The main process was OOM-killed.
        main_oom_killed: bool,
    },
    /// A process was OOM-killed.
    OomKill(Box<OomKilled>),
    /// The cgroup is gone.
    Deleted {
        /// Who removed it; unknown when a scan missed it.
        actor: Option<Actor>,
    },
    /// More came to be known of the subject.
    Updated {
        /// Which fields, in the API's JSON spelling.
        fields: Vec<String>,
    },
    /// A limit was changed, or an attempt to change it refused. The subject is the container that the cgroup is, or is in.
    LimitChanged(Box<LimitChange>),
    /// The verdict on a desired limit changed.
    Verdict(Box<Judged>),
    /// Memory usage of a container, a pod, a QoS class or all pods crossed a threshold of its limit.
    Pressure(Box<Pressure>),
    /// Records were lost.
    Gap(Gap),
    /// The state is right again.
    Resynced {
        /// Containers found that had not been reported.
        found: u32,
        /// Containers gone unseen.
        gone: u32,
        /// Containers whose state was corrected.
        corrected: u32,
    },
    /// Another daemon goes on where one ended: what happened meanwhile has been reported before this, but for the gaps that say
    /// otherwise.
    AgentRestarted {
        /// When the earlier one was last seen to work.
        from: KernelTime,
        /// When the records of that time had been read.
        to: KernelTime,
        /// How many these were.
        records: u64,
    },
    /// The guard did something to the container.
    Guard(Box<GuardAct>),
}

/// An OOM kill, attributed. What the hook does not report is absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OomKilled {
    /// Who was killed.
    pub process: Process,
    /// How it came to be the victim.
    pub choice: Option<OomChoice>,
    /// What was exhausted.
    pub scope: Option<OomExhausted>,
    /// What was charged and allowed there.
    pub usage: Option<OomUsage>,
    /// Whose allocation, or whose write to a limit, led to it.
    pub trigger: Caller,
    /// The path of the cgroup that the trigger is in, where it is known.
    pub trigger_cgroup: Option<Arc<str>>,
}

/// What was exhausted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OomExhausted {
    /// A cgroup's memory limit.
    Limit {
        /// The cgroup.
        cgroup: CgroupId,
        /// Its path; none: it is not below a tracked root, or is unknown.
        path: Option<Arc<str>>,
        /// What it is; none likewise.
        role: Option<LevelRole>,
        /// The pod that it is, or is in.
        pod: Option<PodNames>,
    },
    /// The machine's memory.
    Machine,
}

/// Records were lost between two times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// Why they were lost.
    pub cause: GapCause,
    /// How many, by record kind.
    pub lost: BTreeMap<String, u64>,
    /// [`GapCause::AgentDown`] only: the capabilities that recorded nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
    /// No record was lost before this time.
    pub from: KernelTime,
    /// No record was lost after this time.
    pub to: KernelTime,
    /// [`GapCause::CgroupUnreadable`] only: the cgroup's path from the root of the hierarchy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<Arc<str>>,
}

/// Why records were lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GapCause {
    /// A kernel ring was full.
    RingFull,
    /// The set of tracked cgroups was full.
    TrackedSetFull,
    /// A record could not be decoded.
    MalformedRecord,
    /// The kernel's queue of file notices was full; how many were lost is not known.
    WatchOverflow,
    /// The kernel did not run a program, because one that it had interrupted or preempted was still running on the same
    /// CPU. At most so many records were not made: whether the program would have made one is not known.
    ProgramSkipped,
    /// A bound of the daemon was reached: what is counted was not followed; or no scan found the cgroup of a record. The event names
    /// the container whose it was, where that is known.
    CapacityExceeded,
    /// A walk of the tree could not read a cgroup: it and what is below are left out until that can be read.
    CgroupUnreadable,
    /// No program ran while no daemon did. How many records that cost is not known.
    AgentDown,
    /// The guard could not report for longer than its queue lasts.
    GuardReportsDropped,
    /// Requests for limits that the CRI proxy could not observe, or not keep until it could report them. The event names the container
    /// whose they are, where that is known.
    CriRequestsMissed,
}
