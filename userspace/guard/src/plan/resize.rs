//! The reasons for which a limit is not raised through the Kubernetes API.

use crate::policy::Bytes;

/// Why a limit is not raised through the Kubernetes API. Texts are the API's, escaped and bounded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResizeRefusal {
    /// The container is not known well enough to be found in the API.
    #[error("the names of the container or the UID of its pod are not known")]
    Unnamed,
    /// The API's pod of that name has another UID: a later pod, or the mirror of a static one.
    #[error("the API's pod of that name has another UID")]
    OtherPod,
    /// The pod is bound to another node.
    #[error("the pod is bound to node {0}")]
    OtherNode(String),
    /// The pod is not in the phase `Running`.
    #[error("the pod's phase is {0}, not Running")]
    NotRunning(String),
    /// Another resize of the pod is not done.
    #[error("another resize of the pod is under way: {0}")]
    Pending(String),
    /// Of such a pod no container has a limit, or the class is not known.
    #[error("a pod of the QoS class {0} is not raised")]
    QosClass(String),
    /// The container's `resizePolicy` for memory is not `NotRequired`.
    #[error("the container's resizePolicy for memory is {0}")]
    Restarts(String),
    /// The pod's spec has no such container, or no memory limit for it, and none for the pod.
    #[error("the pod's spec has no memory limit for the container")]
    NoLimit,
    /// The pod has a limit of its own, in its spec, which would have to change.
    #[error("the memory limit of the pod itself cannot be changed: {0}")]
    PodLimit(String),
    /// The limit in force is not the one of the spec.
    #[error("the pod's spec has a limit of {spec}, {in_force} is in force")]
    Differs {
        /// The spec's.
        spec: Bytes,
        /// The kernel's.
        in_force: Bytes,
    },
    /// The kubelet has put the resize off.
    #[error("the kubelet has deferred the resize: {0}")]
    Deferred(String),
    /// The kubelet will not do it.
    #[error("the kubelet considers the resize infeasible: {0}")]
    Infeasible(String),
    /// The kubelet has tried and failed.
    #[error("the kubelet failed to resize: {0}")]
    Failed(String),
    /// The API server considers it wrong.
    #[error("the API server considers the resize invalid: {0}")]
    Invalid(String),
    /// Permission, quota, limit range or another admission plugin.
    #[error("the API server forbids the resize: {0}")]
    Forbidden(String),
    /// The pod changed between each reading and writing.
    #[error("the pod kept changing meanwhile")]
    Conflict,
    /// The API server cannot be reached, or cannot answer.
    #[error("the API server: {0}")]
    Unavailable(String),
    /// The hold ended first.
    #[error("no answer of the API server within the hold")]
    NoAnswer,
}

impl ResizeRefusal {
    /// Its name in the log and in the status.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Unnamed => "podUnknown",
            Self::OtherPod => "otherPod",
            Self::OtherNode(_) => "otherNode",
            Self::NotRunning(_) => "podNotRunning",
            Self::Pending(_) => "resizePending",
            Self::QosClass(_) => "qosClass",
            Self::Restarts(_) => "restartContainer",
            Self::NoLimit => "noSpecLimit",
            Self::PodLimit(_) => "podLimit",
            Self::Differs { .. } => "specDiffers",
            Self::Deferred(_) => "resizeDeferred",
            Self::Infeasible(_) => "resizeInfeasible",
            Self::Failed(_) => "resizeFailed",
            Self::Invalid(_) => "resizeInvalid",
            Self::Forbidden(_) => "resizeForbidden",
            Self::Conflict => "resizeConflict",
            Self::Unavailable(_) => "apiUnavailable",
            Self::NoAnswer => "apiNoAnswer",
        }
    }
}
