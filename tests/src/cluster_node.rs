//! A node of a cluster: containerd, daemon, API server and kubelet; and pods that the API gives it.
//!
//! The OCI runtime is crun, which costs an emulated machine least.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

use crate::agent::Agent;
use crate::control_plane::{ControlPlane, PAUSE};
use crate::environment::{Environment, Handler};
use crate::kubelet::{Kubelet, NODE, Pleg, Setup, container, pod};
use crate::node::{CONTAINERD_SOCKET, Extras, Node};
use crate::process::wait_for;

const SOON: Duration = Duration::from_secs(300);

#[derive(Debug)]
pub struct ClusterNode {
    pub api: ControlPlane,
    pub kubelet: Kubelet,
    pub agent: Agent,
    pub node: Node,
}

/// A pod with one container, `main`, that is not started again.
#[derive(Clone, Debug)]
pub struct PodRequest<'a> {
    pub name: &'a str,
    pub line: &'a str,
    /// The directory of the node that it has at `/out`.
    pub directory: &'a Path,
    pub resources: Value,
    /// Directories of the node that it has as well, read-only: there, and in the container.
    pub mounts: &'a [(&'a str, &'a str)],
}

/// How a container of a pod ended, as the API has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terminated {
    pub exit_code: i64,
    /// `OOMKilled`, `Completed`, `Error`.
    pub reason: String,
    pub restarts: u64,
}

impl ClusterNode {
    /// Starts everything, with further fields of the kubelet's configuration, and waits until the node is registered.
    pub async fn start(environment: &Environment, settings: Map<String, Value>) -> Result<Self> {
        let driver = environment.first_combination()?.driver;
        let extras = Extras { default_handler: Some(Handler::Crun), ..Extras::default() };
        let node = Node::start_with(environment, driver, &extras).await?;
        let agent = Agent::start(environment, &[]).await?;
        let api = ControlPlane::start(environment).await?;
        let setup = Setup { driver, settings, ..Pleg::Generic.into() };
        let kubelet = Kubelet::start_as(environment, Path::new(CONTAINERD_SOCKET), setup, Some(&api)).await?;
        registered(&api).await.with_context(|| kubelet.log_tail())?;
        Ok(Self { api, kubelet, agent, node })
    }

    /// Runs a Burstable pod with a memory limit. Waits until it runs and the API says so; its container's id.
    pub async fn run(&self, name: &str, line: &str, directory: &Path, limit: u64) -> Result<String> {
        let resources = json!({
            "requests": { "memory": (limit / 2).to_string() },
            "limits": { "memory": limit.to_string() },
        });
        self.run_pod(&PodRequest { name, line, directory, resources, mounts: &[] }).await
    }

    /// The same with a limit of the pod's own, as high as its container's.
    pub async fn run_limited(&self, name: &str, line: &str, directory: &Path, limit: u64) -> Result<String> {
        let resources =
            json!({ "limits": { "memory": limit.to_string() }, "requests": { "memory": "16Mi" } });
        let of_pod = resources.clone();
        let mut object = PodRequest { name, line, directory, resources, mounts: &[] }.object();
        object["spec"]["resources"] = of_pod;
        self.run_object(name, &object).await
    }

    /// Runs a pod. Waits until it runs and the API says so; its container's id.
    pub async fn run_pod(&self, pod: &PodRequest<'_>) -> Result<String> {
        self.run_object(pod.name, &pod.object()).await
    }

    async fn run_object(&self, name: &str, object: &Value) -> Result<String> {
        self.api.create(object)?;
        running(&self.api, &self.node, name).await
    }

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

    pub fn explain<T>(&self, done: Result<T>) -> Result<T> {
        done.with_context(|| self.agent.log_tail())
            .with_context(|| self.kubelet.log_tail())
            .with_context(|| self.node.log_tail())
            .with_context(|| self.api.log_tail())
    }

    pub async fn stop(self) -> Result<()> {
        let Self { api, kubelet, agent, mut node } = self;
        kubelet.retire(&mut node).await?;
        drop(api);
        agent.stop()?;
        node.shutdown().await
    }
}

impl PodRequest<'_> {
    pub fn object(&self) -> Value {
        let mut volumes = vec![json!({ "name": "out", "hostPath": { "path": self.directory } })];
        let mut mounts = vec![json!({ "name": "out", "mountPath": "/out" })];
        for (number, (there, inside)) in self.mounts.iter().enumerate() {
            let name = format!("node-{number}");
            volumes.push(json!({ "name": name, "hostPath": { "path": there } }));
            mounts.push(json!({ "name": name, "mountPath": inside, "readOnly": true }));
        }
        let mut main = container("main", &["/bin/sh", "-c", self.line]);
        main["resources"] = self.resources.clone();
        main["volumeMounts"] = mounts.into();
        let mut object = pod(self.name, &[main]);
        object["spec"]["restartPolicy"] = "Never".into();
        object["spec"]["volumes"] = volumes.into();
        object
    }
}

/// Waits until the API knows the node.
pub async fn registered(api: &ControlPlane) -> Result<()> {
    wait_for("the node to be registered", SOON, async || {
        tokio::time::sleep(PAUSE).await;
        Ok(api.get("node", NODE).is_ok().then_some(()))
    })
    .await
}

/// Waits until a pod's container runs and the API says so; its id. On a slow machine containerd may take so long to start it that the
/// kubelet does it again: the one that is left counts.
pub async fn running(api: &ControlPlane, node: &Node, name: &str) -> Result<String> {
    wait_for(&format!("pod {name} to run"), SOON, async || {
        let Some(id) = node.running(name, "").await? else { return Ok(None) };
        tokio::time::sleep(PAUSE).await;
        let status = api.get("pod", name)?["status"].take();
        let main = &status["containerStatuses"][0];
        let runs = status["phase"] == "Running" && !main["state"]["running"].is_null();
        Ok((runs && main["containerID"] == format!("containerd://{id}")).then_some(id))
    })
    .await
}
