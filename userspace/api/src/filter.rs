//! Which containers and events are selected: `kwitness.v1alpha1.Filter`, quick to match. The daemon and recordings select by this
//! one rule. Never decides when an event is delivered.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};

use crate::{EventKind, UnknownKind, proto};

/// The most values in one list of a filter. A client that wants more subscribes to everything and filters itself.
const VALUES_MAX: usize = 256;
/// The most bytes in one value: the longest name that Kubernetes allows (a DNS subdomain).
const VALUE_BYTES_MAX: usize = 253;
/// The most bytes in the name of a label: an optional DNS subdomain, a slash, and 63 more.
const LABEL_NAME_BYTES_MAX: usize = 317;
/// The bytes in a whole container ID; the name of a container (a DNS label) has one less at most.
const ID_BYTES: usize = 64;
/// The shortest prefix that identifies a container ID.
pub const ID_PREFIX_MIN: usize = 4;

/// What is selected. An empty condition matches everything.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pods: HashSet<String>,
    namespaces: HashSet<String>,
    containers: HashSet<String>,
    /// The lengths of those `containers` that may be prefixes of IDs.
    prefixes: Vec<usize>,
    labels: BTreeMap<String, String>,
    /// By their numbers: a newer client may know more of them.
    kinds: HashSet<i32>,
}

/// What a container is selected by; or a whole pod, which has no ID and no name of a container.
#[derive(Clone, Copy, Debug, Default)]
pub struct Names<'a> {
    /// The pod's namespace.
    pub namespace: Option<&'a str>,
    /// The pod's name.
    pub pod: Option<&'a str>,
    /// The pod's UID, by its cgroup's path and by the runtime.
    pub pod_uids: [Option<&'a str>; 2],
    /// The container's ID.
    pub id: Option<&'a str>,
    /// The container's name.
    pub container: Option<&'a str>,
}

/// Why a filter is refused. The message names the field.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
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
    Kind(#[from] UnknownKind),
}

impl Filter {
    /// Matches these kinds, of all containers.
    pub fn of_kinds(kinds: impl IntoIterator<Item = EventKind>) -> Self {
        Self { kinds: kinds.into_iter().map(i32::from).collect(), ..Self::default() }
    }

    /// Without bounds, for whom the filter is its own.
    pub(crate) fn unbounded(filter: proto::Filter) -> Self {
        let proto::Filter { pods, namespaces, containers, kinds, labels } = filter;
        let mut prefixes: Vec<_> =
            containers.iter().map(String::len).filter(|length| *length >= ID_PREFIX_MIN).collect();
        prefixes.sort_unstable();
        prefixes.dedup();
        Self {
            pods: pods.into_iter().collect(),
            namespaces: namespaces.into_iter().collect(),
            containers: containers.into_iter().collect(),
            prefixes,
            labels,
            kinds: kinds.into_iter().collect(),
        }
    }

