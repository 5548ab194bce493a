//! What does not fit: counted by container and reported as gaps once a tick, and looked for again once there is room.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::{Basis, CgroupId, Event, Gap, GapCause, KernelTime, Kind, Output, Subject};

/// Containers that are distinguished between two reports; what is lost of others is reported without a name.
const OWNERS: usize = 64;
/// Between two looks while something is not followed and nothing was seen to make room, in nanoseconds: its end is not seen either.
const LOOK: u64 = 10_000_000_000;

/// What did not fit since the last report.
#[derive(Debug, Default)]
pub(super) struct Overflow {
    by_owner: BTreeMap<Option<CgroupId>, Lost>,
}

#[derive(Debug)]
struct Lost {
    owner: Option<Arc<Subject>>,
    by_kind: BTreeMap<&'static str, u64>,
    from: KernelTime,
}

impl Overflow {
    pub(super) fn note(&mut self, kind: &'static str, owner: Option<Arc<Subject>>, at: KernelTime) {
        self.note_many(kind, 1, owner, at);
    }

    pub(super) fn note_many(
        &mut self,
        kind: &'static str,
        count: u64,
        owner: Option<Arc<Subject>>,
        at: KernelTime,
    ) {
        if count == 0 {
            return;
        }
        let id = owner.as_ref().map(|owner| owner.cgroup_id);
        let is_told_apart = self.by_owner.len() < OWNERS || self.by_owner.contains_key(&id);
        let (id, owner) = if is_told_apart { (id, owner) } else { (None, None) };
        let lost =
            self.by_owner.entry(id).or_insert_with(|| Lost { owner, by_kind: BTreeMap::new(), from: at });
        *lost.by_kind.entry(kind).or_default() += count;
    }

    /// Reports all of it.
    pub(super) fn report(&mut self, to: KernelTime, output: &mut Output) {
        for (_, Lost { owner, by_kind, from }) in std::mem::take(&mut self.by_owner) {
            let lost = by_kind.into_iter().map(|(kind, count)| (kind.to_owned(), count)).collect();
            let kind = Kind::Gap(Gap { cause: GapCause::CapacityExceeded, lost, from, to, path: None });
            output.events.push(Event { at: to, basis: Basis::Daemon, subject: owner, kind });
        }
    }
}

/// Whether there is room for what is not followed.
///
/// ```text
///  Enough ──no room──▶ Full ──a removal, or time──▶ a scan is requested ──found all──▶ Enough
///                       ▲                                     └── no room again ──┐
///                       └────────────────────────────────────────────────────────┘
/// ```
#[derive(Debug, Default)]
pub(super) struct Room {
    full: bool,
    /// Something was removed since the last scan.
    made: bool,
    /// A scan was requested.
    scan_requested: bool,
    scanned: Option<KernelTime>,
}

impl Room {
    pub(super) fn has_no_room(&mut self) {
        self.full = true;
    }

    pub(super) fn made(&mut self) {
        self.made = true;
    }

    pub(super) fn scan_is_requested(&mut self) {
        self.scan_requested = true;
    }

    /// A scan begins: whether all had room follows.
    pub(super) fn scanned(&mut self, at: KernelTime) {
        *self = Self { scanned: Some(at), ..Self::default() };
    }

    pub(super) fn is_full(&self) -> bool {
        self.full
    }

    /// Whether another scan may find more room.
    pub(super) fn is_due(&self, now: KernelTime) -> bool {
        let is_long_ago = self.scanned.is_none_or(|at| now.0.saturating_sub(at.0) >= LOOK);
        self.full && !self.scan_requested && (self.made || is_long_ago)
    }
}
