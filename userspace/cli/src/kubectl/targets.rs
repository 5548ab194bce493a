//! Which pods a command is about, by what the API server says: names, workloads (`deploy/web`), labels; and which limits they should have.
//!
//! Names are compared with the API server's pods by the rules that `kwitness` has for those of its node. The daemons are then asked
//! for UIDs, so that they need no access to the API server.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use kube::api::ApiResource;
use kube::core::GroupVersionKind;
use kwitness_api::proto;

use super::cluster::Cluster;
use super::failure::Failure;
use super::scope::Scope;
use crate::exit::{Code, NotHere};
use crate::options::Filter;
use crate::{quantities, select};

/// What has pods: the names that kubectl takes, group, kind, plural.
const WORKLOADS: &[(&[&str], &str, &str, &str)] = &[
    (&["deploy", "deployment"], "apps", "Deployment", "deployments"),
    (&["sts", "statefulset"], "apps", "StatefulSet", "statefulsets"),
    (&["ds", "daemonset"], "apps", "DaemonSet", "daemonsets"),
    (&["rs", "replicaset"], "apps", "ReplicaSet", "replicasets"),
    (&["job"], "batch", "Job", "jobs"),
];

/// What a command is about.
#[derive(Clone, Debug)]
pub struct Targets {
    /// What a daemon is queried for.
    filter: proto::Filter,
    /// The pods; none: whatever passes the filter, on every node.
    pods: Option<Vec<Pod>>,
}

impl Targets {
    /// Those of a filter, and what it names that is not there: then what may still come.
    pub async fn find(cluster: &Cluster, filter: &Filter) -> Result<(Self, Option<NotHere>), Failure> {
        match needs_pods(filter) {
            true => Ok(Self::among(filter, &found(cluster, filter).await?)),
            false => Ok(Self::of_everything(filter)),
        }
    }

    /// Those of a filter that needs no pods of the API server.
    fn of_everything(filter: &Filter) -> (Self, Option<NotHere>) {
        (Self { filter: select::literally(filter), pods: None }, None)
    }

    /// The same, among the pods of the filter's scopes.
    pub fn among(filter: &Filter, found: &[(Scope, Vec<Pod>)]) -> (Self, Option<NotHere>) {
        if !needs_pods(filter) {
            return Self::of_everything(filter);
        }
        match selected(filter, found) {
            Ok(pods) => {
                let filter = proto::Filter { containers: filter.container.clone(), ..Default::default() };
                (Self { filter, pods: Some(pods) }, None)
            }
            Err(not_here) => {
                // A daemon compares names, but knows no labels and no workloads of pods that are to come.
                let is_unknown =
                    !filter.label.is_empty() || filter.pod.iter().any(|text| workload(text).is_some());
                let pods = is_unknown.then(Vec::new);
                (Self { filter: select::literally(filter), pods }, Some(not_here))
            }
        }
    }

    /// What the daemon of a node is queried for; none: it has none of them.
    pub fn on(&self, node: &str) -> Option<proto::Filter> {
        let Some(pods) = &self.pods else { return Some(self.filter.clone()) };
        let pods: Vec<_> = pods.iter().filter(|pod| node_of(pod) == Some(node)).filter_map(uid_of).collect();
        (!pods.is_empty()).then(|| proto::Filter {
            pods: pods.into_iter().map(str::to_owned).collect(),
            ..self.filter.clone()
        })
    }
}

/// Whether a filter is compared with the API server's pods.
pub fn needs_pods(filter: &Filter) -> bool {
    !filter.pod.is_empty() || !filter.label.is_empty()
}

/// The pods that a filter is about.
pub async fn pods(cluster: &Cluster, filter: &Filter) -> Result<Result<Vec<Pod>, NotHere>, Failure> {
    Ok(selected(filter, &found(cluster, filter).await?))
}

