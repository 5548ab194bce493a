//! What a cgroup is, read off its path: the only place that knows how kubelets and container runtimes name cgroups.
//!
//! A path is read from the root to the leaf, one name after the other, and no absolute prefix is assumed: a kubelet's
//! `cgroupRoot`, kind's node inside a Docker container and k3s differ only in what comes before `kubepods`.
//!
//! | Cgroup | systemd driver | cgroupfs driver |
//! |---|---|---|
//! | all pods | `[ROOT-]kubepods.slice` | `kubepods` |
//! | a class | `[ROOT-]kubepods-burstable.slice` | `kubepods/burstable` |
//! | a pod | `[ROOT-]kubepods[-CLASS]-podUID.slice`, `-` in UID as `_` | `kubepods[/CLASS]/podUID` |
//! | containerd | `cri-containerd-ID.scope`, nerdctl's `nerdctl-ID.scope` | `ID` |
//! | CRI-O | `crio-ID.scope`, a sandbox without process `crio-ID` | `crio-ID` |
//! | cri-dockerd, Docker | `docker-ID.scope` | `ID` |
//! | podman | `libpod-ID.scope`, split mode `libpod-payload-ID` | `libpod-ID` |
//! | Kata, the virtual machine of a sandbox | `cri-containerd-ID.scope` | `kata_ID`, `kata_SLICE:cri-containerd:ID` |
//! | kubelet and runtime disagree on the driver | `SLICE:cri-containerd:ID`, a literal directory name | |
//!
//! An ID has 64 hexadecimal digits. `crio-conmon-ID.scope` and its like hold the runtimes' monitors: no containers; nor is
//! what lies in `kata_overhead`, the hosts' side of Kata's machines.
//!
//! A name that spells a pod's slice counts wherever it lies. What lies between `kubepods` and a pod may be anything, with both
//! drivers (batch systems keep pods of theirs in groups of their own); there, a pod's UID must have the form of one.
//!
//! **Which container, when several lie around a cgroup?** The first one of a pod, from the root on: what is made in
//! it (by crun, systemd, Docker, a whole kind cluster in a CI pod) is its own. If there is none, the first one
//! outside pods. So kind's node is a plain Docker container, but the pods in it are pods.

use std::borrow::Cow;
use std::sync::Arc;

use crate::model::{ContainerId, PodRef, PodUid, QosClass, Runtime};

/// What Kata puts before the name of the cgroup that it is to make, for a sandbox's virtual machine.
const MACHINE: &str = "kata_";

/// What a cgroup is to Kubernetes and the container runtimes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// The parent of all pods.
    Kubepods,
    /// The parent of all pods of a class.
    Qos(QosClass),
    /// A pod's.
    Pod(PodRef),
    /// A container's own.
    Container(ContainerPath),
    /// Made inside a container, at any depth.
    Inner {
        /// The container.
        container: ContainerPath,
        /// The path of the container's own cgroup.
        container_path: Arc<str>,
    },
    /// Anything else: ancestors of the above, services, the runtimes' helpers.
    Other,
}

/// What the path says about a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPath {
    /// The runtime's id of it.
    pub id: ContainerId,
    /// The runtime, where the name says so.
    pub runtime: Option<Runtime>,
    /// Its pod; none outside Kubernetes.
    pub pod: Option<PodRef>,
}

/// Classifies the cgroup of that path from the root of the hierarchy.
pub fn classify(path: &str) -> Placement {
    let mut place = Placement::Other;
    let mut parent = "";
    // Below `kubepods`, and not yet in a pod: the class of the pods here.
    let mut pods_here = None;
    let mut pod = None;
    // A container outside pods, and where its path ends.
    let mut plain: Option<(ContainerPath, usize)> = None;
    for (name, end) in names(path) {
        place = if let Some(of_pods) = of_pods(name, &place, pods_here) {
            (pods_here, pod) = match &of_pods {
                Placement::Pod(pod) => (None, Some(pod.clone())),
                Placement::Qos(qos) => (Some(*qos), None),
                _ => (Some(QosClass::Guaranteed), None),
            };
            of_pods
        } else if let Some(mut container) = container(name, parent)
            .filter(|container| plain.is_none() || pod.is_some() || container.pod.is_some())
        {
            container.pod = container.pod.or_else(|| pod.clone());
            if container.pod.is_some() {
                let inside = names(&path[end..]).next().is_some();
                return if inside { inner(container, &path[..end]) } else { Placement::Container(container) };
            }
            pods_here = None;
            plain = Some((container.clone(), end));
            Placement::Container(container)
        } else if let Some((container, end)) = &plain {
            inner(container.clone(), &path[..*end])
        } else {
            Placement::Other
        };
        parent = name;
    }
    place
}

/// Whether the cgroup of that path is named as the virtual machine of a sandbox, which holds no container of the runtime's by itself.
pub fn is_machine(path: &str) -> bool {
    path.rsplit('/').next().is_some_and(|name| name.starts_with(MACHINE))
}

/// A path for a report: of a long one, the beginning and the end.
pub fn shortened(path: &str) -> Cow<'_, str> {
    const LONGEST: usize = 256;
    if path.len() <= LONGEST {
        return path.into();
    }
    let begin = path.floor_char_boundary(LONGEST / 2);
    let end = path.ceil_char_boundary(path.len() - LONGEST / 2);
    format!("{}...{} ({} bytes)", &path[..begin], &path[end..], path.len()).into()
}

