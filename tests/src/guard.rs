//! `kwitness guard`, started as an operator would, with a policy of the test's.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kwitness_guard::status::{self, Status};

use crate::agent::Agent;
use crate::cgroup;
use crate::environment::Environment;
use crate::outage::Bpffs;
use crate::process::{self, Managed, Paused, wait_for};

/// A guest without hardware virtualization needs seconds for what a machine does in a tenth of one.
const LIMIT: Duration = Duration::from_secs(180);

/// A running guard.
#[derive(Debug)]
pub struct Guard {
    process: Managed,
    setup: Setup,
}

/// What stays when a guard ends and another is started.
#[derive(Debug)]
struct Setup {
    program: PathBuf,
    daemon: PathBuf,
    /// How it raises limits, as flags.
    raises_by: Vec<OsString>,
    directory: tempfile::TempDir,
    bpffs: Bpffs,
}

impl Setup {
    fn socket(&self) -> PathBuf {
        self.directory.path().join("guard.sock")
    }

    /// A guard with this policy that listens and pins there.
    fn command(&self, socket: &Path, pins: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("guard").arg("--socket").arg(&self.daemon).args(&self.raises_by);
        command.arg("--policy").arg(self.directory.path().join("policy.toml"));
        command.arg("--status-socket").arg(socket).arg("--pin-directory").arg(pins);
        command
    }

    /// Starts a guard and waits until it answers.
    async fn start(self) -> Result<Guard> {
        let command = self.command(&self.socket(), &self.bpffs.pins());
        let process = Managed::spawn("guard", command, &self.directory.path().join("log"))?;
        let mut guard = Guard { process, setup: self };
        let socket = guard.setup.socket();
        let answers = async || Ok(status::fetch(&socket).await.ok());
        guard.process.wait_for("the guard to answer", LIMIT, answers).await?;
        Ok(guard)
    }
}

impl Guard {
    /// Starts it and waits until it answers. `runtime` is where it raises limits.
    pub async fn start(
        environment: &Environment,
        agent: &Agent,
        policy: &str,
        runtime: &Path,
    ) -> Result<Self> {
        Self::start_with(environment, agent, policy, vec!["--runtime-endpoint".into(), runtime.into()]).await
    }

    /// Starts one that raises limits through the Kubernetes API, on the node of that name.
    pub async fn start_on_kubernetes(
        environment: &Environment,
        agent: &Agent,
        policy: &str,
        kubeconfig: &Path,
        node: &str,
    ) -> Result<Self> {
        let words = ["--kubernetes", "--node", node, "--kubeconfig"].map(OsString::from);
        let raises_by = words.into_iter().chain([kubeconfig.into()]).collect();
        Self::start_with(environment, agent, policy, raises_by).await
    }

    async fn start_with(
        environment: &Environment,
        agent: &Agent,
        policy: &str,
        raises_by: Vec<OsString>,
    ) -> Result<Self> {
        let directory = process::directory("guard")?;
        let file = directory.path().join("policy.toml");
        fs::write(&file, policy).context("write the policy")?;
        let setup = Setup {
            program: environment.kwitness(),
            daemon: agent.socket().to_owned(),
            raises_by,
            directory,
            bpffs: Bpffs::mount()?,
        };
        setup.start().await
    }

    /// Starts another one with the setup of one that has been killed.
    pub async fn start_again(self) -> Result<Self> {
        let Self { process, setup } = self;
        drop(process);
        setup.start().await
    }

