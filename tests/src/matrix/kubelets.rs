//! The kubelets: their settings, and the pods that each is given.

use anyhow::Result;
use kwitness_api::proto::VerdictKind;
use serde_json::{Value, json};

use super::{Spec, pods};
use crate::environment::{CgroupDriver, Handler};
use crate::pod::new_uid;

#[derive(Clone, Copy, Debug)]
pub struct KubeletVariant {
    pub name: &'static str,
    /// The release of Kubernetes that it is of; none: the one that all tests use.
    pub release: Option<&'static str>,
    pub settings: fn() -> Value,
    /// Its calls pass the CRI proxy, so that each request is a source, too. With the systemd driver, each kubelet's do.
    pub proxy: bool,
    /// Those of its pods that are tried in every run; an emulated guest needs ten seconds for each.
    pub short: &'static [&'static str],
    pub processors: usize,
    /// CPU limits of its pods that have the least quota there is even when they are doubled.
    tiny: &'static [&'static str],
    pub tracked: bool,
    pub origin: Origin,
    /// The OCI runtime of its pods with the driver `cgroupfs`; with `systemd` it is the other one.
    handler: Handler,
    pods: fn() -> Vec<Spec>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Files with the pods' UIDs: a kubelet resizes these pods in place.
    Files,
    /// Files without: a kubelet resizes none.
    FilesWithoutUid,
    Api,
}

impl KubeletVariant {
    pub fn pods(&self) -> Result<Vec<Spec>> {
        let mut pods = (self.pods)();
        for pod in &mut pods {
            pod.tiny = self.tiny;
            if self.origin == Origin::Files {
                pod.uid = Some(new_uid()?);
            }
        }
        Ok(pods)
    }

    pub fn handler(&self, driver: CgroupDriver) -> Handler {
        match (self.handler, driver) {
            (handler, CgroupDriver::Cgroupfs) => handler,
            (Handler::Runc, CgroupDriver::Systemd) => Handler::Crun,
            (Handler::Crun, CgroupDriver::Systemd) => Handler::Runc,
        }
    }

    pub fn id(&self) -> String {
        let letters = self.name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        letters.collect::<Vec<_>>().join("_").to_lowercase()
    }
}

const DEFAULT: KubeletVariant = KubeletVariant {
    name: "default",
    release: None,
    settings: || json!({}),
    proxy: false,
    short: &[
        "requests-only",
        "cpu-417m",
        "tiny-sum",
        "one-unlimited",
        "sidecar-unlimited-second",
        "pod-memory",
        "overhead",
    ],
    processors: 1,
    tiny: &["1m", "4m", "5m"],
    tracked: true,
    origin: Origin::Files,
    handler: Handler::Crun,
    pods: pods::all,
};

const SETTINGS: KubeletVariant =
    KubeletVariant { proxy: true, short: &[], handler: Handler::Runc, pods: pods::few, ..DEFAULT };

