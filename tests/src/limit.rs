//! A limit of a container: in a request to Kubernetes, in one to the daemon to verify it, and in the answer.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result};
use kwitness_api::proto::{CgroupRole, Filter, Verdict, VerifyRequest, VerifyResponse, Wanted, wanted};
use serde_json::{Value, json};
use tonic::Code;

use crate::agent::Agent;
use crate::process::wait_for;

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
            Self::Memory(bytes) => wanted(Some(bytes), None),
            Self::MilliCpu(amount) => wanted(None, Some(amount)),
        };
        // The daemon's own bound is lower.
        let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
        VerifyRequest { wanted: Some(wanted), wait_ms, ..of_container(id) }
    }

    pub fn verdict(self, answer: VerifyResponse) -> Result<Verdict> {
        let file = match self {
            Self::Memory(_) => "memory.max",
            Self::MilliCpu(_) => "cpu.max",
        };
        own(answer, file)
    }
}

/// A request for the verdicts on the limits of a container, as they are.
pub fn of_container(id: &str) -> VerifyRequest {
    let filter = Filter { containers: vec![id.to_owned()], ..Filter::default() };
    VerifyRequest { filter: Some(filter), ..VerifyRequest::default() }
}

/// The same for a pod, by its name or uid, and its containers.
pub fn of_pod(pod: &str) -> VerifyRequest {
    let filter = Filter { pods: vec![pod.to_owned()], ..Filter::default() };
    VerifyRequest { filter: Some(filter), ..VerifyRequest::default() }
}

/// Limits of memory, in bytes, and of processors, in thousandths of one.
pub fn wanted(memory: Option<u64>, milli_cpu: Option<u64>) -> Wanted {
    Wanted { memory: memory.map(wanted::Memory::MemoryBytes), cpu: milli_cpu.map(wanted::Cpu::MilliCpu) }
}

/// The verdict on a file of the container's own cgroup.
pub fn own(answer: VerifyResponse, file: &str) -> Result<Verdict> {
    let is_own = |verdict: &Verdict| {
        let role = verdict.cgroup.as_ref().map(|cgroup| cgroup.role());
        verdict.file == file && role == Some(CgroupRole::Container)
    };
    let found = answer.verdicts.into_iter().filter_map(|of| of.verdict).find(is_own);
    found.with_context(|| format!("no verdict on {file}"))
}

/// The verdict on a container's memory limit, as soon as the daemon knows the container and the verdict is so.
pub async fn judged(
    agent: &Agent,
    request: &VerifyRequest,
    what: &str,
    within: Duration,
    is_so: impl Fn(&Verdict) -> bool,
) -> Result<Verdict> {
    wait_for(what, within, async || {
        let answer = match agent.verify(request.clone()).await {
            Err(status) if status.code() == Code::NotFound => return Ok(None),
            answer => answer.context("call Verify")?,
        };
        Ok(own(answer, "memory.max").ok().filter(&is_so))
    })
    .await
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(bytes) => write!(f, "{} MiB", bytes >> 20),
            Self::MilliCpu(amount) => write!(f, "{amount}m CPU"),
        }
    }
}
