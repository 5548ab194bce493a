//! Which pods and containers a command is about: what people type, compared with what is on the node.
//!
//! Owns the forms of a name (`web-0`, `pod/web-0`, `prod/web-0`, a UID, a prefix, a label) and what is said of one that
//! matches nothing. The result is a filter of the API.

use std::collections::{BTreeMap, BTreeSet};

use kwitness_api::client::Item;
use kwitness_api::filter::{ID_PREFIX_MIN, is_meant};
use kwitness_api::{Source, SourceError, proto};

use crate::exit::NotHere;
use crate::options::Filter;
#[cfg(test)]
use crate::options::Label;

/// The most names that an error lists.
const LISTED_MAX: usize = 8;
/// Where `kwitness` looks, as errors say it.
const ON_THIS_NODE: &str = " on this node";
const IN_THE_RECORDING: &str = " in this recording";
const AT_THIS_TIME: &str = " at the end of the recording, or at its --at";
/// How alike two names must be to suggest one for the other (Jaro-Winkler, 0 to 1).
const ALIKE: f64 = 0.8;

/// A filter of the API; or what was named and is not known, and the filter that waits for it.
pub type Resolved = Result<proto::Filter, (NotHere, proto::Filter)>;

/// The filter, as far as the node's containers are concerned.
pub async fn resolve(source: &mut Source, filter: &Filter) -> Result<Resolved, SourceError> {
    resolve_among(source, filter, None).await
}

/// The same, as far as the containers that are or were in these events are concerned.
pub async fn resolve_past(
    source: &mut Source,
    filter: &Filter,
    past: proto::WatchRequest,
) -> Result<Resolved, SourceError> {
    resolve_among(source, filter, Some(past)).await
}

async fn resolve_among(
    source: &mut Source,
    filter: &Filter,
    past: Option<proto::WatchRequest>,
) -> Result<Resolved, SourceError> {
    if filter.is_empty() {
        return Ok(Ok(proto::Filter::default()));
    }
    let place = if past.is_some() { place(source) } else { place_now(source) };
    let mut known = match past {
        Some(past) => containers_of(source, past).await?,
        None => BTreeMap::new(),
    };
    let here = source.list(proto::Filter::default()).await?.containers;
    known.extend(here.into_iter().filter_map(|state| state.container).map(by_ids));
    let known: Vec<_> = known.into_values().collect();
    Ok(among(&known, filter, place).map_err(|not_here| (not_here, literally(filter))))
}

/// Where what is past is looked for, as errors say it.
pub fn place(source: &Source) -> &'static str {
    if source.recording().is_some() { IN_THE_RECORDING } else { ON_THIS_NODE }
}

/// Where what is there now is looked for; of a recording, what is there at the moment that it is read as of.
pub fn place_now(source: &Source) -> &'static str {
    if source.recording().is_some() { AT_THIS_TIME } else { ON_THIS_NODE }
}

/// The containers that events are about, by cgroup ID and container ID, each as it came to be known.
async fn containers_of(
    source: &Source,
    past: proto::WatchRequest,
) -> Result<BTreeMap<(u64, String), proto::Container>, SourceError> {
    let past = proto::WatchRequest { no_follow: true, resolve_names: true, ..past };
    let mut watch = source.watch(past).await?;
    let mut containers = BTreeMap::new();
    while let Some(item) = watch.next().await? {
        if let Item::Events(events) = item {
            containers.extend(events.into_iter().filter_map(|event| event.container).map(by_ids));
        }
    }
    Ok(containers)
}

/// A recording goes on over reboots, after which a cgroup ID may be another container's.
fn by_ids(container: proto::Container) -> ((u64, String), proto::Container) {
    ((container.cgroup_id, container.id.clone()), container)
}

