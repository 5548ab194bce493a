//! Records about cgroups that are not known, in the order in which they came, until a scan finds whose they are.
//!
//! Those that find no room are counted by cgroup, so that they, too, are reported as those of whom they were.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::{CgroupId, Fact, KernelEvent, KernelTime};
use crate::shares::Shares;

/// Cgroups that are distinguished of which records found no room.
const REFUSED_OF: usize = 64;

/// The records. One cgroup has no more than its share of the bound.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Parked {
    capacity: usize,
    events: Vec<KernelEvent>,
    shares: Shares<CgroupId>,
    /// What found no room, by the cgroup that places it; none: of more cgroups than are distinguished.
    #[serde(with = "crate::pairs")]
    refused: BTreeMap<Option<CgroupId>, Refused>,
}

/// Records of one cgroup that found no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Refused {
    pub(super) count: u64,
    /// The first one's time.
    pub(super) from: KernelTime,
}

impl Parked {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, events: Vec::new(), shares: Shares::new(capacity), refused: BTreeMap::new() }
    }

    /// Keeps a record; false: there is no room for it.
    pub(super) fn push(&mut self, event: KernelEvent) -> bool {
        let place = place(&event);
        let has_room = self.shares.take(Some(place));
        if has_room {
            self.events.push(event);
        } else {
            let is_distinguished = self.refused.len() < REFUSED_OF || self.refused.contains_key(&Some(place));
            let refused = self.refused.entry(is_distinguished.then_some(place));
            refused.or_insert(Refused { count: 0, from: event.at }).count += 1;
        }
        has_room
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &KernelEvent> {
        self.events.iter()
    }

    pub(super) fn take(&mut self) -> Vec<KernelEvent> {
        self.shares = Shares::new(self.capacity);
        std::mem::take(&mut self.events)
    }

    /// What found no room since the last call, for whoever knows by now whose it was.
    pub(super) fn take_refused(&mut self) -> BTreeMap<Option<CgroupId>, Refused> {
        std::mem::take(&mut self.refused)
    }
}

/// The cgroup by which the record is placed. One that was made and removed while a scan was elsewhere is known by its parent alone.
pub(super) fn place(event: &KernelEvent) -> CgroupId {
    match &event.fact {
        Fact::Mkdir { parent, .. } => *parent,
        _ => event.cgroup,
    }
}
