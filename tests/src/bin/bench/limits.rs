//! Limits: from a write to its `limitChanged` at a client, and to the verdict that a client waits for; a thousand resizes in a
//! row; and what a write to any other file costs with each way of seeing limit writes.
//!
//! Where the cgroup v2 hierarchy has no controllers, as on a hybrid node, the changes are of `cgroup.freeze`, the one limit file that
//! every hierarchy has, and there are no verdicts.

use std::process::{Command, Stdio};

use kwitness_api::proto::event::Kind;
use kwitness_api::proto::{self, VerdictKind, wanted};
use kwitness_tests::prelude::*;
use tokio::time::{sleep, timeout};

use crate::report::{Row, Target, quantile};
use crate::{latency, overhead};

/// Rounds, and writes in each of them.
const ROUNDS: (usize, u32) = (8, 100);
const ROUNDS_IN_A_GUEST: (usize, u32) = (3, 40);
const RESIZES: usize = 1000;
const REST: Duration = Duration::from_millis(10);
const LIMIT: Duration = Duration::from_secs(120);
/// The verdict waits for one read of the limit file and one of its ancestors', and answers on a second stream.
const VERDICT: Target = Target::AtMost(4.0);
const MIB: u64 = 1 << 20;

pub(crate) async fn measure(environment: &Environment) -> Result<Vec<Row>> {
    let has_limits = environment.layout == CgroupLayout::Unified;
    let (rounds, writes) = environment.of_tier(ROUNDS, ROUNDS_IN_A_GUEST);
    let kubepods = Kubepods::make(environment)?;
    if has_limits {
        kubepods.enable("+memory")?;
    }
    let limit_file = if has_limits { "memory.max" } else { "cgroup.freeze" };
    let (mut floor, mut changes, mut verdicts) = (Vec::new(), Vec::new(), Vec::new());
    let mut way = String::new();
    for _ in 0..rounds {
        floor.push(latency::of_floor(&kubepods, writes).await.context("of the floor")?);
        // Where no program may be at a function, only this way knows when a write returned.
        let agent = Agent::start(environment, &["log.level=warn", "kernel.syscall_hooks=true"]).await?;
        way = overhead::hook(&agent).await?;
        let container = container(&kubepods, has_limits)?;
        changes.push(to_client(&agent, &container, limit_file, writes).await.context("to a client")?);
        if has_limits {
            verdicts.push(to_verdict(&agent, &container, writes).await.context("to a verdict")?);
        }
        agent.stop()?;
    }
    let each = |rounds: &[Vec<f64>], share: f64| -> Vec<f64> {
        rounds.iter().map(|round| quantile(round, share)).collect()
    };
    let mut rows = Vec::new();
    for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
        let (of, floor) = (each(&changes, share), each(&floor, share));
        let note = format!(
            "{limit_file} by {way}: {:.0} us from the hook at the write's return, floor {:.0} us from its own; {rounds} rounds of {writes}",
            quantile(&of, 0.5) / 1e3,
            quantile(&floor, 0.5) / 1e3,
        );
        let name = format!("limits: write to limitChanged, {name}, against floor");
        rows.push(Row::ratio(&name, &of, &floor, Target::AtMost(1.5), note));
    }
    if has_limits {
        let (of, floor) = (each(&verdicts, 0.99), each(&floor, 0.99));
        let note = format!(
            "{:.2} ms, floor from its own hook {:.2} ms; {rounds} rounds of {writes}",
            quantile(&of, 0.5) / 1e6,
            quantile(&floor, 0.5) / 1e6
        );
        let name = "limits: write to verdict \"in force\", p99, against floor";
        rows.push(Row::ratio(name, &of, &floor, VERDICT, note));
        rows.push(thousand(environment, &kubepods).await.context("resize a thousand")?);
    }
    rows.extend(overhead::by_each_way(environment).await?);
    Ok(rows)
}

/// A container's cgroup, with files for its limits if there are any.
fn container(kubepods: &Kubepods, has_limits: bool) -> Result<HandMade> {
    if has_limits { kubepods.limited_container() } else { kubepods.container() }
}