/// The pods of a filter's scopes.
async fn found(cluster: &Cluster, filter: &Filter) -> Result<Vec<(Scope, Vec<Pod>)>, Failure> {
    let mut found = Vec::new();
    for scope in scopes(cluster, filter).await? {
        let pods = cluster.pods(&scope).await?;
        found.push((scope, pods));
    }
    Ok(found)
}

/// Where the pods are that a filter may be about. A workload's selector does not change as long as it lives.
pub async fn scopes(cluster: &Cluster, filter: &Filter) -> Result<Vec<Scope>, Failure> {
    let namespaces: Vec<_> = match &*filter.namespace {
        [] => vec![None],
        some => some.iter().map(|namespace| Some(namespace.as_str())).collect(),
    };
    let mut scopes = Vec::new();
    for text in &filter.pod {
        let Some((workload, name)) = workload(text) else { continue };
        let before = scopes.len();
        for namespace in &namespaces {
            let of_workload = cluster.scopes_of(&workload, name, *namespace).await?;
            scopes
                .extend(of_workload.into_iter().map(|scope| Scope { workload: Some(text.clone()), ..scope }));
        }
        if scopes.len() == before {
            return Err(Failure::new(Code::NotHere, format!("there is no \"{text}\"")));
        }
    }
    // The pods of workloads have scopes by now.
    if filter.pod.is_empty() || filter.pod.iter().any(|text| workload(text).is_none()) {
        let labels: Vec<_> = filter.label.iter().map(ToString::to_string).collect();
        let selector = labels.join(",");
        let scope = |namespace: Option<&str>| Scope::new(namespace.map(str::to_owned), selector.clone());
        scopes.extend(namespaces.into_iter().map(scope));
    }
    Ok(scopes)
}

/// The pods that a filter is about, among those of its scopes.
fn selected(filter: &Filter, found: &[(Scope, Vec<Pod>)]) -> Result<Vec<Pod>, NotHere> {
    let mut wanted = Filter { pod: Vec::new(), ..filter.clone() };
    for text in &filter.pod {
        if workload(text).is_none() {
            wanted.pod.push(text.clone());
            continue;
        }
        let is_its = |(scope, _): &&(Scope, Vec<Pod>)| scope.workload.as_ref() == Some(text);
        let before = wanted.pod.len();
        let of_workload = found.iter().filter(is_its).flat_map(|(_, pods)| pods);
        wanted.pod.extend(of_workload.filter_map(uid_of).map(str::to_owned));
        if wanted.pod.len() == before {
            return Err(NotHere(format!("\"{text}\" has no pods")));
        }
    }
    let pods = found.iter().flat_map(|(_, pods)| pods);
    let here: BTreeMap<_, _> = pods.filter_map(|pod| Some((uid_of(pod)?, pod))).collect();
    among(here.into_values().cloned().collect(), &wanted)
}

/// Whether it is the kind in `kind/name`, and not a namespace.
pub fn is_kind(text: &str) -> bool {
    matches!(text, "pod" | "pods" | "po") || workload(&format!("{text}/")).is_some()
}

/// `deploy/web`.
fn workload(text: &str) -> Option<(ApiResource, &str)> {
    let (kind, name) = text.split_once('/')?;
    let is_named = |(names, _, _, plural): &&(&[&str], _, _, &str)| names.contains(&kind) || *plural == kind;
    let (_, group, kind, plural) = WORKLOADS.iter().find(is_named)?;
    let kind = GroupVersionKind::gvk(group, "v1", kind);
    Some((ApiResource::from_gvk_with_plural(&kind, plural), name))
}

/// Those that pass, by the rules for names of containers on a node.
fn among(pods: Vec<Pod>, filter: &Filter) -> Result<Vec<Pod>, NotHere> {
    let here: Vec<_> = pods.iter().flat_map(containers).collect();
    let selected = select::among(&here, filter, "")?;
    let passes = |pod: &Pod| {
        let is_pod =
            |wanted: &String| uid_of(pod) == Some(wanted) || pod.metadata.name.as_ref() == Some(wanted);
        let in_namespace = |wanted: &String| pod.metadata.namespace.as_ref() == Some(wanted);
        (selected.pods.is_empty() || selected.pods.iter().any(is_pod))
            && (selected.namespaces.is_empty() || selected.namespaces.iter().any(in_namespace))
    };
    Ok(pods.into_iter().filter(passes).collect())
}

