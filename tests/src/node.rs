//! A node: a real containerd with the images that the tests need, and pods on it. Plays the kubelet.
//!
//! Owns the containerd process, its state on a tmpfs, the shims it leaves when it ends, and the cgroups below its
//! root. One node at a time in a mount namespace, for containerd's socket is at the place where a node agent
//! looks for it. Never touches a containerd that it did not start.

use std::collections::HashMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::cgroup;
use crate::cri::{Cri, v1};
use crate::environment::{CgroupDriver, Environment, Handler};
use crate::pod::{APP_IMAGE, ContainerSpec, PAUSE_IMAGE, Pod, PodSpec};
use crate::process::{self, Managed, Paused, wait_for};

/// Where a node agent looks for containerd first.
pub const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";

/// `CAP_SYS_RESOURCE` of `linux/capability.h`: without it, no process may lower its own OOM score.
const CAP_SYS_RESOURCE: u32 = 24;
/// A guest without hardware virtualization needs six seconds for what the machine itself does in a tenth of one.
const START_LIMIT: Duration = Duration::from_secs(90);
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// How often a container is made when the runtime cannot start it because its shim is missing.
const START_ATTEMPTS: u32 = 3;
/// How containerd's error for that begins.
const SHIM_GONE: &str = "failed to start shim";
/// Its error for a call to a shim that has just ended.
const SHIM_ENDED: &str = "ttrpc: closed";
/// Where Debian's `containernetworking-plugins` are.
const CNI_PLUGINS: &str = "/usr/lib/cni";
/// A bridge, addresses from a range of its own, and ports of the node for those that ask.
const NETWORK: &str = r#"{"cniVersion": "1.0.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "pods0", "isGateway": true, "ipMasq": true, "hairpinMode": true, "ipam": {
    "type": "host-local", "ranges": [[{"subnet": "10.88.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}
]}"#;
const EXIT_LIMIT: Duration = Duration::from_secs(400);

/// What a node may have beside its runtimes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extras {
    /// Where every image is pulled from.
    pub registry: Option<SocketAddr>,
    /// Pods may have a network of their own; the root needs CNI plugins for that.
    pub network: bool,
    /// The OCI runtime of pods that name none; none: containerd's own choice, runc.
    pub default_handler: Option<Handler>,
}

#[derive(Clone, Debug)]
pub struct Executed {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

#[derive(Debug)]
pub struct Node {
    driver: CgroupDriver,
    cgroup2: PathBuf,
    /// The cgroup below which the pods' are, from the root of the hierarchy.
    root: String,
    directory: tempfile::TempDir,
    containerd: Option<Managed>,
    cri: Cri,
}

impl Node {
    /// Starts containerd with both OCI runtimes as handlers, and waits until it has its images.
    pub async fn start(environment: &Environment, driver: CgroupDriver) -> Result<Self> {
        Self::start_with(environment, driver, &Extras::default()).await
    }

    /// The same, with more than most tests need.
    pub async fn start_with(
        environment: &Environment,
        driver: CgroupDriver,
        extras: &Extras,
    ) -> Result<Self> {
        ensure!(
            tokio::net::UnixStream::connect(CONTAINERD_SOCKET).await.is_err(),
            "a containerd answers at {CONTAINERD_SOCKET} already: this needs a mount namespace of its own"
        );
        require_overlay()?;
        // containerd keeps its layers below: on a tmpfs they are quick, and overlayfs does not stack on all else.
        let directory = process::directory("node")?;
        let root = environment.cgroup("kubepods");
        fs::write(directory.path().join("config.toml"), configuration(directory.path(), driver, extras)?)
            .context("write containerd's configuration")?;
        let mut containerd = spawn(directory.path())?;
        let cri = connect(&mut containerd).await?;
        import(&environment.job.join("images.tar"), &cri, &[PAUSE_IMAGE, APP_IMAGE])
            .await
            .with_context(|| containerd.log_tail())?;
        Ok(Self {
            driver,
            cgroup2: environment.cgroup2.clone(),
            root,
            directory,
            containerd: Some(containerd),
            cri,
        })
    }

    pub fn cri(&self) -> &Cri {
        &self.cri
    }

