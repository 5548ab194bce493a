//! A series of resizes on a real node, many of them sabotaged, each with the verdict that it must get.
//!
//! Good resizes are waited for; sabotage is judged as it stands. The test of limits plays it, and the demo does, too: [`Account`]
//! reports it as it goes.

mod account;
mod context;
mod memory;
mod sabotage;
mod sources;

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use kwitness_api::proto::{Tolerance, VerdictKind};

pub use account::Account;
use context::{Limit, MIB, ResizeContext};

use crate::agent::{Agent, from_now};
use crate::cri::v1 as cri;
use crate::environment::{CgroupDriver, Combination};
use crate::events::Seen;
use crate::node::Node;
use crate::pod::{ContainerSpec, PodSpec, Qos, new_static_uid};
use crate::process;

/// At least so many resizes for each combination; half of them are sabotaged.
const STEPS: usize = 40;

#[derive(Clone, Copy, Debug)]
pub struct Stage<'a> {
    pub node: &'a Node,
    pub agent: &'a Agent,
    pub combination: Combination,
}

/// Plays all of it. `kubelet` is the directory in which the daemon looks for the kubelet's checkpoints.
pub async fn play(stage: Stage<'_>, kubelet: &Path, account: &mut Account) -> Result<()> {
    account.part("A container is resized, up and down, and its pod with it.");
    ordinary(stage, account).await?;
    account.part("Limits below what is used.");
    memory::no_process_to_kill(stage, account).await?;
    memory::a_child_is_killed(stage, account).await?;
    account.part("A container that ends while it is resized, and starts again.");
    sabotage::restarted(stage, account).await?;
    account.part("The kubelet's checkpoints say what is wanted.");
    sources::checkpoints(stage, kubelet, account).await?;
    account.part("A static pod, whose uid has no dashes.");
    static_pod(stage, account).await?;
    let (steps, sabotaged) = (account.steps(), account.sabotaged());
    ensure!(steps >= STEPS && 2 * sabotaged >= steps, "only {steps} steps, {sabotaged} of them sabotaged");
    Ok(())
}

fn sleeper() -> ContainerSpec {
    let mut spec = ContainerSpec::new("main", &["/bin/sleep", "1000"]);
    spec.resources = Some(cri::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        ..Default::default()
    });
    spec
}

fn shares(shares: i64) -> cri::LinuxContainerResources {
    cri::LinuxContainerResources { cpu_shares: shares, ..Default::default() }
}

