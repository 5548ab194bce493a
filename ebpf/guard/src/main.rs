//! The BPF program of `kwitness guard`: it stops a process whose charge takes its container past a threshold of the
//! memory limit, before the process returns to user space.
//!
//! The kernel calls `page_counter_try_charge` when a CPU's stock of pages that are already charged is used up: once per 64
//! pages (`MEMCG_CHARGE_BATCH` of `mm/memcontrol.c`). The program is attached to its beginning.
//!
//! ```text
//!  the lease has ended ─────────────────────────────── counted (`CALLS`): how often the kernel calls this is measured before
//!                                                       the first lease
//!  the current task is in no armed cgroup ──────────── nothing
//!  what is charged is not that cgroup's memory ─────── nothing: a socket's buffer charged in an interrupt, a remote charge
//!  usage + charge − file cache is below the threshold ─ the same of its pod's limit, if that is armed; else nothing
//!  the task is one that must not be stopped ────────── counted (`Spared`)
//!  it is recorded as held already ──────────────────── nothing
//!  otherwise ───────────────────────────────────────── recorded in HELD, then SIGSTOP, then the reader is woken
//! ```
//!
//! What is held is always the current process, so a process of another container cannot be. What it costs where nothing is
//! armed: the lookup of the lease.
//!
//! Never raises a limit, never continues a process, never reads a clock but the kernel's boot time.

#![no_std]
#![no_main]

mod kernel;

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid,
        generated::{bpf_ktime_get_boot_ns, bpf_send_signal},
    },
    macros::{fentry, kprobe, map},
    maps::{Array, HashMap, PerCpuArray, RingBuf},
    programs::{FEntryContext, ProbeContext},
};
use kwitness_abi::{
    Armed, COMM_LEN, GUARD_ARMED_CAP, GUARD_HELD_CAP, GUARD_LEVELS, Hold, Lease, ProcessKey, Spared,
};

use kernel::{Counter, Task, ancestor_id, first_argument, second_argument};

/// `SIGSTOP` of `include/uapi/asm-generic/signal.h`; the same number on x86-64 and arm64.
const SIGSTOP: u32 = 19;
/// Levels of cgroups below an armed one whose charges are seen as its own.
const NESTED: u32 = 8;

#[map]
static LEASE: Array<Lease> = Array::with_max_entries(1, 0);

#[map]
static ARMED: HashMap<u64, Armed> = HashMap::with_max_entries(GUARD_ARMED_CAP, 0);

/// Preallocated: an insert does not fail when memory is short, as it is here.
#[map]
static HELD: HashMap<ProcessKey, Hold> = HashMap::with_max_entries(GUARD_HELD_CAP, 0);

/// A record says only that there is something new in [`HELD`]: one that finds no room costs a delay, not a hold.
#[map]
static WAKE: RingBuf = RingBuf::with_byte_size(1 << 12, 0);

/// By [`Spared`]. A plain increment is exact: the kernel does not enter the program again on a CPU where it has not returned.
#[map]
static SPARED: PerCpuArray<u64> = PerCpuArray::with_max_entries(Spared::ALL.len() as u32, 0);

/// Calls while nothing may be held. As exact as [`SPARED`].
#[map]
static CALLS: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// `page_counter_try_charge(counter, pages, …)` begins.
#[fentry(function = "page_counter_try_charge")]
pub fn charge_fentry(hook: FEntryContext) -> i32 {
    charged(hook.arg(0), hook.arg(1));
    0
}

/// The same.
#[kprobe]
pub fn charge_kprobe(hook: ProbeContext) -> u32 {
    charged(first_argument(&hook), second_argument(&hook));
    0
}

#[inline(always)]
fn charged(counter: *const u8, pages: u64) {
    let Some(lease) = LEASE.get(0) else { return };
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    if now >= lease.until {
        if let Some(calls) = CALLS.get_ptr_mut(0) {
            // SAFETY: a live map element of this CPU.
            unsafe { *calls += 1 };
        }
        return;
    }
    let Some((own, above)) = place(lease.levels) else { return };
    let crossed = match crossing(own, counter, pages, now) {
        None => match armed(above) {
            Some(pod) if pod.armed.is_pod != 0 => crossing(pod, counter, pages, now),
            _ => None,
        },
        crossed => crossed,
    };
    let Some(Crossed { cgroup_id, usage, limit, longest }) = crossed else { return };
    let task = Task::current();
    if let Some(reason) = task.spared() {
        count(reason);
        return;
    }
    let key = task.key();
    let hold = Hold {
        cgroup_id,
        since: now,
        until: now + longest,
        usage,
        limit,
        tid: bpf_get_current_pid_tgid() as u32,
        signalled: 0,
        comm: bpf_get_current_comm().unwrap_or([0; COMM_LEN]),
    };
    hold_process(&key, &hold);
}

