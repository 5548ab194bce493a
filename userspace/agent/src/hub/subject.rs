//! The container of an event as the journal keeps it: encoded once, and with as much of it as a filter asks for.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use kwitness_api::proto;
use kwitness_core::model::{RuntimeFacts, Subject};
use prost::Message as _;

use super::Filter;
use super::filter::selects_labelled;
use crate::wire::convert;

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

    /// As another one was written: its subject, and its bytes.
    pub(super) fn restored(subject: Arc<Subject>, bytes: &[u8]) -> Self {
        Self { subject, bytes: bytes.into(), entries: AtomicUsize::new(0) }
    }

    /// As a message of its own.
    pub(super) fn container(&self) -> Option<proto::Container> {
        proto::Event::decode(&*self.bytes).unwrap_or_default().container
    }

    pub(super) fn labels(&self) -> BTreeMap<String, String> {
        self.container().map(|container| container.labels).unwrap_or_default()
    }

    pub(super) fn matches(&self, filter: &Filter) -> bool {
        selects_labelled(filter, &self.subject, || Cow::Owned(self.labels()))
    }

    /// Whether it would match as it was before the runtime had named it.
    pub(super) fn matches_unnamed(&self, filter: &Filter) -> bool {
        let unnamed = Subject { facts: None, ..(*self.subject).clone() };
        selects_labelled(filter, &unnamed, Cow::default)
    }

    /// One more entry has it; the bytes that the window holds for it from now on. Under the window's lock alone.
    pub(super) fn enter(&self) -> usize {
        if self.entries.fetch_add(1, Relaxed) == 0 { self.held_bytes() } else { 0 }
    }

    /// One entry fewer has it; the bytes that the window no longer holds for it. Under the window's lock alone.
    pub(super) fn leave(&self) -> usize {
        if self.entries.fetch_sub(1, Relaxed) == 1 { self.held_bytes() } else { 0 }
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
