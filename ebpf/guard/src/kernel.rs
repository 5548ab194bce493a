//! Reading the kernel's own structures, at offsets that user space resolved from the running kernel's BTF.
//!
//! Owns [`LAYOUT`], every access by offset, and the rule of who must not be stopped ([`Task::spared`]). A field that cannot be
//! read is zero, a null pointer's fields are zero.

use core::{mem::MaybeUninit, ptr};

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_current_task, bpf_probe_read_kernel, generated::bpf_get_current_ancestor_cgroup_id},
    programs::ProbeContext,
};
use kwitness_abi::{GUARD_NODES, GuardLayout, ProcessKey, Spared};

/// Filled in by the loader, constant to the verifier.
#[unsafe(no_mangle)]
static LAYOUT: GuardLayout = GuardLayout::UNKNOWN;

/// `PF_EXITING` and `PF_KTHREAD` of `include/linux/sched.h`.
const PF_EXITING: u32 = 0x4;
const PF_KTHREAD: u32 = 0x20_0000;
/// `NR_LRU_LISTS`, `LRU_INACTIVE_FILE` and `LRU_ACTIVE_FILE` of `include/linux/mmzone.h`.
const LRU_LISTS: usize = 5;
const LRU_FILE: [usize; 2] = [2, 3];
/// Zones of a memory node, at most (`MAX_NR_ZONES` with every option).
const ZONES: usize = 8;
/// Steps from one cgroup to the next whose file cache is counted: one for each, and one for each that has others below it. What is
/// beyond counts as usage.
const STEPS: u32 = 16;
/// Generations between a process and its container's first one. Deeper ones are spared.
const GENERATIONS: u32 = 32;

type Address = *const u8;

/// What is at `address`; zero if it cannot be read.
///
/// # Safety
/// Any bit pattern is a valid `T`.
#[inline(always)]
unsafe fn read<T: Copy>(address: *const T) -> T {
    // SAFETY: the helper checks the address; zero is a valid `T` by this function's contract.
    unsafe { bpf_probe_read_kernel(address).unwrap_or(MaybeUninit::zeroed().assume_init()) }
}

/// An offset of [`LAYOUT`].
macro_rules! offset {
    ($field:ident) => {
        // SAFETY: a static's own field; volatile, so that the compiler does not take the initial value for the final one.
        unsafe { ptr::read_volatile(&raw const LAYOUT.$field) as usize }
    };
}

/// The field at an offset of [`LAYOUT`] of the object at an address.
macro_rules! field {
    ($base:expr, $field:ident) => {{
        let address = $base.wrapping_add(offset!($field)).cast();
        // SAFETY: a field of the layout is an integer or an address.
        unsafe { read(address) }
    }};
}

/// The id of the cgroup at that level that the current task is in or below; 0 if it is not that deep.
#[inline(always)]
pub fn ancestor_id(level: u32) -> u64 {
    // SAFETY: a helper with a number for its argument.
    unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) }
}

/// A function's first argument, at a kprobe.
#[inline(always)]
pub fn first_argument(hook: &ProbeContext) -> Address {
    field!(hook.as_ptr().cast::<u8>(), regs_first)
}

/// Its second one.
#[inline(always)]
pub fn second_argument(hook: &ProbeContext) -> u64 {
    field!(hook.as_ptr().cast::<u8>(), regs_second)
}

/// A `struct page_counter`.
pub struct Counter(Address);

impl Counter {
    /// The one at that address.
    #[inline(always)]
    pub fn at(address: Address) -> Self {
        Self(address)
    }

    /// The id of the cgroup whose memory it counts. Of a counter of anything else, a number that means nothing: what is read
    /// then is not a cgroup's, and does not have the id of an armed one.
    #[inline(always)]
    pub fn cgroup_id(&self) -> u64 {
        let cgroup: Address = field!(self.memcg(), memcg_cgroup);
        let node: Address = field!(cgroup, cgroup_kn);
        field!(node, kernfs_node_id)
    }

    /// The `struct mem_cgroup` that it is a part of, if it counts memory.
    #[inline(always)]
    fn memcg(&self) -> Address {
        self.0.wrapping_sub(offset!(memcg_memory))
    }

    /// Pages of file cache of the cgroup and of those below it, as far as [`STEPS`] reach: what the kernel reclaims before it kills. The
    /// kernel keeps these counts exact, unlike those of `memory.stat`. Memory of tmpfs and locked memory are on other lists.
    #[inline(always)]
    pub fn file_cache(&self) -> u64 {
        let top = self.memcg();
        let (mut at, mut is_new, mut pages) = (top, true, 0);
        for _ in 0..STEPS {
            if is_new {
                pages += own_file_cache(at);
                let first: Address = field!(at, memcg_children);
                if first != at.wrapping_add(offset!(memcg_children)) {
                    at = first.wrapping_sub(offset!(memcg_sibling));
                    continue;
                }
            }
            if at == top {
                break;
            }
            let next: Address = field!(at, memcg_sibling);
            let parent: Address = field!(at, memcg_parent);
            let parent = parent.wrapping_sub(offset!(memcg_css));
            is_new = next != parent.wrapping_add(offset!(memcg_children));
            at = if is_new { next.wrapping_sub(offset!(memcg_sibling)) } else { parent };
        }
        pages
    }

