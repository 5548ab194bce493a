//! Every map of the programs, and the only functions that write to a ring or to the counters.
//!
//! | Map | Holds | User space |
//! |---|---|---|
//! | [`TRACKED`] | the tracked cgroups | adds what exists at its scan |
//! | [`SHARES`] | how many cgroups are tracked, in each container and in all | counts what it adds |
//! | [`ROOTS`] | configured roots of the tracked set | fills it before attaching |
//! | [`LIFECYCLE`] | rare, precious records | reads, is woken |
//! | [`TASKS`] | exec and exit of processes that are already in a container | reads, is woken when it waits |
//! | [`READER_WAITS`] | whether the reader waits for [`TASKS`] | sets it before it waits |
//! | [`FORKS`] | their forks | reads, is not woken |
//! | [`OWN_WRITES`] | what workloads cause by themselves: writes to limit files, charges of memory | reads, is woken |
//! | [`RING_SHARES`] | how much of a ring's fuller half each container has taken | nothing |
//! | [`COUNTERS`] | what was lost | reads |
//! | [`LOST`] | whose that was | reads when something was lost |
//! | [`FIRST_PROCESSES`] | the processes that ran a cgroup's first program | nothing |
//! | [`EXITED`] | processes whose exit has been reported | nothing |
//! | [`LIMIT_FILES`] | the names of limit files | fills it before attaching |
//! | [`ANCESTORS`] | cgroups above tracked roots | adds what exists at its scan |
//! | [`BUDGETS`] | how much each cgroup's limit files have been written to | reads how many writes were suppressed |
//! | [`IN_FLIGHT`] | writes to limit files that have not returned | nothing |
//! | [`OOM_CONTEXTS`] | what was exhausted, while the kernel chooses and kills | nothing |
//! | [`LEVELS`] | how full each level was at its last charge, if it is near a threshold | nothing |
//!
//! Sizes are what a program loaded by hand would get; the loader sets its own.

use core::arch::asm;

use aya_ebpf::{
    bindings::{
        BPF_F_MMAPABLE, BPF_NOEXIST, BPF_RB_AVAIL_DATA, BPF_RB_CONS_POS, BPF_RB_FORCE_WAKEUP,
        BPF_RB_NO_WAKEUP, BPF_RB_PROD_POS, BPF_RB_RING_SIZE,
    },
    helpers::bpf_get_smp_processor_id,
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, ring_buf::RingBufEntry},
};
use kwitness_abi::{
    BUDGET_WINDOW, BUDGET_WRITES, Budget, ChargedLevel, Counters, LEVELS_CAP, LimitFileName, LimitWrite,
    LostOf, OomContext, Pattern, ProcessKey, RecordKind, SHARES as TOTAL, TRACKED_CONTAINED, Tracked,
};

/// Tracked cgroups by cgroup v2 id. Preallocated: an insert happens inside mkdir(2) and must not run out of
/// memory while there is room.
#[map]
pub static TRACKED: HashMap<u64, Tracked> = HashMap::with_max_entries(65_536, 0);

/// How many cgroups are tracked in each container, and in all: see [`kwitness_abi::SHARES`]. User space maps it into its memory, so
/// that both sides count without losing one of the other's.
#[map]
pub static SHARES: Array<i64> = Array::with_max_entries(TOTAL + 1, BPF_F_MMAPABLE);

/// Beginnings of names or paths that make a cgroup a root of the tracked set; the value means nothing.
#[map]
pub static ROOTS: LpmTrie<Pattern, u8> = LpmTrie::with_max_entries(64, 0);

/// The records that a container's lifecycle is made of: cgroups, first programs, entries, exits of first programs.
#[map]
pub static LIFECYCLE: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// Exec and exit of the other processes: a storm of them cannot evict a lifecycle record. Records are committed without a
/// wake-up; see [`wake_waiting_reader`].
#[map]
pub static TASKS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// Not 0 while the reader waits for [`TASKS`] instead of looking at it by itself. User space maps it into its memory, for the
/// reason given at [`COUNTERS`].
#[map]
pub static READER_WAITS: Array<u32> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Forks inside a container. A ring of their own because no reader waits for them: a record that was committed without a
/// wake-up would keep the records behind it from waking the reader, too, as the kernel wakes only for the record at the
/// consumer's position.
#[map]
pub static FORKS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// See [`takes_share`]: so many elements for each [`Ring`], in its order.
#[map]
pub static RING_SHARES: Array<RingShare> = Array::with_max_entries(RINGS * SHARES_A_RING, 0);

