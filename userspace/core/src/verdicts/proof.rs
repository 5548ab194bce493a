//! Proof by behaviour: whether what was used over an interval kept to a limit, by the kernel's own counters. Pure: two looks at the
//! counters, and in between looks at what was used, come in; one finding comes out.
//!
//! | Limit | What may be used | Source |
//! |---|---|---|
//! | `cpu.max` | quota × (interval / period, rounded up, + 1): the interval cuts two periods | `Documentation/scheduler/sched-bwc.rst`: "Within each given "period" […] a task group is allocated up to "quota" microseconds" |
//! | | + `cpu.max.burst`, once | the same, "Burst feature" |
//! | | + 1 ms for each CPU | the same, "Fair": "for highly-threaded, non-cpu bound applications […] up to 1ms per cpu" (`min_cfs_rq_runtime`) |
//! | | + 10 ms for each CPU | a task is charged at the tick, and may run over by one, paid back in the next period (`CONFIG_HZ` of 100 or more) |
//! | `memory.max` | that, but for moments | `Documentation/admin-guide/cgroup-v2.rst`: "Under certain circumstances, the usage may go over the limit temporarily" |
//!
//! Usage below a limit says nothing of who holds it there: a limit was put to the test only if the kernel had to enforce it, which is
//! what `nr_throttled` of `cpu.stat` and `max` of `memory.events` count. Where the limit was changed within the interval, nothing
//! follows from what was used.

use serde::{Deserialize, Serialize};

use crate::model::{Bound, CpuMax, Judgement, KernelTime, Resource, Value};

/// What a task may run over by on one CPU, in microseconds: the slack, and a tick.
const SLACK: u64 = 1000 + 10_000;

/// One look at a cgroup's counters. None: the file, or the line in it, could not be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageCounters {
    /// `usage_usec` of `cpu.stat`.
    pub cpu_usage: Option<u64>,
    /// `nr_throttled` of `cpu.stat`.
    pub throttled: Option<u64>,
    /// `max` of `memory.events`: how often usage was about to go over.
    pub reached: Option<u64>,
}

/// What was seen over an interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interval {
    /// When it began.
    pub from: KernelTime,
    /// When it ended.
    pub to: KernelTime,
    /// The counters of the first look.
    pub first: UsageCounters,
    /// The counters of the last look.
    pub last: UsageCounters,
    /// The least of `memory.current`, and the most, over all looks; none: it could not be read.
    pub memory: Option<(u64, u64)>,
    /// `cpu.max.burst`, in microseconds.
    pub burst: u64,
    /// CPUs that are online.
    pub cpus: u64,
    /// The limit file or `cpu.max.burst` was seen to say something else than before: what was used was held by more than one limit.
    pub limit_changed: bool,
}

impl Interval {
    /// One of which nothing has been seen yet, on so many CPUs.
    pub fn begun(at: KernelTime, cpus: u64) -> Self {
        Self {
            from: at,
            to: at,
            first: UsageCounters::default(),
            last: UsageCounters::default(),
            memory: None,
            burst: 0,
            cpus,
            limit_changed: false,
        }
    }
}

/// What the counters prove.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// The kernel held usage at the limit.
    Kept {
        /// How much was used.
        used: Used,
        /// How often the kernel had to enforce it.
        enforced: u64,
    },
    /// Usage never came to the limit: it was not put to the test.
    NotReached {
        /// How much was used.
        used: Used,
    },
    /// More was used than that.
    Exceeded {
        /// How much was used.
        used: Used,
    },
    /// That cannot be said.
    Unknown(Unproved),
}

/// Why usage proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unproved {
    /// The counters cannot be read.
    Unreadable,
    /// The limit was changed meanwhile.
    LimitChanged,
    /// It was not watched: others are, as many as may be at a time.
    TooManyWatched,
}

/// What was used, and what may have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// Microseconds of CPU time in the interval, or the least that was charged in it, in bytes.
    pub usage: u64,
    /// In the same unit.
    pub allowed: u64,
}

impl Judgement {
    /// Whether usage kept to what is wanted; none: that is no limit on an amount of CPU time or memory.
    ///
    /// Where the file says what is wanted, what it says to the letter is what the kernel enforces: a rounded quota is a larger one.
    pub fn proof(&self, seen: &Interval) -> Option<Proof> {
        let agreed = self.tolerance.and(self.in_force.value()).cloned();
        let limit = agreed.or_else(|| self.desired.map(|desired| desired.wanted.ideal()))?;
        prove(self.resource, &limit, seen)
    }

    /// What is said in the place of a [`Self::proof`] where usage was not watched at that time.
    pub fn unproved(&self, at: KernelTime, why: Unproved) -> Option<(Interval, Proof)> {
        let unseen = Interval::begun(at, 0);
        self.proof(&unseen).map(|_| (unseen, Proof::Unknown(why)))
    }
}

/// Whether usage kept to that limit.
fn prove(resource: Resource, limit: &Value, seen: &Interval) -> Option<Proof> {
    let proof = match (resource, limit) {
        (Resource::Cpu, Value::Cpu(CpuMax { quota: Bound::At(quota), period })) => cpu(*quota, *period, seen),
        (Resource::Memory, Value::Bound(Bound::At(limit))) => memory(*limit, seen),
        _ => return None,
    };
    Some(if seen.limit_changed { Proof::Unknown(Unproved::LimitChanged) } else { proof })
}

