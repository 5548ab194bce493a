//! Sends what waits in the backlog to the daemon, batch by batch.
//!
//! Owns the connection to the daemon, made for the first batch. What the daemon does not take within [`PATIENCE`] is sent again after
//! [`RETRY`]: of two requests that arrive, the second changes nothing there; what was missed is counted twice.

use std::mem;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tonic::Status;
use tonic::transport::Channel;

use super::super::counters::Counters;
use super::backlog::Backlog;
use kwitness_api::proto;
use kwitness_api::proto::kwitness_client::KwitnessClient;
use kwitness_api::transport::{DialError, unix_endpoint};

/// How long the daemon may take for one batch.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two attempts: less than the two seconds for which a daemon's verdicts are pending at first.
const RETRY: Duration = Duration::from_secs(1);

/// Reports for as long as the proxy serves.
pub async fn run(daemon: PathBuf, backlog: Arc<Backlog>, counters: Arc<Counters>) {
    let mut connection = Connection { client: None, daemon };
    // For the log: a line when that changes.
    let mut is_away = false;
    loop {
        let message = backlog.batch().await;
        let count = message.requests.len() as u64;
        match connection.report(message).await {
            Ok(proto::ReportCriRequestsResponse { accepted, malformed }) => {
                backlog.taken();
                counters.requests_reported.add(accepted.into());
                counters.requests_dropped.add(count.saturating_sub(accepted.into()));
                if let Some(first) = malformed.first() {
                    tracing::warn!(first, "the daemon rejected malformed request reports");
                }
                if mem::take(&mut is_away) {
                    tracing::info!("limits are reported to the daemon again");
                }
            }
            Err(status) => {
                backlog.not_taken();
                if !mem::replace(&mut is_away, true) {
                    tracing::warn!(
                        code = ?status.code(), reason = status.message(),
                        "limits cannot be reported to the daemon: reports wait until it answers"
                    );
                }
                sleep(RETRY).await;
            }
        }
    }
}

struct Connection {
    client: Option<KwitnessClient<Channel>>,
    daemon: PathBuf,
}

impl Connection {
    async fn report(
        &mut self,
        message: proto::ReportCriRequestsRequest,
    ) -> Result<proto::ReportCriRequestsResponse, Status> {
        let answer = match timeout(PATIENCE, self.call(message)).await {
            Ok(answer) => answer,
            Err(_) => Err(Status::deadline_exceeded(format!("it did not answer within {PATIENCE:?}"))),
        };
        if answer.is_err() {
            self.client = None;
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
