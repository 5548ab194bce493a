//! What the machine can be asked. Nothing of this changes it.

use std::sync::Arc;

use super::{Bounds, Lifecycle, LifecycleCounters, container};
use crate::model::{
    CgroupId, CgroupIndex, CgroupInfo, ContainerId, ContainerState, ContainerType, Problem, State, Subject,
    VerdictScope,
};
use crate::pressure::is_level;

impl Lifecycle {
    /// The containers whose cgroup exists, in no particular order.
    pub fn containers(&self) -> impl Iterator<Item = ContainerState> + '_ {
        self.wanted(|_| true)
    }

    /// The wanted ones of them. Of the others, nothing is copied.
    pub fn wanted<'a>(
        &'a self,
        is_wanted: impl Fn(&Subject) -> bool + 'a,
    ) -> impl Iterator<Item = ContainerState> + 'a {
        let wanted = self.cgroups.containers().filter(move |container| is_wanted(&container.subject));
        wanted.map(container::Container::state)
    }

    /// The cgroup that stands for that container, also one that was removed a while ago.
    pub fn cgroup_of(&self, container: &ContainerId) -> Option<CgroupId> {
        self.cgroups.by_container(container)
    }

    /// Whose limits a CRI request with this id is about: a sandbox's are its pod's.
    pub fn scope_of(&self, container: &ContainerId) -> Option<VerdictScope> {
        let subject = self.cgroups.subject(self.cgroups.by_container(container)?)?;
        let is_sandbox =
            subject.facts.as_ref().is_some_and(|facts| facts.container_type == ContainerType::Sandbox);
        Some(match &subject.pod {
            Some(pod) if is_sandbox => VerdictScope::Pod(pod.uid.clone()),
            _ => VerdictScope::Container(container.clone()),
        })
    }

    /// The containers in that scope whose cgroup exists, sandboxes of the pods included, each with how far its life has come; in no
    /// particular order. Of several cgroups that are named as one container, only the one that has the runtime's names: what is
    /// desired for it says nothing of the others.
    pub fn subjects(&self, scope: &VerdictScope) -> Vec<(Arc<Subject>, State)> {
        let twins = self.cgroups.twins();
        let itself = |container: &container::Container| {
            let subject = &container.subject;
            let is_itself = subject.facts.is_some() || !twins.contains_key(&subject.container_id);
            is_itself.then(|| (Arc::clone(subject), container.phase()))
        };
        match scope {
            VerdictScope::Container(id) => {
                let only = self.cgroups.by_container(id).filter(|cgroup| self.cgroups.exists(*cgroup));
                let cgroups = twins.get(id).cloned().unwrap_or_else(|| only.into_iter().collect());
                cgroups.iter().filter_map(|cgroup| itself(self.cgroups.container(*cgroup)?)).collect()
            }
            VerdictScope::Pod(uid) => self.cgroups.of_pod(uid).filter_map(itself).collect(),
            VerdictScope::All => self.cgroups.containers().filter_map(itself).collect(),
        }
    }

    /// The containers whose cgroup exists and of which the runtime has reported nothing.
    pub fn unnamed(&self) -> impl Iterator<Item = &ContainerId> {
        let subjects = self.cgroups.containers().map(|container| &container.subject);
        subjects.filter(|subject| subject.facts.is_none()).map(|subject| &subject.container_id)
    }

    /// See [`crate::node::Node::memory_levels_after`]: all, with their paths.
    pub fn memory_levels(&self) -> impl Iterator<Item = (CgroupId, &Arc<str>)> {
        let existing = self.cgroups.existing_groups();
        existing.filter(|(_, role, _)| is_level(*role)).map(|(cgroup, _, path)| (cgroup, path))
    }

    /// How many containers there are whose cgroup exists.
    pub fn container_count(&self) -> usize {
        self.cgroups.containers().count()
    }

    /// How many cgroups are followed, which is what the kernel side tracks.
    pub fn cgroup_count(&self) -> usize {
        self.cgroups.count()
    }

    /// What cannot be done at present.
    pub fn problems(&self) -> Vec<Problem> {
        let unreadable = (!self.unreadable.is_empty()).then(|| self.unreadable.clone());
        let beyond = self.room.beyond_share().iter().filter_map(|container| self.cgroups.subject(*container));
        let unreadable = unreadable.map(Problem::UnreadableCgroups).into_iter();
        let full = self.room.is_full().then_some(Problem::Full).into_iter();
        let path = |cgroup: &CgroupId| Some(Arc::clone(&self.cgroups.subject(*cgroup)?.cgroup_path));
        let ambiguous = self.cgroups.twins().iter().map(|(container, cgroups)| {
            let mut paths: Vec<_> = cgroups.iter().filter_map(path).collect();
            paths.sort_unstable();
            Problem::Ambiguous { container: container.clone(), paths }
        });
        let other_pods = self.other_pods.iter().filter_map(|(cgroup, runtime)| {
            let container = self.cgroups.subject(*cgroup)?.clone();
            Some(Problem::OtherPod { container, runtime: runtime.clone() })
        });
        let beyond = beyond.cloned().map(Problem::BeyondShare);
        unreadable.chain(full).chain(beyond).chain(ambiguous).chain(other_pods).collect()
    }

    /// How much is remembered at most.
    pub fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// What was dropped or could not be placed.
    pub fn counters(&self) -> LifecycleCounters {
        LifecycleCounters { processes_full: self.budget.refused, ..self.counters }
    }
}

impl CgroupIndex for Lifecycle {
    fn info(&self, cgroup: CgroupId) -> Option<CgroupInfo> {
        self.cgroups.info_of(cgroup)
    }
}
