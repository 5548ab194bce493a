//! The node with its kubelet, and the pods on it: made, resized, and listed as the runtime has them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use kwitness_tests::cluster_node::registered;
use kwitness_tests::cri::v1;
use kwitness_tests::kubelet::{Setup, container};
use kwitness_tests::matrix::{KubeletVariant, Origin, Spec};
use kwitness_tests::node::Extras;
use kwitness_tests::prelude::*;
use serde_json::{Value, json};

/// How long anything may take; an emulated guest is slow.
pub(crate) const SOON: Duration = Duration::from_secs(300);
/// Pods that start at a time: their containers are a hundred megabytes of starting processes each.
const BATCH: usize = 16;
/// Between two looks, each of which costs an emulated guest.
pub(crate) const PAUSE: Duration = Duration::from_millis(500);
const EPHEMERAL: &str = "debugger";
/// What a new guest's kernel has too little of, with the files below `/proc/sys`: huge pages, which a kubelet offers if they are
/// there when it starts; and inotify instances, of which each container's shim takes one to see the OOM killer.
const KERNEL: [(&str, u64); 2] = [("vm/nr_hugepages", 4), ("fs/inotify/max_user_instances", 1024)];
/// Lines of the kubelet's log that are shown of a pod that does not run.
const LINES: usize = 5;

/// A pod's name, and that of one of its containers.
type Container = (&'static str, &'static str);

/// What runs while a kubelet's pods are judged.
pub(crate) struct Cluster<'a> {
    pub(crate) node: &'a Node,
    pub(crate) agent: &'a Agent,
    kubelet: &'a Kubelet,
    api: Option<&'a ControlPlane>,
}

