//! [`Filter`] on recorded events and containers.

use std::borrow::Cow;

use crate::filter::{Filter, Names};
use crate::{EventKind, proto};

/// Whether a container matches.
pub(super) fn wants_container(filter: &Filter, container: &proto::Container) -> bool {
    let names = Names {
        id: Some(&container.id),
        container: container.name.as_deref(),
        ..names_of(container.pod.as_ref())
    };
    filter.matches(names, || Cow::Borrowed(&container.labels))
}

/// Whether what concerns a whole pod, or none, matches.
pub(super) fn wants_pod(filter: &Filter, pod: Option<&proto::Pod>) -> bool {
    filter.matches(names_of(pod), Cow::default)
}

/// Whether an event matches.
pub(super) fn wants_event(filter: &Filter, event: &proto::Event) -> bool {
    let kind = EventKind::of(event);
    let is_of_node = kind.is_some_and(EventKind::is_of_node);
    (is_of_node || filter.wants_kind(kind))
        && match &event.container {
            Some(container) => wants_container(filter, container),
            None => is_of_node || wants_pod(filter, pod_of(event)),
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

fn names_of(pod: Option<&proto::Pod>) -> Names<'_> {
    Names {
        namespace: pod.and_then(|pod| pod.namespace.as_deref()),
        pod: pod.and_then(|pod| pod.name.as_deref()),
        pod_uids: [pod.map(|pod| pod.uid.as_str()), None],
        ..Names::default()
    }
}
