//! What calls to the container runtime took and how they ended, by method. Never makes one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kwitness_service::metrics::Histogram;
use tonic::Code;

/// From a millisecond to the deadline of a call.
const DURATIONS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

/// The calls of one method.
#[derive(Clone, Debug)]
pub struct MethodCalls {
    /// How long they took, in seconds, failures included.
    pub durations: Histogram,
    /// How many ended with each code.
    pub codes: BTreeMap<&'static str, u64>,
}

/// All calls. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Calls(Arc<Mutex<BTreeMap<&'static str, MethodCalls>>>);

impl Calls {
    /// Takes note of a call that has ended.
    pub fn note(&self, method: &'static str, took: Duration, code: Code) {
        let mut methods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let empty = || MethodCalls { durations: Histogram::new(DURATIONS), codes: BTreeMap::new() };
        let calls = methods.entry(method).or_insert_with(empty);
        calls.durations.observe(took.as_secs_f64());
        *calls.codes.entry(name(code)).or_default() += 1;
    }

    /// Those of each method so far.
    pub fn by_method(&self) -> BTreeMap<&'static str, MethodCalls> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// As grpc-go spells it, and with it the metrics of kubelets and runtimes.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}
