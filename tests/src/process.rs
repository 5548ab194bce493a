//! Processes: children with a log of their own, waiting with a limit, and what procfs says of any process.
//!
//! A [`Managed`] child never outlives its owner, and what goes wrong with one is shown with the end of its log.

use std::fs::{self, File};
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::{Process, Status, all_processes};
use tempfile::TempDir;

const LOG_TAIL_LINES: usize = 40;
const STOP_LIMIT: Duration = Duration::from_secs(10);
const LOG_MARK: &str = "---";

/// A child process whose output goes to a file.
#[derive(Debug)]
pub struct Managed {
    name: String,
    child: Killed,
    log: PathBuf,
}

impl Managed {
    pub fn spawn(name: &str, command: Command, log: &Path) -> Result<Self> {
        Self::spawn_with(name, command, Stdio::null(), log)
    }

    pub fn spawn_with(name: &str, mut command: Command, stdin: Stdio, log: &Path) -> Result<Self> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("open {}", log.display()))?;
        let child = command
            .stdin(stdin)
            .stdout(file.try_clone().context("duplicate the log's descriptor")?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("start {name} ({command:?})"))?;
        Ok(Self { name: name.to_owned(), child: Killed(child), log: log.to_owned() })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log_tail(&self) -> String {
        let text = fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let text = text.unwrap_or_else(|error| format!("({}: {error})", self.log.display()));
        let lines: Vec<_> = text.lines().collect();
        let skipped = lines.len().saturating_sub(LOG_TAIL_LINES);
        format!("{LOG_MARK} {}'s log ends with:\n{}", self.name, lines[skipped..].join("\n"))
    }

    pub fn log(&self) -> Result<String> {
        fs::read_to_string(&self.log).with_context(|| format!("read {}", self.log.display()))
    }

    pub fn check_running(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait().with_context(|| format!("wait for {}", self.name))? {
            bail!("{} ended by itself: {status}\n{}", self.name, self.log_tail());
        }
        Ok(())
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(nix_pid(self.pid())?, signal).with_context(|| format!("send {signal} to {}", self.name))
    }

    /// Stops all of its threads (SIGSTOP) until the guard is dropped. Returns once they have stopped.
    pub fn pause(&self) -> Result<Paused> {
        let paused = Paused { pid: nix_pid(self.pid())? };
        self.signal(Signal::SIGSTOP)?;
        let deadline = Instant::now() + STOP_LIMIT;
        while !self.is_stopped()? {
            if Instant::now() > deadline {
                bail!("{} has not stopped within {STOP_LIMIT:?} of SIGSTOP", self.name);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(paused)
    }

    /// Whether each of its threads is in the state `T` of proc_pid_stat(5).
    fn is_stopped(&self) -> Result<bool> {
        let tasks = procfs_of(self.pid())?.tasks().context("list its threads")?;
        // A thread may have ended meanwhile.
        Ok(tasks.filter_map(|task| task.ok()?.stat().ok()).all(|stat| stat.state == 'T'))
    }

    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().with_context(|| format!("wait for {}", self.name))? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("{} has not ended within {limit:?}\n{}", self.name, self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks it to end with SIGTERM and waits until it has.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(limit)
    }

    /// The same; fails if it does not end well.
    pub fn end(&mut self, limit: Duration) -> Result<()> {
        let status = self.terminate(limit)?;
        ensure!(status.success(), "{} ended badly: {status}\n{}", self.name, self.log_tail());
        Ok(())
    }

    /// Kills it as the OOM killer would: no time to tidy up.
    pub fn kill(&mut self, limit: Duration) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.wait(limit).map(drop)
    }

    pub async fn wait_for<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut probe: impl AsyncFnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let answer = wait_for(what, limit, async || {
            self.check_running()?;
            probe().await
        });
        let answer = answer.await;
        answer.with_context(|| self.log_tail())
    }
}

/// A child that is killed and waited for when this is dropped.
#[derive(Debug)]
pub struct Killed(pub Child);

