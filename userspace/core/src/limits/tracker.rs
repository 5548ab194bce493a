//! What each limit file says as far as known, the writes that have not been read back yet, and what follows when they are.
//!
//! ```text
//!  begins ──▶ running ─┬─ returns ──────────────────────▶ pending ── is read back ──▶ reported, if anything has changed
//!                      └─ is not seen to return: given up ──▲
//! ```

use rustc_hash::{FxHashMap, FxHashSet};
use serde::{Deserialize, Serialize};

use crate::model::{
    Action, Attempt, Basis, CgroupId, CgroupIndex, CgroupInfo, Ended, Fact, KernelEvent, KernelTime,
    LevelRole, LimitFile, LimitWrite, LimitsAnswer, Observation, Output, ReadLimits, Reading, Scan,
    WritePhase, WriteResult,
};

use super::change::{WriteTarget, seen, settle, writer};
use super::counters::LimitCounters;
use super::is_reconciled;
use super::known::{Cgroup, Others, Pending, Writes};
use crate::overflow::Overflow;

/// All limit files of all cgroups that are followed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LimitTracker {
    /// How many are followed at most.
    capacity: usize,
    #[serde(with = "crate::pairs")]
    cgroups: FxHashMap<CgroupId, Cgroup>,
    /// Those with a write that has begun and not returned.
    busy: FxHashSet<CgroupId>,
    /// What did not fit since the last tick.
    overflow: Overflow,
    counters: LimitCounters,
}

/// How a write ended.
#[derive(Clone, Copy, Debug)]
enum End {
    Seen { result: WriteResult, returned: Option<KernelTime> },
    NotSeen,
}

impl LimitTracker {
    /// Writes to one file that wait to be read back, at most; one more is counted with the last.
    pub const PENDING: usize = 64;
    /// Attempts to write a file that are remembered for verdicts.
    const ATTEMPTS: usize = 4;
    /// Writes to one file at the same time that are remembered; at one more, the oldest is given up.
    pub const RUNNING: usize = 8;
    /// A write that was not seen to return for so many nanoseconds is given up. The kernel may reclaim for long, and the
    /// write be seen to return after all: that counts as another write of the same, and changes nothing.
    pub const RETURNS_WITHIN: u64 = 60_000_000_000;

