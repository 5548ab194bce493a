//! From desired limits to what the files should say: the conversions of the kubelet and of the container runtimes, and
//! how far a file may differ without being wrong. All of them stand here, each with its source.
//!
//! | Desired | The file says | Source |
//! |---|---|---|
//! | CPU limit, mCPU | quota = mCPU * period / 1000, at least 1000 µs | kubelet `pkg/kubelet/cm/helpers_linux.go`, `MilliCPUToQuota`, `MinQuotaPeriod`; the kernel's `min_cfs_quota_period` (`kernel/sched/core.c`) |
//! | | or that, rounded up to 1 % of a CPU: 10 ms in a second | opencontainers/cgroups `systemd/v2.go`, `addCPUQuota`: systemd's `CPUQuotaPerSecUSec` |
//! | CPU request, mCPU | shares = mCPU * 1024 / 1000, from 2 to 262144 | kubelet, `MilliCPUToShares` |
//! | shares | weight = 1 + (shares - 2) * 9999 / 262142 | the old formula: runc before 1.3.2, crun before 1.23, the kubelet for pods and classes to 1.36 |
//! | | or weight = ceil(10^((L² + 125 L) / 612 - 7/34)), L = log2(shares) | the new formula: opencontainers/cgroups 0.0.3 (`ConvertCPUSharesToCgroupV2Value`), crun 1.23 |
//! | memory limit, bytes | the same, rounded down to the page | kernel `mm/page_counter.c`, `page_counter_memparse` |
//! | `unified["memory.swap.max"]`, `unified["memory.high"]`, bytes | the same, rounded down to the page | OCI runtime-spec, `linux.resources.unified`; the kubelet has worked them out by then: swap in `configureContainerSwapResources`, MemoryQoS (KEP-2570) in `generateLinuxContainerResources`, `pkg/kubelet/kuberuntime/kuberuntime_container_linux.go` |
//! | | no limit, from 2^63 - 1 rounded down to the page | kernel `include/linux/page_counter.h`, `PAGE_COUNTER_MAX`: its own `max` |
//! | a pod's containers | the sum in mCPU, then the quota of it; no limit at all if one of them has none | kubelet, `ResourceConfigForPod` |
//! | | or the sum of those that have one: a sidecar without a limit after one with a limit does not lift the pod's | component-helpers `AggregateContainerLimits`, which shows the kubelet the sum of the sidecars so far |
//! | a pod's own limits and requests | at least these: RuntimeClass overhead is added | component-helpers `PodLimits`, `PodRequests` |
//! | nothing, for a container of a pod with limits of its own | the pod's limits | kubelet, `getCPULimit`, `getMemoryLimit` |

use crate::model::{Bound, CpuMax, Tolerance, Value, Wanted};

/// The kubelet and the kernel allow no smaller quota, in microseconds.
pub const QUOTA_MIN: u64 = 1000;
/// systemd counts quotas in hundredths of a CPU: so many microseconds of each second.
const SYSTEMD_STEP: u64 = 10_000;
/// The bounds of `cpu.shares`, cgroup v1's weight, in which requests are still counted.
pub const SHARES_MIN: u64 = 2;
/// See [`SHARES_MIN`].
pub const SHARES_MAX: u64 = 262_144;

/// The quota of a CPU limit, before any rounding; none: there is no limit.
pub fn quota(milli_cpu: u64, period: u64) -> Bound {
    match milli_cpu {
        0 => Bound::Unlimited,
        _ => Bound::At(quota_exact(milli_cpu, period).max(QUOTA_MIN)),
    }
}

fn quota_exact(milli_cpu: u64, period: u64) -> u64 {
    u64::try_from(u128::from(milli_cpu) * u128::from(period) / 1000).unwrap_or(u64::MAX)
}

/// A quota as systemd would have it: up to a hundredth of a CPU.
pub fn rounded_by_systemd(cpu: CpuMax) -> CpuMax {
    let Bound::At(quota) = cpu.quota else { return cpu };
    if cpu.period == 0 {
        return cpu;
    }
    // As `addCPUQuota` does it: per second, rounded up, and back; whole microseconds at each step.
    let per_second = u128::from(quota) * 1_000_000 / u128::from(cpu.period);
    let rounded = per_second.div_ceil(u128::from(SYSTEMD_STEP)) * u128::from(SYSTEMD_STEP);
    let quota = u64::try_from(rounded * u128::from(cpu.period) / 1_000_000).unwrap_or(u64::MAX);
    CpuMax { quota: Bound::At(quota), ..cpu }
}