impl Deref for Killed {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Killed {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        // Both fail only for a child that has ended and was waited for: there is nothing left to stop then.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process that is stopped until this is dropped.
#[derive(Debug)]
#[must_use = "the process continues when this is dropped"]
pub struct Paused {
    pid: Pid,
}

impl Drop for Paused {
    fn drop(&mut self) {
        // Fails only if the process is gone.
        let _ = kill(self.pid, Signal::SIGCONT);
    }
}

/// Whether a failure's text is the end of a log.
pub fn is_log(text: &str) -> bool {
    text.starts_with(LOG_MARK)
}

/// A directory in `/run`, whose name says what it is of.
pub fn directory(of: &str) -> Result<TempDir> {
    let directory = tempfile::Builder::new().prefix(&format!("kwitness-{of}-")).tempdir_in("/run");
    directory.with_context(|| format!("make the {of}'s directory in /run"))
}

/// Asks `probe` again and again until it has an answer, at most for `limit`.
pub async fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut probe: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let began = Instant::now();
    loop {
        if let Some(answer) = probe().await.with_context(|| format!("while waiting for {what}"))? {
            return Ok(answer);
        }
        if began.elapsed() > limit {
            bail!("{what} did not come within {limit:?}");
        }
        // Fine against the time already waited, and never a busy loop.
        tokio::time::sleep((began.elapsed() / 16).clamp(Duration::from_millis(1), Duration::from_millis(50)))
            .await;
    }
}

/// Runs `command` to its end and fails with what it said if it failed.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("run {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

pub fn procfs_of(pid: u32) -> Result<Process> {
    Process::new(pid.cast_signed()).with_context(|| format!("look for process {pid}"))
}

pub fn status(pid: u32) -> Result<Status> {
    procfs_of(pid)?.status().with_context(|| format!("read the status of process {pid}"))
}

/// The path of the process's cgroup in the v2 hierarchy, from its root.
pub fn cgroup_path(pid: u32) -> Result<String> {
    let cgroups = procfs_of(pid)?.cgroups().with_context(|| format!("read the cgroups of process {pid}"))?;
    let in_v2 = cgroups.into_iter().find(|cgroup| cgroup.hierarchy == 0);
    Ok(in_v2.with_context(|| format!("process {pid} has no cgroup of the v2 hierarchy"))?.pathname)
}

/// The ids of a process: in this process's pid namespace, in the one below in which it is, and so on down to its own.
pub fn ids(pid: u32) -> Result<Vec<u32>> {
    let ids = status(pid)?.nspid.with_context(|| format!("the status of process {pid} has no NSpid"))?;
    Ok(ids.into_iter().map(i32::cast_unsigned).collect())
}

/// How many BPF links the process has open.
pub fn bpf_links(pid: u32) -> Result<usize> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fdinfo")).context("list its descriptors")?;
    // One may be closed meanwhile.
    let texts = descriptors.filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok());
    Ok(texts.filter(|text| text.lines().any(|line| line.starts_with("link_type:"))).count())
}

/// Lets this process have as many file descriptors as its hard limit allows; that number.
pub fn raise_descriptors() -> Result<u64> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).context("read RLIMIT_NOFILE")?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("raise RLIMIT_NOFILE")?;
    Ok(most)
}

/// The mount points in this mount namespace, each with the type of its file system.
pub fn mounts() -> Result<Vec<(PathBuf, String)>> {
    let mounts = Process::myself().and_then(|own| own.mountinfo()).context("read /proc/self/mountinfo")?;
    Ok(mounts.into_iter().map(|mount| (mount.mount_point, mount.fs_type)).collect())
}

pub fn has_capability(number: u32) -> Result<bool> {
    Ok(status(std::process::id())?.capeff & (1 << number) != 0)
}

/// The processes in this mount namespace whose command line passes.
pub fn find(accept: impl Fn(&[String]) -> bool) -> Result<Vec<u32>> {
    let own = fs::read_link("/proc/self/ns/mnt").context("read /proc/self/ns/mnt")?;
    // A process may go while it is being looked at.
    let processes = all_processes().context("list the processes")?.filter_map(Result::ok);
    let found = processes.filter(|process| {
        let namespace = fs::read_link(format!("/proc/{}/ns/mnt", process.pid()));
        let is_here = namespace.is_ok_and(|namespace| namespace == own);
        is_here && process.cmdline().is_ok_and(|words| accept(&words))
    });
    Ok(found.map(|process| process.pid().cast_unsigned()).collect())
}

/// Sends a signal to a process that is not our child.
pub fn signal(pid: u32, signal: Signal) -> Result<()> {
    kill(nix_pid(pid)?, signal).with_context(|| format!("send {signal} to process {pid}"))
}

/// Kills a process that is not our child; one that is gone already is fine.
pub fn kill_pid(pid: u32) -> Result<()> {
    match kill(nix_pid(pid)?, Signal::SIGKILL) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("kill {pid}")),
    }
}

fn nix_pid(pid: u32) -> Result<Pid> {
    Ok(Pid::from_raw(i32::try_from(pid).context("a pid that is no pid_t")?))
}
