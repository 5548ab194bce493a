//! A JVM that starts in a container with little CPU: as it is, with a boost until it is ready, and without a limit.
//!
//! The boost raises the limit and never removes it: a JVM without one sizes itself for the whole node.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Map, Value, json};
use tokio::net::TcpStream;

use super::controller::{Until, Work};
use super::{Follower, Limits, Move, ROOT_MOUNTS, notes, read_ahead, seconds, was_raised_and_returned};
use crate::cgroup;
use crate::chart::{Chart, Mark, Panel, Point, Unit};
use crate::claims::{self, Outcome};
use crate::cluster_node::{ClusterNode, PodRequest, Terminated};
use crate::environment::Environment;
use crate::limit::Limit;
use crate::out::{Out, until};

const LIMIT: u64 = 250;
const BOOST: u64 = 2000;
const LIMITS: Limits = Limits { original: Limit::MilliCpu(LIMIT), raised: Limit::MilliCpu(BOOST) };
const MEMORY: Limit = Limit::Memory(512 << 20);
const WORK: Work = Work { programs: &["java"], until: Until::Ready };
/// Where Debian's JDK is; its configuration is there by links.
const JDK: &str = "/usr/lib/jvm/java-21-openjdk-amd64";
const CONFIGURATION: &str = "/etc/java-21-openjdk";
/// AVX is slower than nothing where it is emulated.
const FLAGS: &str = "-Xmx96m -XX:+UseSerialGC -XX:UseAVX=0";
/// How many classes it compiles and loads.
const CLASSES: u32 = 8;
const SOURCE: (&str, &str) = ("Startup.java", include_str!("work/Startup.java"));
const EXECUTED: [&str; 2] = ["/usr/lib/jvm/java-21-openjdk-amd64/lib", "/usr/lib/x86_64-linux-gnu"];
/// Over which time usage is averaged: a fraction of the kernel's period of 100 ms would show its pattern.
const WINDOW: Duration = Duration::from_secs(1);
const SAMPLES_MAX: usize = 4096;

/// What the kernel has taken from a container by its limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Throttling {
    /// `nr_throttled` of `cpu.stat`: periods.
    periods: u64,
    /// `throttled_usec`.
    time: Duration,
}

#[derive(Clone, Debug)]
struct Life {
    samples: Vec<Point>,
    /// Since it was let go until it served.
    ready: Duration,
    /// Of the JVM's own account.
    processors: u32,
    throttling: Throttling,
    before_boost: Option<Throttling>,
    recognized: Option<String>,
    moves: Vec<Move>,
    ended: Terminated,
}

#[derive(Clone, Debug)]
struct Run {
    plain: Life,
    boosted: Life,
    unlimited: Life,
}

/// Starts it three times, one after the other, and gives `say` what happens, line by line.
pub async fn run(environment: &Environment, say: impl Fn(&str)) -> Result<Outcome> {
    say("A node comes up: containerd, API server, kubelet and daemon.");
    let cluster = ClusterNode::start(environment, Map::new()).await?;
    let done = async {
        read_ahead(&EXECUTED)?;
        let start = async |name, limit: Option<Limit>, limits| {
            let life = start(&cluster, name, limit, limits, &say).await?;
            say(&format!("It serves: {}.", life.account()));
            anyhow::Ok(life)
        };
        say(&format!("A JVM starts with a limit of {}, which stays.", LIMITS.original));
        let plain = start("plain", Some(LIMITS.original), None).await?;
        say("The same again, with a boost until it is ready.");
        let boosted = start("boosted", Some(LIMITS.original), Some(LIMITS)).await?;
        say("The same again, without a limit.");
        let unlimited = start("unlimited", None, None).await?;
        Ok(Run { plain, boosted, unlimited })
    };
    let run = cluster.explain(done.await)?;
    cluster.stop().await?;
    Ok(run.outcome())
}

