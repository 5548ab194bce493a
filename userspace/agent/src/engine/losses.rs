//! What was lost: the kernel's counters compared with the last look, and records that could not be decoded. Turns
//! increments into losses with exact counts; never guesses.

use std::collections::BTreeMap;

use kwitness_abi::{Counters, RecordKind};
use kwitness_core::decode::DecodeError;
use kwitness_core::model::{CgroupId, GapCause, KernelTime, Loss};
use serde::{Deserialize, Serialize};

use super::loss_owners::LossOwners;
use crate::clock::Clock;

/// What has been accounted for of the kernel side's counters, for the next daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// By [`RecordKind::index`].
    lost: Vec<u64>,
    /// Whose that was.
    #[serde(default)]
    owners: LossOwners,
    untracked: u64,
    skipped: BTreeMap<String, u64>,
    suppressed: SuppressedWrites,
    /// What has not been accounted for, and that no counter of the kernel shows.
    malformed: Malformed,
}

/// Records that could not be decoded, by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct Malformed(BTreeMap<String, u64>);

impl Malformed {
    fn note(&mut self, error: &DecodeError) {
        let kind = error.kind().map_or("unknown", RecordKind::name);
        *self.0.entry(kind.to_owned()).or_default() += 1;
    }
}

/// When counters were read: what they do not show yet came after the beginning, and what they show before the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) began: KernelTime,
    pub(super) ended: KernelTime,
}

impl Look {
    /// Reads counters, and notes when.
    pub(super) fn at<T>(read: impl FnOnce() -> T) -> (T, Self) {
        let began = Clock::read().now();
        let counters = read();
        (counters, Self { began, ended: Clock::read().now() })
    }
}

/// Which writes to limit files were only counted, for they came too fast.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SuppressedWrites {
    total: u64,
    by_cgroup: BTreeMap<u64, u64>,
}

impl Seen {
    /// All that the counters show: what was before a new epoch is no part of it.
    pub(super) fn all(
        counters: Counters,
        skipped: BTreeMap<&'static str, u64>,
        suppressed: BTreeMap<u64, u64>,
    ) -> Self {
        Self {
            lost: counters.lost.to_vec(),
            owners: LossOwners::default(),
            untracked: counters.untracked,
            skipped: owned(skipped),
            suppressed: SuppressedWrites { total: counters.suppressed, by_cgroup: suppressed },
            malformed: Malformed::default(),
        }
    }

    /// Whose of it what was lost is, as far as the kernel side knows.
    pub(super) fn owned_by(self, owners: LossOwners) -> Self {
        Self { owners, ..self }
    }

    /// A record that an earlier daemon took could not be decoded.
    pub(super) fn malformed(&mut self, error: &DecodeError) {
        self.malformed.note(error);
    }

    /// What counts from zero again: what the kernel says of programs that were loaded anew, and all of it if the maps are new.
    pub(super) fn forget(&mut self, loaded: &[&str], same_maps: bool) {
        self.skipped.retain(|capability, _| !loaded.contains(&&**capability));
        if !same_maps {
            *self = Self { malformed: std::mem::take(&mut self.malformed), ..Self::default() };
        }
    }

    /// Which writes to limit files were only counted.
    pub(super) fn suppressed(&self) -> SuppressedWrites {
        self.suppressed.clone()
    }
}

impl SuppressedWrites {
    /// Whether there are more than at the last look; with that, it is worth asking for each cgroup's.
    pub(super) fn is_more(&self, total: u64) -> bool {
        self.total != total
    }

    /// How many more of each cgroup than at the last look. `total` was read before.
    pub(super) fn since_last(&mut self, total: u64, by_cgroup: BTreeMap<u64, u64>) -> Vec<(CgroupId, u64)> {
        self.total = total;
        let before = std::mem::replace(&mut self.by_cgroup, by_cgroup);
        let more = |(cgroup, count): (&u64, &u64)| {
            let seen = before.get(cgroup).copied().unwrap_or(0);
            // Fewer: the kernel has forgotten it meanwhile, and counts from zero.
            let more = if *count < seen { *count } else { count - seen };
            (more > 0).then_some((CgroupId(*cgroup), more))
        };
        self.by_cgroup.iter().filter_map(more).collect()
    }
}

/// The memory of what was lost.
#[derive(Debug)]
pub(super) struct Losses {
    seen: Counters,
    /// Whose the lost records among them were.
    owners: LossOwners,
    /// When the counters were read last.
    looked: KernelTime,
    /// Programs that were skipped, by capability, since the start.
    skipped: BTreeMap<String, u64>,
    /// When they were counted last.
    skipped_looked: KernelTime,
    /// Since the last look.
    malformed: Malformed,
    /// By cause and kind, since the start.
    total: BTreeMap<String, u64>,
}