pub const KUBELETS: [KubeletVariant; 12] = [
    DEFAULT,
    KubeletVariant { name: "with an API server", origin: Origin::Api, pods: pods::of_the_api, ..SETTINGS },
    KubeletVariant {
        name: "without UIDs in manifests",
        origin: Origin::FilesWithoutUid,
        pods: pods::without_uid,
        ..SETTINGS
    },
    KubeletVariant {
        name: "cpuCFSQuota: false",
        settings: || json!({ "cpuCFSQuota": false }),
        pods: not_enforced,
        ..SETTINGS
    },
    KubeletVariant {
        name: "cpuCFSQuotaPeriod: 10ms",
        settings: || json!({ "cpuCFSQuotaPeriod": "10ms", "featureGates": { "CustomCPUCFSQuotaPeriod": true } }),
        // 1 ms of 10.
        tiny: &["4m", "20m", "50m"],
        ..SETTINGS
    },
    KubeletVariant {
        name: "MemoryQoS",
        settings: || json!({ "memoryThrottlingFactor": 0.8, "featureGates": { "MemoryQoS": true } }),
        ..SETTINGS
    },
    KubeletVariant {
        name: "LimitedSwap",
        settings: || json!({ "memorySwap": { "swapBehavior": "LimitedSwap" } }),
        ..SETTINGS
    },
    KubeletVariant {
        name: "static CPU manager",
        settings: || json!({ "cpuManagerPolicy": "static", "reservedSystemCPUs": "0" }),
        processors: 3,
        pods: exclusive,
        ..SETTINGS
    },
    KubeletVariant {
        name: "cgroupsPerQOS: false",
        settings: || json!({ "cgroupsPerQOS": false, "enforceNodeAllocatable": [] }),
        tracked: false,
        ..SETTINGS
    },
    // Before 1.36, a static pod is not resized.
    KubeletVariant {
        name: "Kubernetes 1.34",
        release: Some("1.34"),
        origin: Origin::Api,
        pods: unrecorded,
        ..SETTINGS
    },
    KubeletVariant {
        name: "Kubernetes 1.35",
        release: Some("1.35"),
        origin: Origin::Api,
        pods: unresized,
        ..SETTINGS
    },
    KubeletVariant { name: "Kubernetes 1.37", release: Some("1.37"), pods: pods::of_a_release, ..SETTINGS },
];

/// The verdict on a CPU limit of a kubelet that enforces none.
const NOT_ENFORCED: &str = "CPU limits are not enforced here";

/// Of a kubelet that enforces no CPU limits: whether any is in force cannot be said.
fn not_enforced() -> Vec<Spec> {
    let limited = |spec: Spec| {
        let of_pod = spec.pod.is_some_and(|(limits, _)| limits.contains("cpu="));
        let is_limited = |limits: &str| of_pod || limits.contains("cpu=");
        let containers = spec.containers.iter().map(|(_, of)| *of);
        let names: Vec<_> = containers.filter(|of| is_limited(of.1)).map(|of| of.0).collect();
        names
            .into_iter()
            .fold(spec, |spec, name| spec.expect(name, "cpu.max", VerdictKind::Unknown, NOT_ENFORCED))
    };
    pods::few().into_iter().map(limited).collect()
}

/// Of a kubelet that does not resize the resources of a pod as a whole.
fn unresized() -> Vec<Spec> {
    let has_some = |spec: &Spec| matches!(spec.name, "pod-and-one" | "pod-and-all");
    let pods = pods::of_a_release().into_iter();
    pods.map(|spec| if has_some(&spec) { spec.fixed() } else { spec }).collect()
}

/// Of one that does not record them either: a pod's limit that may be by them is unknown. Of one of its containers, whoever sent
/// it knows it.
fn unrecorded() -> Vec<Spec> {
    let of_a_pod = |spec: Spec| match spec.name {
        "pod-and-one" | "pod-and-all" => ["cpu.max", "memory.max"].into_iter().fold(spec, |spec, file| {
            spec.expect("", file, VerdictKind::Unknown, "the pod may have a limit of its own")
        }),
        _ => spec,
    };
    unresized().into_iter().map(of_a_pod).collect()
}

/// A container with a processor of its own has no quota; one processor is reserved, and one is left for the other pods. No
/// guaranteed pod of such a kubelet can be resized in place.
fn exclusive() -> Vec<Spec> {
    let is_guaranteed = |spec: &Spec| spec.name == "guaranteed";
    let pods = pods::few().into_iter();
    let mut specs: Vec<_> = pods.map(|spec| if is_guaranteed(&spec) { spec.fixed() } else { spec }).collect();
    let own = Spec::one("exclusive", "cpu=1 memory=32Mi", "").fixed();
    specs.insert(0, own.expect("app", "cpu.max", VerdictKind::Unknown, NOT_ENFORCED));
    specs
}
