//! The verdicts of all limits that were judged: what was in force, what killed, what the last verdict was.
//!
//! Evidence is gathered outside, for it takes the runtime's word and the files of every level; the judging is done here, with
//! the attempts that [`LimitTracker`] remembers. Bounded: what is remembered of a cgroup goes with it, nothing is of one that nobody
//! knows, and a scan finds those whose end was not told.

use std::collections::VecDeque;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use crate::event::{Basis, Event, Kind, PodNames};
use crate::ids::{CgroupId, KernelTime};
use crate::lifecycle::Output;
use crate::limits::{LevelRole, LimitTracker, Places};
use crate::observation::{Fact, KernelEvent, Observation, OomScope};

use super::{Attempt, Case, Claim, Judgement, Level, Resource, Standing, judge};

/// Who wants a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Asker {
    /// The node: the verdict is remembered, and told to all if it is another than before.
    Node,
    /// A client, by its own word or before the last word is spoken: no more is remembered than what was in force for it.
    Client,
}

/// What was gathered to judge one limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// For whom.
    pub asker: Asker,
    /// When.
    pub at: KernelTime,
    /// Whose limit is judged.
    pub cgroup: CgroupId,
    /// Which.
    pub resource: Resource,
    /// Every source's word.
    pub claims: Vec<Claim>,
    /// From the innermost to the root.
    pub levels: Vec<Level>,
    /// Which of them is judged.
    pub own: usize,
    /// What is used, in the file's unit, if it is known.
    pub usage: Option<u64>,
    /// Until then, what is not yet so may still become so.
    pub deadline: Option<KernelTime>,
    /// The kernel's page size in bytes.
    pub page: u64,
}

/// A verdict with all that it rests on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judged {
    /// Whose limit.
    pub cgroup: CgroupId,
    /// Its path.
    pub path: Arc<str>,
    /// What it is.
    pub role: LevelRole,
    /// The pod that it is, or is in.
    pub pod: Option<PodNames>,
    /// Every source's word.
    pub claims: Vec<Claim>,
    /// The last attempt to write it.
    pub attempt: Option<Attempt>,
    /// The judgement.
    pub judgement: Judgement,
}

/// What is remembered of all limits that were judged.
#[derive(Debug, Default)]
pub struct Verdicts {
    standing: FxHashMap<CgroupId, Vec<(Resource, Standing)>>,
    /// When a limit of this cgroup killed; the last ones, the oldest first.
    kills: FxHashMap<CgroupId, VecDeque<KernelTime>>,
}

impl Verdicts {
    /// Kills that are remembered of a cgroup: more than that are said to be that many.
    const KILLS: usize = 16;
    /// A write that lowers a limit kills while it runs, or the next allocation does. What comes later has other causes.
    const KILLS_AFTER: u64 = 1_000_000_000;

    /// Judges, and remembers nothing.
    pub fn judge(&self, evidence: &Evidence, limit_files: &LimitTracker, places: &impl Places) -> Judged {
        let mut attempts = limit_files.attempts(evidence.cgroup, evidence.resource.file(), places);
        let kills = attempts.iter().rev().find(|attempt| attempt.result.may_have_taken()).and_then(|last| {
            let until = last.ended.map_or(u64::MAX, |ended| ended.at().0.saturating_add(Self::KILLS_AFTER));
            let struck = |at: &&KernelTime| Some(**at) >= last.began && at.0 <= until;
            let kills =
                self.kills.get(&evidence.cgroup).map_or(0, |kills| kills.iter().filter(struck).count());
            last.began.map(|_| kills as u64)
        });
        let case = Case {
            resource: evidence.resource,
            claims: &evidence.claims,
            levels: &evidence.levels,
            own: evidence.own,
            attempts: &attempts,
            usage: evidence.usage,
            kills,
            deadline: evidence.deadline,
            now: evidence.at,
            page: evidence.page,
        };
        let unknown = Standing::default();
        let judgement = judge(&case, self.standing(evidence).unwrap_or(&unknown));
        let place = places.place(evidence.cgroup);
        let own = evidence.levels.get(evidence.own);
        Judged {
            cgroup: evidence.cgroup,
            path: own.map_or_else(|| Arc::from(""), |own| own.path.clone()),
            role: own.map_or(LevelRole::Other, |own| own.role),
            pod: place.and_then(|place| place.pod),
            claims: evidence.claims.clone(),
            attempt: attempts.pop(),
            judgement,
        }
    }

    /// Whether an observation says anything of verdicts.
    pub fn concerns(observation: &Observation) -> bool {
        match observation {
            Observation::Evidence(_) | Observation::Scan(_) => true,
            Observation::Kernel(event) => matches!(event.fact, Fact::Release | Fact::OomKill(_)),
            _ => false,
        }
    }

    /// Takes one observation, before the lifecycle has; appends the verdict if it is another than the last.
    pub fn observe(
        &mut self,
        observation: &Observation,
        limit_files: &LimitTracker,
        places: &impl Places,
        output: &mut Output,
    ) {
        match observation {
            Observation::Evidence(evidence) => {
                // It went away while the evidence was gathered, and nothing would ever forget it again.
                let Some(place) = places.place(evidence.cgroup) else { return };
                let judged = self.judge(evidence, limit_files, places);
                let standing = self.standing_mut(evidence.cgroup, evidence.resource);
                match evidence.asker {
                    Asker::Client => standing.note_asked(&judged.judgement),
                    Asker::Node if standing.note(&judged.judgement) => {
                        let kind = Kind::Verdict(Box::new(judged));
                        let (at, subject) = (evidence.at, place.subject);
                        output.events.push(Event { at, basis: Basis::LimitRead, subject, kind });
                    }
                    Asker::Node => {}
                }
            }
            Observation::Scan(_) => {
                let exists = |id: &CgroupId| places.place(*id).is_some_and(|place| place.exists);
                self.standing.retain(|id, _| exists(id));
                self.kills.retain(|id, _| exists(id));
            }
            Observation::Kernel(KernelEvent { cgroup, fact: Fact::Release, .. }) => {
                self.standing.remove(cgroup);
                self.kills.remove(cgroup);
            }
            Observation::Kernel(KernelEvent { at, fact: Fact::OomKill(kill), .. }) => {
                if let Some(OomScope::Limit(cgroup)) = kill.scope
                    && places.place(cgroup).is_some()
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

    fn standing_mut(&mut self, cgroup: CgroupId, resource: Resource) -> &mut Standing {
        let all = self.standing.entry(cgroup).or_default();
        let index = all.iter().position(|(of, _)| *of == resource).unwrap_or_else(|| {
            all.push((resource, Standing::default()));
            all.len() - 1
        });
        &mut all[index].1
    }

    fn standing(&self, evidence: &Evidence) -> Option<&Standing> {
        let all = self.standing.get(&evidence.cgroup)?;
        all.iter().find(|(resource, _)| *resource == evidence.resource).map(|(_, standing)| standing)
    }
}
