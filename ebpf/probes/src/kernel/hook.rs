//! What a hook passes: the kernel's own arguments, a function's result, or the event that a classic tracepoint wrote.

use core::ptr;

use aya_ebpf::{
    Argument, EbpfContext,
    programs::{
        FEntryContext, FExitContext, ProbeContext, RawTracePointContext, RetProbeContext, TracePointContext,
    },
};
use kwitness_abi::ABSENT;

use super::{Address, LAYOUT, read};

/// The context of a hook that passes the kernel's own arguments.
pub trait Arguments: EbpfContext {
    /// The hook's argument `n`.
    fn arg<T: Argument>(&self, n: usize) -> T;
}

impl Arguments for RawTracePointContext {
    #[inline(always)]
    fn arg<T: Argument>(&self, n: usize) -> T {
        self.arg(n)
    }
}

impl Arguments for FEntryContext {
    #[inline(always)]
    fn arg<T: Argument>(&self, n: usize) -> T {
        self.arg(n)
    }
}

impl Arguments for ProbeContext {
    /// One of the first three: the registers of the others are not in the layout.
    #[inline(always)]
    fn arg<T: Argument>(&self, n: usize) -> T {
        let offset = match n {
            0 => layout!(regs_first),
            1 => layout!(regs_second),
            _ => layout!(regs_third),
        };
        T::from_register(register(self, offset))
    }
}

/// The context of a function's return.
pub trait Returned {
    /// What the function returned.
    fn result(&self) -> i64;
}

impl Returned for FExitContext {
    /// It follows the arguments of `cgroup_file_write`, which are four. The helper that does not depend on that count is younger
    /// than the oldest kernel.
    #[inline(always)]
    fn result(&self) -> i64 {
        self.arg(4)
    }
}

impl Returned for RetProbeContext {
    #[inline(always)]
    fn result(&self) -> i64 {
        register(self, layout!(regs_result)) as i64
    }
}

impl Returned for TracePointContext {
    /// Of a system call's end.
    #[inline(always)]
    fn result(&self) -> i64 {
        let result = event(self).wrapping_add(layout!(sys_exit_ret) as usize);
        // SAFETY: the offset is that of the field in the event that the context points to.
        unsafe { read(result.cast()) }
    }
}

/// A register of those that a kprobe or kretprobe was called with.
#[inline(always)]
fn register(context: &impl EbpfContext, offset: u32) -> u64 {
    // SAFETY: the offset is that of a register in the `struct pt_regs` that the context points to.
    unsafe { read(context.as_ptr().cast::<u8>().wrapping_add(offset as usize).cast()) }
}

/// Argument `n` of a system call that begins.
#[inline(always)]
pub fn syscall_arg(hook: &TracePointContext, n: usize) -> u64 {
    let args = event(hook).wrapping_add(layout!(sys_enter_args) as usize);
    // SAFETY: the offset is that of the field in the event that the context points to; six arguments follow each other.
    unsafe { read(args.wrapping_add(n * size_of::<u64>()).cast()) }
}

/// The `group_dead` argument of `sched_process_exit`, on kernels that have it.
#[inline(always)]
pub fn group_dead(hook: &impl Arguments) -> Option<bool> {
    // The verifier drops the branch that the layout rules out, and with it the load of an argument that is not there.
    if layout!(exit_has_group_dead) == 0 { None } else { Some(hook.arg::<u8>(1) != 0) }
}

/// The same of the classic tracepoint's event.
#[inline(always)]
pub fn group_dead_of_event(hook: &TracePointContext) -> Option<bool> {
    let offset = layout!(exit_event_group_dead);
    // SAFETY: the offset is that of the field in the event that the context points to.
    (offset != ABSENT).then(|| unsafe { read::<u8>(event(hook).wrapping_add(offset as usize)) } != 0)
}

/// The name of the file that an event of the classic tracepoint `sched_process_exec` is about, a string.
#[inline(always)]
pub fn exec_filename_of_event(hook: &TracePointContext) -> Address {
    let slot = event(hook).wrapping_add(layout!(exec_event_filename) as usize);
    // A `__data_loc`: the length in the upper half, in the lower the offset from the event's beginning.
    // SAFETY: the offset is that of the field in the event that the context points to.
    let location: u32 = unsafe { read(slot.cast()) };
    event(hook).wrapping_add((location & 0xffff) as usize)
}

/// The event that a classic tracepoint wrote, a `struct trace_event_raw_*`.
#[inline(always)]
fn event(hook: &TracePointContext) -> Address {
    hook.as_ptr() as Address
}
