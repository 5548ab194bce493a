//! Whether a limit may be raised, and to what; and every reason for which a hold ends without that. Pure.

use crate::policy::{Bytes, Rule};

/// What must be left of the node's memory after a raise, in one part of so many of the raise: a limit that the node cannot
/// honour would make a container's OOM kill the node's.
const RESERVE: u64 = 2;

/// What is known of a container when one of its processes is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The limit in force, by the kernel's own counter.
    pub limit: Bytes,
    /// `MemAvailable` of the node.
    pub available: Bytes,
    /// Raises so far.
    pub raises: u32,
    /// An earlier raise has no answer: it may yet set the limit, to less than a later one.
    pub unanswered: bool,
}

/// A raise of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raise {
    /// The limit in force.
    pub from: Bytes,
    /// The limit to be.
    pub to: Bytes,
}

/// Why a process continues although no raise is in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The limit is as high as the policy allows.
    #[error("the limit is {limit}, the policy's ceiling {ceiling}")]
    AtCeiling {
        /// The limit in force.
        limit: Bytes,
        /// The policy's.
        ceiling: Bytes,
    },
    /// The container has had all raises that the policy allows.
    #[error("the container's limit was raised {0} times, which is the policy's budget")]
    BudgetExhausted(u32),
    /// The node has too little memory.
    #[error("the node has {available} of memory available: raising the limit by {step} needs {needed}")]
    NoFreeMemory {
        /// `MemAvailable`.
        available: Bytes,
        /// What the raise adds.
        step: Bytes,
        /// What must be available for it.
        needed: Bytes,
    },
    /// An earlier raise of the container has no answer.
    #[error("an earlier raise has not been answered: the limit may still change")]
    Unanswered,
    /// The container or its pod is gone, or going.
    #[error("the container is gone, or its pod is being deleted")]
    Gone,
    /// The container runtime is away, or refused.
    #[error("the container runtime: {0}")]
    Runtime(String),
    /// The daemon says that the limit is not in force.
    #[error("not in force: {0}")]
    NotInForce(String),
    /// The daemon is away.
    #[error("cannot be verified: {0}")]
    Unverified(String),
    /// The longest hold ended first.
    #[error("no answer within the longest hold, while {0}")]
    TooLate(&'static str),
}

impl Refusal {
    /// Its name in the log and in the status.
    pub fn name(&self) -> &'static str {
        match self {
            Self::AtCeiling { .. } => "atCeiling",
            Self::BudgetExhausted(_) => "budgetExhausted",
            Self::NoFreeMemory { .. } => "noFreeMemory",
            Self::Unanswered => "unanswered",
            Self::Gone => "gone",
            Self::Runtime(_) => "runtime",
            Self::NotInForce(_) => "notInForce",
            Self::Unverified(_) => "unverified",
            Self::TooLate(_) => "tooLate",
        }
    }
}

/// What to raise a limit to.
///
/// # Errors
/// The policy or the node forbids it.
pub fn raise(rule: &Rule, facts: &Facts) -> Result<Raise, Refusal> {
    let Facts { limit, available, raises, unanswered } = *facts;
    if unanswered {
        return Err(Refusal::Unanswered);
    }
    if raises >= rule.budget {
        return Err(Refusal::BudgetExhausted(raises));
    }
    let to = Bytes(limit.0.saturating_add(rule.step.0)).min(rule.ceiling);
    if to <= limit {
        return Err(Refusal::AtCeiling { limit, ceiling: rule.ceiling });
    }
    let step = Bytes(to.0 - limit.0);
    let needed = Bytes(step.0.saturating_add(step.0 / RESERVE));
    if available < needed {
        return Err(Refusal::NoFreeMemory { available, step, needed });
    }
    Ok(Raise { from: limit, to })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::policy::{Names, Policy};

    const MIB: u64 = 1 << 20;

    /// Steps of 64 MiB up to 200 MiB, at most twice.
    pub(crate) fn rule() -> Rule {
        let policy = Policy::parse("[[rule]]\nstep = \"64Mi\"\nceiling = \"200Mi\"\nbudget = 2\n").unwrap();
        policy.rule(Names { namespace: None, pod: None, container: None }).unwrap().clone()
    }

    pub(crate) fn facts() -> Facts {
        let [limit, available] = [64, 1000].map(|mib| Bytes(mib * MIB));
        Facts { limit, available, raises: 0, unanswered: false }
    }

    #[test]
    fn a_limit_rises_by_steps_up_to_the_ceiling() {
        let to = |limit: u64| {
            raise(&rule(), &Facts { limit: Bytes(limit * MIB), ..facts() }).map(|raise| raise.to.0 / MIB)
        };
        assert_eq!(to(64), Ok(128));
        assert_eq!(to(128), Ok(192));
        assert_eq!(to(192), Ok(200), "the last step is what is left");
        for limit in [200, 300] {
            assert!(matches!(to(limit), Err(Refusal::AtCeiling { .. })), "{limit}");
        }
    }

    #[test]
    fn a_budget_is_kept() {
        let with = |raises| raise(&rule(), &Facts { raises, ..facts() });
        assert!(with(1).is_ok());
        assert_eq!(with(2), Err(Refusal::BudgetExhausted(2)));
    }

    #[test]
    fn two_raises_never_overlap() {
        let overlapping = Facts { unanswered: true, ..facts() };
        assert_eq!(raise(&rule(), &overlapping), Err(Refusal::Unanswered));
    }

    #[test]
    fn the_node_must_have_the_memory() {
        let with = |mib: u64| raise(&rule(), &Facts { available: Bytes(mib * MIB), ..facts() });
        assert!(with(96).is_ok());
        assert!(matches!(with(95), Err(Refusal::NoFreeMemory { .. })));
        // Without a limit there is nothing to add to.
        assert!(raise(&rule(), &Facts { limit: Bytes(u64::MAX), ..facts() }).is_err());
    }
}
