//! Deaths that are easily attributed wrongly: by what another container of the pod has left, by the machine's memory, and no
//! OOM kill at all.

use std::fs;
use std::path::PathBuf;

use kwitness_api::proto::exit_status::Status;
use kwitness_api::proto::oom_kill::Exhausted;
use kwitness_api::proto::{CgroupRole, Stopped};
use kwitness_tests::prelude::*;

use crate::oom::{HOG, kill};

const MIB: u64 = 1 << 20;
const POD_LIMIT: u64 = 64 * MIB;
/// What the first container leaves in a file system in memory.
const LEFT: u64 = 40 * MIB;
/// Of the second container: more than the pod has left.
const OWN_LIMIT: u64 = 48 * MIB;
/// Ends a test that hangs.
const PATIENCE: Duration = Duration::from_secs(120);
const SIGKILL: u32 = 9;

/// A file in memory; removed when dropped.
struct Left(PathBuf);

impl Drop for Left {
    fn drop(&mut self) {
        // It may not have been made.
        let _ = fs::remove_file(&self.0);
    }
}

/// An `emptyDir` in memory outlives the container that filled it, and stays charged to the pod (kubernetes#128339).
pub(crate) async fn what_a_removed_container_left_kills_by_the_pods_limit(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_both(&[], async |node, agent| {
        let mut watcher = agent.watch(from_now()).await?;
        let pod = node.run_pod(&PodSpec::new("leaky", ctx.combination.handler)?).await?;
        cgroup::write(&node.cgroup_directory(&pod.cgroup), "memory.max", POD_LIMIT)?;
        let left = Left(format!("/dev/shm/{}.left", pod.sandbox).into());
        let line = format!("head -c {LEFT} /dev/zero >{}", left.0.display());
        let first = node.run(&pod, &ContainerSpec::shell("first", &line)).await?;
        let ended = node.wait_exited(&first).await?;
        ensure!(ended.exit_code == 0, "{ended:?}");
        node.remove_container(&first).await?;
        let is_gone = |seen: &kwitness_tests::events::Seen| seen.has(&first, "deleted");
        watcher.wait_until("the end of the first container's cgroup", is_gone).await?;

        let second = ContainerSpec::shell("second", &format!("{HOG}; exec sleep 1000")).limited(OWN_LIMIT);
        let second = node.run(&pod, &second).await?;
        let (_, kill) = kill(&mut watcher, &second).await?;
        let Some(Exhausted::LimitOf(cgroup)) = &kill.exhausted else { bail!("{kill:?}") };
        ensure!(cgroup.role() == CgroupRole::Pod, "{kill:?}");
        ensure!(kill.limit_bytes == Some(POD_LIMIT), "{kill:?}");
        ensure!(kill.usage_bytes.is_some_and(|usage| usage.abs_diff(POD_LIMIT) <= MIB), "{kill:?}");
        node.remove_pod(&pod).await
    })
    .await
}

/// As a runtime, systemd-oomd or a person may do it.
pub(crate) async fn a_killed_cgroup_is_no_oom_kill(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_both(&[], async |node, agent| {
        let mut watcher = agent.watch(from_now()).await?;
        let pod = node.run_pod(&PodSpec::new("killed", ctx.combination.handler)?).await?;
        let id = node.run(&pod, &ContainerSpec::new("main", &["/bin/sleep", "1000"])).await?;
        cgroup::write(&node.cgroup_of(&id).await?, "cgroup.kill", 1)?;
        let stopped = stopped(&mut watcher, &id).await?;
        let status = stopped.main_status.as_ref().and_then(|status| status.status);
        ensure!(status == Some(Status::Signal(SIGKILL)) && !stopped.main_oom_killed, "{stopped:?}");
        let seen = watcher.seen();
        ensure!(!seen.has(&id, "oomKill"), "{seen}");
        node.remove_pod(&pod).await
    })
    .await
}

/// Why the machine's memory cannot be exhausted here.
pub(crate) fn not_our_machine(environment: &Environment) -> Option<&'static str> {
    (environment.tier != Tier::Vm).then_some("the kernel would kill on a machine that is not ours")
}

/// The kernel's own test of it: SysRq `f` kills the worst process of the machine, as if no memory were left.
pub(crate) async fn without_memory_on_the_machine_no_limit_is_blamed(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_both(&[], async |node, agent| {
        let mut watcher = agent.watch(from_now()).await?;
        let pod = node.run_pod(&PodSpec::new("worst", ctx.combination.handler)?).await?;
        let line = "echo 1000 >/proc/self/oom_score_adj; exec sleep 1000";
        let id = node.run(&pod, &ContainerSpec::shell("main", line)).await?;
        let process = PathBuf::from(format!("/proc/{}", node.pid(&id).await?));
        wait_for("the process to be the worst", PATIENCE, async || {
            let read = |file: &str| fs::read_to_string(process.join(file)).context("read of the process");
            let is_worst = read("oom_score_adj")?.trim() == "1000" && read("comm")?.trim() == "sleep";
            Ok(is_worst.then_some(()))
        })
        .await?;
        fs::write("/proc/sysrq-trigger", "f").context("write to /proc/sysrq-trigger")?;
        let (_, kill) = kill(&mut watcher, &id).await?;
        ensure!(kill.exhausted == Some(Exhausted::Machine(true)), "{kill:?}");
        let stopped = stopped(&mut watcher, &id).await?;
        ensure!(stopped.main_oom_killed, "{stopped:?}");
        node.remove_pod(&pod).await
    })
    .await
}

async fn stopped(watcher: &mut Watcher, id: &str) -> Result<Stopped> {
    let seen = watcher.wait_until("the container's end", |seen| seen.has(id, "stopped")).await?;
    seen.stopped(id).cloned().context("no end")
}
