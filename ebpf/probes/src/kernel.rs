//! Reading the kernel's own structures, at offsets that user space resolved from the running kernel's BTF.
//!
//! Owns [`LAYOUT`] and every access by offset. No offset is ever written here. Every field is read with
//! `bpf_probe_read_kernel`, whatever the program is attached to. A BTF tracepoint could read with plain loads, which saves
//! 1 µs a record; but for each pointer that a trusted one is followed to, the verifier of Linux 6.3 and later searches all of
//! the kernel's types three times (`btf_nested_type_is_trusted`): that took 40 % of the daemon's start. The exception is
//! [`Counter`], for which the time counts at each charge; fentry's arguments are not trusted, and cost the verifier no search.
//!
//! A field that cannot be read is zero, a null pointer's fields are zero.

use core::{mem::MaybeUninit, ptr};

use aya_ebpf::helpers::{
    bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_get_current_task, bpf_probe_read_kernel,
    bpf_probe_read_kernel_buf,
};
use kwitness_abi::{COMM_LEN, KernelLayout, Process, ProcessKey};

/// Filled in by the loader. Read-only and frozen for the kernel: the verifier takes its fields for constants and cuts
/// off branches that they rule out.
#[unsafe(no_mangle)]
static LAYOUT: KernelLayout = KernelLayout::UNKNOWN;

/// The pid namespace whose pids records have, by its inode number; 0: the initial one. Another one is that of a node which is
/// itself a container. Filled in by the loader.
#[unsafe(no_mangle)]
static PID_NAMESPACE: u32 = 0;

/// How many pid namespaces a process can be in: `MAX_PID_NS_LEVEL` of `include/linux/pid_namespace.h`, and the initial one.
const PID_NAMESPACES: usize = 33;

/// `SIGNAL_GROUP_EXIT` of `include/linux/sched/signal.h`, the same since long before 5.8.
const SIGNAL_GROUP_EXIT: u32 = 0x4;

/// `PF_KTHREAD` of `include/linux/sched.h`.
const PF_KTHREAD: u32 = 0x20_0000;

/// Levels of cgroups between a task's and one that it is in or below.
const MAX_DEPTH: u32 = 16;

/// `CGROUP2_SUPER_MAGIC` of `include/uapi/linux/magic.h`.
const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;

/// Memory address in the kernel.
pub type Address = *const u8;

/// An entry of [`LAYOUT`], as the constant that it is to the verifier.
macro_rules! layout {
    ($field:ident) => {
        // SAFETY: a static's own field; volatile, so that the compiler does not take the initial value for the final one.
        unsafe { ptr::read_volatile(&raw const LAYOUT.$field) }
    };
}

mod hook;

pub use hook::{Arguments, Returned, exec_filename_of_event, group_dead, group_dead_of_event, syscall_arg};

/// What is at `address`; zero if it cannot be read.
///
/// # Safety
/// Any bit pattern is a valid `T`.
#[inline(always)]
unsafe fn read<T: Copy>(address: *const T) -> T {
    // SAFETY: the helper checks the address; zero is a valid `T` by this function's contract.
    unsafe { bpf_probe_read_kernel(address).unwrap_or(MaybeUninit::zeroed().assume_init()) }
}

/// The eight bytes at `address`, the first as the lowest; zero if they cannot be read.
#[inline(always)]
pub fn word_at(address: Address) -> u64 {
    // SAFETY: an integer.
    u64::from_le(unsafe { read(address.cast()) })
}

/// The field at an offset of [`LAYOUT`] of the object at an address.
macro_rules! field {
    ($base:expr, $field:ident) => {{
        let address = $base.wrapping_add(layout!($field) as usize).cast();
        // SAFETY: a field of the layout is an integer or an address.
        unsafe { read(address) }
    }};
}

