//! Every cgroup layout that kubelets and container runtimes are known to make, and properties that hold of any path.

use std::sync::Arc;

use kwitness_core::cgroup_path::{ContainerPath, Placement, classify, is_machine};
use kwitness_core::model::{ContainerId, PodRef, PodUid, QosClass, Runtime};
use proptest::prelude::*;

const ID: &str = "0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9";
const ID2: &str = "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff";
const UID: &str = "1b4f2a3c-0d5e-4f6a-8b7c-9d0e1f2a3b4c";
const UID_: &str = "1b4f2a3c_0d5e_4f6a_8b7c_9d0e1f2a3b4c";
const HASH: &str = "d2c1a7b09e8f4c3b2a1908f7e6d5c4b3";

use QosClass::{BestEffort, Burstable, Guaranteed};
use Runtime::{Containerd, Crio, Docker, Podman};

/// Fills in what a row abbreviates.
fn path(row: &str) -> String {
    row.replace("$ID2", ID2)
        .replace("$ID", ID)
        .replace("$UID_", UID_)
        .replace("$UID", UID)
        .replace("$HASH", HASH)
}

fn pod(uid: &str, qos: QosClass) -> PodRef {
    PodRef { uid: PodUid(Arc::from(path(uid))), qos }
}

fn of(id: &str, runtime: Option<Runtime>, pod: Option<PodRef>) -> ContainerPath {
    ContainerPath { id: ContainerId(Arc::from(path(id))), runtime, pod }
}

