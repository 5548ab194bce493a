//! What the runtime reports about a container, compared with what was known.

use crate::model::{RuntimeFacts, Subject};

/// The fields that change when a subject's facts become these, in the API's JSON spelling.
pub(super) fn changed_fields(subject: &Subject, new: &RuntimeFacts) -> Vec<String> {
    let old = subject.facts.as_deref();
    // The pod's UID is the path's, where there is one: the runtime's is the same, or a mirror's.
    let uid_matters = subject.pod.is_none();
    let no_labels = new.labels.is_empty();
    // So is the runtime, where the name of the cgroup has it.
    let runtime_matters = subject.runtime.is_none();
    [
        ("runtime", runtime_matters && old.and_then(|old| old.runtime) != new.runtime),
        ("name", old.and_then(|old| old.name.as_ref()) != new.name.as_ref()),
        ("image", old.and_then(|old| old.image.as_ref()) != new.image.as_ref()),
        ("labels", old.map_or(!no_labels, |old| old.labels != new.labels)),
        ("type", old.map(|old| old.container_type) != Some(new.container_type)),
        ("pod.uid", uid_matters && old.and_then(|old| old.pod_uid.as_ref()) != new.pod_uid.as_ref()),
        ("pod.name", old.and_then(|old| old.pod_name.as_ref()) != new.pod_name.as_ref()),
        ("pod.namespace", old.and_then(|old| old.pod_namespace.as_ref()) != new.pod_namespace.as_ref()),
    ]
    .into_iter()
    .filter(|(_, changed)| *changed)
    .map(|(field, _)| field.to_owned())
    .collect()
}
