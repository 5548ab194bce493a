//! Which events a watcher wants: `kwitness.v1alpha1.Filter`, checked and made quick to ask. Never which it gets late,
//! that is [`super::watcher`]'s.

use std::sync::Arc;

use kwitness_core::model::{Kind, PodNames, Subject};

use kwitness_api::proto;

/// The kinds of event, in the API's JSON spelling, in the order of [`KindId`]'s numbers.
pub const KINDS: [&str; 12] = [
    "created",
    "started",
    "exec",
    "exited",
    "stopped",
    "deleted",
    "updated",
    "gap",
    "resynced",
    "limitChanged",
    "verdict",
    "oomKill",
];

/// A kind of event without its contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KindId(u8);

impl KindId {
    /// `updated`.
    pub const UPDATED: Self = Self(6);
    /// `created`.
    pub const CREATED: Self = Self(0);
    /// `started`.
    pub const STARTED: Self = Self(1);
    /// `stopped`.
    pub const STOPPED: Self = Self(4);
    /// `deleted`.
    pub const DELETED: Self = Self(5);
    /// `gap`.
    pub const GAP: Self = Self(7);

    /// The kind's name, as in [`KINDS`].
    pub fn name(self) -> &'static str {
        KINDS[usize::from(self.0)]
    }
}

impl From<&Kind> for KindId {
    fn from(kind: &Kind) -> Self {
        Self(match kind {
            Kind::Created { .. } => 0,
            Kind::Started { .. } => 1,
            Kind::Exec { .. } => 2,
            Kind::Exited { .. } => 3,
            Kind::Stopped { .. } => 4,
            Kind::Deleted { .. } => 5,
            Kind::Updated { .. } => 6,
            Kind::Gap(_) => 7,
            Kind::Resynced { .. } => 8,
            Kind::LimitChanged(_) => 9,
            Kind::Verdict(_) => 10,
            Kind::OomKill(_) => 11,
        })
    }
}

/// What a watcher wants.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pods: Vec<String>,
    namespaces: Vec<String>,
    containers: Vec<String>,
    /// A bit a kind; all clear: every kind.
    kinds: u16,
}

/// An id is recognised by so many of its first characters.
const ID_PREFIX_MIN: usize = 4;

impl Filter {
    /// Whether a container is wanted.
    pub fn wants_container(&self, subject: &Subject) -> bool {
        let facts = subject.facts.as_deref();
        let passes = |wanted: &[String], has: &dyn Fn(&str) -> bool| {
            wanted.is_empty() || wanted.iter().any(|wanted| has(wanted))
        };
        let is = |value: Option<&str>, wanted: &str| value == Some(wanted);
        passes(&self.namespaces, &|wanted| is(facts.and_then(|facts| facts.pod_namespace.as_deref()), wanted))
            && passes(&self.pods, &|wanted| {
                is(subject.pod.as_ref().map(|pod| &*pod.uid.0), wanted)
                    || is(facts.and_then(|facts| facts.pod_name.as_deref()), wanted)
                    || is(facts.and_then(|facts| facts.pod_uid.as_ref()).map(|uid| &*uid.0), wanted)
            })
            && passes(&self.containers, &|wanted| {
                let id = &*subject.container_id.0;
                id == wanted
                    || (wanted.len() >= ID_PREFIX_MIN && id.starts_with(wanted))
                    || is(facts.and_then(|facts| facts.name.as_deref()), wanted)
            })
    }

    /// Whether what concerns a whole pod, or none, is wanted.
    pub fn wants_pod(&self, pod: Option<&PodNames>) -> bool {
        let Self { pods, namespaces, containers, kinds: _ } = self;
        let Some(pod) = pod else { return !self.asks_for_names() };
        let is = |value: &Option<Arc<str>>, wanted: &String| value.as_deref() == Some(wanted);
        containers.is_empty()
            && (namespaces.is_empty() || namespaces.iter().any(|wanted| is(&pod.namespace, wanted)))
            && (pods.is_empty()
                || pods.iter().any(|wanted| *pod.pod.uid.0 == **wanted || is(&pod.name, wanted)))
    }

