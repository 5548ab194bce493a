//! What a test wants to run, and the CRI requests that a kubelet would make of it.

use std::collections::HashMap;
use std::{env, fs};

use anyhow::{Context, Result};

use crate::cri::v1;
use crate::environment::{CgroupDriver, Handler};

/// The image of all app containers: a static busybox.
pub const APP_IMAGE: &str = "docker.io/library/bb:1";
pub const PAUSE_IMAGE: &str = "registry.k8s.io/pause:3.10";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    /// Directly below `kubepods`.
    Guaranteed,
    /// Below `burstable`.
    Burstable,
    /// Below `besteffort`.
    BestEffort,
}

#[derive(Clone, Debug)]
pub struct PodSpec {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub qos: Qos,
    pub handler: Handler,
    pub host_pid: bool,
    /// Its containers share a pid namespace (`shareProcessNamespace`).
    pub share_pids: bool,
    pub labels: HashMap<String, String>,
}

#[derive(Clone, Debug)]
pub struct ContainerSpec {
    pub name: String,
    /// How often it was made before.
    pub attempt: u32,
    pub command: Vec<String>,
    pub privileged: bool,
    pub resources: Option<v1::LinuxContainerResources>,
    /// Host paths with the place where it sees them.
    pub mounts: Vec<(String, String)>,
    pub tty: bool,
}

#[derive(Clone, Debug)]
pub struct Pod {
    pub spec: PodSpec,
    pub sandbox: String,
    /// The pod's cgroup, from the root of the hierarchy.
    pub cgroup: String,
    pub(crate) config: v1::PodSandboxConfig,
}

impl PodSpec {
    /// A burstable pod in the namespace `default`, with a UID of its own.
    pub fn new(name: &str, handler: Handler) -> Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            namespace: "default".to_owned(),
            uid: new_uid()?,
            qos: Qos::Burstable,
            handler,
            host_pid: false,
            share_pids: false,
            labels: HashMap::from([("app".to_owned(), name.to_owned())]),
        })
    }

    /// The cgroup that the kubelet would make for it below `root` (`/kubepods`, or the like of
    /// `/kubelet/kubepods`).
    pub(crate) fn cgroup(&self, root: &str, driver: CgroupDriver) -> String {
        let class = match self.qos {
            Qos::Guaranteed => None,
            Qos::Burstable => Some("burstable"),
            Qos::BestEffort => Some("besteffort"),
        };
        let pod = format!("pod{}", self.uid);
        let components = root.split('/').filter(|name| !name.is_empty()).chain(class).chain([pod.as_str()]);
        match driver {
            CgroupDriver::Cgroupfs => components.map(|component| format!("/{component}")).collect(),
            // Each slice's name begins with its parent's; a dash in a component would look like a level.
            CgroupDriver::Systemd => {
                let mut path = String::new();
                let mut name = String::new();
                for component in components {
                    if !name.is_empty() {
                        name.push('-');
                    }
                    name.push_str(&component.replace('-', "_"));
                    path.push_str(&format!("/{name}.slice"));
                }
                path
            }
        }
    }

    pub(crate) fn config(&self, cgroup: &str) -> v1::PodSandboxConfig {
        let mut labels = self.labels.clone();
        // The kubelet's own labels, by which runtimes and tools find a pod's containers.
        labels.insert("io.kubernetes.pod.name".to_owned(), self.name.clone());
        labels.insert("io.kubernetes.pod.namespace".to_owned(), self.namespace.clone());
        labels.insert("io.kubernetes.pod.uid".to_owned(), self.uid.clone());
        v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: self.name.clone(),
                uid: self.uid.clone(),
                namespace: self.namespace.clone(),
                attempt: 0,
            }),
            hostname: String::new(),
            log_directory: String::new(),
            labels,
            annotations: HashMap::new(),
            linux: Some(v1::LinuxPodSandboxConfig {
                cgroup_parent: cgroup.to_owned(),
                security_context: Some(v1::LinuxSandboxSecurityContext {
                    namespace_options: Some(self.namespaces()),
                    privileged: true,
                }),
            }),
        }
    }

    /// The node's network, so that no CNI is needed; the node's pid namespace, or one for all containers, if requested.
    fn namespaces(&self) -> v1::NamespaceOption {
        let pid = match self {
            Self { host_pid: true, .. } => v1::NamespaceMode::Node,
            Self { share_pids: true, .. } => v1::NamespaceMode::Pod,
            _ => v1::NamespaceMode::Container,
        };
        v1::NamespaceOption {
            network: v1::NamespaceMode::Node.into(),
            pid: pid.into(),
            ipc: v1::NamespaceMode::Node.into(),
        }
    }
}