async fn ordinary(stage: Stage<'_>, account: &mut Account) -> Result<()> {
    let pod = stage.node.run_pod(&PodSpec::new("resized", stage.combination.handler)?).await?;
    let mut watcher = stage.agent.watch(from_now()).await?;
    let mut spec = sleeper();
    // As the kubelet's MemoryQoS has it.
    let throttled = ("memory.high".to_owned(), (56 * MIB).to_string());
    spec.resources.get_or_insert_default().unified.extend([throttled]);
    let id = stage.node.run(&pod, &spec).await?;
    let mut context = ResizeContext::new(stage, &pod, id.clone(), account).await?;
    let ctx = &mut context;
    ctx.in_force("memory as it was made", Limit::Memory(64 * MIB)).await?;
    ctx.in_force("memory.high as it was made", Limit::High).await?;
    ctx.in_force("CPU as it was made", Limit::Cpu(500)).await?;
    ctx.in_force("weight as it was made", Limit::Weight).await?;

    // As the kubelet goes up: pod first. Down: containers first.
    ctx.resize_pod(Limit::Memory(128 * MIB))?;
    ctx.update(Limit::Memory(96 * MIB)).await?;
    ctx.in_force("memory up, within the pod's", Limit::Memory(96 * MIB)).await?;
    ctx.update(Limit::Memory(80 * MIB)).await?;
    ctx.in_force("memory down", Limit::Memory(80 * MIB)).await?;
    ctx.resize_pod(Limit::Memory(80 * MIB))?;
    ctx.in_force("the pod's memory down to the container's", Limit::Memory(80 * MIB)).await?;
    ctx.resize_pod(Limit::Cpu(2000))?;
    for (step, milli) in [("CPU up", 1000), ("CPU down", 250), ("the least CPU", 10), ("CPU of 417m", 417)] {
        ctx.update(Limit::Cpu(milli)).await?;
        let verdict = ctx.in_force(step, Limit::Cpu(milli)).await?;
        if milli == 417 && stage.combination.driver == CgroupDriver::Systemd {
            // Which of the two, the runtime's version decides.
            ensure!(
                matches!(verdict.tolerance(), Tolerance::Exact | Tolerance::RoundedToTenMilliseconds),
                "{verdict:?}"
            );
        }
    }
    ctx.update(Limit::Cpu(1234)).await?;
    ctx.in_force("CPU of 1234m", Limit::Cpu(1234)).await?;
    for (step, count) in [("few shares", 2), ("shares of 100m", 102), ("shares of 1", 1024)] {
        ctx.update_to(shares(count)).await?;
        let verdict = ctx.in_force(step, Limit::Weight).await?;
        ensure!(verdict.tolerance() != Tolerance::Unspecified, "{verdict:?}");
    }
    ctx.resize_pod(Limit::Memory(128 * MIB))?;
    ctx.update(Limit::Memory(70 * MIB + 5000)).await?;
    let odd = ctx.in_force("memory that is no whole number of pages", Limit::Memory(70 * MIB + 5000)).await?;
    ensure!(odd.tolerance() == Tolerance::RoundedToPage, "{odd:?}");
    ctx.update(Limit::Memory(64 * MIB)).await?;
    ctx.in_force("memory back", Limit::Memory(64 * MIB)).await?;
    ctx.update(Limit::Memory(64 * MIB)).await?;
    ctx.in_force("the same once more", Limit::Memory(64 * MIB)).await?;

    sabotage::all(ctx, stage.combination).await?;
    let resized = |seen: &Seen| seen.has(&id, "verdict");
    let seen = watcher.wait_until("unsolicited verdicts", resized).await?;
    ensure!(seen.count("gap") == 0, "records were lost:\n{seen}");
    stage.node.stop_container(&id, 0).await?;
    stage.node.remove_container(&id).await?;
    agent_forgets(ctx).await?;
    stage.node.remove_pod(&pod).await
}

/// A container that is gone has no limits.
async fn agent_forgets(ctx: &mut ResizeContext<'_>) -> Result<()> {
    ctx.account.requested("the container is removed");
    process::wait_for("the end of the container", Duration::from_secs(60), async || {
        let answer = ctx.ask(None, 0).await;
        Ok(answer.is_err_and(|status| status.code() == tonic::Code::NotFound).then_some(()))
    })
    .await?;
    ctx.account.reported("a container that is gone", "nothing to verify").await;
    Ok(())
}

async fn static_pod(stage: Stage<'_>, account: &mut Account) -> Result<()> {
    let mut spec = PodSpec::new("static", stage.combination.handler)?;
    spec.uid = new_static_uid()?;
    spec.qos = Qos::Guaranteed;
    let pod = stage.node.run_pod(&spec).await?;
    let id = stage.node.run(&pod, &sleeper()).await?;
    let mut context = ResizeContext::new(stage, &pod, id, account).await?;
    let ctx = &mut context;
    ctx.in_force("a static pod's memory", Limit::Memory(64 * MIB)).await?;
    ctx.update(Limit::Memory(48 * MIB)).await?;
    ctx.in_force("a static pod's resize", Limit::Memory(48 * MIB)).await?;
    ctx.resize_pod(Limit::Memory(32 * MIB))?;
    ctx.now(
        "a static pod that is smaller than its container",
        Limit::Memory(48 * MIB),
        VerdictKind::Shadowed,
    )
    .await?;
    let own = ctx.own.clone();
    ctx.in_force("a static pod's quota", Limit::Cpu(500)).await?;
    ctx.meddle(&own, "cpu.max", "max 100000")?;
    ctx.now("a static pod's quota is undone", Limit::Cpu(500), VerdictKind::Reverted).await?;
    ctx.meddle(&own, "memory.max", "max")?;
    ctx.now("and its memory", Limit::Memory(48 * MIB), VerdictKind::Reverted).await?;
    stage.node.remove_pod(&pod).await
}
