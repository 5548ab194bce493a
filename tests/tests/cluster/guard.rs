//! The guard with a kubelet: a raise through the API, which the kubelet carries out, and does not take back.

use std::process::Command;

use kwitness_api::proto::VerdictKind;
use kwitness_guard::status::Ended;
use kwitness_tests::guarded::{GuardedNode, Terminated};
use kwitness_tests::limit::Limit;
use kwitness_tests::oom;
use kwitness_tests::prelude::*;

use crate::join::SOON;

const POD: &str = "greedy";
const MIB: u64 = 1 << 20;
const LIMIT: u64 = 64 * MIB;
/// The limit after one raise and after two.
const RAISED: [u64; 2] = [128 * MIB, 192 * MIB];
/// What is taken first and then, in bytes: each crosses the threshold and stays below the limit, so that even a raise that comes
/// after the hold comes in time.
const TAKEN: [u64; 2] = [40_000_000, 60_000_000];
/// In an emulated guest the kubelet's first resize may need more than the longest hold. It comes nevertheless, and the test goes
/// on when it has and the cool-down is over.
const COOL_DOWN: Duration = Duration::from_secs(10);
const POLICY: &str = "[[rule]]\npod = \"greedy\"\nthreshold = \"50%\"\nstep = \"64Mi\"\nceiling = \"192Mi\"\n\
                      longest_hold = \"10s\"\ncool_down = \"10s\"\n";

async fn guarded(
    ctx: &TestContext,
    policy: &str,
    body: impl AsyncFnOnce(&GuardedNode) -> Result<()>,
) -> Result<()> {
    let cluster = GuardedNode::start(&ctx.environment, policy).await?;
    cluster.explain(body(&cluster).await)?;
    cluster.stop().await
}

pub(crate) async fn a_raise_of_the_guard_through_the_api_stays(ctx: &TestContext) -> Result<()> {
    guarded(ctx, POLICY, raised).await
}

async fn raised(cluster: &GuardedNode) -> Result<()> {
    let out = Out::make()?;
    let id = cluster.run(POD, KEEP, out.path(), LIMIT).await?;
    let (pid, cgroup) = (cluster.node.pid(&id).await?, cluster.node.cgroup_of(&id).await?);
    cluster.guard.wait_armed(1).await?;
    let _feeder = feeder(&out)?;

    for (stage, limit) in RAISED.into_iter().enumerate() {
        out.signal(&format!("take{stage}"))?;
        in_force(cluster, &id, limit).await?;
        out.wait(&format!("taken{stage}"), SOON).await?;
        let holds = holds(cluster).await?;
        println!("{} MiB in force, {:?}", limit / MIB, holds.last());
        // The kubelet may report the resize as under way for a while: that does not keep the guard from the next. A cool-down does.
        if holds.last().is_some_and(|hold| hold.refused.is_some()) {
            tokio::time::sleep(COOL_DOWN).await;
        }
    }
    let held = holds(cluster).await?;
    ensure!(held.iter().any(|hold| hold.raised_to.is_some() && hold.held == [pid]), "{held:?}");

    // What the kubelet would do if the limit were not its own: its next look at the pod.
    let looks = || Ok::<_, anyhow::Error>(count(&cluster.kubelet.log()?, "SyncPod exit"));
    let before = looks()?;
    cluster.api.run(&["annotate", "pod", POD, "kwitness.test/look=again"])?;
    let looked = async || Ok((looks()? > before).then_some(()));
    wait_for("the kubelet to look at the pod again", SOON, looked).await?;
    let [.., last] = RAISED;
    let limit = cgroup::number(&cgroup, "memory.max")?;
    ensure!(limit == last, "the kubelet has set {limit}");
    in_force(cluster, &id, last).await?;
    ensure!(memory_event(&cgroup, "oom_kill")? == 0, "OOM-killed");

    out.signal("end")?;
    completed(cluster).await
}

/// A pod that takes more than its limit, and gives it up: its spec and its cgroup have the old limit again.
pub(crate) async fn a_raise_of_the_guard_through_the_api_is_given_back(ctx: &TestContext) -> Result<()> {
    let policy = format!("{POLICY}give_back_after = \"10s\"\n");
    guarded(ctx, &policy, given_back).await
}

async fn given_back(cluster: &GuardedNode) -> Result<()> {
    let out = Out::make()?;
    let line = format!("mkfifo /out/gate; tail </out/gate >/dev/null; {}", until("stop"));
    let id = cluster.run(POD, &line, out.path(), LIMIT).await?;
    let cgroup = cluster.node.cgroup_of(&id).await?;
    cluster.guard.wait_armed(1).await?;
    let feeder = feeder(&out)?;
    out.signal("take0")?;
    let [raised, _] = RAISED;
    in_force(cluster, &id, raised).await?;
    resized(cluster).await?;
    // The pipe ends with the feeder, and tail with the pipe: what was taken is free.
    drop(feeder);
    cgroup::wait_number(&cgroup, "memory.max", SOON, |limit| limit == LIMIT).await?;
    let returned = cluster.guard.wait("the return", |status| (status.returned > 0).then_some(()));
    returned.await?;
    in_force(cluster, &id, LIMIT).await?;
    let spec = cluster.api.get("pod", POD)?;
    let of_spec = &spec["spec"]["containers"][0]["resources"]["limits"]["memory"];
    ensure!(of_spec == "64Mi", "the spec has {of_spec}");
    ensure!(memory_event(&cgroup, "oom_kill")? == 0, "OOM-killed");
    out.signal("stop")?;
    completed(cluster).await
}

