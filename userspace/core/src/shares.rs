//! How a bound that all containers share is divided among them.
//!
//! One rule, [`may_take`]: whoever holds less than what is free may take one more. One container alone comes to half of the bound,
//! two to a third each, n to an (n + 1)th each; as much stays free, so that whoever holds little always finds room. It is the
//! dynamic threshold of shared switch buffers (Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998) with the factor
//! one: nothing is reserved, and there is nothing to configure.
//!
//! What is refused is for the table whose bound it is to report. Never evicts.

use std::hash::Hash;

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

/// Whether an owner that holds so many may take one more while so many are free.
pub fn may_take(held: usize, free: usize) -> bool {
    held < free
}

/// A bound, and who holds how much of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(bound(serialize = "K: Serialize", deserialize = "K: Deserialize<'de> + Eq + Hash"))]
pub struct Shares<K> {
    capacity: usize,
    used: usize,
    /// Of owners that hold something.
    #[serde(with = "crate::pairs")]
    held: FxHashMap<K, usize>,
}

impl<K: Copy + Eq + Hash> Shares<K> {
    /// A bound of which nothing is held.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, used: 0, held: FxHashMap::default() }
    }

    /// How many are free.
    pub fn free(&self) -> usize {
        self.capacity.saturating_sub(self.used)
    }

    /// How many are held.
    pub fn used(&self) -> usize {
        self.used
    }

    /// How many that owner holds.
    pub fn held(&self, owner: K) -> usize {
        self.held.get(&owner).copied().unwrap_or(0)
    }

    /// Takes one for that owner, if it may. Without an owner, one may be taken while anything is free.
    #[must_use]
    pub fn take(&mut self, owner: Option<K>) -> bool {
        let may_take = match owner {
            Some(owner) => may_take(self.held(owner), self.free()),
            None => self.free() > 0,
        };
        if may_take {
            self.hold(owner);
        }
        may_take
    }

    /// Notes one that is held already.
    pub fn hold(&mut self, owner: Option<K>) {
        self.used += 1;
        if let Some(owner) = owner {
            *self.held.entry(owner).or_default() += 1;
        }
    }

    /// Gives one back.
    pub fn give_back(&mut self, owner: Option<K>) {
        self.used -= 1;
        if let Some(owner) = owner
            && let Some(held) = self.held.get_mut(&owner)
        {
            *held -= 1;
            if *held == 0 {
                self.held.remove(&owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_wants_all_leaves_room_for_those_who_want_little() {
        for hogs in 1..=5 {
            let mut shares = Shares::new(600);
            for _ in 0..600 {
                for hog in 0..hogs {
                    let _ = shares.take(Some(hog));
                }
            }
            let part = 600 / (hogs + 1);
            for hog in 0..hogs {
                assert!(shares.held(hog).abs_diff(part) <= 1, "{hog} of {hogs}: {}", shares.held(hog));
            }
            let newcomer = hogs;
            assert!((0..part / 2).all(|_| shares.take(Some(newcomer))), "{hogs} hogs");
            assert!(!shares.take(Some(0)), "who has much gets no more");
        }
    }

    #[test]
    fn what_is_given_back_may_be_taken_again() {
        let mut shares = Shares::new(3);
        assert!(shares.take(Some('a')) && shares.take(None));
        assert!(!shares.take(Some('a')), "it holds as much as is free");
        assert!(shares.take(Some('b')) && !shares.take(None) && !shares.take(Some('c')));
        assert_eq!(shares.free(), 0);
        shares.give_back(None);
        shares.give_back(Some('b'));
        assert!(shares.take(Some('a')));
        assert_eq!((shares.held('a'), shares.held('b'), shares.free()), (2, 0, 1));
    }
}
