//! Quantities and durations as the command line takes them, in Kubernetes' notation.

use std::time::Duration;

use kwitness_api::proto::wanted::{Cpu, Memory};
use kwitness_core::verdicts::quantity;

use crate::text::duration;

/// The longest that the daemon waits.
const WAIT_MAX: Duration = Duration::from_secs(600);
/// The shortest that says anything of a quota's period, and the longest that the daemon watches.
const PROVE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));

/// Between two samples of usage: the least and the most that the daemon gives.
const INTERVAL: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

/// A memory limit.
pub fn memory(text: &str) -> Result<Memory, String> {
    match text {
        "max" => Ok(Memory::MemoryUnlimited(true)),
        _ => quantity::whole(text).map(Memory::MemoryBytes).map_err(|error| error.to_string()),
    }
}

/// A CPU limit.
pub fn cpu(text: &str) -> Result<Cpu, String> {
    match text {
        "max" => Ok(Cpu::CpuUnlimited(true)),
        _ => match quantity::milli(text).map_err(|error| error.to_string())? {
            0 => Err("the least CPU limit is \"1m\"; for no limit, \"max\"".to_owned()),
            milli => Ok(Cpu::MilliCpu(milli)),
        },
    }
}

/// How long is waited.
pub fn wait(text: &str) -> Result<Duration, String> {
    duration(text)
        .filter(|wait| *wait <= WAIT_MAX)
        .ok_or_else(|| "not a duration from 0s to 10m (\"500ms\", \"10s\", \"1m30s\")".to_owned())
}

/// How long usage is watched.
pub fn prove(text: &str) -> Result<Duration, String> {
    duration(text)
        .filter(|prove| (PROVE.0..=PROVE.1).contains(prove))
        .ok_or_else(|| "not a duration from 100ms to 1m (\"5s\")".to_owned())
}

/// The time between two samples of usage.
pub fn interval(text: &str) -> Result<Duration, String> {
    duration(text)
        .filter(|interval| (INTERVAL.0..=INTERVAL.1).contains(interval))
        .ok_or_else(|| "not a duration from 500ms to 1m (\"1s\")".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_given_as_kubernetes_has_them() {
        assert_eq!(memory("512Mi"), Ok(Memory::MemoryBytes(512 << 20)));
        assert_eq!(memory("max"), Ok(Memory::MemoryUnlimited(true)));
        assert_eq!(cpu("1.5"), Ok(Cpu::MilliCpu(1500)));
        assert_eq!(cpu("max"), Ok(Cpu::CpuUnlimited(true)));
        assert!(cpu("0").unwrap_err().contains("max"));
        assert!(memory("512MB").is_err());
        assert_eq!(wait("10s"), Ok(Duration::from_secs(10)));
        assert!(wait("11m").is_err() && wait("x").is_err());
        assert!(interval("500ms").is_ok() && interval("499ms").is_err() && interval("61s").is_err());
        assert!(prove("100ms").is_ok() && prove("99ms").is_err() && prove("61s").is_err());
    }
}
