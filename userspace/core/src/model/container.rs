//! Containers, pods, processes and cgroups, as far as they are known.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::ids::{CgroupId, ContainerId, KernelTime, PodUid, ProcKey, QosClass, Runtime};
use super::kernel::ExitStatus;

/// A container's cgroup, and what is known of the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// The cgroup that stands for the container (inner groups are the container's, too).
    pub cgroup_id: CgroupId,
    /// Its path from the root of the hierarchy.
    pub cgroup_path: Arc<str>,
    /// The runtime's id of the container.
    pub container_id: ContainerId,
    /// The runtime, where the path names it; elsewhere [`RuntimeFacts::runtime`] may.
    pub runtime: Option<Runtime>,
    /// Its pod; none outside Kubernetes.
    pub pod: Option<PodRef>,
    /// What the runtime reported.
    pub facts: Option<Arc<RuntimeFacts>>,
}

/// A pod as its cgroup path names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRef {
    /// The pod's UID.
    pub uid: PodUid,
    /// The pod's class.
    pub qos: QosClass,
}

/// A pod, with its names if a container of it has been named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodNames {
    /// As its cgroup path names it.
    pub pod: PodRef,
    /// Its namespace.
    pub namespace: Option<Arc<str>>,
    /// Its name.
    pub name: Option<Arc<str>>,
}

impl PodNames {
    /// Without names.
    pub fn unnamed(pod: PodRef) -> Self {
        Self { pod, namespace: None, name: None }
    }

    /// The pod of a container, if it is in one.
    pub fn of(subject: &Subject) -> Option<Self> {
        let facts = subject.facts.as_deref();
        Some(Self {
            pod: subject.pod.clone()?,
            namespace: facts.and_then(|facts| facts.pod_namespace.clone()),
            name: facts.and_then(|facts| facts.pod_name.clone()),
        })
    }
}

/// What the container runtime reports about a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeFacts {
    /// Which runtime it is, unless it is one that is not known here.
    #[serde(default)]
    pub runtime: Option<Runtime>,
    /// When the runtime created it, by the wall clock: nanoseconds since the Unix epoch.
    #[serde(default)]
    pub created_at: Option<i64>,
    /// Sandbox or application.
    pub container_type: ContainerType,
    /// The container's name in its pod; a sandbox has none.
    pub name: Option<Arc<str>>,
    /// The pod's name.
    pub pod_name: Option<Arc<str>>,
    /// The pod's namespace.
    pub pod_namespace: Option<Arc<str>>,
    /// The pod's UID as the runtime knows it.
    pub pod_uid: Option<PodUid>,
    /// The image's name as the pod's spec gave it.
    pub image: Option<Arc<str>>,
    /// The container's labels.
    pub labels: BTreeMap<String, String>,
}

/// A pod's sandbox, or one of its containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerType {
    /// The pause container, or the cgroup that stands for it.
    Sandbox,
    /// Any other.
    App,
}

/// A process of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its pid and start time.
    pub key: ProcKey,
    /// Its parent's pid.
    pub ppid: u32,
    /// Its `comm`.
    pub comm: Arc<str>,
    /// What it is to the container.
    pub role: Role,
}

/// What a process is to its container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The container's own first program.
    Main,
    /// Came from outside: `kubectl exec`, a probe, the runtime's init helper.
    Entered,
    /// A descendant of one of the others.
    Child,
}

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// The cgroup exists; the container's own program does not run yet.
    Created,
    /// It runs.
    Running,
    /// No process is left.
    Stopped,
}

/// A container as it is now; the same shape as `kwitness.v1alpha1.ContainerState`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerState {
    /// The container.
    pub subject: Arc<Subject>,
    /// Where it is in its life.
    pub state: State,
    /// When its cgroup was made, if that was seen.
    pub created_at: Option<KernelTime>,
    /// When its own first program was executed; if that was not seen, when the process was made that a scan found to run it.
    pub started_at: Option<KernelTime>,
    /// When its last process went, if that was seen.
    pub stopped_at: Option<KernelTime>,
    /// The process of its own first program, if known.
    pub main: Option<Process>,
    /// That program, if known.
    pub program: Option<Arc<str>>,
    /// How the main process ended, if that was seen.
    pub main_status: Option<ExitStatus>,
    /// Processes made in it, as far as seen.
    pub forks: u64,
    /// Programs executed in it, as far as seen.
    pub execs: u64,
    /// Processes gone from it, as far as seen.
    pub exits: u64,
}

/// What a cgroup is to the container whose limits are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LevelRole {
    /// Made inside a container: crun's `container`, or the container's own doing.
    Inner,
    /// A container's own cgroup.
    Container,
    /// A pod's.
    Pod,
    /// A class's.
    Qos,
    /// The parent of all pods.
    Kubepods,
    /// Above that, up to the root; or none of the kubelet's.
    Other,
}

impl LevelRole {
    /// In words.
    pub const fn phrase(self) -> &'static str {
        match self {
            Self::Inner => "the inner cgroup",
            Self::Container => "the container's cgroup",
            Self::Pod => "the pod's cgroup",
            Self::Qos => "the class's cgroup",
            Self::Kubepods => "the cgroup of all pods",
            Self::Other => "the cgroup",
        }
    }
}

/// A cgroup that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupInfo {
    /// What it is.
    pub role: LevelRole,
    /// Its path from the root of the hierarchy; of one that was made inside a container, the container's.
    pub path: Arc<str>,
    /// The container that it is, or is in.
    pub subject: Option<Arc<Subject>>,
    /// The pod that it is, or is in.
    pub pod: Option<PodNames>,
    /// It has not been removed.
    pub exists: bool,
}

/// Whoever knows where cgroups stand.
pub trait CgroupIndex {
    /// Where that cgroup stands; none: it is not below a tracked root, or is unknown.
    fn info(&self, cgroup: CgroupId) -> Option<CgroupInfo>;
}
