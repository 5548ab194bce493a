//! The API server: which nodes have a daemon, which pods there are, and ports of pods.
//!
//! Owns what is asked of it, and the words for what it refuses. Changes nothing there.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::{Api, ApiResource, DynamicObject, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::Selector;
use kwitness_api::Client;
use tokio::sync::Semaphore;

use super::failure::Failure;
use super::nodes::Nodes;
use super::tunnel::{self, Tunnel};
use crate::exit::{Code, NotHere};
use crate::options::CONNECTION;

/// Ports that are opened at a time: each costs the API server a call to a kubelet.
const OPENING: usize = 32;
/// How long that may take: less than a call waits.
const OPEN_LIMIT: Duration = Duration::from_secs(20);
/// How often the pods of a node that has several are tried, and how long between two times: one has just ended, and the next one serves in
/// a moment.
const TRIES: usize = 10;
const BETWEEN: Duration = Duration::from_millis(500);

/// Which cluster, which daemons.
#[derive(Clone, Debug, clap::Args)]
pub struct Connection {
    /// Show only these nodes
    #[arg(long, global = true, value_delimiter = ',', value_name = "NODE", help_heading = CONNECTION)]
    pub node: Vec<String>,
    /// The kubeconfig file [default: KUBECONFIG, ~/.kube/config, or the pod's service account]
    #[arg(long, global = true, value_name = "FILE", help_heading = CONNECTION)]
    pub kubeconfig: Option<PathBuf>,
    /// The kubeconfig's context [default: the current one]
    #[arg(long, global = true, value_name = "NAME", help_heading = CONNECTION)]
    pub context: Option<String>,
    /// The namespace of the daemons' pods
    #[arg(long, global = true, value_name = "NAMESPACE", default_value = "kwitness", env = "KWITNESS_NAMESPACE", help_heading = CONNECTION)]
    pub kwitness_namespace: String,
    /// The label of the daemons' pods
    #[arg(long, global = true, value_name = "SELECTOR", default_value = "app.kubernetes.io/name=kwitness", help_heading = CONNECTION)]
    pub kwitness_selector: String,
    /// The port of the daemons' API (setting api.listen)
    #[arg(long, global = true, value_name = "PORT", default_value_t = 9769, help_heading = CONNECTION)]
    pub kwitness_port: u16,
}

/// A cluster, as the kubeconfig names it.
pub struct Cluster {
    client: kube::Client,
    connection: Connection,
    opening: Semaphore,
}

