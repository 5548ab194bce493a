//! The pods: their resources, and what differs from "every limit is in force". A node of one CPU has room for all requests, and
//! each container for runc's own init, which takes 15 MiB before it becomes the container's.

use kwitness_api::proto::VerdictKind;
use serde_json::json;

use super::Spec;

impl Spec {
    /// More than any node has: the limit of all pods together is less, and the verdict says so.
    fn beyond_the_node(self) -> Self {
        let shadowed =
            |spec: Self, whose| spec.expect(whose, "memory.max", VerdictKind::Shadowed, "kubepods");
        shadowed(shadowed(self, "app"), "").fixed()
    }

    fn overhead(self) -> Self {
        self.field("overhead", json!({ "cpu": "25m", "memory": "16Mi" }))
    }
}

/// All pods that a kubelet with its default settings is given. A node of one CPU must have room for all requests.
pub(super) fn all() -> Vec<Spec> {
    let few = "cpu=1m memory=1Mi";
    let mut specs = quantities();
    specs.extend([
        Spec::new("besteffort-two", &[("a", "", ""), ("b", "", "")]),
        Spec::new("guaranteed-two", &[("a", "cpu=10m memory=32Mi", ""), ("b", "cpu=30m memory=36Mi", "")]),
        Spec::new("tiny-sum", &[("a", "cpu=5m", "cpu=1m"), ("b", "cpu=5m", "cpu=1m")]),
        Spec::new(
            "tiny-three",
            &[("a", "cpu=4m", "cpu=1m"), ("b", "cpu=4m", "cpu=1m"), ("c", "cpu=4m", "cpu=1m")],
        ),
        Spec::new(
            "one-unlimited",
            &[("a", "cpu=50m memory=32Mi", few), ("b", "cpu=50m memory=32Mi", few), ("c", "", "")],
        ),
        Spec::new("one-without-memory", &[("a", "cpu=50m memory=32Mi", few), ("b", "cpu=50m", "cpu=1m")]),
        Spec::new("apart", &[("a", "cpu=50m", "cpu=1m"), ("b", "memory=32Mi", "memory=1Mi")]),
        Spec::new(
            "five",
            &[
                ("a", "cpu=11m memory=32Mi", few),
                ("b", "cpu=12m memory=33Mi", few),
                ("c", "cpu=13m memory=34Mi", few),
                ("d", "cpu=14m memory=35Mi", few),
                ("e", "cpu=15m memory=36Mi", few),
            ],
        ),
        Spec::one("init-without-limits", "cpu=50m memory=32Mi", few).init(("init", "", "")),
        Spec::one("init-with-more", "cpu=50m memory=32Mi", few).init(("init", "cpu=500m memory=64Mi", few)),
        Spec::one("init-with-less", "cpu=50m memory=48Mi", few).init(("init", "cpu=40m memory=32Mi", few)),
        Spec::one("init-alone", "", "").init(("init", "cpu=500m memory=64Mi", few)),
        sidecar(),
        // The kubelet looks at what the sidecars have together, so that one without limits after one with limits does
        // not lift the pod's: it is held by it.
        Spec::one("sidecar-unlimited-second", "cpu=200m memory=64Mi", few)
            .sidecar(("a", "cpu=100m memory=32Mi", few))
            .sidecar(("b", "", ""))
            .expect("b", "cpu.max", VerdictKind::Shadowed, "pod")
            .expect("b", "memory.max", VerdictKind::Shadowed, "pod"),
        Spec::one("sidecar-unlimited-first", "cpu=200m memory=64Mi", few).sidecar(("a", "", "")).sidecar((
            "b",
            "cpu=100m memory=32Mi",
            few,
        )),
        Spec::one("sidecar-alone-limited", "", "").sidecar(("a", "cpu=100m memory=32Mi", few)),
        Spec::one("sidecar-init-sidecar", "cpu=200m memory=64Mi", few)
            .sidecar(("a", "cpu=100m memory=32Mi", few))
            .init(("init", "cpu=300m memory=128Mi", few))
            .sidecar(("b", "cpu=100m memory=32Mi", few)),
        Spec::one("one-ended", "cpu=100m memory=32Mi", few).ended(("b", "cpu=100m memory=32Mi", few)),
        Spec::one("host-pid", "cpu=100m memory=32Mi", few).field("hostPID", true.into()),
        Spec::new("shared-pid", &[("a", "cpu=100m memory=32Mi", few), ("b", "memory=32Mi", few)])
            .field("shareProcessNamespace", true.into()),
        Spec::one("memory-volume", "memory=32Mi", "memory=1Mi").field(
            "volumes",
            json!([{ "name": "scratch", "emptyDir": { "medium": "Memory", "sizeLimit": "8Mi" } }]),
        ),
    ]);
    specs.extend(pod_level());
    specs.extend([
        Spec::one("overhead", "cpu=50m memory=32Mi", few).overhead(),
        Spec::one("pod-overhead", "", "").pod("cpu=50m memory=32Mi", few).overhead(),
        Spec::one(
            "hugepages",
            "cpu=50m memory=32Mi hugepages-2Mi=4Mi",
            "cpu=1m memory=1Mi hugepages-2Mi=4Mi",
        ),
    ]);
    specs
}