/// From the hook at each write's return to its event at a client, in nanoseconds. Another process writes, as in the floor.
async fn to_client(agent: &Agent, container: &HandMade, limit_file: &str, writes: u32) -> Result<Vec<f64>> {
    let mut stream = agent.client().await?.watch(from_now()).await.context("call Watch")?.into_inner();
    let id = container.cgroup().id()?;
    let texts = match limit_file {
        "cgroup.freeze" => ["1", "0"],
        _ => ["67108864", "33554432"],
    };
    let mut command = Command::new("/proc/self/exe");
    command
        .arg("resizes")
        .arg(container.cgroup().directory().join(limit_file))
        .args(texts)
        .arg(writes.to_string());
    let mut writer = command.stdin(Stdio::null()).spawn().context("start the writer")?;
    let mut delays = Vec::new();
    while delays.len() < writes as usize {
        let message = timeout(LIMIT, stream.message()).await.context("kwitness is silent")?;
        let at = boottime();
        for event in message.context("kwitness's stream")?.context("kwitness's stream ended")?.events {
            let Some(Kind::LimitChanged(changed)) = event.kind else { continue };
            if changed.cgroup.is_some_and(|of| of.id == id) {
                let returned = changed.write.and_then(|write| write.returned);
                let returned = returned.context("a change without the time of its write")?;
                delays.push(at.saturating_sub(returned) as f64);
            }
        }
    }
    let status = writer.wait().context("wait for the writer")?;
    ensure!(status.success(), "the writer: {status}");
    Ok(delays)
}

/// From each write's return to the answer of a `Verify` that waits for it, in nanoseconds.
async fn to_verdict(agent: &Agent, container: &HandMade, writes: u32) -> Result<Vec<f64>> {
    let mut delays = Vec::new();
    for number in 0..writes {
        // No value that was there before.
        let bytes = u64::from(number + 1) * MIB + 4096;
        let verified = async {
            let answer = agent.verify(wanted(&container.id, bytes, 60_000)).await;
            (answer, boottime())
        };
        let written = async {
            sleep(REST * 3).await;
            cgroup::write(container.cgroup().directory(), "memory.max", bytes)?;
            anyhow::Ok(boottime())
        };
        let ((answer, at), returned) = tokio::join!(verified, written);
        let answer = answer.context("call Verify")?;
        let kinds = kinds(&answer);
        ensure!(kinds == [VerdictKind::InForce], "{kinds:?}");
        delays.push(at.saturating_sub(returned?) as f64);
    }
    Ok(delays)
}

/// Of that container, or of all where no id is given.
fn wanted(id: &str, bytes: u64, wait_ms: u32) -> proto::VerifyRequest {
    let containers = if id.is_empty() { Vec::new() } else { vec![id.to_owned()] };
    proto::VerifyRequest {
        filter: Some(proto::Filter { containers, ..Default::default() }),
        wanted: Some(proto::Wanted { memory: Some(wanted::Memory::MemoryBytes(bytes)), cpu: None }),
        wait_ms,
        prove_ms: 0,
    }
}

fn kinds(answer: &proto::VerifyResponse) -> Vec<VerdictKind> {
    let verdicts = answer.verdicts.iter().filter_map(|of| of.verdict.as_ref());
    verdicts.map(proto::Verdict::verdict).collect()
}

/// Containers resized in a row, every other one to something else than is wanted.
async fn thousand(environment: &Environment, kubepods: &Kubepods) -> Result<Row> {
    let containers = (0..RESIZES).map(|_| container(kubepods, true)).collect::<Result<Vec<_>>>()?;
    let agent = Agent::start(environment, &["log.level=warn"]).await?;
    let mut watcher = agent.watch(from_now()).await?;
    let (right, wrong) = (64 * MIB, 32 * MIB);
    for (index, container) in containers.iter().enumerate() {
        let bytes = if index % 2 == 0 { right } else { wrong };
        cgroup::write(container.cgroup().directory(), "memory.max", bytes)?;
    }
    // One more, after which nothing of the others is to come.
    let last = container(kubepods, true)?;
    cgroup::write(last.cgroup().directory(), "memory.max", right)?;
    let of_last = |seen: &kwitness_tests::events::Seen| seen.has(&last.id, "limitChanged");
    let seen = watcher.wait_until("the last change", of_last).await?;
    let reported = |container: &&HandMade| {
        seen.of(&container.id).filter(|event| matches!(event.kind, Some(Kind::LimitChanged(_)))).count() == 1
    };
    let missed = containers.len() - containers.iter().filter(reported).count() + seen.count("gap");
    let answer = agent.verify(wanted("", right, 0)).await.context("call Verify")?;
    let mut misjudged = 0;
    for (index, container) in containers.iter().enumerate() {
        let of = |of: &&proto::VerdictOf| of.container.as_ref().is_some_and(|of| of.id == container.id);
        let verdict = answer.verdicts.iter().find(of).and_then(|of| of.verdict.as_ref());
        let due = if index % 2 == 0 { VerdictKind::InForce } else { VerdictKind::Diverged };
        misjudged += usize::from(verdict.map(proto::Verdict::verdict) != Some(due));
    }
    agent.stop()?;
    let note = format!(
        "{RESIZES} containers in a row, half of them wrongly: {missed} missed, {misjudged} misjudged"
    );
    let failures = [(missed + misjudged) as f64];
    Ok(Row::of("limits: 1,000 resizes, missed or misjudged", &failures, "", Target::AtMost(0.0), note))
}
