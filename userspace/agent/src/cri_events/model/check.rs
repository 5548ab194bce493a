//! The end of every life in the model, and what was sent of each. Never changes what happened before.

use std::collections::BTreeMap;

use bytes::Bytes;
use kwitness_cri::events as wire;
use kwitness_cri::events::ContainerEventType as Type;
use proptest::prelude::*;
use prost::Message as _;

use super::{Kind, World, wall};

/// The id and the state in a status.
fn look(bytes: &Bytes) -> (String, i32) {
    let id = wire::PodSandboxStatusRequest::decode(bytes.clone()).unwrap().pod_sandbox_id;
    (id, wire::ContainerStatus::decode(bytes.clone()).unwrap().state)
}

impl World {
    /// Ends everything, waits until all is sent, and checks it.
    pub(super) fn finish(mut self) -> Result<(), TestCaseError> {
        let sandboxes: Vec<_> = self
            .truth
            .iter()
            .filter(|(_, thing)| thing.kind == Kind::Sandbox)
            .map(|(id, _)| id.clone())
            .collect();
        for sandbox in sandboxes {
            self.run(1000);
            self.remove_pod(&sandbox);
        }
        self.run(40_000);
        self.forget_listed();
        prop_assert!(self.most_pending <= self.ever.len() + 2, "{} requests at once", self.most_pending);

        let mut sent: BTreeMap<&str, Vec<Type>> = BTreeMap::new();
        let mut last: BTreeMap<String, i64> = BTreeMap::new();
        for event in &self.events {
            let (id, kind) = (&event.container_id, event.container_event_type());
            let of_id = sent.entry(id).or_default();
            if !of_id.contains(&kind) {
                of_id.push(kind);
            }
            let (sandbox, sandbox_state) = look(&event.pod_sandbox_status);
            prop_assert!(event.created_at <= wall(self.now));
            if let Some(before) = last.insert(sandbox.clone(), event.created_at) {
                prop_assert!(before < event.created_at, "{before} {event:?}");
            }
            let states: BTreeMap<String, i32> = event.containers_statuses.iter().map(look).collect();
            prop_assert_eq!(states.len(), event.containers_statuses.len(), "one status each");
            let state = if *id == sandbox { Some(sandbox_state) } else { states.get(id).copied() };
            match (kind, *id == sandbox) {
                (Type::ContainerStoppedEvent, true) => prop_assert_eq!(state, Some(1)),
                (Type::ContainerStoppedEvent, false) => prop_assert!(state.is_none_or(|state| state == 2)),
                (Type::ContainerStartedEvent, false) => prop_assert!(state.is_none_or(|state| state > 0)),
                (Type::ContainerStartedEvent, true)
                | (Type::ContainerCreatedEvent | Type::ContainerDeletedEvent, _) => {}
            }
        }
        let slack = 3000 + self.away + 2 * (self.lag + self.latency);
        for (id, life) in &self.ever {
            let sent = sent.remove(&*id.0).unwrap_or_default();
            let whole: &[Type] = if life.ran {
                &[
                    Type::ContainerCreatedEvent,
                    Type::ContainerStartedEvent,
                    Type::ContainerStoppedEvent,
                    Type::ContainerDeletedEvent,
                ]
            } else {
                &[Type::ContainerCreatedEvent, Type::ContainerDeletedEvent]
            };
            // One that the runtime never gave a status of may go unreported: there is no status to send.
            let long = life.removed.is_some_and(|removed| removed - life.made > slack);
            let is_unseen = sent.is_empty() && !life.read && !long;
            // Without a status of the sandbox, no event can be made either.
            let has_no_sandbox = life.was_only_listed && self.ever[&life.sandbox].was_only_listed;
            let has_no_end = (life.removed_unseen || has_no_sandbox) && whole.starts_with(&sent);
            let has_no_beginning = life.was_only_listed && whole.ends_with(&sent);
            prop_assert!(
                sent == whole || is_unseen || has_no_end || has_no_beginning,
                "{id:?} {life:?}: {sent:?}"
            );
        }
        prop_assert!(sent.is_empty(), "reported what never was: {sent:?}");
        Ok(())
    }
}
