//! The life of processes in tracked cgroups. Threads produce nothing.
//!
//! # Which program is the container's own
//!
//! Before a container's own program runs, its cgroup holds the runtime's helpers. They are distinguished by the **mount
//! namespace: that of the container's program differs from its parent's**. Seen with runc 1.1 and 1.3, crun 1.8 and 1.28,
//! on 6.18 and 7.2:
//!
//! | Step | runc | crun |
//! |---|---|---|
//! | enters the cgroup | `attach` of a stage-0 process (host's mounts) | `fork` by `CLONE_INTO_CGROUP` (already own mounts) |
//! | helpers | forks `runc:[1:CHILD]`, which forks `runc:[2:INIT]`; both earlier stages exit 0 | none |
//! | **own program** | **`exec` by stage 2: own mounts, parent has the host's** | **`exec` by that process: likewise** |
//! | exec into it | `attach` of a process that has joined the mounts, `exec`, parent has the host's | `CLONE_INTO_CGROUP`, likewise |
//! | entry point missing | stage 2 exits with a code, no `exec` | the process is killed, no `exec` |
//!
//! - The runtimes execute themselves again (`runc init`) in the host's mounts, and before they enter the cgroup.
//! - By the time of the exec the parent is the runtime, or, when that has ended, whoever reaped it (a shim, conmon, pid 1):
//!   each of them in the host's mounts, or, exiting, in none.
//! - Hooks that run inside the container are children of stage 2, in their parent's mounts. So are the container's own
//!   children.
//! - A shared or a host pid namespace changes nothing, which is why this is not decided by being pid 1.
//! - An exec into a container looks like its start, hence only the first counts ([`TRACKED_STARTED`]). Into a container that
//!   is created and not started, it would count as the first; the kubelet does not do that.
//! - A container without mounts of its own has no first program; no CRI runtime makes one.

use aya_ebpf::programs::TracePointContext;
use aya_log_ebpf::debug;
use kwitness_abi::{
    FILENAME_CAP, FLAG_ENTERED, FLAG_FIRST, FLAG_FIRST_EXIT, Process, RecordKind, TRACKED_STARTED, TaskExec,
    TaskExit, TaskFork, Tracked,
};

use crate::{
    emit::{copy_string, header},
    kernel::{
        Address, Arguments, Task, binprm_filename, current_cgroup_id, exec_filename_of_event, group_dead,
        group_dead_of_event,
    },
    maps::{
        EXITED, FIRST_PROCESSES, FORKS, Ring, TASKS, TRACKED, reserve_in, wake_waiting_reader,
        wakeup_if_filling,
    },
};

/// The flag of the kernel's `bpf_map_update_elem` that refuses to replace an element.
const BPF_NOEXIST: u64 = aya_ebpf::bindings::BPF_NOEXIST as u64;

/// `sched_wakeup_new(child)`: the child may run from now on. It is in its cgroup, which is not the parent's, the current
/// task's, if it was made with `CLONE_INTO_CGROUP`.
///
/// Not `sched_process_fork`, a moment earlier: that runs where it can be preempted (see the crate's description), this
/// under the lock of a run queue.
#[inline(always)]
pub fn fork(hook: &impl Arguments) {
    let child = Task::at(hook.arg(0));
    let id = child.cgroup_id();
    let Some(tracked) = TRACKED.get_ptr(id) else { return };
    if !child.is_leader() {
        return;
    }
    // SAFETY: a live map element.
    let tracked = unsafe { &*tracked };
    if current_cgroup_id() == id {
        emit_fork(Ring::Forks, id, 0, &child, tracked);
    } else {
        emit_fork(Ring::Lifecycle, id, FLAG_ENTERED, &child, tracked);
    }
}

#[inline(always)]
fn emit_fork(ring: Ring, id: u64, flags: u16, child: &Task, tracked: &Tracked) {
    let Some(mut entry) = reserve_in::<TaskFork>(ring, RecordKind::TaskFork, tracked) else { return };
    entry.write(TaskFork { header: header(RecordKind::TaskFork, id, flags), child: child.process() });
    entry.submit(if flags == 0 { wakeup_if_filling(&FORKS) } else { 0 });
}

/// `sched_process_exec(task, old_pid, binprm)`: the task, the current one, runs the new program.
#[inline(always)]
pub fn exec(hook: &impl Arguments) {
    executed(&Task::at(hook.arg(0)), || binprm_filename(hook.arg(2)));
}

/// The same from the classic tracepoint's event.
#[inline(always)]
pub fn exec_event(hook: &TracePointContext) {
    executed(&Task::current(), || exec_filename_of_event(hook));
}

