//! OOM kills in a real runtime's containers: of a child, which no runtime reports, and of the main process.

use kwitness_api::proto::event::Kind;
use kwitness_api::proto::oom_kill::Exhausted;
use kwitness_api::proto::{CgroupRole, Event, OomKill, ProcessRole};
use kwitness_tests::cri::v1 as cri;
use kwitness_tests::prelude::*;

const LIMIT: u64 = 24 << 20;
/// More than the limit, in the memory of `tail`, which looks for the end of a line. Should the kernel need another victim before
/// that memory is free, it takes it from these, and not the shell that started them.
pub(crate) const HOG: &str = "(echo 1000 > /proc/self/oom_score_adj && head -c 100000000 /dev/zero | tail)";

pub(crate) async fn an_oom_kill(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_both_recorded(&[], async |node, agent| {
        let mut watcher = agent.watch(from_now()).await?;
        let pod = node.run_pod(&PodSpec::new("greedy", ctx.combination.handler)?).await?;
        let limited = |name: &str, line: &str| ContainerSpec::shell(name, line).limited(LIMIT);

        // The shell outlives its child: to the runtime, nothing has happened.
        let parent = node.run(&pod, &limited("parent", &format!("{HOG}; exec sleep 1000"))).await?;
        let (event, kill) = kill(&mut watcher, &parent).await?;
        check(&kill, LIMIT)?;
        let process = kill.process.as_ref().context("no process")?;
        ensure!(process.role() == ProcessRole::Child, "{kill:?}");
        let container = event.container.as_ref().context("no container")?;
        ensure!(container.id == parent, "{container:?}");
        let all = |seen: &Seen| {
            seen.subject(&parent).is_some_and(|subject| {
                let names = subject.pod.as_ref().and_then(|pod| pod.name.as_deref());
                (subject.name.as_deref(), names) == (Some("parent"), Some("greedy"))
            })
        };
        let seen = watcher.wait_until("the container's names", all).await?;
        ensure!(!seen.has(&parent, "stopped"), "it stopped:\n{seen}");
        let status = node.status(&parent).await?;
        ensure!(status.state() == cri::ContainerState::ContainerRunning, "{status:?}");

        // `exec` makes the hog the container's own process.
        let main = node.run(&pod, &limited("main", "exec tail < /dev/zero")).await?;
        let (_, kill) = self::kill(&mut watcher, &main).await?;
        check(&kill, LIMIT)?;
        let seen = watcher.wait_until("the container's end", |seen| seen.has(&main, "stopped")).await?;
        let stopped = seen.stopped(&main);
        ensure!(stopped.is_some_and(|stopped| stopped.main_oom_killed), "{stopped:?}\n{seen}");
        ensure!(seen.count("gap") == 0, "records were lost:\n{seen}");
        node.remove_pod(&pod).await
    })
    .await
}

/// The first kill that is reported of a container.
pub(crate) async fn kill(watcher: &mut Watcher, id: &str) -> Result<(Event, OomKill)> {
    let seen = watcher.wait_until("an OOM kill", |seen| seen.has(id, "oomKill")).await?;
    let mut all = seen.of(id).filter_map(|event| match &event.kind {
        Some(Kind::OomKill(kill)) => Some((event.clone(), (**kill).clone())),
        _ => None,
    });
    all.next().context("no kill")
}

/// The container's own limit, nearly full.
fn check(kill: &OomKill, limit: u64) -> Result<()> {
    let Some(Exhausted::LimitOf(cgroup)) = &kill.exhausted else { bail!("{kill:?}") };
    ensure!(cgroup.role() == CgroupRole::Container, "{kill:?}");
    ensure!(kill.limit_bytes == Some(limit), "{kill:?}");
    // What the kernel keeps ready for each CPU is charged, too, or given back.
    ensure!(kill.usage_bytes.is_some_and(|usage| usage.abs_diff(limit) <= 1 << 20), "{kill:?}");
    Ok(())
}
