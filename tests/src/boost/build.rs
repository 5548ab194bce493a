//! A build in a development environment that is too small for it: it is recognized by its exec, and gets the memory before it needs
//! it. Without that, its compiler is OOM-killed.
//!
//! The kubelet has the OOM killer kill single processes (`singleProcessOOMKill`): the build fails as it would on a workstation, and the
//! environment stays.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Map, json};

use super::controller::{Until, Work};
use super::{Follower, Limits, Move, ROOT_MOUNTS, notes, read_ahead, was_raised_and_returned};
use crate::cgroup;
use crate::chart::{Chart, Panel, Point, Unit};
use crate::claims::{self, Outcome};
use crate::cluster_node::{ClusterNode, PodRequest, Terminated};
use crate::environment::Environment;
use crate::guard::memory_event;
use crate::limit::Limit;
use crate::out::Out;

const MIB: u64 = 1 << 20;
const LIMIT: u64 = 64 * MIB;
/// The original limit, and what two compilers of 150 MiB need.
const LIMITS: Limits = Limits { original: Limit::Memory(LIMIT), raised: Limit::Memory(512 * MIB) };
const WORK: Work = Work { programs: &["make", "gcc", "cc1", "as", "collect2", "ld"], until: Until::LastExit };
const SOURCES: [(&str, &str); 3] = [
    ("Makefile", include_str!("work/Makefile")),
    ("gen.c", include_str!("work/gen.c")),
    ("main.c", include_str!("work/main.c")),
];
/// The environment's shell: builds when it is let go, leaves the exit code, and stays until it may end.
const LINE: &str = "until [ -e /out/go ]; do sleep 0.2; done; mkdir /tmp/build; cd /tmp/build; \
                    cp /out/Makefile /out/gen.c /out/main.c .; PATH=/bin:/usr/bin make -j2 >/out/log 2>&1; \
                    code=$?; echo $code >/out/draft; mv /out/draft /out/code; \
                    until [ -e /out/end ]; do sleep 0.2; done; exit $code";
const EXECUTED: [&str; 3] = ["/usr/bin/make", "/usr/libexec/gcc", "/usr/lib/x86_64-linux-gnu"];
/// Of what `make` said.
const LOG_LINES: usize = 10;
const SAMPLES_MAX: usize = 8192;

#[derive(Clone, Debug)]
struct Life {
    samples: Vec<Point>,
    code: i64,
    log: String,
    /// `oom_kill` of `memory.events` in the end.
    oom_kills: u64,
    /// The first program by which it was recognized.
    recognized: Option<String>,
    processes: usize,
    moves: Vec<Move>,
    ended: Terminated,
}

#[derive(Clone, Debug)]
struct Run {
    plain: Life,
    raised: Life,
}

/// Builds twice, one after the other, and gives `say` what happens, line by line.
pub async fn run(environment: &Environment, say: impl Fn(&str)) -> Result<Outcome> {
    say("A node comes up: containerd, API server, kubelet and daemon.");
    let settings = Map::from_iter([("singleProcessOOMKill".to_owned(), json!(true))]);
    let cluster = ClusterNode::start(environment, settings).await?;
    let done = async {
        read_ahead(&EXECUTED)?;
        say("A pod of 64 MiB gets a build. Its limit stays.");
        let plain = build(&cluster, "plain", None, &say).await?;
        say(&format!("The build has ended: {}.", plain.end()));
        say("Another one gets the same build. Its limit is raised for it.");
        let raised = build(&cluster, "raised", Some(LIMITS), &say).await?;
        say(&format!("The build has ended: {}.", raised.end()));
        Ok(Run { plain, raised })
    };
    let run = cluster.explain(done.await)?;
    cluster.stop().await?;
    Ok(run.outcome())
}

async fn build(
    cluster: &ClusterNode,
    name: &str,
    limits: Option<Limits>,
    say: &impl Fn(&str),
) -> Result<Life> {
    let out = Out::make()?;
    SOURCES.into_iter().try_for_each(|(name, text)| out.place(name, text))?;
    let resources = json!({
        "requests": Limit::Memory(LIMIT / 2).resources(),
        "limits": LIMITS.original.resources(),
    });
    let pod = PodRequest { name, line: LINE, directory: out.path(), resources, mounts: &ROOT_MOUNTS };
    let id = cluster.run_pod(&pod).await?;
    let cgroup = cluster.node.cgroup_of(&id).await?;
    let mut follower = Follower::open(cluster, name, &id, WORK, limits).await?;
    let mut samples = Vec::new();

    let began = Instant::now();
    out.signal("go")?;
    let look = |since, mark| {
        ensure!(samples.len() < SAMPLES_MAX, "the build does not end");
        samples.push(Point {
            at: since,
            used: cgroup::number(&cgroup, "memory.current")?,
            limit: Some(cgroup::number(&cgroup, "memory.max")?),
            threshold: None,
            mark,
        });
        Ok(out.has("code"))
    };
    let followed = follower.follow(began, say, look).await;
    let log = out.left("log").unwrap_or_default();
    let lines: Vec<_> = log.lines().collect();
    let log = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
    followed.with_context(|| format!("make has said:\n{log}"))?;
    let code = out.left("code").context("the build left no exit code")?;
    let oom_kills = memory_event(&cgroup, "oom_kill")?;
    out.signal("end")?;
    Ok(Life {
        samples,
        code: code.trim().parse().context("parse the exit code of make")?,
        log,
        oom_kills,
        recognized: follower.controller.recognized().map(str::to_owned),
        processes: follower.controller.processes(),
        moves: follower.moves,
        ended: cluster.terminated(name).await?,
    })
}

