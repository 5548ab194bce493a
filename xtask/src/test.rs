//! The `test` task: which tests run where, their runs, and the count of all.
//!
//! | Tier | Where | What |
//! |---|---|---|
//! | unit | here, as any user | the tests inside the crates |
//! | host | this machine's kernel, in private namespaces | the integration tests |
//! | vm | guests: [`GUESTS`] | the integration tests |
//!
//! A place that could not run is a failure with its reason, never skipped.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};

use crate::artifacts::{Builder, Executable, TESTS_PACKAGE, in_job};
use crate::job::{Job, MOUNT, quoted};
use crate::place::{Cache, Workspace};
use crate::setup::kubernetes::KUBELET;
use crate::setup::{self, Needs, critools};
use crate::tally::{self, BEGIN, END, Tally};
use crate::versions::{DEFAULT_ROOT, KernelSeries, RootSpec};
use crate::vm::{Guest, Output};
use crate::{host, images, run, signals, step};

/// The packages whose own tests are the unit tier.
const UNIT: &[&str] = &["kwitness-abi", "kwitness-core", "kwitness", "xtask"];
/// The guests, as kernel and root: each kernel with containerd 1.7 or 2.x, and one with systemd as process 1.
const GUESTS: &[(&str, &str)] = &[
    ("5.10", "trixie"),
    ("6.1", "trixie"),
    ("6.12", "trixie"),
    ("7.2", "forky"),
    ("6.12", "trixie-systemd"),
];
/// Guests that run at a time; each is emulated by one processor.
const GUESTS_AT_ONCE: usize = 2;
/// Targets that do not run everywhere, and where they do; the places are named as in the table at the end. Any
/// other target runs on the host and in each guest, and leaves out by itself what cannot apply there.
///
/// The CRI proxy needs nothing of a kernel; what it is compared with takes long where every instruction is emulated.
const ONLY_IN: &[(&str, &[&str])] = &[("cri", &["host"]), ("kubelet", &["host"])];
/// After this long a place is given up.
const HOST_LIMIT: Duration = Duration::from_secs(900);
/// See [`HOST_LIMIT`].
const GUEST_LIMIT: Duration = Duration::from_secs(1800);
/// Lines of a log that a failure shows.
const TAIL: usize = 60;

/// What to test.
#[derive(Args)]
pub struct Test {
    /// Only these tiers
    #[arg(long, value_enum)]
    tier: Vec<Tier>,
    /// Only guests with these kernels
    #[arg(long, value_name = "SERIES")]
    kernel: Vec<String>,
    /// Only guests with these roots
    #[arg(long, value_name = "NAME")]
    root: Vec<String>,
    /// Only these targets of the integration tests
    #[arg(long, value_name = "NAME")]
    target: Vec<String>,
    /// Only tests whose name has this in it
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
}

/// See the table of the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Tier {
    Unit,
    Host,
    Vm,
}

/// Where integration tests run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Host,
    Guest { kernel: &'static KernelSeries, root: &'static RootSpec },
}

impl Place {
    fn name(self) -> String {
        match self {
            Self::Host => "host".to_owned(),
            Self::Guest { kernel, root } => format!("vm {} {}", kernel.name, root.name),
        }
    }

    /// The places that the command line asks for.
    fn chosen(test: &Test) -> Result<Vec<Self>> {
        let tier = |tier| test.tier.is_empty() || test.tier.contains(&tier);
        for kernel in &test.kernel {
            KernelSeries::find(kernel)?;
        }
        for root in &test.root {
            RootSpec::find(root)?;
        }
        let mut places = Vec::new();
        if tier(Tier::Host) {
            places.push(Self::Host);
        }
        if tier(Tier::Vm) {
            for (kernel, root) in GUESTS {
                let wanted =
                    |asked: &[String], name: &str| asked.is_empty() || asked.iter().any(|a| a == name);
                if wanted(&test.kernel, kernel) && wanted(&test.root, root) {
                    places.push(Self::Guest {
                        kernel: KernelSeries::find(kernel)?,
                        root: RootSpec::find(root)?,
                    });
                }
            }
            if places.iter().all(|place| *place == Self::Host) {
                let guests: Vec<_> = GUESTS.iter().map(|(kernel, root)| format!("{kernel} {root}")).collect();
                bail!("no guest has that kernel and root; there are: {}", guests.join(", "));
            }
        }
        Ok(places)
    }

