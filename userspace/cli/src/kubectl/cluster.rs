//! The API server: which nodes have a daemon, which pods there are, and ports of pods.
//!
//! Owns what is asked of it, and the words for what it refuses. Changes nothing there.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::{Api, ApiResource, DynamicObject, ListParams};
use kube::core::Selector;
use kwitness_api::{Client, innermost};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::connection::{Connection, RequestTimeout};
use super::failure::{Failure, Request};
use super::nodes::Nodes;
use super::scope::Scope;
use super::tunnel::{self, Tunnel};
use crate::exit::{Code, NotHere};

/// Ports that are opened at a time: each costs the API server a call to a kubelet.
const OPENING: usize = 32;
/// How long that may take: less than a call waits.
const OPEN_LIMIT: Duration = Duration::from_secs(20);
/// How often the pods of a node that has several are tried, and how long between two times: one has just ended, and the next one serves in
/// a moment.
const TRIES: usize = 10;
const BETWEEN: Duration = Duration::from_millis(500);

/// A cluster, as the kubeconfig names it.
pub struct Cluster {
    client: kube::Client,
    connection: Connection,
    opening: Semaphore,
}

impl Cluster {
    /// From the kubeconfig, or within a pod from its service account.
    pub async fn connect(connection: Connection) -> Result<Arc<Self>, Failure> {
        let config = connection.config().await?;
        let client = kube::Client::try_from(config).map_err(|error| {
            Failure::new(Code::Configuration, format!("cannot use the kubeconfig: {}", innermost(&error)))
        })?;
        Ok(Arc::new(Self { client, connection, opening: Semaphore::new(OPENING) }))
    }

    /// Whether a node is among those that were requested.
    pub fn is_wanted(&self, node: &str) -> bool {
        let wanted = &self.connection.node;
        wanted.is_empty() || wanted.iter().any(|wanted| wanted == node)
    }

    /// The namespace of the kubeconfig's context.
    pub fn default_namespace(&self) -> &str {
        self.client.default_namespace()
    }

    /// The nodes that have a daemon; of the named ones, each must.
    pub async fn nodes(self: &Arc<Self>) -> anyhow::Result<Nodes> {
        let Connection { kwitness_namespace: namespace, kwitness_selector: selector, .. } = &self.connection;
        let pods = self.daemons("").await?;
        if let Some((node, rivals)) = rivals(&pods) {
            let text = format!(
                "several DaemonSets have pods with the label {selector} on node {node} in namespace \"{namespace}\": {}; choose \
                 one with --kwitness-selector app.kubernetes.io/instance=RELEASE",
                rivals.join(", ")
            );
            return Err(Failure::new(Code::Configuration, text).into());
        }
        let daemons = by_node(&pods);
        if daemons.is_empty() {
            let text = format!(
                "no pod in namespace \"{namespace}\" has the label {selector}: install the chart, or say where it is with \
                 --kwitness-namespace and --kwitness-selector"
            );
            return Err(Failure::new(Code::Unreachable, text).into());
        }
        let wanted = &self.connection.node;
        if let Some(node) = wanted.iter().find(|node| !daemons.contains_key(*node)) {
            let text = format!("no daemon of kwitness on node \"{node}\" ({} nodes have one)", daemons.len());
            return Err(NotHere(text).into());
        }
        let clients = self.wanted(daemons).map(|(node, pods)| {
            let client = self.client(&node, pods);
            (node, client)
        });
        Ok(clients.collect())
    }