fn quantities() -> Vec<Spec> {
    vec![
        Spec::one("besteffort", "", ""),
        Spec::one("guaranteed", "cpu=20m memory=32Mi", ""),
        Spec::one("guaranteed-tiny", "cpu=5m memory=32Mi", ""),
        Spec::one("cpu-1m", "cpu=1m", ""),
        Spec::one("cpu-4m", "cpu=4m", ""),
        Spec::one("cpu-9m", "cpu=9m", "cpu=1m"),
        Spec::one("cpu-10m", "cpu=10m", "cpu=1m"),
        Spec::one("cpu-11m", "cpu=11m", "cpu=1m"),
        Spec::one("cpu-51m", "cpu=51m", "cpu=3m"),
        Spec::one("cpu-417m", "cpu=417m", "cpu=2m"),
        Spec::one("cpu-1234m", "cpu=1234m", "cpu=2m"),
        Spec::one("cpu-4096m", "cpu=4096m", "cpu=2m"),
        Spec::one("cpu-fraction", "cpu=.5", "cpu=1500u"),
        Spec::one("cpu-1k", "cpu=1k", "cpu=1m"),
        Spec::one("cpu-only", "cpu=100m", ""),
        Spec::one("memory-only", "memory=64Mi", "memory=1Mi"),
        Spec::one("requests-only", "", "cpu=50m memory=8Mi"),
        Spec::one("limits-only", "cpu=15m memory=32Mi", ""),
        Spec::one("memory-bytes", "memory=128974848", "memory=1Mi"),
        Spec::one("memory-exponent", "memory=129e6", "memory=1e3"),
        Spec::one("memory-decimal", "memory=100M", "memory=1M"),
        Spec::one("memory-odd", "memory=33554433", "memory=1"),
        Spec::one("memory-fraction", "memory=.25Gi", "memory=0.5Mi"),
        Spec::one("memory-milli", "memory=33554432000m", "memory=1Mi"),
        Spec::one("memory-1ti", "memory=1Ti", "memory=1Mi").beyond_the_node(),
        Spec::one("memory-7ei", "memory=7Ei", "memory=1Mi").beyond_the_node(),
        // At the kernel's own "no limit", and above.
        Spec::one("memory-page-max", "memory=9223372036854771712", "memory=1Mi").fixed(),
        Spec::one("memory-max", "memory=9223372036854775807", "memory=1Mi").fixed(),
        Spec::one("zero-limits", "cpu=0 memory=0", "").fixed(),
        Spec::one("zero-requests", "cpu=50m memory=32Mi", "cpu=0 memory=0"),
    ]
}