async fn start(
    cluster: &ClusterNode,
    name: &str,
    limit: Option<Limit>,
    limits: Option<Limits>,
    say: &impl Fn(&str),
) -> Result<Life> {
    let out = Out::make()?;
    out.place(SOURCE.0, SOURCE.1)?;
    let line = format!(
        "{}; {JDK}/bin/java {FLAGS} /out/{} {CLASSES} /out/ready >/out/log 2>&1",
        until("go"),
        SOURCE.0
    );
    let [usr, lib, lib64] = ROOT_MOUNTS;
    let mounts = [usr, lib, lib64, (CONFIGURATION, CONFIGURATION)];
    let resources = resources(limit);
    let pod = PodRequest { name, line: &line, directory: out.path(), resources, mounts: &mounts };
    let id = cluster.run_pod(&pod).await?;
    let cgroup = cluster.node.cgroup_of(&id).await?;
    let usage = || cgroup::entry(&cgroup, "cpu.stat", "usage_usec");
    let in_force = || milli_cpu(&cgroup::text(&cgroup, "cpu.max")?);
    let mut follower = Follower::open(cluster, name, &id, WORK, limits).await?;
    let mut samples = Vec::new();
    let (mut ready, mut before_boost) = (None, None);
    let mut counted = (Duration::ZERO, usage()?);

    let began = Instant::now();
    out.signal("go")?;
    let look = |since: Duration, mark| {
        let throttling = throttling(&cgroup)?;
        if ready.is_none() && out.has("ready") {
            ready = Some((since, throttling));
        }
        if mark == Mark::InForce {
            before_boost.get_or_insert(throttling);
        }
        let elapsed = since.saturating_sub(counted.0);
        if elapsed >= WINDOW {
            ensure!(samples.len() < SAMPLES_MAX, "the start does not end");
            let total = usage()?;
            let used = total.saturating_sub(counted.1) as f64 / elapsed.as_micros() as f64 * 1000.0;
            counted = (since, total);
            samples.push(Point { at: since, used: used as u64, limit: in_force()?, threshold: None, mark });
        }
        Ok(ready.is_some())
    };
    let followed = follower.follow(began, say, look).await;
    followed.with_context(|| format!("java has said:\n{}", out.left("log").unwrap_or_default()))?;
    // The limit may have changed since the last window was over.
    if let Some(last) = samples.last().copied() {
        samples.push(Point { at: began.elapsed(), limit: in_force()?, mark: Mark::None, ..last });
    }
    let (ready, throttling) = ready.context("never ready")?;
    let (processors, port) = reported(&out)?;
    TcpStream::connect(("127.0.0.1", port)).await.context("connect to what says that it serves")?;
    Ok(Life {
        samples,
        ready,
        processors,
        throttling,
        before_boost,
        recognized: follower.controller.recognized().map(str::to_owned),
        moves: follower.moves,
        ended: cluster.terminated(name).await?,
    })
}

/// Burstable, so that the limit alone can be raised: that takes no capacity of the node.
fn resources(limit: Option<Limit>) -> Value {
    let mut limits = MEMORY.resources();
    if let Some(limit) = limit {
        limits["cpu"] = limit.resources()["cpu"].take();
    }
    json!({ "requests": { "cpu": format!("{LIMIT}m"), "memory": "128Mi" }, "limits": limits })
}

fn throttling(cgroup: &Path) -> Result<Throttling> {
    Ok(Throttling {
        periods: cgroup::entry(cgroup, "cpu.stat", "nr_throttled")?,
        time: Duration::from_micros(cgroup::entry(cgroup, "cpu.stat", "throttled_usec")?),
    })
}

/// Of the content of `cpu.max`; none: no limit.
fn milli_cpu(text: &str) -> Result<Option<u64>> {
    let (quota, period) = text.trim().split_once(' ').with_context(|| format!("cpu.max is `{text}`"))?;
    if quota == "max" {
        return Ok(None);
    }
    let number = |text: &str| text.parse::<u64>().with_context(|| format!("`{text}` in cpu.max"));
    let period = number(period)?;
    ensure!(period > 0, "cpu.max has a period of 0");
    Ok(Some(number(quota)? * 1000 / period))
}

/// How many processors the JVM counts, and the port at which it serves.
fn reported(out: &Out) -> Result<(u32, u16)> {
    let text = out.left("ready").context("the start left nothing")?;
    let mut words = text.split_whitespace();
    let mut word = || words.next().with_context(|| format!("the start left `{text}`"));
    let processors = word()?.parse().context("parse the number of processors")?;
    Ok((processors, word()?.parse().context("parse the port")?))
}

impl Run {
    fn outcome(&self) -> Outcome {
        Outcome { chart: self.chart(), wrong: self.wrong() }
    }

    fn lives(&self) -> [(&'static str, &Life); 3] {
        [("no boost", &self.plain), ("boost", &self.boosted), ("no limit", &self.unlimited)]
    }

    fn wrong(&self) -> Vec<String> {
        let Self { plain, boosted, unlimited } = self;
        let limits = |life: &Life| life.samples.iter().map(|sample| sample.limit).collect::<Vec<_>>();
        let mut claims = vec![
            (boosted.ready < plain.ready, "boost: not ready earlier than without".to_owned()),
            (
                boosted.throttling.time < plain.throttling.time,
                "boost: not throttled for less time than without".to_owned(),
            ),
            (
                was_raised_and_returned(&boosted.moves),
                format!("boost: not in force and given back once: {:?}", boosted.moves),
            ),
            (
                limits(boosted).iter().all(Option::is_some),
                "boost: the limit was removed for a time".to_owned(),
            ),
            (
                limits(boosted).last() == Some(&Some(LIMIT)),
                format!("boost: the limit is {:?} in the end", limits(boosted).last()),
            ),
            (
                limits(plain).iter().all(|limit| *limit == Some(LIMIT)),
                "no boost: the limit was changed".to_owned(),
            ),
            (limits(unlimited).iter().all(Option::is_none), "no limit: there was one".to_owned()),
        ];
        for (name, life) in self.lives() {
            let Terminated { exit_code, restarts, .. } = life.ended;
            claims.push((exit_code == 0 && restarts == 0, format!("{name}: ended with {:?}", life.ended)));
            let by_java = life.recognized.as_ref().is_some_and(|program| program.ends_with("/java"));
            claims.push((by_java, format!("{name}: not recognized by java: {:?}", life.recognized)));
        }
        claims::wrong(claims)
    }

    fn chart(&self) -> Chart {
        let panel = |(name, life): (&'static str, &Life)| {
            let end = format!("ready after {}", seconds(life.ready));
            Panel { name, end, points: life.samples.clone() }
        };
        let accounts = self.lives().into_iter().map(|(name, life)| format!("{name}: {}", life.account()));
        Chart {
            title: "The start of a JVM with 250m CPU, with a boost until it is ready, and without a limit",
            unit: Unit::Cpu,
            busy: "starting",
            panels: self.lives().map(panel).into(),
            notes: accounts
                .chain(self.boosted.division())
                .chain(notes(&self.boosted.moves, LIMITS))
                .collect(),
        }
    }
}

impl Life {
    fn account(&self) -> String {
        let Throttling { periods, time } = self.throttling;
        let processors = match self.processors {
            1 => "1 CPU".to_owned(),
            more => format!("{more} CPUs"),
        };
        format!("throttled {} in {periods} periods; {processors} for the JVM", seconds(time))
    }