/// A pod's containers, as a daemon would name them.
fn containers(pod: &Pod) -> Vec<proto::Container> {
    let of_pod = proto::Pod {
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        ..Default::default()
    };
    let spec = pod.spec.iter();
    let containers =
        spec.flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    let named = containers.map(|container| proto::Container {
        pod: Some(of_pod.clone()),
        name: Some(container.name.clone()),
        labels: pod.metadata.labels.clone().unwrap_or_default(),
        ..Default::default()
    });
    named.collect()
}

/// The node that a pod is on.
pub fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

/// Its UID.
pub fn uid_of(pod: &Pod) -> Option<&str> {
    pod.metadata.uid.as_deref()
}

/// As the command line takes it: `prod/web-0`.
pub fn name_of(pod: &Pod) -> String {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    format!("{namespace}/{}", pod.metadata.name.as_deref().unwrap_or_default())
}

/// The containers of a pod that run as long as it does.
pub fn lasting(pod: &Pod) -> impl Iterator<Item = &Container> {
    let sidecars = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let spec = pod.spec.iter();
    spec.flat_map(move |spec| {
        spec.containers.iter().chain(spec.init_containers.iter().flatten().filter(sidecars))
    })
}

/// The limits that the API server wants of a container. What is not set there is left to the daemon's other sources.
pub fn wanted(container: &Container) -> proto::Wanted {
    let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
    let limit = |name: &str| limits.and_then(|limits| limits.get(name)).map(|quantity| quantity.0.as_str());
    proto::Wanted {
        // A quantity of zero is no limit to Kubernetes, and none that can be requested here.
        memory: limit("memory").and_then(|text| quantities::memory(text).ok()),
        cpu: limit("cpu").and_then(|text| quantities::cpu(text).ok()),
    }
}

#[cfg(test)]
mod tests {
    use kwitness_api::proto::wanted::{Cpu, Memory};
    use serde_json::json;

    use super::*;