fn inner(container: ContainerPath, container_path: &str) -> Placement {
    Placement::Inner { container, container_path: Arc::from(container_path) }
}

/// The names of a path, each with the offset at which it ends.
fn names(path: &str) -> impl Iterator<Item = (&str, usize)> {
    let mut next = 0;
    path.split('/').filter_map(move |name| {
        let end = next + name.len();
        next = end + 1;
        (!name.is_empty()).then_some((name, end))
    })
}

/// A cgroup that holds pods, or a pod's: by its name alone with systemd, by what it lies in with cgroupfs.
fn of_pods(name: &str, parent: &Placement, pods_here: Option<QosClass>) -> Option<Placement> {
    if let Some(slice) = name.strip_suffix(".slice") {
        return slice_of_pods(slice);
    }
    if name == "kubepods" {
        return Some(Placement::Kubepods);
    }
    match (name, pods_here?) {
        ("burstable", QosClass::Guaranteed) => Some(Placement::Qos(QosClass::Burstable)),
        ("besteffort", QosClass::Guaranteed) => Some(Placement::Qos(QosClass::BestEffort)),
        (_, qos) => {
            let is_direct = matches!(parent, Placement::Kubepods | Placement::Qos(_));
            pod(name, qos).filter(|_| is_direct || name.strip_prefix("pod").is_some_and(is_uid))
        }
    }
}

/// systemd spells a slice's ancestors out in its name: `a-b-c.slice` lies in `a-b.slice` lies in `a.slice`. Between `kubepods` and
/// the pod there may be others than the class.
fn slice_of_pods(slice: &str) -> Option<Placement> {
    let mut levels = slice.split('-');
    levels.find(|level| *level == "kubepods")?;
    let levels: Vec<&str> = levels.collect();
    let (qos, below) = match levels.split_first() {
        None => return Some(Placement::Kubepods),
        Some((&"burstable", below)) => (QosClass::Burstable, below),
        Some((&"besteffort", below)) => (QosClass::BestEffort, below),
        Some(_) => (QosClass::Guaranteed, &levels[..]),
    };
    match below {
        [] => Some(Placement::Qos(qos)),
        [level] => pod(&level.replace('_', "-"), qos),
        _ => pod_below(&levels),
    }
}

/// The pod whose slice's name ends with these levels, the last of which spell a UID: with dashes in a name that systemd has not read.
fn pod_below(levels: &[&str]) -> Option<Placement> {
    let at = levels.iter().rposition(|level| level.starts_with("pod"))?;
    let name = levels[at..].join("-").replace('_', "-");
    let between = &levels[..at];
    let qos = match () {
        () if between.contains(&"besteffort") => QosClass::BestEffort,
        () if between.contains(&"burstable") => QosClass::Burstable,
        () => QosClass::Guaranteed,
    };
    pod(&name, qos).filter(|_| name.strip_prefix("pod").is_some_and(is_uid))
}

/// The form of a pod's UID: a UUID, or a static pod's hash.
fn is_uid(text: &str) -> bool {
    let hexadecimal = |byte: u8| byte.is_ascii_hexdigit();
    match text.len() {
        32 => text.bytes().all(hexadecimal),
        36 => text.bytes().enumerate().all(|(index, byte)| match index {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => hexadecimal(byte),
        }),
        _ => false,
    }
}

fn pod(name: &str, qos: QosClass) -> Option<Placement> {
    let uid = name.strip_prefix("pod").filter(|uid| !uid.is_empty())?;
    Some(Placement::Pod(PodRef { uid: PodUid(Arc::from(uid)), qos }))
}

/// A container's own cgroup, by its name; its pod only where the name itself has it.
fn container(name: &str, parent: &str) -> Option<ContainerPath> {
    if let Some((slice, unit)) = name.split_once(':') {
        let (prefix, id) = unit.split_once(':')?;
        let slice = slice.strip_prefix(MACHINE).unwrap_or(slice);
        let pod = match slice.strip_suffix(".slice").and_then(slice_of_pods) {
            Some(Placement::Pod(pod)) => Some(pod),
            _ => None,
        };
        return Some(ContainerPath { id: container_id(id)?, runtime: runtime(prefix), pod });
    }
    let stem = name.strip_suffix(".scope").unwrap_or(name);
    let (id, runtime) = match stem.rsplit_once('-') {
        _ if parent == "kata_overhead" => return None,
        Some((prefix, id)) => (id, Some(runtime(prefix)?)),
        None if parent == "docker" => (stem, Some(Runtime::Docker)),
        None => (stem.strip_prefix(MACHINE).unwrap_or(stem), None),
    };
    Some(ContainerPath { id: container_id(id)?, runtime, pod: None })
}

/// The runtime that puts this before a container's id.
fn runtime(prefix: &str) -> Option<Runtime> {
    match prefix {
        "cri-containerd" | "nerdctl" => Some(Runtime::Containerd),
        "crio" => Some(Runtime::Crio),
        "docker" => Some(Runtime::Docker),
        "libpod" | "libpod-payload" => Some(Runtime::Podman),
        _ => None,
    }
}

fn container_id(text: &str) -> Option<ContainerId> {
    let hexadecimal = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    (text.len() == 64 && text.bytes().all(hexadecimal)).then(|| ContainerId(Arc::from(text)))
}
