//! Whose lost records were: what the kernel side counted by container, compared with the last look.
//!
//! How many were lost, other counters say, exactly. Here an entry may have given way to others, and a record may be in one count and
//! not in the other yet. So no more is attributed than was lost; the rest may be any container's.

use std::collections::BTreeMap;

use kwitness_abi::RecordKind;
use serde::{Deserialize, Serialize};

/// Containers that are distinguished between two looks.
const OWNERS: usize = 64;

/// How many records of each kind each container has lost, by its [`kwitness_abi::container_number`] and the kind's name; what has been
/// accounted for of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct LossOwners(BTreeMap<u32, BTreeMap<String, u64>>);

impl LossOwners {
    /// What the kernel side has counted so far.
    pub(super) fn new(counted: BTreeMap<u32, BTreeMap<RecordKind, u64>>) -> Self {
        let named = |kinds: BTreeMap<RecordKind, u64>| {
            kinds.into_iter().map(|(kind, count)| (kind.name().to_owned(), count)).collect()
        };
        Self(counted.into_iter().map(|(container, kinds)| (container, named(kinds))).collect())
    }

    /// Of what was lost since the last look, by kind, what was each container's.
    pub(super) fn since_last(
        &mut self,
        lost: &BTreeMap<String, u64>,
        counted: Self,
    ) -> BTreeMap<u32, BTreeMap<String, u64>> {
        let Self(before) = std::mem::replace(self, counted);
        let mut left = lost.clone();
        let mut owners: BTreeMap<u32, BTreeMap<String, u64>> = BTreeMap::new();
        for (container, kinds) in &mut self.0 {
            for (kind, count) in kinds {
                let seen = before.get(container).and_then(|kinds| kinds.get(kind)).copied().unwrap_or(0);
                // Fewer: the kernel has forgotten it meanwhile, and counts from zero.
                let more = if *count < seen { *count } else { *count - seen };
                let attributed = left.get(kind).copied().unwrap_or(0).min(more);
                // What the sum does not show yet is attributed once it does.
                *count -= more - attributed;
                let is_distinguished = owners.len() < OWNERS || owners.contains_key(container);
                if attributed > 0 && is_distinguished {
                    owners.entry(*container).or_default().insert(kind.clone(), attributed);
                    left.entry(kind.clone()).and_modify(|left| *left -= attributed);
                }
            }
        }
        owners
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(counts: &[(u32, RecordKind, u64)]) -> LossOwners {
        let mut by_container: BTreeMap<u32, BTreeMap<RecordKind, u64>> = BTreeMap::new();
        for (container, kind, count) in counts {
            by_container.entry(*container).or_default().insert(*kind, *count);
        }
        LossOwners::new(by_container)
    }

    fn look(
        owners: &mut LossOwners,
        lost: &[(RecordKind, u64)],
        counts: &[(u32, RecordKind, u64)],
    ) -> Vec<(u32, String, u64)> {
        let lost = lost.iter().map(|(kind, count)| (kind.name().to_owned(), *count)).collect();
        let found = owners.since_last(&lost, counted(counts));
        let flat = |(container, kinds): (u32, BTreeMap<String, u64>)| {
            kinds.into_iter().map(move |(kind, count)| (container, kind, count)).collect::<Vec<_>>()
        };
        found.into_iter().flat_map(flat).collect()
    }

    fn of(container: u32, kind: RecordKind, count: u64) -> (u32, String, u64) {
        (container, kind.name().to_owned(), count)
    }

    #[test]
    fn what_was_lost_is_its_containers_once() {
        use RecordKind::{TaskExec, TaskExit};
        let mut owners = LossOwners::default();
        let first = [(7, TaskExec, 3), (8, TaskExec, 1), (8, TaskExit, 2)];
        let found = look(&mut owners, &[(TaskExec, 5), (TaskExit, 2)], &first);
        assert_eq!(found, [of(7, TaskExec, 3), of(8, TaskExec, 1), of(8, TaskExit, 2)], "one has no owner");
        assert_eq!(look(&mut owners, &[(TaskExec, 4)], &first), [], "what was reported is not again");
        let second = [(7, TaskExec, 3), (8, TaskExec, 2), (8, TaskExit, 2)];
        assert_eq!(look(&mut owners, &[(TaskExec, 1)], &second), [of(8, TaskExec, 1)]);
        // The kernel forgot the first and counts anew.
        let third = [(7, TaskExec, 2), (8, TaskExec, 2), (8, TaskExit, 2)];
        assert_eq!(look(&mut owners, &[(TaskExec, 2)], &third), [of(7, TaskExec, 2)]);
    }

    #[test]
    fn no_more_is_attributed_than_was_lost_and_the_rest_with_the_next_loss() {
        use RecordKind::CgroupMkdir;
        let mut owners = LossOwners::default();
        let counts = [(7, CgroupMkdir, 5)];
        assert_eq!(look(&mut owners, &[(CgroupMkdir, 3)], &counts), [of(7, CgroupMkdir, 3)]);
        assert_eq!(look(&mut owners, &[(CgroupMkdir, 9)], &counts), [of(7, CgroupMkdir, 2)]);
    }

    #[test]
    fn what_has_been_accounted_for_outlives_the_daemon() {
        use RecordKind::TaskFork;
        let mut owners = LossOwners::default();
        look(&mut owners, &[(TaskFork, 4)], &[(1 << 31, TaskFork, 4)]);
        let json = serde_json::to_vec(&owners).unwrap();
        let mut next: LossOwners = serde_json::from_slice(&json).unwrap();
        assert_eq!(next, owners);
        assert_eq!(look(&mut next, &[(TaskFork, 1)], &[(1 << 31, TaskFork, 5)]), [of(1 << 31, TaskFork, 1)]);
    }

    #[test]
    fn of_many_containers_only_some_are_distinguished() {
        use RecordKind::TaskExec;
        let counts: Vec<_> = (0..100).map(|container| (container, TaskExec, 1)).collect();
        let mut owners = LossOwners::default();
        assert_eq!(look(&mut owners, &[(TaskExec, 100)], &counts).len(), OWNERS);
        assert_eq!(
            look(&mut owners, &[(TaskExec, 1)], &counts),
            [],
            "the others were reported without a name"
        );
    }
}
