//! OOM kills.
//!
//! | Hook | Reports |
//! |---|---|
//! | `mark_victim` | who is killed: once for each process, the chosen one and the members of its group alike |
//! | `oom_kill_process`, its beginning | whose limit was hit, how full it was, and whom the kernel chose |
//! | `oom_kill_process`, its return | that no later victim of this thread belongs to that |
//!
//! The second and third are more than some kernels allow; without them a kill is reported with its victim alone. The kernel also
//! marks a process that it finds dying already, to let it end sooner. That is no kill, and the kernel does not count it as one;
//! it can be distinguished from one only where the second hook is there.

use kwitness_abi::{
    FLAG_OOM_CHOSEN, FLAG_OOM_GLOBAL, FLAG_OOM_LIMIT, FLAG_OOM_MEMBER, FLAG_OOM_USAGE, OomContext, OomKill,
    RecordKind,
};

use crate::{
    emit::{caller, header, tid},
    kernel::{Arguments, OomControl, Task},
    maps::{OOM_CONTEXTS, Ring, TRACKED, reserve_in},
};

/// `oom_kill_process(oom_control, message)` begins: the kernel has chosen.
#[inline(always)]
pub fn begins(hook: &impl Arguments) {
    let control = OomControl::at(hook.arg(0));
    let chosen = control.chosen();
    let mut context = OomContext {
        chosen: chosen.key(),
        limit_cgroup: 0,
        usage: 0,
        limit: 0,
        flags: FLAG_OOM_GLOBAL,
        pad: 0,
        dying: u32::from(chosen.is_group_exiting()),
    };
    if let Some(memory) = control.memory_cgroup() {
        let cgroup = memory.cgroup();
        (context.usage, context.limit) = memory.usage_and_limit();
        context.flags = FLAG_OOM_USAGE;
        // A cgroup of v1's memory hierarchy has an id that means nothing here.
        if cgroup.is_v2() {
            context.limit_cgroup = cgroup.node().id();
            context.flags |= FLAG_OOM_LIMIT;
        }
    }
    // Without room a kill is reported with its victim alone.
    let _ = OOM_CONTEXTS.insert(tid(), context, 0);
}

/// `oom_kill_process` has returned.
#[inline(always)]
pub fn ended() {
    let _ = OOM_CONTEXTS.remove(tid());
}

/// `mark_victim(task, uid)`: the task has been sent its SIGKILL, and is still in its cgroup.
#[inline(always)]
pub fn marked(hook: &impl Arguments) {
    let task = Task::at(hook.arg(0));
    let id = task.cgroup_id();
    let Some(tracked) = TRACKED.get_ptr(id) else { return };
    let victim = task.process();
    let mut flags = 0;
    let (mut limit_cgroup, mut usage, mut limit) = (0, 0, 0);
    if let Some(context) = OOM_CONTEXTS.get_ptr(tid()) {
        // SAFETY: a live map element of this thread.
        let context = unsafe { &*context };
        let is_chosen = context.chosen == task.key();
        if is_chosen && context.dying != 0 {
            return;
        }
        flags = context.flags | if is_chosen { FLAG_OOM_CHOSEN } else { FLAG_OOM_MEMBER };
        (limit_cgroup, usage, limit) = (context.limit_cgroup, context.usage, context.limit);
    }
    // SAFETY: a live map element.
    let tracked = unsafe { &*tracked };
    let Some(mut entry) = reserve_in::<OomKill>(Ring::Lifecycle, RecordKind::OomKill, tracked) else {
        return;
    };
    entry.write(OomKill {
        header: header(RecordKind::OomKill, id, flags),
        victim,
        trigger: caller(),
        limit_cgroup,
        usage,
        limit,
    });
    entry.submit(0);
}
