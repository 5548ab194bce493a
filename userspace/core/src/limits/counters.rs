//! How often something of a limit was dropped, or came to nothing.

use serde::{Deserialize, Serialize};

/// What was dropped or came to nothing, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitCounters {
    /// Writes to limit files that were seen to return.
    pub writes: u64,
    /// Of those, the ones that wrote what was there.
    pub unchanged: u64,
    /// Writes merged into another, because more were pending than are kept.
    pub coalesced: u64,
    /// Changes that no write explains.
    pub found: u64,
    /// Writes that were not seen to return: the record was lost, or the kernel had no room for the probe.
    pub unreturned: u64,
    /// Cgroups not followed, for there were too many.
    pub cgroups_full: u64,
}
