//! What is reported of a call that has ended: the limits that it requested, or that they were missed.
//!
//! Whatever came of a call leads to a report, or to none and a count. Only limits, id, times and status are read of it.

use prost::{DecodeError, Message as _};
use tonic::Code;

use super::super::counters::Counters;
use super::super::first::{First, Unusable};
use super::Call;
use kwitness_api::REQUEST_ID_BYTES_MAX;
use kwitness_api::proto::{self, CriMethod};
use kwitness_cri::runtime as cri;
use kwitness_cri::{UNIFIED_MEMORY_HIGH, UNIFIED_SWAP_MAX};

/// The status of a call that names nothing the runtime knows.
const NOT_FOUND: i32 = Code::NotFound as i32;
/// Bytes of the largest number of bytes, as text.
const NUMBER_MAX: usize = 20;

/// What is reported of a call.
#[derive(Debug, PartialEq)]
pub enum Report {
    /// Its request.
    Request(proto::CriRequest),
    /// That it may have set limits which are not known.
    Missed(proto::CriRequestsMissed),
}

/// The report of a call; none: it has set no limit, or is about a container that has no name, or that the runtime does not know, or its
/// answer with that name cannot be read. What cannot be read is counted.
pub fn report(call: Call, counters: &Counters) -> Option<Report> {
    let Call { method, received, answered, code, request, answer } = call;
    let is_refused = code.is_some_and(|code| code != 0);
    let read = |unread: &Unread| unread.count(method, counters);
    // Who is created has its name from the answer.
    let created = match method {
        CriMethod::CreateContainer if is_refused => return None,
        CriMethod::CreateContainer => Some(created(answer).inspect_err(read).ok()?),
        _ if code == Some(NOT_FOUND) => return None,
        _ => None,
    };
    let request = request.ok_or(Unread::NotCopied).and_then(message);
    match request.and_then(|request| requested(method, &request, created.clone())).inspect_err(read) {
        Ok((id, resources)) => {
            let resources = Some(self::resources(resources));
            Some(Report::Request(proto::CriRequest {
                method: method.into(),
                id,
                received,
                answered,
                code,
                resources,
            }))
        }
        Err(unread) => unread.may_have_set_limits(is_refused).then(|| {
            let id = created.unwrap_or_default();
            Report::Missed(proto::CriRequestsMissed { id, count: 1, from: received, to: answered })
        }),
    }
}

/// Why a request is not known.
#[derive(Debug, thiserror::Error)]
pub enum Unread {
    /// It was not copied.
    #[error("too many calls of its connection were under way")]
    NotCopied,
    /// It is not whole.
    #[error("the call ended before its message did")]
    Unfinished,
    /// It was not kept.
    #[error(transparent)]
    Unusable(Unusable),
    /// It cannot be decoded.
    #[error(transparent)]
    Malformed(#[from] DecodeError),
    /// No runtime has such ids; and what one client makes too large must not keep the daemon from the reports of others.
    #[error("the id has {0} bytes")]
    Id(usize),
}

impl Unread {
    fn count(&self, method: CriMethod, counters: &Counters) {
        tracing::debug!(
            method = method.as_str_name(),
            why = self.to_string(),
            "a request cannot be reported"
        );
        match self {
            Self::NotCopied => &counters.requests_missed,
            Self::Unfinished => &counters.requests_unfinished,
            Self::Unusable(Unusable::Compressed) => &counters.requests_compressed,
            Self::Unusable(Unusable::Oversized(_)) => &counters.requests_oversized,
            Self::Unusable(Unusable::Flag(_)) | Self::Malformed(_) | Self::Id(_) => {
                &counters.requests_malformed
            }
        }
        .count();
    }

    /// What did not arrive whole, or names no container, sets no limit; nor does what the runtime could not read either.
    fn may_have_set_limits(&self, is_refused: bool) -> bool {
        match self {
            Self::Unfinished | Self::Id(_) => false,
            Self::Unusable(Unusable::Flag(_)) | Self::Malformed(_) => !is_refused,
            Self::NotCopied | Self::Unusable(Unusable::Compressed | Unusable::Oversized(_)) => true,
        }
    }
}

fn message(first: First) -> Result<Vec<u8>, Unread> {
    match first {
        First::Whole(message) => Ok(message),
        First::Head(..) | First::Body(..) => Err(Unread::Unfinished),
        First::Unusable(unusable) => Err(Unread::Unusable(unusable)),
    }
}

/// The id of the container that was created.
fn created(answer: First) -> Result<String, Unread> {
    id(cri::CreateContainerResponse::decode(&*message(answer)?)?.container_id)
}

fn id(text: String) -> Result<String, Unread> {
    match text.len() {
        1..=REQUEST_ID_BYTES_MAX => Ok(text),
        bytes => Err(Unread::Id(bytes)),
    }
}

/// For whom, which may be known already, and what.
pub fn requested(
    method: CriMethod,
    request: &[u8],
    created: Option<String>,
) -> Result<(String, cri::LinuxContainerResources), Unread> {
    let (named, resources) = match method {
        CriMethod::CreateContainer => {
            let cri::CreateContainerRequest { config } = cri::CreateContainerRequest::decode(request)?;
            let linux = config.and_then(|config| config.linux);
            (created.unwrap_or_default(), linux.and_then(|linux| linux.resources))
        }
        CriMethod::UpdatePodSandboxResources => {
            let request = cri::UpdatePodSandboxResourcesRequest::decode(request)?;
            (request.pod_sandbox_id, request.resources)
        }
        CriMethod::UpdateContainerResources | CriMethod::Unspecified => {
            let request = cri::UpdateContainerResourcesRequest::decode(request)?;
            (request.container_id, request.linux)
        }
    };
    Ok((id(named)?, resources.unwrap_or_default()))
}

fn resources(resources: cri::LinuxContainerResources) -> proto::CriResources {
    let cri::LinuxContainerResources {
        cpu_period,
        cpu_quota,
        cpu_shares,
        memory_limit_in_bytes,
        mut unified,
    } = resources;
    // The daemon ignores any other text, too.
    let is_limit = |text: &String| text == "max" || text.len() <= NUMBER_MAX && text.parse::<u64>().is_ok();
    let mut text = |key: &str| unified.remove(key).filter(is_limit).unwrap_or_default();
    proto::CriResources {
        cpu_period,
        cpu_quota,
        cpu_shares,
        memory_limit_in_bytes,
        memory_swap_max: text(UNIFIED_SWAP_MAX),
        memory_high: text(UNIFIED_MEMORY_HIGH),
    }
}
