//! What a `Verify` call that waits is about. Its first look finds that by the filter, among all containers of the node; later looks
//! list no others, and are not made for changes of others.
//!
//! A container that starts in one of the pods is found by the next look. So is another pod of the same name, once nothing of the first
//! one is left. Any other pod that the filter lets pass is found by the look that every call ends with.

use std::collections::BTreeSet;

use kwitness_core::model::{ContainerId, PodUid, VerdictScope};

use super::{App, pod_uid};
use crate::hub::{Filter, scope_of};

/// With more scopes, one list of all containers is less work than so many questions.
const SCOPES_MAX: usize = 8;

/// The containers that pass a filter, and where to look for them.
#[derive(Debug)]
pub(super) struct Selection {
    scopes: BTreeSet<VerdictScope>,
    extent: Extent,
    containers: BTreeSet<ContainerId>,
    pods: BTreeSet<PodUid>,
}

/// What a filter may let pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    Everything,
    /// One container, named by its whole ID.
    One,
    Some,
}

impl Selection {
    /// By the filter alone: it may be anywhere.
    pub(super) fn of(filter: &Filter) -> Self {
        let scope = scope_of(filter);
        let extent = match &scope {
            VerdictScope::Container(_) => Extent::One,
            _ if filter.asks_for_names() => Extent::Some,
            _ => Extent::Everything,
        };
        Self { scopes: [scope].into(), extent, containers: BTreeSet::new(), pods: BTreeSet::new() }
    }

    /// What has all of it.
    pub(super) fn scopes(&self) -> impl Iterator<Item = VerdictScope> {
        self.scopes.iter().cloned()
    }

    /// Whether less than what the filter may let pass is looked at.
    pub(super) fn is_narrowed(&self) -> bool {
        self.extent == Extent::Some && !self.scopes.contains(&VerdictScope::All)
    }

    /// Whether changes of what came after the last look are no concern of it.
    pub(super) fn misses_new(&self) -> bool {
        self.extent == Extent::Some
    }

    /// It is these containers, and what else is in their pods.
    pub(super) fn narrow(&mut self, apps: &[App]) {
        if self.extent == Extent::Everything {
            return;
        }
        let subjects = || apps.iter().map(|(subject, _)| subject);
        self.containers = subjects().map(|subject| subject.container_id.clone()).collect();
        self.pods = subjects().filter_map(|subject| pod_uid(subject)).cloned().collect();
        if self.extent == Extent::One {
            return;
        }
        let scopes: BTreeSet<_> = subjects()
            .map(|subject| match &subject.pod {
                Some(pod) => VerdictScope::Pod(pod.uid.clone()),
                None => VerdictScope::Container(subject.container_id.clone()),
            })
            .collect();
        if (1..=SCOPES_MAX).contains(&scopes.len()) {
            self.scopes = scopes;
        }
    }

    /// What is to be looked at after these changes.
    pub(super) fn concerned(&self, changed: BTreeSet<VerdictScope>) -> BTreeSet<VerdictScope> {
        if self.extent == Extent::Everything {
            return changed;
        }
        let concerns = |of: &VerdictScope| match of {
            VerdictScope::Container(id) => self.containers.contains(id),
            // A level above its own bounds it, too.
            VerdictScope::Pod(uid) => self.pods.contains(uid),
            VerdictScope::All => true,
        };
        let concerned: BTreeSet<_> = changed.into_iter().filter(concerns).collect();
        let is_whole = self.extent == Extent::One || concerned.contains(&VerdictScope::All);
        if is_whole && !concerned.is_empty() { self.scopes.clone() } else { concerned }
    }
}