/// Containers that a ring has shares of their own for: by their numbers, modulo this.
const SHARES_A_RING: u32 = 1 << 14;
const RINGS: u32 = 4;

/// What a container has put into a ring since that was half full.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct RingShare {
    bytes: i64,
    /// Where its last record ends: once the reader is there, the container holds nothing.
    end: u64,
}

/// The rings, by what is in them.
#[derive(Clone, Copy)]
pub enum Ring {
    /// [`LIFECYCLE`]
    Lifecycle,
    /// [`TASKS`]
    Tasks,
    /// [`FORKS`]
    Forks,
    /// [`OWN_WRITES`]
    OwnWrites,
}

impl Ring {
    #[inline(always)]
    fn buffer(self) -> &'static RingBuf {
        match self {
            Self::Lifecycle => &LIFECYCLE,
            Self::Tasks => &TASKS,
            Self::Forks => &FORKS,
            Self::OwnWrites => &OWN_WRITES,
        }
    }
}

/// What could not be delivered; one element for each CPU. User space maps it into its memory: reading it by system call
/// would, while it lasts, make the kernel skip classic tracepoints' programs on that CPU (`bpf_disable_instrumentation`).
#[map]
pub static COUNTERS: Array<Counters> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Of the lost records in [`COUNTERS`], how many of each kind were a container's. Least recently used: of what gives way, it is not
/// known any more whose it was.
#[map]
pub static LOST: LruHashMap<LostOf, u64> = LruHashMap::with_max_entries(1_024, 0);

/// Processes whose exec had `FLAG_FIRST`, so that their exit is recognised in whatever tracked cgroup they end. Least
/// recently used: an entry whose exit is never seen (moved out of the tracked set) gives way.
#[map]
pub static FIRST_PROCESSES: LruHashMap<ProcessKey, u8> = LruHashMap::with_max_entries(65_536, 0);

/// Processes whose exit has been claimed by one of their threads, see `task::is_last_thread`. Needed for the moment
/// between two threads' exits only, hence small and least recently used.
#[map]
pub static EXITED: LruHashMap<ProcessKey, u8> = LruHashMap::with_max_entries(8_192, 0);

/// Writes to limit files by processes that are themselves in a tracked cgroup, and charges of memory: a container that may write
/// to cgroups of its own, or fills and frees its memory, and does so as often as it can, evicts no one else's lifecycle record. How
/// many records it makes is bounded for each cgroup. Writes of the kubelet, the runtime and systemd are in [`LIFECYCLE`].
#[map]
pub static OWN_WRITES: RingBuf = RingBuf::with_byte_size(1 << 18, 0);

/// The names of the files that are limits; the value is the number that a record carries.
#[map]
pub static LIMIT_FILES: HashMap<LimitFileName, u32> = HashMap::with_max_entries(128, 0);

/// The cgroups above tracked roots: their limits hold below. The value means nothing.
#[map]
pub static ANCESTORS: HashMap<u64, u8> = HashMap::with_max_entries(256, 0);

/// By cgroup. Least recently used: one that gives way begins a new window when it comes back.
#[map]
pub static BUDGETS: LruHashMap<u64, Budget> = LruHashMap::with_max_entries(8_192, 0);

/// Writes that have begun, by thread. Least recently used: the entry of a thread whose return was not seen gives way.
#[map]
pub static IN_FLIGHT: LruHashMap<u32, LimitWrite> = LruHashMap::with_max_entries(4_096, 0);

/// Where a write's record is put together, which the stack is too small for. Each of the three programs that use it (one is
/// loaded) has it to itself until it returns, for the kernel does not enter it again on the same CPU.
#[map]
pub static SCRATCH: PerCpuArray<LimitWrite> = PerCpuArray::with_max_entries(1, 0);

/// By the thread in which the kernel chooses and kills.
#[map]
pub static OOM_CONTEXTS: LruHashMap<u32, OomContext> = LruHashMap::with_max_entries(1_024, 0);

