//! When a container was last OOM-killed: by its name, so that the one that was restarted in its place has the kill, too.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use kwitness_api::EventKind;
use kwitness_core::model::{CgroupId, KernelTime, Subject};

use crate::hub::JournalEvent;

/// The most containers that are remembered with a kill, and without names again as many; the oldest kill gives way.
const MAX: usize = 4096;

/// A container's namespace, pod and name.
type Name = [Arc<str>; 3];

/// The last kill of each container.
#[derive(Debug, Default)]
pub(super) struct Kills {
    named: HashMap<Name, KernelTime>,
    /// Of containers whose names are not known yet.
    unnamed: HashMap<CgroupId, KernelTime>,
}

impl Kills {
    /// Takes the journal's next event.
    pub(super) fn take(&mut self, event: &JournalEvent) {
        let Some(subject) = event.subject.as_deref() else { return };
        let name = name(subject);
        if event.kind == EventKind::OomKill {
            match &name {
                Some(name) => remember(&mut self.named, name.clone(), event.at),
                None => remember(&mut self.unnamed, subject.cgroup_id, event.at),
            }
        }
        if let Some(name) = name
            && let Some(at) = self.unnamed.remove(&subject.cgroup_id)
        {
            remember(&mut self.named, name, at);
        }
    }

    /// The container's last kill.
    pub(super) fn last(&self, subject: &Subject) -> Option<KernelTime> {
        let of_name = name(subject).and_then(|name| self.named.get(&name));
        of_name.or_else(|| self.unnamed.get(&subject.cgroup_id)).copied()
    }
}

fn name(subject: &Subject) -> Option<Name> {
    let facts = subject.facts.as_deref()?;
    Some([facts.pod_namespace.clone()?, facts.pod_name.clone()?, facts.name.clone()?])
}

fn remember<K: Clone + Eq + Hash>(kills: &mut HashMap<K, KernelTime>, key: K, at: KernelTime) {
    let last = kills.entry(key).or_insert(at);
    *last = at.max(*last);
    if kills.len() > MAX
        && let Some(oldest) = kills.iter().min_by_key(|(_, at)| **at).map(|(key, _)| key.clone())
    {
        kills.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_kill_gives_way_and_an_older_one_changes_nothing() {
        let mut kills = HashMap::new();
        (1..=MAX as u64).for_each(|number| remember(&mut kills, number, KernelTime(number)));
        remember(&mut kills, 1, KernelTime(9_999));
        remember(&mut kills, 2, KernelTime(1));
        assert_eq!((kills.len(), kills[&1], kills[&2]), (MAX, KernelTime(9_999), KernelTime(2)));
        remember(&mut kills, 0, KernelTime(10_000));
        assert_eq!(kills.len(), MAX);
        assert!(!kills.contains_key(&2) && kills.contains_key(&0) && kills.contains_key(&1), "the oldest");
    }
}
