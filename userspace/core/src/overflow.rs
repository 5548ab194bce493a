//! What does not fit into a bound: counted by container, and reported as gaps once a tick.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::{Basis, CgroupId, Event, Gap, GapCause, KernelTime, Kind, Output, Subject};

/// Containers that are distinguished between two reports; what is lost of others is reported without a name.
const OWNERS: usize = 64;

/// What did not fit since the last report.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Overflow {
    #[serde(with = "crate::pairs")]
    by_owner: BTreeMap<Option<CgroupId>, Lost>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Lost {
    owner: Option<Arc<Subject>>,
    #[serde(with = "crate::pairs")]
    by_kind: BTreeMap<Cow<'static, str>, u64>,
    from: KernelTime,
}

impl Overflow {
    pub(crate) fn note(&mut self, kind: &'static str, owner: Option<Arc<Subject>>, at: KernelTime) {
        self.note_many(kind, 1, owner, at);
    }

    pub(crate) fn note_many(
        &mut self,
        kind: &'static str,
        count: u64,
        owner: Option<Arc<Subject>>,
        at: KernelTime,
    ) {
        if count == 0 {
            return;
        }
        let id = owner.as_ref().map(|owner| owner.cgroup_id);
        let is_distinguished = self.by_owner.len() < OWNERS || self.by_owner.contains_key(&id);
        let (id, owner) = if is_distinguished { (id, owner) } else { (None, None) };
        let lost =
            self.by_owner.entry(id).or_insert_with(|| Lost { owner, by_kind: BTreeMap::new(), from: at });
        *lost.by_kind.entry(kind.into()).or_default() += count;
    }

    /// Reports all of it.
    pub(crate) fn report(&mut self, to: KernelTime, output: &mut Output) {
        for (_, Lost { owner, by_kind, from }) in std::mem::take(&mut self.by_owner) {
            let lost = by_kind.into_iter().map(|(kind, count)| (kind.into_owned(), count)).collect();
            let (cause, capabilities) = (GapCause::CapacityExceeded, Vec::new());
            let kind = Kind::Gap(Gap { cause, lost, capabilities, from, to, path: None });
            output.events.push(Event { at: to, basis: Basis::Daemon, subject: owner, kind });
        }
    }
}
