//! When requests to the container runtime were not observed: while no daemon ran, or because the CRI proxy missed them.
//!
//! Owns these times, bounded: of too many, the two with the least time between them become one; of too many containers, the times of
//! further ones count for all. So more may be unknown than need be, and never less.

use std::collections::{BTreeMap, BTreeSet};

use kwitness_core::model::{ContainerId, KernelTime, Unobserved};

/// Times that are remembered for all containers.
const TIMES_MAX: usize = 8;
/// Containers that have a time of their own.
const CONTAINERS_MAX: usize = 1024;

/// The times.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct UnobservedTimes {
    /// When requests for any container's limits may have been made, by their beginnings.
    pub(super) of_any: Vec<Unobserved>,
    /// When requests for this container's were, from the first to the last.
    pub(super) of_one: BTreeMap<ContainerId, Unobserved>,
}

impl UnobservedTimes {
    /// Notes one, of that container or of any.
    pub(super) fn note(&mut self, container: Option<&ContainerId>, time: Unobserved) {
        let Some(id) = container else { return self.note_of_any(time) };
        if let Some(known) = self.of_one.get_mut(id) {
            *known = Unobserved { from: known.from.min(time.from), to: known.to.max(time.to) };
        } else if self.of_one.len() < CONTAINERS_MAX {
            self.of_one.insert(id.clone(), time);
        } else {
            self.note_of_any(time);
        }
    }

    fn note_of_any(&mut self, time: Unobserved) {
        let times = &mut self.of_any;
        times.insert(times.partition_point(|other| other.from <= time.from), time);
        if times.len() > TIMES_MAX {
            let between = |at: &usize| times[*at].from.0.saturating_sub(times[*at - 1].to.0);
            let nearest = (1..times.len()).min_by_key(between).unwrap_or(1);
            let second = times.remove(nearest);
            let first = &mut times[nearest - 1];
            first.to = first.to.max(second.to);
        }
    }

    /// Forgets those of containers that are not there, once they have had that time to come, given all that are.
    pub(super) fn keep(&mut self, there: &BTreeSet<&str>, now: KernelTime, time: u64) {
        self.of_one.retain(|id, of| there.contains(&*id.0) || now.0.saturating_sub(of.to.0) < time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn time(from: u64, to: u64) -> Unobserved {
        Unobserved { from: KernelTime(from), to: KernelTime(to) }
    }

    fn id(number: usize) -> ContainerId {
        ContainerId(number.to_string().into())
    }

    #[test]
    fn of_too_many_times_the_two_nearest_become_one() {
        let mut times = UnobservedTimes::default();
        // An outage, then misses in a row a long time later, the last of them reported first.
        times.note(None, time(0, 5));
        for at in (100..100 + TIMES_MAX as u64).rev() {
            times.note(None, time(at * 10, at * 10 + 5));
        }
        assert_eq!(times.of_any.len(), TIMES_MAX);
        assert_eq!(times.of_any[..2], [time(0, 5), time(1000, 1015)]);
        for at in 200..300 {
            times.note(None, time(at * 10, at * 10 + 5));
        }
        assert_eq!(times.of_any.len(), TIMES_MAX);
        let is_within = |at| times.of_any.iter().any(|of| (of.from..=of.to).contains(&KernelTime(at)));
        assert!((200..300).all(|at| is_within(at * 10 + 5)), "none is forgotten: {times:?}");
        assert_eq!(times.of_any[0], time(0, 5), "far from all others");
    }

    #[test]
    fn of_too_many_containers_the_times_count_for_all() {
        let mut times = UnobservedTimes::default();
        for number in 0..CONTAINERS_MAX {
            times.note(Some(&id(number)), time(10, 20));
        }
        times.note(Some(&id(0)), time(5, 15));
        assert_eq!((times.of_one.len(), times.of_one[&id(0)]), (CONTAINERS_MAX, time(5, 20)));
        assert_eq!(times.of_any, []);
        times.note(Some(&id(CONTAINERS_MAX)), time(30, 40));
        assert_eq!((times.of_one.len(), times.of_any), (CONTAINERS_MAX, vec![time(30, 40)]));
    }

    #[test]
    fn of_a_container_that_has_ended_nothing_is_kept() {
        let mut times = UnobservedTimes::default();
        times.note(Some(&id(1)), time(10, 20));
        times.note(Some(&id(2)), time(10, 20));
        times.keep(&["1"].into(), KernelTime(119), 100);
        assert_eq!(times.of_one.len(), 2, "it may still come");
        times.keep(&["1"].into(), KernelTime(120), 100);
        assert_eq!(times.of_one.into_keys().collect::<Vec<_>>(), [id(1)]);
    }
}
