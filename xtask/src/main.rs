//! `cargo xtask`: builds, tests, demos and measures kwitness.
//!
//! Reads the command line and calls the task; each task is a module.

mod architecture;
mod artifacts;
mod bench;
mod chart;
mod client;
mod command;
mod cycles;
mod demo;
mod deny;
mod dist;
mod ebpf;
mod host;
mod image;
mod images;
mod job;
mod layout;
#[cfg(test)]
mod links;
mod metrics;
mod oci;
#[cfg(test)]
mod promises;
mod release;
mod run;
mod sbom;
mod setup;
mod signals;
mod step;
mod tally;
mod test;
mod unused;
mod verdicts;
mod versions;
mod vm;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::setup::{Needs, Tool};
use crate::workspace::{Cache, Workspace};

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
    Setup(Setup),
    /// Build the BPF programs and update the prebuilt objects
    Ebpf(Ebpf),
    /// Run clippy over the BPF programs
    ClippyEbpf,
    /// Check licences, sources and advisories of all dependencies
    Deny,
    /// Check that every dependency has a user
    Unused,
    /// Check that the client side builds without anything that needs Linux
    Client,
    /// Check the Helm chart and the alert rules, and write what is made of them
    Chart(Chart),
    /// Make the container image
    Image(image::Image),
    /// Make what a release has beside the image: archives, deb and rpm, the kubectl plugin, checksums
    Dist(dist::Dist),
    /// Check that the modules of each crate do not import each other in circles
    Cycles,
    /// Watch kwitness at work on real containers
    Demo(demo::Demo),
    /// Measure kwitness
    Bench(bench::Bench),
    /// Kill, stop, starve and upgrade the daemon while containers come and go, and compare what it reports with what was
    Chaos(demo::Chaos),
    /// Run the tests: unit, on this machine's own kernel, and in guests
    Test(test::Test),
    /// Write the table of docs/verdicts.md from the last runs of the test target `matrix`
    Verdicts,
    /// Write the tables of docs/metrics.md from the metrics' definitions
    Metrics,
    /// Boot a guest and run a command in it, or a shell
    Vm(command::Vm),
    /// Run a command, or a shell, as on a node, but on this machine's own kernel
    Host(command::What),
    #[command(hide = true)]
    HostNode(host::node::Node),
}

#[derive(Args)]
struct Setup {
    /// Only what these need [default: all]
    #[arg(long, value_enum, value_name = "TIER")]
    tier: Vec<setup::Tier>,
}

#[derive(Args)]
struct Ebpf {
    /// Build nothing; fail if the prebuilt objects are not those of the sources
    #[arg(long)]
    check: bool,
    /// Build only, leave the prebuilt objects alone, and print where the built ones are
    #[arg(long, conflicts_with = "check")]
    build_only: bool,
}

#[derive(Args)]
struct Chart {
    /// Write nothing; fail if what is made of the chart is out of date
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    match perform(Cli::parse().task) {
        Ok(status) => ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX)),
        Err(error) => {
            eprintln!("error: {error}");
            // Without the backtrace that Debug would print: what went wrong is in the words.
            error.chain().skip(1).for_each(|cause| eprintln!("  because: {cause}"));
            ExitCode::FAILURE
        }
    }
}

/// Calls the task; the exit status.
fn perform(task: Task) -> Result<i32> {
    let with = |tools: &[Tool], task: &dyn Fn(&Workspace, &Cache) -> Result<()>| {
        let cache = Cache::open()?;
        setup::ensure(&cache, &Needs::tools(tools))?;
        task(&Workspace::find()?, &cache)
    };
    match task {
        Task::Setup(setup) => setup::task(&Cache::open()?, &Needs::of(&setup.tier))?,
        Task::Ebpf(Ebpf { check: true, .. }) => {
            ebpf::check(&Workspace::find()?)?;
            println!("the prebuilt objects are those of the sources");
        }
        Task::Ebpf(Ebpf { build_only: false, .. }) => with(&[Tool::Bpf], &ebpf::update)?,
        Task::Ebpf(_) => with(&[Tool::Bpf], &|workspace, cache| {
            for object in &ebpf::OBJECTS {
                println!("{}", ebpf::build(workspace, cache, object)?.display());
            }
            Ok(())
        })?,
        Task::ClippyEbpf => with(&[Tool::Bpf], &ebpf::clippy)?,
        Task::Deny => with(&[Tool::Lint], &deny::task)?,
        Task::Unused => with(&[Tool::Lint], &unused::task)?,
        Task::Chart(Chart { check }) => {
            with(&[Tool::Helm, Tool::Prometheus], &|workspace, cache| chart::task(workspace, cache, check))?;
        }
        Task::Image(image) => with(&[Tool::Image], &|workspace, _| image::task(workspace, &image))?,
        Task::Dist(dist) => with(&[Tool::Image, Tool::Packages, Tool::Windows], &|workspace, cache| {
            dist::task(workspace, cache, &dist)
        })?,
        Task::Client => client::task(&Workspace::find()?)?,
        Task::Cycles => cycles::task(&Workspace::find()?)?,
        Task::Demo(demo) => return demo::demo(&Workspace::find()?, &Cache::open()?, &demo),
        Task::Bench(bench) => return bench::task(&Workspace::find()?, &Cache::open()?, &bench),
        Task::Chaos(chaos) => return demo::chaos(&Workspace::find()?, &Cache::open()?, &chaos),
        Task::Test(test) => {
            let passed = test::task(&Workspace::find()?, &Cache::open()?, &test)?;
            return Ok(i32::from(!passed));
        }
        Task::Verdicts => verdicts::task(&Workspace::find()?)?,
        Task::Metrics => metrics::task(&Workspace::find()?)?,
        Task::Vm(vm) => return command::vm(&Workspace::find()?, &Cache::open()?, &vm),
        Task::Host(what) => return command::host(&Workspace::find()?, &Cache::open()?, &what),
        Task::HostNode(node) => host::node::run(&node)?,
    }
    Ok(0)
}
