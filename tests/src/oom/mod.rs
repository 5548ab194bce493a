//! The same hog twice at the same time, in two pods of a real API server: one without a guard, one with. What both use is sampled
//! until both have ended, and what the demo claims of them is checked.
//!
//! Owns the run, and what is shown of it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kwitness_api::proto::VerdictKind;
use kwitness_guard::status::Ended;

use crate::cgroup;
use crate::chart::{Chart, Mark, Panel, Point, Unit};
use crate::claims::{self, Outcome};
use crate::environment::Environment;
use crate::guard::memory_event;
use crate::guarded::{GuardedNode, Terminated};
use crate::limit::Limit;
use crate::out::{Out, until};
use crate::process::wait_for;

const MIB: u64 = 1 << 20;
const LIMIT: u64 = 64 * MIB;
/// In percent of the limit: where a process is held.
const THRESHOLD: u64 = 60;
/// The guarded pod; the policy selects it alone.
const GUARDED: &str = "guarded";
const UNGUARDED: &str = "unguarded";
/// One raise is enough for the work.
const POLICY: &str = "[[rule]]\npod = \"guarded\"\nthreshold = \"60%\"\nstep = \"128Mi\"\nceiling = \"192Mi\"\n\
                      longest_hold = \"10s\"\ncool_down = \"10s\"\n";
/// What the work needs: 90,000,000 bytes, in steps between which an emulated kubelet gets something done, too. A raise that comes
/// after the longest hold still comes in time.
const STEPS: u32 = 30;
const STEP: u32 = 3_000_000;
const STEP_PAUSE: &str = "0.4";
/// How long the work may take, in an emulated guest on a machine that does other work.
const WORK_LIMIT: Duration = Duration::from_secs(300);
const SAMPLE: Duration = Duration::from_millis(100);
const SAMPLES_MAX: usize = 8192;
const VERDICT_LIMIT: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
struct Life {
    samples: Vec<Point>,
    ended: Terminated,
    /// `oom_kill` of its `memory.events` in the end; none: its cgroup was gone by then.
    oom_kills: Option<u64>,
}

#[derive(Clone, Debug)]
struct Run {
    unguarded: Life,
    guarded: Life,
    holds: Vec<Ended>,
    /// The daemon's verdict on the guarded container's limit in the end.
    in_force: bool,
    left_held: usize,
}

/// Runs both, and gives `say` what happens, line by line.
pub async fn run(environment: &Environment, say: impl Fn(&str)) -> Result<Outcome> {
    say("A node comes up: containerd, API server, kubelet, daemon and guard.");
    let cluster = GuardedNode::start(environment, POLICY).await?;
    let done = run_on(&cluster, &say).await;
    let run = cluster.explain(done)?;
    cluster.stop().await?;
    Ok(run.outcome())
}

async fn run_on(cluster: &GuardedNode, say: &impl Fn(&str)) -> Result<Run> {
    say("Two pods of 64 MiB get the same work of 90 MB. The policy selects one.");
    let mut unguarded = Worker::start(cluster, UNGUARDED).await?;
    let mut guarded = Worker::start(cluster, GUARDED).await?;
    cluster.guard.wait_armed(1).await?;

    say("Both begin.");
    let began = Instant::now();
    unguarded.let_go()?;
    guarded.let_go()?;
    let work = wait_for("the end of both", WORK_LIMIT, async || {
        let status = cluster.guard.status().await?;
        let is_held = status.armed.iter().any(|armed| !armed.held.is_empty());
        let state = match (is_held, status.raised) {
            (true, _) => Mark::Busy,
            (false, 0) => Mark::None,
            (false, _) => Mark::InForce,
        };
        if guarded.samples.last().is_some_and(|before| before.mark != state) {
            say(match state {
                Mark::Busy => "The guard holds a process, and raises the limit through the API.",
                Mark::InForce => "The raise is in force. The process continues.",
                Mark::None => "The process continues without a raise.",
            });
        }
        let at = began.elapsed();
        unguarded.sample(at, Mark::None)?;
        guarded.sample(at, state)?;
        // The work is done, or its container is gone.
        let is_over = |worker: &Worker| worker.is_gone || worker.is_done();
        tokio::time::sleep(SAMPLE).await;
        Ok((is_over(&unguarded) && is_over(&guarded)).then_some(()))
    });
    work.await?;

    say("Both have ended. The daemon judges the limit, the API reports the pods.");
    let limit = guarded.samples.last().and_then(|sample| sample.limit).unwrap_or(LIMIT);
    let in_force = !guarded.is_gone && verdict(cluster, &guarded.id, limit).await? == VerdictKind::InForce;
    let status = cluster.guard.status().await?;
    guarded.finish()?;
    unguarded.finish()?;
    Ok(Run {
        unguarded: unguarded.life(cluster.terminated(UNGUARDED).await?),
        guarded: guarded.life(cluster.terminated(GUARDED).await?),
        left_held: status.armed.iter().map(|armed| armed.held.len()).sum(),
        holds: status.history,
        in_force,
    })
}

