//! What is reported of writes once a file has been read back: `limitChanged`, with old, new and writer.

use std::sync::Arc;

use super::counters::LimitCounters;
use super::known::Pending;
use crate::model::{
    Basis, Caller, CgroupId, CgroupIndex, CgroupInfo, Event, KernelTime, Kind, LevelRole, LimitChange,
    LimitFile, LimitWrite, Output, Reading, SeenWrite, Value, WriteResult, Writer,
};

/// Reports writes that one reading settles.
pub(super) fn settle(
    target: &WriteTarget<'_>,
    writes: Vec<Pending>,
    coalesced: u64,
    old: Reading,
    new: &Reading,
    counters: &mut LimitCounters,
    output: &mut Output,
) {
    let accepted = |pending: &Pending| pending.write.result.may_be_accepted();
    let last = writes.iter().rposition(accepted);
    let mut current = old;
    // Writes whose text was not seen, merged into the next.
    let mut carried = 0;
    for (index, Pending { at, write }) in writes.into_iter().enumerate() {
        let is_last = Some(index) == last;
        let after = match (write.result, is_last, &write.value) {
            (WriteResult::Refused { .. }, ..) => current.clone(),
            (_, true, _) => new.clone(),
            (WriteResult::Accepted, false, Some(value)) => as_written(target.limit_file, &value.text),
            (WriteResult::Accepted, false, None) | (WriteResult::Unknown, false, _) => {
                carried += 1;
                counters.coalesced += 1;
                continue;
            }
        };
        let (merged, unseen) = if is_last { (coalesced, std::mem::take(&mut carried)) } else { (0, 0) };
        // Writes whose text was not seen, and that left what was there: no change, for all that is known.
        if write.result.may_be_accepted() && after == current && merged == 0 {
            counters.unchanged += 1;
            continue;
        }
        let read_back = is_last || !write.result.may_be_accepted();
        let changed = target.changed(current, after.clone(), read_back, Some(write), merged + unseen);
        output.events.push(target.event(at, Basis::LimitWrite, changed));
        current = after;
    }
    counters.coalesced += coalesced;
}

/// What a file would say after that text was written to it, if nothing is rounded.
fn as_written(limit_file: LimitFile, text: &str) -> Reading {
    match Value::parse(limit_file.format(), text) {
        Ok(value) => Reading::Is(value),
        Err(_) => Reading::Is(Value::Text(text.into())),
    }
}

/// A write, and how it ended.
pub(super) fn seen(
    write: &LimitWrite,
    result: WriteResult,
    returned: Option<KernelTime>,
    index: &impl CgroupIndex,
) -> SeenWrite {
    SeenWrite {
        value: write.value.clone(),
        writer: write.writer.clone(),
        writer_cgroup: path_of(write.writer.cgroup, index),
        result,
        began: write.began,
        returned,
        hook: write.seen_by,
    }
}

fn path_of(cgroup: Option<CgroupId>, index: &impl CgroupIndex) -> Option<Arc<str>> {
    Some(index.info(cgroup?)?.path)
}

/// Who wrote, as far as known.
pub(super) fn writer(caller: &Caller, index: &impl CgroupIndex) -> Option<Writer> {
    Some(Writer { pid: caller.pid?, comm: caller.comm.clone()?, cgroup: path_of(caller.cgroup, index) })
}

/// What an event is about.
pub(super) struct WriteTarget<'a> {
    pub(super) id: CgroupId,
    pub(super) path: Option<&'a Arc<str>>,
    pub(super) info: Option<&'a CgroupInfo>,
    pub(super) limit_file: LimitFile,
}

impl WriteTarget<'_> {
    pub(super) fn changed(
        &self,
        old: Reading,
        new: Reading,
        read_back: bool,
        write: Option<SeenWrite>,
        coalesced: u64,
    ) -> LimitChange {
        let known = self.info.filter(|info| info.role != LevelRole::Inner).map(|info| &info.path);
        LimitChange {
            cgroup: self.id,
            path: self.path.or(known).cloned(),
            role: self.info.map(|info| info.role),
            pod: self.info.and_then(|info| info.pod.clone()),
            limit_file: self.limit_file,
            old,
            new,
            read_back,
            write,
            coalesced,
        }
    }

    pub(super) fn event(&self, at: KernelTime, basis: Basis, changed: LimitChange) -> Event {
        let subject = self.info.and_then(|info| info.subject.clone());
        Event { at, basis, subject, kind: Kind::LimitChanged(Box::new(changed)) }
    }
}
