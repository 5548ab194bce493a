//! Where a series takes place: a pod with a container, whoever writes its limits, and the daemon's
//! verdict after each step.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use kwitness_api::proto::{self, VerdictKind};

use super::{Account, Stage};
use crate::agent::Agent;
use crate::cri::v1 as cri;
use crate::environment::CgroupDriver;
use crate::node::Node;
use crate::pod::Pod;
use crate::{cgroup, limit, process};

pub(super) const MIB: u64 = 1 << 20;
/// How long a good resize may take to be in force; in an emulated guest an update takes half a second.
const WAIT: u32 = 10_000;

pub(super) struct ResizeContext<'a> {
    pub(super) node: &'a Node,
    pub(super) agent: &'a Agent,
    pub(super) pod: &'a Pod,
    pub(super) container: String,
    /// The container's own cgroup.
    pub(super) own: PathBuf,
    /// The pod's.
    pub(super) around: PathBuf,
    pub(super) account: &'a mut Account,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limit {
    /// In bytes.
    Memory(u64),
    /// In thousandths.
    Cpu(u64),
    /// As the runtime was sent it.
    Weight,
    /// The amount from which on memory is hard to get, likewise.
    High,
}

impl Limit {
    pub(super) fn what(self) -> &'static str {
        match self {
            Self::Memory(_) => "memory",
            Self::Cpu(_) => "CPU",
            Self::Weight => "weight",
            Self::High => "memory.high",
        }
    }

    pub(super) fn file(self) -> &'static str {
        match self {
            Self::Memory(_) => "memory.max",
            Self::Cpu(_) => "cpu.max",
            Self::Weight => "cpu.weight",
            Self::High => "memory.high",
        }
    }

    pub(super) fn wanted(self) -> Option<proto::Wanted> {
        match self {
            Self::Memory(bytes) => Some(limit::wanted(Some(bytes), None)),
            Self::Cpu(milli) => Some(limit::wanted(None, Some(milli))),
            Self::Weight | Self::High => None,
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(bytes) if bytes % MIB == 0 => write!(f, "memory {} MiB", bytes / MIB),
            Self::Memory(bytes) => write!(f, "memory {bytes} B"),
            Self::Cpu(milli) => write!(f, "CPU {milli}m"),
            Self::Weight => f.write_str("CPU weight"),
            Self::High => f.write_str("memory.high"),
        }
    }
}

impl<'a> ResizeContext<'a> {
    pub(super) async fn new(
        Stage { node, agent, .. }: Stage<'a>,
        pod: &'a Pod,
        container: String,
        account: &'a mut Account,
    ) -> Result<Self> {
        let own = node.own_cgroup_of(&container).await?;
        let around = own.parent().context("a container's cgroup without a parent")?.to_owned();
        Ok(Self { node, agent, pod, container, own, around, account })
    }

    /// As the kubelet resizes a container.
    pub(super) async fn update(&self, limit: Limit) -> Result<()> {
        let mut linux = cri::LinuxContainerResources::default();
        match limit {
            Limit::Memory(bytes) => linux.memory_limit_in_bytes = i64::try_from(bytes)?,
            Limit::Cpu(milli) => {
                linux.cpu_period = 100_000;
                linux.cpu_quota = i64::try_from((milli * 100).max(1000))?;
            }
            Limit::Weight | Limit::High => bail!("give it with `update_to`"),
        }
        self.account.requested(&format!("requested from the runtime: {limit}"));
        self.update_to(linux).await
    }

    pub(super) async fn update_to(&self, linux: cri::LinuxContainerResources) -> Result<()> {
        if linux.cpu_shares > 0 {
            self.account.requested(&format!("requested from the runtime: {} CPU shares", linux.cpu_shares));
        }
        let request =
            cri::UpdateContainerResourcesRequest { container_id: self.container.clone(), linux: Some(linux) };
        self.node.cri().update_container_resources(request).await.map(drop)
    }