/// As typed, for what may still come.
pub fn literally(filter: &Filter) -> proto::Filter {
    let pods: Vec<_> = filter.pod.iter().map(|pod| PodName::parse(pod)).collect();
    let mut namespaces = filter.namespace.clone();
    namespaces.extend(pods.iter().filter_map(|pod| pod.namespace.map(str::to_owned)));
    proto::Filter {
        pods: pods.iter().map(|pod| pod.name.to_owned()).collect(),
        namespaces,
        containers: filter.container.clone(),
        ..Default::default()
    }
}

/// A pod as people name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PodName<'a> {
    namespace: Option<&'a str>,
    name: &'a str,
}

impl<'a> PodName<'a> {
    /// `web-0`, `pod/web-0`, `prod/web-0`.
    fn parse(text: &'a str) -> Self {
        match text.split_once('/') {
            Some(("pod" | "pods" | "po", name)) => Self { namespace: None, name },
            Some((namespace, name)) => Self { namespace: Some(namespace), name },
            None => Self { namespace: None, name: text },
        }
    }
}

/// The same among containers that are known already; errors say `place` of where they are.
pub fn among(here: &[proto::Container], filter: &Filter, place: &str) -> Result<proto::Filter, NotHere> {
    let mut selected: Vec<_> = here.iter().collect();
    let mut result = proto::Filter { namespaces: filter.namespace.clone(), ..Default::default() };
    for namespace in &filter.namespace {
        if !here.iter().any(|container| namespace_of(container) == Some(namespace.as_str())) {
            let namespaces = here.iter().filter_map(namespace_of).collect();
            return Err(not_here("namespace", namespace, place, &namespaces));
        }
    }
    if !filter.namespace.is_empty() {
        let is_wanted = |namespace: &str| filter.namespace.iter().any(|wanted| wanted == namespace);
        selected.retain(|container| namespace_of(container).is_some_and(is_wanted));
    }
    let in_namespaces = if filter.namespace.is_empty() {
        String::new()
    } else {
        format!(" in namespace {}", quoted(&filter.namespace))
    };
    if !filter.label.is_empty() {
        let labels = labels_of_pods(here);
        let has = |container: &&proto::Container| {
            let labels = uid_of(container).and_then(|uid| labels.get(uid));
            labels.is_some_and(|labels| filter.label.iter().all(|label| label.matches(labels)))
        };
        selected.retain(has);
        if selected.is_empty() {
            let wanted: Vec<_> = filter.label.iter().map(ToString::to_string).collect();
            return Err(NotHere(format!("no pod has the label {}{in_namespaces}", quoted(&wanted))));
        }
        result.pods = selected.iter().filter_map(|container| uid_of(container)).map(str::to_owned).collect();
    }
    if !filter.pod.is_empty() {
        let (mut pods, mut uids) = (BTreeSet::new(), BTreeSet::new());
        for text in &filter.pod {
            let wanted = PodName::parse(text);
            let candidates = || {
                selected
                    .iter()
                    .copied()
                    .filter(|of| wanted.namespace.is_none() || namespace_of(of) == wanted.namespace)
            };
            let exact: BTreeSet<_> = candidates()
                .filter(|container| {
                    name_of(container) == Some(wanted.name) || uid_of(container) == Some(wanted.name)
                })
                .filter_map(uid_of)
                .collect();
            let is_exact = !exact.is_empty();
            let found = if !is_exact && !wanted.name.is_empty() {
                let starts = |container: &&proto::Container| {
                    name_of(container).is_some_and(|name| name.starts_with(wanted.name))
                };
                candidates().filter(starts).filter_map(uid_of).collect()
            } else {
                exact
            };
            if found.is_empty() {
                let names = candidates().filter_map(name_of).collect();
                let namespace =
                    wanted.namespace.map_or(in_namespaces.clone(), |one| format!(" in namespace \"{one}\""));
                return Err(not_here("pod", wanted.name, &format!("{namespace}{place}"), &names));
            }
            let is_only = wanted.namespace.is_none() || filter.pod.len() == 1;
            if is_exact && is_only && filter.label.is_empty() {
                // By its name, for a pod of that name may come again, or have been there before.
                pods.insert(wanted.name.to_owned());
                result.namespaces.extend(wanted.namespace.map(str::to_owned));
            } else {
                pods.extend(found.iter().map(|uid| (*uid).to_owned()));
            }
            uids.extend(found.into_iter().map(str::to_owned));
        }
        selected.retain(|container| uid_of(container).is_some_and(|uid| uids.contains(uid)));
        result.pods = pods.into_iter().collect();
    }
    for wanted in &filter.container {
        if !selected.iter().any(|of| is_meant(of, wanted)) {
            let names = selected.iter().filter_map(|container| container.name.as_deref()).collect();
            let mut error = not_here("container", wanted, place, &names);
            if wanted.len() < ID_PREFIX_MIN
                && selected.iter().any(|container| container.id.starts_with(wanted))
            {
                error.0 += &format!("; the beginning of an ID has at least {ID_PREFIX_MIN} characters");
            }
            return Err(error);
        }
    }
    result.containers.clone_from(&filter.container);
    result.pods.sort();
    result.pods.dedup();
    Ok(result)
}