    /// Of each requested node, those of these pods that may be its daemon's.
    pub fn daemons_of<'a>(
        &self,
        pods: impl IntoIterator<Item = &'a Pod>,
    ) -> impl Iterator<Item = (String, Vec<String>)> {
        self.wanted(by_node(pods))
    }

    fn wanted(&self, daemons: BTreeMap<String, Vec<String>>) -> impl Iterator<Item = (String, Vec<String>)> {
        daemons.into_iter().filter(|(node, _)| self.is_wanted(node))
    }

    /// Where the daemons' pods are.
    pub fn scope_of_daemons(&self) -> Scope {
        let Connection { kwitness_namespace, kwitness_selector, .. } = &self.connection;
        Scope::new(Some(kwitness_namespace.clone()), kwitness_selector.clone())
    }

    /// A client of the daemon on a node. Every connection looks for the pods anew, but the first, which goes to one of `pods`.
    pub fn client(self: &Arc<Self>, node: &str, pods: Vec<String>) -> Client {
        let (cluster, of_node, pods) = (Arc::clone(self), node.to_owned(), Mutex::new(Some(pods)));
        tunnel::client(node, move || {
            let (cluster, node) = (Arc::clone(&cluster), of_node.clone());
            let pods = pods.lock().unwrap_or_else(PoisonError::into_inner).take();
            // A task of its own: nothing polls the opening of a call that was given up, and it would keep its permit.
            async move {
                let opening = async move { cluster.open(&node, pods).await };
                let opened = tokio::spawn(tokio::time::timeout(OPEN_LIMIT, opening)).await;
                opened.map_err(io::Error::other)?.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
            }
        })
    }

    /// A connection to the daemon on a node; `pods`: where it was a moment ago, one of these.
    async fn open(&self, node: &str, pods: Option<Vec<String>>) -> io::Result<Tunnel> {
        let _permit = self.opening.acquire().await.map_err(io::Error::other)?;
        let mut pods = match pods {
            Some(pods) => pods,
            None => self.daemons_on(node).await?,
        };
        // During a rollout, a node may have two: one is the daemon's, the other stands by and serves no port.
        for _ in 0..TRIES {
            if pods.len() < 2 {
                break;
            }
            for pod in &pods {
                let mut tried = match self.forward(pod).await {
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
                    Err(_) => continue,
                    Ok(tried) => tried,
                };
                if tried.is_served().await {
                    return self.forward(pod).await;
                }
            }
            tokio::time::sleep(BETWEEN).await;
            pods = self.daemons_on(node).await?;
        }
        let pod = pods.first().ok_or_else(|| io::Error::other("its daemon has no pod"))?;
        self.forward(pod).await
    }

    /// The pods of a node that may be its daemon's, as [`by_node`] has them.
    async fn daemons_on(&self, node: &str) -> io::Result<Vec<String>> {
        let pods = self.daemons(node).await.map_err(Failure::into_io)?;
        Ok(by_node(&pods).remove(node).unwrap_or_default())
    }

    /// The API's port of a pod.
    async fn forward(&self, pod: &str) -> io::Result<Tunnel> {
        let namespace = &self.connection.kwitness_namespace;
        let port = self.connection.kwitness_port;
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let request = Request { verb: "create", resource: "pods/portforward", namespace: Some(namespace) };
        let forwarder = self.answered(request, pods.portforward(pod, &[port])).await;
        let forwarder = forwarder.map_err(Failure::into_io)?;
        Tunnel::new(forwarder, port).ok_or_else(|| io::Error::other("the port is not forwarded"))
    }

    /// The daemons' pods, of one node or of all.
    async fn daemons(&self, node: &str) -> Result<Vec<Pod>, Failure> {
        let scope = self.scope_of_daemons();
        let mut which = scope.list_params();
        if !node.is_empty() {
            which = which.fields(&format!("spec.nodeName={node}"));
        }
        self.list(&scope, &which).await
    }

    /// The pods of a scope.
    pub async fn pods(&self, scope: &Scope) -> Result<Vec<Pod>, Failure> {
        self.list(scope, &scope.list_params()).await
    }

    async fn list(&self, scope: &Scope, which: &ListParams) -> Result<Vec<Pod>, Failure> {
        let pods = self.api(scope);
        Ok(self.answered(scope.request("list"), pods.list(which)).await?.items)
    }

    /// What lists and watches the pods of a scope.
    pub fn api(&self, scope: &Scope) -> Api<Pod> {
        match &scope.namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }

    /// Where the pods of the workloads of that name are.
    pub async fn scopes_of(
        &self,
        workload: &ApiResource,
        name: &str,
        namespace: Option<&str>,
    ) -> Result<Vec<Scope>, Failure> {
        let api = match namespace {
            Some(namespace) => {
                Api::<DynamicObject>::namespaced_with(self.client.clone(), namespace, workload)
            }
            None => Api::<DynamicObject>::all_with(self.client.clone(), workload),
        };
        let request = Request { verb: "list", resource: &workload.plural, namespace };
        let named = ListParams::default().fields(&format!("metadata.name={name}"));
        let workloads = self.answered(request, api.list(&named)).await?;
        let scope = |workload: DynamicObject| {
            let selector = serde_json::from_value::<LabelSelector>(workload.data["spec"]["selector"].clone());
            let selector = Selector::try_from(selector.ok()?).ok()?;
            Some(Scope::new(workload.metadata.namespace, selector.to_string()))
        };
        Ok(workloads.into_iter().filter_map(scope).collect())
    }

    /// What the API server answers, if that is in time.
    async fn answered<T>(
        &self,
        request: Request<'_>,
        answer: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Failure> {
        let answer = match self.connection.request_timeout {
            Some(RequestTimeout(Some(limit))) => timeout(limit, answer).await.map_err(|_| {
                let text = format!(
                    "cannot {request}: the API server did not answer within {} s (--request-timeout)",
                    limit.as_secs_f32()
                );
                Failure::new(Code::Unreachable, text)
            })?,
            _ => answer.await,
        };
        answer.map_err(|error| Failure::of(&error, request))
    }
}