impl Losses {
    /// Begins with those counters.
    pub(super) fn new(seen: Counters) -> Self {
        let now = Clock::read().now();
        Self {
            seen,
            owners: LossOwners::default(),
            looked: now,
            skipped: BTreeMap::new(),
            skipped_looked: now,
            malformed: Malformed::default(),
            total: BTreeMap::new(),
        }
    }

    /// Goes on from what an earlier daemon had accounted for until that time.
    pub(super) fn resumed(seen: &Seen, until: KernelTime) -> Self {
        let mut counters = Counters { untracked: seen.untracked, ..Counters::default() };
        counters.lost.iter_mut().zip(&seen.lost).for_each(|(lost, seen)| *lost = *seen);
        Self {
            owners: seen.owners.clone(),
            looked: until,
            skipped: seen.skipped.clone(),
            skipped_looked: until,
            malformed: seen.malformed.clone(),
            ..Self::new(counters)
        }
    }

    /// From now on, the counters are those of programs that were loaded anew, and that count since then.
    pub(super) fn count_anew(&mut self, since: KernelTime) {
        self.seen = Counters::default();
        self.owners = LossOwners::default();
        self.skipped.clear();
        (self.looked, self.skipped_looked) = (since, since);
    }

    /// Until when the counters are accounted for, all of them.
    pub(super) fn looked(&self) -> KernelTime {
        self.looked.min(self.skipped_looked)
    }

    /// What has been accounted for.
    pub(super) fn seen(&self, suppressed: &SuppressedWrites) -> Seen {
        Seen {
            lost: self.seen.lost.to_vec(),
            owners: self.owners.clone(),
            untracked: self.seen.untracked,
            skipped: self.skipped.clone(),
            suppressed: suppressed.clone(),
            malformed: self.malformed.clone(),
        }
    }

    /// A record could not be decoded.
    pub(super) fn malformed(&mut self, error: &DecodeError) {
        if self.malformed.0.is_empty() {
            tracing::error!(%error, "a record could not be decoded");
        }
        self.malformed.note(error);
    }

    /// What was lost since the last look.
    pub(super) fn since_last(&mut self, counters: Counters, look: Look) -> Vec<Loss> {
        let Counters { lost, untracked, suppressed: _, charges: _ } = counters;
        let ring_full = RecordKind::ALL
            .into_iter()
            .map(|kind| (kind, lost[kind.index()].saturating_sub(self.seen.lost[kind.index()])))
            .filter(|(_, count)| *count > 0)
            .map(|(kind, count)| (kind.name().to_owned(), count))
            .collect();
        let untracked = untracked.saturating_sub(self.seen.untracked);
        let tracked_set_full = (untracked > 0)
            .then(|| (RecordKind::CgroupMkdir.name().to_owned(), untracked))
            .into_iter()
            .collect();
        let from = std::mem::replace(&mut self.looked, look.began);
        self.seen = counters;
        [
            (GapCause::RingFull, "ring_full", ring_full),
            (GapCause::TrackedSetFull, "tracked_set_full", tracked_set_full),
            (GapCause::MalformedRecord, "malformed_record", std::mem::take(&mut self.malformed).0),
        ]
        .into_iter()
        .filter(|(_, _, lost): &(_, _, BTreeMap<String, u64>)| !lost.is_empty())
        .map(|(cause, name, lost)| {
            for (kind, count) in &lost {
                *self.total.entry(format!("{name}/{kind}")).or_default() += count;
            }
            let (by_container, capabilities) = (BTreeMap::new(), Vec::new());
            Loss { from, to: look.ended, cause, lost, by_container, capabilities }
        })
        .collect()
    }

    /// Says whose the records are that found their ring full, by what the kernel side has counted of each container.
    pub(super) fn attribute(&mut self, loss: &mut Loss, counted: LossOwners) {
        loss.by_container = self.owners.since_last(&loss.lost, counted);
    }

    /// How often programs were skipped since the last such look; none if never.
    pub(super) fn skipped_since_last(
        &mut self,
        skipped: BTreeMap<&'static str, u64>,
        look: Look,
    ) -> Option<Loss> {
        let from = std::mem::replace(&mut self.skipped_looked, look.began);
        let before = std::mem::replace(&mut self.skipped, owned(skipped));
        let mut lost = BTreeMap::new();
        for (capability, count) in &self.skipped {
            let more = count.saturating_sub(before.get(capability).copied().unwrap_or(0));
            if more > 0 {
                *self.total.entry(format!("program_skipped/{capability}")).or_default() += more;
                lost.insert(capability.clone(), more);
            }
        }
        let (by_container, capabilities) = (BTreeMap::new(), Vec::new());
        let (to, cause) = (look.ended, GapCause::ProgramSkipped);
        (!lost.is_empty()).then_some(Loss { from, to, cause, lost, by_container, capabilities })
    }

    /// Everything that was lost since the start, "ring_full/task_exec".
    pub(super) fn total(&self) -> &BTreeMap<String, u64> {
        &self.total
    }
}