/// Declares a kernel object known by its address.
macro_rules! object {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        pub struct $name(Address);

        impl $name {
            /// The object at that address.
            #[inline(always)]
            pub fn at(address: Address) -> Self {
                Self(address)
            }
        }
    };
}

object! {
    /// A `struct cgroup`.
    Cgroup
}
object! {
    /// A `struct kernfs_node`.
    KernfsNode
}
object! {
    /// A `struct task_struct`: a thread.
    Task
}
object! {
    /// A `struct kernfs_open_file`.
    OpenFile
}
object! {
    /// A `struct oom_control`: what was exhausted, and who was chosen.
    OomControl
}
object! {
    /// A `struct mem_cgroup`.
    MemoryCgroup
}

mod counter;

pub use counter::{Access, Counter, Typed, Untyped};

/// The id of the v2 cgroup that the current task is in.
#[inline(always)]
pub fn current_cgroup_id() -> u64 {
    // SAFETY: the helper has no precondition.
    unsafe { bpf_get_current_cgroup_id() }
}

/// The ids of the current task's process and of its thread, as records have them.
#[inline(always)]
pub fn current_ids() -> (u32, u32) {
    match pid_namespace() {
        0 => {
            let ids = bpf_get_current_pid_tgid();
            ((ids >> 32) as u32, ids as u32)
        }
        namespace => {
            let current = Task::current();
            (current.leader().id_in(namespace), current.id_in(namespace))
        }
    }
}

#[inline(always)]
fn pid_namespace() -> u32 {
    // SAFETY: a static of this program; volatile, so that the compiler does not take the initial value for the final one.
    unsafe { ptr::read_volatile(&raw const PID_NAMESPACE) }
}

/// The file of the cgroup2 file system that the current task has open under that number.
#[inline(always)]
pub fn cgroup_file(descriptor: u64) -> Option<KernfsNode> {
    let files: Address = field!(Task::current().0, task_files);
    let table: Address = field!(files, files_fdt);
    let size: u32 = field!(table, fdtable_max_fds);
    if descriptor >= u64::from(size) {
        return None;
    }
    let slots: Address = field!(table, fdtable_fd);
    // SAFETY: below the table's size; the helper checks the address in any case.
    let file: Address =
        unsafe { read(slots.wrapping_add(descriptor as usize * size_of::<Address>()).cast()) };
    let inode: Address = field!(file, file_inode);
    let super_block: Address = field!(inode, inode_sb);
    let magic: u64 = field!(super_block, super_block_magic);
    if magic != CGROUP2_SUPER_MAGIC {
        return None;
    }
    Some(KernfsNode::at(field!(inode, inode_private)))
}

impl OpenFile {
    /// The file itself.
    #[inline(always)]
    pub fn node(&self) -> KernfsNode {
        KernfsNode::at(field!(self.0, open_file_kn))
    }
}

impl OomControl {
    /// Whose limit was hit; none: the machine's memory.
    #[inline(always)]
    pub fn memory_cgroup(&self) -> Option<MemoryCgroup> {
        let memcg: Address = field!(self.0, oom_memcg);
        (!memcg.is_null()).then(|| MemoryCgroup::at(memcg))
    }

    /// Who will be killed.
    #[inline(always)]
    pub fn chosen(&self) -> Task {
        Task::at(field!(self.0, oom_chosen))
    }
}

impl MemoryCgroup {
    /// Its cgroup, of v1's memory hierarchy where that has the controller.
    #[inline(always)]
    pub fn cgroup(&self) -> Cgroup {
        Cgroup::at(field!(self.0, memcg_cgroup))
    }

    /// Where it is: what names it, together with its [`serial`](Self::serial).
    #[inline(always)]
    pub fn address(&self) -> u64 {
        self.0 as u64
    }

    /// A number that no other has had.
    #[inline(always)]
    pub fn serial(&self) -> u64 {
        field!(self.0, memcg_serial)
    }

