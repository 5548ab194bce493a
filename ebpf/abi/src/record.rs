//! The records of the life of cgroups and processes, and what they have in common: the header with its flags, who is acting, and
//! whom it is about.

use crate::{COMM_LEN, FILENAME_CAP, PATH_CAP};

/// [`Header::flags`] of a [`CgroupMkdir`]: the cgroup is a root of the tracked set (its parent is not tracked).
pub const FLAG_ROOT: u16 = 1 << 0;
/// [`Header::flags`] of a [`CgroupMkdir`]: the path did not fit, [`CgroupMkdir::path`] holds the last
/// component alone.
pub const FLAG_NAME_ONLY: u16 = 1 << 1;
/// [`Header::flags`] of a [`CgroupMkdir`]: the cgroup is not tracked, for the container that it lies in has its share of the
/// tracked set, see [`SHARES`](crate::SHARES). Nothing more is recorded of it, nor of what is made below it.
pub const FLAG_BEYOND_SHARE: u16 = 1 << 5;
/// [`Header::flags`] of a [`TaskExec`]: the first program that is not the runtime's own in this cgroup since it
/// was made or last had no process (the process's mount namespace differs from its parent's). Travels on the
/// lifecycle ring.
///
/// It is decided for each cgroup by itself: where a runtime spreads one container over sibling groups (crun's
/// `container`, CRI-O's `exec`), the container's own first program is the first of them.
pub const FLAG_FIRST: u16 = 1 << 2;
/// [`Header::flags`] of a [`TaskFork`]: the child was made straight into the cgroup from outside
/// (`CLONE_INTO_CGROUP`). Travels on the lifecycle ring.
pub const FLAG_ENTERED: u16 = 1 << 3;
/// [`Header::flags`] of a [`TaskExit`]: the process is one whose [`TaskExec`] had [`FLAG_FIRST`]. Travels on
/// the lifecycle ring.
pub const FLAG_FIRST_EXIT: u16 = 1 << 4;

/// What every record begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Header {
    /// `CLOCK_BOOTTIME` at the hook, in nanoseconds.
    pub ktime: u64,
    /// The cgroup v2 id (the kernfs inode number) that the record is about.
    pub cgroup_id: u64,
    /// A [`RecordKind`](crate::RecordKind) as a number.
    pub kind: u16,
    /// `FLAG_*`, by kind.
    pub flags: u16,
    /// The CPU that the hook ran on.
    pub cpu: u32,
}

/// Who ran the code that the hook is in: the writer of `cgroup.procs`, the caller of mkdir(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Actor {
    /// Its process id (thread-group id) in the node's pid namespace; 0 is the idle task, an interrupt, or a process that is
    /// outside of that namespace.
    pub pid: u32,
    /// Its thread id, likewise.
    pub tid: u32,
    /// Its `comm`, NUL-padded.
    pub comm: [u8; COMM_LEN],
}

/// A process that the record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Process {
    /// `task_struct.start_boottime` of the thread-group leader, in nanoseconds: with the pid, it names a process
    /// for good.
    pub start_boottime: u64,
    /// Its process id (thread-group id) in the node's pid namespace; 0 if it is outside of that.
    pub pid: u32,
    /// The process id of its real parent, likewise.
    pub ppid: u32,
    /// The inode number of its mount namespace; 0 if it has none any more.
    pub mnt_ns: u32,
    /// The inode number of its real parent's mount namespace; 0 if that has none any more.
    pub parent_mnt_ns: u32,
    /// Its `comm`, NUL-padded.
    pub comm: [u8; COMM_LEN],
}

/// A tracked cgroup was made, or one that lies in such a cgroup and is beyond its container's share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct CgroupMkdir {
    /// With [`FLAG_ROOT`], [`FLAG_NAME_ONLY`] and [`FLAG_BEYOND_SHARE`] where they hold.
    pub header: Header,
    /// The parent's cgroup v2 id.
    pub parent_id: u64,
    /// Who made it.
    pub actor: Actor,
    /// `cgroup.level`: 0 is the root of the hierarchy.
    pub level: u32,
    /// Bytes used in `path`, the NUL excluded.
    pub path_len: u32,
    /// The path from the top of what user space sees of the hierarchy, or the last component alone ([`FLAG_NAME_ONLY`]).
    pub path: [u8; PATH_CAP],
}

/// A tracked cgroup was removed (`CgroupRmdir`), or its last reference went (`CgroupRelease`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct CgroupRemoved {
    /// No flags.
    pub header: Header,
    /// Who removed it; for a release this is whoever dropped the last reference, most often a kernel worker.
    pub actor: Actor,
}

/// A process was moved into a tracked cgroup, or within the tracked set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct CgroupAttach {
    /// The destination's id; no flags.
    pub header: Header,
    /// Who was moved.
    pub process: Process,
    /// Who moved it.
    pub actor: Actor,
}

/// A tracked cgroup's subtree got its first process or lost its last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct CgroupPopulated {
    /// No flags.
    pub header: Header,
    /// 1: it has a process, 0: it has none.
    pub populated: u32,
    /// Zero.
    pub pad: u32,
}

/// A process was made in a tracked cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct TaskFork {
    /// With [`FLAG_ENTERED`] where it holds.
    pub header: Header,
    /// The child.
    pub child: Process,
}

/// A process in a tracked cgroup executed a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct TaskExec {
    /// With [`FLAG_FIRST`] where it holds.
    pub header: Header,
    /// The process, after the exec.
    pub process: Process,
    /// Bytes used in `filename`, the NUL excluded; `FILENAME_CAP - 1` may mean cut off.
    pub filename_len: u32,
    /// Zero.
    pub pad: u32,
    /// `linux_binprm.filename`, as the caller of execve(2) gave it.
    pub filename: [u8; FILENAME_CAP],
}

/// A process in a tracked cgroup is gone, its last thread included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct TaskExit {
    /// With [`FLAG_FIRST_EXIT`] where it holds.
    pub header: Header,
    /// The process.
    pub process: Process,
    /// The status that wait(2) gives its parent: `code << 8`, or the signal, with bit 7 for a core dump.
    pub wait_status: u32,
    /// Zero.
    pub pad: u32,
}
