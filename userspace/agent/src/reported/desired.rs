//! What each source says, as desired limits. 0 and "" of the CRI mean "not specified": such a limit is not desired. That the runtime was
//! sent no quota is kept all the same: it may explain why there is none.

use kwitness_core::model::{Bound, CpuMax, DesiredLimit, KernelTime, Resource, Source, Wanted};
use kwitness_core::verdicts::convert;

use kwitness_api::proto;
use kwitness_cri::{UNIFIED_MEMORY_HIGH, UNIFIED_SWAP_MAX, runtime as cri};

/// A desired limit, and of what.
pub(crate) type Desired = (Resource, DesiredLimit);

/// What a container should have, as requested from the container runtime.
pub(crate) fn of_runtime(resources: &cri::LinuxContainerResources, at: KernelTime) -> Vec<Desired> {
    let mut limits = of_cri(resources, Source::Runtime, at);
    // It speaks of CPU, and knows of no quota.
    if resources.cpu_quota == 0 && resources.cpu_shares > 0 {
        let wanted = Wanted::NoQuotaSent;
        limits.push((Resource::Cpu, DesiredLimit { source: Source::Runtime, at, wanted }));
    }
    limits
}

/// What a container should have, as a request to the container runtime said.
pub(crate) fn of_request(resources: &proto::CriResources, at: KernelTime) -> Vec<Desired> {
    let proto::CriResources { cpu_period, cpu_quota, cpu_shares, memory_limit_in_bytes, .. } = resources;
    let unified =
        [(UNIFIED_SWAP_MAX, &resources.memory_swap_max), (UNIFIED_MEMORY_HIGH, &resources.memory_high)];
    let resources = cri::LinuxContainerResources {
        cpu_period: *cpu_period,
        cpu_quota: *cpu_quota,
        cpu_shares: *cpu_shares,
        memory_limit_in_bytes: *memory_limit_in_bytes,
        unified: unified.map(|(key, text)| (key.to_owned(), text.clone())).into(),
    };
    of_cri(&resources, Source::CriRequest, at)
}

/// What a pod should have at least, as a request to the container runtime said: overhead and what other containers there are comes
/// on top.
pub(crate) fn of_pod_request(resources: &proto::CriResources, at: KernelTime) -> Vec<Desired> {
    let at_least = |(resource, limit): Desired| {
        let wanted = match limit.wanted {
            Wanted::Quota(cpu) => Wanted::QuotaAtLeast(cpu),
            Wanted::Memory(bound) if resource == Resource::Memory => Wanted::MemoryAtLeast(bound),
            // The kubelet makes a pod's weight of something else.
            _ => return None,
        };
        Some((resource, DesiredLimit { wanted, ..limit }))
    };
    of_request(resources, at).into_iter().filter_map(at_least).collect()
}

/// What one of them says.
pub(crate) fn unified_bound(text: &str) -> Option<Bound> {
    match text {
        "max" => Some(Bound::Unlimited),
        number => number.parse().ok().map(Bound::At),
    }
}

fn of_cri(resources: &cri::LinuxContainerResources, source: Source, at: KernelTime) -> Vec<Desired> {
    let limit = |resource, wanted| (resource, DesiredLimit { source, at, wanted });
    let positive = |number: i64| u64::try_from(number).ok().filter(|number| *number > 0);
    let bound = |number: i64| match number {
        0 => None,
        number => Some(positive(number).map_or(Bound::Unlimited, Bound::At)),
    };
    let mut limits = Vec::new();
    if let Some(quota) = bound(resources.cpu_quota) {
        let period = positive(resources.cpu_period).unwrap_or(CpuMax::DEFAULT_PERIOD);
        limits.push(limit(Resource::Cpu, Wanted::Quota(CpuMax { quota, period })));
    }
    if let Some(shares) = positive(resources.cpu_shares) {
        limits.push(limit(Resource::CpuWeight, Wanted::Shares(shares)));
    }
    if let Some(bytes) = bound(resources.memory_limit_in_bytes) {
        limits.push(limit(Resource::Memory, Wanted::Memory(bytes)));
    }
    for (key, resource) in [(UNIFIED_MEMORY_HIGH, Resource::MemoryHigh), (UNIFIED_SWAP_MAX, Resource::Swap)] {
        let bound = resources.unified.get(key).and_then(|text| unified_bound(text));
        limits.extend(bound.map(|bound| limit(resource, Wanted::Memory(bound))));
    }
    limits
}

