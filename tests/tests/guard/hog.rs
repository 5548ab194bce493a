//! What is held and raised: the hog as a child, as a container's first process, and as an exec session.

use std::path::Path;

use kwitness_tests::hog::{self, KILLED, LIMIT, POD, POLICY, Piped};
use kwitness_tests::prelude::*;

use crate::scene::{Scene, with_guard};

/// The same work twice.
pub(crate) async fn finishes(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_both(&[], async |node, agent| {
        let pod = node.run_pod(&PodSpec::new(POD, ctx.combination.handler)?).await?;
        let unguarded = hog::work(node, &pod, "unguarded", None).await?;
        ensure!(unguarded.code == KILLED, "not OOM-killed without a guard: {unguarded:?}");
        ensure!(unguarded.oom_kills > 0, "{unguarded:?}");

        let guard = Guard::start(&ctx.environment, agent, POLICY, Path::new(CONTAINERD_SOCKET)).await?;
        let guarded = hog::work(node, &pod, "guarded", Some(&guard)).await;
        let guarded = guarded.with_context(|| guard.log_tail())?;
        ensure!(guarded.code == 0 && guarded.oom_kills == 0, "{guarded:?}\n{}", guard.log_tail());
        let status = guard.status().await?;
        ensure!(!status.history.is_empty(), "nothing was held: {status:?}\n{}", guard.log_tail());
        guard.stop()?;
        node.remove_pod(&pod).await
    })
    .await
}

/// The hog is PID 1 of its pid namespace.
pub(crate) async fn first_process(ctx: &Testbed<'_>) -> Result<()> {
    with_guard(ctx, POLICY, async |&Scene { node, guard, pod, .. }| {
        let piped = Piped::start(node, pod, "first").await?;
        guard.wait_armed(1).await?;
        let pid = node.pid(&piped.id).await?;
        let mut filler = piped.fill()?;
        let ended = node.wait_exited(&piped.id).await?;
        filler.wait().context("wait for sh")?;
        ensure!(ended.exit_code == 0, "{ended:?}");
        let status = guard.status().await?;
        let is_held = status.history.iter().any(|hold| hold.held == [pid]);
        ensure!(is_held, "process {pid} was not held: {status:?}");
        Ok(())
    })
    .await
}

/// What `kubectl exec` starts has a caller that waits for it.
pub(crate) async fn exec_session(ctx: &Testbed<'_>) -> Result<()> {
    with_guard(ctx, POLICY, async |&Scene { node, guard, pod, .. }| {
        let id = node.run(pod, &ContainerSpec::shell("quiet", "exec sleep 1000").limited(LIMIT)).await?;
        guard.wait_armed(1).await?;
        let code = node.exec(&id, &["/bin/sh", "-c", "exec tail </dev/zero"]).await?;
        ensure!(code == KILLED, "ended with {code}");
        let status = guard.status().await?;
        ensure!(status.history.is_empty(), "{status:?}");
        ensure!(status.not_held.get("entered").is_some_and(|count| *count > 0), "{status:?}");
        Ok(())
    })
    .await
}
