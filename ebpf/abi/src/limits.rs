//! Records about limits: writes to a cgroup's limit files, and OOM kills.

use crate::{Actor, COMM_LEN, Header, Process, ProcessKey};

/// Bytes of the written text that a record carries, the terminating NUL included. The longest text that a limit takes is a list of CPUs or of memory
/// nodes; any other fits.
pub const VALUE_CAP: usize = 128;
/// Bytes of a limit file's name in the map that picks out limit files, its NUL included. The longest name that counts is
/// `hugetlb.128MB.rsvd.max`.
pub const LIMIT_FILE_NAME_CAP: usize = 32;

/// A limit file's name, NUL-padded: the key of the map `LIMIT_FILES`, whose value is [`LimitWrite::limit_file`].
pub type LimitFileName = [u8; LIMIT_FILE_NAME_CAP];

/// [`Header::flags`] of a [`LimitWrite`]: seen by a kprobe, not by fentry.
pub const FLAG_KPROBE: u16 = 1 << 5;
/// [`Header::flags`] of a [`LimitWrite`]: seen at the system call write(2), whose result it has.
pub const FLAG_SYSCALL: u16 = 1 << 11;
/// [`Header::flags`] of an [`OomKill`]: [`OomKill::usage`] and [`OomKill::limit`] hold.
pub const FLAG_OOM_USAGE: u16 = 1 << 6;
/// [`Header::flags`] of an [`OomKill`]: a cgroup's limit was hit, and [`OomKill::limit_cgroup`] says which. Neither this nor
/// [`FLAG_OOM_GLOBAL`]: it is not known what was hit.
pub const FLAG_OOM_LIMIT: u16 = 1 << 7;
/// [`Header::flags`] of an [`OomKill`]: no cgroup's limit was hit, the machine was out of memory.
pub const FLAG_OOM_GLOBAL: u16 = 1 << 8;
/// [`Header::flags`] of an [`OomKill`]: the kernel chose this process.
pub const FLAG_OOM_CHOSEN: u16 = 1 << 9;
/// [`Header::flags`] of an [`OomKill`]: killed because another process of its group was chosen (`memory.oom.group`).
pub const FLAG_OOM_MEMBER: u16 = 1 << 10;

/// Who made a call, with what names its process for good and where it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Caller {
    /// `task_struct.start_boottime` of its thread-group leader, in nanoseconds.
    pub start_boottime: u64,
    /// The id of the v2 cgroup that it is in.
    pub cgroup_id: u64,
    /// Its ids and its `comm`.
    pub actor: Actor,
}

/// A write to a limit file of a tracked cgroup or of an ancestor of one begins (`LimitWriteBegan`) or has returned
/// (`LimitWriteReturned`): each such write gives both, the second with all that the first said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct LimitWrite {
    /// The id is that of the cgroup whose file it is; the time that of the beginning or of the return. With [`FLAG_KPROBE`]
    /// or [`FLAG_SYSCALL`] where it holds.
    pub header: Header,
    /// `CLOCK_BOOTTIME` at the beginning, in nanoseconds.
    pub began: u64,
    /// What write(2) will return: the number of bytes taken, or a negative errno. 0 in a `LimitWriteBegan`.
    pub result: i64,
    /// Who writes.
    pub writer: Caller,
    /// Which file: the value of the map `LIMIT_FILES` for its name.
    pub limit_file: u32,
    /// Bytes that are written; [`VALUE_CAP`] or more: `value` holds only the first of them.
    pub value_len: u32,
    /// The text and a NUL.
    pub value: [u8; VALUE_CAP],
}

/// The kernel OOM-killed a process of a tracked cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct OomKill {
    /// The id is that of the victim's cgroup. With the `FLAG_OOM_*` that hold.
    pub header: Header,
    /// Who is killed.
    pub victim: Process,
    /// Whose allocation, or whose write to a limit, led to it.
    pub trigger: Caller,
    /// The id of the cgroup whose limit was hit, see [`FLAG_OOM_LIMIT`].
    pub limit_cgroup: u64,
    /// What that cgroup had charged, in pages, see [`FLAG_OOM_USAGE`].
    pub usage: u64,
    /// Its `memory.max` in pages, see [`FLAG_OOM_USAGE`].
    pub limit: u64,
}

/// What was exhausted when the kernel began to choose whom to kill; the value of the map `OOM_CONTEXTS`, whose key is the id of
/// the thread in which that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct OomContext {
    /// The process that the kernel chose.
    pub chosen: ProcessKey,
    /// [`OomKill::limit_cgroup`].
    pub limit_cgroup: u64,
    /// [`OomKill::usage`].
    pub usage: u64,
    /// [`OomKill::limit`].
    pub limit: u64,
    /// The `FLAG_OOM_*` that hold, but for how a victim came to be one.
    pub flags: u16,
    /// Zero.
    pub pad: u16,
    /// 1: the chosen process was dying already, so that it is not killed, only helped to end; 0: it was not.
    pub dying: u32,
}

/// What a cgroup's limit files may take of the rings; the value of the map `BUDGETS`, whose key is the cgroup's id.
///
/// Within each window of [`BUDGET_WINDOW`] nanoseconds, [`BUDGET_WRITES`] writes are reported; those beyond are only counted here
/// and in [`crate::Counters::suppressed`]. So a workload that writes to files of its own, as often as it can, costs what one
/// that writes now and then does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Budget {
    /// When the window began, in nanoseconds of `CLOCK_BOOTTIME`.
    pub since: u64,
    /// Writes in this window.
    pub writes: u64,
    /// Suppressed writes, in all windows.
    pub suppressed: u64,
}

/// See [`Budget`].
pub const BUDGET_WINDOW: u64 = 1_000_000_000;
/// See [`Budget`]. A runtime that makes a container writes some twenty files.
pub const BUDGET_WRITES: u64 = 128;

const _: () = {
    assert!(size_of::<Caller>() == 16 + 8 + COMM_LEN);
    assert!(size_of::<LimitWrite>() == 24 + 16 + 40 + 8 + VALUE_CAP);
    assert!(size_of::<OomKill>() == 24 + 40 + 40 + 24);
    assert!(size_of::<OomContext>() == 16 + 24 + 8);
    assert!(size_of::<Budget>() == 24);
};
