//! The CRI proxy's reports: the requests that it observed, and those that it missed, each checked.
//!
//! Never decides what a request is worth: the verdicts do.

use kwitness_core::model::{KernelTime, Observation};
use tonic::Status;

use crate::reported::{LimitReport, Requests};
use kwitness_api::{REQUESTS_MAX, proto};

/// What is as it should be, and the answer.
#[derive(Debug, Default)]
pub(super) struct Checked {
    /// Requests.
    pub reports: Vec<LimitReport>,
    /// Those that were missed.
    pub missed: Vec<Observation>,
    /// How many requests these are, and what is wrong with the others.
    pub answer: proto::ReportCriRequestsResponse,
}

/// Checks them.
///
/// # Errors
/// There are too many.
pub(super) fn check(
    message: proto::ReportCriRequestsRequest,
    known: &Requests,
    now: KernelTime,
) -> Result<Checked, Status> {
    let proto::ReportCriRequestsRequest { requests, missed } = message;
    for (field, count) in [("requests", requests.len()), ("missed", missed.len())] {
        if count > REQUESTS_MAX {
            return Err(Status::invalid_argument(format!("more than {REQUESTS_MAX} `{field}`")));
        }
    }
    let mut checked = Checked::default();
    for (index, request) in requests.into_iter().enumerate() {
        match known.check(request, now) {
            Ok(request) => {
                checked.answer.accepted += 1;
                checked.reports.push(LimitReport::Requested(request));
            }
            Err(why) => checked.answer.malformed.push(format!("requests[{index}]: {why}")),
        }
    }
    for (index, missed) in missed.into_iter().enumerate() {
        match known.check_missed(missed, now) {
            Ok(observation) => checked.missed.push(observation),
            Err(why) => checked.answer.malformed.push(format!("missed[{index}]: {why}")),
        }
    }
    Ok(checked)
}
