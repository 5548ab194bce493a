//! The `test` task: which tests run where, their runs, and the count of all.
//!
//! | Tier | Where | What |
//! |---|---|---|
//! | unit | here, as any user | the tests inside the crates |
//! | host | this machine's kernel, in private namespaces | the integration tests |
//! | vm | guests: `versions::GUESTS` | the integration tests |
//!
//! A machine that could not run is a failure with its reason, never skipped.
//!
//! Guests run in two lanes: one from the start, the other after the unit tests and the hosts, which mostly wait. So no test may
//! depend on an idle machine.

mod machines;
mod rows;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};

use crate::architecture::Architecture;
use crate::artifacts::{Builder, Executable, PLUGIN, TESTS_PACKAGE, in_job};
use crate::job::{Job, MOUNT, quoted};
use crate::setup::kubernetes::KUBELET;
use crate::setup::{self, Needs, Tool, clients};
use crate::tally::{self, BEGIN, END, Tally};
use crate::vm::{Guest, Output};
use crate::workspace::{Cache, Workspace};
use crate::{chart, dist, host, image, images, layout, step};

use machines::{Machine, Missing, WITH_DEPLOYMENT, WITH_PLUGIN, WITH_TOOL, startable};
use rows::{Row, print, row};

/// The packages whose own tests are the unit tier.
const UNIT: &[&str] = &[
    "kwitness-abi",
    "kwitness-btf",
    "kwitness-guard",
    "kwitness-core",
    "kwitness-api",
    "kwitness-cri",
    "kwitness-service",
    "kwitness-agent",
    "kwitness-cri-proxy",
    "kwitness-export",
    "kwitness",
    "xtask",
];
/// What runs at a time; a guest is emulated by one processor.
const LANES: usize = 2;
/// Targets that guests run in a boot of their own, after all others: in parts, the lanes end at about the same time.
const APART: &[&str] = &["cluster", "runtime", "matrix"];
/// After this long a machine is given up.
const HOST_LIMIT: Duration = Duration::from_secs(1800);
/// See [`HOST_LIMIT`].
const GUEST_LIMIT: Duration = Duration::from_secs(2400);
/// With `--long`, where the verdict matrix has a dozen kubelets.
const LONG_GUEST_LIMIT: Duration = Duration::from_secs(7200);
/// What to test.
#[derive(Args)]
pub struct Test {
    /// Only these tiers
    #[arg(long, value_enum)]
    tier: Vec<Tier>,
    /// Only guests with these kernels
    #[arg(long, value_name = "SERIES")]
    kernel: Vec<String>,
    /// Only nodes and guests with these roots
    #[arg(long, value_name = "NAME")]
    root: Vec<String>,
    /// Only these targets of the integration tests
    #[arg(long, value_name = "NAME")]
    target: Vec<String>,
    /// Only tests whose name has this in it
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// With the kubelet of this release, not 1.36; built first, which takes minutes
    #[arg(long, value_name = "RELEASE", value_parser = ["1.34", "1.35", "1.37"])]
    kubelet: Option<String>,
    /// Also what takes long: all of critest, and its benchmark; a subscriber that stalls for a minute; the whole verdict matrix;
    /// outages on every kernel, and one of thousands of containers; the probes and the daemon on arm64; the chart's pod and its release
    /// on a node; the kubelets of other releases; the demos of the guard, of a build and of a JVM; in guests, every combination of OCI
    /// runtime and cgroup driver
    #[arg(long)]
    long: bool,
}

/// See the table of the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Tier {
    Unit,
    Host,
    Vm,
}

