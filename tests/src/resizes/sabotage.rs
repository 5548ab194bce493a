//! Each way in which a resize that was told to be done is not.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use kwitness::proto::v1::{self, Source, VerdictKind, wanted};
use tokio::time::{Duration, sleep};

use super::place::directory;
use super::{Account, Limit, MIB, Place, sleeper};
use crate::agent::Agent;
use crate::environment::{CgroupDriver, Combination};
use crate::node::Node;
use crate::pod::PodSpec;
use crate::process;

/// All that is done to a container that runs.
pub(super) async fn all(b: &mut Place<'_>, combination: Combination) -> Result<()> {
    b.account.part("Another level allows less.");
    shadowed(b).await?;
    b.account.part("Somebody else writes.");
    undone(b).await?;
    overwritten(b).await?;
    if combination.driver == CgroupDriver::Systemd {
        rewritten_by_systemd(b).await?;
    }
    b.account.part("The runtime was not told, or the kernel refused.");
    never_written(b).await?;
    b.account.part("Two at a time.");
    at_once(b).await
}

/// A level above allows less.
async fn shadowed(b: &mut Place<'_>) -> Result<()> {
    let around = b.around.clone();
    let class = around.parent().context("a pod's cgroup without a parent")?.to_owned();
    let pods = class.parent().context("a class's cgroup without a parent")?.to_owned();

    b.resize_pod(Limit::Memory(64 * MIB))?;
    b.update(Limit::Memory(96 * MIB)).await?;
    let verdict =
        b.now("container updated but pod not", Limit::Memory(96 * MIB), VerdictKind::Shadowed).await?;
    let effective = verdict.effective.context("no effective limit")?;
    ensure!(effective.value == (64 * MIB).to_string(), "{effective:?}");
    b.resize_pod(Limit::Memory(128 * MIB))?;
    b.in_force("the pod follows", Limit::Memory(96 * MIB)).await?;

    b.resize_pod(Limit::Cpu(500))?;
    b.update(Limit::Cpu(1000)).await?;
    b.now("quota above the pod's", Limit::Cpu(1000), VerdictKind::Shadowed).await?;
    b.resize_pod(Limit::Cpu(2000))?;
    b.in_force("the pod's quota follows", Limit::Cpu(1000)).await?;

    let above = [(&class, "cpu.max", "30000 100000", "class"), (&class, "memory.max", "50331648", "class")];
    let all = above.into_iter().chain([(&pods, "memory.max", "41943040", "pods")]);
    for (directory, file, text, whose) in all {
        let limit = if file == "cpu.max" { Limit::Cpu(1000) } else { Limit::Memory(96 * MIB) };
        let before = fs::read_to_string(directory.join(file)).with_context(|| format!("read {file}"))?;
        b.meddle(directory, file, text)?;
        let step = format!("less {} above the pod", if file == "cpu.max" { "CPU" } else { "memory" });
        let verdict = b.now(&step, limit, VerdictKind::Shadowed).await?;
        ensure!(verdict.reason.contains(whose), "{}", verdict.reason);
        b.mend(directory, file, before.trim())?;
        b.in_force("and it is put right", limit).await?;
    }
    b.meddle(&around, "cpu.max", "10000 100000")?;
    b.now("the pod's quota is cut", Limit::Cpu(1000), VerdictKind::Shadowed).await?;
    b.mend(&around, "cpu.max", "200000 100000")?;
    b.in_force("and given back", Limit::Cpu(1000)).await.map(drop)
}

