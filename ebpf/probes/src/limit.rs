//! Writes to limit files: of tracked cgroups, and of the cgroups above tracked roots, whose limits hold below.
//!
//! The kernel's `cgroup_file_write` is behind every write to a file of a cgroup. It is reported twice: when it begins, for the
//! write may reclaim memory or kill before it returns, and when it has returned, with its result. The record of the beginning
//! is kept by thread and sent again at the return: by then the text is cut up by the kernel's own parser.
//!
//! What passes is decided in the order of what it costs: the file's name, the cgroup, the hierarchy, the cgroup's budget.

use aya_ebpf::programs::TracePointContext;
use kwitness_abi::{
    FLAG_KPROBE, FLAG_SYSCALL, LIMIT_FILE_NAME_CAP, LimitFileName, LimitWrite, RecordKind, Tracked, VALUE_CAP,
};

use crate::{
    emit::{caller, copy_string, copy_user_text, header, tid},
    kernel::{Address, Arguments, KernfsNode, OpenFile, Returned, cgroup_file, syscall_arg},
    maps::{
        ANCESTORS, IN_FLIGHT, LIFECYCLE, LIMIT_FILES, Ring, SCRATCH, TRACKED, count_lost, output, output_in,
        within_budget,
    },
};

/// What is more than the kernel takes of one write, a page of the largest size that there is.
const LONGEST: u64 = 65_536;

/// `cgroup_file_write(open file, text, length, offset)` begins, seen by fentry.
#[inline(always)]
pub fn begins(hook: &impl Arguments) {
    write(hook, 0);
}

/// The same, seen by a kprobe.
#[inline(always)]
pub fn begins_at_kprobe(hook: &impl Arguments) {
    write(hook, FLAG_KPROBE);
}

/// write(2) begins: the way for kernels that allow no program at a function. It runs at every write of the node, so that what is no
/// file of a cgroup is sorted out first.
#[inline(always)]
pub fn begins_at_syscall(hook: &TracePointContext) {
    let (text, length) = (syscall_arg(hook, 1), syscall_arg(hook, 2));
    // The kernel takes no more than a page of it.
    if length > LONGEST {
        return;
    }
    let Some(file) = cgroup_file(syscall_arg(hook, 0)) else { return };
    put(&file, text as Address, length, FLAG_SYSCALL);
}

#[inline(always)]
fn write(hook: &impl Arguments, flags: u16) {
    let file = OpenFile::at(hook.arg(0)).node();
    put(&file, hook.arg(1), hook.arg(2), flags);
}

#[inline(always)]
fn put(file: &KernfsNode, text: Address, length: u64, flags: u16) {
    let Some(limit_file) = limit_file(file) else { return };
    let directory = file.parent();
    let id = directory.id();
    if (TRACKED.get_ptr(id).is_none() && ANCESTORS.get_ptr(id).is_none()) || !directory.cgroup().is_v2() {
        return;
    }
    let header = header(RecordKind::LimitWriteBegan, id, flags);
    if !within_budget(id, header.ktime) {
        return;
    }
    let Some(record) = SCRATCH.get_ptr_mut(0) else { return };
    // SAFETY: `record` points to a live map element that is this program's until it returns; every field is written,
    // `value` up to its NUL.
    unsafe {
        (*record).header = header;
        (*record).began = header.ktime;
        (*record).result = 0;
        (*record).writer = caller();
        (*record).limit_file = limit_file;
        (*record).value_len = length as u32;
        let value = (&raw mut (*record).value).cast();
        if flags & FLAG_SYSCALL == 0 {
            copy_string::<VALUE_CAP>(text, value);
        } else {
            copy_user_text::<VALUE_CAP>(text, length, value);
        }
        let record = &*record;
        // Without room there is no record of the return, and one of the beginning alone would wait for it: the write is lost.
        if IN_FLIGHT.insert(tid(), record, 0).is_err() {
            return count_lost(RecordKind::LimitWriteBegan, &tracked(id).unwrap_or_default());
        }
        report(RecordKind::LimitWriteBegan, record);
    }
}

/// `cgroup_file_write` has returned.
#[inline(always)]
pub fn returned(hook: &impl Returned) {
    let tid = tid();
    let Some(record) = IN_FLIGHT.get_ptr_mut(tid) else { return };
    // SAFETY: a live map element of this thread.
    unsafe {
        (*record).header =
            header(RecordKind::LimitWriteReturned, (*record).header.cgroup_id, (*record).header.flags);
        (*record).result = hook.result();
        report(RecordKind::LimitWriteReturned, &*record);
    }
    let _ = IN_FLIGHT.remove(tid);
}

#[inline(always)]
fn report(kind: RecordKind, record: &LimitWrite) {
    let has_room = match tracked(record.writer.cgroup_id) {
        Some(writers) => output_in(Ring::OwnWrites, record, &writers),
        None => output(&LIFECYCLE, record),
    };
    if !has_room {
        count_lost(kind, &tracked(record.header.cgroup_id).unwrap_or_default());
    }
}

#[inline(always)]
fn tracked(cgroup: u64) -> Option<Tracked> {
    // SAFETY: a live map element.
    TRACKED.get_ptr(cgroup).map(|tracked| unsafe { *tracked })
}

/// The number of a file that is a limit.
#[inline(always)]
fn limit_file(file: &KernfsNode) -> Option<u32> {
    let mut name: LimitFileName = [0; LIMIT_FILE_NAME_CAP];
    // SAFETY: `name` has that many bytes.
    unsafe { copy_string::<LIMIT_FILE_NAME_CAP>(file.name(), (&raw mut name).cast()) };
    // SAFETY: a live map element.
    LIMIT_FILES.get_ptr(name).map(|number| unsafe { *number })
}