    /// Starts a second one that shares nothing with it but the node, and gives what it said when it was refused.
    pub fn second(&self) -> Result<String> {
        let directory = tempfile::tempdir_in("/run").context("make a directory")?;
        let mut command =
            self.setup.command(&directory.path().join("guard.sock"), &self.setup.bpffs.pins().join("second"));
        let output = command.output().context("run a second guard")?;
        ensure!(output.status.code() == Some(1), "a second guard ended with {}", output.status);
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Starts another one with the setup of one that has been killed, with an error in its policy, and gives what it said.
    pub fn start_with_error(&self) -> Result<String> {
        let file = self.setup.directory.path().join("policy.toml");
        let policy = fs::read(&file).context("read the policy")?;
        fs::write(&file, "[[rule]]\nstap = \"1Mi\"\n").context("write a policy with an error")?;
        let output = self.setup.command(&self.setup.socket(), &self.setup.bpffs.pins()).output();
        fs::write(&file, policy).context("write the policy")?;
        let output = output.context("run a guard")?;
        ensure!(
            output.status.code() == Some(78),
            "a guard with an error in its policy ended with {}",
            output.status
        );
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// What it says of itself.
    pub async fn status(&self) -> Result<Status> {
        self.wait("the guard's status", |status| Some(status.clone())).await
    }

    /// Waits until its status passes. A request without an answer in time is sent again: a client gives up after two
    /// seconds, in which an emulated machine does little.
    pub async fn wait<T>(&self, what: &str, accept: impl Fn(&Status) -> Option<T>) -> Result<T> {
        let socket = self.setup.socket();
        let found = async || Ok(status::fetch(&socket).await.ok().and_then(|status| accept(&status)));
        let found = wait_for(what, LIMIT, found).await;
        found.with_context(|| self.process.log_tail())
    }

    /// Waits until so many containers are armed.
    pub async fn wait_armed(&self, count: usize) -> Result<()> {
        self.wait("armed containers", |status| (status.armed.len() == count).then_some(())).await
    }

    /// Waits until a process is held, and gives its pid.
    pub async fn wait_held(&self) -> Result<u32> {
        self.wait("a held process", |status| {
            status.armed.iter().find_map(|armed| armed.held.first().copied())
        })
        .await
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Kills it as the OOM killer would.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill(LIMIT)
    }

    /// Waits until it has ended by itself.
    pub fn wait_ended(&mut self) -> Result<ExitStatus> {
        self.process.wait(LIMIT)
    }

    /// Stops it as SIGSTOP does, until the answer is dropped.
    pub fn pause(&self) -> Result<Paused> {
        self.process.pause()
    }

    /// Ends it with SIGTERM; fails if it does not end well.
    pub fn stop(mut self) -> Result<()> {
        self.process.end(LIMIT)
    }

    /// Waits until its log, which is the watchdog's, too, has that text.
    pub async fn wait_log(&self, text: &str) -> Result<()> {
        let what = format!("`{text}` in the guard's log");
        let found =
            wait_for(&what, LIMIT, async || Ok(self.process.log()?.contains(text).then_some(()))).await;
        found.with_context(|| self.process.log_tail())
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        self.process.log_tail()
    }
}

/// The state of a process as in proc_pid_stat(5); none: it is gone.
fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Whether a process is stopped; none: it is gone.
pub fn is_stopped(pid: u32) -> Option<bool> {
    state(pid).map(|state| state == 'T')
}

/// Waits until a process has ended, whether its parent has waited for it or not.
pub async fn wait_ended(what: &str, pid: u32) -> Result<()> {
    wait_for(what, LIMIT, async || Ok(matches!(state(pid), None | Some('Z' | 'X')).then_some(()))).await
}

/// Waits until a process is stopped.
pub async fn wait_stopped(pid: u32) -> Result<()> {
    let what = format!("process {pid} to stop");
    wait_for(&what, LIMIT, async || Ok((is_stopped(pid) == Some(true)).then_some(()))).await
}

/// Waits until a process is not stopped, or gone.
pub async fn wait_continued(pid: u32) -> Result<()> {
    let what = format!("process {pid} to be continued");
    wait_for(&what, LIMIT, async || Ok((is_stopped(pid) != Some(true)).then_some(()))).await
}

/// A counter of a cgroup's `memory.events`.
pub fn memory_event(directory: &Path, name: &str) -> Result<u64> {
    cgroup::entry(directory, "memory.events", name)
}
