//! Whether a limit may be raised, and to what; and every reason for which a hold ends without that. Pure.

#[cfg(feature = "kubernetes")]
mod resize;

#[cfg(feature = "kubernetes")]
pub use resize::ResizeRefusal;

use kwitness_api::proto::CgroupRole;

use crate::policy::{Bytes, Rule};

/// What must be left of the node's memory after a raise, in one part of so many of the raise, or the policy's reserve if that is
/// more: a limit that the node cannot honour would make a container's OOM kill the node's, or have the kubelet evict pods.
const RESERVE: u64 = 2;

/// What is known of a container when one of its processes is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The limit when the process was held, by the kernel's own counter.
    pub held_at: Bytes,
    /// The limit now, by the cgroup's file; none: there is none any more.
    pub limit: Option<Bytes>,
    /// `memory.high`, if another process has set it.
    pub high: Option<Bytes>,
    /// A lower limit than that has been requested, to give raises back.
    pub is_returning: bool,
    /// The cgroups above that have a limit, the nearest first.
    pub above: Vec<Level>,
    /// The pod's limit is raised with the container's.
    pub is_pod_raised: bool,
    /// `MemAvailable` of the node.
    pub available: Bytes,
    /// What must be left of it, by the policy.
    pub reserve: Bytes,
    /// What containers may still take of raises that they have had.
    pub promised: Bytes,
    /// Raises so far.
    pub raises: u32,
    /// An earlier raise has no answer: it may yet set the limit, to less than a later one.
    pub unanswered: bool,
}

/// A cgroup above the container with a limit of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Level {
    /// The name of its directory.
    pub name: String,
    /// It is the container's pod's.
    pub is_pod: bool,
    /// Its limit.
    pub limit: Bytes,
    /// What may still be charged there before the kernel kills.
    pub free: Bytes,
}

