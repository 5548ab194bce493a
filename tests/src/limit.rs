//! A limit of a container: in a request to Kubernetes, in one to the daemon to verify it, and in the answer.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result};
use kwitness_api::proto::{Filter, Verdict, VerifyRequest, VerifyResponse, Wanted, wanted};
use serde_json::{Value, json};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Of memory, in bytes.
    Memory(u64),
    /// Of processors, in thousandths of one.
    MilliCpu(u64),
}

impl Limit {
    /// `limits` of a container's resources with this one alone.
    pub fn resources(self) -> Value {
        match self {
            Self::Memory(bytes) => json!({ "memory": bytes.to_string() }),
            Self::MilliCpu(amount) => json!({ "cpu": format!("{amount}m") }),
        }
    }

    /// Asks whether it is in force in a container, at every level; the answer comes when it is, or after `wait`.
    pub fn verify(self, id: &str, wait: Duration) -> VerifyRequest {
        let wanted = match self {
            Self::Memory(bytes) => Wanted { memory: Some(wanted::Memory::MemoryBytes(bytes)), cpu: None },
            Self::MilliCpu(amount) => Wanted { cpu: Some(wanted::Cpu::MilliCpu(amount)), memory: None },
        };
        VerifyRequest {
            filter: Some(Filter { containers: vec![id.to_owned()], ..Filter::default() }),
            wanted: Some(wanted),
            // The daemon's own bound is lower.
            wait_ms: u32::try_from(wait.as_millis()).unwrap_or(u32::MAX),
            prove_ms: 0,
        }
    }

    pub fn verdict(self, answer: VerifyResponse) -> Result<Verdict> {
        let file = match self {
            Self::Memory(_) => "memory.max",
            Self::MilliCpu(_) => "cpu.max",
        };
        let mut verdicts = answer.verdicts.into_iter().filter_map(|of| of.verdict);
        verdicts.find(|verdict| verdict.file == file).with_context(|| format!("no verdict on {file}"))
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(bytes) => write!(f, "{} MiB", bytes >> 20),
            Self::MilliCpu(amount) => write!(f, "{amount}m CPU"),
        }
    }
}
