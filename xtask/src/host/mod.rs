//! A node on this machine's own kernel: a root in private namespaces, that leaves nothing behind.
//!
//! ```text
//! xtask test|demo|bench          waits for its turn: one such node at a time on this kernel
//!   └── xtask host-node          mount, network, IPC and UTS namespaces of its own; adopts orphans
//!         └── sh /run/job/run    the job; its daemons, containerd, shims, containers
//! ```
//!
//! There is no PID namespace, for the probes and procfs must agree on what a process is called. So the inner xtask
//! makes itself the reaper of all below it, and when the job is over kills its children until there are none.

pub mod cgroups;
pub mod node;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::job::Job;
use crate::signals;
use crate::vm::Output;
use crate::workspace::{Cache, Turn};

/// Runs `job` on a node with the root at `tree` and returns the job's exit status.
///
/// An error means that the job did not end, or that something was left behind.
pub fn run(cache: &Cache, tree: &Path, job: &Job, output: Output, timeout: Option<Duration>) -> Result<i32> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "running a node needs root, for namespaces, mounts and BPF programs: run this as root, or use `--vm`"
    );
    signals::catch()?;
    let _turn = cache.lock(Turn::HostNode)?;
    let dir = tempfile::tempdir().context("make a temporary directory")?;
    let report = dir.path().join("report");
    let mut command = Command::new(std::env::current_exe().context("find our own program")?);
    command.arg("host-node").arg("--tree").arg(tree).arg("--job").arg(job.dir());
    command.arg("--scratch").arg(dir.path()).arg("--report").arg(&report);
    match output {
        Output::Terminal | Output::Shown => {}
        Output::File(file) => {
            let copy = file.try_clone().context("duplicate the log's descriptor")?;
            command.stdin(Stdio::null()).stdout(file).stderr(copy);
        }
    }
    let mut node = command.spawn().context("start the node")?;
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let mut given_up = None;
    let status = loop {
        if let Some(status) = node.try_wait().context("wait for the node")? {
            break status;
        }
        if given_up.is_none() {
            if signals::caught() {
                given_up = Some("interrupted".to_owned());
            } else if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                let limit = timeout.unwrap_or_default().as_secs();
                given_up = Some(format!("the job took longer than {limit} s"));
            }
            if given_up.is_some() {
                // It cleans up before it ends.
                let pid = nix::unistd::Pid::from_raw(i32::try_from(node.id())?);
                nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM).context("stop the node")?;
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let report = fs::read_to_string(&report).unwrap_or_default();
    let left: Vec<_> = report.lines().filter_map(|line| line.strip_prefix("left ")).collect();
    ensure!(left.is_empty(), "left behind on this machine:\n  {}", left.join("\n  "));
    if let Some(why) = given_up {
        bail!("{why}");
    }
    let exit = report.lines().find_map(|line| line.strip_prefix("exit ")?.parse().ok());
    exit.with_context(|| format!("the node ended with {status} before its job did"))
}
