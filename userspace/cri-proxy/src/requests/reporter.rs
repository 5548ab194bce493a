//! Decodes the calls that have ended, and reports them to the daemon.
//!
//! Owns the connection to the daemon, made for the first report. What the daemon does not accept within [`PATIENCE`] is dropped and
//! counted; nothing is kept for later.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prost::{DecodeError, Message as _};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::Status;
use tonic::transport::Channel;

use super::super::counters::Counters;
use super::super::first::{First, Unusable};
use super::super::limits;
use super::Call;
use kwitness_api::REQUEST_ID_BYTES_MAX;
use kwitness_api::proto::kwitness_client::KwitnessClient;
use kwitness_api::proto::{self, CriMethod};
use kwitness_api::transport::{DialError, unix_endpoint};
use kwitness_cri::runtime as cri;
use kwitness_cri::{UNIFIED_MEMORY_HIGH, UNIFIED_SWAP_MAX};

/// Bytes of the largest number of bytes, as text.
const NUMBER_MAX: usize = 20;
/// How long the daemon may take for one batch.
const PATIENCE: Duration = Duration::from_secs(2);

/// Reports until the last observer is dropped.
pub async fn run(daemon: PathBuf, mut from: mpsc::Receiver<Call>, counters: Arc<Counters>) {
    let mut reporter = Reporter { client: None, daemon, is_away: false };
    let mut calls = Vec::new();
    while from.recv_many(&mut calls, limits::CALLS_OBSERVED).await > 0 {
        let requests: Vec<_> = calls.drain(..).filter_map(|call| read(call, &counters)).collect();
        if requests.is_empty() {
            continue;
        }
        let count = requests.len() as u64;
        match reporter.report_cri_requests(requests).await {
            Ok(proto::ReportCriRequestsResponse { accepted, malformed }) => {
                counters.requests_reported.add(accepted.into());
                counters.requests_dropped.add(count.saturating_sub(accepted.into()));
                if let Some(first) = malformed.first() {
                    tracing::warn!(first, "the daemon rejected malformed request reports");
                }
            }
            Err(status) => {
                counters.requests_dropped.add(count);
                if !std::mem::replace(&mut reporter.is_away, true) {
                    tracing::warn!(
                        code = %status.code(), reason = status.message(),
                        "limits are not reported to the daemon until it answers"
                    );
                }
            }
        }
    }
}

struct Reporter {
    client: Option<KwitnessClient<Channel>>,
    daemon: PathBuf,
    /// For the log: a line when that changes.
    is_away: bool,
}

impl Reporter {
    async fn report_cri_requests(
        &mut self,
        requests: Vec<proto::CriRequest>,
    ) -> Result<proto::ReportCriRequestsResponse, Status> {
        let message = proto::ReportCriRequestsRequest { requests };
        let answer = match timeout(PATIENCE, self.call(message)).await {
            Ok(answer) => answer,
            Err(_) => Err(Status::deadline_exceeded(format!("it did not answer within {PATIENCE:?}"))),
        };
        match &answer {
            Err(_) => self.client = None,
            Ok(_) if std::mem::take(&mut self.is_away) => {
                tracing::info!("limits are reported to the daemon again");
            }
            Ok(_) => {}
        }
        answer
    }

    async fn dial(&self) -> Result<Channel, DialError> {
        Ok(unix_endpoint(&self.daemon)?.connect().await?)
    }

    async fn call(
        &mut self,
        message: proto::ReportCriRequestsRequest,
    ) -> Result<proto::ReportCriRequestsResponse, Status> {
        // A connection from before may be one to a daemon that is gone: it fails at once, and a new one is made.
        if let Some(client) = &mut self.client {
            match client.report_cri_requests(message.clone()).await {
                Err(status) if status.code() == tonic::Code::Unavailable => {}
                answer => return answer.map(tonic::Response::into_inner),
            }
        }
        let channel = self.dial().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let client = self.client.insert(KwitnessClient::new(channel));
        client.report_cri_requests(message).await.map(tonic::Response::into_inner)
    }
}

/// The report of a call; none: it cannot be decoded, which is counted, or it created no container.
fn read(call: Call, counters: &Counters) -> Option<proto::CriRequest> {
    let Call { method, received, answered, code, request, answer } = call;
    let refused = code.is_some_and(|code| code != 0);
    if method == CriMethod::CreateContainer && refused {
        return None;
    }
    let read = message(request).and_then(|request| {
        let id = match method {
            CriMethod::CreateContainer => message(answer)?,
            _ => Vec::new(),
        };
        Ok(wanted(method, &request, &id)?)
    });
    match read {
        // What one client makes too large must not keep the daemon from a batch with the reports of others.
        Ok((id, _)) if id.len() > REQUEST_ID_BYTES_MAX => {
            counters.requests_malformed.count();
            None
        }
        Ok((id, resources)) => {
            let resources = Some(self::resources(resources));
            Some(proto::CriRequest { method: method.into(), id, received, answered, code, resources })
        }
        Err(unread) => {
            tracing::debug!(method = method.as_str_name(), %unread, "a request cannot be reported");
            match unread {
                Unread::Unfinished => &counters.requests_unfinished,
                Unread::Unusable(Unusable::Compressed) => &counters.requests_compressed,
                Unread::Unusable(Unusable::Oversized(_)) => &counters.requests_oversized,
                Unread::Unusable(Unusable::Flag(_)) | Unread::Malformed(_) => &counters.requests_malformed,
            }
            .count();
            None
        }
    }
}

/// Why a request is not reported.
#[derive(Debug, thiserror::Error)]
enum Unread {
    #[error("the call ended before its message did")]
    Unfinished,
    #[error(transparent)]
    Unusable(Unusable),
    #[error(transparent)]
    Malformed(#[from] DecodeError),
}

fn message(first: First) -> Result<Vec<u8>, Unread> {
    match first {
        First::Whole(message) => Ok(message),
        First::Head(..) | First::Body(..) => Err(Unread::Unfinished),
        First::Unusable(unusable) => Err(Unread::Unusable(unusable)),
    }
}

/// For whom, and what.
pub fn wanted(
    method: CriMethod,
    request: &[u8],
    answer: &[u8],
) -> Result<(String, cri::LinuxContainerResources), DecodeError> {
    let (id, resources) = match method {
        CriMethod::CreateContainer => {
            let cri::CreateContainerRequest { config } = cri::CreateContainerRequest::decode(request)?;
            let linux = config.and_then(|config| config.linux);
            let id = cri::CreateContainerResponse::decode(answer)?.container_id;
            (id, linux.and_then(|linux| linux.resources))
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
    Ok((id, resources.unwrap_or_default()))
}

fn resources(resources: cri::LinuxContainerResources) -> proto::CriResources {
    let cri::LinuxContainerResources {
        cpu_period,
        cpu_quota,
        cpu_shares,
        memory_limit_in_bytes,
        mut unified,
    } = resources;
    // What is longer is no number, and nothing to the daemon.
    let mut text =
        |key: &str| unified.remove(key).filter(|text| text.len() <= NUMBER_MAX).unwrap_or_default();
    proto::CriResources {
        cpu_period,
        cpu_quota,
        cpu_shares,
        memory_limit_in_bytes,
        memory_swap_max: text(UNIFIED_SWAP_MAX),
        memory_high: text(UNIFIED_MEMORY_HIGH),
    }
}