    fn pod(namespace: &str, name: &str, node: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {
                "uid": format!("uid-{name}"), "namespace": namespace, "name": name, "labels": { "app": &name[..name.len() - 2] },
            },
            "spec": {
                "nodeName": node,
                "initContainers": [
                    { "name": "setup" },
                    { "name": "proxy", "restartPolicy": "Always", "resources": { "limits": { "cpu": "0" } } },
                ],
                "containers": [{ "name": "app", "resources": { "limits": { "memory": "64Mi", "cpu": "1500m" } } }],
            },
        }))
        .unwrap()
    }

    fn here() -> Vec<Pod> {
        vec![
            pod("prod", "web-0", "worker-1"),
            pod("prod", "web-1", "worker-2"),
            pod("dev", "web-0", "worker-2"),
            pod("dev", "db-0", "worker-1"),
        ]
    }

    fn found(filter: &Filter) -> Result<Vec<String>, String> {
        let pods = among(here(), filter).map_err(|error| error.0)?;
        Ok(pods.iter().map(name_of).collect())
    }

    fn filter(pods: &[&str], namespaces: &[&str], labels: &[&str]) -> Filter {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Filter {
            pod: owned(pods),
            namespace: owned(namespaces),
            label: labels.iter().map(|label| label.parse().unwrap()).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn pods_are_named_as_on_a_node() {
        let ok = |names: &[&str]| Ok(names.iter().map(|name| (*name).to_owned()).collect());
        assert_eq!(found(&filter(&["pod/web-0"], &["prod"], &[])), ok(&["prod/web-0"]));
        assert_eq!(found(&filter(&["dev/web-0"], &[], &[])), ok(&["dev/web-0"]));
        assert_eq!(found(&filter(&["web"], &["prod"], &[])), ok(&["prod/web-0", "prod/web-1"]));
        assert_eq!(found(&filter(&[], &["prod"], &["app=web"])), ok(&["prod/web-0", "prod/web-1"]));
        assert_eq!(
            found(&filter(&["wbe-0"], &["prod"], &[])),
            Err("no pod \"wbe-0\" in namespace \"prod\", did you mean \"web-0\"? (pods here: web-0, web-1)"
                .into())
        );
    }

    #[test]
    fn a_node_is_asked_for_its_own_pods() {
        let pods = among(here(), &filter(&[], &["prod"], &["app=web"])).unwrap();
        let targets = Targets { filter: proto::Filter::default(), pods: Some(pods) };
        assert_eq!(targets.on("worker-1").unwrap().pods, ["uid-web-0"]);
        assert_eq!(targets.on("worker-2").unwrap().pods, ["uid-web-1"]);
        assert_eq!(targets.on("worker-3"), None);
        let everything = Targets { filter: proto::Filter::default(), pods: None };
        assert_eq!(everything.on("worker-3"), Some(proto::Filter::default()));
    }

    #[test]
    fn a_workload_is_its_pods_and_waits_for_them() {
        let by_name = Scope::new(Some("prod".to_owned()), String::new());
        let of_workload = Scope { workload: Some("deploy/web".to_owned()), ..by_name.clone() };
        let web = vec![pod("prod", "web-0", "worker-1"), pod("prod", "web-1", "worker-2")];
        let uids = |targets: &Targets, node: &str| targets.on(node).map(|filter| filter.pods);
        let deployment = filter(&["deploy/web"], &["prod"], &[]);
        let (targets, not_here) = Targets::among(&deployment, &[(of_workload.clone(), web.clone())]);
        assert_eq!(not_here, None);
        assert_eq!(uids(&targets, "worker-2"), Some(vec!["uid-web-1".to_owned()]));
        let (targets, not_here) = Targets::among(&deployment, &[(of_workload.clone(), Vec::new())]);
        assert_eq!(not_here, Some(NotHere("\"deploy/web\" has no pods".to_owned())));
        assert_eq!(uids(&targets, "worker-1"), None, "no daemon knows it");
        let both = filter(&["deploy/web", "db-0"], &["prod"], &[]);
        let found = [(of_workload, web), (by_name, vec![pod("prod", "db-0", "worker-2")])];
        let (targets, _) = Targets::among(&both, &found);
        let expected = ["uid-db-0", "uid-web-1"].map(str::to_owned).to_vec();
        assert_eq!(uids(&targets, "worker-2"), Some(expected));
    }

    #[test]
    fn workloads_have_kubectls_names() {
        for (text, plural) in [
            ("deploy/web", "deployments"),
            ("deployments/web", "deployments"),
            ("sts/web", "statefulsets"),
            ("ds/web", "daemonsets"),
            ("rs/web", "replicasets"),
            ("job/web", "jobs"),
        ] {
            let (workload, name) = workload(text).unwrap();
            assert_eq!((&*workload.plural, name), (plural, "web"));
        }
        assert!(
            workload("pod/web-0").is_none() && workload("prod/web-0").is_none() && workload("web").is_none()
        );
    }

    #[test]
    fn the_wanted_limits_are_those_of_the_spec() {
        let pod = pod("prod", "web-0", "worker-1");
        let lasting: Vec<_> = lasting(&pod).map(|container| (&*container.name, wanted(container))).collect();
        let app =
            proto::Wanted { memory: Some(Memory::MemoryBytes(64 << 20)), cpu: Some(Cpu::MilliCpu(1500)) };
        assert_eq!(lasting, [("app", app), ("proxy", proto::Wanted::default())]);
    }
}
