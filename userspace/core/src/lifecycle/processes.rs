//! What is remembered of a container's processes between their first record and their last.
//!
//! A table for each container, so that it goes with the container, whatever was lost; one [`Budget`] for all, of which each has
//! a share, so that a fork bomb costs memory only up to a bound, and other containers nothing.

use rustc_hash::{FxHashMap, FxHashSet};
use serde::{Deserialize, Serialize};

use crate::model::{KernelTime, ProcKey, Role};
use crate::shares::may_take;

/// How many processes may still be remembered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Budget {
    left: usize,
    /// How often there was no place.
    pub(super) refused: u64,
    /// Of these, since the last look at [`Budget::take_unreported`].
    unreported: u64,
}

impl Budget {
    pub(super) fn new(processes: usize) -> Self {
        Self { left: processes, refused: 0, unreported: 0 }
    }

    /// How often there was no place since the last call.
    pub(super) fn take_unreported(&mut self) -> u64 {
        std::mem::take(&mut self.unreported)
    }
}

/// What is remembered of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Known {
    pub(super) role: Role,
    pub(super) executed: Executed,
    /// The time of its first record.
    pub(super) since: KernelTime,
}

/// Whether a process has executed a program in the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Executed {
    Yes,
    NotSeen,
}

/// The processes of one container.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Processes {
    #[serde(with = "crate::pairs")]
    known: FxHashMap<ProcKey, Known>,
}

impl Processes {
    pub(super) fn get_mut(&mut self, key: ProcKey) -> Option<&mut Known> {
        self.known.get_mut(&key)
    }

    /// Remembers a process, unless it is known or this container's share of the budget is used up.
    pub(super) fn insert_new(&mut self, key: ProcKey, known: Known, budget: &mut Budget) {
        if self.known.contains_key(&key) {
            return;
        }
        if may_take(self.known.len(), budget.left) {
            budget.left -= 1;
            self.known.insert(key, known);
        } else {
            budget.refused += 1;
            budget.unreported += 1;
        }
    }

    pub(super) fn remove(&mut self, key: ProcKey, budget: &mut Budget) -> Option<Known> {
        let known = self.known.remove(&key)?;
        budget.left += 1;
        Some(known)
    }

    /// Forgets those that are neither younger than `time` nor among `others`, and remembers the others.
    pub(super) fn reconcile(&mut self, others: &[(ProcKey, Known)], time: KernelTime, budget: &mut Budget) {
        let kept: FxHashSet<ProcKey> = others.iter().map(|(key, _)| *key).collect();
        let before = self.known.len();
        self.known.retain(|key, known| known.since >= time || kept.contains(key));
        budget.left += before - self.known.len();
        for &(key, known) in others {
            self.insert_new(key, known, budget);
        }
    }

    /// Forgets all, and gives the memory back.
    pub(super) fn clear(&mut self, budget: &mut Budget) {
        budget.left += self.known.len();
        self.known = FxHashMap::default();
    }
}
