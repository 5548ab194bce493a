//! Running the program and reading what it prints.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use kwitness_tests::prelude::*;
use nix::sched::{CloneFlags, unshare};

const LIMIT: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Done {
    pub(crate) fn check(&self, code: i32) -> Result<&Self> {
        ensure!(
            self.code == Some(code),
            "it ended with {:?}, not {code}:\n{}{}",
            self.code,
            self.stdout,
            self.stderr
        );
        Ok(self)
    }

    pub(crate) fn check_says(&self, words: &[&str]) -> Result<()> {
        for word in words {
            ensure!(self.stderr.contains(word), "`{word}` is not in:\n{}", self.stderr);
        }
        Ok(())
    }
}

pub(crate) fn kwitness(ctx: &TestContext, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = Command::new(ctx.environment.kwitness());
    command.args(arguments).env_remove("KWITNESS_SOCKET").stdin(Stdio::null());
    command
}

pub(crate) async fn run(command: Command) -> Result<Done> {
    run_by(command, |mut command| command.output()).await
}

/// The same in a pid namespace of its own.
pub(crate) async fn run_in_pid_namespace(command: Command) -> Result<Done> {
    run_by(command, |mut command| {
        // A thread's children are in the namespace that it has unshared; this thread has no others.
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWPID)?;
            command.output()
        });
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
    .await
}

/// The same in a time namespace of its own, in which so many more seconds have passed since the boot.
pub(crate) async fn run_in_time_namespace(command: Command, seconds: i64) -> Result<Done> {
    /// `CLONE_NEWTIME` of `include/uapi/linux/sched.h`.
    const NEW_TIME: CloneFlags = CloneFlags::from_bits_retain(0x80);
    run_by(command, move |mut command| {
        let thread = std::thread::spawn(move || {
            unshare(NEW_TIME)?;
            // Of the namespace that this thread's children will be in.
            let offsets = format!("/proc/{}/timens_offsets", nix::unistd::gettid());
            std::fs::write(offsets, format!("boottime {seconds} 0"))?;
            // To be changed by fork(2): a child that shares memory stays in its parent's, before Linux 6.1 even when it executes.
            command.uid(0).output()
        });
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
    .await
}

async fn run_by(
    mut command: Command,
    output: impl FnOnce(Command) -> io::Result<Output> + Send + 'static,
) -> Result<Done> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let words = format!("{command:?}");
    let running = tokio::task::spawn_blocking(move || output(command));
    let output =
        tokio::time::timeout(LIMIT, running).await.with_context(|| format!("{words} does not end"))?;
    let Output { status, stdout, stderr } = output?.with_context(|| format!("run {words}"))?;
    Ok(Done {
        code: status.code(),
        stdout: String::from_utf8(stdout).context("standard output is not UTF-8")?,
        stderr: String::from_utf8(stderr).context("standard error is not UTF-8")?,
    })
}

/// Runs a client of that socket: `client(ctx, socket, "ps -o json")`.
pub(crate) async fn client(ctx: &TestContext, socket: &Path, line: &str) -> Result<Done> {
    let mut command = kwitness(ctx, line.split_whitespace());
    command.arg("--socket").arg(socket);
    run(command).await
}

/// Lets a container exit with code 7 and go, while it is watched.
pub(crate) async fn a_short_life(agent: &Agent, kubepods: &Kubepods) -> Result<(Watcher, String, String)> {
    let mut watcher = agent.watch(from_now()).await?;
    let container = kubepods.container()?;
    let pod = container.pod_uid.clone();
    let id = container.live(&["sh", "-c", "exit 7"], 7)?;
    watcher.wait_until("the container's end", |seen| seen.has(&id, "deleted")).await?;
    Ok((watcher, id, pod))
}