/// Containers: `PATH => RUNTIME [CLASS UID]`; all have the id `$ID`.
const CONTAINERS: &str = "\
# systemd driver, each class, each runtime.
/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod$UID_.slice/cri-containerd-$ID.scope => containerd Burstable $UID
/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod$UID_.slice/crio-$ID.scope => crio BestEffort $UID
/kubepods.slice/kubepods-pod$UID_.slice/docker-$ID.scope => docker Guaranteed $UID
# CRI-O's sandbox without a process: no scope, even with systemd.
/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod$UID_.slice/crio-$ID => crio Burstable $UID
# cgroupfs driver, each class, each runtime.
/kubepods/burstable/pod$UID/$ID => - Burstable $UID
/kubepods/besteffort/pod$UID/crio-$ID => crio BestEffort $UID
/kubepods/pod$UID/$ID => - Guaranteed $UID
# A static pod's UID is a hash without dashes.
/kubepods/burstable/pod$HASH/$ID => - Burstable $HASH
/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod$HASH.slice/cri-containerd-$ID.scope => containerd Burstable $HASH
# A kubelet with a cgroupRoot of its own, both drivers.
/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod$UID_.slice/cri-containerd-$ID.scope => containerd Guaranteed $UID
/kubelet/kubepods/besteffort/pod$UID/$ID => - BestEffort $UID
# kind: the node is a Docker container; the pod's container wins over it.
/system.slice/docker-$ID2.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod$UID_.slice/cri-containerd-$ID.scope => containerd Burstable $UID
/docker/$ID2/kubelet/kubepods/pod$UID/$ID => - Guaranteed $UID
# k3s keeps kubepods below the root, whatever its own services are called.
/k3s/kubepods/pod$UID/$ID => - Guaranteed $UID
# The kubelet says systemd, the runtime does cgroupfs: the unit becomes a directory's name.
/system.slice/containerd.service/kubepods-burstable-pod$UID_.slice:cri-containerd:$ID => containerd Burstable $UID
/kubepods.slice/kubepods-pod$UID_.slice/kubepods-pod$UID_.slice:crio:$ID => crio Guaranteed $UID
/system.slice:docker:$ID => docker
# Outside pods.
/docker/$ID => docker
/system.slice/docker-$ID.scope => docker
/machine.slice/libpod-$ID.scope => podman
/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-$ID.scope => podman
/libpod_parent/libpod-$ID => podman
/system.slice/web.service/libpod-payload-$ID => podman
/system.slice/containerd.service/$ID => -
/system.slice/nerdctl-$ID.scope => containerd
/user.slice/user-1000.slice/user@1000.service/app.slice/nerdctl-$ID.scope => containerd
# The same in a node that is a container: the name itself has the pod, which wins over the node.
/system.slice/docker-$ID2.scope/system.slice/containerd.service/kubelet-kubepods-burstable-pod$UID_.slice:cri-containerd:$ID => containerd Burstable $UID
/docker/$ID2/system.slice/containerd.service/kubepods-pod$UID_.slice:cri-containerd:$ID => containerd Guaranteed $UID
/kubepods-besteffort-pod$UID_.slice:cri-containerd:$ID => containerd BestEffort $UID
/podruntime.slice/containerd.service/kubepods-burstable-pod$UID_.slice:cri-containerd:$ID => containerd Burstable $UID
# systemd never saw that name, so that the UID keeps its dashes.
/system.slice/containerd.service/kubepods-besteffort-pod$UID.slice:cri-containerd:$ID => containerd BestEffort $UID
# A batch system's group between kubepods and its pods (Caelus).
/kubepods/offline/besteffort/pod$UID/$ID => - BestEffort $UID
/kubepods/offline/pod$HASH/$ID => - Guaranteed $HASH
/kubepods.slice/kubepods-offline.slice/kubepods-offline-besteffort.slice/kubepods-offline-besteffort-pod$UID_.slice/cri-containerd-$ID.scope => containerd BestEffort $UID
/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-batch.slice/kubepods-burstable-batch-pod$UID_.slice/crio-$ID.scope => crio Burstable $UID
/kubepods.slice/kubepods-batch.slice/kubepods-batch-pod$HASH.slice/cri-containerd-$ID.scope => containerd Guaranteed $HASH
/system.slice/containerd.service/kubepods-offline-burstable-pod$UID_.slice:cri-containerd:$ID => containerd Burstable $UID
# Kata: the virtual machine of the sandbox.
/kubepods/besteffort/pod$UID/kata_$ID => - BestEffort $UID
/kata_kubepods-besteffort-pod$UID_.slice:cri-containerd:$ID => containerd BestEffort $UID
/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod$HASH.slice/cri-containerd-$ID => containerd Burstable $HASH
# EKS Fargate, rootless k3s, usernetes, LXC.
/ecs/0f1e2d3c4b5a69788796a5b4c3d2e1f0/0f1e2d3c4b5a69788796a5b4c3d2e1f0-3057940393/kubepods/pod$UID/$ID => - Guaranteed $UID
/user.slice/user-1001.slice/user@1001.service/k3s-rootless.service/kubepods/pod$UID/$ID => - Guaranteed $UID
/user.slice/user-1001.slice/user@1001.service/u7s-rootlesskit.service/kubepods/burstable/pod$UID/$ID => - Burstable $UID
/lxc.payload.node1/kubepods/burstable/pod$UID/$ID => - Burstable $UID
# kind in rootless podman.
/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-$ID2.scope/container/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod$UID_.slice/cri-containerd-$ID.scope => containerd Burstable $UID
# Pods outside kubepods: cgroupsPerQOS: false, or a sandbox without a parent.
/k8s.io/$ID => -
/kubelet/$ID => -
/system.slice/cri-containerd-$ID.scope => containerd
# Written oddly, meant the same.
kubepods//pod$UID/$ID/ => - Guaranteed $UID
";

/// What lies in a container: `PATH_OF_CONTAINER REST_OF_PATH => RUNTIME [CLASS UID]`.
const INNER: &str = "\
# crun's subgroup, CRI-O's exec group.
/kubepods.slice/kubepods-pod$UID_.slice/crio-$ID.scope /container => crio Guaranteed $UID
/kubepods.slice/kubepods-pod$UID_.slice/crio-$ID.scope /exec => crio Guaranteed $UID
/machine.slice/libpod-$ID.scope /container => podman
# systemd in a container.
/kubepods/burstable/pod$UID/$ID /system.slice/dbus.service => - Burstable $UID
# Docker, and a whole kind cluster, in a pod.
/kubepods/burstable/pod$UID/$ID /docker/$ID2 => - Burstable $UID
/kubepods/burstable/pod$UID/$ID /docker/$ID2/kubelet/kubepods/pod$HASH/$ID2 => - Burstable $UID
# Kata's older runtime-rs, sysbox, and what a container itself makes.
/kubepods/burstable/pod$UID/$ID /sandbox => - Burstable $UID
/kubepods/burstable/pod$UID/$ID /overhead => - Burstable $UID
/kubepods/burstable/pod$UID/$ID /syscont-cgroup-root/init.scope => - Burstable $UID
/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod$UID_.slice/crio-$ID.scope /init.scope => crio Burstable $UID
/kubepods/besteffort/pod$UID/$ID /kube-proxy => - BestEffort $UID
/kubepods/offline/besteffort/pod$UID/$ID /hadoop-yarn => - BestEffort $UID
/system.slice/docker-$ID2.scope/system.slice/containerd.service/kubelet-kubepods-burstable-pod$UID_.slice:cri-containerd:$ID /init.scope => containerd Burstable $UID
# kind in a pod: more than a record's path holds.
/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod$UID_.slice/cri-containerd-$ID.scope /docker/$ID2/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod$HASH.slice/cri-containerd-$ID2.scope/system.slice/dbus.service => containerd Burstable $UID
# Docker in Docker.
/docker/$ID /docker/$ID2 => docker
# What runs in kind's node beside the pods.
/system.slice/docker-$ID.scope /system.slice/containerd.service => docker
";

