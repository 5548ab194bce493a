//! A process that fills its container's memory as fast as it can, and how that ends.

use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::cgroup;
use crate::guard::{Guard, memory_event};
use crate::node::Node;
use crate::out::{KEEP, LEAVE_CODE, Out, until};
use crate::pod::{ContainerSpec, Pod};

pub const LIMIT: u64 = 32 << 20;
pub const SIZE: u64 = 48_000_000;
pub const POD: &str = "greedy";
/// One raise is enough. A busy machine may need more than the longest hold for it in an emulated guest: the process is held so
/// early that the raise, which takes effect in any case, then comes while it fills the rest.
pub const POLICY: &str = "[[rule]]\npod = \"greedy\"\nthreshold = \"50%\"\nstep = \"96Mi\"\nceiling = \"256Mi\"\nlongest_hold = \"10s\"\n";

/// The exit code of a killed process, as a shell gives it: 128 and SIGKILL's number.
pub const KILLED: i32 = 137;

/// How long the hog may take, in an emulated guest on a machine that does other work.
const WORK_LIMIT: Duration = Duration::from_secs(300);

const READY_LIMIT: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code as a shell gives it: 137 after SIGKILL.
    pub code: i32,
    /// `oom_kill` of the container's `memory.events`.
    pub oom_kills: u64,
}

/// [`POLICY`], and what is raised is given back.
pub fn returning_policy() -> String {
    format!("{POLICY}give_back_after = \"10s\"\n")
}

/// The hog's memory is that of `tail`, which looks for the end of a line in what it reads.
pub fn command() -> String {
    format!("head -c {SIZE} /dev/zero | tail >/dev/null")
}

/// A container with the hog's limit that runs a line of shell.
pub fn limited(name: &str, line: &str, out: &Out) -> ContainerSpec {
    limited_to(LIMIT, name, line, out)
}

pub fn limited_to(limit: u64, name: &str, line: &str, out: &Out) -> ContainerSpec {
    let mut spec = ContainerSpec::shell(name, line).limited(limit);
    spec.mounts = vec![(out.path().display().to_string(), "/out".to_owned())];
    spec
}

/// A hog that is the only process of its container: what fills it comes through a pipe.
#[derive(Debug)]
pub struct Piped {
    pub id: String,
    out: Out,
}

impl Piped {
    /// Starts it, and waits until it can be filled.
    pub async fn start(node: &Node, pod: &Pod, name: &str) -> Result<Self> {
        let out = Out::make()?;
        let id = node.run(pod, &limited(name, KEEP, &out)).await?;
        out.wait("gate", READY_LIMIT).await?;
        Ok(Self { id, out })
    }

    /// Fills it, by a process outside of the container.
    pub fn fill(&self) -> Result<Child> {
        let line = format!("exec head -c {SIZE} /dev/zero >{}", self.out.at("gate").display());
        Command::new("sh").args(["-c", &line]).spawn().context("start sh")
    }
}

/// A hog below a shell that outlives it, in a container of its own: it keeps what it has taken until it may end.
#[derive(Debug)]
pub struct Keeping {
    pub id: String,
    pub cgroup: PathBuf,
    out: Out,
}

impl Keeping {
    /// Makes the container, and waits until the guard has armed it. Nothing is taken yet.
    pub async fn start(node: &Node, pod: &Pod, name: &str, guard: &Guard) -> Result<Self> {
        let out = Out::make()?;
        let (go, end) = (until("go"), until("end"));
        let line =
            format!("{go}; (head -c {SIZE} /dev/zero; : >/out/taken; {end}) | tail >/dev/null; {LEAVE_CODE}");
        let id = node.run(pod, &limited(name, &line, &out)).await?;
        let cgroup = node.cgroup_of(&id).await?;
        guard.wait_armed(1).await?;
        Ok(Self { id, cgroup, out })
    }

    /// Has it take its memory, and waits until it has.
    pub async fn take(&self) -> Result<()> {
        self.out.signal("go")?;
        self.out.wait("taken", WORK_LIMIT).await
    }

    /// Has it end; its exit code.
    pub async fn end(&self) -> Result<i32> {
        self.out.signal("end")?;
        self.out.code(WORK_LIMIT).await
    }

    pub async fn wait_limit(&self, limit: u64) -> Result<()> {
        cgroup::wait_number(&self.cgroup, "memory.max", WORK_LIMIT, |now| now == limit).await.map(drop)
    }
}

/// Runs the hog in a container of its own, below a shell that outlives it. It starts when the guard, if there is one, has armed
/// the container.
pub async fn work(node: &Node, pod: &Pod, name: &str, guard: Option<&Guard>) -> Result<Ended> {
    let out = Out::make()?;
    let line = format!("{}; {}; {LEAVE_CODE}", until("go"), command());
    let id = node.run(pod, &limited(name, &line, &out)).await?;
    let cgroup = node.cgroup_of(&id).await?;
    if let Some(guard) = guard {
        guard.wait_armed(1).await?;
    }
    out.signal("go")?;
    let code = out.code(WORK_LIMIT).await?;
    let ended = Ended { code, oom_kills: memory_event(&cgroup, "oom_kill")? };
    node.stop_container(&id, 0).await?;
    Ok(ended)
}
