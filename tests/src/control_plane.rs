//! A real control plane on loopback: etcd and the API server, with controllers and the scheduler where a test needs them; and kubectl.
//!
//! Owns the processes and their directory. Without a scheduler a pod needs its `nodeName`; whoever has the kubeconfig may do anything.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::environment::Environment;
use crate::pod::new_uid;
use crate::process::{self, Managed, wait_for};

/// An emulated guest needs a minute.
const START_LIMIT: Duration = Duration::from_secs(300);
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// Between two calls of kubectl, each of which costs an emulated guest seconds.
pub const PAUSE: Duration = Duration::from_millis(300);
const ETCD: &str = "http://127.0.0.1:2379";
const ETCD_PEER: &str = "http://127.0.0.1:2380";
const PORT: u16 = 6443;
const CERTIFICATES: &str = "certificates";
/// The API groups that a kubelet or the API server itself asks for, and that of DaemonSets. Each other would cost a slow machine time at
/// the start.
const GROUPS: &[&str] = &[
    "api",
    "apiextensions.k8s.io",
    "apiregistration.k8s.io",
    "apps",
    "coordination.k8s.io",
    "discovery.k8s.io",
    "networking.k8s.io",
    "node.k8s.io",
    "storage.k8s.io",
];
/// The groups of roles and of Kubernetes Events.
const GROUPS_WITH_ROLES: &[&str] = &["events.k8s.io", "rbac.authorization.k8s.io"];
/// What makes the pods of DaemonSets and Deployments, and what these pods need; and what removes them with their owners.
const CONTROLLERS: &[&str] = &[
    "daemonset-controller",
    "deployment-controller",
    "garbage-collector-controller",
    "replicaset-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
];
/// What would need a group that is left out, or a controller.
const NO_ADMISSION: &str = "ServiceAccount,Priority,MutatingAdmissionWebhook,ValidatingAdmissionWebhook,\
                            ValidatingAdmissionPolicy,MutatingAdmissionPolicy";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// etcd and an API server that permits everything.
    Bare,
    /// Roles decide what is permitted, and Kubernetes Events are served as `events.k8s.io`.
    Roles,
    /// All that the API server serves, with the controllers of workloads and the scheduler.
    Whole,
}

#[derive(Debug)]
pub struct ControlPlane {
    _etcd: Managed,
    api_server: Mutex<Managed>,
    controllers: Vec<Managed>,
    extent: Extent,
    programs: PathBuf,
    directory: tempfile::TempDir,
}

impl ControlPlane {
    /// Starts one that permits everything, and waits until the API server says that it is ready.
    pub async fn start(environment: &Environment) -> Result<Self> {
        Self::start_as(environment, Extent::Bare).await
    }

