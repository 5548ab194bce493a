//! The parts that records of all kinds have in common.

use aya_ebpf::helpers::{
    bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_smp_processor_id,
    generated::{bpf_ktime_get_boot_ns, bpf_probe_read_kernel_str, bpf_probe_read_user},
};
use kwitness_abi::{Actor, COMM_LEN, Caller, Header, RecordKind};

use crate::kernel::{Address, Task, current_cgroup_id, current_ids};

/// `CLOCK_BOOTTIME` in nanoseconds.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// A header with the current time and CPU.
#[inline(always)]
pub fn header(kind: RecordKind, cgroup_id: u64, flags: u16) -> Header {
    let ktime = now();
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    Header { ktime, cgroup_id, kind: kind as u16, flags, cpu }
}

/// Whose system call (or whose exit) the hook is in.
#[inline(always)]
pub fn actor() -> Actor {
    let (pid, tid) = current_ids();
    Actor { pid, tid, comm: bpf_get_current_comm().unwrap_or([0; COMM_LEN]) }
}

/// The same, with what names its process for good and the cgroup that it is in.
#[inline(always)]
pub fn caller() -> Caller {
    let current = Task::current();
    Caller { start_boottime: current.key().start_boottime, cgroup_id: current_cgroup_id(), actor: actor() }
}

/// The thread that the hook runs in, by its id in the initial pid namespace.
#[inline(always)]
pub fn tid() -> u32 {
    bpf_get_current_pid_tgid() as u32
}

/// Copies the string at `source` to the `CAP` bytes at `target`; its length without the NUL, 0 if it cannot be read.
///
/// # Safety
/// `CAP` bytes at `target` may be written.
#[inline(always)]
pub unsafe fn copy_string<const CAP: usize>(source: Address, target: *mut u8) -> u32 {
    // SAFETY: the helper checks `source`; `target` by this function's contract.
    let written = unsafe { bpf_probe_read_kernel_str(target.cast(), CAP as u32, source.cast()) };
    if written <= 0 {
        // SAFETY: by this function's contract.
        unsafe { target.write(0) };
        return 0;
    }
    (written - 1) as u32
}

/// Copies the first of `length` bytes of the user's at `source` to the `CAP` bytes at `target`, and a NUL after them; nothing but a
/// NUL if they cannot be read, as when they are not in memory yet.
///
/// # Safety
/// `CAP` bytes at `target` may be written; `CAP` is a power of two.
#[inline(always)]
pub unsafe fn copy_user_text<const CAP: usize>(source: Address, length: u64, target: *mut u8) {
    let length = if length >= CAP as u64 { CAP as u64 - 1 } else { length };
    // For the verifier, which has to know the bound.
    let length = (length & (CAP as u64 - 1)) as u32;
    // SAFETY: the helper checks `source`; `target` by this function's contract.
    let failed = unsafe { bpf_probe_read_user(target.cast(), length, source.cast()) } != 0;
    let end = if failed { 0 } else { length as usize & (CAP - 1) };
    // SAFETY: below `CAP`.
    unsafe { target.add(end).write(0) };
}