fn cpu(quota: u64, period: u64, seen: &Interval) -> Proof {
    let (Some(before), Some(after)) = (seen.first.cpu_usage, seen.last.cpu_usage) else {
        return Proof::Unknown(Unproved::Unreadable);
    };
    let elapsed = seen.to.0.saturating_sub(seen.from.0) / 1000;
    let periods = elapsed.div_ceil(period.max(1)).saturating_add(1);
    let slack = seen.burst.saturating_add(SLACK.saturating_mul(seen.cpus));
    let allowed = quota.saturating_mul(periods).saturating_add(slack);
    let used = Used { usage: after.saturating_sub(before), allowed };
    found(used, seen.first.throttled, seen.last.throttled)
}

fn memory(limit: u64, seen: &Interval) -> Proof {
    let Some((least, _)) = seen.memory else { return Proof::Unknown(Unproved::Unreadable) };
    found(Used { usage: least, allowed: limit }, seen.first.reached, seen.last.reached)
}

fn found(used: Used, before: Option<u64>, after: Option<u64>) -> Proof {
    if used.usage > used.allowed {
        return Proof::Exceeded { used };
    }
    match before.zip(after).map(|(before, after)| after.saturating_sub(before)) {
        Some(enforced) if enforced > 0 => Proof::Kept { used, enforced },
        _ => Proof::NotReached { used },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn seen(usage: u64, throttled: u64) -> Interval {
        Interval {
            from: KernelTime(SECOND),
            to: KernelTime(3 * SECOND),
            first: UsageCounters { cpu_usage: Some(7), throttled: Some(3), reached: Some(1) },
            last: UsageCounters {
                cpu_usage: Some(7 + usage),
                throttled: Some(3 + throttled),
                reached: Some(1),
            },
            memory: Some((4096, 8192)),
            burst: 0,
            cpus: 2,
            limit_changed: false,
        }
    }

    /// Half a CPU for two seconds: 20 periods of 50 ms, one more that the interval cuts, and 22 ms for two CPUs.
    const ALLOWED: u64 = 21 * 50_000 + 22_000;

    fn cpu_of(quota: u64) -> Value {
        Value::Cpu(CpuMax { quota: Bound::At(quota), period: 100_000 })
    }

    #[test]
    fn a_quota_is_kept_exceeded_or_not_put_to_the_test() {
        let proof = |seen: &Interval| prove(Resource::Cpu, &cpu_of(50_000), seen);
        let used = |usage| Used { usage, allowed: ALLOWED };
        let kept = Proof::Kept { used: used(1_000_000), enforced: 19 };
        assert_eq!(proof(&seen(1_000_000, 19)), Some(kept));
        assert_eq!(proof(&seen(10, 0)), Some(Proof::NotReached { used: used(10) }));
        assert_eq!(proof(&seen(ALLOWED, 0)), Some(Proof::NotReached { used: used(ALLOWED) }));
        let over = Proof::Exceeded { used: used(ALLOWED + 1) };
        // Throttled, but by another quota than the one that is wanted.
        assert_eq!(proof(&seen(ALLOWED + 1, 5)), Some(over));
        let burst = Interval { burst: 1, ..seen(ALLOWED + 1, 5) };
        assert!(matches!(proof(&burst), Some(Proof::Kept { .. })));
    }

    #[test]
    fn memory_exceeds_a_limit_only_if_it_never_was_below() {
        let proof = |limit| prove(Resource::Memory, &Value::Bound(Bound::At(limit)), &seen(0, 0));
        let used = |allowed| Used { usage: 4096, allowed };
        assert_eq!(proof(4095), Some(Proof::Exceeded { used: used(4095) }));
        // For a moment it was.
        assert_eq!(proof(4096), Some(Proof::NotReached { used: used(4096) }));
        let mut reached = seen(0, 0);
        reached.last.reached = Some(9);
        let kept = Proof::Kept { used: used(8192), enforced: 8 };
        assert_eq!(prove(Resource::Memory, &Value::Bound(Bound::At(8192)), &reached), Some(kept));
    }

    #[test]
    fn a_limit_that_changed_meanwhile_proves_nothing() {
        let changed = Interval { limit_changed: true, ..seen(ALLOWED + 1, 5) };
        let unknown = Some(Proof::Unknown(Unproved::LimitChanged));
        assert_eq!(prove(Resource::Cpu, &cpu_of(50_000), &changed), unknown);
        assert_eq!(prove(Resource::Memory, &Value::Bound(Bound::At(4095)), &changed), unknown);
        assert_eq!(prove(Resource::Memory, &Value::Bound(Bound::Unlimited), &changed), None);
    }

    #[test]
    fn without_counters_or_a_limit_there_is_no_proof() {
        let mut blind = seen(0, 0);
        blind.last.cpu_usage = None;
        assert_eq!(prove(Resource::Cpu, &cpu_of(50_000), &blind), Some(Proof::Unknown(Unproved::Unreadable)));
        let unlimited = Value::Bound(Bound::Unlimited);
        assert_eq!(prove(Resource::Memory, &unlimited, &blind), None);
        let swap = prove(Resource::Swap, &Value::Bound(Bound::At(1)), &seen(0, 0));
        assert_eq!(swap, None, "what is counted is memory");
    }

    #[test]
    fn no_counters_overflow() {
        let mut extreme = seen(u64::MAX - 7, 0);
        extreme.to = KernelTime(u64::MAX);
        extreme.burst = u64::MAX;
        extreme.cpus = u64::MAX;
        let limit = Value::Cpu(CpuMax { quota: Bound::At(u64::MAX), period: 0 });
        assert!(prove(Resource::Cpu, &limit, &extreme).is_some());
    }
}