/// It was in force, and is no more.
async fn undone(b: &mut Place<'_>) -> Result<()> {
    let own = b.own.clone();
    b.update(Limit::Memory(64 * MIB)).await?;
    b.in_force("memory before it is undone", Limit::Memory(64 * MIB)).await?;
    b.meddle(&own, "memory.max", "max")?;
    b.now("a write that undoes it", Limit::Memory(64 * MIB), VerdictKind::Reverted).await?;
    b.mend(&own, "memory.max", &(64 * MIB).to_string())?;
    b.in_force("and one that does it again", Limit::Memory(64 * MIB)).await?;
    b.meddle(&own, "cpu.max", "20000 100000")?;
    b.now("a quota that is undone", Limit::Cpu(1000), VerdictKind::Reverted).await?;
    b.update(Limit::Cpu(500)).await?;
    b.in_force("another resize repairs it", Limit::Cpu(500)).await?;
    b.meddle(&own, "cpu.max", "50000 200000")?;
    b.now("the same quota of a longer period", Limit::Cpu(500), VerdictKind::Reverted).await?;
    b.mend(&own, "cpu.max", "50000 100000")?;
    b.in_force("the period is put right", Limit::Cpu(500)).await?;
    let weight = b.says("cpu.weight")?;
    b.now("the weight as it is", Limit::Weight, VerdictKind::InForce).await?;
    b.meddle(&own, "cpu.weight", "777")?;
    b.now("a weight that is undone", Limit::Weight, VerdictKind::Reverted).await?;
    b.mend(&own, "cpu.weight", &weight)?;
    b.in_force("the weight is put right", Limit::Weight).await.map(drop)
}

/// What somebody wrote past the runtime is lost with the runtime's next update.
async fn overwritten(b: &mut Place<'_>) -> Result<()> {
    b.update(Limit::Memory(64 * MIB)).await?;
    b.in_force("memory, told to the runtime", Limit::Memory(64 * MIB)).await?;
    let own = b.own.clone();
    if b.inner().is_some() {
        b.meddle(&own, "memory.max", &(72 * MIB).to_string())?;
        let step = "memory, but for the inner cgroup";
        b.now(step, Limit::Memory(72 * MIB), VerdictKind::Shadowed).await?;
    }
    b.meddle_within("memory.max", &(72 * MIB).to_string())?;
    b.in_force("memory, not told to the runtime", Limit::Memory(72 * MIB)).await?;
    b.update(Limit::Memory(64 * MIB)).await?;
    let step = "the runtime's next update undoes it";
    let verdict = b.now(step, Limit::Memory(72 * MIB), VerdictKind::Reverted).await?;
    ensure!(verdict.writer.is_some_and(|writer| writer.pid.is_some()), "who reverted it is not known");
    Ok(())
}

/// What somebody wrote past systemd is lost when systemd writes its unit's limits again, for whatever reason.
async fn rewritten_by_systemd(b: &mut Place<'_>) -> Result<()> {
    let own = b.own.clone();
    b.meddle_within("memory.max", &(72 * MIB).to_string())?;
    b.in_force("memory, not told to systemd", Limit::Memory(72 * MIB)).await?;
    let scope = own.file_name().and_then(|name| name.to_str()).context("a scope without a name")?;
    let set = ["set-property", "--runtime", scope, "MemoryHigh=120M"];
    b.account.meddled("somebody runs `systemctl set-property SCOPE MemoryHigh=120M`");
    process::run(std::process::Command::new("systemctl").args(set))?;
    let written = (72 * MIB).to_string();
    process::wait_for("systemd to write memory.max", Duration::from_secs(30), async || {
        Ok((b.says("memory.max")? != written).then_some(()))
    })
    .await?;
    let step = "systemd writes what it knows";
    let verdict = b.now(step, Limit::Memory(72 * MIB), VerdictKind::Reverted).await?;
    ensure!(verdict.writer.as_ref().is_some_and(|writer| writer.pid == Some(1)), "{verdict:?}");
    Ok(())
}

/// The file never said it.
async fn never_written(b: &mut Place<'_>) -> Result<()> {
    b.now("never told to anybody", Limit::Memory(77 * MIB), VerdictKind::Diverged).await?;
    let verdict =
        b.verdict("waited for in vain", Limit::Memory(77 * MIB), 300, VerdictKind::Diverged).await?;
    ensure!(verdict.disagreeing().any(|source| source == Source::Runtime), "{verdict:?}");

    // 50m in a period of two seconds, which is longer than the kernel takes.
    b.account.meddled("somebody writes `100000 2000000` to the container's cpu.max");
    let refused = fs::write(b.own.join("cpu.max"), "100000 2000000");
    ensure!(refused.is_err(), "the kernel took a period of two seconds");
    b.now("a write that the kernel refuses", Limit::Cpu(50), VerdictKind::Rejected).await?;
    b.in_force("what was before is still in force", Limit::Cpu(500)).await.map(drop)
}