#[inline(always)]
fn executed(task: &Task, filename: impl FnOnce() -> Address) {
    let id = current_cgroup_id();
    let Some(tracked) = TRACKED.get_ptr_mut(id) else { return };
    let process = task.process();
    let filename = filename();
    let is_first = starts(tracked, &process);
    // SAFETY: a live map element.
    let tracked = unsafe { &*tracked };
    if is_first {
        debug!(task, "process {} starts cgroup {}", process.pid, id);
        // A full map costs the flag of the exit, not the record.
        let _ = FIRST_PROCESSES.insert(task.key(), 0, 0);
        emit_exec(Ring::Lifecycle, id, FLAG_FIRST, process, filename, tracked);
    } else {
        emit_exec(Ring::Tasks, id, 0, process, filename, tracked);
        wake_waiting_reader();
    }
}

/// Whether this exec is the first of a program that is not the runtime's, see the module's description.
#[inline(always)]
fn starts(tracked: *mut Tracked, process: &Process) -> bool {
    // SAFETY: a live map element.
    let flags = unsafe { &raw mut (*tracked).flags };
    // SAFETY: as above.
    if process.mnt_ns == process.parent_mnt_ns || unsafe { *flags } & TRACKED_STARTED != 0 {
        return false;
    }
    // SAFETY: as above.
    unsafe { *flags |= TRACKED_STARTED };
    true
}

#[inline(always)]
fn emit_exec(ring: Ring, id: u64, flags: u16, process: Process, filename: Address, tracked: &Tracked) {
    let Some(mut entry) = reserve_in::<TaskExec>(ring, RecordKind::TaskExec, tracked) else { return };
    let record = entry.as_mut_ptr();
    // SAFETY: `record` points to the reserved memory; every field is written, `filename` up to its NUL.
    unsafe {
        (*record).header = header(RecordKind::TaskExec, id, flags);
        (*record).process = process;
        (*record).filename_len = copy_string::<FILENAME_CAP>(filename, (&raw mut (*record).filename).cast());
        (*record).pad = 0;
    }
    entry.submit(wakeup(flags));
}

/// `sched_process_exit(task)`, with `bool group_dead` on newer kernels: the task, the current one, is still in its cgroup, and its exit
/// code is set.
#[inline(always)]
pub fn exit(hook: &impl Arguments) {
    exited(&Task::at(hook.arg(0)), || group_dead(hook));
}

/// The same from the classic tracepoint's event.
#[inline(always)]
pub fn exit_event(hook: &TracePointContext) {
    exited(&Task::current(), || group_dead_of_event(hook));
}

#[inline(always)]
fn exited(task: &Task, group_dead: impl FnOnce() -> Option<bool>) {
    let id = current_cgroup_id();
    let Some(tracked) = TRACKED.get_ptr(id) else { return };
    if !is_last_thread(task, group_dead()) {
        return;
    }
    // SAFETY: a live map element.
    let tracked = unsafe { &*tracked };
    if FIRST_PROCESSES.remove(task.key()).is_ok() {
        emit_exit(Ring::Lifecycle, id, FLAG_FIRST_EXIT, task, tracked);
    } else {
        emit_exit(Ring::Tasks, id, 0, task, tracked);
        wake_waiting_reader();
    }
}

/// Whether the process ends with this thread.
///
/// Where the tracepoint does not say so, `signal->live` does, but not only to one: two threads may both have counted it
/// down before either arrives here, so only one of them may report.
#[inline(always)]
fn is_last_thread(task: &Task, group_dead: Option<bool>) -> bool {
    match group_dead {
        Some(dead) => dead,
        None => task.live_threads() == 0 && EXITED.insert(task.key(), 0, BPF_NOEXIST).is_ok(),
    }
}

#[inline(always)]
fn emit_exit(ring: Ring, id: u64, flags: u16, task: &Task, tracked: &Tracked) {
    let Some(mut entry) = reserve_in::<TaskExit>(ring, RecordKind::TaskExit, tracked) else { return };
    entry.write(TaskExit {
        header: header(RecordKind::TaskExit, id, flags),
        process: task.process(),
        wait_status: task.wait_status(),
        pad: 0,
    });
    entry.submit(wakeup(flags));
}

/// How to commit an exec or exit: those with a flag are in [`Ring::Lifecycle`], and wake the reader; the others are in [`TASKS`].
#[inline(always)]
fn wakeup(flags: u16) -> u64 {
    if flags == 0 { wakeup_if_filling(&TASKS) } else { 0 }
}
