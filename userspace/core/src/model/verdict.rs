//! Desired limits, the evidence for a verdict, and the verdict.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::container::{LevelRole, PodNames, Subject};
use super::ids::{CgroupId, ContainerId, KernelTime, PodUid};
use super::kernel::WriteResult;
use super::kubernetes::{ApiFinding, ApiView};
use super::limit_file::LimitFile;
use super::value::{Bound, CpuMax, Reading, Value};

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// CPU time: `cpu.max`.
    Cpu,
    /// The share of the CPU under contention: `cpu.weight`.
    CpuWeight,
    /// Memory: `memory.max`.
    Memory,
    /// Memory from which on whoever takes more is slowed down: `memory.high`.
    MemoryHigh,
    /// Swap: `memory.swap.max`.
    Swap,
}

impl Resource {
    /// All resources.
    pub const ALL: [Self; 5] = [Self::Cpu, Self::CpuWeight, Self::Memory, Self::MemoryHigh, Self::Swap];

    /// The file that says it.
    pub const fn file(self) -> LimitFile {
        match self {
            Self::Cpu => LimitFile::CpuMax,
            Self::CpuWeight => LimitFile::CpuWeight,
            Self::Memory => LimitFile::MemoryMax,
            Self::MemoryHigh => LimitFile::MemoryHigh,
            Self::Swap => LimitFile::MemorySwapMax,
        }
    }

    /// Other files whose writes change what [that file](Self::file) says: the kernel keeps one weight behind all three.
    pub const fn other_writers(self) -> &'static [LimitFile] {
        match self {
            Self::CpuWeight => &[LimitFile::CpuIdle, LimitFile::CpuWeightNice],
            Self::Cpu | Self::Memory | Self::MemoryHigh | Self::Swap => &[],
        }
    }

    /// The resource whose file says something else after a write to this one.
    pub fn changed_by(limit_file: LimitFile) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|resource| resource.file() == limit_file || resource.other_writers().contains(&limit_file))
    }

    /// The resource that this file limits, if it is judged.
    pub fn of(limit_file: LimitFile) -> Option<Self> {
        Self::ALL.into_iter().find(|resource| resource.file() == limit_file)
    }

    /// Whether a level's file binds all levels below it. A weight is only a share among siblings.
    pub const fn is_inherited(self) -> bool {
        !matches!(self, Self::CpuWeight)
    }
}

/// Who says what is wanted; the one that is nearest to the intention comes first, and is what is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Whoever asks for a verdict.
    Client,
    /// The kubelet's checkpoint of what it has admitted.
    KubeletAllocated,
    /// The request to the container runtime, as it passed by.
    CriRequest,
    /// The kubelet's checkpoint of the resources that it actuated with the runtime.
    KubeletActuated,
    /// The resources in the container runtime's status.
    Runtime,
    /// What the guard sets; see [`judge`](crate::verdicts::judge).
    Guard,
}

/// Whose limits are judged.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VerdictScope {
    /// A container's.
    Container(ContainerId),
    /// A pod's, and those of all its containers.
    Pod(PodUid),
    /// The containers of all pods, and the pods' own limits.
    All,
}

/// The node's last verdict on a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastVerdict {
    /// Whose limit it is; none: a pod's.
    pub subject: Option<Arc<Subject>>,
    /// The pod.
    pub pod: Option<PodUid>,
    /// What is limited.
    pub resource: Resource,
    /// The verdict.
    pub verdict: Verdict,
}

/// One source's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DesiredLimit {
    /// The source.
    pub source: Source,
    /// When it was learned.
    pub at: KernelTime,
    /// What it says.
    pub wanted: Wanted,
}

/// A time in which requests to the container runtime were not observed: no daemon ran, none had begun to, or the CRI proxy missed them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unobserved {
    /// The beginning.
    pub from: KernelTime,
    /// The end.
    pub to: KernelTime,
}

/// A cgroup on the way from the processes to the root, and what its file says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Level {
    /// The cgroup's path from the root of the hierarchy.
    pub path: Arc<str>,
    /// What it is.
    pub role: LevelRole,
    /// What the file says.
    pub reading: Reading,
}

/// Who wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writer {
    /// Its pid.
    pub pid: u32,
    /// Its `comm`.
    pub comm: Arc<str>,
    /// The path of the cgroup that it is in, if that is known.
    pub cgroup: Option<Arc<str>>,
}

impl fmt::Display for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.comm, self.pid)
    }
}

/// An attempt to write the judged file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// What was written; none: that was not seen.
    pub value: Option<Arc<str>>,
    /// Its result, as far as the hook reports it; unknown for one that has not returned.
    pub result: WriteResult,
    /// Who wrote, if that was seen.
    pub writer: Option<Writer>,
    /// When the write began, if that was seen.
    pub began: Option<KernelTime>,
    /// When it was over; none: it is not.
    pub ended: Option<Ended>,
}

/// How an attempt was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// It returned at that time.
    Returned(KernelTime),
    /// It was not seen to return, and was given up at that time.
    GivenUp(KernelTime),
}

impl Ended {
    /// From then on it was over.
    pub const fn at(self) -> KernelTime {
        match self {
            Self::Returned(at) | Self::GivenUp(at) => at,
        }
    }

    /// When it returned, if that was seen.
    pub const fn returned(self) -> Option<KernelTime> {
        match self {
            Self::Returned(at) => Some(at),
            Self::GivenUp(_) => None,
        }
    }
}

/// Who wants a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Requester {
    /// The node: the verdict is remembered, and sent to all watchers if it changed.
    Node,
    /// A client, by its own word or before the last word is spoken: no more is remembered than what was in force for it.
    Client,
}

