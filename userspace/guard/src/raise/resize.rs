//! An in-place resize of one container's memory: whether the pod, as the API has it, may have one, the patch, and what became
//! of it. Pure.

use k8s_openapi::api::core::v1::{
    Container as ApiContainer, Pod, PodCondition, PodSpec, PodStatus, ResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kwitness_api::text::escape;
use kwitness_core::verdicts::quantity;
use serde_json::{Value, json};

use crate::daemon::Container;
use crate::plan::{Change, Refusal, ResizeRefusal};
use crate::policy::Bytes;

/// What is kept of a text of the API, in characters.
const TEXT_MAX: usize = 256;

const MEMORY: &str = "memory";
const RESOURCES: &str = "resources";
/// The conditions of a resize that the kubelet has not begun, and of one that it is at.
const PENDING: &str = "PodResizePending";
const IN_PROGRESS: &str = "PodResizeInProgress";

/// A container as the API finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target<'a> {
    pub(super) namespace: &'a str,
    pub(super) pod: &'a str,
    uid: &'a str,
    container: &'a str,
}

impl<'a> Target<'a> {
    pub(super) fn of(container: &'a Container) -> Result<Self, ResizeRefusal> {
        let Container { namespace, pod, pod_uid, name, .. } = container;
        match (namespace, pod, pod_uid, name) {
            (Some(namespace), Some(pod), Some(uid), Some(container)) => {
                Ok(Self { namespace, pod, uid, container })
            }
            _ => Err(ResizeRefusal::Unnamed),
        }
    }

    /// The same pod, and it is to stay.
    fn check_identity(self, pod: &Pod) -> Result<(), Refusal> {
        if pod.metadata.uid.as_deref() != Some(self.uid) {
            return Err(ResizeRefusal::OtherPod.into());
        }
        if pod.metadata.deletion_timestamp.is_some() {
            return Err(Refusal::Gone);
        }
        Ok(())
    }

    /// The patch of `pods/resize` that raises the limit, if the pod may have it. It applies to the pod as it was read, and to no
    /// later version. `page` is the size of a page: the kernel rounds limits down to it.
    pub(super) fn patch(
        self,
        pod: &Pod,
        node: Option<&str>,
        change: Change,
        page: u64,
    ) -> Result<Value, Refusal> {
        self.check_identity(pod)?;
        let (Some(version), Some(spec), Some(status)) =
            (&pod.metadata.resource_version, &pod.spec, &pod.status)
        else {
            return Err(ResizeRefusal::Unavailable("the pod is incomplete".to_owned()).into());
        };
        let bound_to = spec.node_name.as_deref().unwrap_or_default();
        if node.is_some_and(|node| node != bound_to) {
            return Err(ResizeRefusal::OtherNode(text(bound_to)).into());
        }
        let phase = status.phase.as_deref().unwrap_or("unknown");
        if phase != "Running" {
            return Err(ResizeRefusal::NotRunning(text(phase)).into());
        }
        if let Some(condition) = resizes(status).next() {
            return Err(ResizeRefusal::Pending(explain(condition)).into());
        }
        let container = self.container(spec).ok_or(ResizeRefusal::NoLimit)?;
        let policies = container.resize_policy.iter().flatten();
        let mut policies = policies.filter(|policy| policy.resource_name == MEMORY);
        if let Some(policy) = policies.find(|policy| policy.restart_policy != "NotRequired") {
            return Err(ResizeRefusal::Restarts(text(&policy.restart_policy)).into());
        }
        let limit = limit_of(container.resources.as_ref()).and_then(whole).ok_or(ResizeRefusal::NoLimit)?;
        if !is_kept_as(limit, change.from, page) {
            return Err(ResizeRefusal::Differs { spec: limit, in_force: change.from }.into());
        }
        // The QoS class may not change, and is not to: in a Guaranteed pod requests equal limits.
        let is_guaranteed = match status.qos_class.as_deref() {
            Some("Guaranteed") => true,
            Some("Burstable") => false,
            other => return Err(ResizeRefusal::QosClass(text(other.unwrap_or("unknown"))).into()),
        };
        let resources = |limit: Bytes, has_request: bool| {
            let memory = json!({ MEMORY: limit.to_string() });
            if has_request {
                json!({ "limits": memory, "requests": memory })
            } else {
                json!({ "limits": memory })
            }
        };
        let of_pod = limit_of(spec.resources.as_ref());
        // The class of a pod with a limit of its own is that of the pod's resources.
        let of_container = resources(change.to, is_guaranteed && of_pod.is_none());
        let mut patched = json!({ "containers": [{ "name": self.container, "resources": of_container }] });
        if let Some(of_pod) = of_pod {
            let limit = whole(of_pod).and_then(|of_pod| moved(of_pod, change));
            let limit = limit.ok_or_else(|| ResizeRefusal::PodLimit(text(&of_pod.0)))?;
            patched[RESOURCES] = resources(limit, is_guaranteed);
        }
        Ok(json!({ "metadata": { "resourceVersion": version }, "spec": patched }))
    }