    /// Pages charged.
    #[inline(always)]
    pub fn usage(&self) -> u64 {
        field!(self.0, counter_usage)
    }

    /// Pages allowed.
    #[inline(always)]
    pub fn max(&self) -> u64 {
        field!(self.0, counter_max)
    }

    /// That of the cgroup above.
    #[inline(always)]
    pub fn parent(&self) -> Option<Self> {
        let parent: Address = field!(self.0, counter_parent);
        (!parent.is_null()).then_some(Self(parent))
    }
}

/// Pages of file cache of a cgroup, without those below it. `memcg` is its `struct mem_cgroup`.
#[inline(always)]
fn own_file_cache(memcg: Address) -> u64 {
    let sizes = offset!(per_node_lru_zone_size);
    let zones = (offset!(per_node_iter) - sizes) / (LRU_LISTS * size_of::<u64>());
    let mut pages = 0;
    for node in 0..GUARD_NODES as usize {
        if node >= offset!(nodes) {
            break;
        }
        let slot = memcg.wrapping_add(offset!(memcg_nodeinfo) + node * size_of::<Address>());
        // SAFETY: an address, within the array.
        let per_node: Address = unsafe { read(slot.cast()) };
        for zone in 0..ZONES {
            if zone >= zones || per_node.is_null() {
                break;
            }
            for list in LRU_FILE {
                let size = per_node.wrapping_add(sizes + (zone * LRU_LISTS + list) * size_of::<u64>());
                // SAFETY: an integer, within the array.
                let size: u64 = unsafe { read(size.cast()) };
                pages += size;
            }
        }
    }
    pages
}

/// A `struct task_struct`: a thread.
pub struct Task(Address);

impl Task {
    /// The one that the hook runs in.
    #[inline(always)]
    pub fn current() -> Self {
        // SAFETY: the helper has no precondition.
        Self(unsafe { bpf_get_current_task() } as Address)
    }

    #[inline(always)]
    fn leader(&self) -> Self {
        Self(field!(self.0, task_group_leader))
    }

    /// What names its process for good.
    #[inline(always)]
    pub fn key(&self) -> ProcessKey {
        let start_boottime = field!(self.leader().0, task_start_boottime);
        ProcessKey { start_boottime, pid: field!(self.0, task_tgid), pad: 0 }
    }

    /// Why it must not be stopped, if it must not.
    #[inline(always)]
    pub fn spared(&self) -> Option<Spared> {
        let flags: u32 = field!(self.0, task_flags);
        if flags & (PF_EXITING | PF_KTHREAD) != 0 {
            return Some(Spared::Exiting);
        }
        let leader = self.leader();
        if self.is_traced() || leader.is_traced() {
            return Some(Spared::Traced);
        }
        let signal: Address = field!(self.0, task_signal);
        let terminal: Address = field!(signal, signal_tty);
        if !terminal.is_null() {
            return Some(Spared::Terminal);
        }
        leader.origin()
    }

    #[inline(always)]
    fn is_traced(&self) -> bool {
        let tracers: u32 = field!(self.0, task_ptrace);
        tracers != 0
    }

    /// Follows a process's parents to the first process of its pid namespace. One that has come in from outside, as an exec
    /// session has, has a parent in a namespace above instead; its orphans are the first process's children, and count as
    /// its descendants.
    #[inline(always)]
    fn origin(self) -> Option<Spared> {
        let (level, _) = self.pid();
        // The initial namespace's.
        if level == 0 {
            return Some(Spared::SharedPids);
        }
        let mut task = self;
        for _ in 0..GENERATIONS {
            let (of_task, number) = task.pid();
            if of_task < level {
                return Some(Spared::Entered);
            }
            if number == 1 {
                return None;
            }
            task = Self(field!(task.0, task_real_parent)).leader();
        }
        Some(Spared::Entered)
    }

    /// The level of its pid namespace, and its number there.
    #[inline(always)]
    fn pid(&self) -> (u32, u32) {
        let pid: Address = field!(self.0, task_thread_pid);
        let level: u32 = field!(pid, pid_level);
        let size = offset!(upid_ns) + size_of::<Address>();
        let numbers = pid.wrapping_add(offset!(pid_numbers)).wrapping_add(level as usize * size);
        (level, field!(numbers, upid_nr))
    }
}
