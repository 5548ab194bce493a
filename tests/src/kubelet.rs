//! A real kubelet. It runs the pods whose manifests lie in a directory, and, joined to a control plane, those of its node's name.
//!
//! Owns the kubelet's process and directories, and what shields this machine's kernel from it: a kubelet sets some sysctls of the
//! kernel; it finds files with the values that it wants in their place, in this mount namespace only.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketType};
use serde_json::{Map, Value, json};

use crate::cgroup;
use crate::control_plane::ControlPlane;
use crate::environment::{CgroupDriver, Environment};
use crate::node::Node;
use crate::pod::APP_IMAGE;
use crate::process::{self, Managed, wait_for};
use crate::scrape;

/// An emulated guest that runs the control plane as well is slow.
const START_LIMIT: Duration = Duration::from_secs(180);
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// With the generic PLEG the kubelet lists everything once in that time (`genericPlegRelistPeriod` of `pkg/kubelet/kubelet.go`), on
/// events once in 300 s (`eventedPlegRelistPeriod`).
const RELIST_PERIOD: Duration = Duration::from_secs(1);
/// The ports of its health and, without authentication, of its metrics.
const HEALTH_PORT: u16 = 10248;
const READ_ONLY_PORT: u16 = 10255;
/// Where it keeps volumes, and the containers' logs; both are made for it.
const STATE: [&str; 2] = ["/var/lib/kubelet", "/var/log/pods"];
/// What a kubelet sets, if it finds another value: `setupKernelTunables` of its container manager.
const SYSCTLS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Enough for what [`Kubelet::check_events_in_use`] looks for.
const VERBOSITY: u8 = 4;

pub const NODE: &str = "node";
/// A node's address must be one of its interfaces', and not loopback's.
const NODE_ADDRESS: &str = "10.99.0.1";
const NODE_INTERFACE: &str = "node0";

/// From this release of Kubernetes 1 on, an event has the kubelet ask about that pod at once, and it asks about all of them every second
/// nevertheless (`pkg/kubelet/pleg/evented.go`). Before, events replace the asking.
const HINTS_SINCE: u32 = 37;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pleg {
    Generic,
    /// The stream of the CRI does.
    Evented,
}

#[derive(Clone, Debug)]
pub struct Setup {
    pub pleg: Pleg,
    pub driver: CgroupDriver,
    /// Further fields of its `KubeletConfiguration`; `featureGates` are added to those that are set anyway.
    pub settings: Map<String, Value>,
    pub verbosity: u8,
    /// The release of Kubernetes that it is of, "1.34"; none: the one that the environment names, else the usual one.
    pub release: Option<&'static str>,
}

impl From<Pleg> for Setup {
    /// With cgroups made by the kubelet itself, and nothing else set.
    fn from(pleg: Pleg) -> Self {
        Self {
            pleg,
            driver: CgroupDriver::Cgroupfs,
            settings: Map::new(),
            verbosity: VERBOSITY,
            release: None,
        }
    }
}

#[derive(Debug)]
pub struct Kubelet {
    process: Managed,
    lists_anyway: bool,
    directory: tempfile::TempDir,
    cgroup: String,
    mounted: Vec<PathBuf>,
    stopped: bool,
}

impl Kubelet {
    fn program(environment: &Environment, release: Option<&str>) -> PathBuf {
        let release = release.or(environment.kubelet.as_deref());
        let name = release.map_or_else(|| "kubelet".to_owned(), |release| format!("kubelet-{release}"));
        environment.job.join("bin").join(name)
    }

    pub fn version(environment: &Environment) -> Result<String> {
        let said = process::run(Command::new(Self::program(environment, None)).arg("--version"))?;
        let version = said.split_whitespace().last();
        Ok(version.context("the kubelet does not say its version")?.to_owned())
    }

    /// Starts it joined to a control plane, as the node [`NODE`].
    pub async fn join(
        environment: &Environment,
        runtime: &Path,
        pleg: Pleg,
        control_plane: &ControlPlane,
    ) -> Result<Self> {
        Self::start_as(environment, runtime, pleg.into(), Some(control_plane)).await
    }

