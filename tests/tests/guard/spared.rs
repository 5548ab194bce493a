//! Who is not held: the hog with a terminal, the hog of a container that no rule selects, the one whose container shares a pid
//! namespace. Exec sessions and traced processes are in `hog` and `several`.

use std::path::Path;

use kwitness_tests::guard::is_stopped;
use kwitness_tests::hog::{self, KILLED, LIMIT, POD, POLICY};
use kwitness_tests::prelude::*;

use crate::scene::{Scene, with_guard};

/// Takes more than the limit when it may go.
fn taker() -> String {
    format!("{}; exec tail </dev/zero", until("go"))
}

fn sleeper(name: &str) -> ContainerSpec {
    ContainerSpec::shell(name, "exec sleep 1000").limited(LIMIT)
}

/// A shell with job control would see its jobs stop: what has a controlling terminal is OOM-killed.
pub(crate) async fn terminal(ctx: &Testbed<'_>) -> Result<()> {
    with_guard(ctx, POLICY, async |&Scene { node, guard, pod, .. }| {
        let out = Out::make()?;
        let mut spec = hog::limited("terminal", &taker(), &out);
        spec.tty = true;
        let id = node.run(pod, &spec).await?;
        guard.wait_armed(1).await?;
        out.signal("go")?;
        let ended = node.wait_exited(&id).await?;
        ensure!(ended.exit_code == KILLED, "{ended:?}");
        let status = guard.status().await?;
        ensure!(status.history.is_empty(), "{status:?}");
        ensure!(status.not_held.get("terminal").is_some_and(|count| *count > 0), "{status:?}");
        Ok(())
    })
    .await
}

/// The containers of a pod share a pid namespace. Its first process is another container's, and is no more held than those of the
/// container whose memory is used up.
pub(crate) async fn shared_pids(ctx: &Testbed<'_>) -> Result<()> {
    let spec = PodSpec { share_pids: true, ..PodSpec::new(POD, ctx.combination.handler)? };
    not_held_in(ctx, spec, "entered").await
}

/// A pod in the node's pid namespace.
pub(crate) async fn host_pids(ctx: &Testbed<'_>) -> Result<()> {
    let spec = PodSpec { host_pid: true, ..PodSpec::new(POD, ctx.combination.handler)? };
    not_held_in(ctx, spec, "shared_pids").await
}

async fn not_held_in(ctx: &Testbed<'_>, spec: PodSpec, reason: &str) -> Result<()> {
    ctx.with_both(&[], async |node, agent| {
        let guard = Guard::start(&ctx.environment, agent, POLICY, Path::new(CONTAINERD_SOCKET)).await?;
        let pod = node.run_pod(&spec).await?;
        let out = Out::make()?;
        let bystander = node.run(&pod, &sleeper("bystander")).await?;
        let id = node.run(&pod, &hog::limited("sharing", &taker(), &out)).await?;
        guard.wait_armed(2).await?;
        out.signal("go")?;
        let ended = node.wait_exited(&id).await?;
        ensure!(ended.exit_code == KILLED, "{ended:?}\n{}", guard.log_tail());
        let status = guard.status().await?;
        ensure!(status.history.is_empty(), "{status:?}");
        ensure!(status.not_held.get(reason).is_some_and(|count| *count > 0), "{status:?}");
        ensure!(is_stopped(node.pid(&bystander).await?) == Some(false), "the other container was stopped");
        guard.stop()?;
        node.remove_pod(&pod).await
    })
    .await
}

/// Beside one that is armed, in the same pod.
pub(crate) async fn not_selected(ctx: &Testbed<'_>) -> Result<()> {
    let policy = POLICY.replace("threshold", "container = \"armed\"\nthreshold");
    with_guard(ctx, &policy, async |&Scene { node, guard, pod, .. }| {
        node.run(pod, &sleeper("armed")).await?;
        guard.wait_armed(1).await?;
        let other = hog::work(node, pod, "other", None).await?;
        ensure!(other.code == KILLED && other.oom_kills > 0, "{other:?}");
        let status = guard.status().await?;
        ensure!(status.history.is_empty() && status.not_held.is_empty(), "{status:?}");
        Ok(())
    })
    .await
}
