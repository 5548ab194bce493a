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
    /// Programs of an earlier daemon are attached, and no daemon reads what they record.
    UnreadPrograms {
        /// The directory in which they are pinned.
        directory: Arc<str>,
    },
    /// What fanotify has to say of limit writes cannot be read: some are lost.
    LimitWritesUnread {
        /// The error of the read.
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
    /// There are more problems than are named one by one.
    More {
        /// How many more.
        count: usize,
    },
}

/// Problems that are named one by one: whoever may make cgroups, or answers for the runtime, may make one of each container.
const NAMED: usize = 64;

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

    /// The first of them, and how many more there are.
    pub fn bounded(all: impl IntoIterator<Item = Self>) -> Vec<Self> {
        let mut all = all.into_iter();
        let mut named: Vec<_> = all.by_ref().take(NAMED).collect();
        let count = all.count();
        named.extend((count > 0).then_some(Self::More { count }));
        named
    }

    /// Whether the other one is this problem, perhaps with more or less of it.
    pub fn is_same_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::OutsideRoots { .. }, Self::OutsideRoots { .. })
            | (Self::LimitWritesUnread { .. }, Self::LimitWritesUnread { .. })
            | (Self::More { .. }, Self::More { .. }) => true,
            _ => self == other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_are_bounded_and_the_others_counted() {
        let many = |count| std::iter::repeat_n(Problem::Full, count);
        assert_eq!(Problem::bounded(many(NAMED)), vec![Problem::Full; NAMED]);
        let bounded = Problem::bounded(many(100_000));
        let more = Problem::More { count: 100_000 - NAMED };
        assert_eq!((bounded.len(), bounded.last()), (NAMED + 1, Some(&more)));
        assert!(bounded[NAMED].is_same_as(&Problem::More { count: 1 }));
    }
}