    pub fn driver(&self) -> CgroupDriver {
        self.driver
    }

    pub fn log_tail(&self) -> String {
        self.containerd.as_ref().map_or_else(|| "containerd is stopped".to_owned(), Managed::log_tail)
    }

    pub fn containerd_pid(&self) -> Result<u32> {
        Ok(self.containerd.as_ref().context("containerd is stopped")?.pid())
    }

    /// Stops containerd; pods and their shims run on.
    pub fn stop_containerd(&mut self) -> Result<()> {
        let mut containerd = self.containerd.take().context("containerd is stopped already")?;
        containerd.terminate(STOP_LIMIT)?;
        Ok(())
    }

    /// Stops containerd's threads until the guard is dropped; pods and their shims run on.
    pub fn pause_containerd(&self) -> Result<Paused> {
        self.containerd.as_ref().context("containerd is stopped")?.pause()
    }

    pub async fn start_containerd(&mut self) -> Result<()> {
        ensure!(self.containerd.is_none(), "containerd runs already");
        let mut containerd = spawn(self.directory.path())?;
        self.cri = connect(&mut containerd).await?;
        self.containerd = Some(containerd);
        Ok(())
    }

    pub async fn run_pod(&self, spec: &PodSpec) -> Result<Pod> {
        self.run_pod_below(&self.root, spec).await
    }

    /// Starts a pod whose cgroup is below another one than the pods' own, which the caller removes afterwards.
    pub async fn run_pod_below(&self, root: &str, spec: &PodSpec) -> Result<Pod> {
        let cgroup = spec.cgroup(root, self.driver);
        let config = spec.config(&cgroup);
        let request = v1::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: spec.handler.name().to_owned(),
        };
        let answer = self.cri.run_pod_sandbox(request).await.with_context(|| self.log_tail())?;
        Ok(Pod { spec: spec.clone(), sandbox: answer.pod_sandbox_id, cgroup, config })
    }

    pub async fn create(&self, pod: &Pod, spec: &ContainerSpec) -> Result<String> {
        self.create_by(&self.cri, pod, spec).await
    }

    pub fn create_request(&self, pod: &Pod, spec: &ContainerSpec) -> v1::CreateContainerRequest {
        v1::CreateContainerRequest {
            pod_sandbox_id: pod.sandbox.clone(),
            config: Some(spec.config(&pod.spec)),
            sandbox_config: Some(pod.config.clone()),
        }
    }

    /// Makes a container by another way to the runtime, and gives its id.
    pub async fn create_by(&self, cri: &Cri, pod: &Pod, spec: &ContainerSpec) -> Result<String> {
        let answer = cri.create_container(self.create_request(pod, spec)).await;
        Ok(answer.with_context(|| format!("create container {}", spec.name))?.container_id)
    }

    pub async fn start_container(&self, id: &str) -> Result<()> {
        self.cri.start_container(v1::StartContainerRequest { container_id: id.to_owned() }).await?;
        Ok(())
    }

    /// Makes and starts a container and gives its id.
    ///
    /// On a slow machine containerd 1.7 may find its own shim gone (`failed to start shim`) when a container starts
    /// while another of the same pod ends. As the kubelet would, this then makes another one in its place, and says so.
    pub async fn run(&self, pod: &Pod, spec: &ContainerSpec) -> Result<String> {
        let mut attempt = 1;
        loop {
            let id = self.create(pod, spec).await?;
            match self.start_container(&id).await {
                Ok(()) => return Ok(id),
                Err(error) if attempt < START_ATTEMPTS && format!("{error:#}").contains(SHIM_GONE) => {
                    eprintln!("container {} is made again: {error:#}", spec.name);
                    self.remove_container(&id).await?;
                    attempt += 1;
                }
                Err(error) => return Err(error.context(format!("start container {}", spec.name))),
            }
        }
    }

    /// Gives containerd an image more, by the name that the CRI knows it by.
    pub async fn import(&self, archive: &Path, image: &str) -> Result<()> {
        import(archive, &self.cri, &[image]).await
    }

