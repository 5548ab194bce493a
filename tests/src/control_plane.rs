//! A real control plane on loopback: etcd and the API server, without scheduler and controllers; and kubectl.
//!
//! Owns both processes and their directory. A pod needs its `nodeName`, for there is no scheduler; whoever has the kubeconfig may do anything.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::environment::Environment;
use crate::pod::new_uid;
use crate::process::{self, Managed, wait_for};

/// An emulated guest needs a minute.
const START_LIMIT: Duration = Duration::from_secs(300);
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(300);
const ETCD: &str = "http://127.0.0.1:2379";
const ETCD_PEER: &str = "http://127.0.0.1:2380";
const PORT: u16 = 6443;
/// Where the API server keeps its certificate and key.
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
/// What would need a group that is left out, or a controller.
const NO_ADMISSION: &str = "ServiceAccount,Priority,MutatingAdmissionWebhook,ValidatingAdmissionWebhook,\
                            ValidatingAdmissionPolicy,MutatingAdmissionPolicy";

/// A running control plane.
#[derive(Debug)]
pub struct ControlPlane {
    _etcd: Managed,
    api_server: Managed,
    directory: tempfile::TempDir,
    kubectl: PathBuf,
}

impl ControlPlane {
    /// Starts it, and waits until the API server says that it is ready.
    pub async fn start(environment: &Environment) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("kwitness-control-plane-").tempdir_in("/run");
        let directory = directory.context("make the control plane's directory in /run")?;
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
        let program = |name: &str| environment.job.join("bin").join(name);
        let etcd = Managed::spawn("etcd", etcd(&program("etcd"), at), &at.join("etcd.log"))?;
        let api_server = api_server(&program("kube-apiserver"), at);
        let api_server = Managed::spawn("kube-apiserver", api_server, &at.join("api-server.log"))?;
        let mut this = Self { _etcd: etcd, api_server, directory, kubectl: program("kubectl") };
        let mut ask = this.kubectl(&["get", "--raw", "/readyz"]);
        let process = &mut this.api_server;
        let ready = wait_for("the API server to be ready", START_LIMIT, async || {
            process.check_running()?;
            // Cheaper than a kubectl, each of which costs an emulated guest seconds.
            tokio::time::sleep(PAUSE).await;
            if TcpStream::connect(("127.0.0.1", PORT)).await.is_err() {
                return Ok(None);
            }
            Ok(process::run(&mut ask).is_ok_and(|said| said == "ok").then_some(()))
        });
        ready.await.with_context(|| this.api_server.log_tail())?;
        Ok(this)
    }

    /// How to reach it.
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.path().join("kubeconfig")
    }

    /// How a client reaches it that verifies its certificate.
    pub fn verifying_kubeconfig(&self) -> Result<PathBuf> {
        let text = fs::read_to_string(self.kubeconfig()).context("read the kubeconfig")?;
        let mut kubeconfig: Value = serde_json::from_str(&text).context("parse the kubeconfig")?;
        kubeconfig["clusters"][0]["cluster"] = json!({
            "server": format!("https://127.0.0.1:{PORT}"),
            // Its own certificate, and that of the authority that it made for it.
            "certificate-authority": self.directory.path().join(CERTIFICATES).join("apiserver.crt"),
        });
        let path = self.directory.path().join("verifying-kubeconfig");
        fs::write(&path, kubeconfig.to_string()).context("write the kubeconfig")?;
        Ok(path)
    }

    /// A call of kubectl.
    pub fn kubectl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.kubectl);
        command.arg("--kubeconfig").arg(self.kubeconfig()).args(arguments);
        command
    }

    /// Calls kubectl and gives what it said.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        process::run(&mut self.kubectl(arguments))
    }

    /// An object, as the API server has it.
    pub fn get(&self, kind: &str, name: &str) -> Result<Value> {
        let text = self.run(&["get", kind, name, "--output=json"])?;
        serde_json::from_str(&text).with_context(|| format!("parse {kind} {name}"))
    }

    /// Makes an object.
    pub fn create(&self, object: &Value) -> Result<()> {
        let path = self.directory.path().join("object.json");
        fs::write(&path, object.to_string()).context("write the object")?;
        self.create_from(&path)
    }

    /// Makes the objects of a file.
    pub fn create_from(&self, path: &Path) -> Result<()> {
        let path = path.to_str().context("a path in UTF-8")?;
        self.run(&["create", "--validate=ignore", "--filename", path]).map(drop)
    }

    /// Starts a kubectl that goes on, with its output in `log`.
    pub fn watch(&self, arguments: &[&str], log: &Path) -> Result<Managed> {
        Managed::spawn("kubectl", self.kubectl(arguments), log)
    }

    /// The end of the API server's log.
    pub fn log_tail(&self) -> String {
        self.api_server.log_tail()
    }
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

fn api_server(program: &Path, directory: &Path) -> Command {
    // It makes a key and a certificate of its own here, and signs the tokens of service accounts with the same key.
    let own = directory.join(CERTIFICATES);
    let key = own.join("apiserver.key");
    let groups: Vec<_> = GROUPS.iter().map(|group| format!("{group}/v1=true")).collect();
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
    command.args(["--service-cluster-ip-range=10.96.0.0/24", "--authorization-mode=AlwaysAllow"]);
    command.arg("--token-auth-file").arg(directory.join("tokens.csv"));
    command.args([
        &format!("--disable-admission-plugins={NO_ADMISSION}"),
        &format!("--runtime-config=api/all=false,{}", groups.join(",")),
    ]);
    command.args([
        "--endpoint-reconciler-type=none",
        // No name server knows the node's name.
        "--kubelet-preferred-address-types=InternalIP",
        "--enable-priority-and-fairness=false",
        "--profiling=false",
    ]);
    command
}
