//! Which events a watcher wants: `kwitness.v1alpha1.Filter`, checked once and quick to match. Never decides which events
//! come late, that is [`super::watcher`]'s.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use kwitness_core::model::{PodNames, Subject};
use thiserror::Error;

use kwitness_api::{EventKind, proto};

/// The most values in one list of a filter. A client that wants more subscribes to everything and filters itself.
const VALUES_MAX: usize = 256;
/// The most bytes in one value: the longest name that Kubernetes allows (a DNS subdomain).
const VALUE_BYTES_MAX: usize = 253;
/// The most bytes in the name of a label: an optional DNS subdomain, a slash, and 63 more.
const LABEL_NAME_BYTES_MAX: usize = 317;
/// The shortest prefix that identifies a container ID.
const ID_PREFIX_MIN: usize = 4;

/// What a watcher wants. An empty condition matches everything.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pods: HashSet<String>,
    namespaces: HashSet<String>,
    containers: HashSet<String>,
    /// The lengths of those `containers` that may be prefixes of IDs.
    prefixes: Vec<usize>,
    labels: BTreeMap<String, String>,
    kinds: HashSet<EventKind>,
}

/// Why a filter is refused. The message names the field.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum InvalidFilter {
    /// The list is too long.
    #[error("`filter.{field}` has {count} values; the maximum is {VALUES_MAX}")]
    TooMany {
        /// The list.
        field: &'static str,
        /// Its length.
        count: usize,
    },
    /// A value is too long.
    #[error("`filter.{field}` has a value of {bytes} bytes; the maximum is {max}")]
    TooLong {
        /// The list.
        field: &'static str,
        /// The length of the value.
        bytes: usize,
        /// The most that is allowed.
        max: usize,
    },
    /// A kind is not known.
    #[error("`filter.kinds`: {0}")]
    Kind(#[from] kwitness_api::UnknownKind),
}

impl Filter {
    /// Matches these kinds, of all containers.
    pub fn of_kinds(kinds: impl IntoIterator<Item = EventKind>) -> Self {
        Self { kinds: kinds.into_iter().collect(), ..Self::default() }
    }

    /// Whether a container matches. `labels` gives the labels of the container, and is called only if the filter has some.
    pub fn matches(&self, subject: &Subject, labels: impl FnOnce() -> BTreeMap<String, String>) -> bool {
        let facts = subject.facts.as_deref();
        let is =
            |wanted: &HashSet<String>, value: Option<&str>| value.is_some_and(|value| wanted.contains(value));
        (self.namespaces.is_empty()
            || is(&self.namespaces, facts.and_then(|facts| facts.pod_namespace.as_deref())))
            && (self.pods.is_empty()
                || is(&self.pods, subject.pod.as_ref().map(|pod| &*pod.uid.0))
                || is(&self.pods, facts.and_then(|facts| facts.pod_name.as_deref()))
                || is(&self.pods, facts.and_then(|facts| facts.pod_uid.as_ref()).map(|uid| &*uid.0)))
            && (self.containers.is_empty()
                || is(&self.containers, Some(&*subject.container_id.0))
                || is(&self.containers, facts.and_then(|facts| facts.name.as_deref()))
                || self
                    .prefixes
                    .iter()
                    .any(|length| is(&self.containers, subject.container_id.0.get(..*length))))
            && (self.labels.is_empty() || {
                let labels = labels();
                self.labels.iter().all(|(name, value)| labels.get(name) == Some(value))
            })
    }

    /// Whether a container matches that has its labels with it.
    pub fn wants_container(&self, subject: &Subject) -> bool {
        self.matches(subject, || subject.facts.as_ref().map(|facts| facts.labels.clone()).unwrap_or_default())
    }

    /// Whether what concerns a whole pod, or none, matches.
    pub fn wants_pod(&self, pod: Option<&PodNames>) -> bool {
        let Some(pod) = pod else { return !self.asks_for_names() };
        let is = |wanted: &HashSet<String>, value: &Option<Arc<str>>| {
            value.as_deref().is_some_and(|value| wanted.contains(value))
        };
        self.containers.is_empty()
            && self.labels.is_empty()
            && (self.namespaces.is_empty() || is(&self.namespaces, &pod.namespace))
            && (self.pods.is_empty() || self.pods.contains(&*pod.pod.uid.0) || is(&self.pods, &pod.name))
    }

    /// Whether a kind matches.
    pub fn wants_kind(&self, kind: EventKind) -> bool {
        self.kinds.is_empty() || self.kinds.contains(&kind)
    }

    /// Whether it selects single containers.
    pub fn asks_for_containers(&self) -> bool {
        !(self.containers.is_empty() && self.labels.is_empty())
    }

    /// Whether it needs something that only the runtime reports, some time after a container's first events.
    pub fn asks_for_names(&self) -> bool {
        !(self.pods.is_empty() && self.namespaces.is_empty()) || self.asks_for_containers()
    }
}

impl TryFrom<proto::Filter> for Filter {
    type Error = InvalidFilter;

