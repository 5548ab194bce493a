//! `kwitness-bench`: what kwitness costs, each figure against a baseline of the same run.
//!
//! Rounds of the measured and of the baseline alternate, so that what else the machine does meets both alike; what
//! is reported is the median over the rounds, with its spread. A row whose baseline was slower than kwitness is invalid.
//!
//! The executable is also its own helpers, each a process of its own as in the field: the floors, the workloads.

mod attacker;
mod connector;
mod cri;
mod curve;
mod filter;
mod fleet;
mod floor;
mod footprint;
mod growth;
mod latency;
mod limits;
mod names;
mod overhead;
mod peers;
mod pins;
mod pleg;
mod pressure;
mod probes;
mod proxy;
mod rate;
mod report;
mod resume;
mod start;
mod survival;
mod throughput;
mod trees;
mod workload;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use kwitness_tests::environment::Environment;
use kwitness_tests::handmade;
use kwitness_tests::survival::filler;

use crate::curve::Curve;
use crate::report::{Row, Table};

/// Measures what kwitness costs.
#[derive(Debug, Parser)]
#[command(group(clap::ArgGroup::new("what").args(["curves", "peers", "pleg", "fleet", "survival"])))]
struct Arguments {
    /// Print the rows as JSON; the table goes to standard error.
    #[arg(long)]
    json: bool,
    /// Measure how costs grow with containers, events and cgroups.
    #[arg(long)]
    curves: bool,
    /// Measure the same processes under other tools, too.
    #[arg(long)]
    peers: bool,
    /// Measure a kubelet with the generic and the evented PLEG.
    #[arg(long)]
    pleg: bool,
    /// Measure the exporters of many nodes and one collector.
    #[arg(long)]
    fleet: bool,
    /// How many nodes (`--fleet`).
    #[arg(long, default_value_t = 1000)]
    nodes: usize,
    /// Events a node and second, for fleets on paper (`--fleet`).
    #[arg(long, default_value_t = 10.0)]
    rate: f64,
    /// Numbers of containers or cgroups (`--curves`), or of pods (`--pleg`), instead of the usual ones.
    #[arg(long, value_delimiter = ',')]
    sizes: Vec<usize>,
    /// Measure only these rows or curves.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    #[command(flatten)]
    survival: survival::Survival,
    #[command(subcommand)]
    helper: Option<Helper>,
}

impl Arguments {
    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }
}

/// What the bench starts itself as.
#[derive(Debug, Subcommand)]
enum Helper {
    #[command(hide = true)]
    Floor { socket: PathBuf, cgroup: u64 },
    #[command(hide = true)]
    Feed { socket: PathBuf, records: u64 },
    #[command(hide = true)]
    Watch { socket: PathBuf, streams: usize },
    #[command(hide = true)]
    Connector,
    #[command(hide = true)]
    ForksAt { rate: u32 },
    #[command(hide = true)]
    CatchUp { socket: PathBuf },
    #[command(hide = true)]
    Forward { socket: PathBuf, server: PathBuf },
    #[command(hide = true)]
    Attach { tree: PathBuf, hooks: Vec<String> },
    #[command(hide = true)]
    Attack { socket: PathBuf },
    #[command(hide = true)]
    Answer { socket: PathBuf },
    #[command(hide = true)]
    Ticks { count: u32 },
    #[command(hide = true)]
    Writes { count: u32 },
    #[command(hide = true)]
    Resizes { file: PathBuf, one: String, other: String, count: u32 },
    #[command(hide = true)]
    Fill { usage: PathBuf, limit: u64 },
    #[command(hide = true)]
    Faults { base: u64, bytes: u64, passes: u32, pace: u64 },
    #[command(hide = true)]
    Forks { count: u32 },
    #[command(hide = true)]
    Subshells { count: u32 },
    #[command(hide = true)]
    Execs { count: u32 },
}

fn main() -> Result<()> {
    handmade::become_container_if_requested()?;
    if filler::fill_if_requested()? {
        return Ok(());
    }
    let mut arguments = Arguments::parse();
    names::check(&arguments.only, arguments.curves).map_err(anyhow::Error::msg)?;
    match arguments.helper.take() {
        Some(Helper::Floor { socket, cgroup }) => current_thread()?.block_on(floor::serve(&socket, cgroup)),
        Some(Helper::Feed { socket, records }) => throughput::feed(&socket, records),
        Some(Helper::Watch { socket, streams }) => {
            current_thread()?.block_on(overhead::watch(&socket, streams))
        }
        Some(Helper::Connector) => connector::listen(),
        Some(Helper::ForksAt { rate }) => rate::forks_at(rate),
        Some(Helper::CatchUp { socket }) => current_thread()?.block_on(resume::catch_up(&socket)),
        Some(Helper::Forward { socket, server }) => {
            current_thread()?.block_on(proxy::forward(&socket, server))
        }
        Some(Helper::Attach { tree, hooks }) => start::floor(&tree, &hooks),
        Some(Helper::Attack { socket }) => current_thread()?.block_on(attacker::attack(&socket)),
        Some(Helper::Answer { socket }) => current_thread()?.block_on(proxy::serve(&socket)),
        Some(Helper::Ticks { count }) => workload::tick(count),
        Some(Helper::Writes { count }) => workload::writes(count),
        Some(Helper::Resizes { file, one, other, count }) => workload::resizes(&file, [&one, &other], count),
        Some(Helper::Forks { count }) => workload::forks(count),
        Some(Helper::Subshells { count }) => workload::subshells(count),
        Some(Helper::Execs { count }) => workload::execs(count),
        Some(Helper::Fill { usage, limit }) => pressure::fill(&usage, limit),
        Some(Helper::Faults { base, bytes, passes, pace }) => pressure::faults(base, bytes, passes, pace),
        None if arguments.curves => curves(arguments),
        None if arguments.fleet => fleet(&arguments),
        None if arguments.survival.survival => survive(&arguments),
        None => measure(&arguments),
    }
}

