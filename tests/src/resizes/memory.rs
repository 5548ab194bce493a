//! Limits below what is used.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use kwitness_api::proto::VerdictKind;
use tokio::time::Duration;

use super::{Account, Limit, MIB, ResizeContext, Stage, sleeper};
use crate::pod::{Pod, PodSpec};
use crate::{cgroup, process};

/// A container with a child that holds 40 MB. From then on it starts no process and allocates no memory.
const HOG: &str = "(head -c 40000000 /dev/zero; exec sleep 1000) | tail; sleep 1000";
const HOLDER: &str = "tail";
/// How long usage may take to rise, and to fall.
const SOON: Duration = Duration::from_secs(60);

/// No process in it may be killed: the write returns, and the limit is exceeded.
pub(super) async fn no_process_to_kill(stage: Stage<'_>, account: &mut Account) -> Result<()> {
    let pod = stage.node.run_pod(&PodSpec::new("hungry", stage.combination.handler)?).await?;
    let mut context = hungry(stage, &pod, account).await?;
    let ctx = &mut context;
    ctx.in_force("a container that uses most of its 64 MiB", Limit::Memory(64 * MIB)).await?;
    ctx.account.meddled("no process in it may be killed");
    for pid in ctx.pids()? {
        spare(pid)?;
    }
    let own = ctx.own.clone();
    ctx.meddle(&own, "memory.max", &(16 * MIB).to_string())?;
    let step = "memory below usage, no process to kill";
    let verdict = ctx.now(step, Limit::Memory(16 * MIB), VerdictKind::OverLimit).await?;
    ensure!(verdict.usage.is_some_and(|usage| usage > 16 * MIB), "{verdict:?}");
    ctx.mend(&own, "memory.max", &(64 * MIB).to_string())?;
    ctx.in_force("and raised again", Limit::Memory(64 * MIB)).await?;
    stage.node.remove_pod(&pod).await
}

/// The one that holds the memory is killed; the container's own process is spared, so that there is something left to judge.
pub(super) async fn a_child_is_killed(stage: Stage<'_>, account: &mut Account) -> Result<()> {
    let pod = stage.node.run_pod(&PodSpec::new("killed", stage.combination.handler)?).await?;
    let mut context = hungry(stage, &pod, account).await?;
    let ctx = &mut context;
    for pid in ctx.pids()? {
        if !words(pid).iter().any(|word| word.as_slice() == HOLDER.as_bytes()) {
            spare(pid)?;
        }
    }
    let own = ctx.own.clone();
    ctx.meddle(&own, "memory.max", &(16 * MIB).to_string())?;
    cgroup::wait_number(&own, "memory.current", SOON, |bytes| bytes < 16 * MIB).await?;
    let step = "memory below usage kills";
    let verdict = ctx.now(step, Limit::Memory(16 * MIB), VerdictKind::Killed).await?;
    ensure!(verdict.kills.is_some_and(|kills| kills > 0), "{verdict:?}");
    ctx.update(Limit::Memory(64 * MIB)).await?;
    ctx.in_force("and resized back", Limit::Memory(64 * MIB)).await?;
    stage.node.remove_pod(&pod).await
}

async fn hungry<'a>(stage: Stage<'a>, pod: &'a Pod, account: &'a mut Account) -> Result<ResizeContext<'a>> {
    let mut spec = sleeper();
    spec.command = ["/bin/sh", "-c", HOG].map(str::to_owned).to_vec();
    let id = stage.node.run(pod, &spec).await?;
    let context = ResizeContext::new(stage, pod, id, account).await?;
    process::wait_for("the end of what the child reads", Duration::from_secs(180), async || {
        let sleeps = |pid: u32| words(pid).iter().any(|word| word.as_slice() == b"sleep");
        Ok(context.pids()?.into_iter().any(sleeps).then_some(()))
    })
    .await?;
    let has_all = |bytes| bytes > 38 * MIB;
    cgroup::wait_number(&context.own, "memory.current", SOON, has_all).await.context("the 40 MB")?;
    Ok(context)
}

fn words(pid: u32) -> Vec<Vec<u8>> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect()
}

fn spare(pid: u32) -> Result<()> {
    fs::write(format!("/proc/{pid}/oom_score_adj"), "-1000").with_context(|| format!("spare {pid}"))
}
