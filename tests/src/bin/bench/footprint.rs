//! What kwitness takes of a node with a thousand containers: memory, time to start, CPU when nothing happens.

use std::collections::HashMap;
use std::fs;
use std::process::Child;

use kwitness_tests::prelude::*;
use procfs::process::MMapPath;

use crate::report::{Row, Target, quantile};
use crate::start::Floor;

pub(crate) const CONTAINERS: usize = 1000;
const STARTS: usize = 10;
const STARTS_IN_A_GUEST: usize = 3;
const IDLE: Duration = Duration::from_secs(20);
const SLEEPER: &str = "/usr/bin/busybox";

/// How long the last of many containers may take to run its program.
const RUNNING_LIMIT: Duration = Duration::from_secs(120);

pub(crate) struct Crowd {
    containers: Vec<(HandMade, Child)>,
    kubepods: Kubepods,
    has_limits: bool,
}

impl Crowd {
    /// Of none, in cgroups with files for memory limits or without.
    pub(crate) fn new(environment: &Environment, has_limits: bool) -> Result<Self> {
        let kubepods = Kubepods::make(environment)?;
        if has_limits {
            kubepods.enable("+memory")?;
        }
        Ok(Self { containers: Vec::new(), kubepods, has_limits })
    }

    /// Makes more of them until there are so many, and waits until each runs its program.
    pub(crate) fn grow(&mut self, count: usize) -> Result<()> {
        let first = self.len();
        while self.len() < count {
            let pods = &self.kubepods;
            let container = if self.has_limits { pods.limited_container() } else { pods.container() }?;
            let mut child = container.start(SLEEPER, &["sleep", "100000"])?;
            // It prints nothing, and a descriptor for each is more than a process may have.
            drop(child.stdout.take());
            self.containers.push((container, child));
        }
        let deadline = Instant::now() + RUNNING_LIMIT;
        for (_, child) in self.containers.iter().skip(first) {
            let path = format!("/proc/{}/comm", child.id());
            while fs::read_to_string(&path).with_context(|| format!("read {path}"))?.trim() != "busybox" {
                ensure!(Instant::now() < deadline, "{count} containers do not run after {RUNNING_LIMIT:?}");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    }

    pub(crate) fn len(&self) -> usize {
        self.containers.len()
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for (_, child) in &mut self.containers {
            // Fails only for one that has ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub(crate) async fn measure(environment: &Environment) -> Result<Vec<Row>> {
    let starts = environment.of_tier(STARTS, STARTS_IN_A_GUEST);
    let mut crowd = Crowd::new(environment, false)?;
    crowd.grow(CONTAINERS)?;
    let floor = Floor::of_this_kernel()?;
    let (mut times, mut floors, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    let mut of_files = Vec::new();
    for _ in 0..starts {
        floors.push(floor.time(&environment.cgroup2)?);
        let began = Instant::now();
        let agent = Agent::start(environment, &["log.level=warn"]).await?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
        let known = agent.list().await?.containers.len();
        ensure!(known == crowd.len(), "kwitness knows {known} of {CONTAINERS} containers");
        let Resident { files, anonymous } = Resident::of(agent.pid())?;
        memory.push((files + anonymous) / 1e6);
        of_files.push(files / 1e6);
        agent.stop()?;
    }

    let agent = Agent::start(environment, &["log.level=warn"]).await?;
    let shares = idle_shares(agent.pid(), IDLE).await?;
    agent.stop()?;
    Ok(vec![
        Row::ratio(
            "footprint: start with 1,000 containers, against floor",
            &times,
            &floors,
            Target::AtMost(2.0),
            format!(
                "{:.0} ms from execve to SERVING; a bare loader and a bare walk of the tree {:.0} ms; {starts} starts",
                quantile(&times, 0.5),
                quantile(&floors, 0.5)
            ),
        ),
        Row::of(
            "footprint: resident with 1,000 containers",
            &memory,
            "MB",
            Target::AtMost(25.0),
            format!(
                "all mappings but the kernel's rings; {:.1} MB are the program and its libraries",
                quantile(&of_files, 0.5)
            ),
        ),
        Row::of(
            "footprint: idle CPU with 1,000 containers",
            &shares,
            "%",
            Target::AtMost(0.1),
            format!("of one core, over {} s in 4 parts", IDLE.as_secs()),
        ),
    ])
}

/// What a daemon that has just started takes of a core, in per cent, in each of four parts of that time.
pub(crate) async fn idle_shares(pid: u32, time: Duration) -> Result<Vec<f64>> {
    // What the start left to do is not idleness.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut shares = Vec::new();
    for _ in 0..4 {
        let (before, began) = (cpu_times(pid)?, Instant::now());
        tokio::time::sleep(time / 4).await;
        let busy = ran(&before, &cpu_times(pid)?);
        shares.push(busy.as_secs_f64() / began.elapsed().as_secs_f64() * 100.0);
    }
    Ok(shares)
}

/// The bytes of a process that no file backs: what is its own, whoever else runs the same program.
pub(crate) fn anonymous(pid: u32) -> Result<f64> {
    Ok(process::status(pid)?.rssanon.context("the status has no RssAnon")? as f64 * 1024.0)
}

/// The bytes of a process that are in memory, without what it maps of the kernel's rings.
pub(crate) fn resident(pid: u32) -> Result<f64> {
    let Resident { files, anonymous } = Resident::of(pid)?;
    Ok(files + anonymous)
}

/// The parts of that.
struct Resident {
    /// Mapped from files: the program and its libraries.
    files: f64,
    /// The heap, stacks, and whatever else is its own.
    anonymous: f64,
}

impl Resident {
    fn of(pid: u32) -> Result<Self> {
        let mut resident = Self { files: 0.0, anonymous: 0.0 };
        for mapping in process::procfs_of(pid)?.smaps().context("read its mappings")? {
            let bytes = mapping.extension.map.get("Rss").copied().unwrap_or_default() as f64;
            match &mapping.pathname {
                of if format!("{of:?}").contains("bpf") => {}
                MMapPath::Path(_) => resident.files += bytes,
                _ => resident.anonymous += bytes,
            }
        }
        Ok(resident)
    }
}

/// What each thread of a process has run, in the scheduler's own nanoseconds.
pub(crate) fn cpu_times(pid: u32) -> Result<HashMap<i32, u64>> {
    let tasks = process::procfs_of(pid)?.tasks().context("list its threads")?;
    // A thread may end while the others are looked at.
    let times = tasks.filter_map(|task| {
        let task = task.ok()?;
        Some((task.tid, task.schedstat().ok()?.sum_exec_runtime))
    });
    Ok(times.collect())
}

/// What the threads have run in between; of one that has ended, the rest is not known and is nothing for an idle one.
pub(crate) fn ran(before: &HashMap<i32, u64>, after: &HashMap<i32, u64>) -> Duration {
    let each = after.iter().map(|(thread, ran)| ran - before.get(thread).copied().unwrap_or_default());
    Duration::from_nanos(each.sum())
}