    /// Runs a program in a running container, as `kubectl exec` does, and gives its exit code.
    pub async fn exec(&self, id: &str, command: &[&str]) -> Result<i32> {
        Ok(self.exec_output(id, command).await?.code)
    }

    pub async fn exec_output(&self, id: &str, command: &[&str]) -> Result<Executed> {
        let request = v1::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            timeout: 30,
        };
        let v1::ExecSyncResponse { stdout, stderr, exit_code } = self.cri.exec_sync(request).await?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Executed { code: exit_code, stdout: text(stdout), stderr: text(stderr) })
    }

    /// Stops a container: SIGTERM, and after `grace` seconds SIGKILL.
    pub async fn stop_container(&self, id: &str, grace: i64) -> Result<()> {
        let request = v1::StopContainerRequest { container_id: id.to_owned(), timeout: grace };
        self.cri.stop_container(request).await?;
        Ok(())
    }

    pub async fn remove_container(&self, id: &str) -> Result<()> {
        self.cri.remove_container(v1::RemoveContainerRequest { container_id: id.to_owned() }).await?;
        Ok(())
    }

    /// The containers of a pod that a kubelet runs, in whatever state.
    pub async fn containers(&self, pod: &str) -> Result<Vec<v1::Container>> {
        let mut containers = self.cri.list_containers(v1::ListContainersRequest::default()).await?.containers;
        // The kubelet adds its node's name to that of a static pod.
        let is_of = |labels: &HashMap<String, String>| {
            labels.get("io.kubernetes.pod.name").is_some_and(|name| name.starts_with(pod))
        };
        containers.retain(|container| is_of(&container.labels));
        Ok(containers)
    }

    /// The running container of a pod that a kubelet runs, if there is one other than `not`.
    pub async fn running(&self, pod: &str, not: &str) -> Result<Option<String>> {
        let mut containers = self.containers(pod).await?.into_iter();
        let is = |container: &v1::Container| {
            container.state() == v1::ContainerState::ContainerRunning && container.id != not
        };
        Ok(containers.find(is).map(|container| container.id))
    }

    pub async fn status(&self, id: &str) -> Result<v1::ContainerStatus> {
        let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        self.cri.container_status(request).await?.status.context("the runtime gave no status")
    }

    pub async fn wait_exited(&self, id: &str) -> Result<v1::ContainerStatus> {
        wait_for(&format!("the end of container {id}"), EXIT_LIMIT, async || {
            let status = self.status(id).await?;
            Ok((status.state() == v1::ContainerState::ContainerExited).then_some(status))
        })
        .await
    }

    pub async fn pid(&self, id: &str) -> Result<u32> {
        let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
        let answer = self.cri.container_status(request).await?;
        let info = answer.info.get("info").context("the runtime's verbose status has no `info`")?;
        let info: serde_json::Value = serde_json::from_str(info).context("parse the runtime's `info`")?;
        let pid = info["pid"].as_u64().context("the runtime's `info` has no `pid`")?;
        u32::try_from(pid).context("the runtime's `pid`")
    }

    /// The directory of the cgroup that a container's main process is in, in the v2 hierarchy.
    pub async fn cgroup_of(&self, id: &str) -> Result<PathBuf> {
        Ok(self.cgroup_directory(&process::cgroup_path(self.pid(id).await?)?))
    }

    /// The directory of a container's own cgroup in the v2 hierarchy; crun's processes are one level below.
    pub async fn own_cgroup_of(&self, id: &str) -> Result<PathBuf> {
        let path = process::cgroup_path(self.pid(id).await?)?;
        Ok(self.cgroup_directory(path.strip_suffix("/container").unwrap_or(&path)))
    }

    pub fn cgroup_directory(&self, path: &str) -> PathBuf {
        self.cgroup2.join(path.trim_start_matches('/'))
    }

    /// Stops and removes a pod, its containers and, as the kubelet does, its cgroup.
    pub async fn remove_pod(&self, pod: &Pod) -> Result<()> {
        self.remove_sandbox(&pod.sandbox).await?;
        match self.driver {
            CgroupDriver::Cgroupfs => cgroup::remove_everywhere(&pod.cgroup),
            CgroupDriver::Systemd => {
                let slice = pod.cgroup.rsplit('/').next().unwrap_or_default();
                process::run(Command::new("systemctl").args(["stop", slice])).map(drop)
            }
        }
        .with_context(|| format!("remove the cgroup of pod {}", pod.spec.name))
    }

    /// Removes all pods, stops containerd and what it left running, and removes the cgroups.
    pub async fn shutdown(mut self) -> Result<()> {
        self.remove_all_pods().await?;
        self.stop_containerd()
        // What is left, Drop removes.
    }

    /// Removes all pods; starts containerd for that if it is stopped.
    pub async fn remove_all_pods(&mut self) -> Result<()> {
        if self.containerd.is_none() {
            self.start_containerd().await?;
        }
        for sandbox in self.cri.list_pod_sandbox(v1::ListPodSandboxRequest {}).await?.items {
            self.remove_sandbox(&sandbox.id).await?;
        }
        Ok(())
    }

    /// Stops a sandbox and the containers in it. While a stop whose caller has gone is still at work, as that of a kubelet that was
    /// just ended, the runtime may find the shim gone; the kubelet tries again, too.
    pub async fn stop_sandbox(&self, id: &str) -> Result<()> {
        wait_for(&format!("the stop of sandbox {id}"), STOP_LIMIT, async || {
            let pod_sandbox_id = id.to_owned();
            match self.cri.stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id }).await {
                Err(error) if format!("{error:#}").contains(SHIM_ENDED) => Ok(None),
                stopped => stopped.map(Some),
            }
        })
        .await
        .map(drop)
    }

    async fn remove_sandbox(&self, id: &str) -> Result<()> {
        self.stop_sandbox(id).await?;
        let pod_sandbox_id = id.to_owned();
        self.cri.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id }).await?;
        Ok(())
    }

    /// Kills shims, and what runs in the cgroups; unmounts what containerd mounted.
    fn sweep(&mut self) -> Result<()> {
        drop(self.containerd.take());
        let is_shim = |words: &[String]| {
            words.first().is_some_and(|program| program.contains("containerd-shim"))
                && words.iter().any(|word| word == CONTAINERD_SOCKET)
        };
        for pid in process::find(is_shim)? {
            process::kill_pid(pid)?;
        }
        // Where systemd makes the cgroups, it removes them, too.
        if self.driver == CgroupDriver::Cgroupfs {
            cgroup::remove_everywhere(&self.root)?;
        }
        for target in mounts_below(&[self.directory.path(), Path::new("/run/containerd")])? {
            nix::mount::umount2(&target, nix::mount::MntFlags::MNT_DETACH)
                .with_context(|| format!("unmount {}", target.display()))?;
        }
        fs::remove_dir_all("/run/containerd").context("remove /run/containerd")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Err(error) = self.sweep() {
            eprintln!("the node leaves something behind: {error:#}");
        }
    }
}

