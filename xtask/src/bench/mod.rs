//! The `bench` task: what kwitness costs, as rows; as curves, which are also drawn; beside other tools; what a kubelet saves; a fleet; and
//! who survives reaching a memory limit.
//!
//! Measuring is the program `kwitness-bench`'s. This chooses the node for it, and writes what it says of curves to files.

#[path = "../../../tests/src/bin/bench/names.rs"]
mod names;
mod survival;
mod svg;

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, PipeReader};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;

use crate::demo::{self, Build, Kubelet, Program, Watched};
use crate::step;
use crate::versions::{DEFAULT_ROOT, PEERS_ROOT};
use crate::vm::Output;
use crate::workspace::{Cache, Workspace};

const PROGRAM: &str = "kwitness-bench";
/// Some sizes of curves wait for thousands of containers.
const LIMIT: Duration = Duration::from_secs(1800);
/// Each of nine nodes is measured three times, at rest for a minute.
const PLEG_LIMIT: Duration = Duration::from_secs(3 * 3600);
/// Some fills of a gigabyte take half a minute each, and there are more than a thousand.
const SURVIVAL_LIMIT: Duration = Duration::from_secs(12 * 3600);
/// In MiB: a container of a gigabyte is raised to one and a half, and as much again must be free.
const SURVIVAL_MEMORY: u32 = 3584;
/// What a line about a curve begins with, and no other.
const CURVE: &str = "{\"curve\":";

/// What to measure, and where.
#[derive(Args)]
#[command(group(clap::ArgGroup::new("what").args(["curves", "peers", "pleg", "fleet", "survival"])))]
#[command(group(clap::ArgGroup::new("sized").args(["curves", "pleg"])))]
#[command(group(clap::ArgGroup::new("drawn").args(["curves", "survival"])))]
#[command(after_help = "Examples:\n  \
    cargo xtask bench --only latency,proxy\n  \
    cargo xtask bench --curves --sizes 100,1000\n  \
    cargo xtask bench --curves --only rate --out docs/benchmarks\n  \
    cargo xtask bench --peers\n  \
    cargo xtask bench --fleet --nodes 1000 --rate 10\n  \
    cargo xtask bench --pleg --root forky --sizes 10,50\n  \
    cargo xtask bench --pleg --root forky --kubelet 1.37\n  \
    cargo xtask bench --survival --runs 5 --limits 64Mi --rates 100,max")]
pub struct Bench {
    /// How costs grow with containers, events and cgroups: a table, JSON, and an SVG for each curve; about 20 minutes
    #[arg(long)]
    curves: bool,
    /// The same processes under execsnoop and exitsnoop, bpftrace, perf trace and the kernel's process connector
    #[arg(long)]
    peers: bool,
    /// A kubelet with pods at rest: generic PLEG, evented PLEG on containerd's events, evented PLEG on kwitness's; about an hour
    #[arg(long)]
    pleg: bool,
    /// The exporters of many nodes, fed from a recording, and one OpenTelemetry Collector
    #[arg(long)]
    fleet: bool,
    /// How many nodes [default: 1000]
    #[arg(long, value_name = "N", requires = "fleet")]
    nodes: Option<String>,
    /// Events a node and second, for what larger fleets cost on paper [default: 10]
    #[arg(long, value_name = "N", requires = "fleet")]
    rate: Option<String>,
    /// How many processes survive reaching their memory limit: the guard beside pollers and notices; always in a guest, hours
    #[arg(long)]
    survival: bool,
    /// Runs of each way at each rate and limit [default: 20]
    #[arg(long, value_name = "N", requires = "survival")]
    runs: Option<u32>,
    /// Memory limits [default: 64Mi,1Gi]
    #[arg(long, value_name = "LIST", requires = "survival")]
    limits: Option<String>,
    /// Fill rates in megabytes per second, or max [default: 10,100,500,max]
    #[arg(long, value_name = "LIST", requires = "survival")]
    rates: Option<String>,
    /// Only these rows, or with --curves these curves: `latency,proxy`, `growth`
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        conflicts_with_all = ["peers", "pleg", "fleet", "survival"]
    )]
    only: Vec<String>,
    /// Numbers of containers and cgroups (--curves) or of pods (--pleg), such as `100,1000`
    #[arg(long, value_name = "LIST", requires = "sized")]
    sizes: Option<String>,
    /// The kubelet's release; 1.37 is built first, which takes minutes
    #[arg(long, value_name = "RELEASE", value_enum, default_value_t = Kubelet::Pinned, requires = "pleg")]
    kubelet: Kubelet,
    /// Where curves, or the survivors, are written [default: xtask/bench in cargo's target directory]
    #[arg(long, value_name = "DIRECTORY", requires = "drawn")]
    out: Option<PathBuf>,
    #[command(flatten)]
    options: Watched,
}