    /// Whether the API has the pod's container with the limit that was requested; none: it has no such pod any more.
    pub(super) fn is_accepted(self, pod: &Pod, change: Change) -> Option<bool> {
        self.check_identity(pod).ok()?;
        let container = self.container(pod.spec.as_ref()?)?;
        Some(limit_of(container.resources.as_ref()).and_then(whole) == Some(change.to))
    }

    fn container(self, spec: &PodSpec) -> Option<&ApiContainer> {
        spec.containers.iter().find(|container| container.name == self.container)
    }

    /// Why the resize that the pod was given does not come into force, if the kubelet says so.
    pub(super) fn refused(self, pod: &Pod) -> Option<Refusal> {
        if let Err(refusal) = self.check_identity(pod) {
            return Some(refusal);
        }
        let refusal = |condition: &PodCondition| {
            let why = explain(condition);
            match (condition.type_.as_str(), condition.reason.as_deref()) {
                (PENDING, Some("Deferred")) => Some(ResizeRefusal::Deferred(why)),
                (PENDING, Some("Infeasible")) => Some(ResizeRefusal::Infeasible(why)),
                (IN_PROGRESS, Some("Error")) => Some(ResizeRefusal::Failed(why)),
                _ => None,
            }
        };
        pod.status.as_ref().and_then(|status| resizes(status).find_map(refusal)).map(Refusal::from)
    }
}

/// Whether a patch changes the limit of the pod itself.
pub(super) fn is_about_pod(patch: &Value) -> bool {
    patch["spec"].get(RESOURCES).is_some()
}

fn limit_of(resources: Option<&ResourceRequirements>) -> Option<&Quantity> {
    resources?.limits.as_ref()?.get(MEMORY)
}

/// Whether the kernel has that limit of a spec as such a value: it rounds down to a page.
fn is_kept_as(spec: Bytes, value: Bytes, page: u64) -> bool {
    spec.0.checked_sub(value.0).is_some_and(|rest| rest < page)
}

/// A pod's own limit, by as much as its container's: so what is left of it for others stays as it is.
fn moved(of_pod: Bytes, change: Change) -> Option<Bytes> {
    let Change { from, to } = change;
    let moved = of_pod.0.checked_add(to.0)?.checked_sub(from.0)?;
    (moved >= to.0).then_some(Bytes(moved))
}

/// The conditions of a resize that is not done.
fn resizes(status: &PodStatus) -> impl Iterator<Item = &PodCondition> {
    let is_resize = |condition: &&PodCondition| {
        [PENDING, IN_PROGRESS].contains(&condition.type_.as_str()) && condition.status == "True"
    };
    status.conditions.iter().flatten().filter(is_resize)
}

fn explain(condition: &PodCondition) -> String {
    let said = [condition.reason.as_deref(), condition.message.as_deref()];
    let said: Vec<_> = said.into_iter().flatten().filter(|said| !said.is_empty()).collect();
    if said.is_empty() { text(&condition.type_) } else { text(&said.join(": ")) }
}

fn whole(quantity: &Quantity) -> Option<Bytes> {
    quantity::whole(&quantity.0).ok().map(Bytes)
}

