//! Records about cgroups that are not known, in the order in which they came, until a scan finds whose they are.

use crate::model::{CgroupId, Fact, KernelEvent};
use crate::shares::Shares;

/// The records. One cgroup has no more than its share of the bound.
#[derive(Debug)]
pub(super) struct Parked {
    capacity: usize,
    events: Vec<KernelEvent>,
    shares: Shares<CgroupId>,
}

impl Parked {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, events: Vec::new(), shares: Shares::new(capacity) }
    }

    /// Keeps a record; false: there is no room for it.
    pub(super) fn push(&mut self, event: KernelEvent) -> bool {
        let has_room = self.shares.take(Some(place(&event)));
        if has_room {
            self.events.push(event);
        }
        has_room
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &KernelEvent> {
        self.events.iter()
    }

    pub(super) fn take(&mut self) -> Vec<KernelEvent> {
        std::mem::replace(self, Self::new(self.capacity)).events
    }
}

/// The cgroup by which the record is placed. One that was made and removed while a scan was elsewhere is known by its parent alone.
pub(super) fn place(event: &KernelEvent) -> CgroupId {
    match &event.fact {
        Fact::Mkdir { parent, .. } => *parent,
        _ => event.cgroup,
    }
}