/// The rows of a table without its comments, in two parts.
fn rows(table: &'static str) -> impl Iterator<Item = (&'static str, &'static str)> {
    let rows = table.lines().filter(|line| !line.starts_with('#'));
    rows.map(|row| row.split_once(" => ").expect("an arrow"))
}

/// `RUNTIME [CLASS UID]`
fn container(text: &str) -> ContainerPath {
    let mut words = text.split(' ');
    let runtime = match words.next().expect("a runtime") {
        "-" => None,
        "containerd" => Some(Containerd),
        "crio" => Some(Crio),
        "docker" => Some(Docker),
        "podman" => Some(Podman),
        other => panic!("{other}"),
    };
    let pod = words.next().map(|class| {
        let qos = [Guaranteed, Burstable, BestEffort].into_iter().find(|qos| format!("{qos:?}") == class);
        pod(words.next().expect("a UID"), qos.expect("a class"))
    });
    of("$ID", runtime, pod)
}

#[test]
fn containers() {
    for (row, expected) in rows(CONTAINERS) {
        assert_eq!(classify(&path(row)), Placement::Container(container(expected)), "{row}");
    }
}

#[test]
fn inner_groups_belong_to_their_container() {
    for (row, expected) in rows(INNER) {
        let (own, below) = row.split_once(' ').expect("two paths");
        let container = container(expected);
        let expected = Placement::Inner { container, container_path: Arc::from(path(own)) };
        assert_eq!(classify(&(path(own) + &path(below))), expected, "{row}");
    }
}

#[test]
fn pods_and_what_holds_them() {
    let rows: &[(&str, Placement)] = &[
        ("/kubepods.slice", Placement::Kubepods),
        ("/kubepods", Placement::Kubepods),
        ("/kubelet.slice/kubelet-kubepods.slice", Placement::Kubepods),
        ("/docker/$ID/kubelet/kubepods", Placement::Kubepods),
        ("/kubepods.slice/kubepods-besteffort.slice", Placement::Qos(BestEffort)),
        ("/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice", Placement::Qos(Burstable)),
        ("/kubepods/burstable", Placement::Qos(Burstable)),
        ("/kubepods/besteffort", Placement::Qos(BestEffort)),
        ("/kubepods.slice/kubepods-pod$UID_.slice", Placement::Pod(pod("$UID", Guaranteed))),
        ("/kubepods/pod$HASH", Placement::Pod(pod("$HASH", Guaranteed))),
        ("/kubepods/burstable/pod$UID", Placement::Pod(pod("$UID", Burstable))),
        ("/kubepods/offline/besteffort", Placement::Qos(BestEffort)),
        ("/kubepods/offline/besteffort/pod$UID", Placement::Pod(pod("$UID", BestEffort))),
    ];
    for (row, expected) in rows {
        assert_eq!(classify(&path(row)), *expected, "{row}");
    }
}