/// A change of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
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
    /// Another process was quicker: there is nothing to do.
    #[error("the limit is no longer {0}: another process has raised it meanwhile")]
    RaisedMeanwhile(Bytes),
    /// A limit above the container would be hit instead of its own.
    #[error("{} above has {} of {} free: the container could not use {step} more", level.name, level.free, level.limit)]
    LimitAbove {
        /// The level.
        level: Level,
        /// What the raise adds.
        step: Bytes,
    },
    /// The container would be slowed down as before. What the kubelet has set moves with the limit.
    #[error("memory.high is {0}, which another process has set: a higher limit would change nothing")]
    Throttled(Bytes),
    /// The cgroup's files cannot be read.
    #[error("cannot read the container's cgroup: {0}")]
    Unreadable(String),
    /// The node has too little memory.
    #[error(
        "the node has {available} of memory available besides earlier raises: raising the limit by {step} needs {needed}"
    )]
    NoFreeMemory {
        /// `MemAvailable`, less what earlier raises have promised.
        available: Bytes,
        /// What the raise adds.
        step: Bytes,
        /// What must be available for it.
        needed: Bytes,
    },
    /// An earlier raise of the container has no answer.
    #[error("an earlier change of the limit has not been answered, and may still come")]
    Unanswered,
    /// The container or its pod is gone, or going.
    #[error("the container is gone, or its pod is being deleted")]
    Gone,
    /// The container runtime is away, or refused.
    #[error("the container runtime: {0}")]
    Runtime(String),
    /// The connection to the container runtime ended before its answer.
    #[error("the container runtime has not answered: {0}")]
    Lost(String),
    /// The Kubernetes API is away, or refused, or would do more than raise the limit.
    #[cfg(feature = "kubernetes")]
    #[error(transparent)]
    Resize(#[from] ResizeRefusal),
    /// The daemon says that the limit is not in force.
    #[error("not in force: {0}")]
    NotInForce(String),
    /// The daemon is away.
    #[error("cannot be verified: {0}")]
    Unverified(String),
    /// No watchdog looks on: what the guard could not continue, no process would.
    #[error("the guard's watchdog hangs or has ended: nothing is held until another one looks on")]
    WatchdogLost,
    /// The longest hold ended first.
    #[error("no answer within the longest hold, while {0}")]
    TooLate(&'static str),
    /// A raised limit was to be lowered, and usage has risen meanwhile.
    #[error("{used} are used by now, for which a limit of {limit} is not enough")]
    InUse {
        /// The usage.
        used: Bytes,
        /// The limit that was to be.
        limit: Bytes,
    },
    /// Another process has changed a raised limit: it is not the guard's to give back.
    #[error("the limit is {} and not what the guard has set: another process has changed it", .0.map_or("max".to_owned(), |limit| limit.to_string()))]
    LimitChanged(Option<Bytes>),
}

impl Refusal {
    /// Its name in the log and in the status.
    pub fn name(&self) -> &'static str {
        match self {
            Self::AtCeiling { .. } => "atCeiling",
            Self::BudgetExhausted(_) => "budgetExhausted",
            Self::RaisedMeanwhile(_) => "raisedMeanwhile",
            Self::LimitAbove { .. } => "limitAbove",
            Self::Throttled(_) => "throttled",
            Self::Unreadable(_) => "unreadable",
            Self::NoFreeMemory { .. } => "noFreeMemory",
            Self::Unanswered => "unanswered",
            Self::Gone => "gone",
            Self::Runtime(_) | Self::Lost(_) => "runtime",
            #[cfg(feature = "kubernetes")]
            Self::Resize(refusal) => refusal.name(),
            Self::NotInForce(_) => "notInForce",
            Self::Unverified(_) => "unverified",
            Self::WatchdogLost => "watchdogLost",
            Self::TooLate(_) => "tooLate",
            Self::InUse { .. } => "inUse",
            Self::LimitChanged(_) => "limitChanged",
        }
    }

    /// Whose limit prevented the change, or else whose limit it is.
    pub fn level(&self) -> CgroupRole {
        match self {
            Self::LimitAbove { level: Level { is_pod: true, .. }, .. } => CgroupRole::Pod,
            Self::LimitAbove { .. } => CgroupRole::Other,
            _ => CgroupRole::Container,
        }
    }

    /// Whether the raise may come into force nevertheless, later: no answer says that it will not.
    pub fn may_come_later(&self) -> bool {
        match self {
            Self::Unanswered | Self::Lost(_) => true,
            #[cfg(feature = "kubernetes")]
            Self::Resize(
                ResizeRefusal::NoAnswer | ResizeRefusal::Unavailable(_) | ResizeRefusal::Pending(_),
            ) => true,
            _ => false,
        }
    }

    /// Whether it can be found out later what has become of it.
    pub fn is_open(&self) -> bool {
        self.may_come_later() && *self != Self::Unanswered
    }

    /// Whether the kubelet has put the raise off: it may carry it out at any later time.
    pub fn is_put_off(&self) -> bool {
        #[cfg(feature = "kubernetes")]
        return matches!(self, Self::Resize(ResizeRefusal::Deferred(_) | ResizeRefusal::Infeasible(_)));
        #[cfg(not(feature = "kubernetes"))]
        false
    }

    /// Whether every further hold would end in the same way, as long as the limit stays as it is.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::AtCeiling { .. } | Self::BudgetExhausted(_) | Self::Throttled(_) => true,
            #[cfg(feature = "kubernetes")]
            Self::Resize(
                ResizeRefusal::OtherPod
                | ResizeRefusal::QosClass(_)
                | ResizeRefusal::Restarts(_)
                | ResizeRefusal::NoLimit,
            ) => true,
            _ => false,
        }
    }

    /// Whether the container is in need as before, so that nothing of it is to be held for a while.
    pub fn is_failure(&self) -> bool {
        !matches!(self, Self::RaisedMeanwhile(_))
    }
}

