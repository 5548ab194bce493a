//! What the guard refuses: a raise that a limit above would make void, and to run beside another guard.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use kwitness_tests::context::TestContext;
use kwitness_tests::environment::Combination;
use kwitness_tests::guard::Guard;
use kwitness_tests::hog::{self, KILLED, LIMIT, POLICY, SIZE};
use kwitness_tests::node::CONTAINERD_SOCKET;

use crate::scene::{Scene, with_guard};

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
