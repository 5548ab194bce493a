//! Each way in which a requested resize fails to take effect.

use std::fs;

use anyhow::{Context as _, Result, bail, ensure};
use kwitness_api::proto::{Source, VerdictKind};
use tokio::time::Duration;

use super::{Account, Limit, MIB, ResizeContext, Stage, sleeper};
use crate::environment::{CgroupDriver, Combination};
use crate::pod::PodSpec;
use crate::{cgroup, limit, process};

pub(super) async fn all(ctx: &mut ResizeContext<'_>, combination: Combination) -> Result<()> {
    ctx.account.part("Another level allows less.");
    shadowed(ctx).await?;
    ctx.account.part("Another process writes.");
    undone(ctx).await?;
    overwritten(ctx).await?;
    if combination.driver == CgroupDriver::Systemd {
        rewritten_by_systemd(ctx).await?;
    }
    ctx.account.part("The runtime was not called, or the kernel refused.");
    never_written(ctx).await?;
    ctx.account.part("Two at a time.");
    at_once(ctx).await
}

/// A level above allows less.
async fn shadowed(ctx: &mut ResizeContext<'_>) -> Result<()> {
    let around = ctx.around.clone();
    let class = around.parent().context("a pod's cgroup without a parent")?.to_owned();
    let pods = class.parent().context("a class's cgroup without a parent")?.to_owned();

    ctx.resize_pod(Limit::Memory(64 * MIB))?;
    ctx.update(Limit::Memory(96 * MIB)).await?;
    let verdict =
        ctx.now("container updated but pod not", Limit::Memory(96 * MIB), VerdictKind::Shadowed).await?;
    let effective = verdict.effective.context("no effective limit")?;
    ensure!(effective.value == (64 * MIB).to_string(), "{effective:?}");
    ctx.resize_pod(Limit::Memory(128 * MIB))?;
    ctx.in_force("the pod follows", Limit::Memory(96 * MIB)).await?;

    ctx.resize_pod(Limit::Cpu(500))?;
    ctx.update(Limit::Cpu(1000)).await?;
    ctx.now("quota above the pod's", Limit::Cpu(1000), VerdictKind::Shadowed).await?;
    ctx.resize_pod(Limit::Cpu(2000))?;
    ctx.in_force("the pod's quota follows", Limit::Cpu(1000)).await?;

    // Each level allows less than the ones below it, and is the one that is named.
    let chain = [
        (&around, "the pod's cgroup", ["75497472", "60000 100000"]),
        (&class, "the class's cgroup", ["50331648", "30000 100000"]),
        (&pods, "the cgroup of all pods", ["41943040", "15000 100000"]),
    ];
    for (index, limit) in [Limit::Memory(96 * MIB), Limit::Cpu(1000)].into_iter().enumerate() {
        let mut before = Vec::new();
        for (directory, whose, texts) in chain {
            before.push((directory, cgroup::text(directory, limit.file())?));
            ctx.meddle(directory, limit.file(), texts[index])?;
            let step = format!("less {} in {whose}", limit.what());
            let verdict = ctx.now(&step, limit, VerdictKind::Shadowed).await?;
            ensure!(verdict.reason.contains(whose), "{}", verdict.reason);
        }
        for (directory, text) in before {
            ctx.mend(directory, limit.file(), &text)?;
        }
        ctx.in_force("and all of it put right", limit).await?;
    }
    Ok(())
}

