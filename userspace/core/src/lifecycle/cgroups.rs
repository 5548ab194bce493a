//! The cgroups below the tracked roots: which container each belongs to, and those that are no more.
//!
//! What was removed is remembered for a while: records of its processes may come late through the other ring, the
//! runtime may answer late, and a scan that began before must not bring it back. Bounded by count and time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use crate::cgroup_path::{ContainerPath, Placement, classify};
use crate::model::{
    CgroupId, CgroupInfo, ContainerId, KernelTime, LevelRole, PathText, PodNames, PodRef, PodUid, Subject,
    Unreadable,
};

use super::bounds::Bounds;
use super::container::Container;
use super::processes::Budget;
use crate::shares::Shares;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Cgroup {
    /// A scan that began later must have met it.
    made: KernelTime,
    presence: Presence,
    /// The container that it lies in, and whose share it takes from.
    owner: Option<CgroupId>,
    what: What,
}

impl Cgroup {
    fn container(&self) -> Option<&Container> {
        match &self.what {
            What::Container(container) => Some(container),
            What::Inner { .. } | What::Other { .. } => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Presence {
    Exists,
    Removed,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum What {
    Container(Box<Container>),
    /// In that container.
    Inner {
        container: CgroupId,
        /// Kept only where a container may still lie below, see [`crate::cgroup_path`].
        path: Option<Arc<str>>,
    },
    /// Pods, their parents, the runtimes' helpers.
    Other {
        path: Arc<str>,
    },
}

/// Whose a cgroup is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Container(CgroupId),
    /// No container's.
    None,
    /// That container's, which has used up its share: it is not followed.
    BeyondShare(CgroupId),
    /// The cgroup is not known.
    Unknown,
}

/// What a new cgroup turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Added {
    Container,
    /// Of a container that is known already, or of none.
    Group,
    /// It is known already, or was removed.
    Known,
    /// There is no room for it, or no more for the container that it lies in.
    Full {
        owner: Option<CgroupId>,
    },
    /// Unknown: so is its parent.
    Unplaced,
}

/// What a cgroup in no container is, and whose if it is a pod's.
fn outside(path: &str) -> (LevelRole, Option<PodRef>) {
    match classify(path) {
        Placement::Kubepods => (LevelRole::Kubepods, None),
        Placement::Qos(_) => (LevelRole::Qos, None),
        Placement::Pod(pod) => (LevelRole::Pod, Some(pod)),
        Placement::Container(_) | Placement::Inner { .. } | Placement::Other => (LevelRole::Other, None),
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Cgroups {
    #[serde(with = "crate::pairs")]
    all: FxHashMap<CgroupId, Cgroup>,
    /// Of those that exist.
    shares: Shares<CgroupId>,
    /// The newest cgroup of each container; of several that exist, the one that the runtime's answer was for.
    #[serde(with = "crate::pairs")]
    by_container: FxHashMap<ContainerId, CgroupId>,
    /// The containers of each pod whose cgroup exists: a pod's cgroup is looked at as often as theirs are, and looking through all
    /// containers each time would take time by the square of their number.
    #[serde(with = "crate::pairs")]
    by_pod: FxHashMap<PodUid, BTreeSet<CgroupId>>,
    /// The cgroups of each container that several which exist are named as.
    #[serde(with = "crate::pairs")]
    twins: BTreeMap<ContainerId, BTreeSet<CgroupId>>,
    /// Those of `all` that were removed and when, by owner, the oldest first. Some may be forgotten by now.
    #[serde(with = "crate::pairs")]
    removed: FxHashMap<Option<CgroupId>, VecDeque<(KernelTime, CgroupId)>>,
    /// Of what is in `removed`.
    removed_shares: Shares<CgroupId>,
    removed_for: u64,
    /// Cgroups that are beyond their container's share: records of them may still be on their way. The oldest goes first.
    #[serde(with = "crate::pairs")]
    beyond_share: FxHashMap<CgroupId, CgroupId>,
    beyond_share_order: VecDeque<CgroupId>,
    beyond_share_max: usize,
}

impl Cgroups {
    pub(super) fn new(bounds: &Bounds) -> Self {
        Self {
            all: FxHashMap::default(),
            shares: Shares::new(bounds.cgroups),
            by_container: FxHashMap::default(),
            by_pod: FxHashMap::default(),
            twins: BTreeMap::new(),
            removed: FxHashMap::default(),
            removed_shares: Shares::new(bounds.removed),
            removed_for: u64::try_from(bounds.removed_for.as_nanos()).unwrap_or(u64::MAX),
            beyond_share: FxHashMap::default(),
            beyond_share_order: VecDeque::new(),
            beyond_share_max: bounds.removed,
        }
    }

    pub(super) fn owner(&self, id: CgroupId) -> Owner {
        match self.all.get(&id).map(|cgroup| &cgroup.what) {
            Some(What::Container(_)) => Owner::Container(id),
            Some(What::Inner { container, .. }) => Owner::Container(*container),
            Some(What::Other { .. }) => Owner::None,
            None => self.beyond_share.get(&id).map_or(Owner::Unknown, |owner| Owner::BeyondShare(*owner)),
        }
    }

    /// A pod with the names that a container of it has.
    fn names(&self, pod: PodRef) -> PodNames {
        let named = self.of_pod(&pod.uid).find(|container| container.subject.facts.is_some());
        let names = named.and_then(|container| PodNames::of(&container.subject));
        names.unwrap_or_else(|| PodNames::unnamed(pod))
    }

    /// The containers of a pod whose cgroup exists, by the ids of their cgroups.
    pub(super) fn of_pod(&self, uid: &PodUid) -> impl Iterator<Item = &Container> {
        self.by_pod.get(uid).into_iter().flatten().filter_map(move |id| self.container(*id))
    }

    /// Where a cgroup stands, also one that was removed a while ago.
    pub(super) fn info_of(&self, id: CgroupId) -> Option<CgroupInfo> {
        let cgroup = self.all.get(&id)?;
        let of_container = |container: &Container, role| {
            let subject = Arc::clone(&container.subject);
            (role, Arc::clone(&subject.cgroup_path), PodNames::of(&subject), Some(subject))
        };
        let (role, path, pod, subject) = match &cgroup.what {
            What::Container(container) => of_container(container, LevelRole::Container),
            What::Inner { container, .. } => of_container(self.container(*container)?, LevelRole::Inner),
            What::Other { path } => {
                let (role, pod) = outside(path);
                (role, Arc::clone(path), pod.map(|pod| self.names(pod)), None)
            }
        };
        Some(CgroupInfo { role, path, subject, pod, exists: cgroup.presence == Presence::Exists })
    }

    /// The containers' cgroups and those that are in none, as far as they exist, with their paths.
    pub(super) fn existing_groups(&self) -> impl Iterator<Item = (CgroupId, LevelRole, &Arc<str>)> {
        let existing = self.all.iter().filter(|(_, cgroup)| cgroup.presence == Presence::Exists);
        existing.filter_map(|(id, cgroup)| match &cgroup.what {
            What::Container(container) => Some((*id, LevelRole::Container, &container.subject.cgroup_path)),
            What::Other { path } => Some((*id, outside(path).0, path)),
            What::Inner { .. } => None,
        })
    }

    pub(super) fn exists(&self, id: CgroupId) -> bool {
        self.all.get(&id).is_some_and(|cgroup| cgroup.presence == Presence::Exists)
    }

    /// Whether a scan may have missed a cgroup because it could not read something.
    pub(super) fn may_be_hidden(&self, id: CgroupId, unreadable: &Unreadable) -> bool {
        if unreadable.is_empty() {
            return false;
        }
        match self.all.get(&id).map(|cgroup| &cgroup.what) {
            Some(What::Container(container)) => unreadable.may_hide(&container.subject.cgroup_path),
            Some(What::Other { path } | What::Inner { path: Some(path), .. }) => unreadable.may_hide(path),
            // Where in its container it lies is not kept.
            Some(What::Inner { container, path: None }) => self.subject(*container).is_none_or(|subject| {
                unreadable.may_hide(&subject.cgroup_path) || unreadable.is_in(&subject.cgroup_path)
            }),
            None => false,
        }
    }

    /// How many exist.
    pub(super) fn count(&self) -> usize {
        self.shares.used()
    }

    pub(super) fn is_full(&self) -> bool {
        self.shares.free() == 0
    }

    /// The container that a cgroup lies in, and whose share it takes from.
    pub(super) fn holder(&self, id: CgroupId) -> Option<CgroupId> {
        self.all.get(&id)?.owner
    }

    pub(super) fn container_mut(&mut self, id: CgroupId) -> Option<&mut Container> {
        match self.all.get_mut(&id).map(|cgroup| &mut cgroup.what) {
            Some(What::Container(container)) => Some(container),
            Some(What::Inner { .. } | What::Other { .. }) | None => None,
        }
    }

    /// The container that this cgroup stands for.
    pub(super) fn container(&self, id: CgroupId) -> Option<&Container> {
        self.all.get(&id)?.container()
    }

    /// The subject of that container.
    pub(super) fn subject(&self, id: CgroupId) -> Option<&Arc<Subject>> {
        Some(&self.container(id)?.subject)
    }

    /// The newest cgroup of that container, also one that was removed.
    pub(super) fn by_container(&self, id: &ContainerId) -> Option<CgroupId> {
        self.by_container.get(id).copied()
    }

    /// The newest cgroup of each container and all that are named as one with others, also what was removed a while ago.
    pub(super) fn named(&self) -> impl Iterator<Item = &Arc<Subject>> {
        let newest = self.by_container.iter().filter(move |(name, _)| !self.twins.contains_key(*name));
        let twins = self.twins.values().flatten();
        newest.map(|(_, id)| id).chain(twins).filter_map(move |id| self.subject(*id))
    }

    /// The containers that several cgroups which exist are named as, with these.
    pub(super) fn twins(&self) -> &BTreeMap<ContainerId, BTreeSet<CgroupId>> {
        &self.twins
    }

    /// The runtime's answer about a container is for this cgroup, and no other.
    pub(super) fn prefer(&mut self, container: &ContainerId, cgroup: CgroupId) {
        self.by_container.insert(container.clone(), cgroup);
    }

    /// Of a container's cgroups, this one is no more; gives back the container if only one is left, which is its own then.
    pub(super) fn leave_twins(&mut self, cgroup: CgroupId) -> Option<ContainerId> {
        let container = self.subject(cgroup)?.container_id.clone();
        let twins = self.twins.get_mut(&container)?;
        twins.remove(&cgroup);
        if twins.len() > 1 {
            return None;
        }
        let left = self.twins.remove(&container)?.pop_first()?;
        self.prefer(&container, left);
        Some(container)
    }

    /// The containers whose cgroup exists.
    pub(super) fn containers(&self) -> impl Iterator<Item = &Container> {
        self.all.values().filter(|cgroup| cgroup.presence == Presence::Exists).filter_map(Cgroup::container)
    }

    /// Those that a scan that began at `began` should have met, in the order of their ids.
    pub(super) fn existing_before(&self, began: KernelTime) -> BTreeSet<CgroupId> {
        let before = |cgroup: &Cgroup| cgroup.presence == Presence::Exists && cgroup.made < began;
        self.all.iter().filter(|(_, cgroup)| before(cgroup)).map(|(&id, _)| id).collect()
    }

    /// Adds a cgroup that exists. `seen`: its making was seen, at `made`; otherwise it is not older than that.
    pub(super) fn add(
        &mut self,
        id: CgroupId,
        parent: CgroupId,
        path: &PathText,
        made: KernelTime,
        created_at: Option<KernelTime>,
    ) -> Added {
        if self.all.contains_key(&id) {
            return Added::Known;
        }
        if let Some(owner) = self.beyond_share.get(&parent).copied() {
            return self.refuse(id, Some(owner));
        }
        if self.is_full() {
            return self.refuse(id, self.holder_in(parent));
        }
        let Some(what) = self.place(id, parent, path, made, created_at) else { return Added::Unplaced };
        let owner = self.holder_in(parent);
        if !self.shares.take(owner) {
            return self.refuse(id, owner);
        }
        let added = match &what {
            What::Container(container) => {
                let name = container.subject.container_id.clone();
                if let Some(other) = self.by_container.insert(name.clone(), id)
                    && self.exists(other)
                {
                    self.twins.entry(name).or_default().extend([other, id]);
                }
                if let Some(pod) = &container.subject.pod {
                    self.by_pod.entry(pod.uid.clone()).or_default().insert(id);
                }
                Added::Container
            }
            What::Inner { .. } | What::Other { .. } => Added::Group,
        };
        self.all.insert(id, Cgroup { made, presence: Presence::Exists, owner, what });
        added
    }

    /// The container that what is made in this cgroup lies in.
    fn holder_in(&self, parent: CgroupId) -> Option<CgroupId> {
        match self.owner(parent) {
            Owner::Container(container) | Owner::BeyondShare(container) => Some(container),
            Owner::None | Owner::Unknown => None,
        }
    }

    /// A cgroup that exists and that the kernel side does not track, for its container has more than its share of that set.
    pub(super) fn add_beyond_share(&mut self, id: CgroupId, parent: CgroupId) -> Added {
        if self.all.contains_key(&id) { Added::Known } else { self.refuse(id, self.holder_in(parent)) }
    }

    fn refuse(&mut self, id: CgroupId, owner: Option<CgroupId>) -> Added {
        if let Some(owner) = owner
            && self.beyond_share.insert(id, owner).is_none()
        {
            self.beyond_share_order.push_back(id);
            if self.beyond_share_order.len() > self.beyond_share_max
                && let Some(oldest) = self.beyond_share_order.pop_front()
            {
                self.beyond_share.remove(&oldest);
            }
        }
        Added::Full { owner }
    }

    /// Whatever is beyond a share is looked at anew.
    pub(super) fn reconsider(&mut self) {
        self.beyond_share.clear();
        self.beyond_share_order.clear();
    }

    fn place(
        &self,
        id: CgroupId,
        parent: CgroupId,
        path: &PathText,
        made: KernelTime,
        created_at: Option<KernelTime>,
    ) -> Option<What> {
        // The container around, and the parent's path if it matters.
        let (around, parent_path) = match self.all.get(&parent).map(|parent| &parent.what) {
            Some(What::Container(container)) if container.subject.pod.is_some() => {
                return Some(What::Inner { container: parent, path: None });
            }
            Some(What::Inner { container, path: None }) => {
                return Some(What::Inner { container: *container, path: None });
            }
            Some(What::Container(container)) => (Some(parent), Some(&container.subject.cgroup_path)),
            Some(What::Inner { container, path: Some(path) }) => (Some(*container), Some(path)),
            Some(What::Other { path }) => (None, Some(path)),
            None => (None, None),
        };
        let path = match path {
            PathText::Full(path) => Arc::clone(path),
            PathText::Name(name) => Arc::from(format!("{}/{name}", parent_path?)),
        };
        match (classify(&path), around) {
            (Placement::Container(ContainerPath { id: container_id, runtime, pod }), _) => {
                let subject =
                    Subject { cgroup_id: id, cgroup_path: path, container_id, runtime, pod, facts: None };
                Some(What::Container(Box::new(Container::new(Arc::new(subject), made, created_at))))
            }
            (_, Some(container)) => Some(What::Inner { container, path: Some(path) }),
            // Its container is unknown.
            (Placement::Inner { .. }, None) => None,
            (Placement::Kubepods | Placement::Qos(_) | Placement::Pod(_) | Placement::Other, None) => {
                Some(What::Other { path })
            }
        }
    }

    /// The cgroup is no more, but remembered for a while. Gives back the owner of each that had to be forgotten early for that: the
    /// same one, or else the one of which most are remembered.
    pub(super) fn remove(
        &mut self,
        id: CgroupId,
        at: KernelTime,
        budget: &mut Budget,
    ) -> Vec<Option<CgroupId>> {
        let mut forgotten = Vec::new();
        let owner = match self.all.get_mut(&id) {
            Some(cgroup) if cgroup.presence == Presence::Exists => {
                cgroup.presence = Presence::Removed;
                cgroup.owner
            }
            Some(_) | None => return forgotten,
        };
        self.leave_pod(id);
        self.shares.give_back(owner);
        while !self.removed_shares.take(owner) {
            let has_own = self.removed.get(&owner).is_some_and(|removed| !removed.is_empty());
            let most = || self.removed.iter().max_by_key(|(_, removed)| removed.len()).map(|(from, _)| *from);
            let from = if has_own { Some(owner) } else { most() };
            let oldest = from.and_then(|from| Some((from, self.removed.get_mut(&from)?.pop_front()?.1)));
            let Some((from, oldest)) = oldest else {
                // There is no room at all.
                forgotten.extend(self.forget(id, budget).then_some(owner));
                return forgotten;
            };
            self.removed_shares.give_back(from);
            forgotten.extend(self.forget(oldest, budget).then_some(from));
        }
        self.removed.entry(owner).or_default().push_back((at, id));
        forgotten
    }

    /// Of the containers of its pod, this one is no more.
    fn leave_pod(&mut self, id: CgroupId) {
        let Some(pod) = self.subject(id).and_then(|subject| subject.pod.as_ref()) else { return };
        let uid = pod.uid.clone();
        if let Some(members) = self.by_pod.get_mut(&uid) {
            members.remove(&id);
            if members.is_empty() {
                self.by_pod.remove(&uid);
            }
        }
    }

    /// No more records of a removed cgroup will come. `keep_all`: a scan is on its way that may have met it.
    pub(super) fn release(&mut self, id: CgroupId, keep_all: bool, budget: &mut Budget) {
        match self.all.get_mut(&id) {
            Some(Cgroup { presence: Presence::Removed, what: What::Container(container), .. }) => {
                container.forget_processes(budget);
            }
            Some(Cgroup { presence: Presence::Removed, .. }) if !keep_all => {
                self.all.remove(&id);
            }
            Some(_) => {}
            None => {
                self.beyond_share.remove(&id);
            }
        }
    }

    /// Forgets what was removed long enough ago.
    pub(super) fn expire(&mut self, now: KernelTime, budget: &mut Budget) {
        let mut old = Vec::new();
        for (owner, removed) in &mut self.removed {
            while let Some((_, id)) =
                removed.pop_front_if(|(at, _)| at.0.saturating_add(self.removed_for) <= now.0)
            {
                self.removed_shares.give_back(*owner);
                old.push(id);
            }
        }
        self.removed.retain(|_, removed| !removed.is_empty());
        for id in old {
            self.forget(id, budget);
        }
    }

    fn forget(&mut self, id: CgroupId, budget: &mut Budget) -> bool {
        let Some(mut cgroup) = self.all.remove(&id) else { return false };
        if let What::Container(container) = &mut cgroup.what {
            container.forget_processes(budget);
            let name = &container.subject.container_id;
            if self.by_container.get(name) == Some(&id) {
                self.by_container.remove(name);
            }
        }
        true
    }
}
