//! What kwitness reports. The same shape as `kwitness.v1alpha1.Event`, without the journal's place and the wall clock.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::ids::{CgroupId, ContainerId, KernelTime, PodUid, ProcKey, QosClass, Runtime};
use crate::limits::{Changed, LevelRole};
use crate::observation::{Caller, OomChoice, OomUsage};
use crate::resize::Judged;

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
    /// The kernel's record of that name.
    OomKill,
    /// Found at start-up: it happened before.
    InitialScan,
    /// Found after a gap: it happened within.
    RepairScan,
    /// Told by the container runtime.
    Runtime,
    /// Our own doing.
    Daemon,
}

/// A container's cgroup, and what is known of the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// The cgroup that stands for the container (inner groups are the container's, too).
    pub cgroup_id: CgroupId,
    /// Its path from the root of the hierarchy.
    pub cgroup_path: Arc<str>,
    /// The runtime's id of the container.
    pub container_id: ContainerId,
    /// The runtime, where the path or the runtime itself tells.
    pub runtime: Option<Runtime>,
    /// Its pod; none outside Kubernetes.
    pub pod: Option<PodRef>,
    /// What the runtime told of it.
    pub facts: Option<Arc<RuntimeFacts>>,
}

/// A pod as its cgroup path names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRef {
    /// The pod's UID.
    pub uid: PodUid,
    /// The pod's class.
    pub qos: QosClass,
}

/// A pod, with its names if a container of it has been named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodNames {
    /// As its cgroup path names it.
    pub pod: PodRef,
    /// Its namespace.
    pub namespace: Option<Arc<str>>,
    /// Its name.
    pub name: Option<Arc<str>>,
}

impl PodNames {
    /// Without names.
    pub fn unnamed(pod: PodRef) -> Self {
        Self { pod, namespace: None, name: None }
    }

    /// The pod of a container, if it is in one.
    pub fn of(subject: &Subject) -> Option<Self> {
        let facts = subject.facts.as_deref();
        Some(Self {
            pod: subject.pod.clone()?,
            namespace: facts.and_then(|facts| facts.pod_namespace.clone()),
            name: facts.and_then(|facts| facts.pod_name.clone()),
        })
    }
}

/// What the container runtime tells of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeFacts {
    /// Sandbox or application.
    pub container_type: ContainerType,
    /// The container's name in its pod; a sandbox has none.
    pub name: Option<Arc<str>>,
    /// The pod's name.
    pub pod_name: Option<Arc<str>>,
    /// The pod's namespace.
    pub pod_namespace: Option<Arc<str>>,
    /// The pod's UID as the runtime knows it.
    pub pod_uid: Option<PodUid>,
    /// The image's name as the pod's spec gave it.
    pub image: Option<Arc<str>>,
    /// The container's labels.
    pub labels: BTreeMap<String, String>,
}

/// A pod's sandbox, or one of its containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerType {
    /// The pause container, or the cgroup that stands for it.
    Sandbox,
    /// Any other.
    App,
}

/// A process of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Which.
    pub key: ProcKey,
    /// Its parent's pid.
    pub ppid: u32,
    /// Its `comm`.
    pub comm: Arc<str>,
    /// What it is to the container.
    pub role: Role,
}

/// What a process is to its container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The container's own first program.
    Main,
    /// Came from outside: `kubectl exec`, a probe, the runtime's init helper.
    Entered,
    /// A descendant of one of the others.
    Child,
}

/// Who made a system call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// Its pid.
    pub pid: u32,
    /// Its `comm`.
    pub comm: Arc<str>,
}

/// How a process ended, wait(2)'s way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// It called exit.
    Code(u8),
    /// A signal ended it.
    Signal {
        /// The signal's number.
        signal: u8,
        /// It left a core.
        core_dumped: bool,
    },
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
        /// How.
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
        /// The main process was seen to be killed for want of memory.
        main_oom_killed: bool,
    },
    /// A process was killed for want of memory.
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
    LimitChanged(Box<Changed>),
    /// What a limit that was asked for has become: another verdict than before.
    Verdict(Box<Judged>),
    /// Records were lost.
    Gap(Gap),
    /// The state is right again.
    Resynced {
        /// Containers found that nobody had told of.
        found: u32,
        /// Containers gone unseen.
        gone: u32,
        /// Containers whose state was corrected.
        corrected: u32,
    },
}

/// A kill for want of memory, attributed. What the hook could not tell is absent.
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
        /// Whose.
        cgroup: CgroupId,
        /// Its path; none: it is not below a tracked root, or nobody told of it.
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
    /// Why.
    pub cause: GapCause,
    /// How many, by record kind.
    pub lost: BTreeMap<String, u64>,
    /// Not before.
    pub from: KernelTime,
    /// Not after.
    pub to: KernelTime,
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
}
