//! What a node cannot do at present.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::container::Subject;
use super::ids::{ContainerId, PodUid};
use super::observation::Unreadable;

/// Something that cannot be done at present, until its cause is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Cgroups cannot be read, and are left out.
    UnreadableCgroups(Unreadable),
    /// There are more cgroups than are followed.
    Full,
    /// Cgroups within this container are not followed, for it has more than its share of all that are.
    BeyondShare(Arc<Subject>),
    /// More containers wait for the runtime's names than can be queried at a time: those of others are queried later.
    TooManyUnnamed,
    /// The runtime runs containers in cgroups that no root of the tracked set contains.
    OutsideRoots {
        /// How many there are.
        count: usize,
        /// One of them.
        container: ContainerId,
        /// Its cgroup's path.
        path: Arc<str>,
    },
    /// Whether there are such containers is not known.
    RootsUnchecked {
        /// Why it cannot be found out.
        error: Arc<str>,
    },
    /// The runtime says that this container is of another pod than its cgroup's path does: it is not given the runtime's names.
    OtherPod {
        /// By its cgroup.
        container: Arc<Subject>,
        /// The pod that the runtime names.
        runtime: PodUid,
    },
    /// Several cgroups that exist are named as one container's.
    Ambiguous {
        /// The container.
        container: ContainerId,
        /// The cgroups' paths, sorted.
        paths: Vec<Arc<str>>,
    },
}

impl Problem {
    /// That these containers, with their cgroups' paths, are outside of all roots; none: there are none.
    pub fn outside_roots(containers: &BTreeMap<ContainerId, Arc<str>>) -> Option<Self> {
        let (container, path) = containers.first_key_value()?;
        Some(Self::OutsideRoots {
            count: containers.len(),
            container: container.clone(),
            path: Arc::clone(path),
        })
    }

    /// Whether the other one is this problem, perhaps with more or less of it.
    pub fn is_same_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::OutsideRoots { .. }, Self::OutsideRoots { .. }) => true,
            _ => self == other,
        }
    }
}