async fn verdict(cluster: &GuardedNode, id: &str, limit: u64) -> Result<VerdictKind> {
    let limit = Limit::Memory(limit);
    let answer = cluster.agent.verify(limit.verify(id, VERDICT_LIMIT)).await.context("call Verify")?;
    Ok(limit.verdict(answer)?.verdict())
}

struct Worker {
    id: String,
    cgroup: PathBuf,
    out: Out,
    samples: Vec<Point>,
    oom_kills: Option<u64>,
    is_gone: bool,
}

impl Worker {
    /// Starts it; the work begins when it is let go, and its container stays until it may go.
    async fn start(cluster: &GuardedNode, name: &str) -> Result<Self> {
        let out = Out::make()?;
        let (go, end) = (until("go"), until("end"));
        let line = format!(
            "{go}; n=0; while [ $n -lt {STEPS} ]; do head -c {STEP} /dev/zero; sleep {STEP_PAUSE}; n=$((n+1)); \
             done | tail >/dev/null && : >/out/done && {end}"
        );
        let id = cluster.run(name, &line, out.path(), LIMIT).await?;
        let cgroup = cluster.node.cgroup_of(&id).await?;
        Ok(Self { id, cgroup, out, samples: Vec::new(), oom_kills: None, is_gone: false })
    }

    fn let_go(&self) -> Result<()> {
        self.out.signal("go")
    }

    fn finish(&mut self) -> Result<()> {
        if !self.is_gone {
            self.oom_kills = Some(memory_event(&self.cgroup, "oom_kill")?);
        }
        self.out.signal("end")
    }

    fn is_done(&self) -> bool {
        self.out.has("done")
    }

    /// Reads its cgroup; its end is no error.
    fn sample(&mut self, at: Duration, state: Mark) -> Result<()> {
        let number = |name: &str| cgroup::number(&self.cgroup, name).ok();
        let events = cgroup::text(&self.cgroup, "cgroup.events");
        let is_populated = events.is_ok_and(|events| events.contains("populated 1"));
        let (Some(usage), Some(limit), true) = (number("memory.current"), number("memory.max"), is_populated)
        else {
            self.is_gone = true;
            return Ok(());
        };
        if !self.is_done() {
            ensure!(self.samples.len() < SAMPLES_MAX, "the work does not end");
            self.samples.push(point(at, usage, limit, state));
        }
        Ok(())
    }

    fn life(self, ended: Terminated) -> Life {
        Life { samples: self.samples, ended, oom_kills: self.oom_kills }
    }
}

impl Run {
    fn wrong(&self) -> Vec<String> {
        let Self { unguarded, guarded, holds, in_force, left_held } = self;
        let raised = holds.iter().filter(|hold| hold.raised_to.is_some()).count();
        let claims = [
            (
                unguarded.ended.exit_code == 137 && unguarded.ended.reason == "OOMKilled",
                format!("unguarded: not OOM-killed: {:?}", unguarded.ended),
            ),
            (
                guarded.ended.exit_code == 0 && guarded.ended.reason == "Completed",
                format!("guarded: did not finish: {:?}", guarded.ended),
            ),
            (guarded.oom_kills == Some(0), format!("guarded: OOM kills: {:?}", guarded.oom_kills)),
            (
                guarded.ended.restarts == 0 && unguarded.ended.restarts == 0,
                "a container was restarted".to_owned(),
            ),
            (!holds.is_empty(), "guarded: no process was held".to_owned()),
            (
                guarded.samples.iter().any(|sample| sample.limit > Some(LIMIT)),
                "guarded: the limit was not raised".to_owned(),
            ),
            (raised > 0, format!("guarded: no raise was in force within its hold: {holds:?}")),
            (*in_force, "guarded: the daemon does not say that the limit is in force".to_owned()),
            (*left_held == 0, format!("{left_held} processes are still held")),
        ];
        claims::wrong(claims)
    }

    fn outcome(&self) -> Outcome {
        Outcome { chart: self.chart(), wrong: self.wrong() }
    }