/// It was in force, and is no more.
async fn undone(ctx: &mut ResizeContext<'_>) -> Result<()> {
    let (own, around) = (ctx.own.clone(), ctx.around.clone());
    ctx.update(Limit::Memory(64 * MIB)).await?;
    ctx.in_force("memory before it is undone", Limit::Memory(64 * MIB)).await?;
    ctx.meddle(&own, "memory.max", "max")?;
    ctx.now("a write that undoes it", Limit::Memory(64 * MIB), VerdictKind::Reverted).await?;
    for (step, text) in [("it is halved", "33554432"), ("it is a page more", "67112960")] {
        ctx.meddle(&own, "memory.max", text)?;
        ctx.now(step, Limit::Memory(64 * MIB), VerdictKind::Reverted).await?;
    }
    ctx.mend(&own, "memory.max", &(64 * MIB).to_string())?;
    ctx.in_force("and one that does it again", Limit::Memory(64 * MIB)).await?;
    let high = cgroup::text(&own, "memory.high")?;
    ctx.meddle(&own, "memory.high", "max")?;
    ctx.now("throttling is off", Limit::High, VerdictKind::Reverted).await?;
    ctx.mend(&own, "memory.high", &high)?;
    ctx.meddle(&around, "memory.high", "33554432")?;
    ctx.now("and the whole pod, sooner", Limit::High, VerdictKind::Shadowed).await?;
    let class = around.parent().context("a pod's cgroup without a parent")?.to_owned();
    ctx.meddle(&class, "memory.high", "25165824")?;
    ctx.now("and all of its class, sooner still", Limit::High, VerdictKind::Shadowed).await?;
    ctx.mend(&class, "memory.high", "max")?;
    ctx.mend(&around, "memory.high", "max")?;
    for (step, text) in [
        ("a quota that is undone", "20000 100000"),
        ("a quota that is none any more", "max 100000"),
        ("a tenth more", "110000 100000"),
    ] {
        ctx.meddle(&own, "cpu.max", text)?;
        ctx.now(step, Limit::Cpu(1000), VerdictKind::Reverted).await?;
    }
    ctx.update(Limit::Cpu(500)).await?;
    ctx.in_force("another resize repairs it", Limit::Cpu(500)).await?;
    for (step, text) in
        [("the same quota of a longer period", "50000 200000"), ("and of a shorter one", "50000 50000")]
    {
        ctx.meddle(&own, "cpu.max", text)?;
        ctx.now(step, Limit::Cpu(500), VerdictKind::Reverted).await?;
    }
    ctx.mend(&own, "cpu.max", "50000 100000")?;
    ctx.in_force("the period is put right", Limit::Cpu(500)).await?;
    let weight = cgroup::text(&own, "cpu.weight")?;
    ctx.now("the weight as it is", Limit::Weight, VerdictKind::InForce).await?;
    for (step, text) in
        [("a weight that is undone", "777"), ("the greatest weight", "10000"), ("the least weight", "1")]
    {
        ctx.meddle(&own, "cpu.weight", text)?;
        ctx.now(step, Limit::Weight, VerdictKind::Reverted).await?;
    }
    ctx.mend(&own, "cpu.weight", &weight)?;
    ctx.in_force("the weight is put right", Limit::Weight).await.map(drop)
}

/// What another process wrote past the runtime is lost with the runtime's next update.
async fn overwritten(ctx: &mut ResizeContext<'_>) -> Result<()> {
    ctx.update(Limit::Memory(64 * MIB)).await?;
    ctx.in_force("memory, by the runtime", Limit::Memory(64 * MIB)).await?;
    let own = ctx.own.clone();
    if ctx.inner().is_some() {
        ctx.meddle(&own, "memory.max", &(72 * MIB).to_string())?;
        let step = "memory, but for the inner cgroup";
        ctx.now(step, Limit::Memory(72 * MIB), VerdictKind::Shadowed).await?;
    }
    ctx.meddle_within("memory.max", &(72 * MIB).to_string())?;
    ctx.in_force("memory, behind the runtime's back", Limit::Memory(72 * MIB)).await?;
    ctx.update(Limit::Memory(64 * MIB)).await?;
    let step = "the runtime's next update undoes it";
    let verdict = ctx.now(step, Limit::Memory(72 * MIB), VerdictKind::Reverted).await?;
    ensure!(verdict.writer.is_some_and(|writer| writer.pid.is_some()), "who reverted it is not known");
    Ok(())
}

/// What another process wrote past systemd is lost when systemd writes its unit's limits again, for whatever reason.
async fn rewritten_by_systemd(ctx: &mut ResizeContext<'_>) -> Result<()> {
    let own = ctx.own.clone();
    ctx.meddle_within("memory.max", &(72 * MIB).to_string())?;
    ctx.in_force("memory, behind systemd's back", Limit::Memory(72 * MIB)).await?;
    let scope = own.file_name().and_then(|name| name.to_str()).context("a scope without a name")?;
    let set = ["set-property", "--runtime", scope, "MemoryHigh=120M"];
    ctx.account.meddled("another process runs `systemctl set-property SCOPE MemoryHigh=120M`");
    process::run(std::process::Command::new("systemctl").args(set))?;
    let written = (72 * MIB).to_string();
    process::wait_for("systemd to write memory.max", Duration::from_secs(30), async || {
        Ok((cgroup::text(&ctx.own, "memory.max")? != written).then_some(()))
    })
    .await?;
    let step = "systemd writes what it knows";
    let verdict = ctx.now(step, Limit::Memory(72 * MIB), VerdictKind::Reverted).await?;
    ensure!(verdict.writer.as_ref().is_some_and(|writer| writer.pid == Some(1)), "{verdict:?}");
    Ok(())
}

/// The file never said it.
async fn never_written(ctx: &mut ResizeContext<'_>) -> Result<()> {
    ctx.now("never written", Limit::Memory(77 * MIB), VerdictKind::Diverged).await?;
    let verdict = ctx.verdict("it never comes", Limit::Memory(77 * MIB), 300, VerdictKind::Diverged).await?;
    ensure!(verdict.disagreeing().any(|source| source == Source::Runtime), "{verdict:?}");

    for (step, limit) in [
        ("less than it has, and never written", Limit::Memory(40 * MIB)),
        ("a quota that was never written", Limit::Cpu(333)),
        ("more than all of the node's CPUs", Limit::Cpu(64_000)),
    ] {
        ctx.now(step, limit, VerdictKind::Diverged).await?;
    }

    // The kernel takes periods from 1 ms to 1 s, and quotas from 1 ms.
    for (step, milli, text) in [
        ("a write that the kernel refuses", 50, "100000 2000000"),
        ("a period that is too short", 1500, "750 500"),
        ("a quota that is too small", 60, "600 10000"),
    ] {
        ctx.account.meddled(&format!("another process writes `{text}` to the container's cpu.max"));
        ensure!(fs::write(ctx.own.join("cpu.max"), text).is_err(), "the kernel took `{text}`");
        ctx.now(step, Limit::Cpu(milli), VerdictKind::Rejected).await?;
    }
    ctx.in_force("what was before is still in force", Limit::Cpu(500)).await.map(drop)
}