/// The shares of a CPU request.
pub fn shares(milli_cpu: u64) -> u64 {
    u64::try_from(u128::from(milli_cpu) * 1024 / 1000).unwrap_or(u64::MAX).clamp(SHARES_MIN, SHARES_MAX)
}

/// `cpu.weight` by the formula of before 2025.
pub fn old_weight(shares: u64) -> u64 {
    let shares = shares.clamp(SHARES_MIN, SHARES_MAX);
    1 + ((shares - SHARES_MIN) * 9999) / 262_142
}

/// `cpu.weight` by the formula of 2025.
pub fn new_weight(shares: u64) -> u64 {
    if shares <= SHARES_MIN {
        return 1;
    }
    if shares >= SHARES_MAX {
        return 10_000;
    }
    // Exact: there is no share below 2^53.
    #[expect(clippy::cast_precision_loss, reason = "at most 2^18")]
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 1 to 10000")]
    let weight = 10_f64.powf(exponent).ceil() as u64;
    weight
}

/// The kernel counts memory in pages.
pub fn down_to_page(bytes: u64, page: u64) -> u64 {
    bytes.checked_rem(page).map_or(bytes, |rest| bytes - rest)
}

/// What a pod must be allowed for its containers: the sum of those that have a limit. None of them has one: no limit at all; none of
/// them is known: nothing.
pub fn sum(limits: impl IntoIterator<Item = Bound>) -> Option<Bound> {
    limits.into_iter().reduce(|all, one| match (all, one) {
        (Bound::At(all), Bound::At(one)) => Bound::At(all.saturating_add(one)),
        (Bound::Unlimited, one) => one,
        (all, Bound::Unlimited) => all,
    })
}

/// The sum of CPU limits of one pod, as a limit of the pod's; none: they cannot be added up.
pub fn sum_cpu(limits: &[Wanted]) -> Option<Wanted> {
    let milli = |wanted: &Wanted| match wanted {
        Wanted::MilliCpu(0) => Some(Bound::Unlimited),
        Wanted::MilliCpu(milli) => Some(Bound::At(*milli)),
        _ => None,
    };
    // The kubelet raises a quota to its least once, after it has added up: so must whoever adds up quotas that were raised.
    let quota = |wanted: &Wanted| match wanted {
        Wanted::Quota(cpu) if cpu.period == CpuMax::DEFAULT_PERIOD => match cpu.quota {
            Bound::At(QUOTA_MIN) => Some(Bound::At(quota_exact(1, cpu.period))),
            quota => Some(quota),
        },
        _ => None,
    };
    if let Some(all) = limits.iter().map(milli).collect::<Option<Vec<_>>>() {
        return Some(match sum(all)? {
            Bound::At(milli) => Wanted::MilliCpuAtLeast(milli),
            Bound::Unlimited => Wanted::MilliCpuAtLeast(0),
        });
    }
    let all = limits.iter().map(quota).collect::<Option<Vec<_>>>()?;
    let quota = match sum(all)? {
        Bound::At(quota) => Bound::At(quota.max(QUOTA_MIN)),
        Bound::Unlimited => Bound::Unlimited,
    };
    Some(Wanted::QuotaAtLeast(CpuMax { quota, period: CpuMax::DEFAULT_PERIOD }))
}