    fn needs(self) -> Needs {
        let mut needs = Needs { bpf: true, ..Needs::default() };
        match self {
            Self::Host => {
                needs.trees.extend([DEFAULT_ROOT]);
                needs.cri_tools = true;
                needs.kubelet = true;
            }
            Self::Guest { kernel, root } => {
                needs.kernels.insert(kernel.name);
                needs.disks.insert(root.name);
            }
        }
        needs
    }

    /// Whether a target runs here.
    fn runs(self, target: &str) -> bool {
        let only = ONLY_IN.iter().find(|(name, _)| *name == target);
        only.is_none_or(|(_, places)| places.contains(&self.name().as_str()))
    }
}

/// One line of the table at the end.
struct Row {
    name: String,
    tally: Tally,
    time: Duration,
}

/// Runs the tests; whether all passed.
pub fn task(workspace: &Workspace, cache: &Cache, test: &Test) -> Result<bool> {
    let places = Place::chosen(test)?;
    let logs = workspace.scratch("logs")?;
    let unit = test.tier.is_empty() || test.tier.contains(&Tier::Unit);
    let mut rows = Vec::new();
    match prepare(workspace, cache, test, &places) {
        Ok(prepared) => {
            if unit {
                rows.push(row("unit", &logs, |log| unit_tests(&prepared.builder, test, log)));
            }
            rows.extend(prepared.run(workspace, cache, test, &places, &logs));
        }
        // Nothing runs without what all tiers are built from, and each counts as failed.
        Err(error) => {
            let names = places.iter().map(|place| place.name());
            for name in unit.then(|| "unit".to_owned()).into_iter().chain(names) {
                let tally = Tally::failure(format!("{error:#}"));
                rows.push(Row { name, tally, time: Duration::ZERO });
            }
        }
    }
    let total = print(&rows);
    Ok(total.failed == 0)
}

/// What all places share.
struct Prepared<'a> {
    builder: Builder<'a>,
    kwitness: PathBuf,
    tests: Vec<Executable>,
}

fn prepare<'a>(
    workspace: &'a Workspace,
    cache: &Cache,
    test: &Test,
    places: &[Place],
) -> Result<Prepared<'a>> {
    let mut needs = Needs { bpf: true, ..Needs::default() };
    for place in places {
        needs.extend(place.needs());
    }
    setup::ensure(cache, &needs)?;
    let builder = Builder::new(workspace, cache)?;
    let mut prepared = Prepared { builder, kwitness: PathBuf::new(), tests: Vec::new() };
    if !places.is_empty() {
        step::timed("build kwitness and its tests", || {
            prepared.kwitness = prepared.builder.kwitness()?;
            prepared.tests = prepared.builder.tests()?;
            prepared.tests.retain(|built| test.target.is_empty() || test.target.contains(&built.name));
            ensure!(
                !prepared.tests.is_empty(),
                "no integration tests of these names: {}",
                test.target.join(", ")
            );
            Ok(String::new())
        })?;
    }
    Ok(prepared)
}