/// Resizes that meet each other, or the question.
async fn at_once(ctx: &mut ResizeContext<'_>) -> Result<()> {
    let limit = Limit::Memory(100 * MIB);
    let late = async {
        process::wait_for("the call that waits", Duration::from_secs(20), async || {
            let calls = ctx.agent.status().await?.calls;
            Ok(calls.iter().any(|call| call.name == "verify" && call.active > 0).then_some(()))
        })
        .await?;
        ctx.update(limit).await
    };
    let (updated, answer) = tokio::join!(late, ctx.ask(limit.wanted(), 20_000));
    updated?;
    let verdict = limit::own(answer.context("call Verify")?, limit.file())?;
    ensure!(
        verdict.verdict() == VerdictKind::InForce,
        "a resize that came while the call waited: {verdict:?}"
    );
    ctx.in_force("a resize that comes while it is waited for", limit).await?;

    for (one, other) in
        [(Limit::Memory(88 * MIB), Limit::Memory(92 * MIB)), (Limit::Cpu(700), Limit::Cpu(900))]
    {
        race(ctx, one, other).await?;
    }
    Ok(())
}

async fn race(ctx: &mut ResizeContext<'_>, one: Limit, other: Limit) -> Result<()> {
    let (first, second) = tokio::join!(ctx.update(one), ctx.update(other));
    first?;
    second?;
    let (won, lost) = match (ctx.file(one, 0).await?.verdict(), ctx.file(other, 0).await?.verdict()) {
        (VerdictKind::InForce, _) => (one, other),
        (_, VerdictKind::InForce) => (other, one),
        neither => bail!("neither {one} nor {other} is in force: {neither:?}"),
    };
    ctx.in_force("the resize that won a race", won).await?;
    let verdict = ctx.file(lost, 0).await?;
    ensure!(
        matches!(verdict.verdict(), VerdictKind::Diverged | VerdictKind::Reverted),
        "the one that lost is {verdict:?}"
    );
    ctx.account.meddled(&format!("the other wants: {lost}"));
    ctx.account.reported("the resize that lost it", &verdict.reason).await;
    Ok(())
}

/// A container that dies under its resize, and is started again without it.
pub(super) async fn restarted(stage: Stage<'_>, account: &mut Account) -> Result<()> {
    let pod = stage.node.run_pod(&PodSpec::new("restarted", stage.combination.handler)?).await?;
    let first = stage.node.run(&pod, &sleeper()).await?;
    let mut context = ResizeContext::new(stage, &pod, first.clone(), account).await?;
    let ctx = &mut context;
    ctx.resize_pod(Limit::Memory(128 * MIB))?;
    ctx.in_force("before it is killed", Limit::Memory(64 * MIB)).await?;
    ctx.account.meddled("the container is killed with SIGKILL");
    process::kill_pid(stage.node.pid(&first).await?)?;
    let updated = ctx.update(Limit::Memory(96 * MIB)).await;
    stage.node.wait_exited(&first).await?;
    let answer = ctx.ask(Limit::Memory(96 * MIB).wanted(), 0).await;
    // Between the last process and the cgroup's end, its files still say something.
    let memory = answer.iter().flat_map(|answer| &answer.verdicts).filter_map(|of| of.verdict.as_ref());
    let mut claimed = memory.filter(|verdict| verdict.file == "memory.max");
    let is_in_force = claimed.clone().any(|verdict| verdict.verdict() == VerdictKind::InForce);
    ensure!(updated.is_ok() || !is_in_force, "a dead container's limit is in force: {answer:?}");
    let said = claimed.next_back().map_or("nothing to verify", |verdict| &verdict.reason).to_owned();
    ctx.account.reported("a resize of a container that is being killed", &said).await;
    stage.node.remove_container(&first).await?;

    ctx.account.meddled("the container is started again with what it had");
    let mut spec = sleeper();
    spec.attempt = 1;
    ctx.container = stage.node.run(&pod, &spec).await?;
    ctx.own = stage.node.own_cgroup_of(&ctx.container).await?;
    ctx.now("started again without the resize", Limit::Memory(96 * MIB), VerdictKind::Diverged).await?;
    ctx.update(Limit::Memory(96 * MIB)).await?;
    ctx.in_force("and resized again", Limit::Memory(96 * MIB)).await?;
    stage.node.remove_pod(&pod).await
}