/// Measures, and returns the program's exit status.
pub fn task(workspace: &Workspace, cache: &Cache, bench: &Bench) -> Result<i32> {
    names::check(&bench.only, bench.curves).map_err(anyhow::Error::msg)?;
    let mut options = bench.options.clone();
    let flags = [
        ("--curves", bench.curves),
        ("--peers", bench.peers),
        ("--pleg", bench.pleg),
        ("--fleet", bench.fleet),
        ("--survival", bench.survival),
    ];
    let flags = flags.into_iter().filter(|(_, is_set)| *is_set).map(|(name, _)| name.to_owned());
    let runs = bench.runs.map(|runs| runs.to_string());
    let only = (!bench.only.is_empty()).then(|| bench.only.join(","));
    let values = [
        ("--only", &only),
        ("--sizes", &bench.sizes),
        ("--nodes", &bench.nodes),
        ("--rate", &bench.rate),
        ("--runs", &runs),
        ("--limits", &bench.limits),
        ("--rates", &bench.rates),
    ];
    let values = values.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", value.as_ref()?)));
    options.arguments.extend(flags.chain(values).collect::<Vec<_>>());
    // The other tools are in a root of their own, unless another one is named.
    if bench.peers && options.root() == DEFAULT_ROOT {
        options.set_root(PEERS_ROOT);
    }
    let kubelet = bench.pleg.then_some(bench.kubelet);
    if bench.survival {
        options.set_guest();
        options.memory = SURVIVAL_MEMORY;
    }
    let limit = match (bench.pleg, bench.survival) {
        (true, _) => PLEG_LIMIT,
        (_, true) => SURVIVAL_LIMIT,
        _ => LIMIT,
    };
    let program = Program { name: PROGRAM, build: Build::Release, kubelet, collector: bench.fleet, limit };
    let kept = match (bench.curves, bench.survival) {
        (true, _) => Some(CURVE),
        (_, true) => Some(survival::LINE),
        _ => None,
    };
    let Some(kept) = kept else {
        return demo::task(workspace, cache, &program, &options, Output::Shown, None);
    };
    let out = match &bench.out {
        Some(out) => out.clone(),
        None => workspace.scratch("bench")?,
    };
    let wants_json = options.arguments.iter().any(|word| word == "--json");
    if !wants_json {
        options.arguments.push("--json".to_owned());
    }
    let (reader, writer) = std::io::pipe().context("make a pipe")?;
    let pump = std::thread::spawn(move || pump(reader, wants_json, kept));
    let status = demo::task(
        workspace,
        cache,
        &program,
        &options,
        Output::File(File::from(OwnedFd::from(writer))),
        None,
    );
    let lines = pump.join().map_err(|_| anyhow::anyhow!("what reads the program's output panicked"))??;
    let status = status?;
    if bench.survival {
        survival::write(&out, &lines)?
    } else {
        write(&out, &lines)?
    }
    Ok(status)
}

/// Shows what the program says of its work, and keeps the lines that begin so.
fn pump(reader: PipeReader, shows_json: bool, kept: &str) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for line in BufReader::new(reader).lines() {
        let line = line.context("read the program's output")?;
        let line = line.trim_end();
        if line.starts_with(kept) {
            lines.push(line.to_owned());
            if shows_json {
                println!("{line}");
            }
        } else if shows_json {
            eprintln!("{line}");
        } else {
            println!("{line}");
        }
    }
    Ok(lines)
}

/// Writes the curves as they are, one a line, and a drawing of each.
fn write(out: &Path, lines: &[String]) -> Result<()> {
    fs::create_dir_all(out).with_context(|| format!("create {}", out.display()))?;
    let json = out.join("curves.jsonl");
    fs::write(&json, lines.iter().map(|line| format!("{line}\n")).collect::<String>())
        .with_context(|| format!("write {}", json.display()))?;
    for line in lines {
        let curve: svg::Curve = serde_json::from_str(line).context("read a curve")?;
        let file = out.join(curve.file_name());
        fs::write(&file, curve.draw()).with_context(|| format!("write {}", file.display()))?;
    }
    step::say("  --", "curves", &format!("{} curves in {}", lines.len(), out.display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The program measures what the names promise, and an unknown name is refused with those that there are.
    #[test]
    fn a_name_that_selects_nothing_is_refused() {
        let only = |names: &[&str], is_curves| {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            names::check(&names, is_curves)
        };
        assert_eq!(only(&[], false), Ok(()));
        assert_eq!(only(&["latency", "proxy"], false), Ok(()));
        assert_eq!(only(&["growth"], true), Ok(()));
        let unknown = only(&["latency", "growth"], false).unwrap_err();
        assert!(unknown.starts_with("--only: no rows have the name \"growth\": latency, "), "{unknown}");
        assert!(only(&[""], true).unwrap_err().ends_with(": growth, rate, filter, resume, tree"));
    }

    #[test]
    fn each_name_is_measured() {
        let program = include_str!("../../../tests/src/bin/bench/main.rs");
        let rows = names::ROWS.map(|name| format!("if wanted(\"{name}\")"));
        let curves = names::CURVES.map(|name| format!("if arguments.wants(\"{name}\")"));
        for condition in rows.iter().chain(&curves) {
            assert_eq!(program.matches(condition).count(), 1, "{condition}");
        }
        assert_eq!(program.matches("wanted(\"").count(), names::ROWS.len());
    }
}
