//! What clients report of limits: requests to the container runtime, and what the guard sets.
//!
//! ```text
//!  CRI proxy ──ReportCriRequests──▶ LimitReport ─┐
//!                          └──▶ Observation ─────┤  what it missed
//!  guard ──ReportGuardEvents──▶ LimitReport ─────┼─▶ engine ──▶ ledger, Reported ──▶ verify: desired limits
//!                          └──▶ Observation ─────┘
//! ```
//!
//! No other source can be queried for it, so it goes on in the next daemon's memory. Owns that memory; the engine alone adds
//! to it. What had to be forgotten is remembered by its time: a limit that was written then has been set by one knows not whom. Never
//! judges a limit.

mod check;
pub(crate) mod desired;
mod guard;
mod requests;
mod unobserved;

use std::collections::BTreeMap;

use kwitness_api::proto;
use kwitness_core::model::{ContainerId, KernelTime, Observation, Resource, Unobserved};
use serde::{Deserialize, Serialize};

pub use check::Malformed;
pub use guard::GuardLimits;
pub use requests::Requests;

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
        /// When it was set or restored.
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

    /// What it is now, of which no clone sees what comes later.
    pub(crate) fn copied(&self) -> Self {
        Self { requests: self.requests.copied(), guard: self.guard.copied() }
    }

    /// The requests to the container runtime.
    pub fn requests(&self) -> &Requests {
        &self.requests
    }

    /// The limits that the guard sets.
    pub(crate) fn guard(&self) -> &GuardLimits {
        &self.guard
    }

    /// When a limit of that container may have been set by a request that was not observed, or whose report is forgotten.
    pub(crate) fn unobserved(&self, container: &ContainerId, resource: Resource) -> Vec<Unobserved> {
        let is_guards = matches!(resource, Resource::Memory | Resource::MemoryHigh);
        let of_guard = self.guard.forgotten(container).filter(|_| is_guards);
        let forgotten = self.requests.forgotten(&container.0).into_iter().chain(of_guard);
        self.requests.unobserved(container).into_iter().chain(forgotten).collect()
    }

    /// What was counted.
    pub fn counters(&self) -> BTreeMap<String, u64> {
        let all = self.requests.counters().into_iter().chain(self.guard.counters());
        all.map(|(name, count)| (name.to_owned(), count)).collect()
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
            Observation::RequestsMissed { container, from, to, count, .. } => {
                self.requests.missed(container.as_ref(), Unobserved { from: *from, to: *to }, *count);
            }
            _ => {}
        }
    }
}

/// A time with what was from one instant to another in it.
fn extend(time: &mut Option<Unobserved>, from: KernelTime, to: KernelTime) {
    let Unobserved { from: first, to: last } = time.unwrap_or(Unobserved { from, to });
    *time = Some(Unobserved { from: first.min(from), to: last.max(to) });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_is_forgotten_any_container_may_have_been_of_which_nothing_is_known() {
        let reported = Reported::default();
        let id = |number: u64| ContainerId(number.to_string().into());
        let sets =
            |number| LimitReport::GuardSets { container: id(number), at: KernelTime(number), bytes: 1 };
        for number in 1..=guard::KNOWN_MAX as u64 {
            reported.take(sets(number));
        }
        assert_eq!(reported.unobserved(&id(1), Resource::Memory), []);
        let last = guard::KNOWN_MAX as u64 + 1;
        reported.take(sets(last));
        let when = Unobserved { from: KernelTime(1), to: KernelTime(last) };
        assert_eq!(reported.unobserved(&id(1), Resource::Memory), [when]);
        assert_eq!(reported.unobserved(&id(1), Resource::Cpu), [], "the guard sets none");
        assert_eq!(reported.unobserved(&id(last), Resource::Memory), []);
        assert_eq!(reported.counters()["guard_limits_evicted"], 1);
    }
}