fn unit_tests(builder: &Builder, test: &Test, log: &Path) -> Result<Tally> {
    let mut total = Tally::default();
    let packages: Vec<_> = UNIT.iter().flat_map(|package| ["--package", package]).collect();
    let mut crates = builder.cargo("test");
    crates.args(["--quiet", "--no-fail-fast"]).args(packages);
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
    fn run(
        &self,
        workspace: &Workspace,
        cache: &Cache,
        test: &Test,
        places: &[Place],
        logs: &Path,
    ) -> Vec<Row> {
        let one =
            |place: Place| row(&place.name(), logs, |log| self.place(workspace, cache, test, place, log));
        let (hosts, guests): (Vec<_>, Vec<_>) =
            places.iter().copied().partition(|place| *place == Place::Host);
        // Alone on the machine: its tests measure times.
        let mut rows: Vec<_> = hosts.into_iter().map(one).collect();
        let queue = Mutex::new(guests.iter().copied().enumerate());
        let done = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..GUESTS_AT_ONCE.min(guests.len()) {
                scope.spawn(|| {
                    loop {
                        let next = queue.lock().ok().and_then(|mut queue| queue.next());
                        let Some((index, place)) = next else { return };
                        let row = one(place);
                        if let Ok(mut done) = done.lock() {
                            done.push((index, row));
                        }
                    }
                });
            }
        });
        let mut done = done.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        done.sort_by_key(|(index, _)| *index);
        // A thread that died has left no row, but its place must not go missing.
        for (index, place) in guests.iter().enumerate() {
            let found = done.iter().position(|(of, _)| *of == index);
            rows.push(match found {
                Some(at) => done.swap_remove(at).1,
                None => Row {
                    name: place.name(),
                    tally: Tally::failure("the thread that runs it died"),
                    time: Duration::ZERO,
                },
            });
        }
        rows
    }

    fn place(
        &self,
        workspace: &Workspace,
        cache: &Cache,
        test: &Test,
        place: Place,
        log: &Path,
    ) -> Result<Tally> {
        let targets: Vec<_> = self.tests.iter().filter(|built| place.runs(&built.name)).collect();
        let dir = tempfile::tempdir_in(workspace.scratch("jobs")?).context("make the job's directory")?;
        let mut job = Job::new(dir.path().join("job"))?;
        job.env("RUST_BACKTRACE", "1");
        job.add(&self.kwitness, &in_job("kwitness"))?;
        images::write(cache, &job.dir().join("images.tar"))?;
        for target in &targets {
            job.add(&target.path, &Path::new("tests").join(&target.name))?;
        }
        if place == Place::Host {
            for name in critools::NAMES {
                job.add(&cache.tool(name), &in_job(name))?;
            }
            // Where it is not there, the tests that need it say so.
            if cache.tool(KUBELET).exists() {
                job.add(&cache.tool(KUBELET), &in_job(KUBELET))?;
            }
        }
        let names: Vec<_> = targets.iter().map(|target| target.name.clone()).collect();
        let script = script(&names, test.filter.as_deref());
        let file = File::create(log).with_context(|| format!("create {}", log.display()))?;
        let ended = match place {
            Place::Host => {
                job.env("KWITNESS_TIER", "host");
                job.env("KWITNESS_ROOT", DEFAULT_ROOT);
                job.script(&script)?;
                let tree = RootSpec::find(DEFAULT_ROOT)?.tree(cache)?;
                host::run(cache, &tree, &job, Output::File(file), Some(HOST_LIMIT))
            }
            Place::Guest { kernel, root } => {
                job.env("KWITNESS_TIER", "vm");
                job.env("KWITNESS_ROOT", root.name);
                job.script(&script)?;
                let guest = Guest { kernel, root, processors: 1, memory: 2048, timeout: Some(GUEST_LIMIT) };
                guest.run(cache, &job, Output::File(file))
            }
        };
        let output = fs::read(log).with_context(|| format!("read {}", log.display()))?;
        let mut tally = tally::job(&String::from_utf8_lossy(&output), &names);
        // The targets' own statuses are in the output; what is left to tell is that the place itself failed.
        if let Err(error) = ended {
            tally += Tally::failure(format!("{error:#}"));
        }
        Ok(tally)
    }
}

/// The job: each target, whatever became of the one before.
fn script(targets: &[String], filter: Option<&str>) -> String {
    let filter = filter.map(quoted).unwrap_or_default();
    let mut script = String::new();
    for target in targets {
        // The end has a line of its own even when the target ended within one.
        script += &format!(
            "echo '{BEGIN}{target}'\n{MOUNT}/tests/{target} --test-threads=1 {filter}\nprintf '\\n{END}%d\\n' $?\n"
        );
    }
    script
}

