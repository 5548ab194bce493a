//! What the guard refuses: a raise that a limit above would make void, for which the node has no memory, or that is beyond the budget;
//! and to run beside another guard.

use std::path::Path;

use kwitness_guard::status::Armed;
use kwitness_tests::hog::{self, KILLED, LIMIT, POD, POLICY, SIZE};
use kwitness_tests::late_runtime::LateRuntime;
use kwitness_tests::prelude::*;

use crate::scene::{Scene, with_guard};

/// How long the hog may take in an emulated guest.
const SOON: Duration = Duration::from_secs(300);

/// The pod's cgroup has a limit of its own, with less room than one raise adds.
pub(crate) async fn limit_above(ctx: &Testbed<'_>) -> Result<()> {
    with_guard(ctx, POLICY, async |&Scene { node, guard, pod, .. }| {
        // Above the container's limit, or it would be hit before the container's threshold.
        let limit = LIMIT + (SIZE - LIMIT) / 2;
        cgroup::write(&node.cgroup_directory(&pod.cgroup), "memory.max", limit)?;
        let ended = hog::work(node, pod, "limited", Some(guard)).await?;
        ensure!(ended.code == KILLED, "{ended:?}");
        let status = guard.status().await?;
        let reasons: Vec<_> =
            status.history.iter().map(|ended| (ended.refused.as_deref(), ended.raised_ms)).collect();
        // Before the container runtime is asked.
        ensure!(reasons.first() == Some(&(Some("limitAbove"), None)), "{status:?}");
        ensure!(status.raised == 0, "{status:?}");
        Ok(())
    })
    .await
}

/// A raise that the node has no memory for would make the container's OOM the node's.
pub(crate) async fn no_free_memory(ctx: &Testbed<'_>) -> Result<()> {
    let policy = POLICY.replace("96Mi", "1Ti").replace("256Mi", "2Ti");
    with_guard(ctx, &policy, async |&Scene { node, guard, pod, .. }| {
        let ended = hog::work(node, pod, "huge", Some(guard)).await?;
        ensure!(ended.code == KILLED, "{ended:?}");
        let status = guard.status().await?;
        let reasons: Vec<_> =
            status.history.iter().map(|ended| (ended.refused.as_deref(), ended.raised_ms)).collect();
        ensure!(reasons.first() == Some(&(Some("noFreeMemory"), None)), "{status:?}");
        ensure!(status.raised == 0, "{status:?}");
        Ok(())
    })
    .await
}

/// One raise is allowed, and is not enough.
pub(crate) async fn budget(ctx: &Testbed<'_>) -> Result<()> {
    let policy = POLICY.replace("96Mi", "1Mi") + "budget = 1\n";
    ctx.with_both(&[], async |node, agent| {
        let pod = node.run_pod(&PodSpec::new(POD, ctx.combination.handler)?).await?;
        let out = Out::make()?;
        let line = format!("{}; {}; {LEAVE_CODE}", until("go"), hog::command());
        let id = node.run(&pod, &hog::limited("spent", &line, &out)).await?;
        // Unlike a real one it answers within any hold.
        let runtime = LateRuntime::serve(&node.cgroup_of(&id).await?)?;
        runtime.answer();
        let guard = Guard::start(&ctx.environment, agent, &policy, &runtime.socket()).await?;
        guard.wait_armed(1).await?;
        out.signal("go")?;
        let code = out.code(SOON).await.with_context(|| guard.log_tail())?;
        ensure!(code == KILLED, "ended with {code}\n{}", guard.log_tail());
        let status = guard.status().await?;
        let has_spent = status.armed.iter().map(|armed| armed.raises).eq([1]);
        let refused = status.refused.get("budgetExhausted");
        ensure!(has_spent && status.raised == 1 && refused.is_some(), "{status:?}\n{}", guard.log_tail());
        let is_suspended = |armed: &Armed| armed.suspended.as_deref() == Some("budgetExhausted");
        ensure!(status.armed.iter().all(is_suspended), "{status:?}");
        guard.stop()?;
        node.remove_pod(&pod).await
    })
    .await
}

/// Two would raise the limits of one container, each by its own policy.
pub(crate) async fn second(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_agent(&[], async |agent| {
        let guard = Guard::start(&ctx.environment, agent, POLICY, Path::new(CONTAINERD_SOCKET)).await?;
        let pid = guard.status().await?.pid;
        let refusal = guard.second()?;
        ensure!(refusal.contains(&format!("another instance is running (process {pid})")), "{refusal}");
        guard.stop()
    })
    .await
}
