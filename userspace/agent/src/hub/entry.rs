//! What the journal keeps of an event, encoded once.

use std::sync::Arc;

use bytes::Bytes;
use kwitness_api::EventKind;
use kwitness_core::model::{CgroupId, Event, KernelTime, Kind, PodNames};

use super::names::Names;
use super::subject::EncodedSubject;
use super::window::Item;

/// An event as the journal keeps it. On the wire, a protobuf message is the same as the same fields in pieces: the position is
/// added when it is sent, the container's piece is shared by all its events.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) at: KernelTime,
    /// The latest time of all events before it. What a scan found, or what only new programs recorded, comes after later events.
    pub(super) latest_before: KernelTime,
    pub(super) kind: EventKind,
    /// `kwitness.v1alpha1.Event` without position and container, encoded.
    pub(super) body: Bytes,
    pub(super) subject: Option<Arc<EncodedSubject>>,
    /// Without a subject: it concerns more than a container, but is no matter of the stream itself.
    pub(super) non_container: Option<NonContainerScope>,
}

impl Item for Entry {
    type Owner = CgroupId;
    type Index = Names;

    fn owner(&self) -> Option<CgroupId> {
        self.subject.as_ref().map(|of| of.subject.cgroup_id)
    }

    fn gives_up(owner: CgroupId, names: &Names) -> Option<u64> {
        names.gives_up(owner)
    }

    /// Itself, its body, and its number in the index.
    fn own_bytes(&self) -> usize {
        size_of::<Self>() + self.body.len() + size_of::<u64>()
    }

    fn enter(&self, seq: u64, names: &mut Names) -> usize {
        let Some(subject) = &self.subject else { return self.own_bytes() };
        names.enter(seq, subject);
        self.own_bytes() + subject.enter()
    }

    fn leave(&self, names: &mut Names) -> usize {
        let Some(subject) = &self.subject else { return self.own_bytes() };
        names.leave(subject);
        self.own_bytes() + subject.leave()
    }

    fn wire_bytes(&self) -> usize {
        self.body.len() + self.subject.as_ref().map_or(0, |subject| subject.bytes.len())
    }
}

impl Entry {
    /// The entry with what is known of its container by now.
    pub(super) fn resolved(mut self, names: &Names) -> Self {
        if let Some(subject) = &mut self.subject
            && let Some(latest) = names.latest(subject)
        {
            *subject = Arc::clone(latest);
        }
        self
    }
}

/// More than a container.
#[derive(Clone, Debug)]
pub(super) struct NonContainerScope {
    /// That pod; none: more than a pod.
    pub(super) pod: Option<PodNames>,
}

impl NonContainerScope {
    pub(super) fn of(event: &Event) -> Option<Self> {
        match &event.kind {
            Kind::LimitChanged(changed) if event.subject.is_none() => Some(Self { pod: changed.pod.clone() }),
            Kind::Verdict(judged) if event.subject.is_none() => Some(Self { pod: judged.pod.clone() }),
            Kind::Pressure(pressure) if event.subject.is_none() => Some(Self { pod: pressure.pod.clone() }),
            _ => None,
        }
    }
}