fn spawn(directory: &Path) -> Result<Managed> {
    let mut command = Command::new("containerd");
    command.arg("--config").arg(directory.join("config.toml"));
    Managed::spawn("containerd", command, &directory.join("containerd.log"))
}

async fn connect(containerd: &mut Managed) -> Result<Cri> {
    let answers = async || {
        let Ok(cri) = Cri::connect(Path::new(CONTAINERD_SOCKET)).await else { return Ok(None) };
        Ok(cri.version(v1::VersionRequest { version: "v1".to_owned() }).await.is_ok().then_some(cri))
    };
    containerd.wait_for("containerd to answer", START_LIMIT, answers).await
}

/// Hands containerd the images, and waits until its CRI side lists them.
async fn import(archive: &Path, cri: &Cri, images: &[&str]) -> Result<()> {
    let mut command = Command::new("ctr");
    command.args(["--address", CONTAINERD_SOCKET, "--namespace", "k8s.io", "images", "import"]);
    process::run(command.arg(archive))?;
    for image in images {
        wait_for(&format!("image {image}"), START_LIMIT, async || {
            Ok(cri.has_image(image).await?.then_some(()))
        })
        .await?;
    }
    Ok(())
}

/// overlayfs is a module on some kernels, and nothing else would load it.
fn require_overlay() -> Result<()> {
    let known = || -> Result<bool> {
        let text = fs::read_to_string("/proc/filesystems").context("read /proc/filesystems")?;
        Ok(text.lines().any(|line| line.trim_end().ends_with("\toverlay")))
    };
    if !known()? {
        process::run(Command::new("modprobe").arg("overlay"))
            .context("overlayfs, for containerd's snapshots")?;
        ensure!(known()?, "this kernel has no overlayfs even after `modprobe overlay`");
    }
    Ok(())
}

