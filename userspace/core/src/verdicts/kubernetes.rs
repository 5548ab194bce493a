//! Whether the Kubernetes API and the kernel say the same of a limit. Pure, and no part of a verdict: a verdict says what the
//! kernel has of what was desired; this says whether the kubelet's report of it is true.
//!
//! ```text
//!  no watch, no such pod or container, going, no amount, unreadable ─▶ not compared (why)
//!  the file has what status and a completed resize say ─────────────▶ agrees
//!  it has not ┬─ the kubelet is behind, or a resize is in progress ──▶ not compared
//!             ├─ the file was written less than SETTLE ago ──────────▶ not compared
//!             ├─ the pod was not read since then ────────────────────▶ not compared: unconfirmed
//!             └─ ────────────────────────────────────────────────────▶ disagrees (what, since when, by either side)
//! ```
//!
//! A watch may lag behind without a sign of it. So what was only watched is never a disagreement: the pod must have been read from
//! the API ([`ApiPod::confirmed`]) after the file had its value for as long as a kubelet needs to report a change.
//!
//! [`ApiPod::confirmed`]: crate::model::ApiPod::confirmed

use std::sync::Arc;

use super::{convert, quantity};
use crate::model::{
    ApiAmounts, ApiComparison, ApiDisagreement, ApiDisagreementKind, ApiLimit, ApiSince, ApiView, Attempt,
    Bound, Ended, Judgement, KernelTime, LevelRole, NotCompared, ResizeConditionKind, Resource, Value,
    Verdict, Wanted,
};

/// How long a kubelet may take to report what it has changed: it sends statuses at least every ten seconds.
pub const SETTLE: u64 = 10_000_000_000;

/// The kernel's side.
#[derive(Clone, Copy, Debug)]
pub struct KernelSide<'a> {
    /// What the file says, and the verdict on it.
    pub judgement: &'a Judgement,
    /// Whose file it is.
    pub role: LevelRole,
    /// The last attempt to write it.
    pub attempt: Option<&'a Attempt>,
    /// When it was read.
    pub read: KernelTime,
    /// The kernel's page size in bytes.
    pub page: u64,
}

/// Whether the API has a say in this resource.
pub const fn is_compared(resource: Resource) -> bool {
    matches!(resource, Resource::Cpu | Resource::CpuWeight | Resource::Memory)
}

/// Compares.
pub fn compare(view: &ApiView, kernel: &KernelSide<'_>) -> ApiComparison {
    disagreements(view, kernel).map_or_else(ApiComparison::NotCompared, |found| {
        if found.is_empty() { ApiComparison::Agrees } else { ApiComparison::Disagrees(found) }
    })
}

fn disagreements(view: &ApiView, kernel: &KernelSide<'_>) -> Result<Vec<ApiDisagreement>, NotCompared> {
    if view.outage.is_some() {
        return Err(NotCompared::Unreachable);
    }
    let said = view.said.as_ref().map_err(|missing| NotCompared::Missing(*missing))?;
    if said.pod.is_deleting {
        return Err(NotCompared::Deleting);
    }
    let value = kernel.judgement.in_force.value().ok_or(NotCompared::KernelUnknown)?;
    if matches!(kernel.judgement.verdict, Verdict::Unknown { .. }) {
        return Err(NotCompared::KernelUnknown);
    }
    let status = amount(&said.status, kernel.judgement.resource).ok_or(NotCompared::NoStatus)?;
    let statements = [
        Some((ApiDisagreementKind::Status, status, said.status_since)),
        completed(said, kernel.judgement.resource),
    ];
    let mut found = Vec::new();
    for (kind, says, since) in statements.into_iter().flatten() {
        let wanted = wanted(kernel, says).ok_or(NotCompared::NotUnderstood)?;
        if wanted.accepts(value, kernel.page).is_none() {
            found.push(disagreement(kind, says, since, value, kernel));
        }
    }
    if !found.is_empty() {
        check_currency(view, said, kernel)?;
    }
    Ok(found)
}

