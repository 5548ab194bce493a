//! Which cgroups may have become, or ceased to be, memory levels since they were handed out, or of which more is known: who samples them
//! follows the node without going through all of it each time.

use std::collections::BTreeSet;

use crate::model::{CgroupId, Fact, Observation};

/// More than so many are all.
const CHANGED_MAX: usize = 4096;

/// Grows with whatever may change what [`Node::memory_levels_after`](super::Node::memory_levels_after) gives. Compared within one run of a
/// daemon only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LevelsRevision(u64);

/// What has changed since the last time.
#[derive(Clone, Debug, Default)]
pub(super) struct LevelChanges {
    revision: LevelsRevision,
    /// The revision that was handed out last.
    handed_out: Option<LevelsRevision>,
    /// Changed since then.
    cgroups: BTreeSet<CgroupId>,
    /// So have others, or too many.
    is_all: bool,
}

/// What is to be handed out.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Changed {
    All,
    Cgroups(BTreeSet<CgroupId>),
}

impl LevelChanges {
    /// Notes what an observation may change. Processes change nothing of that; and what was sampled, who samples knows.
    pub(super) fn note(&mut self, observation: &Observation) {
        let cgroup = match observation {
            Observation::Kernel(event) => match event.fact {
                Fact::Mkdir { .. } | Fact::Rmdir { .. } | Fact::Release | Fact::MemoryCharge(_) => {
                    Some(event.cgroup)
                }
                _ => return,
            },
            Observation::LimitsRead(answer) => Some(answer.cgroup),
            Observation::Scan(_) => None,
            Observation::MemorySampled(_)
            | Observation::Lost(_)
            | Observation::Runtime { .. }
            | Observation::Evidence(_)
            | Observation::Tick { .. }
            | Observation::LimitsRequested { .. }
            | Observation::Guard(_)
            | Observation::RequestsMissed { .. }
            | Observation::GuardReportsDropped { .. }
            | Observation::AgentRestarted { .. } => return,
        };
        self.revision.0 += 1;
        match cgroup.filter(|_| self.cgroups.len() < CHANGED_MAX) {
            Some(cgroup) => {
                self.cgroups.insert(cgroup);
            }
            None => self.is_all = true,
        }
    }

    /// What has changed for who has that revision; none: nothing has. From now on, changes are counted from here.
    pub(super) fn take(&mut self, known: Option<LevelsRevision>) -> Option<(LevelsRevision, Changed)> {
        if known == Some(self.revision) {
            return None;
        }
        let cgroups = std::mem::take(&mut self.cgroups);
        let is_all = std::mem::take(&mut self.is_all) || known.is_none() || known != self.handed_out;
        self.handed_out = Some(self.revision);
        Some((self.revision, if is_all { Changed::All } else { Changed::Cgroups(cgroups) }))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{KernelEvent, KernelTime, MemorySamples, Scan, ScanReason};

    fn released(cgroup: u64) -> Observation {
        let (at, cgroup) = (KernelTime(1), CgroupId(cgroup));
        Observation::Kernel(KernelEvent { at, cgroup, fact: Fact::Release })
    }

    fn cgroups(ids: &[u64]) -> Changed {
        Changed::Cgroups(ids.iter().copied().map(CgroupId).collect())
    }

    #[test]
    fn who_follows_gets_what_has_changed_and_whoever_else_all() {
        let mut changes = LevelChanges::default();
        let (first, all) = changes.take(None).unwrap();
        assert_eq!(all, Changed::All);
        assert_eq!(changes.take(Some(first)), None);
        let samples = MemorySamples { thresholds: Arc::default(), samples: Vec::new() };
        changes.note(&Observation::MemorySampled(samples));
        changes.note(&Observation::Tick { at: KernelTime(1) });
        assert_eq!(changes.take(Some(first)), None);
        [7, 8, 7].into_iter().for_each(|cgroup| changes.note(&released(cgroup)));
        let (second, changed) = changes.take(Some(first)).unwrap();
        assert_eq!(changed, cgroups(&[7, 8]));
        changes.note(&released(9));
        assert_eq!(changes.take(Some(first)).unwrap().1, Changed::All, "it has missed something");
        changes.note(&released(9));
        assert_eq!(changes.take(Some(second)).unwrap().1, Changed::All);
    }

    #[test]
    fn a_scan_and_too_many_are_all() {
        let mut changes = LevelChanges::default();
        let (mut known, _) = changes.take(None).unwrap();
        let many: Vec<_> = (0..=CHANGED_MAX as u64).map(released).collect();
        let scan = [Observation::Scan(Scan::empty(ScanReason::Repair, KernelTime(1)))];
        for observations in [&many[..], &scan] {
            observations.iter().for_each(|observation| changes.note(observation));
            let (all, changed) = changes.take(Some(known)).unwrap();
            assert_eq!(changed, Changed::All);
            changes.note(&released(1));
            let (last, changed) = changes.take(Some(all)).unwrap();
            assert_eq!(changed, cgroups(&[1]), "counted from there");
            known = last;
        }
    }
}