/// A pod whose own limit would be hit by what its container is raised to: both rise, in the spec and in the kernel.
pub(crate) async fn a_pods_own_limit_rises_with_its_containers(ctx: &TestContext) -> Result<()> {
    guarded(ctx, POLICY, raised_with_pod).await
}

async fn raised_with_pod(cluster: &GuardedNode) -> Result<()> {
    let out = Out::make()?;
    let id = cluster.run_limited(POD, KEEP, out.path(), LIMIT).await?;
    let cgroup = cluster.node.cgroup_of(&id).await?;
    let of_pod = cgroup.parent().context("the container's cgroup is in its pod's")?;
    let before = cgroup::number(of_pod, "memory.max")?;
    ensure!(before == LIMIT, "the pod's own limit is {before}");
    cluster.guard.wait_armed(1).await?;
    let _feeder = feeder(&out)?;
    out.signal("take0")?;
    let [raised, _] = RAISED;
    in_force(cluster, &id, raised).await?;
    resized(cluster).await?;
    let after = cgroup::number(of_pod, "memory.max")?;
    ensure!(after == raised, "the pod's own limit is {after}");
    let spec = cluster.api.get("pod", POD)?["spec"].take();
    for of in [&spec["resources"], &spec["containers"][0]["resources"]] {
        ensure!(of["limits"]["memory"] == "128Mi" && of["requests"]["memory"] == "16Mi", "{of}");
    }
    ensure!(memory_event(&cgroup, "oom_kill")? == 0, "OOM-killed");
    out.signal("take1")?;
    out.signal("end")?;
    completed(cluster).await
}

/// Waits for the pod's end, which must be a good one.
async fn completed(cluster: &GuardedNode) -> Result<()> {
    let ended = cluster.terminated(POD).await?;
    ensure!(ended == Terminated { exit_code: 0, reason: "Completed".to_owned(), restarts: 0 }, "{ended:?}");
    Ok(())
}

/// Waits until nothing is held; how the last holds ended.
async fn holds(cluster: &GuardedNode) -> Result<Vec<Ended>> {
    let ended = cluster.guard.wait("the end of each hold", |status| {
        status.armed.iter().all(|armed| armed.held.is_empty()).then(|| status.history.clone())
    });
    ended.await
}

/// Waits until the API has no resize of the pod that is not done.
async fn resized(cluster: &GuardedNode) -> Result<()> {
    wait_for("the API to report the resize as done", SOON, async || {
        let status = cluster.status(POD)?;
        let mut conditions = status["conditions"].as_array().into_iter().flatten();
        let is_under_way = conditions.any(|condition| {
            let kind = condition["type"].as_str().unwrap_or_default();
            kind.starts_with("PodResize") && condition["status"] == "True"
        });
        Ok((!is_under_way).then_some(()))
    })
    .await
}

/// Lines of the kubelet's log with that text that name the pod.
fn count(log: &str, text: &str) -> usize {
    log.lines().filter(|line| line.contains(text) && line.contains(&format!("default/{POD}"))).count()
}

/// Waits until the daemon says that the limit is in force.
async fn in_force(cluster: &GuardedNode, id: &str, limit: u64) -> Result<()> {
    let limit = Limit::Memory(limit);
    let answer = cluster.agent.verify(limit.verify(id, SOON)).await.context("call Verify")?;
    let verdict = limit.verdict(answer)?;
    ensure!(verdict.verdict() == VerdictKind::InForce, "{limit} is not in force: {verdict:?}");
    Ok(())
}

/// Fills the pipe, outside of the container, as its files appear.
fn feeder(out: &Out) -> Result<Managed> {
    let at = out.path().display();
    let mut line = format!("exec 3>{at}/gate");
    for (stage, bytes) in TAKEN.into_iter().enumerate() {
        line +=
            &format!("; until [ -e {at}/take{stage} ]; do sleep 0.1; done; head -c {bytes} /dev/zero >&3");
        line += &format!("; : >{at}/taken{stage}");
    }
    line += &format!("; until [ -e {at}/end ]; do sleep 0.1; done");
    let mut command = Command::new("sh");
    command.args(["-c", &line]);
    Managed::spawn("feeder", command, &out.at("log"))
}

/// The demo's claims, and that it can be shown.
pub(crate) async fn the_demo_of_an_averted_oom_kill_holds(ctx: &TestContext) -> Result<()> {
    oom::run(&ctx.environment, |_| {}).await?.check()
}
