//! Records of two rings put into the order of their times.
//!
//! A process's exec travels on one ring, the making of its cgroup on another. Each drain ends at another moment,
//! so that the records of one ring may run ahead of the other's. [`ReorderBuffer`] holds back what is younger than the
//! moment at which the drain began: everything older has been read from both rings by then. So it never holds more than one drain
//! hands out; should the clocks disagree, it holds [`HELD_MAX`] and gives back the oldest beyond that, out of order and not lost.
//!
//! What is left is a record whose hook ran before that moment and which was committed after it (the few hundred
//! nanoseconds between reading the clock and the commit). It comes late; `lifecycle` has an outcome for it.

use serde::{Deserialize, Serialize};

use crate::model::{KernelEvent, KernelTime};

/// Records held back at most: several drains' worth.
pub const HELD_MAX: usize = 8_192;

/// Records on their way from the rings to the machines.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ReorderBuffer {
    held: Vec<KernelEvent>,
}

impl ReorderBuffer {
    /// Takes a record of any ring.
    pub fn push(&mut self, event: KernelEvent) {
        self.held.push(event);
    }

    /// Gives back, in the order of their times, all records that are not younger than `until`: the moment at
    /// which the drain that delivered them began; and the oldest of what is more than [`HELD_MAX`].
    pub fn release(&mut self, until: KernelTime) -> impl Iterator<Item = KernelEvent> + '_ {
        self.held.sort_by_key(|event| event.at);
        let beyond = self.held.len().saturating_sub(HELD_MAX);
        let ready = self.held.partition_point(|event| event.at <= until).max(beyond);
        self.held.drain(..ready)
    }

    /// How many records are held back: if any, drain again without waiting for a wake-up.
    pub fn held(&self) -> usize {
        self.held.len()
    }
}
