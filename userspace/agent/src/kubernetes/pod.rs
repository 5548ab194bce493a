//! A pod of the API, down to what a comparison needs. All else is passed over as it is read, and never held.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use kwitness_core::model::{ApiAmounts, ResizeCondition, ResizeConditionKind};
use serde::Deserialize;

use super::failure::text;

/// The most characters of a quantity, and of a condition's reason and message. The API's own quantities are shorter.
const QUANTITY_MAX: usize = 64;
const REASON_MAX: usize = 64;
const MESSAGE_MAX: usize = 256;
/// The most bytes of a name, a UID or a version.
const NAME_MAX: usize = 253;
/// The most containers of a pod, init containers included.
const CONTAINERS_MAX: usize = 256;

/// A pod, as far as it is compared.
#[derive(Clone, Debug)]
pub(super) struct Pod {
    pub(super) uid: Arc<str>,
    /// The UID by which the node knows the static pod that this one mirrors; none: it is not a mirror.
    pub(super) mirrors: Option<Arc<str>>,
    pub(super) namespace: Arc<str>,
    pub(super) name: Arc<str>,
    pub(super) version: Arc<str>,
    pub(super) generation: Option<i64>,
    pub(super) observed_generation: Option<i64>,
    pub(super) is_deleting: bool,
    pub(super) conditions: Vec<ResizeCondition>,
    pub(super) whole: Amounts,
    pub(super) containers: Vec<Container>,
}

#[derive(Clone, Debug)]
pub(super) struct Container {
    pub(super) name: Arc<str>,
    /// The run that the status is about; none: there is none yet.
    pub(super) id: Option<Arc<str>>,
    pub(super) amounts: Amounts,
}

/// Of a container, or of a pod as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Amounts {
    pub(super) cpu: Of,
    pub(super) memory: Of,
}

