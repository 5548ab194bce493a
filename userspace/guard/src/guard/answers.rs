//! What is asked without a process being held, and the answers: data only.

use std::time::Duration;

use crate::episode::Proof;
use crate::plan::{Change, Refusal};

/// How long the API server, and then the daemon, may take: no process waits for it.
pub(super) const LIMIT: Duration = Duration::from_secs(10);

/// An answer to a return.
#[derive(Debug)]
pub(super) struct Answer {
    pub cgroup_id: u64,
    pub input: Input,
}

#[derive(Debug)]
pub(super) enum Input {
    Lowered(Result<(), Refusal>),
    /// Whether a lower limit is in force; the requests when that was asked.
    Verified {
        requests: u64,
        answer: Result<Proof, Refusal>,
    },
    /// Whether a raise came into force after its hold.
    Late {
        late: Late,
        verified: Result<Proof, Refusal>,
    },
    /// Whether a raise that the kubelet had put off was taken back.
    TakenBack {
        change: Change,
        answer: Result<bool, Refusal>,
    },
    /// Whether that change, without an answer until then, was accepted; the requests by then.
    Resolved {
        late: Late,
        requests: u64,
        is_accepted: bool,
    },
}

/// A change whose outcome is late. Of a raise also when the hold began that it was for, or when an earlier guard's was found; of a
/// return, when it was given up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Late {
    pub change: Change,
    pub since: u64,
}
