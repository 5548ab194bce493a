//! Who is not held: the hog with a terminal, the hog of a container that no rule selects. Exec sessions and traced processes are in
//! `hog` and `several`.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use kwitness_tests::context::TestContext;
use kwitness_tests::environment::Combination;
use kwitness_tests::guard::Guard;
use kwitness_tests::hog::{self, KILLED, POD, POLICY};
use kwitness_tests::node::CONTAINERD_SOCKET;
use kwitness_tests::pod::PodSpec;

/// A shell with job control would see its jobs stop: what has a controlling terminal is OOM-killed.
pub(crate) async fn terminal(ctx: &TestContext, combination: Combination) -> Result<()> {
    ctx.with_node(combination.driver, async |node| {
        ctx.with_agent(&[], async |agent| {
            let guard = Guard::start(&ctx.environment, agent, POLICY, Path::new(CONTAINERD_SOCKET)).await?;
            let pod = node.run_pod(&PodSpec::new(POD, combination.handler)?).await?;
            let directory = tempfile::tempdir_in("/run").context("make a directory")?;
            let line = "until [ -e /out/go ]; do sleep 0.1; done; exec tail </dev/zero";
            let mut spec = hog::limited("terminal", line, directory.path());
            spec.tty = true;
            let id = node.run(&pod, &spec).await?;
            guard.wait_armed(1).await?;
            std::fs::write(directory.path().join("go"), "").context("start the hog")?;
            let ended = node.wait_exited(&id).await.with_context(|| guard.log_tail())?;
            ensure!(ended.exit_code == KILLED, "{ended:?}\n{}", guard.log_tail());
            let status = guard.status().await?;
            ensure!(status.history.is_empty(), "{status:?}\n{}", guard.log_tail());
            ensure!(status.not_held.get("terminal").is_some_and(|count| *count > 0), "{status:?}");
            guard.stop()?;
            node.remove_pod(&pod).await
        })
        .await
    })
    .await
}

/// Beside one that is armed, in the same pod.
pub(crate) async fn not_selected(ctx: &TestContext, combination: Combination) -> Result<()> {
    ctx.with_node(combination.driver, async |node| {
        ctx.with_agent(&[], async |agent| {
            let policy = POLICY.replace("threshold", "container = \"armed\"\nthreshold");
            let guard = Guard::start(&ctx.environment, agent, &policy, Path::new(CONTAINERD_SOCKET)).await?;
            let pod = node.run_pod(&PodSpec::new(POD, combination.handler)?).await?;
            let directory = tempfile::tempdir_in("/run").context("make a directory")?;
            node.run(&pod, &hog::limited("armed", "exec sleep 1000", directory.path())).await?;
            guard.wait_armed(1).await?;
            let other = hog::work(node, &pod, "other", None).await?;
            ensure!(other.code == KILLED && other.oom_kills > 0, "{other:?}\n{}", guard.log_tail());
            let status = guard.status().await?;
            ensure!(status.history.is_empty() && status.not_held.is_empty(), "{status:?}");
            guard.stop()?;
            node.remove_pod(&pod).await
        })
        .await
    })
    .await
}