fn owned(by_capability: BTreeMap<&'static str, u64>) -> BTreeMap<String, u64> {
    by_capability.into_iter().map(|(capability, count)| (capability.to_owned(), count)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(began: KernelTime) -> Look {
        Look { began, ended: KernelTime(began.0 + 1) }
    }

    #[test]
    fn the_next_daemon_reports_what_the_last_one_had_not() {
        let mut counters = Counters::default();
        counters.lost[RecordKind::TaskExec.index()] = 5;
        counters.suppressed = 3;
        let mut seen = Seen::all(counters, [("task_exit", 2)].into(), [(7, 3)].into());
        seen.malformed(&DecodeError::Size { kind: RecordKind::TaskFork, len: 3 });
        let (until, now) = (KernelTime(10), KernelTime(20));
        let mut losses = Losses::resumed(&seen, until);
        assert_eq!(losses.skipped_since_last([("task_exit", 2)].into(), at(now)), None);
        assert!(!seen.suppressed().is_more(3));
        counters.lost[RecordKind::TaskExec.index()] += 1;
        let one = |kind: &str| BTreeMap::from([(kind.to_owned(), 1_u64)]);
        let found = losses.since_last(counters, at(now));
        let found: Vec<_> = found.into_iter().map(|loss| (loss.from, loss.lost)).collect();
        assert_eq!(found, [(until, one("task_exec")), (until, one("task_fork"))]);
        // New maps count from zero; what could not be decoded is no matter of theirs.
        seen.forget(&["task_exit"], false);
        let found = Losses::resumed(&seen, until).since_last(counters, at(now));
        let causes: Vec<_> = found.into_iter().map(|loss| loss.cause).collect();
        assert_eq!(causes, [GapCause::RingFull, GapCause::MalformedRecord]);
    }

    #[test]
    fn increments_become_losses_with_exact_counts() {
        let mut counters = Counters::default();
        counters.lost[RecordKind::TaskExec.index()] = 5;
        let mut losses = Losses::new(counters);
        let start = losses.looked;
        assert_eq!(losses.since_last(counters, at(KernelTime(start.0 + 1))), []);

        counters.lost[RecordKind::TaskExec.index()] += 3;
        counters.lost[RecordKind::TaskExit.index()] += 1;
        counters.untracked += 2;
        losses.malformed(&DecodeError::Size { kind: RecordKind::TaskFork, len: 3 });
        // From the beginning of the look before to the end of this one.
        let (from, to) = (KernelTime(start.0 + 1), KernelTime(start.0 + 5));
        let look = Look { began: KernelTime(start.0 + 4), ended: to };
        let loss = |cause, lost: &[(&str, u64)]| {
            let lost = lost.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect();
            Loss { from, to, cause, lost, by_container: BTreeMap::new(), capabilities: Vec::new() }
        };
        assert_eq!(
            losses.since_last(counters, look),
            [
                loss(GapCause::RingFull, &[("task_exec", 3), ("task_exit", 1)]),
                loss(GapCause::TrackedSetFull, &[("cgroup_mkdir", 2)]),
                loss(GapCause::MalformedRecord, &[("task_fork", 1)]),
            ]
        );
        assert_eq!((losses.since_last(counters, look), losses.looked), (Vec::new(), look.began));
        assert_eq!(losses.total()["ring_full/task_exec"], 3);
    }

    #[test]
    fn writes_that_were_only_counted_are_named_by_cgroup_once() {
        let mut suppressed = SuppressedWrites::default();
        assert!(!suppressed.is_more(0));
        // Until they could be read, they are still to be.
        assert!(suppressed.is_more(7) && suppressed.is_more(7));
        assert_eq!(suppressed.since_last(7, [(1, 5), (2, 2)].into()), [(CgroupId(1), 5), (CgroupId(2), 2)]);
        assert!(!suppressed.is_more(7));
        assert_eq!(suppressed.since_last(8, [(1, 5), (2, 3)].into()), [(CgroupId(2), 1)]);
        // The kernel forgot the first and counts anew.
        assert_eq!(suppressed.since_last(12, [(1, 4), (2, 3)].into()), [(CgroupId(1), 4)]);
    }

    #[test]
    fn a_skipped_program_is_a_loss_once() {
        let mut losses = Losses::new(Counters::default());
        let from = losses.skipped_looked;
        let (first, second) = (KernelTime(from.0 + 1), KernelTime(from.0 + 2));
        assert_eq!(losses.skipped_since_last(BTreeMap::new(), at(first)), None);
        let skipped: BTreeMap<_, _> = [("task_exit", 2)].into();
        let loss = losses.skipped_since_last(skipped.clone(), at(second)).unwrap();
        assert_eq!((loss.from, loss.to, loss.cause), (first, at(second).ended, GapCause::ProgramSkipped));
        assert_eq!(loss.lost["task_exit"], 2);
        assert_eq!(losses.skipped_since_last(skipped, at(second)), None);
        assert_eq!(losses.total()["program_skipped/task_exit"], 2);
    }
}
