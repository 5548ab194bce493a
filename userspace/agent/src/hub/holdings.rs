//! Who holds how much of a window, and who holds more than a share. Never decides what goes.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

/// The weights of the owners' items: of each item its bytes, and its place.
#[derive(Debug)]
pub(super) struct Holdings<O> {
    share: usize,
    place: usize,
    /// Of owners that hold something.
    weights: HashMap<O, usize>,
    /// Of these, those beyond their share, by weight: the bounds allow few, so that an owner of little costs nothing here.
    beyond: BTreeSet<(usize, O)>,
}

impl<O: Copy + Hash + Ord> Holdings<O> {
    /// No owner holds anything. An item's place weighs so much.
    pub(super) fn new(share: usize, place: usize) -> Self {
        Self { share, place, weights: HashMap::new(), beyond: BTreeSet::new() }
    }

    /// An owner has one item more, of so many bytes.
    pub(super) fn take(&mut self, owner: O, bytes: usize) {
        let weight = self.weights.entry(owner).or_default();
        let before = std::mem::replace(weight, *weight + bytes + self.place);
        let after = *weight;
        self.rank(owner, before, after);
    }

    /// An owner has one item less, of so many bytes.
    pub(super) fn give_back(&mut self, owner: O, bytes: usize) {
        let Some(weight) = self.weights.get_mut(&owner) else { return };
        let before = std::mem::replace(weight, *weight - bytes - self.place);
        let after = *weight;
        if after == 0 {
            self.weights.remove(&owner);
        }
        self.rank(owner, before, after);
    }

    /// Those that hold more than their share, the one with most first.
    pub(super) fn beyond_share(&self) -> impl Iterator<Item = O> {
        self.beyond.iter().rev().map(|(_, owner)| *owner)
    }

    fn rank(&mut self, owner: O, before: usize, after: usize) {
        if before > self.share {
            self.beyond.remove(&(before, owner));
        }
        if after > self.share {
            self.beyond.insert((after, owner));
        }
    }
}