/// A pod's labels are those of its sandbox; containers add what the runtime knows of them.
fn labels_of_pods(here: &[proto::Container]) -> BTreeMap<&str, BTreeMap<&str, &str>> {
    let mut pods: BTreeMap<&str, BTreeMap<&str, &str>> = BTreeMap::new();
    for container in here {
        let Some(uid) = uid_of(container) else { continue };
        let labels = container.labels.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        pods.entry(uid).or_default().extend(labels);
    }
    pods
}

fn name_of(container: &proto::Container) -> Option<&str> {
    container.pod.as_ref()?.name.as_deref()
}

fn namespace_of(container: &proto::Container) -> Option<&str> {
    container.pod.as_ref()?.namespace.as_deref()
}

fn uid_of(container: &proto::Container) -> Option<&str> {
    container.pod.as_ref().map(|pod| pod.uid.as_str())
}

fn quoted(names: &[impl AsRef<str>]) -> String {
    names.iter().map(|name| format!("\"{}\"", name.as_ref())).collect::<Vec<_>>().join(", ")
}

fn not_here(what: &str, wanted: &str, place: &str, names: &BTreeSet<&str>) -> NotHere {
    let near = names
        .iter()
        .map(|name| (strsim::jaro_winkler(wanted, name), name))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|left, right| left.0.total_cmp(&right.0));
    let mut text = format!("no {what} \"{wanted}\"{place}");
    if let Some((_, name)) = near {
        text += &format!(", did you mean \"{name}\"?");
    }
    if names.is_empty() {
        text += &format!(" (no {what} is known here)");
    } else {
        let listed: Vec<_> = names.iter().copied().take(LISTED_MAX).collect();
        let more = names.len().saturating_sub(LISTED_MAX);
        let more = if more > 0 { format!(", and {more} more") } else { String::new() };
        text += &format!(" ({what}s here: {}{more})", listed.join(", "));
    }
    NotHere(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(namespace: &str, pod: &str, name: &str) -> proto::Container {
        proto::Container {
            id: format!("{name}0123456789"),
            pod: Some(proto::Pod {
                uid: format!("uid-{pod}"),
                namespace: Some(namespace.into()),
                name: Some(pod.into()),
                ..Default::default()
            }),
            name: Some(name.into()),
            labels: [("app".to_owned(), pod.split('-').next().unwrap().to_owned())].into(),
            ..Default::default()
        }
    }

    fn here() -> Vec<proto::Container> {
        vec![
            container("prod", "web-0", "nginx"),
            container("prod", "web-1", "nginx"),
            container("dev", "db-0", "main"),
        ]
    }

    fn pods(pods: &[&str], namespaces: &[&str], labels: &[&str]) -> Result<Vec<String>, String> {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let filter = Filter {
            pod: owned(pods),
            namespace: owned(namespaces),
            label: labels.iter().map(|label| label.parse().unwrap()).collect(),
            ..Default::default()
        };
        among(&here(), &filter, ON_THIS_NODE).map(|filter| filter.pods).map_err(|error| error.0)
    }

    #[test]
    fn a_pod_is_found_by_each_form_of_its_name() {
        for name in ["web-0", "pod/web-0", "pods/web-0", "prod/web-0"] {
            assert_eq!(pods(&[name], &[], &[]), Ok(vec!["web-0".to_owned()]), "{name}");
        }
        assert_eq!(pods(&["uid-web-0"], &[], &[]), Ok(vec!["uid-web-0".to_owned()]));
        let both = Ok(vec!["uid-web-0".to_owned(), "uid-web-1".to_owned()]);
        assert_eq!(pods(&["web"], &[], &[]), both, "a prefix");
        assert_eq!(pods(&["web-"], &["prod"], &["app=web"]), both);
        assert_eq!(pods(&[], &[], &["app!=db"]), both);
    }

    #[test]
    fn a_typo_is_distinguished_from_nothing_there() {
        assert_eq!(
            pods(&["wbe-0"], &[], &[]),
            Err("no pod \"wbe-0\" on this node, did you mean \"web-0\"? (pods here: db-0, web-0, web-1)"
                .to_owned())
        );
        assert_eq!(
            pods(&["web-0"], &["dev"], &[]),
            Err("no pod \"web-0\" in namespace \"dev\" on this node (pods here: db-0)".to_owned())
        );
        assert_eq!(
            pods(&[], &["prdo"], &[]),
            Err("no namespace \"prdo\" on this node, did you mean \"prod\"? (namespaces here: dev, prod)"
                .to_owned())
        );
        assert_eq!(pods(&[], &[], &["app=x"]), Err("no pod has the label \"app=x\"".to_owned()));
        let error = |name: &str| {
            let filter = Filter { container: vec![name.into()], ..Default::default() };
            among(&here(), &filter, ON_THIS_NODE).unwrap_err().0
        };
        assert!(error("mian").contains("did you mean \"main\"?"), "{}", error("mian"));
        assert!(error("ngi").contains("at least 4 characters"), "{}", error("ngi"));
    }

    #[tokio::test]
    async fn a_pod_that_is_gone_is_found_in_what_is_past() {
        let mut source = crate::demo::source().await.unwrap();
        for name in ["greedy", "gre", "default/greedy"] {
            let filter = Filter { pod: vec![name.to_owned()], ..Default::default() };
            let here = resolve(&mut source, &filter).await.unwrap();
            let (error, _) = here.unwrap_err();
            assert!(
                error.0.contains("at the end of the recording, or at its --at"),
                "{name} is gone by the end: {error}"
            );
            let past = resolve_past(&mut source, &filter, proto::WatchRequest::default()).await.unwrap();
            assert_eq!(past.unwrap().pods.len(), 1, "{name}");
        }
        let typo = Filter { pod: vec!["gredy".to_owned()], ..Default::default() };
        let (error, _) =
            resolve_past(&mut source, &typo, proto::WatchRequest::default()).await.unwrap().unwrap_err();
        assert!(error.0.contains("did you mean \"greedy\"?"), "{error}");
    }

    #[test]
    fn labels_are_kubectls() {
        for (text, shown) in
            [("a=b", "a=b"), ("a==b", "a=b"), ("a!=b", "a!=b"), ("a/b.c", "a/b.c"), ("!a", "!a")]
        {
            assert_eq!(text.parse::<Label>().unwrap().to_string(), shown);
        }
        for wrong in ["", "=b", "a in (b)", "a b"] {
            assert!(wrong.parse::<Label>().is_err(), "{wrong}");
        }
    }
}