impl Wanted {
    /// Whether a file that says this is what is desired, and how well; none: it is not.
    pub fn accepts(self, value: &Value, page: u64) -> Option<Tolerance> {
        match (self, value) {
            (Self::MilliCpu(milli), Value::Cpu(cpu)) => {
                let quota = CpuMax { quota: quota(milli, cpu.period), period: cpu.period };
                let raised = milli > 0 && quota_exact(milli, cpu.period) < QUOTA_MIN;
                let tolerance = accepts_quota(quota, *cpu)?;
                Some(if raised && tolerance == Tolerance::Exact {
                    Tolerance::MinimumQuota
                } else {
                    tolerance
                })
            }
            (Self::Quota(wanted), Value::Cpu(cpu)) => accepts_quota(wanted, *cpu),
            (Self::QuotaAtLeast(wanted), Value::Cpu(cpu)) => {
                let more = wanted.quota != Bound::Unlimited && wanted.allows_less(*cpu);
                accepts_quota(wanted, *cpu).or(more.then_some(Tolerance::RoomForMore))
            }
            (Self::MilliCpuAtLeast(milli), Value::Cpu(cpu)) => {
                let least = CpuMax { quota: quota(milli, cpu.period), period: cpu.period };
                let more = milli > 0 && least.allows_less(*cpu);
                Self::MilliCpu(milli).accepts(value, page).or(more.then_some(Tolerance::RoomForMore))
            }
            (Self::Shares(shares), Value::Number(weight)) => accepts_weight(shares, *weight),
            (Self::SharesAtLeast(shares), Value::Number(weight)) => {
                let least = old_weight(shares).min(new_weight(shares));
                accepts_weight(shares, *weight).or((*weight > least).then_some(Tolerance::RoomForMore))
            }
            (Self::Memory(wanted), Value::Bound(bound)) => accepts_memory(wanted, *bound, page),
            (Self::MemoryAtLeast(wanted), Value::Bound(bound)) => {
                accepts_memory(wanted, *bound, page).or((wanted < *bound).then_some(Tolerance::RoomForMore))
            }
            (Self::Exactly(wanted), Value::Bound(Bound::At(number)) | Value::Number(number)) => {
                (wanted == *number).then_some(Tolerance::Exact)
            }
            _ => None,
        }
    }

    /// Whether a write of this is one of a desired limit, whatever the kernel answers: a quota may be smaller than the
    /// least that there is.
    pub fn is_meant_by(self, value: &Value, page: u64) -> bool {
        match (self, value) {
            (Self::MilliCpu(milli), Value::Cpu(CpuMax { quota: Bound::At(quota), period })) if milli > 0 => {
                *quota == quota_exact(milli, *period) || self.accepts(value, page).is_some()
            }
            _ => self.accepts(value, page).is_some(),
        }
    }

    /// Whether this is the wish for no limit, or for one that the kernel takes for none.
    pub fn is_unlimited(self, page: u64) -> bool {
        match self {
            Self::MilliCpu(milli) | Self::MilliCpuAtLeast(milli) => milli == 0,
            Self::Quota(cpu) | Self::QuotaAtLeast(cpu) => cpu.quota == Bound::Unlimited,
            Self::Memory(bound) | Self::MemoryAtLeast(bound) => kept_as(bound, page) == Bound::Unlimited,
            Self::NoQuotaSent | Self::Shares(_) | Self::SharesAtLeast(_) | Self::Exactly(_) => false,
        }
    }

    /// What a file would say that is right to the letter; of a CPU limit, in the usual period.
    pub fn ideal(self) -> Value {
        match self {
            Self::MilliCpu(milli) | Self::MilliCpuAtLeast(milli) => {
                let period = CpuMax::DEFAULT_PERIOD;
                Value::Cpu(CpuMax { quota: quota(milli, period), period })
            }
            Self::NoQuotaSent => {
                Value::Cpu(CpuMax { quota: Bound::Unlimited, period: CpuMax::DEFAULT_PERIOD })
            }
            Self::Quota(cpu) | Self::QuotaAtLeast(cpu) => Value::Cpu(cpu),
            Self::Shares(shares) | Self::SharesAtLeast(shares) => Value::Number(new_weight(shares)),
            Self::Memory(bound) | Self::MemoryAtLeast(bound) => Value::Bound(bound),
            Self::Exactly(number) => Value::Bound(Bound::At(number)),
        }
    }
}

fn accepts_quota(wanted: CpuMax, cpu: CpuMax) -> Option<Tolerance> {
    if wanted.quota == Bound::Unlimited || cpu.quota == Bound::Unlimited {
        // Without a quota, the period says nothing: systemd resets it.
        return (wanted.quota == cpu.quota).then_some(Tolerance::Exact);
    }
    if wanted.order(cpu).is_eq() {
        return Some(Tolerance::Exact);
    }
    // By way of systemd, the period is the kernel's own again unless it was given, too.
    let scaled = |wanted: CpuMax| rounded_by_systemd(wanted).order(cpu).is_eq();
    scaled(wanted).then_some(Tolerance::RoundedToTenMilliseconds)
}