pub fn containerd_version() -> Result<String> {
    let said = process::run(Command::new("containerd").arg("--version"))?;
    // "containerd github.com/containerd/containerd/v2 2.1.9 ..."
    let version = said.split_whitespace().nth(2).map(|word| word.trim_start_matches('v').to_owned());
    version.with_context(|| format!("cannot parse containerd's version in `{}`", said.trim()))
}

/// containerd's configuration, in the format of its major version.
fn configuration(directory: &Path, driver: CgroupDriver, extras: &Extras) -> Result<String> {
    let version = containerd_version()?;
    let (format, runtime, images) = match version.split('.').next() {
        Some("1") => (2, "io.containerd.grpc.v1.cri", "io.containerd.grpc.v1.cri"),
        Some("2") => (3, "io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images"),
        _ => bail!("containerd {version} is neither 1 nor 2"),
    };
    let mut text = format!("version = {format}\nroot = '{}'\n", directory.join("root").display());
    // Dotted keys, for in the older format both plugins are one.
    match format {
        2 => text.push_str(&format!("plugins.'{images}'.sandbox_image = '{PAUSE_IMAGE}'\n")),
        _ => text.push_str(&format!("plugins.'{images}'.pinned_images.sandbox = '{PAUSE_IMAGE}'\n")),
    }
    if !process::has_capability(CAP_SYS_RESOURCE)? {
        text.push_str(&format!("plugins.'{runtime}'.restrict_oom_score_adj = true\n"));
    }
    if let Some(address) = extras.registry {
        let hosts = directory.join("hosts");
        text.push_str(&format!("plugins.'{images}'.registry.config_path = '{}'\n", hosts.display()));
        let every = hosts.join("_default");
        fs::create_dir_all(&every).with_context(|| format!("create {}", every.display()))?;
        let server = format!("[host.'http://{address}']\ncapabilities = ['pull', 'resolve']\n");
        fs::write(every.join("hosts.toml"), server).context("write containerd's hosts.toml")?;
    }
    if extras.network {
        let networks = directory.join("networks");
        fs::create_dir_all(&networks).with_context(|| format!("create {}", networks.display()))?;
        fs::write(networks.join("10-pods.conflist"), NETWORK).context("write the pods' network")?;
        text.push_str(&format!(
            "plugins.'{runtime}'.cni.bin_dir = '{CNI_PLUGINS}'\nplugins.'{runtime}'.cni.conf_dir = '{}'\n",
            networks.display()
        ));
    }
    if let Some(handler) = extras.default_handler {
        let name = handler.name();
        text.push_str(&format!("plugins.'{runtime}'.containerd.default_runtime_name = '{name}'\n"));
    }
    let systemd = driver == CgroupDriver::Systemd;
    for handler in [Handler::Runc, Handler::Crun] {
        let name = handler.name();
        text.push_str(&format!(
            "[plugins.'{runtime}'.containerd.runtimes.{name}]\nruntime_type = 'io.containerd.runc.v2'\n\
             [plugins.'{runtime}'.containerd.runtimes.{name}.options]\nBinaryName = '{name}'\n\
             SystemdCgroup = {systemd}\n"
        ));
    }
    Ok(text)
}

/// The mount points below the directories, the inner ones first.
fn mounts_below(directories: &[&Path]) -> Result<Vec<PathBuf>> {
    let targets = process::mounts()?.into_iter().rev().map(|(target, _)| target);
    let is_below = |target: &PathBuf| {
        directories.iter().any(|directory| target != directory && target.starts_with(directory))
    };
    Ok(targets.filter(is_below).collect())
}