    /// Pages charged, and pages allowed.
    #[inline(always)]
    pub fn usage_and_limit(&self) -> (u64, u64) {
        (field!(self.0, memcg_usage), field!(self.0, memcg_max))
    }
}

impl Cgroup {
    /// Whether it is in the default (v2) hierarchy. Ids are unique within one hierarchy only, and the v1 hierarchies that
    /// may exist beside it are none of our business.
    #[inline(always)]
    pub fn is_v2(&self) -> bool {
        let root: Address = field!(self.0, cgroup_root);
        let hierarchy: i32 = field!(root, cgroup_root_hierarchy_id);
        hierarchy == 0
    }

    /// Its directory.
    #[inline(always)]
    pub fn node(&self) -> KernfsNode {
        KernfsNode::at(field!(self.0, cgroup_kn))
    }

    /// Its depth; the hierarchy's root is 0.
    #[inline(always)]
    pub fn level(&self) -> u32 {
        field!(self.0, cgroup_level)
    }
}

impl KernfsNode {
    /// The inode number, which is the cgroup id.
    #[inline(always)]
    pub fn id(&self) -> u64 {
        field!(self.0, kernfs_node_id)
    }

    /// The directory that it is in; the hierarchy's root has none, and an id of 0.
    #[inline(always)]
    pub fn parent_id(&self) -> u64 {
        let parent: Address = field!(self.0, kernfs_node_parent);
        if parent.is_null() { 0 } else { Self::at(parent).id() }
    }

    /// The directory that it is in.
    #[inline(always)]
    pub fn parent(&self) -> Self {
        Self::at(field!(self.0, kernfs_node_parent))
    }

    /// The cgroup whose directory it is.
    #[inline(always)]
    pub fn cgroup(&self) -> Cgroup {
        Cgroup::at(field!(self.0, kernfs_node_priv))
    }

    /// Its name, a string.
    #[inline(always)]
    pub fn name(&self) -> Address {
        field!(self.0, kernfs_node_name)
    }
}

impl Task {
    /// The one that the hook runs in.
    #[inline(always)]
    pub fn current() -> Self {
        // SAFETY: the helper has no precondition.
        Self::at(unsafe { bpf_get_current_task() } as Address)
    }

    /// Its process's id in the initial pid namespace.
    #[inline(always)]
    fn tgid(&self) -> u32 {
        field!(self.0, task_tgid)
    }

    /// Its process's id as records have it.
    #[inline(always)]
    pub fn pid(&self) -> u32 {
        match pid_namespace() {
            0 => self.tgid(),
            namespace => self.leader().id_in(namespace),
        }
    }

    /// Its id in a pid namespace; 0: it is not in that one, nor in one below.
    #[inline(always)]
    fn id_in(&self, namespace: u32) -> u32 {
        let pid: Address = field!(self.0, task_thread_pid);
        let innermost: u32 = field!(pid, pid_level);
        let numbers = pid.wrapping_add(layout!(pid_numbers) as usize);
        let size = layout!(upid_ns) as usize + size_of::<Address>();
        for level in 0..PID_NAMESPACES {
            if level > innermost as usize {
                break;
            }
            let number = numbers.wrapping_add(level * size);
            let of: Address = field!(number, upid_ns);
            let inum: u32 = field!(of, pid_namespace_inum);
            if inum == namespace {
                return field!(number, upid_nr);
            }
        }
        0
    }

    /// Whether it is its process's first thread, the one that names it.
    #[inline(always)]
    pub fn is_leader(&self) -> bool {
        let pid: u32 = field!(self.0, task_pid);
        pid == self.tgid()
    }

    #[inline(always)]
    fn leader(&self) -> Self {
        Self::at(field!(self.0, task_group_leader))
    }

    /// The v2 cgroup that it is in.
    #[inline(always)]
    fn cgroup(&self) -> Cgroup {
        let set: Address = field!(self.0, task_cgroups);
        Cgroup::at(field!(set, css_set_dfl_cgrp))
    }

