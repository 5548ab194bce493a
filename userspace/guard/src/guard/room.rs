//! What the node has for raises: read once in a look, however many processes are held.
//!
//! Whether it is enough is for [`crate::plan`] to say.

use std::collections::HashMap;

use anyhow::Context as _;

use super::{Guard, Guarded};
use crate::cgroup::Cgroup;
use crate::plan::Change;
use crate::policy::Bytes;

/// The memory of the node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NodeMemory {
    /// `MemTotal`.
    pub total: Bytes,
    /// `MemAvailable`.
    pub available: Bytes,
}

impl NodeMemory {
    /// As it is now.
    ///
    /// # Errors
    /// `/proc/meminfo` cannot be read.
    pub fn read() -> anyhow::Result<Self> {
        use procfs::Current as _;
        let memory = procfs::Meminfo::current().context("cannot read /proc/meminfo")?;
        let available = memory.mem_available.context("/proc/meminfo has no MemAvailable")?;
        Ok(Self { total: Bytes(memory.mem_total), available: Bytes(available) })
    }
}

/// What the node has for raises in one look.
#[derive(Debug)]
pub(super) struct Room {
    /// `MemAvailable`.
    pub available: Bytes,
    /// What of that stays free.
    pub reserve: Bytes,
    promised: Promised,
}

impl Room {
    /// What all but that cgroup may still take of raises.
    pub fn promised_beside(&self, cgroup_id: u64) -> Bytes {
        self.promised.beside(cgroup_id)
    }

    /// A raise is requested in the same look.
    pub fn raised(&mut self, cgroup_id: u64, change: Change) {
        self.promised.add(cgroup_id, change.to.0.saturating_sub(change.from.0));
    }
}

/// What cgroups may still take of raises that they have had.
#[derive(Debug, Default)]
struct Promised {
    of: HashMap<u64, u64>,
    all: u64,
}

impl Promised {
    fn add(&mut self, cgroup_id: u64, bytes: u64) {
        let of = self.of.entry(cgroup_id).or_default();
        *of = of.saturating_add(bytes);
        self.all = self.all.saturating_add(bytes);
    }

    fn beside(&self, cgroup_id: u64) -> Bytes {
        Bytes(self.all.saturating_sub(self.of.get(&cgroup_id).copied().unwrap_or(0)))
    }
}

impl Guarded {
    /// What it may still take of the raises that it has had. One that cannot be looked at, or is gone, takes nothing.
    fn promised(&self) -> Option<Bytes> {
        let loan = self.loan?;
        let cgroup = Cgroup::find(&self.container.cgroup_path, self.container.cgroup_id).ok()??;
        let (limit, usage) = (cgroup.limit().ok()?.unwrap_or(Bytes(0)), cgroup.usage().ok()?);
        Some(loan.promised(limit, usage))
    }
}

impl Guard {
    /// As it is at this moment.
    pub(super) fn room(&self) -> anyhow::Result<Room> {
        let NodeMemory { total, available } = NodeMemory::read()?;
        let mut promised = Promised::default();
        for (cgroup_id, guarded) in self.guarded.iter().chain(&self.retired) {
            if let Some(Bytes(bytes)) = guarded.promised() {
                promised.add(*cgroup_id, bytes);
            }
        }
        Ok(Room { available, reserve: self.options.policy.node_reserve(total), promised })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_promised_to_a_cgroup_itself_does_not_count_for_its_next_raise() {
        let mut promised = Promised::default();
        promised.add(1, 64);
        promised.add(2, 128);
        assert_eq!([1, 2, 3].map(|id| promised.beside(id)), [Bytes(128), Bytes(64), Bytes(192)]);
        let mut room = Room { available: Bytes(0), reserve: Bytes(0), promised };
        room.raised(1, Change { from: Bytes(64), to: Bytes(96) });
        assert_eq!([1, 2].map(|id| room.promised_beside(id)), [Bytes(128), Bytes(96)], "in the same look");
    }
}