pub fn task(workspace: &Workspace, cache: &Cache, test: &Test) -> Result<bool> {
    let machines = Machine::chosen(test)?;
    let logs = workspace.scratch("logs")?;
    let unit = test.tier.is_empty() || test.tier.contains(&Tier::Unit);
    let rows = match prepare(workspace, cache, test, &machines) {
        Ok(prepared) => prepared.run(unit, &machines, &logs),
        // Nothing runs without what all tiers are built from, and each counts as failed.
        Err(error) => {
            let names = machines.iter().map(|machine| machine.name());
            let names = unit.then(|| "unit".to_owned()).into_iter().chain(names);
            let tally = Tally::failure(format!("{error:#}"));
            names.map(|name| Row { name, tally: tally.clone(), time: Duration::ZERO }).collect()
        }
    };
    let total = print(&rows);
    Ok(total.failed == 0)
}

struct Prepared<'a> {
    workspace: &'a Workspace,
    cache: &'a Cache,
    test: &'a Test,
    builder: Builder<'a>,
    /// One for each architecture of a machine.
    programs: Vec<Programs>,
    /// Programs that are needed and could not be made.
    missing: Vec<Missing>,
}

/// What machines of an architecture run.
struct Programs {
    architecture: Architecture,
    kwitness: PathBuf,
    /// The kubectl plugin, where a target needs it.
    plugin: Option<PathBuf>,
    tests: Vec<Executable>,
}

fn prepare<'a>(
    workspace: &'a Workspace,
    cache: &'a Cache,
    test: &'a Test,
    machines: &[Machine],
) -> Result<Prepared<'a>> {
    let mut needs = Needs::tools(&[Tool::Bpf]);
    for machine in machines {
        needs.extend(machine.needs(test));
    }
    let apart: Vec<_> = WITH_TOOL.iter().filter(|(tool, _)| needs.tools.remove(tool)).collect();
    setup::ensure(cache, &needs)?;
    let missing = apart.into_iter().filter_map(|&(tool, targets)| {
        let error = setup::ensure(cache, &Needs::tools(&[tool])).err()?;
        Some(Missing { targets, why: format!("{error:#}") })
    });
    let missing = missing.collect();
    let builder = Builder::new(workspace, cache)?;
    let architectures: BTreeSet<_> = machines.iter().map(|machine| machine.architecture()).collect();
    let programs =
        architectures.into_iter().map(|architecture| build(&builder, architecture, test, machines));
    let programs = programs.collect::<Result<_>>()?;
    Ok(Prepared { workspace, cache, test, builder, programs, missing })
}

fn build(
    builder: &Builder<'_>,
    architecture: Architecture,
    test: &Test,
    machines: &[Machine],
) -> Result<Programs> {
    let builder = builder.for_architecture(architecture)?;
    let names: BTreeSet<_> = match architecture {
        Architecture::HOST => ["*"].into(),
        // Only what runs there: most of the time is for linking.
        _ => {
            let there = machines.iter().filter(|machine| machine.architecture() == architecture);
            there.flat_map(|machine| machine.targets(test)).collect()
        }
    };
    let what = format!("build kwitness and its tests for {}", architecture.name());
    step::expected(&what, step::BUILD, || {
        let (kwitness, mut tests) = (builder.kwitness()?, builder.tests(names)?);
        tests.retain(|built| test.target.is_empty() || test.target.contains(&built.name));
        ensure!(!tests.is_empty(), "no integration tests of these names: {}", test.target.join(", "));
        let is_used = tests.iter().any(|built| WITH_PLUGIN.contains(&built.name.as_str()));
        let plugin = is_used.then(|| builder.plugin()).transpose()?;
        Ok(Programs { architecture, kwitness, plugin, tests })
    })
}