    /// Starts it with that configuration, standalone or joined to a control plane.
    pub async fn start_as(
        environment: &Environment,
        runtime: &Path,
        setup: Setup,
        control_plane: Option<&ControlPlane>,
    ) -> Result<Self> {
        let directory = process::directory("kubelet")?;
        let mut mounted = Vec::new();
        shield_sysctls(directory.path(), &mut mounted)?;
        for state in STATE {
            fs::create_dir_all(state).with_context(|| format!("make {state}"))?;
            let none = None::<&str>;
            mount(Some("tmpfs"), state, Some("tmpfs"), MsFlags::empty(), none)
                .with_context(|| format!("mount a tmpfs at {state}"))?;
            mounted.push(state.into());
            mount(none, state, none, MsFlags::MS_SHARED, none).with_context(|| format!("share {state}"))?;
        }
        let cgroup = environment.cgroup(&format!("kubelet-{}", std::process::id()));
        for hierarchy in cgroup::hierarchies()? {
            let own = hierarchy.join(cgroup.trim_start_matches('/'));
            fs::create_dir_all(&own).with_context(|| format!("make {}", own.display()))?;
        }
        let manifests = directory.path().join("manifests");
        fs::create_dir(&manifests).context("make the directory of manifests")?;
        let configuration = directory.path().join("kubelet.yaml");
        let verbosity = format!("-v={}", setup.verbosity);
        let program = Self::program(environment, setup.release);
        let lists_anyway = lists_anyway(&program);
        let mut settings = self::configuration(&manifests, runtime, &cgroup, setup);
        if control_plane.is_some() {
            // Where the API server connects for a port-forward: the node's address, and the tests' own on loopback.
            settings["address"] = json!("0.0.0.0");
        }
        fs::write(&configuration, settings.to_string()).context("write the kubelet's configuration")?;
        let mut command = Command::new(program);
        command.arg("--config").arg(&configuration).args(["--hostname-override", NODE, &verbosity]);
        if let Some(control_plane) = control_plane {
            make_address()?;
            command.arg("--kubeconfig").arg(control_plane.kubeconfig()).args(["--node-ip", NODE_ADDRESS]);
        }
        let process = Managed::spawn("kubelet", command, &directory.path().join("kubelet.log"))?;
        let mut kubelet = Self { process, lists_anyway, directory, cgroup, mounted, stopped: false };
        let is_well = async || {
            Ok(scrape::get_at(HEALTH_PORT, "/healthz").await.is_ok_and(|text| text == "ok").then_some(()))
        };
        kubelet.process.wait_for("the kubelet to be well", START_LIMIT, is_well).await?;
        Ok(kubelet)
    }

    /// Has it run a pod with one container, `main`.
    pub fn add_pod(&self, name: &str, command: &[&str]) -> Result<()> {
        self.place(name, &pod(name, &[container("main", command)]))
    }

    pub fn place(&self, name: &str, manifest: &Value) -> Result<()> {
        // Under its name only when it is whole: the kubelet reads what it sees.
        let path = self.manifest(name);
        let draft = self.directory.path().join("draft.yaml");
        fs::write(&draft, manifest.to_string()).with_context(|| format!("write {}", draft.display()))?;
        fs::rename(&draft, &path).with_context(|| format!("place {}", path.display()))
    }

    pub fn remove(&self, name: &str) -> Result<()> {
        let path = self.manifest(name);
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
    }

    fn manifest(&self, name: &str) -> PathBuf {
        self.directory.path().join("manifests").join(format!("{name}.yaml"))
    }

    /// Ends it, and then what it ran: before that it would start again what is removed, and its cgroups can be removed after it only.
    pub async fn retire(mut self, node: &mut Node) -> Result<()> {
        self.stop()?;
        node.remove_all_pods().await
    }