    /// Starts one of that extent, and waits until the API server says that it is ready.
    pub async fn start_as(environment: &Environment, extent: Extent) -> Result<Self> {
        let directory = process::directory("control-plane")?;
        let at = directory.path();
        let token = new_uid()?;
        fs::write(at.join("tokens.csv"), format!("{token},admin,admin,system:masters\n"))
            .context("write the API server's tokens")?;
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "test", "cluster": {
                "server": format!("https://127.0.0.1:{PORT}"), "insecure-skip-tls-verify": true,
            } }],
            "users": [{ "name": "admin", "user": { "token": token } }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "admin" } }],
            "current-context": "test",
        });
        fs::write(at.join("kubeconfig"), kubeconfig.to_string()).context("write the kubeconfig")?;
        let programs = environment.job.join("bin");
        let etcd = Managed::spawn("etcd", etcd(&programs.join("etcd"), at), &at.join("etcd.log"))?;
        let api_server = Mutex::new(spawn_api_server(&programs, at, extent)?);
        let mut this = Self { _etcd: etcd, api_server, controllers: Vec::new(), extent, programs, directory };
        this.wait_ready().await?;
        if extent == Extent::Whole {
            this.controllers = this.spawn_controllers()?;
        }
        Ok(this)
    }

    async fn wait_ready(&self) -> Result<()> {
        let mut ask = self.kubectl(&["get", "--raw", "/readyz"]);
        let ready = wait_for("the API server to be ready", START_LIMIT, async || {
            self.api_server().check_running()?;
            // Cheaper than a kubectl, each of which costs an emulated guest seconds.
            tokio::time::sleep(PAUSE).await;
            if TcpStream::connect(("127.0.0.1", PORT)).await.is_err() {
                return Ok(None);
            }
            Ok(process::run(&mut ask).is_ok_and(|said| said == "ok").then_some(()))
        });
        ready.await.with_context(|| self.log_tail())
    }

    fn spawn_controllers(&self) -> Result<Vec<Managed>> {
        let at = self.directory.path();
        let common = |name: &str| {
            let mut command = Command::new(self.programs.join(name));
            command.arg("--kubeconfig").arg(self.kubeconfig()).arg("--cert-dir").arg(at.join(name));
            command.args(["--bind-address=127.0.0.1", "--leader-elect=false"]);
            command
        };
        let mut manager = common("kube-controller-manager");
        let of_api_server = at.join(CERTIFICATES);
        manager.arg("--service-account-private-key-file").arg(of_api_server.join("apiserver.key"));
        manager.arg("--root-ca-file").arg(of_api_server.join("apiserver.crt"));
        manager.arg(format!("--controllers={}", CONTROLLERS.join(",")));
        let scheduler = common("kube-scheduler");
        [("kube-controller-manager", manager), ("kube-scheduler", scheduler)]
            .into_iter()
            .map(|(name, command)| Managed::spawn(name, command, &at.join(format!("{name}.log"))))
            .collect()
    }

    fn api_server(&self) -> MutexGuard<'_, Managed> {
        self.api_server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kills the API server; what it stored stays.
    pub fn kill_api_server(&self) -> Result<()> {
        self.api_server().kill(STOP_LIMIT)
    }

    /// Starts it again, after it was killed, and waits until it says that it is ready.
    pub async fn start_api_server(&self) -> Result<()> {
        *self.api_server() = spawn_api_server(&self.programs, self.directory.path(), self.extent)?;
        self.wait_ready().await
    }

    /// Removes all pods, Deployments and nodes, without waiting for a kubelet.
    pub fn empty(&self) -> Result<()> {
        let all = ["delete", "pods,deployments,nodes", "--all", "--all-namespaces"];
        self.run(&[&all[..], &["--force", "--grace-period=0", "--wait=false"]].concat()).map(drop)
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.path().join("kubeconfig")
    }

    /// How a client reaches it that verifies its certificate.
    pub fn verifying_kubeconfig(&self) -> Result<PathBuf> {
        self.write_kubeconfig("verifying-kubeconfig", self.verifying()?)
    }

    /// How a service account reaches it, with a token of an hour.
    pub fn kubeconfig_of(&self, namespace: &str, account: &str) -> Result<PathBuf> {
        let token = self.run(&["create", "token", account, "--namespace", namespace])?;
        let mut kubeconfig = self.verifying()?;
        kubeconfig["users"][0]["user"] = json!({ "token": token.trim() });
        self.write_kubeconfig(&format!("kubeconfig-{namespace}-{account}"), kubeconfig)
    }

    fn verifying(&self) -> Result<Value> {
        let text = fs::read_to_string(self.kubeconfig()).context("read the kubeconfig")?;
        let mut kubeconfig: Value = serde_json::from_str(&text).context("parse the kubeconfig")?;
        kubeconfig["clusters"][0]["cluster"] = json!({
            "server": format!("https://127.0.0.1:{PORT}"),
            // Its own certificate, and that of the authority that it made for it.
            "certificate-authority": self.directory.path().join(CERTIFICATES).join("apiserver.crt"),
        });
        Ok(kubeconfig)
    }

    fn write_kubeconfig(&self, name: &str, kubeconfig: Value) -> Result<PathBuf> {
        let path = self.directory.path().join(name);
        fs::write(&path, kubeconfig.to_string()).context("write the kubeconfig")?;
        Ok(path)
    }

    pub fn kubectl(&self, arguments: &[&str]) -> Command {
        self.kubectl_as(&self.kubeconfig(), arguments)
    }

    pub fn kubectl_as(&self, kubeconfig: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.programs.join("kubectl"));
        command.arg("--kubeconfig").arg(kubeconfig).args(arguments);
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        process::run(&mut self.kubectl(arguments))
    }

    pub fn get(&self, kind: &str, name: &str) -> Result<Value> {
        self.json(&["get", kind, name])
    }

    /// What kubectl says, in JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.run(&[arguments, &["--output=json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("parse what kubectl says to {arguments:?}"))
    }

    pub fn create(&self, object: &Value) -> Result<()> {
        let path = self.directory.path().join("object.json");
        fs::write(&path, object.to_string()).context("write the object")?;
        self.create_from(&path)
    }

    pub fn create_from(&self, path: &Path) -> Result<()> {
        let path = path.to_str().context("a path in UTF-8")?;
        self.run(&["create", "--validate=ignore", "--filename", path]).map(drop)
    }

    /// Starts a kubectl that goes on, with its output in `log`.
    pub fn watch(&self, arguments: &[&str], log: &Path) -> Result<Managed> {
        Managed::spawn("kubectl", self.kubectl(arguments), log)
    }

    pub fn log_tail(&self) -> String {
        let tails = self.controllers.iter().map(Managed::log_tail);
        std::iter::once(self.api_server().log_tail()).chain(tails).collect::<Vec<_>>().join("\n")
    }
}

