//! The verdicts of all limits that were judged: what was in force, what killed, what the last verdict was.
//!
//! Evidence is gathered outside, for it takes the runtime's word and the files of every level; the judging is done here, with
//! the attempts that [`LimitTracker`] remembers. Bounded: what is remembered of a cgroup goes with it, nothing is of an unknown
//! one, and a scan finds those whose end was not reported.

use std::collections::VecDeque;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use crate::limits::LimitTracker;
use crate::model::{
    ApiFinding, Attempt, Basis, CgroupId, CgroupIndex, CgroupInfo, Event, Evidence, Fact, Judged,
    KernelEvent, KernelTime, Kind, LastVerdict, LevelRole, Observation, OomScope, Output, Reading, Requester,
    Resource,
};

use super::kubernetes::{KernelSide, compare};
use super::{Case, VerdictHistory, judge};

/// What is remembered of all limits that were judged.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct VerdictTracker {
    #[serde(with = "crate::pairs")]
    history: FxHashMap<CgroupId, Vec<(Resource, VerdictHistory)>>,
    /// When a limit of this cgroup killed; the last ones, the oldest first.
    #[serde(with = "crate::pairs")]
    kills: FxHashMap<CgroupId, VecDeque<KernelTime>>,
}

impl VerdictTracker {
    /// Kills that are remembered of a cgroup: more than that are said to be that many.
    const KILLS: usize = 16;
    /// A write that lowers a limit kills while it runs, or the next allocation does. What comes later has other causes.
    const KILLS_AFTER: u64 = 1_000_000_000;

    /// Judges, remembers what of that is to be remembered, and appends the verdict if it is another than the node's last.
    pub fn judge(
        &mut self,
        evidence: &Evidence,
        limits: &LimitTracker,
        index: &impl CgroupIndex,
        output: &mut Output,
    ) -> Judged {
        let info = index.info(evidence.cgroup);
        let judged = self.judgement(evidence, info.as_ref(), limits, index);
        // It went away while the evidence was gathered, and nothing would ever forget it again.
        let Some(info) = info else { return judged };
        let history = self.history_mut(evidence.cgroup, evidence.resource);
        match evidence.requester {
            Requester::Client => history.note_requested(&judged.judgement),
            Requester::Node if judged.judgement.in_force == Reading::Gone => {
                // It went away meanwhile, as containers do: that is no verdict of the node's.
            }
            Requester::Node if has_no_file(evidence) => {
                // So it is on the whole node, and for every container alike: `Verify` and `kwitness doctor` report it.
            }
            Requester::Node if history.note(&judged.judgement) => {
                let kind = Kind::Verdict(Box::new(judged.clone()));
                let (at, subject) = (evidence.at, info.subject);
                output.events.push(Event { at, basis: Basis::LimitRead, subject, kind });
            }
            Requester::Node => {}
        }
        judged
    }