impl ContainerSpec {
    pub fn new(name: &str, command: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            attempt: 0,
            command: command.iter().map(|&word| word.to_owned()).collect(),
            privileged: false,
            resources: None,
            mounts: Vec::new(),
            tty: false,
        }
    }

    pub fn shell(name: &str, line: &str) -> Self {
        Self::new(name, &["/bin/sh", "-c", line])
    }

    /// The same with a memory limit, in bytes.
    pub fn limited(self, memory: u64) -> Self {
        let memory_limit_in_bytes = memory.cast_signed();
        let resources = v1::LinuxContainerResources { memory_limit_in_bytes, ..Default::default() };
        Self { resources: Some(resources), ..self }
    }

    pub(crate) fn config(&self, pod: &PodSpec) -> v1::ContainerConfig {
        let mounts = self.mounts.iter().map(|(host, container)| v1::Mount {
            container_path: container.clone(),
            host_path: host.clone(),
            readonly: false,
        });
        v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: self.name.clone(), attempt: self.attempt }),
            image: Some(v1::ImageSpec { image: APP_IMAGE.to_owned() }),
            command: self.command.clone(),
            mounts: mounts.collect(),
            tty: self.tty,
            labels: HashMap::from([
                ("io.kubernetes.container.name".to_owned(), self.name.clone()),
                ("io.kubernetes.pod.name".to_owned(), pod.name.clone()),
                ("io.kubernetes.pod.namespace".to_owned(), pod.namespace.clone()),
                ("io.kubernetes.pod.uid".to_owned(), pod.uid.clone()),
            ]),
            linux: Some(v1::LinuxContainerConfig {
                resources: self.resources.clone(),
                security_context: Some(v1::LinuxContainerSecurityContext {
                    privileged: self.privileged,
                    namespace_options: Some(pod.namespaces()),
                }),
            }),
            ..v1::ContainerConfig::default()
        }
    }
}

/// This program in a container: the mount that brings it there, and its path.
pub fn this_program() -> Result<((String, String), String)> {
    let program = env::current_exe().context("find this program")?;
    let name = program.file_name().context("this program has a name")?.display();
    let directory = program.parent().context("this program has a directory")?.display().to_string();
    Ok(((directory, "/program".to_owned()), format!("/program/{name}")))
}

/// A UID of the API server's kind.
pub fn new_uid() -> Result<String> {
    let path = "/proc/sys/kernel/random/uuid";
    Ok(fs::read_to_string(path).with_context(|| format!("read {path}"))?.trim().to_owned())
}

/// The UID of a static pod: 32 hexadecimal digits without dashes.
pub fn new_static_uid() -> Result<String> {
    Ok(new_uid()?.replace('-', ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_are_named_as_the_kubelet_names_them() {
        let mut spec = PodSpec::new("p", Handler::Runc).unwrap();
        spec.uid = "11-22".to_owned();
        assert_eq!(spec.cgroup("/kubepods", CgroupDriver::Cgroupfs), "/kubepods/burstable/pod11-22");
        assert_eq!(
            spec.cgroup("/kubelet/kubepods", CgroupDriver::Systemd),
            "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/\
             kubelet-kubepods-burstable-pod11_22.slice"
        );
        spec.qos = Qos::Guaranteed;
        assert_eq!(
            spec.cgroup("/kubepods", CgroupDriver::Systemd),
            "/kubepods.slice/kubepods-pod11_22.slice"
        );
    }
}
