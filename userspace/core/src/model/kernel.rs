//! Records of the kernel, decoded; see `kwitness_abi` for each.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::ids::{CgroupId, KernelTime, ProcKey};
use super::limit_file::LimitFile;

/// A decoded record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelEvent {
    /// `CLOCK_BOOTTIME` at the hook.
    pub at: KernelTime,
    /// The cgroup that the record is about.
    pub cgroup: CgroupId,
    /// What it says.
    pub fact: Fact,
}

/// What a record says; see `kwitness_abi` for each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fact {
    /// A cgroup was made, below a tracked one or as a root.
    Mkdir {
        /// Its parent.
        parent: CgroupId,
        /// Its path, or only its name when the path was too long.
        path: PathText,
        /// Its parent is not tracked.
        root: bool,
        /// It is not tracked: its container has its share of what is tracked.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        beyond_share: bool,
        /// Who made it.
        actor: Actor,
    },
    /// A tracked cgroup was removed.
    Rmdir {
        /// Who removed it.
        actor: Actor,
    },
    /// The last reference to it went.
    Release,
    /// A process was moved in.
    Attach {
        /// Who was moved.
        process: TaskInfo,
        /// Who moved it.
        actor: Actor,
    },
    /// The subtree has, or has no longer, a process.
    Populated(bool),
    /// A process was made.
    Fork {
        /// The child.
        child: TaskInfo,
        /// Its parent is in another cgroup.
        entered: bool,
    },
    /// A program was executed.
    Exec {
        /// The process.
        process: TaskInfo,
        /// As given to execve(2).
        program: Arc<str>,
        /// The first that is not the runtime's own, in this cgroup.
        first: bool,
    },
    /// A process is gone.
    Exit {
        /// The process.
        process: TaskInfo,
        /// Its exit code or signal.
        status: ExitStatus,
        /// Its exec was `first`.
        first: bool,
    },
    /// A limit file of the cgroup, which may be an ancestor of a tracked one, is written to.
    LimitWrite(Box<LimitWrite>),
    /// So many writes to limit files of the cgroup were suppressed, because they came too fast; what the files hold now shows
    /// what became of them.
    LimitWritesSuppressed(u64),
    /// A process of the cgroup was OOM-killed.
    OomKill(Box<OomKill>),
    /// A charge of memory changed how many thresholds of its limit the cgroup is above.
    MemoryCharge(Box<MemoryCharge>),
}

/// A process as a record carries it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskInfo {
    /// Its pid and start time.
    pub key: ProcKey,
    /// Its real parent's pid.
    pub ppid: u32,
    /// Its mount namespace's inode number; none if it has none any more.
    pub mnt_ns: Option<u32>,
    /// Its real parent's.
    pub parent_mnt_ns: Option<u32>,
    /// Its `comm`.
    pub comm: Arc<str>,
}

/// A cgroup's path as a record carries it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PathText {
    /// From the root of the hierarchy.
    Full(Arc<str>),
    /// The last component: the rest is the parent's.
    Name(Arc<str>),
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

/// A write to a limit file. What a hook cannot report is absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitWrite {
    /// Which file.
    pub limit_file: LimitFile,
    /// Begun, or returned. A hook that sees the beginning reports both, and the second repeats all of the first.
    pub phase: WritePhase,
    /// What is written.
    pub value: Option<WrittenValue>,
    /// Who writes.
    pub writer: Caller,
    /// When it began.
    pub began: Option<KernelTime>,
    /// The hook that recorded it.
    pub seen_by: WriteHook,
}

/// How far a write has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WritePhase {
    /// It begins. Until it returns, the kernel may reclaim memory, or kill.
    Began,
    /// It has returned.
    Returned {
        /// The kernel's result.
        result: WriteResult,
        /// When; none: by the time of the record at the latest.
        at: Option<KernelTime>,
    },
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WriteResult {
    /// The kernel took it.
    Accepted,
    /// The kernel refused it.
    Refused {
        /// The error number, positive.
        errno: i32,
    },
    /// The hook does not report it: only the file shows it.
    Unknown,
}

impl WriteResult {
    /// The error number, if the kernel refused it.
    pub const fn errno(self) -> Option<i32> {
        match self {
            Self::Refused { errno } => Some(errno),
            Self::Accepted | Self::Unknown => None,
        }
    }

    /// Whether the file may say now what was written.
    pub const fn may_be_accepted(self) -> bool {
        self.errno().is_none()
    }
}

/// The text that was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrittenValue {
    /// As far as it was recorded, without the white space around it, which the kernel strips, too.
    pub text: Arc<str>,
    /// There was more.
    pub truncated: bool,
}

/// Who made a call, as far as the hook could determine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// Its pid.
    pub pid: Option<u32>,
    /// Its thread's id.
    pub tid: Option<u32>,
    /// When its process was started: with the pid, that names it for good.
    pub start: Option<KernelTime>,
    /// Its `comm`.
    pub comm: Option<Arc<str>>,
    /// The cgroup that it is in.
    pub cgroup: Option<CgroupId>,
}

/// How a write was seen, and so what can be known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WriteHook {
    /// fentry and fexit of the kernel's function: everything, of each write.
    Fentry,
    /// A kprobe and a kretprobe of it: likewise.
    Kprobe,
    /// The tracepoints of the system call: everything, of each write(2); writes by another call are not seen.
    Syscall,
    /// A fanotify mark: file and pid, after the write or the truncation before it returned; not what became of it. Writes by one
    /// process to one file that follow each other fast are reported as one.
    Fanotify,
}

/// An OOM kill.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OomKill {
    /// Who is killed.
    pub victim: TaskInfo,
    /// How it came to be the victim; none: the hook does not report it.
    pub choice: Option<OomChoice>,
    /// What was exhausted; none: the hook does not report it.
    pub scope: Option<OomScope>,
    /// What was charged and allowed there.
    pub usage: Option<OomUsage>,
    /// Whose allocation, or whose write to a limit, led to it.
    pub trigger: Caller,
}

/// How a process came to be killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OomChoice {
    /// The kernel chose it.
    Chosen,
    /// The kernel chose another one of a group that is killed as one (`memory.oom.group`).
    GroupMember,
}

/// What was exhausted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OomScope {
    /// The memory limit of this cgroup: the victim's own or an ancestor.
    Limit(CgroupId),
    /// The machine's memory.
    Machine,
}

/// A cgroup's memory at the moment of a kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OomUsage {
    /// Pages charged.
    pub usage: u64,
    /// Pages allowed; the kernel's largest number where there is no limit.
    pub limit: u64,
}

/// A charge of memory, with which a cgroup is above more or fewer thresholds than by the record before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryCharge {
    /// Bytes charged, those of this charge included.
    pub usage: u64,
    /// Bytes allowed.
    pub limit: u64,
    /// When usage was seen before, and what it was then, in bytes; none: not lately.
    pub earlier: Option<(KernelTime, u64)>,
    /// Crossings since the record before that no record shows, because they came too fast.
    pub suppressed: u64,
    /// How many thresholds the cgroup counts as above.
    pub above: usize,
    /// Who charges; none: usage fell, or rose by something else than a process of the cgroup.
    pub charger: Option<Caller>,
}
