//! An in-place resize of the memory of one container, or of a pod as a whole: whether the pod, as the API has it, may have one, the
//! patch, and what became of it. Pure.

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
/// The reason of a resize at which the kubelet has failed.
const ERROR: &str = "Error";

/// A container, or a pod as a whole, as the API finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target<'a> {
    pub(super) namespace: &'a str,
    pub(super) pod: &'a str,
    uid: &'a str,
    /// None: the pod as a whole.
    container: Option<&'a str>,
}

/// A limit of a spec that is to be changed: whose, how large, and what the kernel adds to it.
struct Limit {
    is_pods: bool,
    bytes: Bytes,
    overhead: Bytes,
}

impl<'a> Target<'a> {
    pub(super) fn of(container: &'a Container) -> Result<Self, ResizeRefusal> {
        let Container { namespace, pod, pod_uid, name, .. } = container;
        match (namespace, pod, pod_uid, name) {
            (Some(namespace), Some(pod), Some(uid), Some(name)) => {
                let container = (!container.is_pod()).then_some(name.as_str());
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

    /// The patch of `pods/resize` that changes the limit, if the pod may have it. It applies to the pod as it was read, and to no
    /// later version. `asked` is the limit that the guard has requested last: a resize to it is the guard's own, and one to less than
    /// is in force is a return, which a raise replaces. `page` is the size of a page: the kernel rounds limits down to it.
    pub(super) fn patch(
        self,
        pod: &Pod,
        node: Option<&str>,
        change: Change,
        asked: Option<Bytes>,
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
        let limit = self.limit(spec)?;
        let in_force = Bytes(limit.bytes.0.saturating_add(limit.overhead.0));
        // The kubelet reports a resize as under way until its next look at the pod, long after the limit is in force.
        let is_own = asked.is_some_and(|asked| is_kept_as(in_force, asked, page));
        let is_return = is_own && in_force < change.from && change.from <= change.to;
        let may_be_replaced = |condition: &PodCondition| match condition.type_.as_str() {
            _ if is_return => true,
            IN_PROGRESS => condition.reason.as_deref() != Some(ERROR),
            // The kubelet has not begun with it: it is taken back.
            _ => change.to < change.from,
        };
        let is_obstacle = |condition: &&PodCondition| !(is_own && may_be_replaced(condition));
        if let Some(condition) = resizes(status).find(is_obstacle) {
            return Err(ResizeRefusal::Pending(explain(condition)).into());
        }
        if let Some(why) = self.unsettled(pod, spec, status).filter(|_| !is_own) {
            return Err(ResizeRefusal::Pending(why).into());
        }
        // A change of a pod's limit changes those of containers that have none of their own.
        let is_restarted = |container: &ApiContainer| {
            let is_changed = limit.is_pods || self.container == Some(container.name.as_str());
            let policies = container.resize_policy.iter().flatten().filter(|_| is_changed);
            let mut policies = policies.filter(|policy| policy.resource_name == MEMORY);
            policies
                .find(|policy| policy.restart_policy != "NotRequired")
                .map(|policy| text(&policy.restart_policy))
        };
        if let Some(policy) = spec.containers.iter().find_map(is_restarted) {
            return Err(ResizeRefusal::Restarts(policy).into());
        }
        if !is_return && !is_kept_as(in_force, change.from, page) {
            return Err(ResizeRefusal::Differs { spec: in_force, in_force: change.from }.into());
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
        let patched = if limit.is_pods {
            let to = change.to.0.checked_sub(limit.overhead.0).filter(|to| *to > 0).map(Bytes);
            let to = to.ok_or_else(|| ResizeRefusal::PodLimit(change.to.to_string()))?;
            json!({ RESOURCES: resources(to, is_guaranteed) })
        } else {
            // The class of a pod with a limit of its own is that of the pod's resources.
            let of_container = resources(change.to, is_guaranteed && of_pod.is_none());
            let mut patched =
                json!({ "containers": [{ "name": self.container, "resources": of_container }] });
            if let Some(of_pod) = of_pod {
                // The spec may have less than is in force.
                let from = limit.bytes;
                let limit = whole(of_pod).and_then(|of_pod| moved(of_pod, Change { from, ..change }));
                let limit = limit.ok_or_else(|| ResizeRefusal::PodLimit(text(&of_pod.0)))?;
                patched[RESOURCES] = resources(limit, is_guaranteed);
            }
            patched
        };
        Ok(json!({ "metadata": { "resourceVersion": version }, "spec": patched }))
    }

    /// The limit in the spec that is in force for the container: its own, or that of its pod if it has none. The kubelet gives such a
    /// container its pod's, without the overhead. For the pod as a whole, the pod's.
    fn limit(self, spec: &PodSpec) -> Result<Limit, ResizeRefusal> {
        let of_pod = limit_of(spec.resources.as_ref());
        if let Some(name) = self.container {
            let container = spec.containers.iter().find(|container| container.name == name);
            let own = limit_of(container.ok_or(ResizeRefusal::NoLimit)?.resources.as_ref());
            let bytes = own.or(of_pod).and_then(whole).ok_or(ResizeRefusal::NoLimit)?;
            return Ok(Limit { is_pods: own.is_none(), bytes, overhead: Bytes(0) });
        }
        let none = || ResizeRefusal::PodLimit("its spec has none".to_owned());
        let bytes = of_pod.ok_or_else(none)?;
        let overhead = spec.overhead.as_ref().and_then(|overhead| overhead.get(MEMORY));
        let amount = |of: &Quantity| whole(of).ok_or_else(|| ResizeRefusal::PodLimit(text(&of.0)));
        let overhead = overhead.map_or(Ok(Bytes(0)), amount)?;
        Ok(Limit { is_pods: true, bytes: amount(bytes)?, overhead })
    }

    /// Why the spec is not what the kubelet has allocated, if so: a resize of which no condition reports yet, because the kubelet has
    /// not looked at it, or has not reported what it has done.
    fn unsettled(self, pod: &Pod, spec: &PodSpec, status: &PodStatus) -> Option<String> {
        // Kubelets report it from 1.33 on, behind a feature gate; without it, 0 or nothing.
        let observed = status.observed_generation.filter(|observed| *observed > 0);
        if let (Some(observed), Some(generation)) = (observed, pod.metadata.generation)
            && observed < generation
        {
            return Some(format!(
                "the kubelet has not seen generation {generation} of the pod; its status is of {observed}"
            ));
        }
        if let Some(resize) = status.resize.as_deref().filter(|resize| !resize.is_empty()) {
            return Some(format!("status.resize is {}", text(resize)));
        }
        let name = self.container?;
        let container = spec.containers.iter().find(|container| container.name == name)?;
        let requested = container.resources.as_ref()?.requests.as_ref()?.get(MEMORY)?;
        let mut statuses = status.container_statuses.iter().flatten();
        let allocated =
            statuses.find(|status| status.name == name)?.allocated_resources.as_ref()?.get(MEMORY)?;
        (whole(requested) != whole(allocated)).then(|| {
            let [allocated, requested] = [allocated, requested].map(|quantity| text(&quantity.0));
            format!("the kubelet has allocated {allocated} of memory, the spec requests {requested}")
        })
    }

    /// Whether the API has the limit that was requested; none: it has no such pod, or no such limit, any more.
    pub(super) fn is_accepted(self, pod: &Pod, change: Change) -> Option<bool> {
        self.check_identity(pod).ok()?;
        let Limit { bytes, overhead, .. } = self.limit(pod.spec.as_ref()?).ok()?;
        Some(bytes.0.checked_add(overhead.0) == Some(change.to.0))
    }

    /// Whether the kubelet has put off a change that the spec has.
    pub(super) fn is_put_off(self, pod: &Pod, change: Change) -> bool {
        let status = pod.status.as_ref();
        let is_pending = status.is_some_and(|status| resizes(status).any(|of| of.type_ == PENDING));
        is_pending && self.is_accepted(pod, change) == Some(true)
    }

    /// Why the resize that the pod was given does not come into force, if the kubelet says so.
    pub(super) fn refused(self, pod: &Pod) -> Option<Refusal> {
        if let Err(refusal) = self.check_identity(pod) {
            return Some(refusal);
        }
        let refusal = |condition: &PodCondition| {
            // Of what the spec had before.
            let observed = condition.observed_generation.filter(|observed| *observed > 0);
            if observed.zip(pod.metadata.generation).is_some_and(|(observed, now)| observed < now) {
                return None;
            }
            let why = explain(condition);
            match (condition.type_.as_str(), condition.reason.as_deref()) {
                (PENDING, Some("Deferred")) => Some(ResizeRefusal::Deferred(why)),
                (PENDING, Some("Infeasible")) => Some(ResizeRefusal::Infeasible(why)),
                (IN_PROGRESS, Some(ERROR)) => Some(ResizeRefusal::Failed(why)),
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
pub(super) mod tests;