/// How costs grow. Curves of one kind share one time.
fn curves(mut arguments: Arguments) -> Result<()> {
    let environment = Environment::find()?;
    let runtime = current_thread()?;
    let table = Table { json: arguments.json };
    table.head(&environment)?;
    // Each size goes on where the last one ended.
    arguments.sizes.sort_unstable();
    arguments.sizes.dedup();
    let mut all: Vec<Curve> = Vec::new();
    let mut add = |new: Vec<Curve>| {
        new.iter().for_each(|curve| curve.show(table));
        all.extend(new);
    };
    if arguments.wants("growth") {
        add(runtime.block_on(growth::measure(&environment, &arguments.sizes)).context("measure growth")?);
    }
    if arguments.wants("rate") {
        add(runtime.block_on(rate::measure(&environment)).context("measure at rates")?);
    }
    if arguments.wants("filter") {
        add(runtime.block_on(filter::measure(&environment)).context("measure filters")?);
    }
    if arguments.wants("resume") {
        add(runtime.block_on(resume::measure(&environment)).context("measure a watcher that resumes")?);
    }
    if arguments.wants("tree") {
        add(runtime.block_on(trees::measure(&environment, &arguments.sizes)).context("measure trees")?);
    }
    curve::foot(table, &all)?;
    if arguments.json {
        curve::print_json(&all)?;
    }
    Ok(())
}

/// What a fleet's exporters and their collector cost.
fn fleet(arguments: &Arguments) -> Result<()> {
    let environment = Environment::find()?;
    let table = Table { json: arguments.json };
    table.head(&environment)?;
    // Nodes are apart from each other: they use every CPU.
    let runtime = tokio::runtime::Runtime::new().context("start tokio")?;
    let measured = fleet::measure(&environment, arguments.nodes, arguments.rate, table);
    runtime.block_on(measured).context("measure a fleet")
}

fn survive(arguments: &Arguments) -> Result<()> {
    let environment = Environment::find()?;
    let table = Table { json: arguments.json };
    table.head(&environment)?;
    current_thread()?.block_on(survival::measure(&environment, &arguments.survival, table))?;
    table.load()
}

fn measure(arguments: &Arguments) -> Result<()> {
    let environment = Environment::find()?;
    let runtime = current_thread()?;
    let wanted = |name: &str| !arguments.peers && !arguments.pleg && arguments.wants(name);
    let mut rows: Vec<Row> = Vec::new();
    let table = Table { json: arguments.json };
    table.head(&environment)?;
    table.columns();
    let mut add = |new: Vec<Row>| {
        new.iter().for_each(|row| table.row(row));
        rows.extend(new);
    };
    if arguments.peers {
        add(runtime.block_on(peers::measure(&environment)).context("measure other tools")?);
    }
    if arguments.pleg {
        let measured = runtime.block_on(pleg::measure(&environment, &arguments.sizes));
        add(measured.context("measure a kubelet")?);
    }
    if wanted("latency") {
        add(runtime.block_on(latency::measure(&environment)).context("measure latency")?);
    }
    if wanted("attacker") {
        add(runtime.block_on(attacker::measure(&environment)).context("measure beside an attacker")?);
    }
    if wanted("overhead") {
        add(runtime.block_on(overhead::measure(&environment)).context("measure overhead")?);
    }
    if wanted("probes") {
        add(runtime.block_on(probes::measure(&environment)).context("measure each program")?);
    }
    if wanted("cpu") {
        add(runtime.block_on(overhead::of_a_life(&environment)).context("measure the CPU of a life")?);
    }
    if wanted("limits") {
        add(runtime.block_on(limits::measure(&environment)).context("measure limits")?);
    }
    if wanted("pressure") {
        add(runtime.block_on(pressure::measure(&environment)).context("measure memory pressure")?);
    }
    if wanted("throughput") {
        add(runtime.block_on(throughput::measure(&environment)).context("measure throughput")?);
    }
    if wanted("footprint") {
        add(runtime.block_on(footprint::measure(&environment)).context("measure footprint")?);
    }
    if wanted("pins") {
        add(runtime.block_on(pins::measure(&environment)).context("measure what outlives the daemon")?);
    }
    if wanted("proxy") {
        add(runtime.block_on(proxy::measure(&environment)).context("measure the CRI proxy")?);
    }
    if wanted("cri") {
        // Two streams are read and timed at once.
        let runtime = tokio::runtime::Runtime::new().context("start tokio")?;
        add(runtime.block_on(cri::measure(&environment)).context("measure the CRI's events")?);
    }
    table.foot(&rows)?;
    if arguments.json {
        report::print_json(&rows)?;
    }
    Ok(())
}

/// The client side of every measurement is the same: one thread, so that its own wake-ups are few.
fn current_thread() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("start tokio")
}