    /// Ends it; pods run on.
    pub fn stop(&mut self) -> Result<()> {
        if !std::mem::replace(&mut self.stopped, true) {
            self.process.terminate(STOP_LIMIT)?;
        }
        Ok(())
    }

    pub fn log(&self) -> Result<String> {
        self.process.log()
    }

    pub fn log_tail(&self) -> String {
        self.process.log_tail()
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Fails unless the kubelet has used events, and nothing else, so far.
    pub async fn check_events_in_use(&self) -> Result<()> {
        self.check_events_in_use_over(0).await
    }

    /// The same, after the stream of events ended so many times.
    pub async fn check_events_in_use_over(&self, ends: u32) -> Result<()> {
        let connected = self.metric("kubelet_evented_pleg_connection_success_count").await?;
        ensure!(connected == Some(f64::from(1 + ends)), "connected to the event stream {connected:?} times");
        let failed = self.metric("kubelet_evented_pleg_connection_error_count").await?;
        ensure!(failed.unwrap_or(0.0) == f64::from(ends), "the event stream ended {failed:?} times");
        let log = self.log()?;
        let is_given_up = ["Fall back to Generic PLEG", "disabling container-termination fast path"];
        ensure!(!is_given_up.iter().any(|line| log.contains(line)), "the kubelet gave events up");
        if self.lists_anyway {
            return Ok(());
        }
        ensure!(log.contains("Generated pod status from the received event"), "the kubelet used no event");
        Ok(())
    }

    /// Whether it lists everything each second, whether events come or not.
    pub fn lists_anyway(&self) -> bool {
        self.lists_anyway
    }

    /// How long it takes until the kubelet has acted on what `change` does and waits for. Fails if it may have found out by itself:
    /// it listed everything meanwhile, and does not do so anyway.
    pub async fn acts_on_events(&self, change: impl AsyncFnOnce() -> Result<()>) -> Result<Duration> {
        let before = self.relists().await?;
        let began = Instant::now();
        change().await?;
        let took = began.elapsed();
        let relists = self.relists().await? - before;
        // One in 300 s may fall into any change. Only a kubelet that lists every second is slower than that for it.
        let is_by_event = relists < 1.0 || took < RELIST_PERIOD || self.lists_anyway;
        ensure!(is_by_event, "acted after {took:?}, with {relists} relists");
        Ok(took)
    }

    pub async fn relists(&self) -> Result<f64> {
        Ok(self.metric("kubelet_pleg_relist_duration_seconds_count").await?.unwrap_or(0.0))
    }

    /// The value of a metric without labels; none: it has not got that far.
    ///
    /// While the kubelet knows two instances of a container, it serves no metrics: it would name those of both alike.
    pub async fn metric(&self, name: &str) -> Result<Option<f64>> {
        let text = self.metrics().await?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map(|value| value.trim().parse().with_context(|| format!("the metric {name}"))).transpose()
    }

    pub async fn metric_sum(&self, name: &str) -> Result<f64> {
        let text = self.metrics().await?;
        let series = text
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
        let values = series.filter_map(|line| line.rsplit(' ').next());
        values.map(|value| value.parse::<f64>().with_context(|| format!("the metric {name}"))).sum()
    }

    async fn metrics(&self) -> Result<String> {
        wait_for("the kubelet's metrics", START_LIMIT, async || {
            Ok(scrape::get_at(READ_ONLY_PORT, "/metrics").await.ok())
        })
        .await
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        let ended = self.stop();
        let unmounted = self.mounted.iter().rev().try_for_each(|at| {
            umount2(at, MntFlags::MNT_DETACH).with_context(|| format!("unmount {}", at.display()))
        });
        let removed = cgroup::remove_everywhere(&self.cgroup);
        if let Err(error) = ended.and(unmounted).and(removed) {
            eprintln!("the kubelet leaves something behind: {error:#}");
        }
    }
}

/// By the program's name: `kubelet-1.37`.
fn lists_anyway(program: &Path) -> bool {
    let name = program.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let minor = name.rsplit_once("-1.").and_then(|(_, minor)| minor.parse::<u32>().ok());
    minor.is_some_and(|minor| minor >= HINTS_SINCE)
}

/// A bridge without ports, which every kernel has.
fn make_address() -> Result<()> {
    // Not by /sys/class/net, which is of the network namespace that it was mounted in.
    let socket =
        rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None).context("make a socket")?;
    if name_to_index(&socket, NODE_INTERFACE).is_ok() {
        return Ok(());
    }
    let prefix = format!("{NODE_ADDRESS}/24");
    for arguments in [
        &["link", "add", "name", NODE_INTERFACE, "type", "bridge"][..],
        &["address", "add", &prefix, "dev", NODE_INTERFACE],
        &["link", "set", NODE_INTERFACE, "up"],
    ] {
        // By path, for the shell's own `ip` knows less.
        process::run(Command::new("/usr/bin/ip").args(arguments))?;
    }
    Ok(())
}

