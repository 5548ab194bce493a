//! What the engine needs of the programs in the kernel, so that its tests need no kernel.
//!
//! Owns the trait. Never decides when anything is read.

use std::collections::BTreeMap;
use std::io;

use kwitness_abi::{Counters, RecordKind};
use kwitness_core::model::CgroupId;

use crate::probe::{Drained, Overlap, Produced, ProgramStats, RingState, Running, SetId};

/// What the engine needs of the probes.
pub(crate) trait Probe: Send {
    /// How far the kernel has written into the rings.
    type Produced: Send;

    /// Waits until there is something to drain.
    fn readable(&mut self) -> impl Future<Output = io::Result<()>> + Send;
    /// Hands out at most so many records.
    fn drain(&mut self, budget: usize, take: impl FnMut(&[u8])) -> Drained;
    /// How far the kernel has written by now.
    fn produced(&self) -> Self::Produced;
    /// Whether all that was written by then has been handed out.
    fn has_drained(&self, until: &Self::Produced) -> bool;
    /// Takes a cgroup out of the tracked set.
    fn untrack(&self, cgroup: CgroupId) -> io::Result<()>;
    /// What the kernel side could not deliver.
    fn counters(&self) -> Counters;
    /// Whose that was, as far as the kernel side knows.
    fn lost_by_container(&self) -> io::Result<BTreeMap<u32, BTreeMap<RecordKind, u64>>>;
    /// How often the kernel did not run a program, by capability.
    fn skipped(&self) -> BTreeMap<&'static str, u64>;
    /// How many writes to each cgroup's limit files were only counted.
    fn suppressed_writes(&self) -> io::Result<BTreeMap<u64, u64>>;
    /// What the kernel says about the programs.
    fn program_stats(&self) -> Vec<ProgramStats>;
    /// The rings.
    fn rings(&self) -> Vec<RingState>;
    /// From now on, the next daemon may go on with what is recorded: the ledger says what was not.
    fn may_be_adopted(&mut self);
    /// Since when records of old programs are handed out beside which the new ones run already; none if they are not.
    fn overlap(&self) -> Option<Overlap>;
    /// From now on, the new programs' records are handed out, from the first; the next daemon may go on with those.
    fn hand_over(&mut self);
    /// The sets of programs that a daemon may go on with from here: the one whose records are handed out, then, as long as they are not
    /// yet, the new ones'.
    fn sets(&self) -> Vec<SetId>;
}

impl Probe for Running {
    type Produced = Produced;

    fn readable(&mut self) -> impl Future<Output = io::Result<()>> + Send {
        Running::readable(self)
    }

    fn drain(&mut self, budget: usize, take: impl FnMut(&[u8])) -> Drained {
        Running::drain(self, budget, take)
    }

    fn produced(&self) -> Produced {
        Running::produced(self)
    }

    fn has_drained(&self, until: &Produced) -> bool {
        Running::has_drained(self, until)
    }

    fn untrack(&self, cgroup: CgroupId) -> io::Result<()> {
        self.tracker().untrack(cgroup.0)
    }

    fn counters(&self) -> Counters {
        Running::counters(self)
    }

    fn lost_by_container(&self) -> io::Result<BTreeMap<u32, BTreeMap<RecordKind, u64>>> {
        self.lost_by_container()
    }

    fn skipped(&self) -> BTreeMap<&'static str, u64> {
        Running::skipped(self)
    }

    fn suppressed_writes(&self) -> io::Result<BTreeMap<u64, u64>> {
        self.suppressed_writes()
    }

    fn program_stats(&self) -> Vec<ProgramStats> {
        Running::program_stats(self)
    }

    fn rings(&self) -> Vec<RingState> {
        Running::rings(self).collect()
    }

    fn may_be_adopted(&mut self) {
        Running::may_be_adopted(self);
    }

    fn overlap(&self) -> Option<Overlap> {
        Running::overlap(self)
    }

    fn hand_over(&mut self) {
        Running::hand_over(self);
    }

    fn sets(&self) -> Vec<SetId> {
        Running::sets(self)
    }
}
