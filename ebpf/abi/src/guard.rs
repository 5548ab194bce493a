//! What the guard's program and its user side share. Its object is not the probes': it alone acts on processes.
//!
//! ```text
//!  user space ──▶ LEASE   until when anything may be held at all
//!             ──▶ ARMED   which cgroups, from what share of their limit on, for how long
//!  program    ──▶ HELD    who is held: written before the signal is sent, so that nothing is held without a record
//!             ──▶ WAKE    that HELD has a new entry
//! ```
//!
//! An entry of `HELD` has one writer at a time. The program makes it and sets [`Hold::signalled`]; from then on it never
//! touches it again, and holds that process no second time while the entry exists. User space removes it, and only after
//! it is signalled or the process is gone.

use crate::{ABSENT, COMM_LEN};

/// Levels of the cgroup hierarchy, from the root, at which a cgroup can be armed.
pub const GUARD_LEVELS: u32 = 16;
/// Memory nodes whose page cache is counted. On a machine with more, some cache counts as usage: a process is held too early.
pub const GUARD_NODES: u32 = 8;
/// Cgroups that can be armed.
pub const GUARD_ARMED_CAP: u32 = 1024;
/// Processes that can be held at a time. One more is not held, which is counted.
pub const GUARD_HELD_CAP: u32 = 1024;

/// The only element of the array `LEASE`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Lease {
    /// `CLOCK_BOOTTIME` in nanoseconds. From then on nothing is held, unless user space writes a later time.
    pub until: u64,
    /// Bit n: a cgroup at level n is armed. Level 0 is the root.
    pub levels: u64,
}

/// The value of the map `ARMED`; its key is the cgroup v2 id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Armed {
    /// `CLOCK_BOOTTIME` in nanoseconds: nothing of the cgroup is held before.
    pub quiet_until: u64,
    /// The longest that a process may be held, in nanoseconds.
    pub longest: u64,
    /// The threshold, in thousandths of the limit that is in force when memory is charged; page cache does not count.
    pub per_mille: u32,
    /// 1: a pod's. It counts for tasks in an armed cgroup directly below, and for no others.
    pub is_pod: u32,
}

/// The value of the map `HELD`; its key is a [`ProcessKey`](crate::ProcessKey).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Hold {
    /// The armed cgroup.
    pub cgroup_id: u64,
    /// `CLOCK_BOOTTIME` in nanoseconds.
    pub since: u64,
    /// When it must have ended, on the same clock.
    pub until: u64,
    /// Pages charged to the cgroup, those that were about to be charged and its page cache included.
    pub usage: u64,
    /// Pages allowed.
    pub limit: u64,
    /// The thread that charged them, in the initial pid namespace.
    pub tid: u32,
    /// 0 until the signal has been sent.
    pub signalled: u32,
    /// The thread's `comm`, NUL-padded.
    pub comm: [u8; COMM_LEN],
}

/// Why a task that charged memory above a threshold was not held: the index of its counter in the array `SPARED`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Spared {
    /// A thread of the kernel, or a task that exits.
    Exiting = 0,
    /// A debugger, or strace, is attached to the thread or its process.
    Traced = 1,
    /// Its session has a terminal: a shell would see it stop.
    Terminal = 2,
    /// Neither the container's first process nor a descendant of it: an exec session, a probe.
    Entered = 3,
    /// The container has no pid namespace of its own, so that its processes cannot be distinguished from exec sessions.
    SharedPids = 4,
    /// `HELD` has no room.
    Full = 5,
    /// The kernel refused to send the signal.
    Refused = 6,
}

impl Spared {
    /// All, in the order of their indexes.
    pub const ALL: [Self; 7] = [
        Self::Exiting,
        Self::Traced,
        Self::Terminal,
        Self::Entered,
        Self::SharedPids,
        Self::Full,
        Self::Refused,
    ];

    /// Its name in the log and in the status.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exiting => "exiting",
            Self::Traced => "traced",
            Self::Terminal => "terminal",
            Self::Entered => "entered",
            Self::SharedPids => "shared_pids",
            Self::Full => "full",
            Self::Refused => "refused",
        }
    }
}

