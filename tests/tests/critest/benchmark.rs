//! critest's own benchmark, straight and through the proxy: how long each of its calls takes. Told, and not judged: these calls take
//! a hundred times as long as the proxy.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use kwitness_tests::bed::Bed;
use kwitness_tests::node::CONTAINERD_SOCKET;
use kwitness_tests::process::Managed;
use serde::Deserialize;

use crate::compare::{LIMIT, command};

/// So many pods and so many containers, one after the other.
const SIZES: &str = "podsNumber: 20\ncontainersNumber: 20\n";
/// What critest calls its files.
const RESULTS: [&str; 2] = ["pod_benchmark_data.json", "container_benchmark_data.json"];

/// A file of results: `LifecycleBenchmarksResultsSet` of critest's `pkg/benchmark/util.go`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Results {
    operations_names: Vec<String>,
    datapoints: Vec<Datapoint>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Datapoint {
    /// In nanoseconds, one for each operation.
    operations_durations_ns: Vec<u64>,
}

/// The median of each operation, in milliseconds.
type Medians = BTreeMap<String, f64>;

fn run(bed: &Bed, directory: &Path, socket: &Path) -> Result<Medians> {
    let results = tempfile::tempdir_in(directory).context("make a directory for the results")?;
    let sizes = results.path().join("sizes.yaml");
    fs::write(&sizes, SIZES).context("write the benchmark's sizes")?;
    let mut command = command(bed, directory, socket);
    command.arg("-benchmark").arg("-benchmarking-params-file").arg(&sizes);
    command.arg("-benchmarking-output-dir").arg(results.path());
    let log = directory.join("benchmark.log");
    let mut process = Managed::spawn("critest", command, &log)?;
    let status = process.wait(LIMIT)?;
    ensure!(status.success(), "critest -benchmark: {status}\n{}", process.log_tail());
    let mut medians = Medians::new();
    for name in RESULTS {
        let text = fs::read(results.path().join(name)).with_context(|| format!("read {name}"))?;
        let Results { operations_names, datapoints } =
            serde_json::from_slice(&text).with_context(|| format!("{name} as critest writes it"))?;
        for (index, operation) in operations_names.into_iter().enumerate() {
            let of = |point: &Datapoint| point.operations_durations_ns.get(index).copied();
            let mut all: Vec<_> = datapoints.iter().filter_map(of).collect();
            all.sort_unstable();
            let median = all.get(all.len() / 2).with_context(|| format!("{name}: no {operation}"))?;
            medians.insert(operation, *median as f64 / 1e6);
        }
    }
    Ok(medians)
}

/// Runs it both ways, and prints a table.
pub(crate) fn print(bed: &Bed, directory: &Path, proxy: &Path) -> Result<()> {
    let straight = run(bed, directory, Path::new(CONTAINERD_SOCKET))?;
    let proxied = run(bed, directory, proxy)?;
    println!("{:<16} {:>12} {:>12} {:>7}", "critest's median", "straight", "proxied", "ratio");
    for (operation, straight) in &straight {
        let proxied = proxied.get(operation).with_context(|| format!("no {operation} through the proxy"))?;
        println!("{operation:<16} {straight:>9.2} ms {proxied:>9.2} ms {:>7.2}", proxied / straight);
    }
    Ok(())
}