    /// As the kubelet resizes a pod: through systemd where systemd owns the cgroup.
    pub(super) fn resize_pod(&self, limit: Limit) -> Result<()> {
        self.account.requested(&format!("the pod's cgroup gets, as by the kubelet: {limit}"));
        match (self.node.driver(), limit) {
            (CgroupDriver::Cgroupfs, Limit::Memory(bytes)) => {
                cgroup::write(&self.around, "memory.max", bytes)
            }
            (CgroupDriver::Cgroupfs, Limit::Cpu(milli)) => {
                cgroup::write(&self.around, "cpu.max", format_args!("{} 100000", milli * 100))
            }
            (CgroupDriver::Systemd, Limit::Memory(bytes)) => self.set_property(&format!("MemoryMax={bytes}")),
            (CgroupDriver::Systemd, Limit::Cpu(milli)) => {
                self.set_property(&format!("CPUQuota={}%", milli.div_ceil(10)))
            }
            (_, Limit::Weight | Limit::High) => bail!("no test gives a pod a {limit}"),
        }
    }

    fn set_property(&self, property: &str) -> Result<()> {
        let slice = self.pod.cgroup.rsplit('/').next().unwrap_or_default();
        process::run(Command::new("systemctl").args(["set-property", "--runtime", slice, property])).map(drop)
    }

    /// Another process writes to a limit, past all who should.
    pub(super) fn meddle(&mut self, directory: &Path, file: &str, text: &str) -> Result<()> {
        self.account
            .meddled(&format!("another process writes `{text}` to the {} {file}", self.whose(directory)));
        cgroup::write(directory, file, text)
    }

    /// Another process writes to a limit of the container, and to that of crun's inner cgroup, which has the same.
    pub(super) fn meddle_within(&mut self, file: &str, text: &str) -> Result<()> {
        for directory in [Some(self.own.clone()), self.inner()].into_iter().flatten() {
            self.meddle(&directory, file, text)?;
        }
        Ok(())
    }

    /// The cgroup that crun makes within a container's for systemd to keep out of.
    pub(super) fn inner(&self) -> Option<PathBuf> {
        Some(self.own.join("container")).filter(|inner| inner.is_dir())
    }

    /// What another process wrote is put right by hand.
    pub(super) fn mend(&self, directory: &Path, file: &str, text: &str) -> Result<()> {
        self.account.requested(&format!("`{text}` is written to the {} {file} again", self.whose(directory)));
        cgroup::write(directory, file, text)
    }

    fn whose(&self, directory: &Path) -> &'static str {
        if directory == self.own {
            "container's"
        } else if directory.starts_with(&self.own) {
            "inner cgroup's"
        } else if directory == self.around {
            "pod's"
        } else if Some(directory) == self.around.parent() {
            "class's"
        } else {
            "node's pods'"
        }
    }

    /// The verdict on that limit of the container, without waiting.
    pub(super) async fn now(
        &mut self,
        step: &str,
        limit: Limit,
        expected: VerdictKind,
    ) -> Result<proto::Verdict> {
        self.verdict(step, limit, 0, expected).await
    }

    pub(super) async fn in_force(&mut self, step: &str, limit: Limit) -> Result<proto::Verdict> {
        self.verdict(step, limit, WAIT, VerdictKind::InForce).await
    }

    pub(super) async fn verdict(
        &mut self,
        step: &str,
        limit: Limit,
        wait_ms: u32,
        expected: VerdictKind,
    ) -> Result<proto::Verdict> {
        let verdict = self.file(limit, wait_ms).await.with_context(|| format!("step \"{step}\""))?;
        ensure!(
            self.account.judged(step, &verdict, expected).await,
            "step \"{step}\": {:?}, not {expected:?}, for {}\n{verdict:?}",
            verdict.verdict(),
            verdict.reason
        );
        Ok(verdict)
    }

    /// The verdict on the container's limit, whatever it is.
    pub(super) async fn file(&self, limit: Limit, wait_ms: u32) -> Result<proto::Verdict> {
        limit::own(self.ask(limit.wanted(), wait_ms).await.context("call Verify")?, limit.file())
    }

    pub(super) async fn ask(
        &self,
        wanted: Option<proto::Wanted>,
        wait_ms: u32,
    ) -> Result<proto::VerifyResponse, tonic::Status> {
        let request = limit::of_container(&self.container);
        self.agent.verify(proto::VerifyRequest { wanted, wait_ms, ..request }).await
    }

    pub(super) fn pids(&self) -> Result<Vec<u32>> {
        cgroup::pids(&self.inner().unwrap_or_else(|| self.own.clone()))
    }
}