/// The first node on which several DaemonSets have a pod, and their names: which of them is meant, nothing says.
fn rivals(pods: &[Pod]) -> Option<(&str, Vec<&str>)> {
    let mut owners: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
        let of_pod = pod.metadata.owner_references.iter().flatten().find(|owner| owner.kind == "DaemonSet");
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        if let Some((node, owner)) = node.zip(of_pod) {
            owners.entry(node).or_default().insert(&owner.name);
        }
    }
    let (node, owners) = owners.into_iter().find(|(_, owners)| owners.len() > 1)?;
    Some((node, owners.into_iter().collect()))
}

/// Of each node the pods that run, or else the one that will or did. First those that stay, and of these the oldest: a standby is younger
/// than the daemon that it waits for.
fn by_node<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> BTreeMap<String, Vec<String>> {
    let mut by_node: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for pod in pods {
        let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()) else { continue };
        let Some(name) = pod.metadata.name.clone() else { continue };
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let runs = phase == Some("Running");
        let is_deleted = pod.metadata.deletion_timestamp.is_some();
        by_node.entry(node).or_default().push((
            !runs,
            is_deleted,
            pod.metadata.creation_timestamp.clone(),
            name,
        ));
    }
    let of_node = |mut pods: Vec<(bool, _, _, String)>| {
        pods.sort();
        let running = pods.partition_point(|(is_other, ..)| !is_other);
        pods.truncate(running.max(1));
        pods.into_iter().map(|(.., name)| name).collect()
    };
    by_node.into_iter().map(|(node, pods)| (node, of_node(pods))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, node: Option<&str>, phase: &str, second: u8, is_deleted: bool) -> Pod {
        serde_json::from_value(json!({
            "metadata": {
                "name": name,
                "creationTimestamp": format!("2026-01-02T03:04:{second:02}Z"),
                "deletionTimestamp": is_deleted.then_some("2026-01-02T04:05:06Z"),
            },
            "spec": { "nodeName": node, "containers": [] },
            "status": { "phase": phase },
        }))
        .unwrap()
    }

    #[test]
    fn of_a_nodes_pods_those_that_run_are_asked() {
        let pods = vec![
            pod("old", Some("worker-1"), "Running", 1, true),
            pod("standby", Some("worker-1"), "Running", 3, false),
            pod("daemon", Some("worker-1"), "Running", 2, false),
            pod("gone", Some("worker-1"), "Failed", 0, false),
            pod("coming", Some("worker-2"), "Pending", 5, false),
            pod("ended", Some("worker-2"), "Failed", 6, false),
            pod("nowhere", None, "Pending", 7, false),
        ];
        let by_node = by_node(&pods);
        assert_eq!(by_node.keys().collect::<Vec<_>>(), ["worker-1", "worker-2"]);
        assert_eq!(by_node["worker-1"], ["daemon", "standby", "old"]);
        assert_eq!(by_node["worker-2"], ["coming"]);
    }

    #[test]
    fn two_daemon_sets_on_a_node_are_rivals_and_on_two_nodes_they_are_not() {
        let pod = |owner: &str, node: &str, is_deleted: bool| -> Pod {
            serde_json::from_value(json!({
                "metadata": {
                    "name": owner,
                    "deletionTimestamp": is_deleted.then_some("2026-01-02T03:04:05Z"),
                    "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "DaemonSet", "name": owner, "uid": owner }],
                },
                "spec": { "nodeName": node, "containers": [] },
            }))
            .unwrap()
        };
        let apart = [pod("a", "worker-1", false), pod("b", "worker-2", false), pod("b", "worker-1", true)];
        assert_eq!(rivals(&apart), None);
        let together = [pod("b", "worker-2", false), pod("a", "worker-2", false)];
        assert_eq!(rivals(&together), Some(("worker-2", vec!["a", "b"])));
    }
}
