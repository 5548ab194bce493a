//! The limits that a `Verify` call names itself, as desired limits. Checks them; never judges.

use kwitness_core::model::{Bound, DesiredLimit, KernelTime, Resource, Source, Wanted};

use crate::reported::desired::Desired;
use kwitness_api::proto;
use proto::wanted::{Cpu, Memory};

/// Desired since that time.
///
/// # Errors
/// One of them means nothing; the message names the field.
pub(super) fn read(wanted: &proto::Wanted, at: KernelTime) -> Result<Vec<Desired>, &'static str> {
    let cpu = match &wanted.cpu {
        Some(Cpu::MilliCpu(0)) => return Err("`milli_cpu` is 0; no limit is `cpu_unlimited`"),
        Some(Cpu::MilliCpu(milli)) => Some(Wanted::MilliCpu(*milli)),
        // The kubelet's word for no limit.
        Some(Cpu::CpuUnlimited(_)) => Some(Wanted::MilliCpu(0)),
        None => None,
    };
    let memory = wanted.memory.as_ref().map(|memory| match memory {
        Memory::MemoryBytes(bytes) => Wanted::Memory(Bound::At(*bytes)),
        Memory::MemoryUnlimited(_) => Wanted::Memory(Bound::Unlimited),
    });
    let limit = |resource, wanted| (resource, DesiredLimit { source: Source::Client, at, wanted });
    let cpu = cpu.map(|wanted| limit(Resource::Cpu, wanted));
    Ok(cpu.into_iter().chain(memory.map(|wanted| limit(Resource::Memory, wanted))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(cpu: Option<Cpu>, memory: Option<Memory>) -> Result<Vec<(Resource, Wanted)>, &'static str> {
        let limits = read(&proto::Wanted { cpu, memory }, KernelTime(7))?;
        assert!(limits.iter().all(|(_, of)| (of.source, of.at) == (Source::Client, KernelTime(7))));
        Ok(limits.into_iter().map(|(resource, of)| (resource, of.wanted)).collect())
    }

    #[test]
    fn limits_and_no_limit_are_desired_and_zero_is_neither() {
        assert_eq!(wanted(None, None), Ok(vec![]));
        assert_eq!(
            wanted(Some(Cpu::MilliCpu(250)), Some(Memory::MemoryBytes(4096))),
            Ok(vec![
                (Resource::Cpu, Wanted::MilliCpu(250)),
                (Resource::Memory, Wanted::Memory(Bound::At(4096))),
            ])
        );
        assert_eq!(
            wanted(Some(Cpu::CpuUnlimited(true)), Some(Memory::MemoryUnlimited(true))),
            Ok(vec![
                (Resource::Cpu, Wanted::MilliCpu(0)),
                (Resource::Memory, Wanted::Memory(Bound::Unlimited)),
            ])
        );
        assert!(wanted(Some(Cpu::MilliCpu(0)), None).unwrap_err().contains("`milli_cpu`"));
    }
}
