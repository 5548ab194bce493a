//! Probes without a kernel.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use kwitness_abi::{Counters, RecordKind};
use kwitness_core::model::{CgroupId, KernelTime};

use super::super::Probe;
use crate::probe::{Drained, Overlap, ProgramStats, RingState, SetId};

/// Rings that are never empty: for each record that is read, the kernel writes another.
pub(super) struct Flood {
    pub(super) read: Arc<AtomicU64>,
    /// Records that are there at any time.
    pub(super) backlog: u64,
    pub(super) adoptable: Arc<AtomicBool>,
}

impl Probe for Flood {
    type Produced = u64;

    async fn readable(&mut self) -> io::Result<()> {
        if self.backlog == 0 {
            std::future::pending().await
        }
        // As the real one does while there is more.
        tokio::task::yield_now().await;
        Ok(())
    }

    fn drain(&mut self, budget: usize, mut take: impl FnMut(&[u8])) -> Drained {
        if self.backlog == 0 {
            return Drained { records: 0, more: false };
        }
        for _ in 0..budget {
            // Malformed, which is counted: what the records say is of no account here.
            take(&[]);
        }
        self.read.fetch_add(budget as u64, Relaxed);
        Drained { records: budget, more: true }
    }

    fn produced(&self) -> u64 {
        self.read.load(Relaxed) + self.backlog
    }

    fn has_drained(&self, until: &u64) -> bool {
        self.read.load(Relaxed) >= *until
    }

    fn untrack(&self, _: CgroupId) -> io::Result<()> {
        Ok(())
    }

    fn counters(&self) -> Counters {
        Counters::default()
    }

    fn lost_by_container(&self) -> io::Result<BTreeMap<u32, BTreeMap<RecordKind, u64>>> {
        Ok(BTreeMap::new())
    }

    fn skipped(&self) -> BTreeMap<&'static str, u64> {
        BTreeMap::new()
    }

    fn suppressed_writes(&self) -> io::Result<BTreeMap<u64, u64>> {
        Ok(BTreeMap::new())
    }

    fn program_stats(&self) -> Vec<ProgramStats> {
        Vec::new()
    }

    fn rings(&self) -> Vec<RingState> {
        Vec::new()
    }

    fn may_be_adopted(&mut self) {
        self.adoptable.store(true, Relaxed);
    }

    fn overlap(&self) -> Option<Overlap> {
        None
    }

    fn hand_over(&mut self) {}

    fn sets(&self) -> Vec<SetId> {
        vec![SetId(1)]
    }
}

/// Old programs and new ones, each with what they recorded.
pub(super) struct Upgrade {
    pub(super) old: VecDeque<Vec<u8>>,
    pub(super) new: VecDeque<Vec<u8>>,
    pub(super) began: KernelTime,
    pub(super) handed_over: Arc<AtomicBool>,
    /// What the old ones could not record.
    pub(super) lost: Arc<AtomicU64>,
    /// How often that was looked at.
    pub(super) looks: Arc<AtomicU64>,
}

impl Upgrade {
    pub(super) fn new(began: KernelTime, handed_over: &Arc<AtomicBool>) -> Self {
        Self {
            old: VecDeque::new(),
            new: VecDeque::new(),
            began,
            handed_over: Arc::clone(handed_over),
            lost: Arc::new(AtomicU64::new(5)),
            looks: Arc::default(),
        }
    }

    fn read(&mut self) -> &mut VecDeque<Vec<u8>> {
        if self.handed_over.load(Relaxed) { &mut self.new } else { &mut self.old }
    }
}

impl Probe for Upgrade {
    type Produced = ();

    async fn readable(&mut self) -> io::Result<()> {
        if self.read().is_empty() {
            std::future::pending().await
        }
        Ok(())
    }

    fn drain(&mut self, _: usize, mut take: impl FnMut(&[u8])) -> Drained {
        let records = self.read().len();
        self.read().drain(..).for_each(|record| take(&record));
        Drained { records, more: false }
    }

    fn produced(&self) {}

    fn has_drained(&self, (): &()) -> bool {
        if self.handed_over.load(Relaxed) { self.new.is_empty() } else { self.old.is_empty() }
    }

    fn untrack(&self, _: CgroupId) -> io::Result<()> {
        Ok(())
    }

    fn counters(&self) -> Counters {
        self.looks.fetch_add(1, Relaxed);
        let of_old = self.lost.load(Relaxed);
        let mut counters = Counters::default();
        counters.lost[RecordKind::CgroupMkdir.index()] =
            if self.handed_over.load(Relaxed) { 1 } else { of_old };
        counters
    }

    fn lost_by_container(&self) -> io::Result<BTreeMap<u32, BTreeMap<RecordKind, u64>>> {
        Ok(BTreeMap::new())
    }

    fn skipped(&self) -> BTreeMap<&'static str, u64> {
        BTreeMap::new()
    }

    fn suppressed_writes(&self) -> io::Result<BTreeMap<u64, u64>> {
        Ok(BTreeMap::new())
    }

    fn program_stats(&self) -> Vec<ProgramStats> {
        Vec::new()
    }

    fn rings(&self) -> Vec<RingState> {
        Vec::new()
    }

    fn may_be_adopted(&mut self) {}

    fn overlap(&self) -> Option<Overlap> {
        // Long enough ago.
        let overlap = Overlap { began: self.began, whole: KernelTime(0) };
        (!self.handed_over.load(Relaxed)).then_some(overlap)
    }

    fn hand_over(&mut self) {
        self.handed_over.store(true, Relaxed);
    }

    fn sets(&self) -> Vec<SetId> {
        if self.handed_over.load(Relaxed) { vec![SetId(2)] } else { vec![SetId(1), SetId(2)] }
    }
}

/// The record of a cgroup that has got its first process.
pub(super) fn populated(at: u64, cgroup: u64) -> Vec<u8> {
    let mut record = Vec::new();
    record.extend(at.to_ne_bytes());
    record.extend(cgroup.to_ne_bytes());
    record.extend((RecordKind::CgroupPopulated as u16).to_ne_bytes());
    // No flags, the first CPU.
    record.extend([0; 6]);
    record.extend(1_u32.to_ne_bytes());
    record.extend([0; 4]);
    record
}
