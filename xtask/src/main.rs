//! `cargo xtask`: builds, tests, demos and measures kwitness.
//!
//! Reads the command line and calls the task; each task is a module.

mod artifacts;
mod ebpf;
mod host;
mod images;
mod job;
mod place;
mod run;
mod setup;
mod signals;
mod step;
mod tally;
mod test;
mod versions;
mod vm;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::job::Job;
use crate::place::{Cache, Workspace};
use crate::setup::Needs;
use crate::versions::{DEFAULT_KERNEL, DEFAULT_ROOT, KernelSeries, RootSpec};
use crate::vm::{Guest, Output};

/// Builds, tests, demos and measures kwitness.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install and make what the other tasks need (they do so themselves, each for its own needs)
    Setup,
    /// Build the BPF programs and update the prebuilt object
    Ebpf(Ebpf),
    /// Run clippy over the BPF programs
    ClippyEbpf,
    /// Run the tests: unit, on this machine's own kernel, and in guests
    Test(test::Test),
    /// Boot a guest and run a command in it, or a shell
    Vm(Vm),
    #[command(hide = true)]
    HostNode(host::node::Node),
}

#[derive(Args)]
struct Ebpf {
    /// Build nothing; fail if the prebuilt object is not that of the sources
    #[arg(long)]
    check: bool,
    /// Build only, leave the prebuilt object alone, and print where the built one is
    #[arg(long, conflicts_with = "check")]
    build_only: bool,
}

#[derive(Args)]
struct Vm {
    /// The kernel series to boot
    #[arg(long, default_value = DEFAULT_KERNEL)]
    kernel: String,
    /// The root to boot it with
    #[arg(long, default_value = DEFAULT_ROOT, conflicts_with = "systemd")]
    root: String,
    /// Boot the root whose process 1 is systemd
    #[arg(long)]
    systemd: bool,
    /// A file or directory to see at /run/job/NAME in the guest
    #[arg(long, value_name = "PATH")]
    payload: Vec<PathBuf>,
    /// Processors of the guest
    #[arg(long, value_name = "N", default_value_t = 1)]
    smp: u32,
    /// Memory of the guest, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 2048)]
    mem: u32,
    /// Seconds after which the guest is given up [default: 600; none for a shell]
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// What to run; a shell without it
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

fn main() -> ExitCode {
    match perform(Cli::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            // Without the backtrace that Debug would print: what went wrong is in the words.
            error.chain().skip(1).for_each(|cause| eprintln!("  because: {cause}"));
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> Result<ExitCode> {
    let with_bpf = || -> Result<(Workspace, Cache)> {
        let cache = Cache::open()?;
        setup::ensure(&cache, &Needs { bpf: true, ..Needs::default() })?;
        Ok((Workspace::find()?, cache))
    };
    match task {
        Task::Setup => setup::task(&Cache::open()?, &Needs::all())?,
        Task::Ebpf(Ebpf { check: true, .. }) => {
            ebpf::check(&Workspace::find()?)?;
            println!("the prebuilt object is that of the sources");
        }
        Task::Ebpf(Ebpf { build_only: true, .. }) => {
            let (workspace, cache) = with_bpf()?;
            println!("{}", ebpf::build(&workspace, &cache)?.display());
        }
        Task::Ebpf(_) => {
            let (workspace, cache) = with_bpf()?;
            ebpf::update(&workspace, &cache)?;
        }
        Task::ClippyEbpf => {
            let (workspace, cache) = with_bpf()?;
            ebpf::clippy(&workspace, &cache)?;
        }
        Task::Test(test) => {
            let passed = test::task(&Workspace::find()?, &Cache::open()?, &test)?;
            return Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Task::Vm(vm) => return boot(&Workspace::find()?, &Cache::open()?, vm),
        Task::HostNode(node) => host::node::run(&node)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn boot(workspace: &Workspace, cache: &Cache, vm: Vm) -> Result<ExitCode> {
    let kernel = KernelSeries::find(&vm.kernel)?;
    let root = RootSpec::find(if vm.systemd { "trixie-systemd" } else { &vm.root })?;
    setup::ensure(
        cache,
        &Needs { disks: [root.name].into(), kernels: [kernel.name].into(), ..Needs::default() },
    )?;
    // Of its own, so that two may run side by side.
    let dir = tempfile::tempdir_in(workspace.scratch("vm")?)?;
    let mut job = Job::new(dir.path().join("job"))?;
    job.env("KWITNESS_TIER", "vm");
    job.env("KWITNESS_ROOT", root.name);
    for path in &vm.payload {
        job.add(path, path.file_name().map(PathBuf::from).unwrap_or_default().as_path())?;
    }
    let (output, timeout) = if vm.command.is_empty() {
        job.interactive()?;
        (Output::Terminal, None)
    } else {
        job.command(&vm.command)?;
        (Output::Shown, Some(600))
    };
    let timeout = vm.timeout.or(timeout).map(Duration::from_secs);
    let guest = Guest { kernel, root, processors: vm.smp, memory: vm.mem, timeout };
    let status = guest.run(cache, &job, output)?;
    Ok(ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX)))
}
