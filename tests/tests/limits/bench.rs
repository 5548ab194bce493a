//! The place of a series: a pod with a container, the kubelet's and everybody else's hands on its limits, and the daemon's
//! verdict after each step.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use kwitness::proto::v1::{self, VerdictKind, wanted};
use kwitness_tests::agent::Agent;
use kwitness_tests::cri::v1 as cri;
use kwitness_tests::environment::CgroupDriver;
use kwitness_tests::node::Node;
use kwitness_tests::pod::Pod;
use kwitness_tests::process;

pub(crate) const MIB: u64 = 1 << 20;
/// How long a good resize may take to be in force; in an emulated guest an update takes half a second.
const WAIT: u32 = 10_000;

/// The place.
pub(crate) struct Bench<'a> {
    pub(crate) node: &'a Node,
    pub(crate) agent: &'a Agent,
    pub(crate) pod: &'a Pod,
    pub(crate) container: String,
    /// The container's own cgroup.
    pub(crate) own: PathBuf,
    /// The pod's.
    pub(crate) around: PathBuf,
    done: Vec<String>,
}

/// Which limit a step is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// In bytes.
    Memory(u64),
    /// In thousandths.
    Cpu(u64),
    /// By the runtime's word.
    Weight,
}

impl Limit {
    fn file(self) -> &'static str {
        match self {
            Self::Memory(_) => "memory.max",
            Self::Cpu(_) => "cpu.max",
            Self::Weight => "cpu.weight",
        }
    }

    fn wanted(self) -> Option<v1::Wanted> {
        Some(match self {
            Self::Memory(bytes) => v1::Wanted { memory: Some(wanted::Memory::MemoryBytes(bytes)), cpu: None },
            Self::Cpu(milli) => v1::Wanted { memory: None, cpu: Some(wanted::Cpu::MilliCpu(milli)) },
            Self::Weight => return None,
        })
    }
}

impl<'a> Bench<'a> {
    pub(crate) async fn new(
        node: &'a Node,
        agent: &'a Agent,
        pod: &'a Pod,
        container: String,
    ) -> Result<Self> {
        let path = process::cgroup_path(node.pid(&container).await?)?;
        // crun's processes are one level below.
        let path = path.strip_suffix("/container").unwrap_or(&path);
        let own = node.cgroup_directory(path);
        let around = own.parent().context("a container's cgroup without a parent")?.to_owned();
        Ok(Self { node, agent, pod, container, own, around, done: Vec::new() })
    }

    /// As the kubelet resizes a container.
    pub(crate) async fn update(&self, limit: Limit) -> Result<()> {
        let mut linux = cri::LinuxContainerResources::default();
        match limit {
            Limit::Memory(bytes) => linux.memory_limit_in_bytes = i64::try_from(bytes)?,
            Limit::Cpu(milli) => {
                linux.cpu_period = 100_000;
                linux.cpu_quota = i64::try_from((milli * 100).max(1000))?;
            }
            Limit::Weight => bail!("give shares with `update_to`"),
        }
        self.update_to(linux).await
    }

    /// Any update.
    pub(crate) async fn update_to(&self, linux: cri::LinuxContainerResources) -> Result<()> {
        let request =
            cri::UpdateContainerResourcesRequest { container_id: self.container.clone(), linux: Some(linux) };
        self.node.cri().update_container_resources(request).await.map(drop)
    }

    /// As the kubelet resizes a pod: through systemd where systemd owns the cgroup.
    pub(crate) fn resize_pod(&self, limit: Limit) -> Result<()> {
        match (self.node.driver(), limit) {
            (CgroupDriver::Cgroupfs, Limit::Memory(bytes)) => {
                write(&self.around.join("memory.max"), &bytes.to_string())
            }
            (CgroupDriver::Cgroupfs, Limit::Cpu(milli)) => {
                write(&self.around.join("cpu.max"), &format!("{} 100000", milli * 100))
            }
            (CgroupDriver::Systemd, Limit::Memory(bytes)) => self.set_property(&format!("MemoryMax={bytes}")),
            (CgroupDriver::Systemd, Limit::Cpu(milli)) => {
                self.set_property(&format!("CPUQuota={}%", milli.div_ceil(10)))
            }
            (_, Limit::Weight) => bail!("no test gives a pod a weight"),
        }
    }

