//! When it is worth looking again for cgroups that are not followed because there was no room.
//!
//! ```text
//!  Enough ──no room──▶ Full ──a removal, or time──▶ a scan is requested ──found all──▶ Enough
//!                       ▲                                     └── no room again ──┐
//!                       └────────────────────────────────────────────────────────┘
//! ```

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::model::{CgroupId, KernelTime};

/// Between two looks while something is not followed and nothing was seen to make room, in nanoseconds: its end is not seen either.
const LOOK: u64 = 10_000_000_000;
/// Likewise, while only cgroups of containers are not followed that have used up their share: these are not the node's loss.
const LOOK_FOR_SHARES: u64 = 60_000_000_000;

/// Whether there is room for what is not followed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Room {
    /// Something does not fit, whoever's it is.
    full: bool,
    /// Containers of whose cgroups some are not followed, for they have more than their share.
    beyond_share: BTreeSet<CgroupId>,
    /// Something was removed since the last scan that may make room.
    made: bool,
    /// A scan was requested.
    scan_requested: bool,
    scanned: Option<KernelTime>,
}

impl Room {
    pub(super) fn has_no_room(&mut self) {
        self.full = true;
    }

    /// A container has used up its share; whether that is news.
    pub(super) fn is_beyond_share(&mut self, container: CgroupId) -> bool {
        self.beyond_share.insert(container)
    }

    /// A cgroup was removed, of that container or of none.
    pub(super) fn made(&mut self, cgroup: CgroupId, owner: Option<CgroupId>) {
        self.beyond_share.remove(&cgroup);
        self.made |= self.full || owner.is_some_and(|owner| self.beyond_share.contains(&owner));
    }

    pub(super) fn scan_is_requested(&mut self) {
        self.scan_requested = true;
    }

    /// A scan begins: whether all had room follows. Gives back those that were beyond their share.
    pub(super) fn scanned(&mut self, at: KernelTime) -> BTreeSet<CgroupId> {
        let before = std::mem::take(&mut self.beyond_share);
        *self = Self { scanned: Some(at), ..Self::default() };
        before
    }

    pub(super) fn is_full(&self) -> bool {
        self.full
    }

    pub(super) fn beyond_share(&self) -> &BTreeSet<CgroupId> {
        &self.beyond_share
    }

    /// Whether another scan may find more room.
    pub(super) fn is_due(&self, now: KernelTime) -> bool {
        let look = match (self.full, self.beyond_share.is_empty()) {
            (true, _) => LOOK,
            (false, false) => LOOK_FOR_SHARES,
            (false, true) => return false,
        };
        let is_long_ago = self.scanned.is_none_or(|at| now.0.saturating_sub(at.0) >= look);
        !self.scan_requested && (self.made || is_long_ago)
    }
}