/// What was gathered to judge one limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// Whether the node or a client wants the verdict.
    pub requester: Requester,
    /// The time.
    pub at: KernelTime,
    /// Whose limit is judged.
    pub cgroup: CgroupId,
    /// The cgroup that the container's runtime made in it and put all processes into, if it did: that one's limits are the
    /// container's, and may be what kills.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inner: Option<CgroupId>,
    /// The resource that is limited.
    pub resource: Resource,
    /// Every source's word.
    pub desired: Vec<DesiredLimit>,
    /// What is desired is the sum over a pod's containers, and no source says whether the pod as a whole has a limit: that
    /// may be less than the sum.
    #[serde(default)]
    pub may_be_less: bool,
    /// When requests were not observed that may have set this limit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unobserved: Vec<Unobserved>,
    /// From the innermost to the root.
    pub levels: Vec<Level>,
    /// Which of them is judged.
    pub own: usize,
    /// What is used, in the file's unit, if it is known.
    pub usage: Option<u64>,
    /// Until then, what is not yet so may still become so.
    pub deadline: Option<KernelTime>,
    /// The kernel's page size in bytes.
    pub page: u64,
    /// The Kubernetes API's side; none: the API is no source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<ApiView>,
}

/// Whether a desired limit took effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The file says it, and nothing else allows less.
    InForce,
    /// Not yet, and the deadline is to come.
    Pending {
        /// The deadline.
        until: KernelTime,
    },
    /// The file says something else.
    Diverged,
    /// The kernel refused the write of it.
    Rejected {
        /// What was written, in the writer's words: in the file's it might not show what the kernel minded.
        value: Arc<str>,
        /// The error that it got.
        errno: i32,
        /// Whose write it was, if that was seen.
        writer: Option<Writer>,
    },
    /// The file says it, but another level allows less.
    Shadowed {
        /// What that level is.
        role: LevelRole,
        /// Its path.
        path: Arc<str>,
        /// What it allows.
        limit: Value,
    },
    /// The file says it, but more is used: the kernel is reclaiming.
    OverLimit {
        /// In bytes.
        usage: u64,
    },
    /// The OOM killer struck since the write of it began.
    Killed {
        /// Number of OOM kills.
        kills: u64,
    },
    /// It was in force, and something else was written since.
    Reverted {
        /// By whom, if that was seen.
        writer: Option<Writer>,
    },
    /// It cannot be determined.
    Unknown {
        /// What is missing for that.
        missing: Arc<str>,
    },
}

/// A verdict, and what it rests on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judgement {
    /// What was judged.
    pub resource: Resource,
    /// The verdict.
    pub verdict: Verdict,
    /// The word that was compared with; none: there is none.
    pub desired: Option<DesiredLimit>,
    /// Sources that want something else.
    pub disagreeing: Vec<Source>,
    /// How the file agrees with what is wanted, if it does.
    pub tolerance: Option<Tolerance>,
    /// What the level's own file says.
    pub in_force: Reading,
    /// The least that any level allows, and that level's path; none: some level is not known.
    pub effective: Option<(Value, Arc<str>)>,
}

/// A verdict with all that it rests on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judged {
    /// Whose limit.
    pub cgroup: CgroupId,
    /// Its path.
    pub path: Arc<str>,
    /// What it is.
    pub role: LevelRole,
    /// The pod that it is, or is in.
    pub pod: Option<PodNames>,
    /// Every source's word.
    pub desired: Vec<DesiredLimit>,
    /// The last attempt to write it.
    pub attempt: Option<Attempt>,
    /// The judgement.
    pub judgement: Judgement,
    /// The Kubernetes API's side, compared; none: the API is no source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<ApiFinding>,
}

/// How the effective limit agrees with the desired one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tolerance {
    /// To the letter.
    Exact,
    /// The quota was raised to the least that there is: [`QUOTA_MIN`](crate::verdicts::convert::QUOTA_MIN).
    MinimumQuota,
    /// systemd's rounding of a quota, up to a hundredth of a CPU.
    RoundedToTenMilliseconds,
    /// The weight by the formula of before 2025.
    OldWeightFormula,
    /// The weight by the formula of 2025.
    NewWeightFormula,
    /// The kernel's rounding of an amount of memory, down to a page.
    RoundedToPage,
    /// More than the containers that are known need: others, or the pod itself, may ask for the rest.
    RoomForMore,
}

/// What a limit should be, in the requester's units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// A CPU limit in thousandths of a CPU; 0: none, as the kubelet has it.
    MilliCpu(u64),
    /// A CPU limit as quota and period, as the CRI has it.
    Quota(CpuMax),
    /// A CPU limit of at least that: a pod's, of whose containers some may not be known.
    QuotaAtLeast(CpuMax),
    /// A CPU limit of at least that, in thousandths of a CPU: a pod's, of whose containers some may not be known.
    MilliCpuAtLeast(u64),
    /// The runtime was sent no CPU quota. It is no desired limit: it explains a file without a quota.
    NoQuotaSent,
    /// A weight in cgroup v1's shares.
    Shares(u64),
    /// A weight of at least that, in cgroup v1's shares: a pod's, to whose requests overhead may be added.
    SharesAtLeast(u64),
    /// A memory limit, in bytes.
    Memory(Bound),
    /// A memory limit of at least that: a pod's, of whose containers some may not be known.
    MemoryAtLeast(Bound),
    /// What the file should say, to the letter.
    Exactly(u64),
}
