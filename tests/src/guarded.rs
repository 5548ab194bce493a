//! A node of a cluster with the guard: containerd, daemon, API server, kubelet and `kwitness guard --kubernetes`; and pods that
//! the API gives it.
//!
//! The OCI runtime is crun: a hold lasts ten seconds at most, in which an emulated machine gets little done.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::control_plane::ControlPlane;
use crate::environment::{Environment, Handler};
use crate::guard::Guard;
use crate::kubelet::{Kubelet, NODE, Pleg, Setup};
use crate::node::{CONTAINERD_SOCKET, Extras, Node};
use crate::pod::APP_IMAGE;
use crate::process::wait_for;

/// How long anything may take; an emulated guest is slow.
const SOON: Duration = Duration::from_secs(300);
/// Between two calls of kubectl, each of which costs an emulated guest seconds.
const PAUSE: Duration = Duration::from_millis(300);

/// The node, and the cluster of which it is the only one.
#[derive(Debug)]
pub struct GuardedNode {
    /// What the API says.
    pub api: ControlPlane,
    /// The guard.
    pub guard: Guard,
    /// The kubelet.
    pub kubelet: Kubelet,
    /// The daemon.
    pub agent: Agent,
    /// The container runtime.
    pub node: Node,
}

/// How a container of a pod ended, as the API has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terminated {
    /// 137 after SIGKILL.
    pub exit_code: i64,
    /// `OOMKilled`, `Completed`, `Error`.
    pub reason: String,
    /// How often the kubelet has started it again.
    pub restarts: u64,
}

impl GuardedNode {
    /// Starts everything, and waits until the node is registered.
    pub async fn start(environment: &Environment, policy: &str) -> Result<Self> {
        let driver = environment.first_combination()?.driver;
        let extras = Extras { default_handler: Some(Handler::Crun), ..Extras::default() };
        let node = Node::start_with(environment, driver, &extras).await?;
        let agent = Agent::start(environment, &[]).await?;
        let api = ControlPlane::start(environment).await?;
        let setup = Setup { driver, ..Pleg::Generic.into() };
        let kubelet = Kubelet::start_as(environment, Path::new(CONTAINERD_SOCKET), setup, Some(&api)).await?;
        let registered = wait_for("the node to be registered", SOON, async || {
            tokio::time::sleep(PAUSE).await;
            Ok(api.get("node", NODE).ok())
        });
        registered.await.with_context(|| kubelet.log_tail())?;
        let kubeconfig = api.verifying_kubeconfig()?;
        let guard = Guard::start_on_kubernetes(environment, &agent, policy, &kubeconfig, NODE).await?;
        Ok(Self { api, guard, kubelet, agent, node })
    }

    /// Has a Burstable pod run a line of shell in its one container, `main`, with a directory of the node at `/out`; it is not
    /// started again. Waits until it runs and the API says so; its container's id.
    pub async fn run(&self, name: &str, line: &str, directory: &Path, limit: u64) -> Result<String> {
        self.api.create(&pod(name, line, directory, limit))?;
        wait_for(&format!("pod {name} to run"), SOON, async || {
            let Some(id) = self.node.running(name, "").await? else { return Ok(None) };
            tokio::time::sleep(PAUSE).await;
            let status = self.status(name)?;
            let reported = status["containerStatuses"][0]["containerID"].as_str();
            let runs = status["phase"] == "Running" && reported == Some(&format!("containerd://{id}"));
            Ok(runs.then_some(id))
        })
        .await
    }

    /// A pod's status, as the API has it.
    pub fn status(&self, name: &str) -> Result<Value> {
        Ok(self.api.get("pod", name)?["status"].take())
    }

    /// Waits until the API says that the pod's container has ended.
    pub async fn terminated(&self, name: &str) -> Result<Terminated> {
        wait_for(&format!("the API to report the end of {name}"), SOON, async || {
            tokio::time::sleep(PAUSE).await;
            let status = self.status(name)?;
            let main = &status["containerStatuses"][0];
            let ended = &main["state"]["terminated"];
            let Some(exit_code) = ended["exitCode"].as_i64() else { return Ok(None) };
            let reason = ended["reason"].as_str().unwrap_or_default().to_owned();
            let restarts = main["restartCount"].as_u64().context("no restart count")?;
            Ok(Some(Terminated { exit_code, reason, restarts }))
        })
        .await
    }

    /// Adds what all parts have logged to a failure.
    pub fn explain<T>(&self, done: Result<T>) -> Result<T> {
        done.with_context(|| self.guard.log_tail())
            .with_context(|| self.agent.log_tail())
            .with_context(|| self.kubelet.log_tail())
            .with_context(|| self.node.log_tail())
            .with_context(|| self.api.log_tail())
    }

    /// Ends everything, and removes the pods.
    pub async fn stop(self) -> Result<()> {
        let Self { api, guard, kubelet, agent, mut node } = self;
        let guarded = guard.stop();
        kubelet.retire(&mut node).await?;
        drop(api);
        agent.stop()?;
        node.shutdown().await?;
        guarded
    }
}

fn pod(name: &str, line: &str, directory: &Path, limit: u64) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "nodeName": NODE,
            "hostNetwork": true,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "tolerations": [{ "operator": "Exists" }],
            "containers": [{
                "name": "main",
                "image": APP_IMAGE,
                "imagePullPolicy": "Never",
                "command": ["/bin/sh", "-c", line],
                "resources": {
                    "requests": { "memory": (limit / 2).to_string() },
                    "limits": { "memory": limit.to_string() },
                },
                "volumeMounts": [{ "name": "out", "mountPath": "/out" }],
            }],
            "volumes": [{ "name": "out", "hostPath": { "path": directory } }],
        },
    })
}
