//! What clients report of limits: requests to the container runtime, and what the guard sets.
//!
//! ```text
//!  CRI proxy ──ReportCriRequests──▶ LimitReport ─┐
//!  guard ──ReportGuardEvents──▶ LimitReport ─────┼─▶ engine ──▶ ledger, Reported ──▶ verify: desired limits
//!                          └──▶ Observation ─────┘
//! ```
//!
//! No other source can be queried for it, so it goes on in the next daemon's memory. Owns that memory; the engine alone adds
//! to it. Never judges a limit.

pub(crate) mod desired;
mod guard;
mod requests;

use kwitness_api::proto;
use kwitness_core::model::{ContainerId, KernelTime, Observation};
use serde::{Deserialize, Serialize};

pub use guard::GuardLimits;
pub use requests::{Malformed, Requests};

/// A report that changes what is desired, and that the core has no use for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitReport {
    /// A request to the container runtime, [checked](Requests::check).
    Requested(proto::CriRequest),
    /// The guard is about to set this limit, in bytes.
    GuardSets {
        /// Of this container.
        container: ContainerId,
        /// When it was announced.
        at: KernelTime,
        /// The limit.
        bytes: u64,
    },
    /// The guard lowers `memory.high` to that, in bytes, or has restored it.
    GuardBrakes {
        /// Of this container.
        container: ContainerId,
        /// When.
        at: KernelTime,
        /// None: it is restored.
        bytes: Option<u64>,
    },
}

/// The memory. Clones share it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Reported {
    requests: Requests,
    guard: GuardLimits,
}

impl Reported {
    /// Of a daemon that begins now: what was requested before is not known.
    pub fn begin(now: KernelTime) -> Self {
        Self { requests: Requests::begin(now), guard: GuardLimits::default() }
    }

    /// The requests to the container runtime.
    pub fn requests(&self) -> &Requests {
        &self.requests
    }

    /// The limits that the guard sets.
    pub(crate) fn guard(&self) -> &GuardLimits {
        &self.guard
    }

    /// Takes in a report; returns whose requests had to be forgotten for that, if any.
    pub(crate) fn take(&self, report: LimitReport) -> Option<ContainerId> {
        match report {
            LimitReport::Requested(request) => return self.requests.take(request),
            LimitReport::GuardSets { container, at, bytes } => self.guard.announced(container, at, bytes),
            LimitReport::GuardBrakes { container, at, bytes } => self.guard.braked(container, at, bytes),
        }
        None
    }

    /// Takes note of what the core is about to observe.
    pub(crate) fn observe(&self, observation: &Observation) {
        match observation {
            Observation::Guard(report) => self.guard.observe(report),
            Observation::AgentRestarted { from, to, .. } => self.requests.unobserved_from(*from, *to),
            _ => {}
        }
    }
}