#[test]
fn neither_pod_nor_container() {
    for row in [
        "",
        "/",
        "/system.slice",
        "/system.slice/containerd.service",
        "/kubelet",
        "/kubelet.slice",
        "/k3s",
        "/docker",
        "/machine.slice",
        "/libpod_parent",
        "/libpod_parent/conmon",
        "/machine.slice/libpod-conmon-$ID.scope",
        "/machine.slice/machine-libpod_pod_$ID.slice",
        "/system.slice/crio-conmon-$ID.scope",
        "/kubepods.slice/kubepods-pod$UID_.slice/crio-conmon-$ID.scope",
        "/kubepods/burstable/pod$UID/crio-conmon-$ID",
        "/system.slice/docker-$ID.mount",
        // Not under kubepods, so not a pod.
        "/burstable/pod$UID",
        "/system.slice/pod$UID.slice",
        "/kubepods/pod",
        "/kubepods.slice/kubepods-pod.slice",
        "/kubepods.slice/kubepods-pod$UID_-more.slice",
        "/kubepods.slice/kubepods-offline.slice",
        "/kubepods.slice/kubepods-offline-podium.slice",
        "/kubepods.slice/kubepods-besteffort-offline-pod.slice",
        "/notkubepods",
        "/kubepodsx.slice",
        // Between kubepods and its pods, and in a pod.
        "/kubepods/offline",
        "/kubepods/offline/system",
        "/kubepods/offline/podium",
        "/kubepods/pod$UID/pod$UID",
        // The hosts' side of Kata's machines, and a Fargate node.
        "/kata_overhead/$ID",
        "/ecs/0f1e2d3c4b5a69788796a5b4c3d2e1f0/0f1e2d3c4b5a69788796a5b4c3d2e1f0-3057940393",
        // Not ids.
        "/docker/0a1b2c3d4e5f",
        "/kubepods/pod$UID/${ID}0",
        "/kubepods/pod$UID/web",
        "/system.slice/web-$ID.scope",
    ] {
        assert_eq!(classify(&path(row)), Placement::Other, "{row}");
    }
}

/// Names that mean something somewhere, and some that never do.
fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("kubepods"),
        Just("kubepods.slice"),
        Just("kubelet-kubepods.slice"),
        Just("burstable"),
        Just("kubepods-besteffort.slice"),
        Just("kubepods-pod$UID_.slice"),
        Just("pod$UID"),
        Just("pod$HASH"),
        Just("docker"),
        Just("docker-$ID2.scope"),
        Just("cri-containerd-$ID.scope"),
        Just("kubepods-pod$UID_.slice:cri-containerd:$ID"),
        Just("crio-$ID"),
        Just("$ID"),
        Just("container"),
        Just("system.slice"),
        Just(":"),
        Just("-.slice"),
        Just(""),
    ]
    .prop_map(path)
}

proptest! {
    #[test]
    fn any_text_has_a_placement(text in "\\PC*") {
        classify(&text);
    }

    #[test]
    fn what_lies_in_a_pods_container_is_that_containers(
        names in prop::collection::vec(name(), 0..8),
        below in prop::collection::vec(name(), 1..5),
    ) {
        let own = format!("/{}", names.join("/"));
        let inside = format!("{own}/{}", below.join("/"));
        match classify(&own) {
            Placement::Container(container) if container.pod.is_some() => match classify(&inside) {
                Placement::Inner { container: found, container_path } => {
                    prop_assert_eq!(&found, &container);
                    prop_assert!(own.starts_with(&*container_path));
                }
                other => {
                    // Nothing but empty names was added.
                    prop_assert_eq!(other, Placement::Container(container));
                    prop_assert!(below.iter().all(String::is_empty));
                }
            },
            Placement::Inner { container, container_path } if container.pod.is_some() => {
                prop_assert_eq!(classify(&inside), Placement::Inner { container, container_path });
            }
            _ => {}
        }
    }

    #[test]
    fn the_path_of_the_container_around_is_a_containers(names in prop::collection::vec(name(), 0..10)) {
        if let Placement::Inner { container, container_path } = classify(&format!("/{}", names.join("/"))) {
            prop_assert_eq!(classify(&container_path), Placement::Container(container));
        }
    }

    #[test]
    fn plain_groups_in_a_plain_container_are_that_containers(below in prop::collection::vec("[a-z]{1,9}", 1..5)) {
        prop_assume!(!below.iter().any(|name| name == "kubepods"));
        let own = path("/system.slice/docker-$ID.scope");
        let expected = Placement::Inner { container: of("$ID", Some(Docker), None), container_path: own.as_str().into() };
        prop_assert_eq!(classify(&format!("{own}/{}", below.join("/"))), expected);
    }
}

#[test]
fn a_katas_machine_is_known_by_its_name() {
    assert!(is_machine(&path("/kubepods/besteffort/pod$UID/kata_$ID")));
    assert!(is_machine(&path("/kata_kubepods-besteffort-pod$UID_.slice:cri-containerd:$ID")));
    for other in
        ["/kubepods/besteffort/pod$UID/$ID", "/kata_overhead/$ID", "/kubepods/pod$UID/kata_$ID/inner"]
    {
        assert!(!is_machine(&path(other)), "{other}");
    }
}
