//! A process that fills its container's memory as fast as it can, and how that ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::guard::{Guard, memory_event};
use crate::node::Node;
use crate::pod::{ContainerSpec, Pod};
use crate::process::wait_for;

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

/// A container with the hog's limit that runs a line of shell, with a directory of the node at `/out`.
pub fn limited(name: &str, line: &str, directory: &Path) -> ContainerSpec {
    limited_to(LIMIT, name, line, directory)
}

pub fn limited_to(limit: u64, name: &str, line: &str, directory: &Path) -> ContainerSpec {
    let mut spec = ContainerSpec::shell(name, line).limited(limit);
    spec.mounts = vec![(directory.display().to_string(), "/out".to_owned())];
    spec
}

/// A hog that is the only process of its container: what fills it comes through a pipe.
#[derive(Debug)]
pub struct Piped {
    pub id: String,
    directory: TempDir,
}

impl Piped {
    /// Starts it, and waits until the guard has armed its container.
    pub async fn start(node: &Node, pod: &Pod, name: &str, guard: &Guard) -> Result<Self> {
        let directory = tempfile::tempdir_in("/run").context("make a directory for the pipe")?;
        let line = "mkfifo /out/gate; exec tail </out/gate >/dev/null";
        let id = node.run(pod, &limited(name, line, directory.path())).await?;
        let piped = Self { id, directory };
        guard.wait_armed(1).await?;
        wait_for("the pipe", READY_LIMIT, async || Ok(piped.gate().exists().then_some(()))).await?;
        Ok(piped)
    }

    /// Fills it, by a process outside of the container.
    pub fn fill(&self) -> Result<Child> {
        let line = format!("exec head -c {SIZE} /dev/zero >{}", self.gate().display());
        Command::new("sh").args(["-c", &line]).spawn().context("start sh")
    }

    fn gate(&self) -> PathBuf {
        self.directory.path().join("gate")
    }
}

/// A hog below a shell that outlives it, in a container of its own: it keeps what it has taken until it may end.
#[derive(Debug)]
pub struct Keeping {
    pub id: String,
    pub cgroup: PathBuf,
    directory: TempDir,
}

impl Keeping {
    /// Makes the container, and waits until the guard has armed it. Nothing is taken yet.
    pub async fn start(node: &Node, pod: &Pod, name: &str, guard: &Guard) -> Result<Self> {
        let directory = tempfile::tempdir_in("/run").context("make a directory for the hog")?;
        let wait = |file: &str| format!("until [ -e /out/{file} ]; do sleep 0.1; done");
        let (go, end) = (wait("go"), wait("end"));
        let line = format!(
            "{go}; (head -c {SIZE} /dev/zero; : >/out/taken; {end}) | tail >/dev/null; echo $? >/out/code.new; \
             mv /out/code.new /out/code; exec sleep 1000"
        );
        let id = node.run(pod, &limited(name, &line, directory.path())).await?;
        let cgroup = node.cgroup_of(&id).await?;
        guard.wait_armed(1).await?;
        Ok(Self { id, cgroup, directory })
    }

    /// Has it take its memory, and waits until it has.
    pub async fn take(&self) -> Result<()> {
        self.signal("go", "taken").await.map(drop)
    }

    /// Has it end; its exit code.
    pub async fn end(&self) -> Result<i32> {
        let code = self.signal("end", "code").await?;
        code.trim().parse().with_context(|| format!("the hog's exit code `{code}`"))
    }

    pub async fn wait_limit(&self, limit: u64) -> Result<()> {
        let file = self.cgroup.join("memory.max");
        let what = format!("a limit of {limit} bytes");
        wait_for(&what, WORK_LIMIT, async || {
            let now = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
            Ok((now.trim() == limit.to_string()).then_some(()))
        })
        .await
    }

    async fn signal(&self, what: &str, answer: &str) -> Result<String> {
        fs::write(self.directory.path().join(what), "")
            .with_context(|| format!("signal {what} to the hog"))?;
        let answer = self.directory.path().join(answer);
        wait_for("the hog", WORK_LIMIT, async || Ok(answer.exists().then_some(()))).await?;
        fs::read_to_string(&answer).context("read the hog's answer")
    }
}

/// Runs the hog in a container of its own, below a shell that outlives it. It starts when the guard, if there is one, has armed
/// the container.
pub async fn work(node: &Node, pod: &Pod, name: &str, guard: Option<&Guard>) -> Result<Ended> {
    let directory = tempfile::tempdir_in("/run").context("make a directory for the hog's exit code")?;
    let line = format!(
        "until [ -e /out/go ]; do sleep 0.1; done; {}; echo $? >/out/code.new; mv /out/code.new /out/code; exec sleep 1000",
        command()
    );
    let id = node.run(pod, &limited(name, &line, directory.path())).await?;
    let cgroup = node.cgroup_of(&id).await?;
    if let Some(guard) = guard {
        guard.wait_armed(1).await?;
    }
    fs::write(directory.path().join("go"), "").context("start the hog")?;
    let code = directory.path().join("code");
    wait_for("the hog's end", WORK_LIMIT, async || Ok(code.exists().then_some(()))).await?;
    let code = fs::read_to_string(&code).context("read the hog's exit code")?;
    let code = code.trim().parse().with_context(|| format!("the hog's exit code `{code}`"))?;
    let ended = Ended { code, oom_kills: memory_event(&cgroup, "oom_kill")? };
    node.stop_container(&id, 0).await?;
    Ok(ended)
}