fn shield_sysctls(directory: &Path, mounted: &mut Vec<PathBuf>) -> Result<()> {
    for (name, wanted) in SYSCTLS {
        let path = Path::new("/proc/sys").join(name);
        let found = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        if found.trim() == wanted {
            continue;
        }
        let stand_in = directory.join(name.replace('/', "."));
        fs::write(&stand_in, format!("{wanted}\n"))
            .with_context(|| format!("write {}", stand_in.display()))?;
        mount(Some(&stand_in), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .with_context(|| format!("mount {} at {}", stand_in.display(), path.display()))?;
        mounted.push(path);
    }
    Ok(())
}

/// A container of a manifest, of the image that every node has.
pub fn container(name: &str, command: &[&str]) -> Value {
    json!({ "name": name, "image": APP_IMAGE, "imagePullPolicy": "Never", "command": command })
}

/// The spec of a pod on the network of its node, which a scheduler may choose.
pub fn pod_spec(containers: &[Value]) -> Value {
    json!({
        "hostNetwork": true,
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": 1,
        "tolerations": [{ "operator": "Exists" }],
        "containers": containers,
    })
}

/// The manifest of a pod on this node.
pub fn pod(name: &str, containers: &[Value]) -> Value {
    let mut spec = pod_spec(containers);
    spec["nodeName"] = NODE.into();
    let metadata = json!({ "name": name, "namespace": "default" });
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec })
}

/// A checkpoint as the kubelet writes it since Kubernetes 1.33, of a pod's container `main`.
pub fn checkpoint(uid: &str, limits: &Value) -> String {
    let entry = json!({ "ContainerResources": { "main": { "limits": limits } } });
    let data = json!({ "entries": { (uid): entry } });
    json!({ "data": data.to_string(), "checksum": 0 }).to_string()
}

fn configuration(manifests: &Path, runtime: &Path, cgroup: &str, setup: Setup) -> Value {
    // systemd would take the dashes of another root's name for levels.
    let root = if setup.driver == CgroupDriver::Systemd { "/" } else { cgroup };
    let mut configuration = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "staticPodPath": manifests,
        "containerRuntimeEndpoint": format!("unix://{}", runtime.display()),
        "cgroupDriver": setup.driver.name(),
        "cgroupRoot": root,
        "cgroupsPerQOS": true,
        "enforceNodeAllocatable": ["pods"],
        "failSwapOn": false,
        "failCgroupV1": false,
        "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
        "authorization": { "mode": "AlwaysAllow" },
        "address": "127.0.0.1",
        "healthzPort": HEALTH_PORT,
        "readOnlyPort": READ_ONLY_PORT,
        "resolvConf": "",
        "evictionHard": { "imagefs.available": "0%", "nodefs.available": "0%", "memory.available": "1Mi" },
        "imageMinimumGCAge": "24h",
        "featureGates": { "EventedPLEG": setup.pleg == Pleg::Evented },
    });
    for (name, value) in setup.settings {
        match (&mut configuration[&name], value) {
            (Value::Object(gates), Value::Object(more)) if name == "featureGates" => gates.extend(more),
            (field, value) => *field = value,
        }
    }
    configuration
}
