//! The BPF programs of kwitness: every entry point, and nothing else.
//!
//! The tracepoints are raw ones: they pass the kernel's own arguments, and every kernel from 5.10 on takes them. Where a hook
//! has several entry points with one body, the loader picks one of them.
//!
//! # Preemption
//!
//! The kernel runs no program again on a CPU where it has not returned; it skips it and counts a miss. Before 7.0 all
//! tracepoints ran with preemption disabled, so that could not happen to us. Since then they are protected by SRCU, and a
//! task that is preempted within a program makes others on that CPU go unseen. The cgroup tracepoints fire under a spin
//! lock with interrupts disabled (`TRACE_CGROUP_PATH` of `kernel/cgroup/cgroup-internal.h`), and so does
//! `sched_wakeup_new`. `sched_process_exec` and `sched_process_exit` do not: they have a second entry point, a classic
//! tracepoint (`_event`), for perf disables preemption before it runs a program (`include/trace/perf.h`). Such kernels
//! get that one.
//!
//! fentry, fexit and kprobes can be preempted on every kernel since 5.12. Nothing but their own kind of event is lost by it, a
//! write by another task on the same CPU within the same microsecond, and that is counted like any other miss.
//!
//! - [`cgroup`]: the life of cgroups, and the tracked set
//! - [`task`]: the life of processes in tracked cgroups
//! - [`limit`]: writes to limit files
//! - [`oom`]: OOM kills
//! - [`charge`]: charges of memory that take a level past a threshold
//! - [`kernel`]: reading the kernel's structures
//! - [`maps`]: every map, and the rings' rules
//!
//! A few decisions are logged with aya-log, for diagnostics only: the loader sets the level, and at its default, off, the
//! verifier cuts the logging out.
//!
//! What a record means is written in `kwitness_abi`. The programs change nothing and decide nothing: outside tracked
//! cgroups they cost one hash lookup, inside a bounded amount of work.

#![no_std]
// Inline assembly for the BPF machine, for the one instruction that neither the core library nor aya has: see `maps`.
#![feature(asm_experimental_arch)]
#![no_main]

mod cgroup;
mod charge;
mod emit;
mod kernel;
mod limit;
mod maps;
mod oom;
mod task;

use aya_ebpf::{
    macros::{fentry, fexit, kprobe, kretprobe, raw_tracepoint, tracepoint},
    programs::{
        FEntryContext, FExitContext, ProbeContext, RawTracePointContext, RetProbeContext, TracePointContext,
    },
};

use kernel::{Typed, Untyped};

/// Entry points at raw tracepoints.
macro_rules! tracepoints {
    ($($tracepoint:literal => $body:path: $program:ident;)*) => {$(
        #[doc = concat!("`", $tracepoint, "`.")]
        #[raw_tracepoint(tracepoint = $tracepoint)]
        pub fn $program(hook: RawTracePointContext) -> i32 {
            $body(&hook);
            0
        }
    )*};
}

tracepoints! {
    "cgroup_mkdir" => cgroup::mkdir: cgroup_mkdir;
    "cgroup_rmdir" => cgroup::rmdir: cgroup_rmdir;
    "cgroup_release" => cgroup::release: cgroup_release;
    "cgroup_attach_task" => cgroup::attach: cgroup_attach;
    "cgroup_notify_populated" => cgroup::populated: cgroup_populated;
    "sched_wakeup_new" => task::fork: task_fork;
    "sched_process_exec" => task::exec: task_exec;
    "sched_process_exit" => task::exit: task_exit;
    "mark_victim" => oom::marked: oom_kill;
}

/// `sched:sched_process_exec` as a classic tracepoint.
#[tracepoint]
pub fn task_exec_event(hook: TracePointContext) -> u32 {
    task::exec_event(&hook);
    NO_SAMPLE
}

/// `sched:sched_process_exit` as a classic tracepoint.
#[tracepoint]
pub fn task_exit_event(hook: TracePointContext) -> u32 {
    task::exit_event(&hook);
    NO_SAMPLE
}

/// `cgroup_file_write` begins.
#[fentry(function = "cgroup_file_write")]
pub fn limit_write_fentry(hook: FEntryContext) -> i32 {
    limit::begins(&hook);
    0
}

/// `cgroup_file_write` has returned.
#[fexit(function = "cgroup_file_write")]
pub fn limit_write_fexit(hook: FExitContext) -> i32 {
    limit::returned(&hook);
    0
}

/// `cgroup_file_write` begins.
#[kprobe]
pub fn limit_write_kprobe(hook: ProbeContext) -> u32 {
    limit::begins_at_kprobe(&hook);
    0
}

/// `cgroup_file_write` has returned.
#[kretprobe]
pub fn limit_write_kretprobe(hook: RetProbeContext) -> u32 {
    limit::returned(&hook);
    0
}

/// write(2) begins.
#[tracepoint]
pub fn limit_write_enter(hook: TracePointContext) -> u32 {
    limit::begins_at_syscall(&hook);
    NO_SAMPLE
}

/// write(2) has returned.
#[tracepoint]
pub fn limit_write_exit(hook: TracePointContext) -> u32 {
    limit::returned(&hook);
    NO_SAMPLE
}

/// `oom_kill_process` begins.
#[fentry(function = "oom_kill_process")]
pub fn oom_scope_fentry(hook: FEntryContext) -> i32 {
    oom::begins(&hook);
    0
}

/// `oom_kill_process` has returned.
#[fexit(function = "oom_kill_process")]
pub fn oom_scope_fexit(_: FExitContext) -> i32 {
    oom::ended();
    0
}

/// `oom_kill_process` begins.
#[kprobe]
pub fn oom_scope_kprobe(hook: ProbeContext) -> u32 {
    oom::begins(&hook);
    0
}

/// `oom_kill_process` has returned.
#[kretprobe]
pub fn oom_scope_kretprobe(_: RetProbeContext) -> u32 {
    oom::ended();
    0
}

/// `page_counter_try_charge` begins.
#[fentry(function = "page_counter_try_charge")]
pub fn memory_charge_fentry(hook: FEntryContext) -> i32 {
    charge::begins::<Typed>(&hook);
    0
}

/// `page_counter_try_charge` begins.
#[kprobe]
pub fn memory_charge_kprobe(hook: ProbeContext) -> u32 {
    charge::begins::<Untyped>(&hook);
    0
}

/// The return value with which a classic tracepoint's program keeps perf from writing a sample.
const NO_SAMPLE: u32 = 0;

/// Some helpers are reserved for programs that may be used under the GPL.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // SAFETY: no path of any program leads here; if one did, the verifier would refuse the program.
    unsafe { core::hint::unreachable_unchecked() }
}