fn unit_tests(builder: &Builder, test: &Test, log: &Path) -> Result<Tally> {
    let mut total = Tally::default();
    let packages: Vec<_> = UNIT.iter().flat_map(|package| ["--package", package]).collect();
    let mut crates = builder.cargo("test");
    crates.args(["--quiet", "--no-fail-fast", "--features", "kwitness/kubectl"]).args(packages);
    let mut support = builder.cargo("test");
    support.args(["--quiet", "--package", TESTS_PACKAGE, "--lib"]);
    let mut file = File::create(log).with_context(|| format!("create {}", log.display()))?;
    for command in [&mut crates, &mut support] {
        command.args(&test.filter);
        let start = fs::metadata(log).context("stat the log")?.len();
        let status = command
            .stdin(std::process::Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file.try_clone()?)
            .status()
            .context("start cargo")?;
        std::io::Write::flush(&mut file)?;
        let output = fs::read(log).context("read the log")?;
        let output = String::from_utf8_lossy(&output[usize::try_from(start)?..]).into_owned();
        total += tally::this("cargo test", &output, status.code());
    }
    Ok(total)
}

impl Prepared<'_> {
    fn run(&self, unit: bool, machines: &[Machine], logs: &Path) -> Vec<Row> {
        let one = |part: &Part<'_>| row(&part.name(), logs, |log| self.part(part, log));
        let (hosts, guests): (Vec<_>, Vec<_>) = parts(machines, &self.programs, self.test.long)
            .into_iter()
            .partition(|part| matches!(part.machine, Machine::Host { .. }));
        let queue = Mutex::new(guests.iter().enumerate());
        let done = Mutex::new(Vec::new());
        let guest_after_guest = || {
            loop {
                let next = queue.lock().ok().and_then(|mut queue| queue.next());
                let Some((index, part)) = next else { return };
                let row = one(part);
                if let Ok(mut done) = done.lock() {
                    done.push((index, row));
                }
            }
        };
        let mut rows = Vec::new();
        std::thread::scope(|scope| {
            for _ in 1..LANES {
                scope.spawn(guest_after_guest);
            }
            if unit {
                rows.push(row("unit", logs, |log| unit_tests(&self.builder, self.test, log)));
            }
            rows.extend(hosts.iter().map(one));
            guest_after_guest();
        });
        let mut done = done.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        done.sort_by_key(|(index, _)| *index);
        // A thread that died has left no row, but its part must not go missing.
        for (index, part) in guests.iter().enumerate() {
            let found = done.iter().position(|(of, _)| *of == index);
            rows.push(match found {
                Some(at) => done.swap_remove(at).1,
                None => Row {
                    name: part.name(),
                    tally: Tally::failure("the thread that runs it died"),
                    time: Duration::ZERO,
                },
            });
        }
        rows
    }

    fn part(&self, part: &Part<'_>, log: &Path) -> Result<Tally> {
        let &Self { workspace, cache, test, .. } = self;
        let here = part.targets.iter().copied();
        let (targets, mut tally) = startable(here, &self.missing);
        if targets.is_empty() {
            return Ok(tally);
        }
        let dir = tempfile::tempdir_in(workspace.scratch("jobs")?).context("make the job's directory")?;
        let mut job = Job::new(dir.path().join("job"))?;
        // Of panics only: an error's is never shown, and costs an emulated processor much.
        job.env("RUST_BACKTRACE", "1");
        job.env("RUST_LIB_BACKTRACE", "0");
        job.add(&part.programs.kwitness, &in_job("kwitness"))?;
        images::write(cache, part.machine.root(), &job.dir().join("images.tar"))?;
        for target in &targets {
            job.add(&target.path, &Path::new("tests").join(&target.name))?;
        }
        let runs = |with: &[&str]| targets.iter().any(|target| with.contains(&target.name.as_str()));
        let is_host = matches!(part.machine, Machine::Host { .. });
        let tools = part.machine.tools(test.long, |name| runs(&[name]));
        for name in tools.iter().flat_map(|tool| tool.programs()) {
            job.add(&cache.tool(name), &in_job(name))?;
        }
        if let Some(release) = &test.kubelet {
            job.env("KWITNESS_KUBELET", release);
            let name = format!("{KUBELET}-{release}");
            if tools.contains(&Tool::Kubernetes) && !tools.contains(&Tool::OtherKubelets) {
                job.add(&cache.tool(&name), &in_job(&name))?;
            }
        }
        if runs(WITH_DEPLOYMENT) {
            job.add(&workspace.root.join("deploy"), Path::new("deploy"))?;
        }
        if let Some(plugin) = part.programs.plugin.as_ref().filter(|_| runs(WITH_PLUGIN)) {
            job.add(plugin, &in_job(PLUGIN))?;
        }
        if runs(&["cluster"]) {
            let objects = serde_json::to_string(&chart::with_events(workspace, cache)?)?;
            fs::write(job.dir().join("exporter.json"), objects).context("write the exporter's objects")?;
        }
        if runs(&["cluster"]) && !is_host {
            image::of_program(workspace, &part.programs.kwitness, &job.dir().join("kwitness.tar"))?;
        }
        if tools.contains(&Tool::Packages) {
            dist::of_program(workspace, cache, &part.programs.kwitness, &job.dir().join("kwitness.deb"))?;
        }
        if tools.contains(&Tool::Clients) {
            job.add(&clients::python(cache), Path::new("python"))?;
            for folder in ["proto", "docs"] {
                job.add(&workspace.root.join(folder), Path::new(folder))?;
            }
        }
        if runs(&["critest"]) {
            layout::write(cache, &job.dir().join("layout"))?;
        }
        if test.long {
            job.env("KWITNESS_LONG", "1");
        }
        let names: Vec<_> = targets.iter().map(|target| target.name.clone()).collect();
        let script = script(&names, test.filter.as_deref());
        let file = File::create(log).with_context(|| format!("create {}", log.display()))?;
        let ended = match part.machine {
            Machine::Host { root } => {
                job.env("KWITNESS_TIER", "host");
                job.env("KWITNESS_ROOT", root.name);
                job.script(&script)?;
                host::run(cache, &root.tree(cache)?, &job, Output::File(file), Some(HOST_LIMIT))
            }
            Machine::Guest { kernel, root } => {
                job.env("KWITNESS_TIER", "vm");
                job.env("KWITNESS_ROOT", root.name);
                job.script(&script)?;
                // A control plane needs a gigabyte of its own, and so do the shims of some sixty pods.
                let memory = if runs(&["cluster", "demos", "matrix"]) { 4096 } else { 2048 };
                // A container can have a processor of its own only where others are left.
                let processors = if test.long && runs(&["matrix"]) { 3 } else { 1 };
                let timeout = Some(if test.long { LONG_GUEST_LIMIT } else { GUEST_LIMIT });
                let guest = Guest { kernel, root, processors, memory, timeout, leaves: None };
                guest.run(cache, &job, Output::File(file))
            }
        };
        let output = fs::read(log).with_context(|| format!("read {}", log.display()))?;
        tally += tally::job(&String::from_utf8_lossy(&output), &names);
        // The targets' own statuses are in the output; what is left to report is that the machine itself failed.
        if let Err(error) = ended {
            tally += Tally::failure(format!("{error:#}"));
        }
        Ok(tally)
    }
}