/// What a pod should have at least, by what one source says of all its containers; none where it does not say it of all.
pub(crate) fn of_pod(source: Source, containers: &[Vec<Desired>]) -> Vec<Desired> {
    let all = |resource| -> Option<Vec<Wanted>> {
        let of = |limits: &Vec<Desired>| {
            let mut limits = limits.iter();
            limits
                .find(|(about, limit)| *about == resource && limit.source == source)
                .map(|(_, limit)| limit.wanted)
        };
        containers.iter().map(of).collect()
    };
    let memory = all(Resource::Memory).and_then(|wanted| {
        convert::sum(wanted.into_iter().filter_map(|wanted| match wanted {
            Wanted::Memory(bound) => Some(bound),
            _ => None,
        }))
    });
    let cpu = all(Resource::Cpu).and_then(|wanted| convert::sum_cpu(&wanted));
    // As old as the youngest of what it is made of.
    let of_source = containers.iter().flatten().filter(|(_, limit)| limit.source == source);
    let Some(at) = of_source.map(|(_, limit)| limit.at).max() else { return Vec::new() };
    let limit = |resource, wanted| (resource, DesiredLimit { source, at, wanted });
    let memory = memory.map(|bound| limit(Resource::Memory, Wanted::MemoryAtLeast(bound)));
    cpu.map(|cpu| limit(Resource::Cpu, cpu)).into_iter().chain(memory).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: KernelTime = KernelTime(1);

    fn resources(quota: i64, memory: i64) -> cri::LinuxContainerResources {
        cri::LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: quota,
            memory_limit_in_bytes: memory,
            ..Default::default()
        }
    }

    fn wanted(limits: &[Desired]) -> Vec<(Resource, Wanted)> {
        limits.iter().map(|(resource, limit)| (*resource, limit.wanted)).collect()
    }

    fn cpu(quota: Bound) -> CpuMax {
        CpuMax { quota, period: 100_000 }
    }

    #[test]
    fn what_the_runtime_does_not_specify_is_not_desired() {
        assert_eq!(of_runtime(&resources(0, 0), AT), []);
        let without_quota = cri::LinuxContainerResources { cpu_shares: 512, ..resources(0, 0) };
        assert_eq!(
            wanted(&of_runtime(&without_quota, AT)),
            [(Resource::CpuWeight, Wanted::Shares(512)), (Resource::Cpu, Wanted::NoQuotaSent)]
        );
        let all = cri::LinuxContainerResources {
            cpu_shares: 256,
            unified: [("memory.swap.max", "0"), ("memory.high", "max"), ("memory.low", "7")]
                .map(|(key, text)| (key.to_owned(), text.to_owned()))
                .into(),
            ..resources(-1, 4096)
        };
        assert_eq!(
            wanted(&of_runtime(&all, AT)),
            [
                (Resource::Cpu, Wanted::Quota(cpu(Bound::Unlimited))),
                (Resource::CpuWeight, Wanted::Shares(256)),
                (Resource::Memory, Wanted::Memory(Bound::At(4096))),
                (Resource::MemoryHigh, Wanted::Memory(Bound::Unlimited)),
                (Resource::Swap, Wanted::Memory(Bound::At(0))),
            ]
        );
    }

    #[test]
    fn the_least_and_the_largest_numbers_are_limits_or_none() {
        let all = |number: i64| cri::LinuxContainerResources {
            cpu_period: number,
            cpu_quota: number,
            cpu_shares: number,
            memory_limit_in_bytes: number,
            unified: [("memory.high".to_owned(), number.to_string())].into(),
        };
        let memory = |bound| (Resource::Memory, Wanted::Memory(bound));
        let unlimited = CpuMax { quota: Bound::Unlimited, period: CpuMax::DEFAULT_PERIOD };
        assert_eq!(
            wanted(&of_runtime(&all(i64::MIN), AT)),
            [(Resource::Cpu, Wanted::Quota(unlimited)), memory(Bound::Unlimited)]
        );
        let most = i64::MAX.unsigned_abs();
        assert_eq!(
            wanted(&of_runtime(&all(i64::MAX), AT)),
            [
                (Resource::Cpu, Wanted::Quota(CpuMax { quota: Bound::At(most), period: most })),
                (Resource::CpuWeight, Wanted::Shares(most)),
                memory(Bound::At(most)),
                (Resource::MemoryHigh, Wanted::Memory(Bound::At(most))),
            ]
        );
    }

    #[test]
    fn a_request_is_desired_as_by_the_runtime_and_for_a_pod_at_least() {
        let request = proto::CriResources {
            cpu_period: 100_000,
            cpu_quota: 50_000,
            cpu_shares: 512,
            memory_limit_in_bytes: 4096,
            memory_swap_max: "0".to_owned(),
            memory_high: "2048".to_owned(),
        };
        let limits = of_request(&request, AT);
        assert!(limits.iter().all(|(_, limit)| limit.source == Source::CriRequest && limit.at == AT));
        assert_eq!(
            wanted(&limits),
            [
                (Resource::Cpu, Wanted::Quota(cpu(Bound::At(50_000)))),
                (Resource::CpuWeight, Wanted::Shares(512)),
                (Resource::Memory, Wanted::Memory(Bound::At(4096))),
                (Resource::MemoryHigh, Wanted::Memory(Bound::At(2048))),
                (Resource::Swap, Wanted::Memory(Bound::At(0))),
            ]
        );
        assert_eq!(
            wanted(&of_pod_request(&request, AT)),
            [
                (Resource::Cpu, Wanted::QuotaAtLeast(cpu(Bound::At(50_000)))),
                (Resource::Memory, Wanted::MemoryAtLeast(Bound::At(4096))),
            ]
        );
        assert_eq!(of_request(&proto::CriResources::default(), AT), []);
    }

    #[test]
    fn a_pod_needs_the_sum_of_its_containers_if_all_are_known() {
        let one = of_runtime(&resources(50_000, 4096), AT);
        let two = of_runtime(&resources(10_000, 8192), AT);
        assert_eq!(
            wanted(&of_pod(Source::Runtime, &[one.clone(), two])),
            [
                (Resource::Cpu, Wanted::QuotaAtLeast(cpu(Bound::At(60_000)))),
                (Resource::Memory, Wanted::MemoryAtLeast(Bound::At(12_288))),
            ]
        );
        let unspecified = of_runtime(&resources(0, 8192), AT);
        let of_both = of_pod(Source::Runtime, &[one.clone(), unspecified]);
        assert_eq!(wanted(&of_both), [(Resource::Memory, Wanted::MemoryAtLeast(Bound::At(12_288)))]);
        assert_eq!(of_pod(Source::Client, &[one]), [], "another source's word");
    }
}
