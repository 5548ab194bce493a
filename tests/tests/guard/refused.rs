//! What the guard refuses: a raise that a limit above would make void, for which the node has no memory, or that is beyond the budget;
//! and to run beside another guard.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kwitness_guard::status::Armed;
use kwitness_tests::context::TestContext;
use kwitness_tests::environment::Combination;
use kwitness_tests::guard::Guard;
use kwitness_tests::hog::{self, KILLED, LIMIT, POD, POLICY, SIZE};
use kwitness_tests::late_runtime::LateRuntime;
use kwitness_tests::node::CONTAINERD_SOCKET;
use kwitness_tests::pod::PodSpec;
use kwitness_tests::process::wait_for;

use crate::scene::{Scene, with_guard};

/// How long the hog may take in an emulated guest.
const SOON: Duration = Duration::from_secs(300);

/// The pod's cgroup has a limit of its own, with less room than one raise adds.
pub(crate) async fn limit_above(ctx: &TestContext, combination: Combination) -> Result<()> {
    with_guard(ctx, combination, POLICY, async |&Scene { node, guard, pod, .. }| {
        let file = node.cgroup_directory(&pod.cgroup).join("memory.max");
        // Above the container's limit, or it would be hit before the container's threshold.
        let limit = LIMIT + (SIZE - LIMIT) / 2;
        fs::write(&file, limit.to_string()).with_context(|| format!("write {}", file.display()))?;
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
pub(crate) async fn no_free_memory(ctx: &TestContext, combination: Combination) -> Result<()> {
    let policy = POLICY.replace("96Mi", "1Ti").replace("256Mi", "2Ti");
    with_guard(ctx, combination, &policy, async |&Scene { node, guard, pod, .. }| {
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
pub(crate) async fn budget(ctx: &TestContext, combination: Combination) -> Result<()> {
    let policy = POLICY.replace("96Mi", "1Mi") + "budget = 1\n";
    ctx.with_both(combination.driver, &[], async |node, agent| {
        let pod = node.run_pod(&PodSpec::new(POD, combination.handler)?).await?;
        let directory = tempfile::tempdir_in("/run").context("make a directory for the hog")?;
        let line = format!(
            "until [ -e /out/go ]; do sleep 0.1; done; {}; echo $? >/out/code.new; mv /out/code.new /out/code; \
             exec sleep 1000",
            hog::command()
        );
        let id = node.run(&pod, &hog::limited("spent", &line, directory.path())).await?;
        // Unlike a real one it answers within any hold.
        let runtime = LateRuntime::serve(&node.cgroup_of(&id).await?)?;
        runtime.answer();
        let guard = Guard::start(&ctx.environment, agent, &policy, &runtime.socket()).await?;
        guard.wait_armed(1).await?;
        fs::write(directory.path().join("go"), "").context("start the hog")?;
        let code = async || Ok(fs::read_to_string(directory.path().join("code")).ok());
        let code = wait_for("the hog's end", SOON, code).await.with_context(|| guard.log_tail())?;
        ensure!(code.trim() == KILLED.to_string(), "ended with {code}\n{}", guard.log_tail());
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
pub(crate) async fn second(ctx: &TestContext, _: Combination) -> Result<()> {
    ctx.with_agent(&[], async |agent| {
        let guard = Guard::start(&ctx.environment, agent, POLICY, Path::new(CONTAINERD_SOCKET)).await?;
        let pid = guard.status().await?.pid;
        let refusal = guard.second()?;
        ensure!(refusal.contains(&format!("another instance is running (process {pid})")), "{refusal}");
        guard.stop()
    })
    .await
}