/// What is run in one go: a row of the table at the end.
struct Part<'a> {
    machine: Machine,
    /// Of [`APART`]; none: all others.
    apart: Option<&'static str>,
    /// Those of the machine's architecture.
    programs: &'a Programs,
    targets: Vec<&'a Executable>,
}

impl Part<'_> {
    fn name(&self) -> String {
        let machine = self.machine.name();
        self.apart.map_or_else(|| machine.clone(), |target| format!("{machine} {target}"))
    }
}

/// Everything that is to be run: hosts whole, guests in parts.
fn parts<'a>(machines: &[Machine], programs: &'a [Programs], long: bool) -> Vec<Part<'a>> {
    let mut parts = Vec::new();
    for apart in std::iter::once(None).chain(APART.iter().copied().map(Some)) {
        for machine in machines {
            let is_guest = matches!(machine, Machine::Guest { .. });
            let is_of = |name: &str| match apart {
                Some(target) => is_guest && name == target,
                None => !is_guest || !APART.contains(&name),
            };
            let of_machine = |programs: &&Programs| programs.architecture == machine.architecture();
            let Some(programs) = programs.iter().find(of_machine) else { continue };
            let tests = programs.tests.iter();
            let targets: Vec<_> =
                tests.filter(|built| machine.runs(&built.name, long) && is_of(&built.name)).collect();
            if !targets.is_empty() {
                parts.push(Part { machine: *machine, apart, programs, targets });
            }
        }
    }
    parts
}