/// Resizes that meet each other, or the question.
async fn at_once(b: &mut Place<'_>) -> Result<()> {
    let limit = Limit::Memory(100 * MIB);
    let late = async {
        sleep(Duration::from_millis(300)).await;
        b.update(limit).await
    };
    let memory = Some(wanted::Memory::MemoryBytes(100 * MIB));
    let asked = b.ask(Some(v1::Wanted { memory, cpu: None }), 20_000);
    let (updated, asked) = tokio::join!(late, asked);
    updated?;
    ensure!(asked.context("call Verify")?.verdicts.len() >= 2, "no verdicts");
    b.in_force("a resize that comes while it is waited for", limit).await?;

    let (one, other) = tokio::join!(b.update(Limit::Memory(88 * MIB)), b.update(Limit::Memory(92 * MIB)));
    one?;
    other?;
    let (won, lost) = if b.says("memory.max")? == (88 * MIB).to_string() { (88, 92) } else { (92, 88) };
    b.in_force("the resize that won a race", Limit::Memory(won * MIB)).await?;
    let verdict = b.file(Limit::Memory(lost * MIB), 0).await?;
    ensure!(
        matches!(verdict.verdict(), VerdictKind::Diverged | VerdictKind::Reverted),
        "the one that lost is {verdict:?}"
    );
    b.account.meddled(&format!("the other wants: memory {lost} MiB"));
    b.account.told("the resize that lost it", &verdict.reason).await;
    Ok(())
}

/// A container that dies under its resize, and is started again by one who has not heard of that.
pub(super) async fn restarted(
    node: &Node,
    agent: &Agent,
    combination: Combination,
    account: &mut Account,
) -> Result<()> {
    let pod = node.run_pod(&PodSpec::new("restarted", combination.handler)?).await?;
    let first = node.run(&pod, &sleeper()).await?;
    let mut place = Place::new(node, agent, &pod, first.clone(), account).await?;
    let b = &mut place;
    b.resize_pod(Limit::Memory(128 * MIB))?;
    b.in_force("before it is killed", Limit::Memory(64 * MIB)).await?;
    b.account.meddled("the container is killed with SIGKILL");
    process::kill_pid(node.pid(&first).await?)?;
    let updated = b.update(Limit::Memory(96 * MIB)).await;
    node.wait_exited(&first).await?;
    let answer = b.ask(Limit::Memory(96 * MIB).wanted(), 0).await;
    // Between the last process and the cgroup's end, its files still say something.
    let memory = answer.iter().flat_map(|answer| &answer.verdicts).filter_map(|of| of.verdict.as_ref());
    let mut claimed = memory.filter(|verdict| verdict.file == "memory.max");
    let is_in_force = claimed.clone().any(|verdict| verdict.verdict() == VerdictKind::InForce);
    ensure!(updated.is_ok() || !is_in_force, "a dead container's limit is in force: {answer:?}");
    let said = claimed.next_back().map_or("nothing to verify", |verdict| &verdict.reason).to_owned();
    b.account.told("a resize of a container that is being killed", &said).await;
    node.remove_container(&first).await?;

    b.account.meddled("the container is started again with what it had");
    let mut spec = sleeper();
    spec.attempt = 1;
    b.container = node.run(&pod, &spec).await?;
    b.own = directory(node, &b.container).await?;
    b.now("started again without the resize", Limit::Memory(96 * MIB), VerdictKind::Diverged).await?;
    b.update(Limit::Memory(96 * MIB)).await?;
    b.in_force("and resized again", Limit::Memory(96 * MIB)).await?;
    node.remove_pod(&pod).await
}