/// Resources of the pod as a whole (KEP-2837).
fn pod_level() -> Vec<Spec> {
    let few = "cpu=1m memory=1Mi";
    vec![
        Spec::one("pod-all", "", "").pod("cpu=100m memory=64Mi", few),
        Spec::new("pod-and-one", &[("a", "cpu=50m memory=32Mi", few), ("b", "", "")])
            .pod("cpu=100m memory=64Mi", few),
        pod_and_all(),
        Spec::new("pod-memory", &[("a", "cpu=50m", "cpu=1m"), ("b", "cpu=50m memory=32Mi", few)])
            .pod("memory=64Mi", "memory=1Mi"),
        Spec::new("pod-cpu", &[("a", "memory=32Mi", few), ("b", "memory=32Mi", few)])
            .pod("cpu=100m", "cpu=2m"),
        Spec::new("pod-requests", &[("a", "cpu=50m memory=32Mi", few), ("b", "", "")])
            .pod("", "cpu=20m memory=8Mi"),
        Spec::new("pod-guaranteed", &[("a", "", ""), ("b", "", "")]).pod("cpu=20m memory=64Mi", ""),
        Spec::new("pod-tiny", &[("a", "", ""), ("b", "", "")]).pod("cpu=5m memory=64Mi", few),
        Spec::one("pod-sidecar", "", "cpu=2m")
            .pod("cpu=100m memory=64Mi", "cpu=5m memory=2Mi")
            .sidecar(("s", "", "")),
        Spec::one("pod-init", "cpu=50m memory=32Mi", few)
            .pod("cpu=100m memory=64Mi", few)
            .init(("init", "", "")),
    ]
}

/// The containers' limits are more together than the pod's, which each of them is within.
fn pod_and_all() -> Spec {
    let few = "cpu=1m memory=1Mi";
    Spec::new("pod-and-all", &[("a", "cpu=50m memory=32Mi", few), ("b", "cpu=70m memory=48Mi", few)])
        .pod("cpu=100m memory=64Mi", "cpu=2m memory=2Mi")
}

fn sidecar() -> Spec {
    let few = "cpu=1m memory=1Mi";
    Spec::one("sidecar", "cpu=200m memory=64Mi", few).sidecar(("a", "cpu=100m memory=32Mi", few))
}

/// What is given to a kubelet of other than default settings.
pub(super) fn few() -> Vec<Spec> {
    let few = "cpu=1m memory=1Mi";
    vec![
        Spec::one("guaranteed", "cpu=20m memory=32Mi", ""),
        Spec::one("besteffort", "", ""),
        Spec::one("tiny", "cpu=4m memory=32Mi", few),
        Spec::one("burstable", "cpu=417m memory=64Mi", "cpu=10m memory=32Mi"),
        Spec::new("one-unlimited", &[("a", "cpu=50m memory=32Mi", few), ("b", "", "")]),
        Spec::new("pod-and-one", &[("a", "cpu=50m memory=32Mi", few), ("b", "", "")])
            .pod("cpu=100m memory=64Mi", few),
    ]
}

/// What is given to a kubelet that is joined to an API server.
pub(super) fn of_the_api() -> Vec<Spec> {
    let few = "cpu=1m memory=1Mi";
    let mut specs = self::few();
    specs.extend([
        Spec { ephemeral: true, ..Spec::one("ephemeral", "cpu=50m memory=32Mi", few) },
        Spec { ephemeral: true, ..Spec::one("pod-ephemeral", "", "").pod("cpu=50m memory=32Mi", few) },
        sidecar(),
    ]);
    specs
}

/// What is given to a kubelet of another release.
pub(super) fn of_a_release() -> Vec<Spec> {
    let mut specs = self::few();
    specs.extend([pod_and_all(), sidecar()]);
    specs
}

/// What a kubelet gives a UID of its own, as it does with every static pod that has none: each change makes another pod of it.
pub(super) fn without_uid() -> Vec<Spec> {
    few().into_iter().map(Spec::fixed).collect()
}