    /// Whether a kind is wanted.
    pub fn wants_kind(&self, kind: KindId) -> bool {
        self.kinds == 0 || self.kinds & (1 << kind.0) != 0
    }

    /// Whether it asks for certain containers.
    pub fn asks_for_containers(&self) -> bool {
        !self.containers.is_empty()
    }

    /// Whether it asks for something that only the runtime can tell, some time after a container's first events.
    pub fn asks_for_names(&self) -> bool {
        !(self.pods.is_empty() && self.namespaces.is_empty() && self.containers.is_empty())
    }
}

impl TryFrom<proto::Filter> for Filter {
    type Error = String;

    fn try_from(filter: proto::Filter) -> Result<Self, String> {
        let proto::Filter { pods, namespaces, containers, kinds } = filter;
        let mut bits = 0;
        for kind in &kinds {
            let Some(index) = KINDS.iter().position(|name| name == kind) else {
                return Err(format!("no kind of event is called \"{kind}\": there are {}", KINDS.join(", ")));
            };
            bits |= 1 << index;
        }
        Ok(Self { pods, namespaces, containers, kinds: bits })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{facts, pod, subject};
    use super::*;

    fn filter(pods: &[&str], namespaces: &[&str], containers: &[&str], kinds: &[&str]) -> Filter {
        let list = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        proto::Filter {
            pods: list(pods),
            namespaces: list(namespaces),
            containers: list(containers),
            kinds: list(kinds),
        }
        .try_into()
        .unwrap()
    }

    #[test]
    fn conditions_are_anded_and_values_ored() {
        let web = subject(1, Some(facts("prod", "web", "nginx")));
        let wants = |pods: &[&str], namespaces: &[&str], containers: &[&str]| {
            filter(pods, namespaces, containers, &[]).wants_container(&web)
        };
        assert!(wants(&[], &[], &[]));
        assert!(wants(&["db", "web"], &["prod"], &["nginx"]));
        assert!(wants(&["uid-1"], &[], &[]), "a pod's UID");
        assert!(wants(&[], &[], &["0001"]), "the beginning of an id");
        assert!(!wants(&[], &[], &["000"]), "too short for one");
        assert!(!wants(&["web"], &["dev"], &[]));
        assert!(!wants(&["web"], &["prod"], &["sidecar"]));
        let unknown = subject(1, None);
        assert!(filter(&["uid-1"], &[], &[], &[]).wants_container(&unknown));
        assert!(!filter(&["web"], &[], &[], &[]).wants_container(&unknown));
    }

    #[test]
    fn what_concerns_a_pod_is_for_those_who_ask_for_it_or_for_all() {
        let pod = PodNames { namespace: Some("prod".into()), ..pod("uid-1", Some("web")) };
        let wants = |pods: &[&str], namespaces: &[&str], containers: &[&str]| {
            filter(pods, namespaces, containers, &[]).wants_pod(Some(&pod))
        };
        assert!(wants(&[], &[], &[]) && wants(&["web"], &[], &[]) && wants(&["uid-1"], &["prod"], &[]));
        assert!(!wants(&["db"], &[], &[]) && !wants(&["web"], &["dev"], &[]));
        assert!(!wants(&["web"], &[], &["nginx"]), "a container was asked for");
        assert!(filter(&[], &[], &[], &[]).wants_pod(None));
        assert!(!filter(&["web"], &[], &[], &[]).wants_pod(None));
    }

    #[test]
    fn an_unknown_kind_is_refused() {
        let error = Filter::try_from(proto::Filter { kinds: vec!["start".into()], ..Default::default() })
            .unwrap_err();
        assert!(error.contains("\"start\"") && error.contains("started"), "{error}");
        let some = filter(&[], &[], &[], &["created", "updated"]);
        assert!(some.wants_kind(KindId::CREATED) && some.wants_kind(KindId::UPDATED));
        assert!(!some.wants_kind(KindId(1)));
    }
}
