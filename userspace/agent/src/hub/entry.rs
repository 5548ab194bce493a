//! What the journal keeps of an event: encoded once, and with as much of its container as a filter asks for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use bytes::Bytes;
use kwitness_api::{EventKind, proto};
use kwitness_core::model::{Event, KernelTime, Kind, PodNames, RuntimeFacts, Subject};
use prost::Message as _;

use super::Filter;
use super::names::Names;
use super::window::Item;
use crate::wire::convert;

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
    type Index = Names;

    fn enter(&self, seq: u64, names: &mut Names) -> usize {
        let Some(subject) = &self.subject else { return self.own_bytes() };
        names.enter(seq, subject);
        // Counted under the window's lock alone.
        let is_first = subject.entries.fetch_add(1, Relaxed) == 0;
        self.own_bytes() + if is_first { subject.held_bytes() } else { 0 }
    }

    fn leave(&self, names: &mut Names) -> usize {
        let Some(subject) = &self.subject else { return self.own_bytes() };
        names.leave(subject);
        let is_last = subject.entries.fetch_sub(1, Relaxed) == 1;
        self.own_bytes() + if is_last { subject.held_bytes() } else { 0 }
    }

    fn wire_bytes(&self) -> usize {
        self.body.len() + self.subject.as_ref().map_or(0, |subject| subject.bytes.len())
    }
}

impl Entry {
    /// What the window holds for this entry alone: itself, its body, and its number in the index.
    fn own_bytes(&self) -> usize {
        size_of::<Self>() + self.body.len() + size_of::<u64>()
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

/// A container as one version of it is known, shared by its events.
#[derive(Debug)]
pub(super) struct EncodedSubject {
    /// Without labels, which are in `bytes` alone: they may be large.
    pub(super) subject: Arc<Subject>,
    /// `kwitness.v1alpha1.Event` with nothing but the container, encoded.
    pub(super) bytes: Box<[u8]>,
    /// How many entries in the window have it.
    entries: AtomicUsize,
}

impl EncodedSubject {
    pub(super) fn new(subject: &Arc<Subject>) -> Self {
        let container = Some(convert::container(subject));
        let bytes = proto::Event { container, ..Default::default() }.encode_to_vec().into();
        Self { subject: without_labels(subject), bytes, entries: AtomicUsize::new(0) }
    }

    pub(super) fn labels(&self) -> BTreeMap<String, String> {
        let event = proto::Event::decode(&*self.bytes).unwrap_or_default();
        event.container.map(|container| container.labels).unwrap_or_default()
    }

    pub(super) fn matches(&self, filter: &Filter) -> bool {
        filter.matches(&self.subject, || self.labels())
    }

    /// The encoded bytes, and the two structures; the texts in them are mostly shared with the engine's.
    fn held_bytes(&self) -> usize {
        size_of::<Self>() + size_of::<Subject>() + size_of::<RuntimeFacts>() + self.bytes.len()
    }
}

fn without_labels(subject: &Arc<Subject>) -> Arc<Subject> {
    let Some(facts) = subject.facts.as_ref().filter(|facts| !facts.labels.is_empty()) else {
        return subject.clone();
    };
    let facts = RuntimeFacts {
        runtime: facts.runtime,
        created_at: facts.created_at,
        container_type: facts.container_type,
        name: facts.name.clone(),
        pod_name: facts.pod_name.clone(),
        pod_namespace: facts.pod_namespace.clone(),
        pod_uid: facts.pod_uid.clone(),
        image: facts.image.clone(),
        labels: BTreeMap::new(),
    };
    let slim = Subject { facts: None, ..(**subject).clone() };
    Arc::new(Subject { facts: Some(Arc::new(facts)), ..slim })
}
