//! What the Kubernetes API says of a limit, and how that compares with what the kernel has.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::ids::KernelTime;
use super::value::Value;

/// The API's side of one limit, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiView {
    /// From then on, writes to limit files were observed.
    pub observed_from: KernelTime,
    /// Why the API cannot be watched now; none: it is watched.
    pub outage: Option<ApiOutage>,
    /// What it said last.
    pub said: Result<Arc<ApiLimit>, ApiMissing>,
}

/// A time without the API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiOutage {
    /// When it began.
    pub since: KernelTime,
    /// What prevents the watch.
    pub why: Arc<str>,
}

/// Why nothing that the API says is known of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ApiMissing {
    /// The API has no such pod on this node.
    Pod,
    /// Nor could it have been kept: the store was full.
    StoreFull,
    /// The pod's status has no such container.
    Container,
    /// The pod's status is of another run of the container.
    OtherRun,
}

/// What the API says of one resource of a container, or of a pod as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiLimit {
    /// The pod's own facts.
    pub pod: Arc<ApiPod>,
    /// Desired: `resources` of the spec.
    pub spec: ApiAmounts,
    /// Admitted by the kubelet: `allocatedResources` of the status, which are requests only.
    pub allocated: ApiAmounts,
    /// Actual, by the kubelet's word: `resources` of the status.
    pub status: ApiAmounts,
    /// Since when the status is so.
    pub status_since: ApiSince,
}

/// Quantities of one resource, as the API has them; none: it has none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiAmounts {
    /// The limit.
    pub limit: Option<Arc<str>>,
    /// The request.
    pub request: Option<Arc<str>>,
}

/// When something that the API says was received first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiSince {
    /// The time.
    pub at: KernelTime,
    /// It was so in the first list: the API may have said it long before.
    pub or_earlier: bool,
}

/// What the API says of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiPod {
    /// The version of what is known.
    pub resource_version: Arc<str>,
    /// The spec's generation.
    pub generation: Option<i64>,
    /// The generation that the kubelet's status is about.
    pub observed_generation: Option<i64>,
    /// When this version was received.
    pub received: KernelTime,
    /// The pod was read, and not only watched: the API said this at that time, or later.
    pub confirmed: Option<KernelTime>,
    /// The conditions of a resize that are true.
    pub conditions: Vec<ResizeCondition>,
    /// The condition `PodResizeInProgress` went away, and none of a resize is left; until the spec changes.
    pub resized: Option<KernelTime>,
    /// It is being deleted.
    pub is_deleting: bool,
}

/// A condition of a resize.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResizeCondition {
    /// Its type.
    pub kind: ResizeConditionKind,
    /// `Deferred`, `Infeasible`, `Error`; none: there is none.
    pub reason: Option<Arc<str>>,
    /// For people.
    pub message: Option<Arc<str>>,
    /// When it became true, in seconds since the Unix epoch.
    pub since: Option<i64>,
    /// The generation that it is about.
    pub observed_generation: Option<i64>,
}

/// Which condition of a resize.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResizeConditionKind {
    /// `PodResizePending`: the kubelet has not admitted it.
    Pending,
    /// `PodResizeInProgress`: admitted, and not done.
    InProgress,
}

/// The API's side of a limit, compared. It changes no verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiFinding {
    /// What was compared.
    pub view: ApiView,
    /// What came of it.
    pub comparison: ApiComparison,
}

/// How the API's word compares with the kernel's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ApiComparison {
    /// They say the same.
    Agrees,
    /// They do not; never empty.
    Disagrees(Vec<ApiDisagreement>),
    /// They cannot be compared, or not now.
    NotCompared(NotCompared),
}

/// Something that the API says and the kernel does not have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiDisagreement {
    /// What they disagree about.
    pub kind: ApiDisagreementKind,
    /// The API's quantity.
    pub says: Arc<str>,
    /// Since when the API says it.
    pub since: ApiSince,
    /// What the cgroup's file says.
    pub kernel: Value,
    /// When that was written, if the write was seen.
    pub written: Option<KernelTime>,
    /// When the file was read.
    pub read: KernelTime,
}

/// Which word of the API's is not what the kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ApiDisagreementKind {
    /// The status.
    Status,
    /// That a resize to the spec is complete.
    Resized,
}

/// Why no comparison was made, or why a difference is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NotCompared {
    /// The API cannot be watched now.
    Unreachable,
    /// See [`ApiMissing`].
    Missing(ApiMissing),
    /// The pod is being deleted.
    Deleting,
    /// The file cannot be read, or what it says cannot be judged.
    KernelUnknown,
    /// The status has no such amount.
    NoStatus,
    /// The status has one that is not a quantity.
    NotUnderstood,
    /// The kubelet has not reported on the newest spec yet.
    GenerationBehind,
    /// A resize is in progress.
    ResizeInProgress,
    /// The file was written a moment ago: the kubelet may not have reported it yet.
    Settling,
    /// They differ by what was watched, and the API was not read again since.
    Unconfirmed,
}