/// Runs one place with its log, and shows the end of that if something failed.
fn row(name: &str, logs: &Path, work: impl FnOnce(&Path) -> Result<Tally>) -> Row {
    if signals::caught() {
        return Row { name: name.to_owned(), tally: Tally::failure("interrupted"), time: Duration::ZERO };
    }
    let log = logs.join(format!("{}.log", name.replace(' ', "-")));
    step::say("  ..", name, &format!("log in {}", log.display()));
    let start = Instant::now();
    let tally = work(&log).unwrap_or_else(|error| Tally::failure(format!("{error:#}")));
    let time = start.elapsed();
    let mark = if tally.failed == 0 { "  ok" } else { "FAIL" };
    step::say(mark, name, &format!("{}  {}", step::seconds(time), tally::closing(&tally)));
    if tally.failed > 0 {
        for reason in &tally.reasons {
            eprintln!("     {reason}");
        }
        eprintln!("---- the end of {} ----\n{}\n----", log.display(), run::tail(&log, TAIL));
    }
    Row { name: name.to_owned(), tally, time }
}

/// Prints the table and the closing line; returns the sum.
fn print(rows: &[Row]) -> Tally {
    let mut total = Tally::default();
    println!("\n{:<24} {:>7} {:>7} {:>9}", "where", "passed", "failed", "time");
    for row in rows {
        let time = step::seconds(row.time);
        println!("{:<24} {:>7} {:>7} {:>9}", row.name, row.tally.passed, row.tally.failed, time.trim());
        for reason in &row.tally.reasons {
            println!("    {}", reason.lines().next().unwrap_or_default());
        }
        total += row.tally.clone();
    }
    println!("\n{}", tally::closing(&total));
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::versions::KERNELS;

    fn test(tiers: &[Tier], kernels: &[&str], roots: &[&str]) -> Test {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Test {
            tier: tiers.to_vec(),
            kernel: owned(kernels),
            root: owned(roots),
            target: Vec::new(),
            filter: None,
        }
    }

    fn names(test: &Test) -> Vec<String> {
        Place::chosen(test).unwrap().into_iter().map(Place::name).collect()
    }

    #[test]
    fn every_kernel_is_tested() {
        let all = names(&test(&[], &[], &[]));
        assert_eq!(all.len(), 1 + GUESTS.len());
        for kernel in KERNELS {
            assert!(
                all.iter().any(|name| name.starts_with(&format!("vm {} ", kernel.name))),
                "{}",
                kernel.name
            );
        }
    }

    #[test]
    fn places_are_chosen_by_tier_kernel_and_root() {
        assert_eq!(names(&test(&[Tier::Unit], &[], &[])), [] as [&str; 0]);
        assert_eq!(names(&test(&[Tier::Host], &[], &[])), ["host"]);
        assert_eq!(names(&test(&[Tier::Vm], &["6.12"], &[])), ["vm 6.12 trixie", "vm 6.12 trixie-systemd"]);
        assert_eq!(names(&test(&[Tier::Vm], &["6.12"], &["trixie"])), ["vm 6.12 trixie"]);
        assert_eq!(names(&test(&[], &["7.2"], &[])), ["host", "vm 7.2 forky"]);
        assert!(Place::chosen(&test(&[Tier::Vm], &["4.19"], &[])).is_err());
        assert!(Place::chosen(&test(&[Tier::Vm], &["5.10"], &["forky"])).is_err());
    }

    #[test]
    fn a_job_tells_where_each_target_begins_and_how_it_ended() {
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
        assert!(text.contains("0 failed; a b\n== end 0\n"), "{text}");
        let tally = tally::job(&text, &["one".to_owned(), "two".to_owned(), "three".to_owned()]);
        assert_eq!((tally.passed, tally.failed), (2, 1), "{text}");
        assert_eq!(tally.reasons, ["three did not run"]);
    }
}
