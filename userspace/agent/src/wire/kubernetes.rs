//! What the Kubernetes API says of a limit, in the API's shape.

use kwitness_core::model::{
    ApiAmounts, ApiComparison, ApiDisagreement, ApiDisagreementKind, ApiFinding, ApiMissing, NotCompared,
    ResizeCondition, ResizeConditionKind,
};

use crate::clock::Clock;
use kwitness_api::{Timestamp, proto};

/// The API's side of a limit, compared.
pub(super) fn limit(found: &ApiFinding, clock: Clock) -> proto::KubernetesLimit {
    let ApiFinding { view, comparison } = found;
    let disagreements = match comparison {
        ApiComparison::Disagrees(found) => found.iter().map(|of| disagreement(of, clock)).collect(),
        ApiComparison::Agrees | ApiComparison::NotCompared(_) => Vec::new(),
    };
    let limit = proto::KubernetesLimit {
        comparison: self::comparison(comparison).into(),
        disagreements,
        outage: view.outage.as_ref().map(|outage| outage.why.to_string()).unwrap_or_default(),
        outage_since: view.outage.as_ref().map(|outage| clock.wall(outage.since)),
        ..Default::default()
    };
    let Ok(said) = &view.said else { return limit };
    let pod = &said.pod;
    proto::KubernetesLimit {
        spec: amounts(&said.spec),
        allocated: amounts(&said.allocated),
        status: amounts(&said.status),
        status_since: Some(clock.wall(said.status_since.at)),
        status_or_earlier: said.status_since.or_earlier,
        conditions: pod.conditions.iter().map(condition).collect(),
        resized: pod.resized.map(|at| clock.wall(at)),
        generation: pod.generation,
        observed_generation: pod.observed_generation,
        resource_version: pod.resource_version.to_string(),
        received: Some(clock.wall(pod.received)),
        confirmed: pod.confirmed.map(|at| clock.wall(at)),
        ..limit
    }
}

/// None if the API has neither.
fn amounts(of: &ApiAmounts) -> Option<proto::KubernetesAmounts> {
    let ApiAmounts { limit, request } = of;
    (limit.is_some() || request.is_some()).then(|| proto::KubernetesAmounts {
        limit: limit.as_deref().map(str::to_owned),
        request: request.as_deref().map(str::to_owned),
    })
}

fn condition(of: &ResizeCondition) -> proto::ResizeCondition {
    let kind = match of.kind {
        ResizeConditionKind::Pending => "PodResizePending",
        ResizeConditionKind::InProgress => "PodResizeInProgress",
    };
    proto::ResizeCondition {
        r#type: kind.to_owned(),
        reason: of.reason.as_deref().map(str::to_owned),
        message: of.message.as_deref().map(str::to_owned),
        since: of.since.map(|seconds| Timestamp { seconds, nanos: 0 }),
        observed_generation: of.observed_generation,
    }
}

fn disagreement(of: &ApiDisagreement, clock: Clock) -> proto::KubernetesDisagreement {
    let reason = match of.kind {
        ApiDisagreementKind::Status => proto::KubernetesDisagreementReason::StatusDiffers,
        ApiDisagreementKind::Resized => proto::KubernetesDisagreementReason::ResizeCompletedNotInForce,
    };
    proto::KubernetesDisagreement {
        reason: reason.into(),
        says: of.says.to_string(),
        since: Some(clock.wall(of.since.at)),
        or_earlier: of.since.or_earlier,
        kernel: of.kernel.to_string(),
        written: of.written.map(|at| clock.wall(at)),
        read: Some(clock.wall(of.read)),
    }
}

fn comparison(of: &ApiComparison) -> proto::KubernetesComparison {
    use proto::KubernetesComparison as To;

    match of {
        ApiComparison::Agrees => To::Agrees,
        ApiComparison::Disagrees(_) => To::Disagrees,
        ApiComparison::NotCompared(why) => match why {
            NotCompared::Unreachable => To::Unreachable,
            NotCompared::Missing(ApiMissing::Pod) => To::NoPod,
            NotCompared::Missing(ApiMissing::StoreFull) => To::StoreFull,
            NotCompared::Missing(ApiMissing::Container) => To::NoContainer,
            NotCompared::Missing(ApiMissing::OtherRun) => To::OtherRun,
            NotCompared::Deleting => To::Deleting,
            NotCompared::KernelUnknown => To::KernelUnknown,
            NotCompared::NoStatus => To::NoStatus,
            NotCompared::NotUnderstood => To::NotUnderstood,
            NotCompared::GenerationBehind => To::GenerationBehind,
            NotCompared::ResizeInProgress => To::ResizeInProgress,
            NotCompared::Settling => To::Settling,
            NotCompared::Unconfirmed => To::Unconfirmed,
        },
    }
}