fn spawn_api_server(programs: &Path, directory: &Path, extent: Extent) -> Result<Managed> {
    let command = api_server(&programs.join("kube-apiserver"), directory, extent);
    Managed::spawn("kube-apiserver", command, &directory.join("api-server.log"))
}

fn etcd(program: &Path, directory: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg("--data-dir").arg(directory.join("etcd")).stdin(Stdio::null());
    for (flag, url) in [
        ("--listen-client-urls", ETCD),
        ("--advertise-client-urls", ETCD),
        ("--listen-peer-urls", ETCD_PEER),
        ("--initial-advertise-peer-urls", ETCD_PEER),
    ] {
        command.args([flag, url]);
    }
    command.args(["--initial-cluster", &format!("default={ETCD_PEER}"), "--unsafe-no-fsync"]);
    command
}

fn api_server(program: &Path, directory: &Path, extent: Extent) -> Command {
    // It makes a key and a certificate of its own here, and signs the tokens of service accounts with the same key.
    let own = directory.join(CERTIFICATES);
    let key = own.join("apiserver.key");
    let mut command = Command::new(program);
    command.args([
        &format!("--etcd-servers={ETCD}"),
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
    ]);
    command.arg(format!("--secure-port={PORT}"));
    command.arg("--cert-dir").arg(&own);
    for flag in ["--service-account-key-file", "--service-account-signing-key-file"] {
        command.arg(flag).arg(&key);
    }
    command.args(["--service-account-issuer=https://kubernetes.default.svc"]);
    command.arg("--service-cluster-ip-range=10.96.0.0/24");
    command.arg("--token-auth-file").arg(directory.join("tokens.csv"));
    let authorization = if extent == Extent::Bare { "AlwaysAllow" } else { "RBAC" };
    command.arg(format!("--authorization-mode={authorization}"));
    if extent != Extent::Whole {
        let more = if extent == Extent::Roles { GROUPS_WITH_ROLES } else { &[] };
        let groups: Vec<_> = GROUPS.iter().chain(more).map(|group| format!("{group}/v1=true")).collect();
        command.arg(format!("--disable-admission-plugins={NO_ADMISSION}"));
        command.arg(format!("--runtime-config=api/all=false,{}", groups.join(",")));
    }
    command.args([
        "--endpoint-reconciler-type=none",
        // No name server knows the node's name.
        "--kubelet-preferred-address-types=InternalIP",
        "--enable-priority-and-fairness=false",
        "--profiling=false",
    ]);
    command
}