/// That both sides have had the time to be right.
fn check_currency(view: &ApiView, said: &ApiLimit, kernel: &KernelSide<'_>) -> Result<(), NotCompared> {
    let pod = &said.pod;
    if is_behind(said) {
        return Err(NotCompared::GenerationBehind);
    }
    if pod.conditions.iter().any(|condition| condition.kind == ResizeConditionKind::InProgress) {
        return Err(NotCompared::ResizeInProgress);
    }
    let changed = match kernel.attempt {
        // What was not seen was before the first that could be.
        None => view.observed_from,
        Some(attempt) => attempt.ended.ok_or(NotCompared::Settling)?.at(),
    };
    let settled = KernelTime(changed.0.saturating_add(SETTLE));
    if kernel.read < settled {
        return Err(NotCompared::Settling);
    }
    // What was read long ago may have changed since.
    let oldest = settled.max(KernelTime(kernel.read.0.saturating_sub(SETTLE)));
    match pod.confirmed {
        Some(confirmed) if confirmed >= oldest => Ok(()),
        _ => Err(NotCompared::Unconfirmed),
    }
}

fn is_behind(said: &ApiLimit) -> bool {
    let generations = said.pod.generation.zip(said.pod.observed_generation);
    generations.is_some_and(|(generation, observed)| observed < generation)
}

/// That the spec has been carried out, where the API says so: its conditions of a resize went away, and its status is about this spec.
fn completed(said: &ApiLimit, resource: Resource) -> Option<(ApiDisagreementKind, &Arc<str>, ApiSince)> {
    let at = said.pod.resized.filter(|_| said.pod.conditions.is_empty() && !is_behind(said))?;
    let spec = amount(&said.spec, resource)?;
    Some((ApiDisagreementKind::Resized, spec, ApiSince { at, or_earlier: false }))
}

fn disagreement(
    kind: ApiDisagreementKind,
    says: &Arc<str>,
    since: ApiSince,
    value: &Value,
    kernel: &KernelSide<'_>,
) -> ApiDisagreement {
    let accepted = kernel.attempt.filter(|attempt| attempt.result.may_be_accepted());
    ApiDisagreement {
        kind,
        says: says.clone(),
        since,
        kernel: value.clone(),
        written: accepted.and_then(|attempt| attempt.ended).and_then(Ended::returned),
        read: kernel.read,
    }
}

/// The amount that the resource's file follows from.
fn amount(amounts: &ApiAmounts, resource: Resource) -> Option<&Arc<str>> {
    match resource {
        Resource::Cpu | Resource::Memory => amounts.limit.as_ref(),
        Resource::CpuWeight => amounts.request.as_ref(),
        Resource::MemoryHigh | Resource::Swap => None,
    }
}

/// What the file should say by that quantity; none: it is none. A pod's file may say more: overhead is added.
fn wanted(kernel: &KernelSide<'_>, text: &str) -> Option<Wanted> {
    let is_pod = kernel.role == LevelRole::Pod;
    Some(match kernel.judgement.resource {
        Resource::Cpu => {
            let milli = quantity::milli(text).ok()?;
            if is_pod { Wanted::MilliCpuAtLeast(milli) } else { Wanted::MilliCpu(milli) }
        }
        Resource::CpuWeight => {
            let shares = convert::shares(quantity::milli(text).ok()?);
            if is_pod { Wanted::SharesAtLeast(shares) } else { Wanted::Shares(shares) }
        }
        Resource::Memory => {
            // A limit of 0 is none.
            let bytes = quantity::whole(text).ok()?;
            let bound = if bytes == 0 { Bound::Unlimited } else { Bound::At(bytes) };
            if is_pod { Wanted::MemoryAtLeast(bound) } else { Wanted::Memory(bound) }
        }
        Resource::MemoryHigh | Resource::Swap => return None,
    })
}