    /// Both containers on one time line. The raise that came in time is the first note.
    fn chart(&self) -> Chart {
        let panels = [("without the guard", &self.unguarded), ("with the guard", &self.guarded)];
        let mut holds: Vec<_> = self.holds.iter().collect();
        holds.sort_by_key(|hold| hold.raised_to.is_none());
        Chart {
            title: "The same work in a container of 64 MiB, without and with kwitness guard",
            unit: Unit::Memory,
            busy: "held",
            panels: panels.into_iter().map(|(name, life)| life.panel(name)).collect(),
            notes: holds.into_iter().map(outcome).collect(),
        }
    }
}

impl Life {
    fn panel(&self, name: &'static str) -> Panel {
        Panel { name, end: self.end(), points: self.samples.clone() }
    }

    fn end(&self) -> String {
        let Terminated { reason, exit_code, .. } = &self.ended;
        match self.oom_kills {
            Some(kills) => format!("{reason}, exit code {exit_code}, {kills} OOM kills"),
            None => format!("{reason}, exit code {exit_code}"),
        }
    }
}

/// A container at one moment, with where a process is held; in bytes.
fn point(at: Duration, used: u64, limit: u64, mark: Mark) -> Point {
    Point { at, used, limit: Some(limit), threshold: Some(limit / 100 * THRESHOLD), mark }
}

/// What the guard's holds came to, in a few words each.
fn outcome(hold: &Ended) -> String {
    let seconds = |milliseconds: u64| format!("{:.1} s", Duration::from_millis(milliseconds).as_secs_f64());
    let after = seconds(hold.decided_ms);
    match (hold.raised_to, &hold.refused) {
        (Some(to), _) => format!("held {after}: raised to {} MiB, in force", to / MIB),
        (None, Some(reason)) => format!("held {after}: refused, {reason}"),
        (None, None) => format!("held {after}"),
    }
}

#[cfg(test)]
mod tests {
    use kwitness_guard::status::Steps;

    use super::*;

    /// Two seconds to the end of the first, six to that of the second, which was held for two and then had its raise.
    fn run() -> Run {
        let usage = |second: u64| second * 15 * MIB;
        let sample = |tenth: u64, usage, limit: u64, mark| {
            point(Duration::from_millis(tenth * 100), usage, limit * MIB, mark)
        };
        let unguarded = (0..43).map(|tenth| sample(tenth, usage(tenth) / 10, 64, Mark::None));
        let guarded = (0..80).map(|tenth| match tenth {
            0..26 => sample(tenth, usage(tenth) / 10, 64, Mark::None),
            26..46 => sample(tenth, usage(26) / 10, 64, Mark::Busy),
            _ => sample(tenth, usage(tenth - 20) / 10, 192, Mark::InForce),
        });
        let life = |samples, exit_code, reason: &str, oom_kills| Life {
            samples,
            ended: Terminated { exit_code, reason: reason.to_owned(), restarts: 0 },
            oom_kills,
        };
        Run {
            unguarded: life(unguarded.collect(), 137, "OOMKilled", None),
            guarded: life(guarded.collect(), 0, "Completed", Some(0)),
            holds: vec![Ended {
                container_id: "c".to_owned(),
                held: vec![7],
                usage: 39 * MIB,
                limit: LIMIT,
                raised_to: Some(192 * MIB),
                unverified: false,
                refused: None,
                raised_ms: Some(400),
                decided_ms: 2000,
                steps: Steps::default(),
            }],
            in_force: true,
            left_held: 0,
        }
    }

    #[test]
    fn each_claim_is_checked() {
        for break_it in [
            |run: &mut Run| run.unguarded.ended.exit_code = 0,
            |run: &mut Run| run.guarded.ended.exit_code = 137,
            |run: &mut Run| run.guarded.oom_kills = Some(1),
            |run: &mut Run| run.guarded.oom_kills = None,
            |run: &mut Run| run.guarded.ended.restarts = 1,
            |run: &mut Run| run.guarded.samples.truncate(40),
            |run: &mut Run| run.holds[0].raised_to = None,
            |run: &mut Run| run.in_force = false,
            |run: &mut Run| run.left_held = 1,
        ] {
            let mut run = run();
            break_it(&mut run);
            assert_eq!(run.wrong().len(), 1, "{:?}", run.wrong());
        }
    }

    #[test]
    fn a_run_as_claimed_can_be_shown() {
        let outcome = run().outcome();
        outcome.check().unwrap();
        let text = outcome.chart.lines().join("\n");
        for part in ["OOMKilled, exit code 137", "0 OOM kills", "■■■", "✓✓✓", "held 2.0 s: raised to 192 MiB"]
        {
            assert!(text.contains(part), "no {part}:\n{text}");
        }
    }
}