/// By the address of the kernel's `mem_cgroup`.
#[map]
pub static LEVELS: LruHashMap<u64, ChargedLevel> = LruHashMap::with_max_entries(LEVELS_CAP, 0);

/// Whether another write to that cgroup's limit files may be reported now, see [`Budget`]. If not, it is counted.
///
/// Two writers at the same moment may both read what one of them wrote: the bound is approximate, the count of reported writes is exact.
#[inline(always)]
pub fn within_budget(cgroup: u64, now: u64) -> bool {
    let Some(budget) = BUDGETS.get_ptr_mut(cgroup) else {
        // A map without room for it bounds nothing, and loses nothing.
        let _ = BUDGETS.insert(cgroup, Budget { since: now, writes: 1, suppressed: 0 }, 0);
        return true;
    };
    // SAFETY: a live map element, see above for the race.
    unsafe {
        if now.wrapping_sub((*budget).since) >= BUDGET_WINDOW {
            (*budget).since = now;
            (*budget).writes = 0;
        }
        (*budget).writes += 1;
        if (*budget).writes <= BUDGET_WRITES {
            return true;
        }
        (*budget).suppressed += 1;
    }
    // SAFETY: `counters` points to the element of this CPU.
    count(|counters| unsafe { &raw mut (*counters).suppressed });
    false
}

/// Puts a record that lies elsewhere into `ring`; false: there is no room for it.
#[inline(always)]
pub fn output<T: 'static>(ring: &RingBuf, record: &T) -> bool {
    ring.output::<T>(record, 0).is_ok()
}

/// The same for what is done by a process in a tracked cgroup: beyond its container's share, there is no room, either.
#[inline(always)]
pub fn output_in<T: 'static>(ring: Ring, record: &T, by: &Tracked) -> bool {
    takes_share(ring, by, size_of::<T>()) && output(ring.buffer(), record)
}

/// Room for a record about a tracked cgroup; without room in the ring, or beyond its container's share of it, the loss is counted.
#[inline(always)]
pub fn reserve_in<T: 'static>(ring: Ring, kind: RecordKind, tracked: &Tracked) -> Option<RingBufEntry<T>> {
    if takes_share(ring, tracked, size_of::<T>())
        && let Some(entry) = ring.buffer().reserve::<T>(0)
    {
        return Some(entry);
    }
    count_lost(kind, tracked);
    None
}

/// Whether a container may put another record of that size into a ring: always, as long as less than half of it waits to be read;
/// then, if it has put in less since than is free. So one container alone leaves a quarter of the ring to the others, however fast
/// it is and however long no process reads. What lies in no container has no share.
#[inline(always)]
fn takes_share(ring: Ring, tracked: &Tracked, bytes: usize) -> bool {
    if tracked.flags & TRACKED_CONTAINED == 0 {
        return true;
    }
    let buffer = ring.buffer();
    let (size, waiting) =
        (buffer.query(u64::from(BPF_RB_RING_SIZE)), buffer.query(u64::from(BPF_RB_AVAIL_DATA)));
    if waiting < size / 2 {
        return true;
    }
    let index = ring as u32 * SHARES_A_RING + (tracked.container & (SHARES_A_RING - 1));
    let Some(share) = RING_SHARES.get_ptr_mut(index) else { return true };
    let (produced, consumed) =
        (buffer.query(u64::from(BPF_RB_PROD_POS)), buffer.query(u64::from(BPF_RB_CONS_POS)));
    // SAFETY: a live map element. Two CPUs that are here for the same container may both forget what it held.
    unsafe {
        if (*share).end <= consumed {
            (*share).bytes = 0;
        }
        if (*share).bytes as u64 >= size.saturating_sub(waiting) {
            return false;
        }
        add(&raw mut (*share).bytes, bytes as i64);
        (*share).end = produced + bytes as u64;
    }
    true
}

/// Adds to a number that other CPUs add to at the same time.
///
/// # Safety
/// It is that of a live map element, and aligned.
#[inline(always)]
unsafe fn add(number: *mut i64, change: i64) {
    // The core library has no atomic addition for this machine. The value before is not returned: that the oldest kernel
    // cannot do.
    // SAFETY: by this function's contract.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) number, in(reg) change, options(nostack)) };
}