    fn try_from(filter: proto::Filter) -> Result<Self, InvalidFilter> {
        let proto::Filter { pods, namespaces, containers, kinds, labels } = filter;
        count("kinds", kinds.len())?;
        count("labels", labels.len())?;
        for (name, value) in &labels {
            length("labels", name, LABEL_NAME_BYTES_MAX)?;
            length("labels", value, VALUE_BYTES_MAX)?;
        }
        let containers = checked("containers", containers)?;
        let mut prefixes: Vec<_> =
            containers.iter().map(String::len).filter(|length| *length >= ID_PREFIX_MIN).collect();
        prefixes.sort_unstable();
        prefixes.dedup();
        Ok(Self {
            pods: checked("pods", pods)?,
            namespaces: checked("namespaces", namespaces)?,
            containers,
            prefixes,
            labels,
            kinds: kinds.into_iter().map(EventKind::try_from).collect::<Result<_, _>>()?,
        })
    }
}

fn checked(field: &'static str, values: Vec<String>) -> Result<HashSet<String>, InvalidFilter> {
    count(field, values.len())?;
    for value in &values {
        length(field, value, VALUE_BYTES_MAX)?;
    }
    Ok(values.into_iter().collect())
}

fn count(field: &'static str, count: usize) -> Result<(), InvalidFilter> {
    if count > VALUES_MAX { Err(InvalidFilter::TooMany { field, count }) } else { Ok(()) }
}

fn length(field: &'static str, value: &str, max: usize) -> Result<(), InvalidFilter> {
    let bytes = value.len();
    if bytes > max { Err(InvalidFilter::TooLong { field, bytes, max }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{facts, pod, subject};
    use super::*;

    fn filter(pods: &[&str], namespaces: &[&str], containers: &[&str]) -> Filter {
        let list = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        proto::Filter {
            pods: list(pods),
            namespaces: list(namespaces),
            containers: list(containers),
            ..Default::default()
        }
        .try_into()
        .unwrap()
    }

    #[test]
    fn conditions_are_anded_and_values_ored() {
        let web = subject(1, Some(facts("prod", "web", "nginx")));
        let wants = |pods: &[&str], namespaces: &[&str], containers: &[&str]| {
            filter(pods, namespaces, containers).wants_container(&web)
        };
        assert!(wants(&[], &[], &[]));
        assert!(wants(&["db", "web"], &["prod"], &["nginx"]));
        assert!(wants(&["uid-1"], &[], &[]), "a pod's UID");
        assert!(wants(&[], &[], &["another", "0001"]), "an ID prefix");
        assert!(!wants(&[], &[], &["000"]), "too short for a prefix");
        assert!(!wants(&["web"], &["dev"], &[]));
        assert!(!wants(&["web"], &["prod"], &["sidecar"]));
        let unknown = subject(1, None);
        assert!(filter(&["uid-1"], &[], &[]).wants_container(&unknown));
        assert!(!filter(&["web"], &[], &[]).wants_container(&unknown));
    }

    #[test]
    fn labels_must_all_match() {
        let web = subject(1, Some(facts("prod", "web", "nginx")));
        let wants = |labels: &[(&str, &str)]| {
            let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            let filter = proto::Filter { labels: labels.collect(), ..Default::default() };
            Filter::try_from(filter).unwrap().wants_container(&web)
        };
        assert!(wants(&[("app", "web")]));
        assert!(!wants(&[("app", "db")]));
        assert!(!wants(&[("app", "web"), ("tier", "front")]));
    }

    #[test]
    fn an_event_of_a_pod_matches_a_filter_for_the_pod() {
        let pod = PodNames { namespace: Some("prod".into()), ..pod("uid-1", Some("web")) };
        let wants = |pods: &[&str], namespaces: &[&str], containers: &[&str]| {
            filter(pods, namespaces, containers).wants_pod(Some(&pod))
        };
        assert!(wants(&[], &[], &[]) && wants(&["web"], &[], &[]) && wants(&["uid-1"], &["prod"], &[]));
        assert!(!wants(&["db"], &[], &[]) && !wants(&["web"], &["dev"], &[]));
        assert!(!wants(&["web"], &[], &["nginx"]), "it concerns no single container");
        assert!(filter(&[], &[], &[]).wants_pod(None));
        assert!(!filter(&["web"], &[], &[]).wants_pod(None));
    }

    #[test]
    fn an_invalid_filter_is_refused_and_the_field_named() {
        let refused = |filter: proto::Filter| Filter::try_from(filter).unwrap_err().to_string();
        let text = refused(proto::Filter { kinds: vec![0], ..Default::default() });
        assert!(text.contains("filter.kinds"), "{text}");
        let many = || (0..=VALUES_MAX).map(|number| number.to_string()).collect::<Vec<_>>();
        for (field, filter) in [
            ("pods", proto::Filter { pods: many(), ..Default::default() }),
            ("namespaces", proto::Filter { namespaces: many(), ..Default::default() }),
            ("containers", proto::Filter { containers: many(), ..Default::default() }),
            (
                "kinds",
                proto::Filter { kinds: vec![EventKind::Exec.into(); VALUES_MAX + 1], ..Default::default() },
            ),
            (
                "labels",
                proto::Filter {
                    labels: many().into_iter().map(|name| (name, String::new())).collect(),
                    ..Default::default()
                },
            ),
            ("pods", proto::Filter { pods: vec!["x".repeat(VALUE_BYTES_MAX + 1)], ..Default::default() }),
        ] {
            let text = refused(filter);
            assert!(text.starts_with(&format!("`filter.{field}` has")), "{text}");
        }
        let full = proto::Filter { pods: many().split_off(1), ..Default::default() };
        assert!(Filter::try_from(full).is_ok());
        let some = Filter::of_kinds([EventKind::Created, EventKind::Updated]);
        assert!(some.wants_kind(EventKind::Created) && !some.wants_kind(EventKind::Started));
    }
}