    /// How the throttling is divided by the moment at which the boost was in force.
    fn division(&self) -> Option<String> {
        let before = self.before_boost?.time;
        let after = self.throttling.time.saturating_sub(before);
        Some(format!("boost: throttled {} before it was in force, {} then", seconds(before), seconds(after)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::controller::Level;
    use super::*;

    /// A minute as it is, and twenty seconds with a boost or without a limit.
    fn run() -> Run {
        let seconds = Duration::from_secs;
        let life = |end: u64, ready: u64, throttled: u64, limit: &dyn Fn(u64) -> (Option<u64>, Mark)| Life {
            samples: (1..=end)
                .map(|second| {
                    let (limit, mark) = limit(second);
                    let used = limit.unwrap_or(900).min(900);
                    Point { at: seconds(second), used, limit, threshold: None, mark }
                })
                .collect(),
            ready: seconds(ready),
            processors: 1,
            throttling: Throttling { periods: throttled * 10, time: seconds(throttled) },
            before_boost: None,
            recognized: Some(format!("{JDK}/bin/java")),
            moves: Vec::new(),
            ended: Terminated { exit_code: 0, reason: "Completed".to_owned(), restarts: 0 },
        };
        let mut boosted = life(25, 20, 3, &|second| match second {
            0..5 => (Some(LIMIT), Mark::Busy),
            5..23 => (Some(BOOST), Mark::InForce),
            _ => (Some(LIMIT), Mark::None),
        });
        boosted.before_boost = Some(Throttling { periods: 30, time: seconds(3) });
        boosted.moves = [(Level::Raised, 1, 5), (Level::Original, 20, 23)]
            .map(|(to, decided, in_force)| Move {
                to,
                decided: seconds(decided),
                accepted: seconds(decided + 1),
                in_force: seconds(in_force),
            })
            .into();
        Run {
            plain: life(60, 60, 45, &|_| (Some(LIMIT), Mark::Busy)),
            boosted,
            unlimited: life(18, 18, 0, &|_| (None, Mark::Busy)),
        }
    }

    #[test]
    fn a_run_as_claimed_can_be_shown() {
        let outcome = run().outcome();
        outcome.check().unwrap();
        let text = outcome.chart.lines().join("\n");
        for part in [
            "boost: ready after 20.0 s",
            "no limit: ready after 18.0 s",
            "throttled 3.0 s before it was in force",
        ] {
            assert!(text.contains(part), "no {part}:\n{text}");
        }
    }

    #[test]
    fn each_claim_is_checked() {
        for break_it in [
            |run: &mut Run| run.boosted.ready = run.plain.ready,
            |run: &mut Run| run.boosted.throttling = run.plain.throttling,
            |run: &mut Run| _ = run.boosted.moves.pop(),
            |run: &mut Run| run.boosted.samples[10].limit = None,
            |run: &mut Run| run.boosted.samples.truncate(20),
            |run: &mut Run| run.plain.samples[30].limit = Some(BOOST),
            |run: &mut Run| run.unlimited.samples[10].limit = Some(LIMIT),
            |run: &mut Run| run.plain.ended.exit_code = 1,
            |run: &mut Run| run.unlimited.recognized = None,
        ] {
            let mut run = run();
            break_it(&mut run);
            assert_eq!(run.wrong().len(), 1, "{:?}", run.wrong());
        }
    }

    #[test]
    fn cpu_max_is_read() {
        assert_eq!(milli_cpu("25000 100000\n").unwrap(), Some(250));
        assert_eq!(milli_cpu("max 100000\n").unwrap(), None);
        assert!(milli_cpu("25000").is_err() && milli_cpu("x 100000").is_err() && milli_cpu("1 0").is_err());
    }
}
