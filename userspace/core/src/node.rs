//! The node: all machines of the core, in the one order in which they take an observation.
//!
//! ```text
//!                  ┌──▶ VerdictTracker   OOM kills, evidence, what is gone
//!  Observation ────┼──▶ Lifecycle        whose each cgroup is
//!                  └──▶ LimitTracker     what the limit files say
//!                            │
//!      LimitChanged of a file that is judged, LimitsRequested, RequestsMissed, Guard ──▶ Action::Judge(scope)
//!                                                                     │ the engine has evidence gathered
//!      Verdict, if it is another than the last ◀── Observation::Evidence
//!
//!  MemorySampled, a record of a charge ──▶ PressureTracker ──▶ Pressure
//! ```
//!
//! The lifecycle goes before the limits, for it knows whose they are; a removal is the exception: what is still to be reported
//! of a cgroup's limits is reported before it is gone. Owns the machines; never does I/O and never reads a clock, so that a
//! recording of observations replays to the same events, verdicts included.

mod levels;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use levels::LevelsRevision;

use serde::{Deserialize, Serialize};

use crate::lifecycle::{Bounds, Lifecycle};
use crate::limits::{LimitCounters, LimitTracker};
use crate::model::{
    Action, CgroupId, CgroupIndex as _, ContainerId, ContainerState, Event, Fact, Judged, KernelEvent, Kind,
    LastVerdict, LimitFile, MemoryLevel, MemoryLevels, Observation, Output, Problem, Reading, Resource,
    State, Subject, Value, VerdictScope,
};
use crate::pressure::{PressureCounters, PressureTracker, is_level};
use crate::verdicts::VerdictTracker;
use levels::{Changed, LevelChanges};

/// The state of the node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Node {
    lifecycle: Lifecycle,
    limits: LimitTracker,
    verdicts: VerdictTracker,
    #[serde(default)]
    pressure: PressureTracker,
    #[serde(skip)]
    levels: LevelChanges,
}