/// Other people's text, as it may be logged.
pub(super) fn text(of: &str) -> String {
    match of.char_indices().nth(TEXT_MAX) {
        Some((end, _)) => format!("{}…", escape(&of[..end])),
        None => escape(of).into_owned(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const PAGE: u64 = 4096;

    pub(crate) fn container() -> Container {
        let known = |text: &str| Some(text.to_owned());
        Container {
            id: "c".to_owned(),
            is_identified: true,
            cgroup_id: 7,
            cgroup_path: "/pod/c".to_owned(),
            namespace: known("dev"),
            pod: known("web"),
            pod_uid: known("11-22"),
            name: known("main"),
        }
    }

    pub(crate) const RAISE: Change = Change { from: Bytes(64 * MIB), to: Bytes(128 * MIB) };

    /// A running pod that may be raised.
    pub(crate) fn pod() -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": "web", "namespace": "dev", "uid": "11-22", "resourceVersion": "42" },
            "spec": {
                "nodeName": "node-1",
                "containers": [
                    { "name": "sidecar", "resources": { "limits": { "memory": "1Gi" } } },
                    { "name": "main", "resources": {
                        "requests": { "memory": "32Mi" }, "limits": { "memory": "64Mi" },
                    } },
                ],
            },
            "status": { "phase": "Running", "qosClass": "Burstable" },
        })
    }

    fn patch(pod: Value) -> Result<Value, Refusal> {
        let container = container();
        let pod = serde_json::from_value(pod).unwrap();
        Target::of(&container).unwrap().patch(&pod, Some("node-1"), RAISE, PAGE)
    }

    fn resize(kind: &str, reason: &str, message: &str) -> Value {
        json!([{ "type": "Ready", "status": "True" },
               { "type": kind, "status": "True", "reason": reason, "message": message }])
    }

    #[test]
    fn a_burstable_container_gets_a_limit_and_a_guaranteed_one_a_request_as_well() {
        let of = |resources: Value| {
            json!({
                "metadata": { "resourceVersion": "42" },
                "spec": { "containers": [{ "name": "main", "resources": resources }] },
            })
        };
        let memory = json!({ "memory": "128Mi" });
        assert_eq!(patch(pod()), Ok(of(json!({ "limits": memory }))));
        let mut guaranteed = pod();
        guaranteed["status"]["qosClass"] = json!("Guaranteed");
        assert_eq!(patch(guaranteed), Ok(of(json!({ "limits": memory, "requests": memory }))));
    }

    #[test]
    fn a_pods_own_limit_moves_with_its_containers() {
        let of = |class: &str, change: Change| {
            let mut pod = pod();
            pod["status"]["qosClass"] = json!(class);
            pod["spec"]["resources"] =
                json!({ "limits": { "memory": "1Gi" }, "requests": { "memory": "1Gi" } });
            pod["spec"]["containers"][1]["resources"]["limits"]["memory"] = json!(change.from.to_string());
            let (container, pod) = (container(), serde_json::from_value(pod).unwrap());
            let patch = Target::of(&container).unwrap().patch(&pod, None, change, PAGE).unwrap();
            assert!(is_about_pod(&patch));
            patch["spec"].clone()
        };
        let spec = |of_container: &str, of_pod: Value| {
            let resources = json!({ "limits": { "memory": of_container } });
            json!({ "containers": [{ "name": "main", "resources": resources }], "resources": of_pod })
        };
        let memory = |of_pod: &str| json!({ "memory": of_pod });
        assert_eq!(of("Burstable", RAISE), spec("128Mi", json!({ "limits": memory("1088Mi") })));
        let both = json!({ "limits": memory("1088Mi"), "requests": memory("1088Mi") });
        assert_eq!(of("Guaranteed", RAISE), spec("128Mi", both));
        let Change { from, to } = RAISE;
        let back = of("Burstable", Change { from: to, to: from });
        assert_eq!(back, spec("64Mi", json!({ "limits": memory("960Mi") })));
        let without = patch(pod()).unwrap();
        assert!(!is_about_pod(&without));
    }

    #[test]
    fn what_the_spec_has_says_whether_a_change_was_accepted() {
        let container = container();
        let with = |change: fn(&mut Value)| {
            let mut pod = pod();
            change(&mut pod);
            let pod = serde_json::from_value(pod).unwrap();
            Target::of(&container).unwrap().is_accepted(&pod, RAISE)
        };
        assert_eq!(with(|_| {}), Some(false));
        assert_eq!(
            with(|pod| pod["spec"]["containers"][1]["resources"]["limits"]["memory"] = json!("128Mi")),
            Some(true)
        );
        assert_eq!(with(|pod| pod["metadata"]["uid"] = json!("33-44")), None);
        assert_eq!(with(|pod| pod["spec"]["containers"][1]["name"] = json!("other")), None);
    }

    #[test]
    fn a_limit_that_the_kernel_has_rounded_down_is_the_specs() {
        let mut rounded = pod();
        rounded["spec"]["containers"][1]["resources"]["limits"]["memory"] =
            json!((64 * MIB + PAGE - 1).to_string());
        assert!(patch(rounded).is_ok());
    }

    #[test]
    fn what_a_pod_must_be_for_a_raise() {
        let with = |change: fn(&mut Value)| {
            let mut pod = pod();
            change(&mut pod);
            patch(pod).unwrap_err().name()
        };
        for (expected, change) in [
            ("otherPod", (|pod| pod["metadata"]["uid"] = json!("33-44")) as fn(&mut Value)),
            ("gone", |pod| pod["metadata"]["deletionTimestamp"] = json!("2026-11-29T12:00:00Z")),
            ("otherNode", |pod| pod["spec"]["nodeName"] = json!("node-2")),
            ("podNotRunning", |pod| pod["status"]["phase"] = json!("Succeeded")),
            ("resizePending", |pod| pod["status"]["conditions"] = resize(PENDING, "Deferred", "")),
            ("resizePending", |pod| pod["status"]["conditions"] = resize(IN_PROGRESS, "", "")),
            ("qosClass", |pod| pod["status"]["qosClass"] = json!("BestEffort")),
            ("qosClass", |pod| pod["status"]["qosClass"] = Value::Null),
            ("restartContainer", |pod| {
                pod["spec"]["containers"][1]["resizePolicy"] =
                    json!([{ "resourceName": "memory", "restartPolicy": "RestartContainer" }]);
            }),
            ("podLimit", |pod| pod["spec"]["resources"] = json!({ "limits": { "memory": "1.5" } })),
            ("podLimit", |pod| pod["spec"]["resources"] = json!({ "limits": { "memory": "32Mi" } })),
            ("noSpecLimit", |pod| pod["spec"]["containers"][1]["name"] = json!("other")),
            ("noSpecLimit", |pod| pod["spec"]["containers"][1]["resources"]["limits"] = json!({})),
            ("specDiffers", |pod| {
                pod["spec"]["containers"][1]["resources"]["limits"]["memory"] = json!("96Mi");
            }),
            ("specDiffers", |pod| {
                pod["spec"]["containers"][1]["resources"]["limits"]["memory"] = json!("63Mi");
            }),
        ] {
            assert_eq!(with(change), expected);
        }
        // A policy or a pod's limit for the CPU alone changes nothing, nor does a resize that is done.
        let mut other = pod();
        other["spec"]["containers"][1]["resizePolicy"] =
            json!([{ "resourceName": "cpu", "restartPolicy": "RestartContainer" }]);
        other["spec"]["resources"] = json!({ "limits": { "cpu": "2" }, "requests": { "memory": "64Mi" } });
        other["status"]["conditions"] = resize(PENDING, "Deferred", "");
        other["status"]["conditions"][1]["status"] = json!("False");
        assert!(patch(other).is_ok());
    }

    #[test]
    fn a_container_without_names_is_not_looked_for() {
        for forget in [
            |container: &mut Container| container.namespace = None,
            |container: &mut Container| container.pod = None,
            |container: &mut Container| container.pod_uid = None,
            |container: &mut Container| container.name = None,
        ] {
            let mut container = container();
            forget(&mut container);
            assert_eq!(Target::of(&container), Err(ResizeRefusal::Unnamed));
        }
    }

    #[test]
    fn what_the_kubelet_refuses_afterwards_is_refused_with_its_words() {
        let container = container();
        let refused = |conditions: Value| {
            let mut pod = pod();
            pod["status"]["conditions"] = conditions;
            let pod = serde_json::from_value(pod).unwrap();
            Target::of(&container).unwrap().refused(&pod)
        };
        let said = || "Deferred: no room".to_owned();
        let deferred = ResizeRefusal::Deferred(said());
        assert_eq!(refused(resize(PENDING, "Deferred", "no room")), Some(deferred.into()));
        for (kind, reason, name) in
            [(PENDING, "Infeasible", "resizeInfeasible"), (IN_PROGRESS, "Error", "resizeFailed")]
        {
            assert_eq!(refused(resize(kind, reason, "why")).unwrap().name(), name);
        }
        assert_eq!(refused(resize(IN_PROGRESS, "", "")), None);
        assert_eq!(refused(json!([])), None);
    }

    #[test]
    fn a_pod_that_is_deleted_or_replaced_afterwards_ends_the_wait() {
        let container = container();
        let target = Target::of(&container).unwrap();
        let mut deleted = pod();
        deleted["metadata"]["deletionTimestamp"] = json!("2026-11-29T12:00:00Z");
        assert_eq!(target.refused(&serde_json::from_value(deleted).unwrap()), Some(Refusal::Gone));
        let mut replaced = pod();
        replaced["metadata"]["uid"] = json!("33-44");
        let replaced = serde_json::from_value(replaced).unwrap();
        assert_eq!(target.refused(&replaced), Some(ResizeRefusal::OtherPod.into()));
    }

    #[test]
    fn texts_of_the_api_are_escaped_and_bounded() {
        assert_eq!(text("a\x1b[31mb\n"), "a\\x1b[31mb\\n");
        let long = text(&"ä".repeat(TEXT_MAX + 1));
        assert_eq!(long.chars().count(), TEXT_MAX + 1);
        assert!(long.ends_with('…'));
    }
}