    /// The id of the v2 cgroup that it is in. For the current task, [`current_cgroup_id`] costs less.
    #[inline(always)]
    pub fn cgroup_id(&self) -> u64 {
        self.cgroup().node().id()
    }

    /// Whether it is in the v2 cgroup of that id, or below it.
    #[inline(always)]
    pub fn is_within(&self, cgroup: u64) -> bool {
        let mut node = self.cgroup().node();
        for _ in 0..MAX_DEPTH {
            let id = node.id();
            if id == cgroup {
                return true;
            }
            if id == 0 {
                return false;
            }
            node = node.parent();
        }
        false
    }

    /// Whether it is a thread of the kernel's own.
    #[inline(always)]
    pub fn is_of_kernel(&self) -> bool {
        let flags: u32 = field!(self.0, task_flags);
        flags & PF_KTHREAD != 0
    }

    /// The inode number of its mount namespace; 0 once it has given up its namespaces.
    #[inline(always)]
    fn mnt_ns(&self) -> u32 {
        let proxy: Address = field!(self.0, task_nsproxy);
        if proxy.is_null() {
            return 0;
        }
        let namespace: Address = field!(proxy, nsproxy_mnt_ns);
        if namespace.is_null() {
            return 0;
        }
        field!(namespace, mnt_namespace_inum)
    }

    /// What names its process for good.
    #[inline(always)]
    pub fn key(&self) -> ProcessKey {
        ProcessKey { start_boottime: field!(self.leader().0, task_start_boottime), pid: self.tgid(), pad: 0 }
    }

    /// The process that it is a thread of.
    #[inline(always)]
    pub fn process(&self) -> Process {
        let parent = Self::at(field!(self.0, task_real_parent));
        Process {
            start_boottime: field!(self.leader().0, task_start_boottime),
            pid: self.pid(),
            ppid: parent.pid(),
            mnt_ns: self.mnt_ns(),
            parent_mnt_ns: parent.mnt_ns(),
            comm: self.leader().comm(),
        }
    }

    #[inline(always)]
    fn comm(&self) -> [u8; COMM_LEN] {
        let mut comm = [0; COMM_LEN];
        let address = self.0.wrapping_add(layout!(task_comm) as usize);
        // A string that cannot be read stays empty.
        // SAFETY: the helper checks the address.
        let _ = unsafe { bpf_probe_read_kernel_buf(address, &mut comm) };
        comm
    }

    /// Whether its process is being ended by a signal, or by one of its threads.
    #[inline(always)]
    pub fn is_group_exiting(&self) -> bool {
        let signal: Address = field!(self.0, task_signal);
        let flags: u32 = field!(signal, signal_flags);
        flags & SIGNAL_GROUP_EXIT != 0
    }

    /// The user, in the initial user namespace, whom the files and directories that it makes belong to.
    #[inline(always)]
    pub fn fsuid(&self) -> u32 {
        let cred: Address = field!(self.0, task_cred);
        field!(cred, cred_fsuid)
    }

    /// How many threads of its process have not begun to exit.
    #[inline(always)]
    pub fn live_threads(&self) -> i32 {
        let signal: Address = field!(self.0, task_signal);
        field!(signal, signal_live)
    }

    /// The status that wait(2) gives, by the rule of the kernel's `wait_task_zombie`.
    #[inline(always)]
    pub fn wait_status(&self) -> u32 {
        let signal: Address = field!(self.0, task_signal);
        let flags: u32 = field!(signal, signal_flags);
        if flags & SIGNAL_GROUP_EXIT != 0 {
            field!(signal, signal_group_exit_code)
        } else {
            field!(self.leader().0, task_exit_code)
        }
    }
}

/// The name of the file that a `struct linux_binprm` is about, a string.
#[inline(always)]
pub fn binprm_filename(binprm: Address) -> Address {
    field!(binprm, binprm_filename)
}