fn accepts_weight(shares: u64, weight: u64) -> Option<Tolerance> {
    match (weight == old_weight(shares), weight == new_weight(shares)) {
        (true, true) => Some(Tolerance::Exact),
        (true, false) => Some(Tolerance::OldWeightFormula),
        (false, true) => Some(Tolerance::NewWeightFormula),
        (false, false) => None,
    }
}

fn accepts_memory(wanted: Bound, bound: Bound, page: u64) -> Option<Tolerance> {
    if wanted == bound {
        return Some(Tolerance::Exact);
    }
    (kept_as(wanted, page) == bound).then_some(Tolerance::RoundedToPage)
}

/// What the kernel makes of an amount of memory: whole pages, and no limit from its largest number of them on.
fn kept_as(wanted: Bound, page: u64) -> Bound {
    let Bound::At(bytes) = wanted else { return wanted };
    let kept = down_to_page(bytes, page);
    if kept >= down_to_page(i64::MAX.unsigned_abs(), page) { Bound::Unlimited } else { Bound::At(kept) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGE: u64 = 4096;
    const PERIOD: u64 = CpuMax::DEFAULT_PERIOD;

    fn cpu(quota: u64) -> CpuMax {
        CpuMax { quota: Bound::At(quota), period: PERIOD }
    }

    /// Requests with their shares and weights, limits with their quotas; worked out apart from this code.
    #[test]
    fn the_table() {
        for (milli, expected, old, new) in [
            (2, 2, 1, 1),
            (100, 102, 4, 17),
            (250, 256, 10, 35),
            (500, 512, 20, 59),
            (1000, 1024, 39, 100),
            (2000, 2048, 79, 174),
        ] {
            assert_eq!(shares(milli), expected, "{milli}m");
            assert_eq!((old_weight(expected), new_weight(expected)), (old, new), "{milli}m");
        }
        for (milli, exact, rounded) in [
            (5, 1000, 1000),
            (11, 1100, 2000),
            (51, 5100, 6000),
            (417, 41_700, 42_000),
            (1234, 123_400, 124_000),
            (4096, 409_600, 410_000),
        ] {
            assert_eq!(quota(milli, PERIOD), Bound::At(exact), "{milli}m");
            assert_eq!(rounded_by_systemd(cpu(exact)), cpu(rounded), "{milli}m");
        }
    }

    #[test]
    fn the_ends() {
        assert_eq!(quota(0, PERIOD), Bound::Unlimited);
        assert_eq!((shares(0), shares(1), shares(u64::MAX)), (SHARES_MIN, SHARES_MIN, SHARES_MAX));
        assert_eq!((old_weight(0), old_weight(u64::MAX)), (1, 10_000));
        assert_eq!((new_weight(0), new_weight(u64::MAX)), (1, 10_000));
        assert_eq!(sum([]), None);
        assert_eq!(sum([Bound::At(u64::MAX), Bound::At(1)]), Some(Bound::At(u64::MAX)));
        assert_eq!(sum([Bound::At(1), Bound::Unlimited]), Some(Bound::At(1)), "a sidecar may have none");
        assert_eq!(sum([Bound::Unlimited, Bound::Unlimited]), Some(Bound::Unlimited));
        assert_eq!(down_to_page(5000, 0), 5000);
    }

    /// The kubelet adds up thousandths of a CPU, and raises the sum's quota to the least once.
    #[test]
    fn the_quota_of_a_pod_is_that_of_the_sum() {
        let accepts = |limits: &[Wanted], quota: u64| sum_cpu(limits)?.accepts(&Value::Cpu(cpu(quota)), PAGE);
        let tiny = |milli| [Wanted::MilliCpu(milli); 3];
        assert_eq!(accepts(&tiny(5)[..2], 1000), Some(Tolerance::Exact));
        assert_eq!(accepts(&tiny(4), 1200), Some(Tolerance::Exact));
        assert_eq!(accepts(&tiny(4), 2000), Some(Tolerance::RoundedToTenMilliseconds));
        assert_eq!(accepts(&tiny(4), 1100), None, "less than the sum");
        assert_eq!(accepts(&tiny(1), 1000), Some(Tolerance::MinimumQuota));
        // The CRI has the raised quotas: of how much is unknown.
        let raised = [Wanted::Quota(cpu(QUOTA_MIN)); 3];
        assert!(accepts(&raised, 1200).is_some() && accepts(&raised, 1000).is_some());
        assert_eq!(accepts(&[Wanted::Quota(cpu(50_000)), Wanted::Quota(cpu(1000))], 50_000), None);
        assert_eq!(sum_cpu(&[Wanted::MilliCpu(5), Wanted::Quota(cpu(5000))]), None, "two units");
        assert_eq!(sum_cpu(&[]), None);
    }

    #[test]
    fn a_pod_with_an_unlimited_container_has_at_least_what_the_others_need() {
        let sum = sum_cpu(&[Wanted::MilliCpu(100), Wanted::MilliCpu(0), Wanted::MilliCpu(200)]).unwrap();
        let unlimited = CpuMax { quota: Bound::Unlimited, period: PERIOD };
        assert_eq!(sum.accepts(&Value::Cpu(cpu(30_000)), PAGE), Some(Tolerance::Exact));
        assert_eq!(sum.accepts(&Value::Cpu(unlimited), PAGE), Some(Tolerance::RoomForMore));
        assert_eq!(sum.accepts(&Value::Cpu(cpu(20_000)), PAGE), None);
        let none = sum_cpu(&[Wanted::MilliCpu(0)]).unwrap();
        assert!(none.is_unlimited(PAGE) && none.accepts(&Value::Cpu(unlimited), PAGE).is_some());
        assert_eq!(none.accepts(&Value::Cpu(cpu(30_000)), PAGE), None);
    }

    /// `page_counter_memparse` caps at `PAGE_COUNTER_MAX`, which the file shows as `max`.
    #[test]
    fn the_largest_amounts_of_memory_are_no_limit() {
        let max = Value::Bound(Bound::Unlimited);
        for bytes in [i64::MAX.unsigned_abs(), 9_223_372_036_854_771_712, u64::MAX] {
            let wanted = Wanted::Memory(Bound::At(bytes));
            assert_eq!(wanted.accepts(&max, 4096), Some(Tolerance::RoundedToPage), "{bytes}");
            assert!(wanted.is_unlimited(4096));
        }
        let below = Wanted::Memory(Bound::At(9_223_372_036_854_771_712 - 1));
        assert_eq!(below.accepts(&max, 4096), None);
        assert!(!below.is_unlimited(4096));
        // Of larger pages there are fewer.
        assert!(Wanted::Memory(Bound::At(9_223_372_036_854_710_272)).is_unlimited(65_536));
    }

    #[test]
    fn a_pod_with_overhead_has_more_than_its_own_resources() {
        let weight = |weight| Wanted::SharesAtLeast(1024).accepts(&Value::Number(weight), PAGE);
        assert_eq!(weight(39), Some(Tolerance::OldWeightFormula));
        assert_eq!(weight(100), Some(Tolerance::NewWeightFormula));
        assert_eq!(weight(49), Some(Tolerance::RoomForMore));
        assert_eq!(weight(38), None);
        let quota = Wanted::MilliCpuAtLeast(1000).accepts(&Value::Cpu(cpu(125_000)), PAGE);
        assert_eq!(quota, Some(Tolerance::RoomForMore));
    }

    #[test]
    fn tolerances_are_named() {
        let is = |wanted: Wanted, value: Value| wanted.accepts(&value, PAGE);
        let quota = |quota| Value::Cpu(cpu(quota));
        let memory = |bytes| Value::Bound(Bound::At(bytes));
        assert_eq!(is(Wanted::MilliCpu(417), quota(41_700)), Some(Tolerance::Exact));
        assert_eq!(is(Wanted::MilliCpu(417), quota(42_000)), Some(Tolerance::RoundedToTenMilliseconds));
        assert_eq!(is(Wanted::MilliCpu(417), quota(43_000)), None);
        assert_eq!(is(Wanted::MilliCpu(5), quota(1000)), Some(Tolerance::MinimumQuota));
        assert_eq!(is(Wanted::MilliCpu(10), quota(1000)), Some(Tolerance::Exact));
        assert_eq!(is(Wanted::MilliCpu(5), quota(500)), None, "the kernel refuses it");
        assert!(Wanted::MilliCpu(5).is_meant_by(&quota(500), PAGE));
        assert!(Wanted::MilliCpu(5).is_meant_by(&quota(1000), PAGE));
        assert!(!Wanted::MilliCpu(5).is_meant_by(&quota(600), PAGE));
        assert!(Wanted::MilliCpu(417).is_meant_by(&quota(42_000), PAGE));
        let unlimited = Value::Cpu(CpuMax { quota: Bound::Unlimited, period: 7 });
        assert_eq!(is(Wanted::MilliCpu(0), unlimited.clone()), Some(Tolerance::Exact));
        assert_eq!(is(Wanted::MilliCpu(500), unlimited.clone()), None);
        assert_eq!(is(Wanted::QuotaAtLeast(cpu(5)), unlimited), Some(Tolerance::RoomForMore));
        assert_eq!(is(Wanted::Shares(256), Value::Number(10)), Some(Tolerance::OldWeightFormula));
        assert_eq!(is(Wanted::Shares(256), Value::Number(35)), Some(Tolerance::NewWeightFormula));
        assert_eq!(is(Wanted::Shares(2), Value::Number(1)), Some(Tolerance::Exact));
        assert_eq!(is(Wanted::Shares(256), Value::Number(11)), None);
        assert_eq!(is(Wanted::Memory(Bound::At(5000)), memory(4096)), Some(Tolerance::RoundedToPage));
        assert_eq!(is(Wanted::Memory(Bound::At(5000)), memory(8192)), None, "the kernel never rounds up");
        let milli = is(Wanted::Memory(Bound::At(1)), memory(0));
        assert_eq!(milli, Some(Tolerance::RoundedToPage), "`memory: 128m` is one byte, and no page");
        let large_pages = |bytes| Wanted::Memory(Bound::At(100_000_000)).accepts(&memory(bytes), 65_536);
        assert_eq!(large_pages(99_942_400), Some(Tolerance::RoundedToPage), "arm64 and ppc64le");
        assert_eq!(large_pages(99_999_744), None);
        assert_eq!(is(Wanted::Memory(Bound::Unlimited), memory(4096)), None);
        assert_eq!(is(Wanted::MemoryAtLeast(Bound::At(5000)), memory(1 << 20)), Some(Tolerance::RoomForMore));
        assert_eq!(is(Wanted::MemoryAtLeast(Bound::Unlimited), memory(1 << 20)), None);
        assert_eq!(is(Wanted::Memory(Bound::At(1)), Value::Number(1)), None, "another limit file");
    }

    proptest! {
        #[test]
        fn both_formulas_stay_within_the_kernels_bounds_and_never_fall(shares in 0..300_000_u64) {
            for formula in [old_weight, new_weight] {
                prop_assert!((1..=10_000).contains(&formula(shares)));
                prop_assert!(formula(shares) <= formula(shares + 1));
            }
        }

        #[test]
        fn a_limit_is_accepted_exact_and_rounded_and_not_otherwise(milli in 10..1_000_000_u64, period in 1000..=1_000_000_u64) {
            let exact = CpuMax { quota: quota(milli, period), period };
            let rounded = rounded_by_systemd(exact);
            prop_assert!(Wanted::MilliCpu(milli).accepts(&Value::Cpu(exact), PAGE).is_some());
            prop_assert!(Wanted::MilliCpu(milli).accepts(&Value::Cpu(rounded), PAGE).is_some());
            // Whole microseconds of a short period.
            let (Bound::At(up), Bound::At(exactly)) = (rounded.quota, exact.quota) else { unreachable!() };
            prop_assert!(up + 1 >= exactly, "{} for {}", up, exactly);
            let more = CpuMax { quota: Bound::At(up + 2), period };
            prop_assert_eq!(Wanted::MilliCpu(milli).accepts(&Value::Cpu(more), PAGE), None);
        }
    }
}