/// The job: each target, whatever became of the one before.
fn script(targets: &[String], filter: Option<&str>) -> String {
    let filter = filter.map(quoted).unwrap_or_default();
    let mut script = String::new();
    for target in targets {
        // The end has a line of its own even when the target ended within one.
        script += &format!(
            "echo '{BEGIN}{target}'\nbegan=$(cut -d. -f1 /proc/uptime)\n\
             {MOUNT}/tests/{target} --test-threads=1 {filter}\n\
             printf '\\n{END}%d %d\\n' $? $(($(cut -d. -f1 /proc/uptime) - began))\n"
        );
    }
    script
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::versions::{KernelSeries, RootSpec};

    #[test]
    fn every_target_is_run_once_wherever_it_runs() {
        let built = |name: &str| Executable { name: name.to_owned(), path: name.into() };
        let tests = ["cri", "daemon", "probes", "runtime"].map(built);
        let architecture = Architecture::HOST;
        let programs =
            Programs { architecture, kwitness: "kwitness".into(), plugin: None, tests: tests.to_vec() };
        let machines = [
            Machine::Host { root: RootSpec::find("trixie").unwrap() },
            Machine::Guest {
                kernel: KernelSeries::find("5.10").unwrap(),
                root: RootSpec::find("trixie").unwrap(),
            },
            Machine::Guest {
                kernel: KernelSeries::find("6.12").unwrap(),
                root: RootSpec::find("trixie-systemd").unwrap(),
            },
        ];
        let programs = [programs];
        let parts = parts(&machines, &programs, false);
        let of = |part: &Part<'_>| part.targets.iter().map(|built| built.name.clone()).collect::<Vec<_>>();
        let all: Vec<_> = parts.iter().map(|part| (part.name(), of(part).join(" "))).collect();
        for machine in machines {
            for built in &tests {
                let runs =
                    parts.iter().filter(|part| part.machine == machine && of(part).contains(&built.name));
                assert_eq!(
                    runs.count(),
                    usize::from(machine.runs(&built.name, false)),
                    "{} of {all:?}",
                    built.name
                );
            }
        }
        let names: Vec<_> = all.iter().map(|(name, _)| name.as_str()).collect();
        let apart = ["vm 6.12 trixie-systemd runtime"];
        assert_eq!(names, [&["host", "vm 5.10 trixie"][..], &apart].concat());
    }

    #[test]
    fn a_job_reports_where_each_target_begins_and_how_it_ended() {
        let dir = tempfile::tempdir().unwrap();
        let script = script(&["one".to_owned(), "two".to_owned()], Some("a b"));
        // Where the job is mounted there is a stand-in for both targets.
        let stand_in = dir.path().join("target");
        fs::write(&stand_in, "#!/bin/sh\nprintf 'test result: ok. 1 passed; 0 failed; %s' \"$2\"\n").unwrap();
        let script = ["one", "two"].iter().fold(script, |script, target| {
            script.replace(&format!("{MOUNT}/tests/{target}"), &format!("sh {}", stand_in.display()))
        });
        let output = std::process::Command::new("sh").arg("-c").arg(script).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("0 failed; a b\n== end 0 "), "{text}");
        let tally = tally::job(&text, &["one".to_owned(), "two".to_owned(), "three".to_owned()]);
        assert_eq!((tally.passed, tally.failed), (2, 1), "{text}");
        assert_eq!(tally.reasons, ["three did not run"]);
    }
}