/// What to raise a limit to. While raises are being given back, the process gets what it had when it was held, whatever budget and
/// ceiling say, and more only as they allow.
///
/// # Errors
/// The policy or the node forbids it.
pub fn raise(rule: &Rule, facts: &Facts) -> Result<Change, Refusal> {
    let Facts { held_at, limit, is_returning, ref above, is_pod_raised, raises, unanswered, .. } = *facts;
    let limit = limit.filter(|limit| *limit <= held_at).ok_or(Refusal::RaisedMeanwhile(held_at))?;
    if unanswered {
        return Err(Refusal::Unanswered);
    }
    let had = if is_returning { held_at } else { limit };
    let most = Bytes(had.0.saturating_add(rule.step.0)).min(rule.ceiling);
    let to = match () {
        () if is_returning && raises >= rule.budget => had,
        () if is_returning => most.max(had),
        () if raises >= rule.budget => return Err(Refusal::BudgetExhausted(raises)),
        () if most <= limit => return Err(Refusal::AtCeiling { limit, ceiling: rule.ceiling }),
        () => most,
    };
    if let Some(high) = facts.high.filter(|high| *high <= limit && !is_pod_raised) {
        return Err(Refusal::Throttled(high));
    }
    let step = Bytes(to.0 - had.0);
    let mut fixed = above.iter().filter(|level| !(level.is_pod && is_pod_raised));
    if let Some(level) = fixed.find(|level| level.limit < to || level.free < step) {
        return Err(Refusal::LimitAbove { level: level.clone(), step });
    }
    let available = Bytes(facts.available.0.saturating_sub(facts.promised.0));
    let needed = Bytes(step.0.saturating_add(facts.reserve.0.max(step.0 / RESERVE)));
    if step > Bytes(0) && available < needed {
        return Err(Refusal::NoFreeMemory { available, step, needed });
    }
    Ok(Change { from: limit, to })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::policy::{Names, Policy, tests::rule as rule_for};

    const MIB: u64 = 1 << 20;

    /// Steps of 64 MiB up to 200 MiB, at most twice.
    pub(crate) fn rule() -> Rule {
        let policy = Policy::parse("[[rule]]\nstep = \"64Mi\"\nceiling = \"200Mi\"\nbudget = 2\n").unwrap();
        rule_for(&policy, Names { namespace: None, pod: None, container: None }).clone()
    }

    pub(crate) fn facts() -> Facts {
        let [limit, available] = [64, 1000].map(|mib| Bytes(mib * MIB));
        Facts {
            held_at: limit,
            limit: Some(limit),
            high: None,
            is_returning: false,
            above: Vec::new(),
            is_pod_raised: false,
            available,
            reserve: Bytes(0),
            promised: Bytes(0),
            raises: 0,
            unanswered: false,
        }
    }

    fn limited(mib: u64) -> Facts {
        Facts { held_at: Bytes(mib * MIB), limit: Some(Bytes(mib * MIB)), ..facts() }
    }

    #[test]
    fn a_limit_rises_by_steps_up_to_the_ceiling() {
        let to = |limit: u64| raise(&rule(), &limited(limit)).map(|raise| raise.to.0 / MIB);
        assert_eq!(to(64), Ok(128));
        assert_eq!(to(128), Ok(192));
        assert_eq!(to(192), Ok(200), "the last step is what is left");
        for limit in [200, 300] {
            let refusal = to(limit).unwrap_err();
            assert!(matches!(refusal, Refusal::AtCeiling { .. }) && refusal.is_permanent(), "{limit}");
        }
    }

    #[test]
    fn a_budget_is_kept() {
        let with = |raises| raise(&rule(), &Facts { raises, ..facts() });
        assert!(with(1).is_ok());
        let refusal = with(2).unwrap_err();
        assert_eq!(refusal, Refusal::BudgetExhausted(2));
        assert!(refusal.is_permanent());
    }

    #[test]
    fn what_is_being_given_back_is_taken_from_no_process_that_needs_it() {
        let of = |held_at: u64, limit: u64, raises| {
            let (held_at, limit) = (Bytes(held_at * MIB), Some(Bytes(limit * MIB)));
            let facts =
                Facts { held_at, limit, raises, is_returning: true, available: Bytes(96 * MIB), ..facts() };
            raise(&rule(), &facts).map(|raise| (raise.from.0 / MIB, raise.to.0 / MIB))
        };
        assert_eq!(of(128, 128, 1), Ok((128, 192)), "not lowered yet");
        assert_eq!(of(128, 64, 1), Ok((64, 192)), "one step above what it had");
        for limit in [64, 192] {
            assert_eq!(of(192, limit, 2), Ok((limit, 192)), "the budget allows no more than it had");
            assert_eq!(of(200, limit, 1), Ok((limit, 200)), "nor does the ceiling");
        }
        let tight = Facts {
            held_at: Bytes(200 * MIB),
            is_returning: true,
            available: Bytes(0),
            reserve: Bytes(MIB),
            ..facts()
        };
        assert!(raise(&rule(), &tight).is_ok(), "the node gives no more than it had");
    }

    #[test]
    fn a_raise_that_changes_nothing_because_of_memory_high_is_refused_unless_the_kubelet_moves_that_too() {
        let with = |high: u64, is_pod_raised| {
            raise(&rule(), &Facts { high: Some(Bytes(high * MIB)), is_pod_raised, ..facts() })
        };
        let refusal = with(64, false).unwrap_err();
        assert!(refusal == Refusal::Throttled(Bytes(64 * MIB)) && refusal.is_permanent());
        assert!(with(65, false).is_ok() && with(58, true).is_ok());
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
        let refusal = with(95).unwrap_err();
        assert!(matches!(refusal, Refusal::NoFreeMemory { .. }) && !refusal.is_permanent());
        let promised = Facts { available: Bytes(100 * MIB), promised: Bytes(5 * MIB), ..facts() };
        assert!(matches!(raise(&rule(), &promised), Err(Refusal::NoFreeMemory { .. })), "promised to others");
        let with = |mib: u64| {
            let [reserve, available] = [200, mib].map(|mib| Bytes(mib * MIB));
            raise(&rule(), &Facts { reserve, available, ..facts() })
        };
        assert!(with(264).is_ok());
        let needed = Bytes(264 * MIB);
        assert!(matches!(with(263), Err(Refusal::NoFreeMemory { needed: found, .. }) if found == needed));
    }

    #[test]
    fn a_raise_begins_at_the_limit_of_now() {
        let now = |limit: Option<u64>| {
            let limit = limit.map(|mib| Bytes(mib * MIB));
            raise(&rule(), &Facts { limit, ..facts() }).map(|raise| (raise.from.0 / MIB, raise.to.0 / MIB))
        };
        assert_eq!(now(Some(64)), Ok((64, 128)));
        assert_eq!(now(Some(32)), Ok((32, 96)), "lowered meanwhile");
        for raised in [Some(65), None] {
            let refusal = now(raised).unwrap_err();
            assert_eq!(refusal, Refusal::RaisedMeanwhile(Bytes(64 * MIB)));
            assert!(!refusal.is_failure());
        }
    }

    #[test]
    fn a_limit_above_must_leave_room_for_the_raise() {
        let with = |levels: &[(u64, u64)]| {
            let above = levels.iter().map(|(limit, free)| Level {
                name: format!("of{limit}"),
                is_pod: false,
                limit: Bytes(limit * MIB),
                free: Bytes(free * MIB),
            });
            raise(&rule(), &Facts { above: above.collect(), ..facts() })
        };
        assert!(with(&[(128, 64), (1000, 64)]).is_ok());
        for (levels, name) in
            [(&[(127, 100)][..], "of127"), (&[(128, 63)], "of128"), (&[(500, 200), (1000, 10)], "of1000")]
        {
            let refusal = with(levels).unwrap_err();
            assert!(matches!(&refusal, Refusal::LimitAbove { level, .. } if level.name == name), "{refusal}");
            assert!(refusal.is_failure());
        }
    }

    #[test]
    fn a_pods_limit_does_not_count_where_it_is_raised_with_the_containers() {
        let level = |is_pod, mib: u64| {
            let limit = Bytes(mib * MIB);
            Level { name: "l".to_owned(), is_pod, limit, free: limit }
        };
        let with = |is_pod_raised, above: [Level; 2]| {
            raise(&rule(), &Facts { above: above.into(), is_pod_raised, ..facts() })
        };
        let tight = || [level(true, 64), level(false, 1000)];
        assert!(matches!(with(false, tight()), Err(Refusal::LimitAbove { .. })));
        assert!(with(true, tight()).is_ok());
        // The classes of pods keep theirs.
        assert!(matches!(with(true, [level(true, 64), level(false, 100)]), Err(Refusal::LimitAbove { .. })));
    }
}