/// Offsets, in bytes, of the kernel's fields that the guard's program reads; user space fills them in from BTF. The program
/// is not loaded unless it has all but those of the registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct GuardLayout {
    /// `mem_cgroup.memory`
    pub memcg_memory: u32,
    /// `mem_cgroup.css`
    pub memcg_css: u32,
    /// `mem_cgroup.css.cgroup`
    pub memcg_cgroup: u32,
    /// `mem_cgroup.css.parent`: a `css`
    pub memcg_parent: u32,
    /// `mem_cgroup.css.children`: a list of `css.sibling`
    pub memcg_children: u32,
    /// `mem_cgroup.css.sibling`
    pub memcg_sibling: u32,
    /// `mem_cgroup.nodeinfo`: an array of pointers, one for each memory node
    pub memcg_nodeinfo: u32,
    /// `mem_cgroup_per_node.lru_zone_size`: pages by zone and LRU list
    pub per_node_lru_zone_size: u32,
    /// `mem_cgroup_per_node.iter`, which follows it
    pub per_node_iter: u32,
    /// Not an offset: how many memory nodes there can be (`nr_node_ids`), the length of `nodeinfo`
    pub nodes: u32,
    /// `page_counter.usage`
    pub counter_usage: u32,
    /// `page_counter.max`
    pub counter_max: u32,
    /// `page_counter.parent`
    pub counter_parent: u32,
    /// `cgroup.kn`
    pub cgroup_kn: u32,
    /// `kernfs_node.id`
    pub kernfs_node_id: u32,
    /// `task_struct.flags`
    pub task_flags: u32,
    /// `task_struct.ptrace`
    pub task_ptrace: u32,
    /// `task_struct.signal`
    pub task_signal: u32,
    /// `task_struct.tgid`
    pub task_tgid: u32,
    /// `task_struct.group_leader`
    pub task_group_leader: u32,
    /// `task_struct.real_parent`
    pub task_real_parent: u32,
    /// `task_struct.start_boottime`
    pub task_start_boottime: u32,
    /// `task_struct.thread_pid`
    pub task_thread_pid: u32,
    /// `signal_struct.tty`
    pub signal_tty: u32,
    /// `pid.level`
    pub pid_level: u32,
    /// `pid.numbers`
    pub pid_numbers: u32,
    /// `upid.nr`
    pub upid_nr: u32,
    /// `upid.ns`, the last member: the size of the structure is that of a pointer more
    pub upid_ns: u32,
    /// As in [`KernelLayout`](crate::KernelLayout); needed by the kprobe only
    pub regs_first: u32,
    /// Likewise
    pub regs_second: u32,
}

impl GuardLayout {
    /// A layout of which nothing is known.
    pub const UNKNOWN: Self = Self {
        memcg_memory: ABSENT,
        memcg_css: ABSENT,
        memcg_cgroup: ABSENT,
        memcg_parent: ABSENT,
        memcg_children: ABSENT,
        memcg_sibling: ABSENT,
        memcg_nodeinfo: ABSENT,
        per_node_lru_zone_size: ABSENT,
        per_node_iter: ABSENT,
        nodes: 1,
        counter_usage: ABSENT,
        counter_max: ABSENT,
        counter_parent: ABSENT,
        cgroup_kn: ABSENT,
        kernfs_node_id: ABSENT,
        task_flags: ABSENT,
        task_ptrace: ABSENT,
        task_signal: ABSENT,
        task_tgid: ABSENT,
        task_group_leader: ABSENT,
        task_real_parent: ABSENT,
        task_start_boottime: ABSENT,
        task_thread_pid: ABSENT,
        signal_tty: ABSENT,
        pid_level: ABSENT,
        pid_numbers: ABSENT,
        upid_nr: ABSENT,
        upid_ns: ABSENT,
        regs_first: ABSENT,
        regs_second: ABSENT,
    };
}

const _: () = {
    assert!(size_of::<Lease>() == 16);
    assert!(size_of::<Armed>() == 24);
    assert!(size_of::<Hold>() == 5 * 8 + 2 * 4 + COMM_LEN);
    assert!(size_of::<GuardLayout>() == 30 * 4);
};