/// Records first: who is stopped is always known to those who continue.
#[inline(always)]
fn hold_process(key: &ProcessKey, hold: &Hold) {
    if HELD.get_ptr(key).is_some() {
        return;
    }
    if HELD.insert(key, hold, u64::from(BPF_NOEXIST)).is_err() {
        // Another thread of the process was quicker, or there is no room.
        if HELD.get_ptr(key).is_none() {
            count(Spared::Full);
        }
        return;
    }
    // SAFETY: a helper with a number for its argument. Where interrupts are disabled it sends the signal as soon as they are
    // enabled again, from an interrupt: no lock that is held here is taken.
    if unsafe { bpf_send_signal(SIGSTOP) } != 0 {
        let _ = HELD.remove(key);
        count(Spared::Refused);
        return;
    }
    if let Some(hold) = HELD.get_ptr_mut(key) {
        // SAFETY: a live map element, which user space does not touch before this.
        unsafe { (&raw mut (*hold).signalled).write_volatile(1) };
    }
    let _ = WAKE.output::<ProcessKey>(key, 0);
}

/// A cgroup that is armed.
#[derive(Clone, Copy)]
struct ArmedCgroup {
    id: u64,
    armed: &'static Armed,
}

/// The innermost armed cgroup that the current task is in, and the id of the one directly above. None for a task that is in an armed
/// pod, and in none of its armed containers.
#[inline(always)]
fn place(levels: u64) -> Option<(ArmedCgroup, u64)> {
    for from_innermost in 1..=GUARD_LEVELS {
        let level = GUARD_LEVELS - from_innermost;
        if levels & 1 << level == 0 {
            continue;
        }
        if let Some(own) = armed(ancestor_id(level)) {
            if own.armed.is_pod != 0 || level == 0 {
                return None;
            }
            return Some((own, ancestor_id(level - 1)));
        }
    }
    None
}

#[inline(always)]
fn armed(id: u64) -> Option<ArmedCgroup> {
    // SAFETY: user space replaces elements; the kernel keeps one that is being read until the program returns.
    unsafe { ARMED.get(id) }.map(|armed| ArmedCgroup { id, armed })
}

/// A limit whose threshold a charge crosses: usage with it, and limit, in pages.
struct Crossed {
    cgroup_id: u64,
    usage: u64,
    limit: u64,
    longest: u64,
}

/// Whether so many more pages at that counter cross the threshold of an armed cgroup.
#[inline(always)]
fn crossing(of: ArmedCgroup, counter: *const u8, pages: u64, now: u64) -> Option<Crossed> {
    let ArmedCgroup { id, armed } = of;
    if now < armed.quiet_until {
        return None;
    }
    let counter = counter_of(id, Counter::at(counter))?;
    let (usage, limit) = (counter.usage() + pages, counter.max());
    // Even the largest limit there is, `PAGE_COUNTER_MAX`, can be multiplied by a thousand.
    let threshold = limit * u64::from(armed.per_mille);
    // The cache is looked at only where it matters.
    if usage * 1000 < threshold || usage.saturating_sub(counter.file_cache()) * 1000 < threshold {
        return None;
    }
    Some(Crossed { cgroup_id: id, usage, limit, longest: armed.longest })
}

/// The counter of the cgroup's memory, if `counter` is that or one of a cgroup below it.
#[inline(always)]
fn counter_of(cgroup_id: u64, mut counter: Counter) -> Option<Counter> {
    for _ in 0..NESTED {
        if counter.cgroup_id() == cgroup_id {
            return Some(counter);
        }
        counter = counter.parent()?;
    }
    None
}

#[inline(always)]
fn count(reason: Spared) {
    if let Some(counter) = SPARED.get_ptr_mut(reason as u32) {
        // SAFETY: a live map element of this CPU.
        unsafe { *counter += 1 };
    }
}

/// Some helpers are reserved for programs that may be used under the GPL.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // SAFETY: no path of the program leads here; if one did, the verifier would refuse the program.
    unsafe { core::hint::unreachable_unchecked() }
}
