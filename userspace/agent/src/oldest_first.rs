//! A map with at most so many entries, of which the oldest goes first.
//!
//! No operation looks through the entries. Owns their order; what the lost entries mean is its owner's to say.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// Entries that an empty map may have room for.
const SPARE: usize = 64;

/// The map.
#[derive(Clone, Debug)]
pub(crate) struct OldestFirst<K, V> {
    max: usize,
    /// Each value with the number of its insertion.
    entries: HashMap<K, (u64, V)>,
    /// The keys by these numbers.
    order: BTreeMap<u64, K>,
    next: u64,
}

impl<K: Clone + Eq + Hash, V> OldestFirst<K, V> {
    /// An empty map for at most so many entries.
    pub(crate) fn new(max: usize) -> Self {
        Self { max, entries: HashMap::new(), order: BTreeMap::new(), next: 0 }
    }

    /// The value of a key.
    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|(_, value)| value)
    }

    /// Makes this the newest entry. Another of the same key goes, or else the oldest if there is no room.
    pub(crate) fn insert(&mut self, key: K, value: V) {
        self.remove(&key);
        if self.entries.len() >= self.max
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.entries.remove(&oldest);
        }
        self.order.insert(self.next, key.clone());
        self.entries.insert(key, (self.next, value));
        self.next += 1;
    }

    /// Removes an entry, and gives back its value; with the last one, what many entries took.
    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let (number, value) = self.entries.remove(key)?;
        self.order.remove(&number);
        if self.entries.is_empty() {
            self.entries.shrink_to(SPARE);
        }
        Some(value)
    }

    /// The entries, the oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.order.values().filter_map(move |key| Some((key, self.get(key)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(map: &OldestFirst<char, u32>) -> Vec<(char, u32)> {
        map.iter().map(|(key, value)| (*key, *value)).collect()
    }

    #[test]
    fn the_oldest_entry_makes_room() {
        let mut map = OldestFirst::new(2);
        map.insert('a', 1);
        map.insert('b', 2);
        map.insert('c', 3);
        assert_eq!(entries(&map), [('b', 2), ('c', 3)]);
        assert_eq!((map.get(&'a'), map.get(&'b')), (None, Some(&2)));
    }

    #[test]
    fn an_entry_that_is_inserted_again_is_the_newest() {
        let mut map = OldestFirst::new(2);
        map.insert('a', 1);
        map.insert('b', 2);
        map.insert('a', 3);
        assert_eq!(entries(&map), [('b', 2), ('a', 3)]);
        map.insert('c', 4);
        assert_eq!(entries(&map), [('a', 3), ('c', 4)]);
    }

    #[test]
    fn an_empty_map_has_room_for_few() {
        let mut map = OldestFirst::new(10_000);
        (0..10_000).for_each(|key| map.insert(key, ()));
        (0..10_000).for_each(|key| assert!(map.remove(&key).is_some()));
        assert!(map.entries.capacity() <= 2 * SPARE, "{}", map.entries.capacity());
    }

    #[test]
    fn what_is_removed_leaves_room_and_no_trace() {
        let mut map = OldestFirst::new(2);
        map.insert('a', 1);
        map.insert('b', 2);
        assert_eq!((map.remove(&'a'), map.remove(&'a')), (Some(1), None));
        map.insert('c', 3);
        assert_eq!(entries(&map), [('b', 2), ('c', 3)]);
    }
}
