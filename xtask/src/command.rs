//! The `vm` and `host` tasks: a developer's command, or shell, on a node.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::host;
use crate::job::Job;
use crate::setup::{self, Needs};
use crate::versions::{DEFAULT_KERNEL, DEFAULT_ROOT, KernelSeries, RootSpec, SYSTEMD_ROOT};
use crate::vm::{Guest, Output};
use crate::workspace::{Cache, Workspace};

/// A guest and what to run in it.
#[derive(Args)]
pub struct Vm {
    /// The kernel series to boot
    #[arg(long, default_value = DEFAULT_KERNEL)]
    kernel: String,
    /// Boot the root whose process 1 is systemd
    #[arg(long, conflicts_with = "root")]
    systemd: bool,
    /// Processors of the guest
    #[arg(long, value_name = "N", default_value_t = 1)]
    smp: u32,
    /// Memory of the guest, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 2048)]
    mem: u32,
    #[command(flatten)]
    what: What,
}

/// What to run.
#[derive(Args)]
pub struct What {
    /// The root to run it in
    #[arg(long, default_value = DEFAULT_ROOT)]
    root: String,
    /// A file or directory to see at /run/job/NAME
    #[arg(long, value_name = "PATH")]
    payload: Vec<PathBuf>,
    /// Seconds after which it is given up [default: 600; none for a shell]
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// What to run; a shell without it
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Runs it in a guest; returns its exit status.
pub fn vm(workspace: &Workspace, cache: &Cache, vm: &Vm) -> Result<i32> {
    let kernel = KernelSeries::find(&vm.kernel)?;
    let root = RootSpec::find(if vm.systemd { SYSTEMD_ROOT } else { &vm.what.root })?;
    let (disks, kernels) = ([root.name].into(), [kernel.name].into());
    setup::ensure(cache, &Needs { disks, kernels, ..Needs::default() })?;
    let prepared = vm.what.prepare(workspace, "vm", root)?;
    let output = if vm.what.command.is_empty() {
        // What is written before the guest has booted would be lost.
        ensure!(std::io::stdin().is_terminal(), "a shell needs a terminal: give a command after `--`");
        prepared.job.interactive()?;
        Output::Terminal
    } else {
        prepared.job.command(&vm.what.command)?;
        Output::Shown
    };
    let timeout = vm.what.limit();
    let guest = Guest { kernel, root, processors: vm.smp, memory: vm.mem, timeout, leaves: None };
    guest.run(cache, &prepared.job, output)
}

/// Runs it on this machine's own kernel; returns its exit status.
pub fn host(workspace: &Workspace, cache: &Cache, what: &What) -> Result<i32> {
    let root = RootSpec::find(&what.root)?;
    setup::ensure(cache, &Needs { trees: [root.name].into(), ..Needs::default() })?;
    let prepared = what.prepare(workspace, "host", root)?;
    if what.command.is_empty() {
        prepared.job.command(&["/usr/bin/sh".to_owned(), "-l".to_owned()])?;
    } else {
        prepared.job.command(&what.command)?;
    }
    host::run(cache, &root.tree(cache)?, &prepared.job, Output::Shown, what.limit())
}

/// A job in a directory of its own, so that two may run side by side.
struct Prepared {
    job: Job,
    _dir: tempfile::TempDir,
}

impl What {
    fn prepare(&self, workspace: &Workspace, tier: &str, root: &RootSpec) -> Result<Prepared> {
        let dir = tempfile::tempdir_in(workspace.scratch("jobs")?).context("make the job's directory")?;
        let mut job = Job::new(dir.path().join("job"))?;
        job.env("KWITNESS_TIER", tier);
        job.env("KWITNESS_ROOT", root.name);
        for path in &self.payload {
            let name = path.file_name().with_context(|| format!("{} has no name", path.display()))?;
            job.add(path, name.as_ref())?;
        }
        Ok(Prepared { job, _dir: dir })
    }

    fn limit(&self) -> Option<Duration> {
        let default = (!self.command.is_empty()).then_some(600);
        self.timeout.or(default).map(Duration::from_secs)
    }
}