impl Node {
    /// A node of which nothing is known yet: it expects the observation of an initial scan.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            limits: LimitTracker::new(bounds.cgroups),
            lifecycle: Lifecycle::new(bounds),
            verdicts: VerdictTracker::default(),
            pressure: PressureTracker::default(),
            levels: LevelChanges::default(),
        }
    }

    /// Takes one observation; appends what follows from it. Gives the judgement, if it is [evidence](Observation::Evidence).
    pub fn observe(&mut self, observation: Observation, output: &mut Output) -> Option<Judged> {
        let known = output.events.len();
        let mut judged = None;
        self.levels.note(&observation);
        match observation {
            Observation::Evidence(evidence) => {
                judged = Some(self.verdicts.judge(&evidence, &self.limits, &self.lifecycle, output));
            }
            Observation::LimitsRequested { at, containers, forgotten } => {
                self.lifecycle.forgot_requests(at, &forgotten);
                let scopes = containers.iter().filter_map(|container| self.lifecycle.scope_of(container));
                scopes.for_each(|scope| request_verdict(scope, output));
            }
            Observation::RequestsMissed { ref container, .. } => {
                let scope = match container {
                    Some(container) => self.lifecycle.scope_of(container),
                    None => Some(VerdictScope::All),
                };
                self.lifecycle.observe(observation, output);
                scope.into_iter().for_each(|scope| request_verdict(scope, output));
            }
            Observation::Guard(report) => {
                let scope = report.act.decides_limit().then(|| self.lifecycle.scope_of(&report.container));
                self.lifecycle.observe(Observation::Guard(report), output);
                scope.flatten().into_iter().for_each(|scope| request_verdict(scope, output));
            }
            Observation::MemorySampled(samples) => self.pressure.sampled(&samples, &self.lifecycle, output),
            Observation::Kernel(KernelEvent { at, cgroup, fact: Fact::MemoryCharge(charge) }) => {
                self.pressure.charged(at, cgroup, &charge, &self.lifecycle, output);
            }
            Observation::Tick { at } => {
                self.take(Observation::Tick { at }, output);
                self.pressure.tick(at, &self.lifecycle, output);
            }
            other => self.take(other, output),
        }
        for index in known..output.events.len() {
            if let Some(scope) = judged_after(&output.events[index]) {
                request_verdict(scope, output);
            }
        }
        judged
    }

    fn take(&mut self, observation: Observation, output: &mut Output) {
        let Self { lifecycle, limits, verdicts, .. } = self;
        if VerdictTracker::concerns(&observation) {
            verdicts.observe(&observation, lifecycle);
        }
        if !LimitTracker::concerns(&observation) {
            return lifecycle.observe(observation, output);
        }
        let is_removal = matches!(
            &observation,
            Observation::Kernel(KernelEvent { fact: Fact::Rmdir { .. } | Fact::Release, .. })
        );
        if is_removal {
            limits.observe(&observation, lifecycle, output);
            lifecycle.observe(observation, output);
        } else {
            lifecycle.observe(observation.clone(), output);
            limits.observe(&observation, lifecycle, output);
        }
    }

    /// The wanted ones of the containers whose cgroup exists; see [`Lifecycle::wanted`].
    pub fn containers<'a>(
        &'a self,
        is_wanted: impl Fn(&Subject) -> bool + 'a,
    ) -> impl Iterator<Item = ContainerState> + 'a {
        self.lifecycle.wanted(is_wanted)
    }

    /// The last verdict on each limit of what exists.
    pub fn last_verdicts(&self) -> Vec<LastVerdict> {
        self.verdicts.last(&self.lifecycle)
    }

    /// The containers in that scope whose cgroup exists, sandboxes included; see [`Lifecycle::subjects`].
    pub fn subjects(&self, scope: &VerdictScope) -> Vec<(Arc<Subject>, State)> {
        self.lifecycle.subjects(scope)
    }

    /// The containers whose cgroup exists and of which the runtime has reported nothing.
    pub fn unnamed(&self) -> impl Iterator<Item = &ContainerId> {
        self.lifecycle.unnamed()
    }

    /// Whether a cgroup of that container is known, also one that was removed a while ago.
    pub fn knows(&self, container: &ContainerId) -> bool {
        self.lifecycle.cgroup_of(container).is_some()
    }

    /// How many containers there are.
    pub fn container_count(&self) -> usize {
        self.lifecycle.container_count()
    }

    /// How many cgroups are followed, which is what the kernel side tracks.
    pub fn cgroup_count(&self) -> usize {
        self.lifecycle.cgroup_count()
    }

    /// The cgroups that exist and whose memory limit bounds a container, a pod, a QoS class or all pods: what has changed of them since
    /// that revision, if it is the one that was given last, otherwise all; none: nothing has.
    pub fn memory_levels_after(
        &mut self,
        known: Option<LevelsRevision>,
    ) -> Option<(LevelsRevision, MemoryLevels)> {
        let (revision, changed) = self.levels.take(known)?;
        let levels = match changed {
            Changed::All => {
                let all = self.lifecycle.memory_levels();
                MemoryLevels::All(all.map(|(cgroup, path)| self.memory_level(cgroup, path)).collect())
            }
            Changed::Cgroups(cgroups) => {
                let now = |cgroup: CgroupId| {
                    let info = self.lifecycle.info(cgroup);
                    let level = info.filter(|info| info.exists && is_level(info.role));
                    (cgroup, level.map(|info| self.memory_level(cgroup, &info.path)))
                };
                MemoryLevels::Changed(cgroups.into_iter().map(now).collect())
            }
        };
        Some((revision, levels))
    }

    fn memory_level(&self, cgroup: CgroupId, path: &Arc<str>) -> MemoryLevel {
        MemoryLevel {
            cgroup,
            path: Arc::clone(path),
            above: self.pressure.above(cgroup),
            limit: match self.limits.reading(cgroup, LimitFile::MemoryMax) {
                Some(Reading::Is(Value::Bound(limit))) => Some(limit),
                _ => None,
            },
        }
    }

    /// What cannot be done at present.
    pub fn problems(&self) -> Vec<Problem> {
        self.lifecycle.problems()
    }

    /// What was counted since the start, by name.
    pub fn counters(&self) -> BTreeMap<String, u64> {
        let LimitCounters { writes, unchanged, coalesced, found, unreturned, cgroups_full } =
            self.limits.counters();
        let limits = [
            ("limits_writes", writes),
            ("limits_unchanged", unchanged),
            ("limits_coalesced", coalesced),
            ("limits_found", found),
            ("limits_unreturned", unreturned),
            ("limits_cgroups_full", cgroups_full),
        ];
        let PressureCounters { crossings, reported } = self.pressure.counters();
        let pressure = [("pressure_crossings", crossings), ("pressure_reported", reported)];
        let lifecycle = self.lifecycle.counters();
        let lifecycle = lifecycle.iter().map(|(name, count)| (format!("lifecycle_{name}"), count));
        let others = limits.into_iter().chain(pressure);
        lifecycle.chain(others.map(|(name, count)| (name.to_owned(), count))).collect()
    }
}

/// Whose limits are judged again after this event.
fn judged_after(event: &Event) -> Option<VerdictScope> {
    let Kind::LimitChanged(change) = &event.kind else { return None };
    Resource::changed_by(change.limit_file)?;
    Some(match (&event.subject, &change.pod, change.role?) {
        (Some(subject), ..) => VerdictScope::Container(subject.container_id.clone()),
        (None, Some(pod), _) => VerdictScope::Pod(pod.pod.uid.clone()),
        (None, None, _) => VerdictScope::All,
    })
}

/// Once for several changes that one observation brought.
fn request_verdict(scope: VerdictScope, output: &mut Output) {
    let action = Action::Judge(scope);
    if output.actions.last() != Some(&action) {
        output.actions.push(action);
    }
}