/// A record of that kind about a tracked cgroup could not be delivered.
///
/// First as its container's: who reads the sum, and then this, finds all that is in the sum.
#[inline(always)]
pub fn count_lost(kind: RecordKind, of: &Tracked) {
    if of.flags & TRACKED_CONTAINED != 0 {
        count_lost_of(LostOf { container: of.container, kind: kind as u32 });
    }
    count(|counters| {
        // SAFETY: `counters` points to the element of this CPU; the index is a constant below the array's length.
        unsafe { (&raw mut (*counters).lost).cast::<u64>().add(kind.index()) }
    });
}

#[inline(always)]
fn count_lost_of(whose: LostOf) {
    if LOST.get_ptr_mut(whose).is_none() {
        // Another CPU may have been faster. Without room it is in the sum only.
        let _ = LOST.insert(whose, 0_u64, BPF_NOEXIST as u64);
    }
    if let Some(lost) = LOST.get_ptr_mut(whose) {
        // SAFETY: a live map element, aligned, to which nothing is ever written in another way.
        unsafe { add(lost.cast(), 1) };
    }
}

/// A cgroup could not be tracked.
#[inline(always)]
pub fn count_untracked() {
    // SAFETY: `counters` points to the element of this CPU.
    count(|counters| unsafe { &raw mut (*counters).untracked });
}

/// The program at charges of memory runs.
#[inline(always)]
pub fn count_charge() {
    // SAFETY: `counters` points to the element of this CPU.
    count(|counters| unsafe { &raw mut (*counters).charges });
}

/// How many cgroups are tracked in the container of that share; with [`TOTAL`], in all.
#[inline(always)]
pub fn held(share: u32) -> i64 {
    // SAFETY: a live map element.
    SHARES.get_ptr(share).map_or(0, |held| unsafe { held.read_volatile() })
}

/// A cgroup is tracked (`change` is 1), or is no more (the number below zero): by its container's share, if it is counted there, and
/// in all.
#[inline(always)]
pub fn count_tracked(share: Option<u32>, change: i64) {
    for index in [share, Some(TOTAL)].into_iter().flatten() {
        if let Some(held) = SHARES.get_ptr_mut(index) {
            // SAFETY: a live map element, aligned, to which nothing is ever written in another way.
            unsafe { add(held, change) };
        }
    }
}

/// A plain increment is exact: the element is this CPU's, each counter has one program that writes to it, and the kernel
/// does not enter a program again on a CPU where it has not returned (it counts that as a recursion miss).
#[inline(always)]
fn count(which: impl FnOnce(*mut Counters) -> *mut u64) {
    // SAFETY: the helper has no precondition.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    if let Some(counters) = COUNTERS.get_ptr_mut(cpu) {
        // SAFETY: a pointer into a live map element, and aligned.
        unsafe { *which(counters) += 1 };
    }
}

/// How to commit a record to a ring whose reader looks at it by itself: without a wake-up, until the ring is a quarter full; then
/// the reader is far behind, and every record wakes it.
#[inline(always)]
pub fn wakeup_if_filling(ring: &RingBuf) -> u64 {
    let quarter = ring.query(u64::from(BPF_RB_RING_SIZE)) / 4;
    let filled = ring.query(u64::from(BPF_RB_AVAIL_DATA));
    u64::from(if filled >= quarter { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP })
}

/// Wakes the reader if it waits for [`TASKS`]; called after a record was committed there.
///
/// The order matters: the commit is a full barrier, and so is what the reader does between setting [`READER_WAITS`] and its last
/// look at the ring. Either this sees that the reader waits, or the reader sees the record.
///
/// Only a commit can wake a reader, hence the empty record, which is discarded. Whoever resets [`READER_WAITS`] wakes the reader
/// afterwards, so a reset that hits a later wait only ends that early.
#[inline(always)]
pub fn wake_waiting_reader() {
    let Some(waits) = READER_WAITS.get_ptr_mut(0) else { return };
    // SAFETY: a live map element.
    if unsafe { waits.read_volatile() } == 0 {
        return;
    }
    // SAFETY: as above.
    unsafe { waits.write_volatile(0) };
    // Without room for it the ring is more than a quarter full, and its records have woken the reader.
    if let Some(empty) = TASKS.reserve::<u64>(0) {
        empty.discard(u64::from(BPF_RB_FORCE_WAKEUP));
    }
}
