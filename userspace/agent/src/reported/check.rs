//! What the CRI proxy reports is other people's text: it is checked before anything rests on it.

use kwitness_api::{REQUEST_ID_BYTES_MAX as ID_MAX, proto};
use kwitness_core::model::{ContainerId, KernelTime, Observation};

use super::desired;

/// Why a request is not recorded.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The method is none that asks for limits.
    #[error("`method` is unspecified or unknown: {0}")]
    Method(i32),
    /// Without an id.
    #[error("`id` is empty, or longer than {ID_MAX} bytes")]
    Id,
    /// No such time.
    #[error(
        "`received` is 0, `answered` is before it, or either is in the future: these are CLOCK_BOOTTIME in nanoseconds"
    )]
    Time,
    /// It sets no limit.
    #[error("`resources` is missing")]
    Resources,
    /// Nothing was missed, or not at a time that there was.
    #[error(
        "`id` is longer than {ID_MAX} bytes, `count` or `from` is 0, `to` is before `from`, or in the future: these are CLOCK_BOOTTIME \
         in nanoseconds"
    )]
    Missed,
}

/// The request, if it is valid; texts in it that are no limits are removed.
pub(super) fn request(
    mut request: proto::CriRequest,
    now: KernelTime,
) -> Result<proto::CriRequest, Malformed> {
    if request.method() == proto::CriMethod::Unspecified {
        return Err(Malformed::Method(request.method));
    }
    if request.id.is_empty() || request.id.len() > ID_MAX {
        return Err(Malformed::Id);
    }
    let proto::CriRequest { received, answered, .. } = request;
    if received == 0 || answered < received || now.0 < answered {
        return Err(Malformed::Time);
    }
    let resources = request.resources.as_mut().ok_or(Malformed::Resources)?;
    for text in [&mut resources.memory_swap_max, &mut resources.memory_high] {
        if desired::unified_bound(text).is_none() {
            text.clear();
        }
    }
    Ok(request)
}

/// What is to be observed of requests that were missed, if that is valid.
pub(super) fn missed(missed: proto::CriRequestsMissed, now: KernelTime) -> Result<Observation, Malformed> {
    let proto::CriRequestsMissed { id, count, from, to } = missed;
    if id.len() > ID_MAX || count == 0 || from == 0 || to < from || now.0 < to {
        return Err(Malformed::Missed);
    }
    let container = Some(id).filter(|id| !id.is_empty()).map(|id| ContainerId(id.into()));
    let (from, to) = (KernelTime(from), KernelTime(to));
    Ok(Observation::RequestsMissed { at: now, container, from, to, count })
}