/// What the API says of one resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Of {
    pub(super) spec: ApiAmounts,
    pub(super) allocated: ApiAmounts,
    pub(super) status: ApiAmounts,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WirePod {
    metadata: Metadata,
    spec: Spec,
    status: Status,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    uid: String,
    namespace: String,
    name: String,
    resource_version: String,
    generation: Option<i64>,
    deletion_timestamp: Option<serde::de::IgnoredAny>,
    annotations: Option<Annotations>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Annotations {
    /// Set by the kubelet, to what it has in `kubernetes.io/config.hash` of the static pod: its UID.
    #[serde(rename = "kubernetes.io/config.mirror")]
    mirror: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    containers: Option<Vec<SpecContainer>>,
    init_containers: Option<Vec<SpecContainer>>,
    resources: Option<Requirements>,
}

#[derive(Deserialize)]
struct SpecContainer {
    name: String,
    resources: Option<Requirements>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    observed_generation: Option<i64>,
    conditions: Option<Vec<Condition>>,
    container_statuses: Option<Vec<ContainerStatus>>,
    init_container_statuses: Option<Vec<ContainerStatus>>,
    resources: Option<Requirements>,
    allocated_resources: Option<Quantities>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerStatus {
    name: String,
    #[serde(rename = "containerID")]
    container_id: Option<String>,
    resources: Option<Requirements>,
    allocated_resources: Option<Quantities>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    r#type: String,
    status: String,
    reason: Option<String>,
    message: Option<String>,
    last_transition_time: Option<String>,
    observed_generation: Option<i64>,
}

#[derive(Default, Deserialize)]
struct Requirements {
    limits: Option<Quantities>,
    requests: Option<Quantities>,
}

#[derive(Default, Deserialize)]
struct Quantities {
    cpu: Option<String>,
    memory: Option<String>,
}

/// An object that is no pod, or not one that is held.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unfit {
    #[error(transparent)]
    Malformed(#[from] serde_json::Error),
    #[error("a pod without a valid `{0}`")]
    Name(&'static str),
    #[error("a pod with more than {CONTAINERS_MAX} containers")]
    Containers,
}

impl<'de> Deserialize<'de> for Pod {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::try_from(WirePod::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl TryFrom<WirePod> for Pod {
    type Error = Unfit;

    fn try_from(pod: WirePod) -> Result<Self, Unfit> {
        let WirePod { metadata, spec, status } = pod;
        let named = |what, name: String| {
            // What the API server accepts; it becomes part of a path.
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
            let is_fit = !name.is_empty() && name.len() <= NAME_MAX && name.bytes().all(is_plain);
            if is_fit { Ok(Arc::from(name)) } else { Err(Unfit::Name(what)) }
        };
        let specs = spec.containers.into_iter().chain(spec.init_containers).flatten();
        let mut containers = Vec::new();
        for SpecContainer { name, resources } in specs {
            if containers.len() == CONTAINERS_MAX {
                return Err(Unfit::Containers);
            }
            let mut amounts = Amounts::default();
            amounts.set(resources.as_ref(), |of| &mut of.spec);
            containers.push(Container { name: named("spec.containers[].name", name)?, id: None, amounts });
        }
        for said in status.container_statuses.into_iter().chain(status.init_container_statuses).flatten() {
            let Some(container) = containers.iter_mut().find(|container| *container.name == *said.name)
            else {
                continue;
            };
            // "containerd://ID".
            let id = said.container_id.as_deref().map(|id| id.split_once("://").map_or(id, |(_, id)| id));
            container.id = id.filter(|id| !id.is_empty() && id.len() <= NAME_MAX).map(Arc::from);
            container.amounts.set(said.resources.as_ref(), |of| &mut of.status);
            container.amounts.set_requests(said.allocated_resources.as_ref(), |of| &mut of.allocated);
        }
        let mut whole = Amounts::default();
        whole.set(spec.resources.as_ref(), |of| &mut of.spec);
        whole.set(status.resources.as_ref(), |of| &mut of.status);
        whole.set_requests(status.allocated_resources.as_ref(), |of| &mut of.allocated);
        let mirror = metadata.annotations.and_then(|annotations| annotations.mirror);
        Ok(Self {
            uid: named("metadata.uid", metadata.uid)?,
            // One that is no UID is none of a pod of this node.
            mirrors: mirror.and_then(|mirror| named("config.mirror", mirror).ok()),
            namespace: named("metadata.namespace", metadata.namespace)?,
            name: named("metadata.name", metadata.name)?,
            version: named("metadata.resourceVersion", metadata.resource_version)?,
            generation: metadata.generation,
            observed_generation: status.observed_generation,
            is_deleting: metadata.deletion_timestamp.is_some(),
            conditions: status.conditions.into_iter().flatten().filter_map(condition).take(2).collect(),
            whole,
            containers,
        })
    }
}

impl Amounts {
    fn set(&mut self, required: Option<&Requirements>, of: fn(&mut Of) -> &mut ApiAmounts) {
        let Some(Requirements { limits, requests }) = required else { return };
        if let Some(Quantities { cpu, memory }) = limits {
            of(&mut self.cpu).limit = quantity(cpu.as_deref());
            of(&mut self.memory).limit = quantity(memory.as_deref());
        }
        self.set_requests(requests.as_ref(), of);
    }

    fn set_requests(&mut self, requests: Option<&Quantities>, of: fn(&mut Of) -> &mut ApiAmounts) {
        let Some(Quantities { cpu, memory }) = requests else { return };
        of(&mut self.cpu).request = quantity(cpu.as_deref());
        of(&mut self.memory).request = quantity(memory.as_deref());
    }
}

/// As it was written: what is too long for a quantity is cut, and is none any more.
fn quantity(said: Option<&str>) -> Option<Arc<str>> {
    said.map(|said| {
        if said.len() <= QUANTITY_MAX {
            text(said, QUANTITY_MAX)
        } else {
            text(said, QUANTITY_MAX - 1) + "…"
        }
    })
    .map(Arc::from)
}

/// One of a resize that is true.
fn condition(said: Condition) -> Option<ResizeCondition> {
    let kind = match &*said.r#type {
        "PodResizePending" => ResizeConditionKind::Pending,
        "PodResizeInProgress" => ResizeConditionKind::InProgress,
        _ => return None,
    };
    let kept = |said: Option<String>, max| {
        said.filter(|said| !said.is_empty()).map(|said| Arc::from(text(&said, max)))
    };
    (said.status == "True").then(|| ResizeCondition {
        kind,
        reason: kept(said.reason, REASON_MAX),
        message: kept(said.message, MESSAGE_MAX),
        since: said.last_transition_time.and_then(|time| Some(time.parse::<Timestamp>().ok()?.as_second())),
        observed_generation: said.observed_generation,
    })
}

impl Pod {
    /// Whether the node knows it by that UID, or the API.
    pub(super) fn is(&self, uid: &str) -> bool {
        *self.uid == *uid || self.mirrors.as_deref() == Some(uid)
    }

    /// About how many bytes it takes in the store.
    pub(super) fn size(&self) -> usize {
        const FIXED: usize = 512;
        let texts =
            |texts: &[Option<&Arc<str>>]| texts.iter().flatten().map(|text| text.len() + 16).sum::<usize>();
        let amounts = |amounts: &Amounts| {
            let of = |of: &Of| {
                let each = [&of.spec, &of.allocated, &of.status];
                each.map(|of| texts(&[of.limit.as_ref(), of.request.as_ref()])).iter().sum::<usize>()
            };
            of(&amounts.cpu) + of(&amounts.memory)
        };
        let containers = self.containers.iter().map(|container| {
            FIXED + texts(&[Some(&container.name), container.id.as_ref()]) + amounts(&container.amounts)
        });
        let conditions = self.conditions.iter().map(|of| texts(&[of.reason.as_ref(), of.message.as_ref()]));
        let names = [&self.uid, &self.namespace, &self.name, &self.version].map(Some);
        let names = texts(&names) + texts(&[self.mirrors.as_ref()]);
        FIXED + names + amounts(&self.whole) + containers.sum::<usize>() + conditions.sum::<usize>()
    }
}