impl Run {
    fn outcome(&self) -> Outcome {
        Outcome { chart: self.chart(), wrong: self.wrong() }
    }

    fn wrong(&self) -> Vec<String> {
        let Self { plain, raised } = self;
        let by_make =
            |life: &Life| life.recognized.as_ref().is_some_and(|program| program.ends_with("/make"));
        let needed = raised.samples.iter().find(|sample| sample.used > LIMIT);
        let in_time = raised.moves.first().zip(needed).is_some_and(|(moved, at)| moved.in_force <= at.at);
        let last = raised.samples.last().and_then(|sample| sample.limit);
        claims::wrong([
            (plain.code != 0, "without a raise: the build did not fail".to_owned()),
            (plain.oom_kills > 0, "without a raise: no OOM kill".to_owned()),
            (plain.moves.is_empty(), "without a raise: the limit was changed".to_owned()),
            (
                by_make(plain) && by_make(raised),
                format!("not recognized by make: {:?}, {:?}", plain.recognized, raised.recognized),
            ),
            (raised.code == 0, format!("raised: the build failed with {}:\n{}", raised.code, raised.log)),
            (raised.oom_kills == 0, format!("raised: {} OOM kills", raised.oom_kills)),
            (
                was_raised_and_returned(&raised.moves),
                format!("raised: the limit was not raised and given back once: {:?}", raised.moves),
            ),
            (in_time, "raised: not in force before the build used more than 64 MiB".to_owned()),
            (last == Some(LIMIT), format!("raised: the limit is {last:?} in the end")),
            (plain.ended.restarts == 0 && raised.ended.restarts == 0, "a container was restarted".to_owned()),
        ])
    }

    fn chart(&self) -> Chart {
        let panels = [("limit as it is", &self.plain), ("raised for the build", &self.raised)];
        let panel = |(name, life): (&'static str, &Life)| Panel {
            name,
            end: life.end(),
            points: life.samples.clone(),
        };
        let recognized = self.raised.recognized.as_deref().unwrap_or("nothing");
        let recognized = format!("recognized by {recognized}; {} processes", self.raised.processes);
        Chart {
            title: "The same build in a container of 64 MiB, as it is and raised for the build",
            unit: Unit::Memory,
            busy: "building",
            panels: panels.map(panel).into(),
            notes: std::iter::once(recognized).chain(notes(&self.raised.moves, LIMITS)).collect(),
        }
    }
}

impl Life {
    fn end(&self) -> String {
        format!("make: exit code {}, OOM kills: {}", self.code, self.oom_kills)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::controller::Level;
    use super::*;
    use crate::chart::Mark;

    /// Twelve seconds each. Without a raise, memory ends after eight; with it, in force after three, two compilers need 300 MiB.
    fn run() -> Run {
        let sample = |second: u64, used: u64, limit: u64, mark| Point {
            at: Duration::from_secs(second),
            used: used * MIB,
            limit: Some(limit * MIB),
            threshold: None,
            mark,
        };
        let plain = (0..9).map(|second| sample(second, 8 * second, 64, Mark::Busy));
        let raised = (0..=12).map(|second| match second {
            0..3 => sample(second, 8 * second, 64, Mark::Busy),
            3..11 => sample(second, 30 * second, 512, Mark::InForce),
            _ => sample(second, 20, 64, Mark::None),
        });
        let seconds = Duration::from_secs;
        let moves = [(Level::Raised, 0, 3), (Level::Original, 10, 11)].map(|(to, decided, in_force)| Move {
            to,
            decided: seconds(decided),
            accepted: seconds(decided + 1),
            in_force: seconds(in_force),
        });
        let life = |samples, code, oom_kills, moves| Life {
            samples,
            code,
            log: "./app".to_owned(),
            oom_kills,
            recognized: Some("/usr/bin/make".to_owned()),
            processes: 60,
            moves,
            ended: Terminated { exit_code: code, reason: "Completed".to_owned(), restarts: 0 },
        };
        Run {
            plain: life(plain.collect(), 2, 1, Vec::new()),
            raised: life(raised.collect(), 0, 0, moves.into()),
        }
    }

    #[test]
    fn a_run_as_claimed_can_be_shown() {
        let outcome = run().outcome();
        outcome.check().unwrap();
        let text = outcome.chart.lines().join("\n");
        for part in
            ["exit code 2, OOM kills: 1", "■ building", "512 MiB: decided at 0.0 s, in force 3.0 s later"]
        {
            assert!(text.contains(part), "no {part}:\n{text}");
        }
    }

    #[test]
    fn each_claim_is_checked() {
        for break_it in [
            |run: &mut Run| run.plain.code = 0,
            |run: &mut Run| run.plain.oom_kills = 0,
            |run: &mut Run| run.plain.moves = run.raised.moves.clone(),
            |run: &mut Run| run.plain.recognized = None,
            |run: &mut Run| run.raised.recognized = Some("/usr/bin/gcc".to_owned()),
            |run: &mut Run| run.raised.code = 2,
            |run: &mut Run| run.raised.oom_kills = 1,
            |run: &mut Run| _ = run.raised.moves.pop(),
            |run: &mut Run| run.raised.moves[0].in_force = Duration::from_secs(5),
            |run: &mut Run| run.raised.samples.truncate(11),
            |run: &mut Run| run.raised.ended.restarts = 1,
        ] {
            let mut run = run();
            break_it(&mut run);
            assert_eq!(run.wrong().len(), 1, "{:?}", run.wrong());
        }
    }
}
