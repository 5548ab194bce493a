//! Two sets of programs that see the same for a while: each fact is to be reported once.
//!
//! ```text
//!  old programs  ───────────────────────────┤ read until here
//!  new programs            ├───────────────────────────────  read from here on, from their first record
//!                          began            handed over
//!                             doubles: in both
//! ```
//!
//! The old programs' records are all taken. Of the new ones', a record is a double if one of the same fact was taken from the old
//! programs, at about the same time. Both run in the same call of the kernel's, one after the other: each reads the clock for itself,
//! and where tracepoints can be preempted, anything may lie in between, [`TOLERANCE`] at most. Two facts that say the same and are
//! no doubles, as when a cgroup is populated, emptied and populated again, are distinguished by the time: the nearest is the double.
//!
//! Never lost, and never reported twice, is therefore what both sets have, if they overlap for longer than [`TOLERANCE`]: a fact
//! that only the old ones saw is that much older than one that only the new ones saw.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use serde::{Deserialize, Serialize};

use crate::model::{Fact, KernelEvent, KernelTime, WritePhase};

/// How far the times of a fact and its double may lie apart, in nanoseconds.
pub const TOLERANCE: u64 = 1_000_000_000;
/// Facts that are remembered at most: more than the new programs' rings hold at their usual sizes. When so many were taken, it is
/// time to hand over ([`Seam::is_full`]).
const MAX: usize = 1 << 18;

/// What was taken from the old programs; see the module's description.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seam {
    /// The times of each fact, by its [`identity`].
    taken: HashMap<u64, Vec<KernelTime>>,
    count: usize,
    last: Option<KernelTime>,
}

impl Seam {
    /// A record of the old programs was taken. `began`: no record of the new ones is older.
    pub fn take(&mut self, event: &KernelEvent, began: KernelTime) {
        if event.at.0.saturating_add(TOLERANCE) < began.0 {
            return;
        }
        self.taken.entry(identity(event)).or_default().push(event.at);
        self.count += 1;
        self.last = self.last.max(Some(event.at));
    }

    /// Whether a record of the new programs is a double. Each record that was taken has one double at most.
    pub fn is_double(&mut self, event: &KernelEvent) -> bool {
        let identity = identity(event);
        let Some(times) = self.taken.get_mut(&identity) else { return false };
        let distance = |at: &KernelTime| at.0.abs_diff(event.at.0);
        let nearest = times.iter().enumerate().min_by_key(|(_, at)| distance(at));
        let Some((index, _)) = nearest.filter(|(_, at)| distance(at) <= TOLERANCE) else { return false };
        times.swap_remove(index);
        if times.is_empty() {
            self.taken.remove(&identity);
        }
        self.count -= 1;
        true
    }

    /// Whether as much is remembered as may be.
    pub fn is_full(&self) -> bool {
        self.count >= MAX
    }

    /// Whether no record that is made from then on has a double.
    pub fn is_over(&self, now: KernelTime) -> bool {
        self.last.is_none_or(|last| now.0 > last.0.saturating_add(TOLERANCE))
    }
}

/// A fact without what two programs that see it may differ in: times, and what follows from what each of them remembers (whether
/// a program is a container's first).
fn identity(event: &KernelEvent) -> u64 {
    let mut hasher = DefaultHasher::new();
    event.cgroup.hash(&mut hasher);
    std::mem::discriminant(&event.fact).hash(&mut hasher);
    match &event.fact {
        // Each happens to a cgroup once.
        Fact::Mkdir { .. } | Fact::Rmdir { .. } | Fact::Release => {}
        Fact::Attach { process, actor } => (process.key, actor.pid).hash(&mut hasher),
        Fact::Populated(populated) => populated.hash(&mut hasher),
        Fact::Fork { child, .. } => child.key.hash(&mut hasher),
        Fact::Exec { process, program, .. } => (process.key, program).hash(&mut hasher),
        Fact::Exit { process, .. } => process.key.hash(&mut hasher),
        Fact::LimitWrite(write) => {
            let has_returned = matches!(write.phase, WritePhase::Returned { .. });
            let value = write.value.as_ref().map(|value| &value.text);
            (write.limit_file, has_returned, write.writer.tid, value).hash(&mut hasher);
        }
        Fact::LimitWritesSuppressed(count) => count.hash(&mut hasher),
        Fact::OomKill(kill) => kill.victim.key.hash(&mut hasher),
        // If both programs did not see the same usage, the second record says what is known.
        Fact::MemoryCharge(charge) => (charge.usage, charge.limit).hash(&mut hasher),
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::CgroupId;

    const BEGAN: KernelTime = KernelTime(10 * TOLERANCE);

    fn populated(after_began: u64, populated: bool) -> KernelEvent {
        KernelEvent {
            at: KernelTime(BEGAN.0 + after_began),
            cgroup: CgroupId(7),
            fact: Fact::Populated(populated),
        }
    }

    #[test]
    fn what_both_saw_is_a_double_once_whatever_the_clock_says() {
        let mut seam = Seam::default();
        seam.take(&populated(5, true), BEGAN);
        assert!(!seam.is_double(&populated(5, false)), "another fact");
        assert!(seam.is_double(&populated(900, true)));
        assert!(!seam.is_double(&populated(900, true)), "it has had its double");
        assert_eq!(seam.taken, HashMap::new());
    }

    #[test]
    fn a_fact_that_one_side_alone_saw_is_none() {
        let mut seam = Seam::default();
        // Before the new programs were attached; then seen by both, twice; then by the new ones alone.
        seam.take(&populated(0, true), BEGAN);
        for at in [TOLERANCE / 2, TOLERANCE] {
            seam.take(&populated(at, true), BEGAN);
        }
        for at in [TOLERANCE / 2, TOLERANCE] {
            assert!(seam.is_double(&populated(at + 100, true)), "{at}");
        }
        assert!(!seam.is_double(&populated(TOLERANCE + 200, true)), "the first is too old for that");
    }

    #[test]
    fn what_no_double_can_be_of_is_not_remembered() {
        let mut seam = Seam::default();
        let long_ago = KernelEvent { at: KernelTime(BEGAN.0 - TOLERANCE - 1), ..populated(0, true) };
        seam.take(&long_ago, BEGAN);
        assert_eq!(seam, Seam::default());
        seam.take(&populated(0, true), BEGAN);
        assert!(!seam.is_over(KernelTime(BEGAN.0 + TOLERANCE)));
        assert!(seam.is_over(KernelTime(BEGAN.0 + TOLERANCE + 1)));
    }

    #[test]
    fn it_is_the_same_in_the_next_daemon() {
        let mut seam = Seam::default();
        seam.take(&populated(0, true), BEGAN);
        let text = serde_json::to_string(&seam).unwrap();
        let mut next: Seam = serde_json::from_str(&text).unwrap();
        assert!(next.is_double(&populated(1, true)));
    }
}