    fn judgement(
        &self,
        evidence: &Evidence,
        info: Option<&CgroupInfo>,
        limits: &LimitTracker,
        index: &impl CgroupIndex,
    ) -> Judged {
        let attempts_of = |file| limits.attempts(evidence.cgroup, file, index);
        let mut attempts = attempts_of(evidence.resource.file());
        let others: Vec<Attempt> =
            evidence.resource.other_writers().iter().flat_map(|file| attempts_of(*file)).collect();
        let kills = attempts.iter().rev().find(|attempt| attempt.result.may_be_accepted()).and_then(|last| {
            let until = last.ended.map_or(u64::MAX, |ended| ended.at().0.saturating_add(Self::KILLS_AFTER));
            let struck = |at: &&KernelTime| Some(**at) >= last.began && at.0 <= until;
            let limits = [Some(evidence.cgroup), evidence.inner].into_iter().flatten();
            let kills = limits.filter_map(|cgroup| self.kills.get(&cgroup)).flatten().filter(struck).count();
            last.began.map(|_| kills as u64)
        });
        let case = Case {
            resource: evidence.resource,
            desired: &evidence.desired,
            may_be_less: evidence.may_be_less,
            unobserved: &evidence.unobserved,
            levels: &evidence.levels,
            own: evidence.own,
            attempts: &attempts,
            other_writes: &others,
            usage: evidence.usage,
            kills,
            deadline: evidence.deadline,
            now: evidence.at,
            page: evidence.page,
        };
        let unknown = VerdictHistory::default();
        let judgement = judge(&case, self.history(evidence).unwrap_or(&unknown));
        let own = evidence.levels.get(evidence.own);
        let role = own.map_or(LevelRole::Other, |own| own.role);
        let attempt = attempts.pop();
        let kubernetes = evidence.kubernetes.as_ref().map(|view| {
            let (judgement, attempt) = (&judgement, attempt.as_ref());
            let kernel = KernelSide { judgement, role, attempt, read: evidence.at, page: evidence.page };
            ApiFinding { view: view.clone(), comparison: compare(view, &kernel) }
        });
        Judged {
            cgroup: evidence.cgroup,
            path: own.map_or_else(|| Arc::from(""), |own| own.path.clone()),
            role,
            pod: info.and_then(|info| info.pod.clone()),
            desired: evidence.desired.clone(),
            attempt,
            judgement,
            kubernetes,
        }
    }

    /// The last verdict on each limit of what exists.
    pub fn last(&self, index: &impl CgroupIndex) -> Vec<LastVerdict> {
        let mut verdicts = Vec::new();
        for (cgroup, all) in &self.history {
            let Some(info) = index.info(*cgroup).filter(|info| info.exists) else { continue };
            let pod = info.pod.map(|names| names.pod.uid);
            verdicts.extend(all.iter().filter_map(|(resource, history)| {
                let (subject, pod) = (info.subject.clone(), pod.clone());
                Some(LastVerdict { subject, pod, resource: *resource, verdict: history.last()?.clone() })
            }));
        }
        verdicts
    }

    /// Whether an observation that is no evidence says anything of verdicts.
    pub fn concerns(observation: &Observation) -> bool {
        match observation {
            Observation::Scan(_) => true,
            Observation::Kernel(event) => matches!(event.fact, Fact::Release | Fact::OomKill(_)),
            _ => false,
        }
    }

    /// Takes one observation that is no evidence, before the lifecycle has.
    pub fn observe(&mut self, observation: &Observation, index: &impl CgroupIndex) {
        match observation {
            Observation::Scan(_) => {
                let exists = |id: &CgroupId| index.info(*id).is_some_and(|info| info.exists);
                self.history.retain(|id, _| exists(id));
                self.kills.retain(|id, _| exists(id));
            }
            Observation::Kernel(KernelEvent { cgroup, fact: Fact::Release, .. }) => {
                self.history.remove(cgroup);
                self.kills.remove(cgroup);
            }
            Observation::Kernel(KernelEvent { at, fact: Fact::OomKill(kill), .. }) => {
                if let Some(OomScope::Limit(cgroup)) = kill.scope
                    && index.info(cgroup).is_some()
                {
                    let kills = self.kills.entry(cgroup).or_default();
                    if kills.len() == Self::KILLS {
                        kills.pop_front();
                    }
                    kills.push_back(*at);
                }
            }
            _ => {}
        }
    }

    fn history_mut(&mut self, cgroup: CgroupId, resource: Resource) -> &mut VerdictHistory {
        let all = self.history.entry(cgroup).or_default();
        let index = all.iter().position(|(of, _)| *of == resource).unwrap_or_else(|| {
            all.push((resource, VerdictHistory::default()));
            all.len() - 1
        });
        &mut all[index].1
    }

    fn history(&self, evidence: &Evidence) -> Option<&VerdictHistory> {
        let all = self.history.get(&evidence.cgroup)?;
        all.iter().find(|(resource, _)| *resource == evidence.resource).map(|(_, history)| history)
    }
}

/// Whether no level has the limit file: its controller is in another hierarchy, or the kernel does not have it.
fn has_no_file(evidence: &Evidence) -> bool {
    evidence.levels.iter().all(|level| level.reading == Reading::Absent)
}