impl Cluster {
    /// From the kubeconfig, or within a pod from its service account.
    pub async fn connect(connection: Connection) -> Result<Arc<Self>, Failure> {
        let failed = |error: &dyn std::error::Error| {
            Failure::new(Code::Configuration, format!("cannot use the kubeconfig: {error}"))
        };
        let options =
            KubeConfigOptions { context: connection.context.clone(), ..KubeConfigOptions::default() };
        let config = match &connection.kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path).map_err(|error| failed(&error))?;
                kube::Config::from_custom_kubeconfig(file, &options).await.map_err(|error| failed(&error))?
            }
            None if connection.context.is_some() => {
                kube::Config::from_kubeconfig(&options).await.map_err(|error| failed(&error))?
            }
            None => kube::Config::infer().await.map_err(|error| failed(&error))?,
        };
        let client = kube::Client::try_from(config).map_err(|error| failed(&error))?;
        Ok(Arc::new(Self { client, connection, opening: Semaphore::new(OPENING) }))
    }

    /// Whether a node is among those that were asked for.
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
        let daemons = by_node(self.daemons("").await?);
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
        let daemons = daemons.into_iter().filter(|(node, _)| self.is_wanted(node));
        Ok(daemons
            .map(|(node, pods)| {
                let client = self.client(&node, pods);
                (node, client)
            })
            .collect())
    }

    /// A client of the daemon on a node. Every connection looks for the pods anew, but the first, which goes to one of `pods`.
    fn client(self: &Arc<Self>, node: &str, pods: Vec<String>) -> Client {
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
        Ok(by_node(pods).remove(node).unwrap_or_default())
    }

    /// The API's port of a pod.
    async fn forward(&self, pod: &str) -> io::Result<Tunnel> {
        let namespace = &self.connection.kwitness_namespace;
        let port = self.connection.kwitness_port;
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let forwarder = pods.portforward(pod, &[port]).await.map_err(|error| {
            Failure::of(&error, &format!("cannot forward a port of pod {namespace}/{pod}")).into_io()
        })?;
        Tunnel::new(forwarder, port).ok_or_else(|| io::Error::other("the port is not forwarded"))
    }

    /// The daemons' pods, of one node or of all.
    async fn daemons(&self, node: &str) -> Result<Vec<Pod>, Failure> {
        let mut which = ListParams::default().labels(&self.connection.kwitness_selector);
        if !node.is_empty() {
            which = which.fields(&format!("spec.nodeName={node}"));
        }
        self.pods(Some(&self.connection.kwitness_namespace), &which).await
    }

    /// The pods of a namespace, or of all.
    pub async fn pods(&self, namespace: Option<&str>, which: &ListParams) -> Result<Vec<Pod>, Failure> {
        let (pods, what) = match namespace {
            Some(namespace) => (
                Api::<Pod>::namespaced(self.client.clone(), namespace),
                format!("cannot list pods in namespace \"{namespace}\""),
            ),
            None => (Api::<Pod>::all(self.client.clone()), "cannot list pods in all namespaces".to_owned()),
        };
        let pods = pods.list(which).await.map_err(|error| Failure::of(&error, &what))?;
        Ok(pods.items)
    }

    /// The pods of the workloads of that name.
    pub async fn pods_of(
        &self,
        workload: &ApiResource,
        name: &str,
        namespace: Option<&str>,
    ) -> Result<Vec<Pod>, Failure> {
        let api = match namespace {
            Some(namespace) => {
                Api::<DynamicObject>::namespaced_with(self.client.clone(), namespace, workload)
            }
            None => Api::<DynamicObject>::all_with(self.client.clone(), workload),
        };
        let what = format!("cannot list {}", workload.plural);
        let named = ListParams::default().fields(&format!("metadata.name={name}"));
        let workloads = api.list(&named).await.map_err(|error| Failure::of(&error, &what))?;
        let mut pods = Vec::new();
        for workload in workloads {
            let selector = serde_json::from_value::<LabelSelector>(workload.data["spec"]["selector"].clone());
            let selector = selector.ok().and_then(|selector| Selector::try_from(selector).ok());
            let Some(selector) = selector else { continue };
            let which = ListParams::default().labels_from(&selector);
            pods.extend(self.pods(workload.metadata.namespace.as_deref(), &which).await?);
        }
        Ok(pods)
    }
}

/// Of each node the pods that run, or else the one that will or did. First those that stay, and of these the oldest: a standby is younger
/// than the daemon that it waits for.
fn by_node(pods: Vec<Pod>) -> BTreeMap<String, Vec<String>> {
    let mut by_node: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for pod in pods {
        let Some(node) = pod.spec.and_then(|spec| spec.node_name) else { continue };
        let Some(name) = pod.metadata.name else { continue };
        let runs = pod.status.and_then(|status| status.phase).is_some_and(|phase| phase == "Running");
        let is_deleted = pod.metadata.deletion_timestamp.is_some();
        by_node.entry(node).or_default().push((!runs, is_deleted, pod.metadata.creation_timestamp, name));
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
        let by_node = by_node(pods);
        assert_eq!(by_node.keys().collect::<Vec<_>>(), ["worker-1", "worker-2"]);
        assert_eq!(by_node["worker-1"], ["daemon", "standby", "old"]);
        assert_eq!(by_node["worker-2"], ["coming"]);
    }
}