    /// Follows at most so many cgroups; what is written in one more is lost, and reported.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            cgroups: FxHashMap::default(),
            busy: FxHashSet::default(),
            overflow: Overflow::default(),
            counters: LimitCounters::default(),
        }
    }

    /// What was counted.
    pub fn counters(&self) -> LimitCounters {
        self.counters
    }

    /// What that file says, as it was last read.
    pub fn reading(&self, cgroup: CgroupId, limit_file: LimitFile) -> Option<Reading> {
        self.cgroups.get(&cgroup).map(|cgroup| cgroup.reading(limit_file))
    }

    /// The attempts to write a file that are remembered, the oldest first; those that have not returned last.
    pub fn attempts(
        &self,
        cgroup: CgroupId,
        limit_file: LimitFile,
        index: &impl CgroupIndex,
    ) -> Vec<Attempt> {
        let Some(writes) = self.cgroups.get(&cgroup).and_then(|cgroup| cgroup.writes(limit_file)) else {
            return Vec::new();
        };
        let running = writes.running.iter().map(|(began, write)| Attempt {
            value: write.value.as_ref().map(|value| value.text.clone()),
            result: WriteResult::Unknown,
            writer: writer(&write.writer, index),
            began: Some(write.began.unwrap_or(*began)),
            ended: None,
        });
        writes.attempts.iter().cloned().chain(running).collect()
    }

    /// Whether an observation says anything of limits.
    pub fn concerns(observation: &Observation) -> bool {
        match observation {
            Observation::Kernel(event) => matches!(
                event.fact,
                Fact::Mkdir { .. }
                    | Fact::Rmdir { .. }
                    | Fact::Release
                    | Fact::Exec { first: true, .. }
                    | Fact::LimitWrite(_)
                    | Fact::LimitWritesSuppressed(_)
            ),
            Observation::Scan(_) | Observation::LimitsRead(_) | Observation::Tick { .. } => true,
            Observation::Lost(_)
            | Observation::Runtime { .. }
            | Observation::Evidence(_)
            | Observation::MemorySampled(_)
            | Observation::LimitsRequested { .. }
            | Observation::RequestsMissed { .. }
            | Observation::Guard(_)
            | Observation::GuardReportsDropped { .. }
            | Observation::AgentRestarted { .. } => false,
        }
    }

    /// Takes one observation, after the lifecycle has, a removal before; appends what follows from it.
    pub fn observe(&mut self, observation: &Observation, index: &impl CgroupIndex, output: &mut Output) {
        match observation {
            Observation::Kernel(event) => self.kernel(event, index, output),
            Observation::Scan(scan) => self.scan(scan, index, output),
            Observation::LimitsRead(answer) => self.answered(answer, index, output),
            Observation::Tick { at } => {
                self.give_up(*at, index, output);
                self.overflow.report(*at, output);
            }
            Observation::Lost(_)
            | Observation::Runtime { .. }
            | Observation::Evidence(_)
            | Observation::MemorySampled(_)
            | Observation::LimitsRequested { .. }
            | Observation::RequestsMissed { .. }
            | Observation::Guard(_)
            | Observation::GuardReportsDropped { .. }
            | Observation::AgentRestarted { .. } => {}
        }
    }

    fn kernel(&mut self, event: &KernelEvent, index: &impl CgroupIndex, output: &mut Output) {
        let KernelEvent { at, cgroup, fact } = event;
        match fact {
            Fact::Mkdir { .. } => {
                if index.info(*cgroup).is_some()
                    && let Some(entry) = self.entry(*cgroup, *at, index)
                {
                    entry.others = Others::Initial;
                }
            }
            Fact::Rmdir { .. } | Fact::Release => {
                if let Some(gone) = self.cgroups.remove(cgroup) {
                    self.vanished(*cgroup, gone, index, output);
                }
            }
            // What was written while the container was made may not have been observed.
            Fact::Exec { first: true, .. } => self.ask_whole(*at, *cgroup, index, output),
            Fact::LimitWrite(write) => self.written(*at, *cgroup, write, index, output),
            Fact::LimitWritesSuppressed(count) => {
                if let Some(entry) = self.entry(*cgroup, *at, index) {
                    entry.suppressed += count;
                }
                self.ask_whole(*at, *cgroup, index, output);
            }
            _ => {}
        }
    }

    /// None: there is no room for another. Of what is made, only what the index follows is followed, so that its shares are
    /// the shares here, too.
    fn entry(&mut self, cgroup: CgroupId, at: KernelTime, index: &impl CgroupIndex) -> Option<&mut Cgroup> {
        if self.cgroups.len() >= self.capacity && !self.cgroups.contains_key(&cgroup) {
            self.counters.cgroups_full += 1;
            self.overflow.note("limit_write", index.info(cgroup).and_then(|info| info.subject), at);
            return None;
        }
        Some(self.cgroups.entry(cgroup).or_default())
    }

    fn written(
        &mut self,
        at: KernelTime,
        cgroup: CgroupId,
        write: &LimitWrite,
        index: &impl CgroupIndex,
        output: &mut Output,
    ) {
        let Some(entry) = self.entry(cgroup, at, index) else { return };
        let running = &mut entry.writes_mut(write.limit_file).running;
        match write.phase {
            WritePhase::Began => {
                let oldest = (running.len() == Self::RUNNING).then(|| running.remove(0).1);
                running.push((at, write.clone()));
                self.busy.insert(cgroup);
                if let Some(oldest) = oldest {
                    self.over(at, cgroup, &oldest, End::NotSeen, index, output);
                }
            }
            WritePhase::Returned { result, at: returned } => {
                let same = |running: &LimitWrite| {
                    (running.writer.tid, running.began) == (write.writer.tid, write.began)
                };
                running.retain(|(_, running)| !same(running));
                self.over(at, cgroup, write, End::Seen { result, returned }, index, output);
            }
        }
    }

    /// Gives up the writes that should have returned by now.
    fn give_up(&mut self, now: KernelTime, index: &impl CgroupIndex, output: &mut Output) {
        let is_late = |began: KernelTime| now.0.saturating_sub(began.0) >= Self::RETURNS_WITHIN;
        let mut late = Vec::new();
        self.busy.retain(|cgroup| {
            let Some(entry) = self.cgroups.get_mut(cgroup) else { return false };
            let mut is_busy = false;
            for writes in entry.limit_files.iter_mut().filter_map(|(_, known)| known.writes.as_deref_mut()) {
                late.extend(
                    writes.running.extract_if(.., |(began, _)| is_late(*began)).map(|(_, w)| (*cgroup, w)),
                );
                is_busy |= !writes.running.is_empty();
            }
            is_busy
        });
        for (cgroup, write) in late {
            self.over(now, cgroup, &write, End::NotSeen, index, output);
        }
    }

    /// A write is over, or given up: what the file says now is to be read.
    fn over(
        &mut self,
        at: KernelTime,
        cgroup: CgroupId,
        write: &LimitWrite,
        end: End,
        index: &impl CgroupIndex,
        output: &mut Output,
    ) {
        let (result, returned, ended) = match end {
            End::Seen { result, returned } => {
                self.counters.writes += 1;
                (result, returned, Ended::Returned(returned.unwrap_or(at)))
            }
            End::NotSeen => {
                self.counters.unreturned += 1;
                (WriteResult::Unknown, None, Ended::GivenUp(at))
            }
        };
        let info = index.info(cgroup);
        let Some(entry) = self.entry(cgroup, at, index) else { return };
        let writes = entry.writes_mut(write.limit_file);
        if writes.attempts.len() == Self::ATTEMPTS {
            writes.attempts.pop_front();
        }
        writes.attempts.push_back(Attempt {
            value: write.value.as_ref().filter(|value| !value.truncated).map(|value| value.text.clone()),
            result,
            writer: writer(&write.writer, index),
            began: write.began,
            ended: Some(ended),
        });
        if writes.pending.len() < Self::PENDING {
            writes.pending.push(Pending { at, write: seen(write, result, returned, index) });
        } else {
            writes.coalesced += 1;
            if let Some(last) = writes.pending.last_mut() {
                last.at = at;
            }
        }
        if !std::mem::replace(&mut writes.is_reading, true) {
            output.actions.push(ask(cgroup, info.as_ref(), Some(write.limit_file)));
        }
    }

    fn ask_whole(&mut self, at: KernelTime, cgroup: CgroupId, index: &impl CgroupIndex, output: &mut Output) {
        let Some(entry) = self.entry(cgroup, at, index) else { return };
        if std::mem::replace(&mut entry.is_reading, true) {
            entry.wanted = Some(at);
        } else {
            output.actions.push(ask(cgroup, index.info(cgroup).as_ref(), None));
        }
    }

    fn scan(&mut self, scan: &Scan, index: &impl CgroupIndex, output: &mut Output) {
        self.cgroups.retain(|id, _| index.info(*id).is_none_or(|info| info.exists));
        for found in &scan.cgroups {
            if index.info(found.id).is_some_and(|info| info.exists) {
                self.ask_whole(scan.ended, found.id, index, output);
            }
        }
    }

    /// The cgroup is gone, and with it what could have been read.
    fn vanished(&mut self, id: CgroupId, cgroup: Cgroup, index: &impl CgroupIndex, output: &mut Output) {
        self.busy.remove(&id);
        let info = index.info(id);
        let path = cgroup.path.clone();
        for (limit_file, known) in cgroup.limit_files {
            let Some(writes) = known.writes else { continue };
            let old = known.reading.unwrap_or_else(|| cgroup.others.reading(limit_file));
            let Writes { mut pending, coalesced, running, .. } = *writes;
            // The kernel waits for them before it removes the files: these were not seen to return.
            for (at, write) in running {
                self.counters.unreturned += 1;
                pending.push(Pending { at, write: seen(&write, WriteResult::Unknown, None, index) });
            }
            let target = WriteTarget { id, path: path.as_ref(), info: info.as_ref(), limit_file };
            settle(&target, pending, coalesced, old, &Reading::Gone, &mut self.counters, output);
        }
    }

    fn answered(&mut self, answer: &LimitsAnswer, index: &impl CgroupIndex, output: &mut Output) {
        let id = answer.cgroup;
        if answer.gone {
            if let Some(gone) = self.cgroups.remove(&id) {
                self.vanished(id, gone, index, output);
            }
            return;
        }
        let info = index.info(id);
        let Some(entry) = self.cgroups.get_mut(&id) else { return };
        entry.path = answer.path.clone().or(entry.path.take());
        let before = entry.others;
        let mut limit_files: Vec<LimitFile> =
            answer.readings.iter().map(|(limit_file, _)| *limit_file).collect();
        if answer.whole {
            let unread = |limit_file: &LimitFile| !limit_files.contains(limit_file);
            let absent: Vec<LimitFile> =
                entry.limit_files.iter().map(|(limit_file, _)| *limit_file).filter(unread).collect();
            limit_files.extend(absent);
        }
        let suppressed = if answer.whole { std::mem::take(&mut entry.suppressed) } else { 0 };
        let path = entry.path.clone();
        let mut again = Vec::new();
        for limit_file in limit_files {
            let reading = answer
                .readings
                .iter()
                .find(|(of, _)| *of == limit_file)
                .map_or(Reading::Absent, |(_, reading)| reading.clone());
            let known = entry.known_mut(limit_file);
            // Of a file that was not written to, nothing is to be settled.
            let mut none = Writes::default();
            let writes = known.writes.as_deref_mut().unwrap_or(&mut none);
            if !answer.whole {
                writes.is_reading = false;
            }
            let reported = writes.pending.partition_point(|pending| pending.at <= answer.began);
            let rest = writes.pending.split_off(reported);
            let settled = std::mem::replace(&mut writes.pending, rest);
            let coalesced = if writes.pending.is_empty() { std::mem::take(&mut writes.coalesced) } else { 0 };
            let old = known.reading.take().unwrap_or_else(|| before.reading(limit_file));
            let target = WriteTarget { id, path: path.as_ref(), info: info.as_ref(), limit_file };
            let explained = !writes.pending.is_empty() || !writes.running.is_empty();
            if settled.is_empty() && explained {
                // The write that may have changed it is still to be judged.
                known.reading = Some(old);
            } else if settled.is_empty() {
                let is_news = is_reconciled(limit_file) && differs(&old, &reading, before);
                if is_news {
                    self.counters.found += 1;
                    let changed = target.changed(old, reading.clone(), true, None, suppressed);
                    output.events.push(target.event(answer.ended, Basis::LimitRead, changed));
                }
                known.reading = Some(reading);
            } else {
                settle(&target, settled, coalesced, old, &reading, &mut self.counters, output);
                known.reading = Some(reading);
            }
            if !writes.pending.is_empty() && !std::mem::replace(&mut writes.is_reading, true) {
                again.push(limit_file);
            }
        }
        if answer.whole {
            entry.others = Others::Absent;
            entry.is_reading = entry.wanted.take().is_some_and(|wanted| wanted > answer.began);
            if entry.is_reading {
                output.actions.push(ask(id, info.as_ref(), None));
            }
            // It has all its files now.
            entry.limit_files.shrink_to_fit();
        }
        for limit_file in again {
            output.actions.push(ask(id, info.as_ref(), Some(limit_file)));
        }
    }
}

/// Whether a reading that no write explains is a change.
fn differs(old: &Reading, new: &Reading, before: Others) -> bool {
    match (old, new) {
        // It was never read, or could not be.
        (Reading::Unknown(_), _) | (_, Reading::Unknown(_) | Reading::Gone) => false,
        // Which files there are was assumed, not seen.
        (_, Reading::Absent) if before == Others::Initial => false,
        _ => old != new,
    }
}

fn ask(cgroup: CgroupId, info: Option<&CgroupInfo>, limit_file: Option<LimitFile>) -> Action {
    Action::ReadLimits(ReadLimits {
        cgroup,
        path: info.map(|info| info.path.clone()),
        inner: info.is_some_and(|info| info.role == LevelRole::Inner),
        limit_file,
    })
}