    fn set_property(&self, property: &str) -> Result<()> {
        let slice = self.pod.cgroup.rsplit('/').next().unwrap_or_default();
        process::run(Command::new("systemctl").args(["set-property", "--runtime", slice, property])).map(drop)
    }

    /// The verdict on that limit of the container, without waiting.
    pub(crate) async fn now(
        &mut self,
        step: &str,
        limit: Limit,
        expected: VerdictKind,
    ) -> Result<v1::Verdict> {
        self.verdict(step, limit, 0, expected).await
    }

    /// The verdict on a limit that is waited for.
    pub(crate) async fn in_force(&mut self, step: &str, limit: Limit) -> Result<v1::Verdict> {
        self.verdict(step, limit, WAIT, VerdictKind::InForce).await
    }

    /// The verdict after waiting so long.
    pub(crate) async fn verdict(
        &mut self,
        step: &str,
        limit: Limit,
        wait_ms: u32,
        expected: VerdictKind,
    ) -> Result<v1::Verdict> {
        let answer = self.ask(limit.wanted(), wait_ms).await.with_context(|| format!("step \"{step}\""))?;
        let all = answer.verdicts.into_iter().filter_map(|of| of.verdict);
        let verdict = all
            .filter(|verdict| {
                verdict.cgroup.as_ref().is_some_and(|of| of.role() == v1::CgroupRole::Container)
            })
            .find(|verdict| verdict.file == limit.file())
            .with_context(|| format!("step \"{step}\": no verdict on {}", limit.file()))?;
        println!("  {:>2} {step}: {:?}: {}", self.done.len() + 1, verdict.verdict(), verdict.reason);
        ensure!(
            verdict.verdict() == expected,
            "step \"{step}\": {:?}, not {expected:?}, for {}\n{verdict:?}",
            verdict.verdict(),
            verdict.reason
        );
        self.done.push(step.to_owned());
        Ok(verdict)
    }

    pub(crate) async fn ask(
        &self,
        wanted: Option<v1::Wanted>,
        wait_ms: u32,
    ) -> Result<v1::VerifyResponse, tonic::Status> {
        let filter = v1::Filter { containers: vec![self.container.clone()], ..Default::default() };
        self.agent.verify(v1::VerifyRequest { filter: Some(filter), wanted, wait_ms }).await
    }

    /// The processes in the container.
    pub(crate) fn pids(&self) -> Result<Vec<u32>> {
        let inner = self.own.join("container");
        let directory = if inner.is_dir() { inner } else { self.own.clone() };
        let text = fs::read_to_string(directory.join("cgroup.procs")).context("read cgroup.procs")?;
        text.lines().map(|line| line.parse().context("a pid")).collect()
    }

    /// Counts what was done besides [`Self::verdict`].
    pub(crate) fn done(&mut self, step: &str) {
        println!("  {:>2} {step}", self.done.len() + 1);
        self.done.push(step.to_owned());
    }

    /// How many steps were done.
    pub(crate) fn steps(&self) -> usize {
        self.done.len()
    }
}

/// Somebody's own write to a limit.
pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {text} to {}", path.display()))
}

/// Waits until a number in a file passes.
pub(crate) async fn number(path: &Path, accept: impl Fn(u64) -> bool) -> Result<u64> {
    process::wait_for(&format!("{}", path.display()), Duration::from_secs(60), async || {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let number: u64 = text.trim().parse().context("a number")?;
        Ok(accept(number).then_some(number))
    })
    .await
}

impl Bench<'_> {
    /// The verdict on a limit, whatever it is.
    pub(crate) async fn ask_file(&self, limit: Limit) -> Result<v1::Verdict> {
        let answer = self.ask(limit.wanted(), 0).await.context("call Verify")?;
        let mut all = answer.verdicts.into_iter().filter_map(|of| of.verdict);
        all.find(|verdict| verdict.file == limit.file())
            .with_context(|| format!("no verdict on {}", limit.file()))
    }
}
