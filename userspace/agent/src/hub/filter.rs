//! The node's containers and pods by the names that a [`Filter`] selects them by.

use std::borrow::Cow;
use std::collections::BTreeMap;

use kwitness_api::filter::{Filter, Names};
use kwitness_core::model::{ContainerId, PodNames, Subject, VerdictScope};

/// Whether a container matches that has its labels with it.
pub(crate) fn selects(filter: &Filter, subject: &Subject) -> bool {
    let labels = || subject.facts.as_ref().map(|facts| Cow::Borrowed(&facts.labels)).unwrap_or_default();
    selects_labelled(filter, subject, labels)
}

/// Whether a container matches whose labels are elsewhere.
pub(super) fn selects_labelled<'a>(
    filter: &Filter,
    subject: &Subject,
    labels: impl FnOnce() -> Cow<'a, BTreeMap<String, String>>,
) -> bool {
    let facts = subject.facts.as_deref();
    let names = Names {
        namespace: facts.and_then(|facts| facts.pod_namespace.as_deref()),
        pod: facts.and_then(|facts| facts.pod_name.as_deref()),
        pod_uids: [
            subject.pod.as_ref().map(|pod| &*pod.uid.0),
            facts.and_then(|facts| facts.pod_uid.as_ref()).map(|uid| &*uid.0),
        ],
        id: Some(&subject.container_id.0),
        container: facts.and_then(|facts| facts.name.as_deref()),
    };
    filter.matches(names, labels)
}

/// Whether what concerns a whole pod, or none, matches.
pub(super) fn selects_pod(filter: &Filter, pod: Option<&PodNames>) -> bool {
    let names = pod.map_or_else(Names::default, |pod| Names {
        namespace: pod.namespace.as_deref(),
        pod: pod.name.as_deref(),
        pod_uids: [Some(&pod.pod.uid.0), None],
        ..Names::default()
    });
    filter.matches(names, Cow::default)
}

/// The narrowest scope that has every container that may match.
pub(crate) fn scope_of(filter: &Filter) -> VerdictScope {
    let container = |id: &str| VerdictScope::Container(ContainerId(id.into()));
    filter.only_container().map_or(VerdictScope::All, container)
}

#[cfg(test)]
mod tests {
    use kwitness_api::proto;

    use super::super::testing::{facts, pod, subject};
    use super::*;

    #[test]
    fn a_container_and_its_pod_are_selected_by_what_is_known_of_them() {
        let filter = |pods: &[&str], containers: &[&str]| {
            let list = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
            let filter =
                proto::Filter { pods: list(pods), containers: list(containers), ..Default::default() };
            Filter::try_from(filter).unwrap()
        };
        let (named, unnamed) = (subject(1, Some(facts("prod", "web", "nginx"))), subject(1, None));
        let of_pod = PodNames { namespace: Some("prod".into()), ..pod("uid-1", Some("web")) };
        for (pods, containers, expected) in [
            (&["web"][..], &["nginx"][..], [true, false, false]),
            (&["web"][..], &[][..], [true, false, true]),
            (&["uid-1"][..], &[][..], [true, true, true]),
            (&["db"][..], &[][..], [false, false, false]),
        ] {
            let filter = filter(pods, containers);
            let found =
                [selects(&filter, &named), selects(&filter, &unnamed), selects_pod(&filter, Some(&of_pod))];
            assert_eq!(found, expected, "{filter:?}");
        }
        let labelled = proto::Filter { labels: [("app".into(), "web".into())].into(), ..Default::default() };
        let labelled = Filter::try_from(labelled).unwrap();
        assert!(selects(&labelled, &named) && !selects(&labelled, &unnamed) && !selects_pod(&labelled, None));
    }
}
