//! Who is not held: the hog with a terminal, the hog of a container that no rule selects. Exec sessions and traced processes are in
//! `hog` and `several`.

use anyhow::{Context as _, Result, ensure};
use kwitness_tests::context::TestContext;
use kwitness_tests::environment::Combination;
use kwitness_tests::hog::{self, KILLED, POLICY};

use crate::scene::{Scene, with_guard};

/// A shell with job control would see its jobs stop: what has a controlling terminal is OOM-killed.
pub(crate) async fn terminal(ctx: &TestContext, combination: Combination) -> Result<()> {
    with_guard(ctx, combination, POLICY, async |&Scene { node, guard, pod, .. }| {
        let directory = tempfile::tempdir_in("/run").context("make a directory")?;
        let line = "until [ -e /out/go ]; do sleep 0.1; done; exec tail </dev/zero";
        let mut spec = hog::limited("terminal", line, directory.path());
        spec.tty = true;
        let id = node.run(pod, &spec).await?;
        guard.wait_armed(1).await?;
        std::fs::write(directory.path().join("go"), "").context("start the hog")?;
        let ended = node.wait_exited(&id).await?;
        ensure!(ended.exit_code == KILLED, "{ended:?}");
        let status = guard.status().await?;
        ensure!(status.history.is_empty(), "{status:?}");
        ensure!(status.not_held.get("terminal").is_some_and(|count| *count > 0), "{status:?}");
        Ok(())
    })
    .await
}

/// Beside one that is armed, in the same pod.
pub(crate) async fn not_selected(ctx: &TestContext, combination: Combination) -> Result<()> {
    let policy = POLICY.replace("threshold", "container = \"armed\"\nthreshold");
    with_guard(ctx, combination, &policy, async |&Scene { node, guard, pod, .. }| {
        let directory = tempfile::tempdir_in("/run").context("make a directory")?;
        node.run(pod, &hog::limited("armed", "exec sleep 1000", directory.path())).await?;
        guard.wait_armed(1).await?;
        let other = hog::work(node, pod, "other", None).await?;
        ensure!(other.code == KILLED && other.oom_kills > 0, "{other:?}");
        let status = guard.status().await?;
        ensure!(status.history.is_empty() && status.not_held.is_empty(), "{status:?}");
        Ok(())
    })
    .await
}
