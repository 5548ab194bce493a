//! What of an engine goes on in the next daemon's: a segment begins with it, and a replay ends with it.
//!
//! Owns which that is. Never knows how it is written.

use kwitness_core::lifecycle::Bounds;
use kwitness_core::model::{Event, KernelTime};
use kwitness_core::node::Node;
use kwitness_core::reorder::ReorderBuffer;
use kwitness_core::seam::Seam;
use serde::{Deserialize, Serialize};

use super::{Place, Refusal};
use crate::clock::Clock;
use crate::engine::asked::Asked;
use crate::engine::losses::Seen;
use crate::probe::SetId;
use crate::reported::Reported;

/// All that the engine knows and that cannot be read from the kernel again. What is skipped stands in the segment's head.
#[derive(Debug, Deserialize)]
pub(crate) struct Memory {
    pub(in crate::engine) node: Node,
    pub(in crate::engine) reorder: ReorderBuffer,
    /// Not published yet.
    pub(in crate::engine) events: Vec<Event>,
    #[serde(skip)]
    pub(in crate::engine) seen: Seen,
    pub(in crate::engine) asked: Asked,
    /// Missing in the ledger of an earlier release.
    #[serde(default = "nothing_reported")]
    pub(crate) reported: Reported,
    /// The last record that was taken from a ring, if it may be there still.
    #[serde(skip)]
    pub(in crate::engine) last_record: Option<Vec<u8>>,
    /// What was taken from programs that were replaced.
    #[serde(skip)]
    pub(in crate::engine) seam: Option<Seam>,
    /// When the outage began that has not been reported yet, if there was one.
    #[serde(skip)]
    pub(in crate::engine) outage: Option<KernelTime>,
    /// The sets of programs whose records may be gone on with; as `Probe::sets` gives them.
    #[serde(skip)]
    pub(in crate::engine) sets: Vec<SetId>,
    /// Until when the kernel's counters are accounted for; none if that is not known.
    #[serde(skip)]
    pub(in crate::engine) looked: Option<KernelTime>,
    /// When the daemon was last seen to work.
    pub(in crate::engine) until: KernelTime,
}

impl Memory {
    /// The memory of a daemon that has observed nothing.
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self {
            node: Node::new(bounds),
            reorder: ReorderBuffer::default(),
            events: Vec::new(),
            seen: Seen::default(),
            asked: Asked::default(),
            reported: nothing_reported(),
            last_record: None,
            seam: None,
            outage: None,
            sets: Vec::new(),
            looked: None,
            until: KernelTime(0),
        }
    }

    /// Fails unless the rings of that set go on where this ends.
    pub(crate) fn check_set(&self, set: SetId, place: &Place) -> Result<(), Refusal> {
        match self.sets.contains(&set) {
            true => Ok(()),
            false => Err(Refusal::OtherSet { path: place.directory.clone() }),
        }
    }

    /// The same, borrowed.
    pub(super) fn borrowed(&self) -> MemoryOf<'_> {
        MemoryOf {
            node: &self.node,
            reorder: &self.reorder,
            events: &self.events,
            seen: self.seen.clone(),
            asked: self.asked.clone(),
            reported: &self.reported,
            last_record: self.last_record.as_deref(),
            seam: self.seam.as_ref(),
            outage: self.outage,
            sets: self.sets.clone(),
            looked: self.looked,
            until: self.until,
        }
    }

    /// That record was the last to be taken from its ring.
    pub(super) fn consumed(&mut self, record: &[u8]) {
        let last = self.last_record.get_or_insert_default();
        last.clear();
        last.extend_from_slice(record);
    }
}

fn nothing_reported() -> Reported {
    Reported::begin(Clock::read().now())
}

/// The same, borrowed: what is written, and what [`Memory`] is read from.
#[derive(Debug, Serialize)]
pub(in crate::engine) struct MemoryOf<'a> {
    pub(in crate::engine) node: &'a Node,
    pub(in crate::engine) reorder: &'a ReorderBuffer,
    pub(in crate::engine) events: &'a [Event],
    #[serde(skip)]
    pub(in crate::engine) seen: Seen,
    pub(in crate::engine) asked: Asked,
    pub(in crate::engine) reported: &'a Reported,
    #[serde(skip)]
    pub(in crate::engine) last_record: Option<&'a [u8]>,
    #[serde(skip)]
    pub(in crate::engine) seam: Option<&'a Seam>,
    #[serde(skip)]
    pub(in crate::engine) outage: Option<KernelTime>,
    #[serde(skip)]
    pub(in crate::engine) sets: Vec<SetId>,
    #[serde(skip)]
    pub(in crate::engine) looked: Option<KernelTime>,
    pub(in crate::engine) until: KernelTime,
}

impl MemoryOf<'_> {
    /// The same as it is now, to be written while the engine goes on.
    pub(super) fn to_owned(&self) -> Memory {
        Memory {
            node: self.node.clone(),
            reorder: self.reorder.clone(),
            events: self.events.to_vec(),
            seen: self.seen.clone(),
            asked: self.asked.clone(),
            reported: self.reported.copied(),
            last_record: self.last_record.map(<[u8]>::to_owned),
            seam: self.seam.cloned(),
            outage: self.outage,
            sets: self.sets.clone(),
            looked: self.looked,
            until: self.until,
        }
    }
}
