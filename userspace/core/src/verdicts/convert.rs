//! From what was asked for to what the files should say: the conversions of the kubelet and of the container runtimes, and
//! how far a file may differ without being wrong. All of them stand here, each with its source.
//!
//! | Asked for | The file says | Source |
//! |---|---|---|
//! | CPU limit, mCPU | quota = mCPU * period / 1000, at least 1000 µs | kubelet `pkg/kubelet/cm/helpers_linux.go`, `MilliCPUToQuota`, `MinQuotaPeriod`; the kernel's `min_cfs_quota_period` (`kernel/sched/core.c`) |
//! | | or that, rounded up to 1 % of a CPU: 10 ms in a second | opencontainers/cgroups `systemd/v2.go`, `addCPUQuota`: systemd's `CPUQuotaPerSecUSec` |
//! | CPU request, mCPU | shares = mCPU * 1024 / 1000, from 2 to 262144 | kubelet, `MilliCPUToShares` |
//! | shares | weight = 1 + (shares - 2) * 9999 / 262142 | the old formula: runc before 1.3.2, crun before 1.23, the kubelet for pods and classes to 1.36 |
//! | | or weight = ceil(10^((L² + 125 L) / 612 - 7/34)), L = log2(shares) | the new formula: opencontainers/cgroups 0.0.3 (`ConvertCPUSharesToCgroupV2Value`), crun 1.23 |
//! | memory limit, bytes | the same, rounded down to the page | kernel `mm/page_counter.c`, `page_counter_memparse` |
//! | `unified["memory.swap.max"]`, `unified["memory.high"]`, bytes | the same, rounded down to the page | OCI runtime-spec, `linux.resources.unified`; the kubelet has worked them out by then: swap in `configureContainerSwapResources`, MemoryQoS (KEP-2570) in `generateLinuxContainerResources`, `pkg/kubelet/kuberuntime/kuberuntime_container_linux.go` |
//! | a pod's containers | the sum; no limit at all if one of them has none | kubelet, `ResourceConfigForPod` |

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

/// The sum of a pod's containers; none of them: nothing is known.
pub fn sum(limits: impl IntoIterator<Item = Bound>) -> Option<Bound> {
    limits.into_iter().reduce(|all, one| match (all, one) {
        (Bound::At(all), Bound::At(one)) => Bound::At(all.saturating_add(one)),
        _ => Bound::Unlimited,
    })
}

impl Wanted {
    /// Whether a file that says this is what was asked for, and how well; none: it is not.
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
            (Self::Shares(shares), Value::Number(weight)) if *weight == new_weight(shares) => {
                let both = *weight == old_weight(shares);
                Some(if both { Tolerance::Exact } else { Tolerance::NewWeightFormula })
            }
            (Self::Shares(shares), Value::Number(weight)) => {
                (*weight == old_weight(shares)).then_some(Tolerance::OldWeightFormula)
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

    /// Whether a write of this is one of what was asked for, whatever the kernel says to it: a quota may be smaller than the
    /// least that there is.
    pub fn is_meant_by(self, value: &Value, page: u64) -> bool {
        match (self, value) {
            (Self::MilliCpu(milli), Value::Cpu(CpuMax { quota: Bound::At(quota), period })) if milli > 0 => {
                *quota == quota_exact(milli, *period) || self.accepts(value, page).is_some()
            }
            _ => self.accepts(value, page).is_some(),
        }
    }

    /// What a file would say that is right to the letter; of a CPU limit, in the usual period.
    pub fn ideal(self) -> Value {
        match self {
            Self::MilliCpu(milli) => {
                let period = CpuMax::DEFAULT_PERIOD;
                Value::Cpu(CpuMax { quota: quota(milli, period), period })
            }
            Self::Quota(cpu) | Self::QuotaAtLeast(cpu) => Value::Cpu(cpu),
            Self::Shares(shares) => Value::Number(new_weight(shares)),
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

fn accepts_memory(wanted: Bound, bound: Bound, page: u64) -> Option<Tolerance> {
    match (wanted, bound) {
        _ if wanted == bound => Some(Tolerance::Exact),
        // The kernel counts no more pages than that, and shows so many as `max` (`PAGE_COUNTER_MAX` in
        // `include/linux/page_counter.h`).
        (Bound::At(wanted), Bound::Unlimited) if wanted >= down_to_page(i64::MAX.unsigned_abs(), page) => {
            Some(Tolerance::RoundedToPage)
        }
        (Bound::At(wanted), Bound::At(is)) if down_to_page(wanted, page) == is => {
            Some(Tolerance::RoundedToPage)
        }
        _ => None,
    }
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
        assert_eq!(sum([Bound::At(1), Bound::Unlimited]), Some(Bound::Unlimited));
        assert_eq!(down_to_page(5000, 0), 5000);
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
        assert_eq!(is(Wanted::Memory(Bound::Unlimited), memory(4096)), None);
        assert_eq!(is(Wanted::MemoryAtLeast(Bound::At(5000)), memory(1 << 20)), Some(Tolerance::RoomForMore));
        assert_eq!(is(Wanted::MemoryAtLeast(Bound::Unlimited), memory(1 << 20)), None);
        assert_eq!(is(Wanted::Memory(Bound::At(1)), Value::Number(1)), None, "another limit file");
    }

    #[test]
    fn a_limit_above_what_the_kernel_counts_is_none() {
        let accepts = |bytes, page| {
            Wanted::Memory(Bound::At(bytes)).accepts(&Value::Bound(Bound::Unlimited), page).is_some()
        };
        assert!(accepts(9_223_372_036_854_775_807, PAGE) && accepts(9_223_372_036_854_771_712, PAGE));
        assert!(!accepts(9_223_372_036_854_771_711, PAGE));
        assert!(accepts(9_223_372_036_854_710_272, 65_536));
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