    /// Whether a container, a pod, or what concerns neither, matches. `labels` gives its labels, and is called only if the filter has
    /// some.
    pub fn matches<'a>(
        &self,
        names: Names<'_>,
        labels: impl FnOnce() -> Cow<'a, BTreeMap<String, String>>,
    ) -> bool {
        let is =
            |wanted: &HashSet<String>, value: Option<&str>| value.is_some_and(|value| wanted.contains(value));
        let begins = |length: &usize| is(&self.containers, names.id.and_then(|id| id.get(..*length)));
        (self.namespaces.is_empty() || is(&self.namespaces, names.namespace))
            && (self.pods.is_empty()
                || is(&self.pods, names.pod)
                || names.pod_uids.iter().any(|uid| is(&self.pods, *uid)))
            && (self.containers.is_empty()
                || is(&self.containers, names.id)
                || is(&self.containers, names.container)
                || self.prefixes.iter().any(begins))
            && (self.labels.is_empty() || {
                let labels = labels();
                self.labels.iter().all(|(name, value)| labels.get(name) == Some(value))
            })
    }

    /// Whether an event of that kind matches; none: of one that is not known.
    pub fn wants_kind(&self, kind: Option<EventKind>) -> bool {
        self.kinds.is_empty() || kind.is_some_and(|kind| self.kinds.contains(&i32::from(kind)))
    }

    /// The one container that may match, by its whole ID; none: any may.
    pub fn only_container(&self) -> Option<&str> {
        let only = self.containers.iter().next().filter(|_| self.containers.len() == 1)?;
        let is_id = only.len() == ID_BYTES && only.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_id.then_some(only)
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

/// Whether people mean this container by that: its name, its ID, or a prefix of the ID.
pub fn is_meant(container: &proto::Container, text: &str) -> bool {
    let names = Names { id: Some(&container.id), container: container.name.as_deref(), ..Names::default() };
    let filter = proto::Filter { containers: vec![text.to_owned()], ..Default::default() };
    Filter::unbounded(filter).matches(names, Cow::default)
}

impl TryFrom<proto::Filter> for Filter {
    type Error = InvalidFilter;

    fn try_from(filter: proto::Filter) -> Result<Self, InvalidFilter> {
        count("kinds", filter.kinds.len())?;
        for kind in &filter.kinds {
            EventKind::try_from(*kind)?;
        }
        count("labels", filter.labels.len())?;
        for (name, value) in &filter.labels {
            length("labels", name, LABEL_NAME_BYTES_MAX)?;
            length("labels", value, VALUE_BYTES_MAX)?;
        }
        for (field, values) in
            [("containers", &filter.containers), ("pods", &filter.pods), ("namespaces", &filter.namespaces)]
        {
            count(field, values.len())?;
            values.iter().try_for_each(|value| length(field, value, VALUE_BYTES_MAX))?;
        }
        Ok(Self::unbounded(filter))
    }
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

    const WEB: Names<'static> = Names {
        namespace: Some("prod"),
        pod: Some("web"),
        pod_uids: [Some("uid-1"), None],
        id: Some("00011"),
        container: Some("nginx"),
    };

    #[test]
    fn conditions_are_anded_and_values_ored() {
        let wants = |pods: &[&str], namespaces: &[&str], containers: &[&str]| {
            filter(pods, namespaces, containers).matches(WEB, Cow::default)
        };
        assert!(wants(&[], &[], &[]));
        assert!(wants(&["db", "web"], &["prod"], &["nginx"]));
        assert!(wants(&["uid-1"], &[], &[]), "a pod's UID");
        assert!(wants(&[], &[], &["another", "0001"]), "an ID prefix");
        assert!(!wants(&[], &[], &["000"]), "too short for a prefix");
        assert!(!wants(&["web"], &["dev"], &[]));
        assert!(!wants(&["web"], &["prod"], &["sidecar"]));
        let unnamed = Names { pod_uids: WEB.pod_uids, id: WEB.id, ..Names::default() };
        assert!(filter(&["uid-1"], &[], &[]).matches(unnamed, Cow::default));
        assert!(!filter(&["web"], &[], &[]).matches(unnamed, Cow::default));
        let container =
            proto::Container { id: "00011".into(), name: Some("nginx".into()), ..Default::default() };
        assert!(["nginx", "00011", "0001"].iter().all(|text| is_meant(&container, text)));
        assert!(["ngin", "000", "0001x"].iter().all(|text| !is_meant(&container, text)));
    }

    #[test]
    fn labels_must_all_match() {
        let own = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
        let wants = |labels: &[(&str, &str)]| {
            let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            let filter = proto::Filter { labels: labels.collect(), ..Default::default() };
            Filter::try_from(filter).unwrap().matches(WEB, || Cow::Borrowed(&own))
        };
        assert!(wants(&[("app", "web")]));
        assert!(!wants(&[("app", "db")]));
        assert!(!wants(&[("app", "web"), ("tier", "front")]));
    }

    #[test]
    fn a_pod_matches_a_filter_for_it_and_none_for_containers() {
        let pod = Names { id: None, container: None, ..WEB };
        let wants = |pods: &[&str], namespaces: &[&str], containers: &[&str]| {
            filter(pods, namespaces, containers).matches(pod, Cow::default)
        };
        assert!(wants(&[], &[], &[]) && wants(&["web"], &[], &[]) && wants(&["uid-1"], &["prod"], &[]));
        assert!(!wants(&["db"], &[], &[]) && !wants(&["web"], &["dev"], &[]));
        assert!(!wants(&["web"], &[], &["nginx"]), "it concerns no single container");
        assert!(filter(&[], &[], &[]).matches(Names::default(), Cow::default));
        assert!(!filter(&["web"], &[], &[]).matches(Names::default(), Cow::default));
    }

    #[test]
    fn one_whole_id_is_the_only_container_that_may_match() {
        let (id, another) = ("0a".repeat(32), "0b".repeat(32));
        let only =
            |containers: &[&str]| filter(&["web"], &["prod"], containers).only_container().map(str::to_owned);
        assert_eq!(only(&[&id]), Some(id.clone()));
        for containers in [&[][..], &["nginx"], &[&id[..63]], &[&id, &another], &[&"x".repeat(64)]] {
            assert_eq!(only(containers), None, "{containers:?}");
        }
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
        assert!(some.wants_kind(Some(EventKind::Created)) && !some.wants_kind(Some(EventKind::Started)));
    }
}