/// Runs `body` on a node with that kubelet.
pub(crate) async fn with_cluster(
    ctx: &TestContext,
    driver: CgroupDriver,
    variant: KubeletVariant,
    body: impl AsyncFnOnce(&Cluster<'_>) -> Result<()>,
) -> Result<()> {
    let environment = &ctx.environment;
    prepare_kernel()?;
    let api = match variant.origin {
        Origin::Api => Some(ControlPlane::start(environment).await?),
        Origin::Files | Origin::FilesWithoutUid => None,
    };
    let api = api.as_ref();
    let extras = Extras { default_handler: Some(variant.handler(driver)), ..Extras::default() };
    let mut node = Node::start_with(environment, driver, &extras).await?;
    let agent = Agent::start(environment, &[]).await?;
    let proxy = Proxy::start(environment, agent.socket()).await?;
    let is_proxied = variant.proxy || driver == CgroupDriver::Systemd;
    let runtime = if is_proxied { proxy.socket() } else { Path::new(CONTAINERD_SOCKET) };
    // No pod waits for the runtime so long that the kubelet gives up.
    let mut settings = json!({ "runtimeRequestTimeout": "15m" });
    if let (Value::Object(all), Value::Object(more)) = (&mut settings, (variant.settings)()) {
        all.extend(more);
    }
    let settings = settings.as_object().cloned().unwrap_or_default();
    let setup = Setup { driver, settings, release: variant.release, ..Pleg::Generic.into() };
    let kubelet = Kubelet::start_as(environment, runtime, setup, api).await?;
    let done = body(&Cluster { node: &node, agent: &agent, kubelet: &kubelet, api }).await;
    let done = done.with_context(|| kubelet.log_tail()).with_context(|| agent.log_tail());
    let done = done.with_context(|| node.log_tail());
    kubelet.retire(&mut node).await?;
    node.shutdown().await?;
    done?;
    proxy.stop()?;
    agent.stop()
}

/// The guest's kernel is ours.
fn prepare_kernel() -> Result<()> {
    for (name, wanted) in KERNEL {
        let path = Path::new("/proc/sys").join(name);
        let at = || path.display().to_string();
        fs::write(&path, wanted.to_string()).with_context(|| format!("write {}", at()))?;
        let is: u64 = fs::read_to_string(&path).with_context(at)?.trim().parse().with_context(at)?;
        ensure!(is >= wanted, "{} is {is}, not {wanted}: the kernel has no more", at());
    }
    Ok(())
}

impl Cluster<'_> {
    /// Has the kubelet run all pods, and waits until they do. Returns those that do not, each with the reason.
    pub(crate) async fn run(&self, specs: &[Spec]) -> Result<BTreeMap<&'static str, String>> {
        if let Some(api) = self.api {
            registered(api).await?;
        }
        let mut failed = BTreeMap::new();
        for batch in specs.chunks(BATCH) {
            let began = Instant::now();
            let mut wanted = BTreeSet::new();
            for spec in batch {
                match self.create(spec) {
                    Ok(()) => wanted.extend(spec.running().map(|name| (spec.name, name))),
                    Err(error) => {
                        failed.insert(spec.name, format!("{error:#}"));
                    }
                }
            }
            let mut missing = self.wait_running(wanted).await?;
            for spec in batch.iter().filter(|spec| spec.ephemeral) {
                match self.add_ephemeral(spec) {
                    Ok(()) => missing.extend(self.wait_running([(spec.name, EPHEMERAL)].into()).await?),
                    Err(error) => {
                        failed.insert(spec.name, format!("{error:#}"));
                    }
                }
            }
            if !missing.is_empty() {
                failed.extend(self.reasons(&missing)?);
            }
            println!("{} pods run after {:.1} s", batch.len(), began.elapsed().as_secs_f64());
        }
        Ok(failed)
    }

    fn create(&self, spec: &Spec) -> Result<()> {
        let manifest = spec.manifest(1);
        match self.api {
            Some(api) => api.create(&manifest),
            None => self.kubelet.place(spec.name, &manifest),
        }
    }

    fn add_ephemeral(&self, spec: &Spec) -> Result<()> {
        let api = self.api.context("no API server to add an ephemeral container by")?;
        let container = container(EPHEMERAL, &["/bin/sleep", "100000"]);
        let patch = json!({ "spec": { "ephemeralContainers": [container] } }).to_string();
        api.run(&["patch", "pod", spec.name, "--subresource=ephemeralcontainers", "--patch", &patch])?;
        Ok(())
    }

    /// Waits until these containers, each with its pod, run. Returns those that do not.
    async fn wait_running(&self, mut missing: BTreeSet<Container>) -> Result<BTreeSet<Container>> {
        let began = Instant::now();
        while !missing.is_empty() && began.elapsed() < SOON {
            tokio::time::sleep(PAUSE).await;
            let request = v1::ListContainersRequest::default();
            for of in self.node.cri().list_containers(request).await?.containers {
                let label = |name: &str| of.labels.get(name).map_or("", String::as_str);
                let (pod, name) = (label("io.kubernetes.pod.name"), label("io.kubernetes.container.name"));
                if of.state() == v1::ContainerState::ContainerRunning {
                    missing.retain(|(of_pod, of_name)| (&*self.pod_name(of_pod), *of_name) != (pod, name));
                }
            }
        }
        Ok(missing)
    }

    /// Why these containers' pods do not run: the errors and warnings that the kubelet's log has of each.
    fn reasons(&self, missing: &BTreeSet<Container>) -> Result<BTreeMap<&'static str, String>> {
        let log = self.kubelet.log()?;
        let mut reasons = BTreeMap::new();
        for pod in missing.iter().map(|(pod, _)| *pod).collect::<BTreeSet<_>>() {
            let names = [format!("\"default/{}\"", self.pod_name(pod)), format!("/{pod}.yaml")];
            let is_bad = |line: &&str| line.starts_with(['E', 'W']) || line.contains("type=\"Warning\"");
            let bad = log.lines().filter(|line| names.iter().any(|name| line.contains(name))).filter(is_bad);
            let mut said = Vec::new();
            // It tries again and again: without the time, it says the same.
            for line in bad.map(|line| line.split_once("] ").map_or(line, |(_, said)| said)) {
                if !said.contains(&line) {
                    said.push(line);
                }
            }
            let containers = missing.iter().filter(|(of, _)| *of == pod).map(|(_, name)| *name);
            let containers = containers.collect::<Vec<_>>().join(", ");
            let said = said[said.len().saturating_sub(LINES)..].join("\n  ");
            reasons.insert(pod, format!("{containers} does not run: the kubelet says:\n  {said}"));
        }
        Ok(reasons)
    }

    /// Asks for limits that are so many times those of the table.
    pub(crate) fn resize(&self, spec: &Spec, times: u64) -> Result<()> {
        let manifest = spec.manifest(times);
        let Some(api) = self.api else { return self.kubelet.place(spec.name, &manifest) };
        let resources = |of: &Value| {
            let all = of.as_array().into_iter().flatten();
            all.map(|of| json!({ "name": of["name"], "resources": of["resources"] })).collect::<Vec<_>>()
        };
        let spec_of = &manifest["spec"];
        let mut patch = json!({ "spec": {
            "initContainers": resources(&spec_of["initContainers"]),
            "containers": resources(&spec_of["containers"]),
        } });
        if !spec_of["resources"].is_null() {
            patch["spec"]["resources"] = spec_of["resources"].clone();
        }
        let patch = patch.to_string();
        api.run(&["patch", "pod", spec.name, "--subresource=resize", "--patch", &patch]).map(drop)
    }

    /// The kubelet adds its node's name to that of a pod from a file.
    fn pod_name(&self, name: &str) -> String {
        if self.api.is_some() { name.to_owned() } else { format!("{name}-{NODE}") }
    }

    /// What the kubelet says of its resizes.
    pub(crate) fn resizes(&self) -> Result<String> {
        let log = self.kubelet.log()?;
        let lines: Vec<_> = log.lines().filter(|line| line.contains("esize")).collect();
        Ok(lines[lines.len().saturating_sub(40)..].join("\n"))
    }
}
