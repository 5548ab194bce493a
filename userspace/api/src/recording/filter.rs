//! [`proto::Filter`] on recorded events and containers. Owns the client's copy of the rule that the protobuf file states.

use std::collections::BTreeMap;

use crate::{EventKind, proto};

/// The shortest beginning of a container ID that counts.
const ID_PREFIX_MIN: usize = 4;

/// Whether a container matches.
pub(super) fn wants_container(filter: &proto::Filter, container: &proto::Container) -> bool {
    let is_container = |wanted: &String| {
        container.name() == wanted
            || container.id == *wanted
            || (wanted.len() >= ID_PREFIX_MIN && container.id.starts_with(wanted))
    };
    wants_names(filter, container.pod.as_ref())
        && (filter.containers.is_empty() || filter.containers.iter().any(is_container))
        && has_labels(&filter.labels, &container.labels)
}

/// Whether an event matches.
pub(super) fn wants_event(filter: &proto::Filter, event: &proto::Event) -> bool {
    let kind = EventKind::of(event);
    let is_of_node = kind.is_some_and(EventKind::is_of_node);
    let wants_kind = filter.kinds.is_empty() || kind.is_some_and(|kind| filter.kinds.contains(&kind.into()));
    (is_of_node || wants_kind)
        && match &event.container {
            Some(container) => wants_container(filter, container),
            None if is_of_node => true,
            None => {
                filter.containers.is_empty() && filter.labels.is_empty() && wants_names(filter, pod_of(event))
            }
        }
}

/// The pod that an event without a container is about.
fn pod_of(event: &proto::Event) -> Option<&proto::Pod> {
    let cgroup = match event.kind.as_ref()? {
        proto::event::Kind::LimitChanged(changed) => changed.cgroup.as_ref(),
        proto::event::Kind::Verdict(verdict) => verdict.cgroup.as_ref(),
        proto::event::Kind::Pressure(pressure) => pressure.cgroup.as_ref(),
        _ => None,
    };
    cgroup?.pod.as_ref()
}

fn wants_names(filter: &proto::Filter, pod: Option<&proto::Pod>) -> bool {
    let namespace = pod.and_then(|pod| pod.namespace.as_deref());
    let is_pod = |wanted: &String| {
        pod.is_some_and(|pod| pod.uid == *wanted || pod.name.as_deref() == Some(wanted.as_str()))
    };
    (filter.namespaces.is_empty() || filter.namespaces.iter().any(|wanted| namespace == Some(wanted)))
        && (filter.pods.is_empty() || filter.pods.iter().any(is_pod))
}

fn has_labels(wanted: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(name, value)| labels.get(name) == Some(value))
}
