//! What happens around the daemon's start, its end, and the runtime's.

use std::process::Command;

use kwitness_api::proto::{Basis, ContainerState, State};
use kwitness_tests::events::check_known;
use kwitness_tests::prelude::*;

use crate::life::sandbox;

const LIMIT: Duration = Duration::from_secs(30);

fn find<'a>(containers: &'a [ContainerState], id: &str) -> Result<&'a ContainerState> {
    let found =
        containers.iter().find(|state| state.container.as_ref().is_some_and(|container| container.id == id));
    found.with_context(|| format!("{id} is not among {containers:#?}"))
}

/// That a snapshot or a list has the pod's sandbox and one container of it, both running, and nothing else.
fn check_running(containers: &[ContainerState], pod: &Pod, id: &str, pid: u32) -> Result<()> {
    ensure!(containers.len() == 2, "not two containers: {containers:#?}");
    find(containers, &pod.sandbox)?;
    let state = find(containers, id)?;
    ensure!(state.state() == State::Running, "{:?}", state.state());
    let main = state.main.as_ref().context("the main process is not known")?;
    ensure!(main.pid == pid, "main is {}, not {pid}", main.pid);
    ensure!(
        state.program.as_deref().is_some_and(|program| program.starts_with("/bin/")),
        "{:?}",
        state.program
    );
    ensure!(state.main_status.is_none() && state.stopped_at.is_none(), "{state:?}");
    Ok(())
}

pub(crate) async fn containers_older_than_the_daemon(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_node(async |node| {
        let pod = node.run_pod(&PodSpec::new("older", ctx.combination.handler)?).await?;
        let id = node.run(&pod, &ContainerSpec::new("main", &["/bin/sleep", "1000"])).await?;
        let pid = node.pid(&id).await?;
        ctx.with_agent(&[], async |agent| {
            let mut watcher = agent.watch(with_snapshot()).await?;
            let snapshot = watcher.snapshot().await?;
            check_running(&snapshot.containers, &pod, &id, pid)?;
            // The runtime's knowledge comes with the snapshot or after it.
            let life = Life::unstarted(&pod, &id, "main");
            wait_for("the container's name", LIMIT, async || {
                let list = agent.list().await?;
                let subject = find(&list.containers, &id)?.container.clone().context("no container")?;
                Ok(check_known(&subject, &life).is_ok().then_some(()))
            })
            .await?;

            ensure!(node.exec(&id, &["/bin/sh", "-c", "exit 4"]).await? == 4, "exec's exit code");
            process::kill_pid(pid)?;
            node.wait_exited(&id).await?;
            node.remove_pod(&pod).await?;
            let seen = watcher.wait_until("the end", |seen| seen.has(&pod.sandbox, "deleted")).await?;
            for id in [&id, &pod.sandbox] {
                ensure!(seen.milestones(id) == ["stopped", "deleted"], "the milestones of {id} in:\n{seen}");
            }
            let stopped = seen.stopped(&id).context("no end")?;
            let status = stopped.main_status.as_ref().context("no main status")?;
            ensure!(End::of(status) == Some(End::Signal(9)), "{status:?}");
            Ok(())
        })
        .await
    })
    .await
}

/// A daemon is started again and again while containers come and go: each of them is reported once, whether the
/// probes or the scan saw it first.
pub(crate) async fn containers_started_while_the_daemon_starts(ctx: &Testbed<'_>) -> Result<()> {
    let rounds = ctx.environment.of_tier(20, 2);
    ctx.with_node(async |node| {
        let pod = node.run_pod(&PodSpec::new("meanwhile", ctx.combination.handler)?).await?;
        for round in 0..rounds {
            let mut agent = Agent::spawn(&ctx.environment, &[])?;
            // Each round's containers come and go while the daemon stands still at another step of its start.
            agent.wait_attached(round).await?;
            let paused = agent.pause()?;
            let mut ids = Vec::new();
            for number in 0..3 {
                let spec = ContainerSpec::shell(&format!("c-{round}-{number}"), "exit 6");
                ids.push(node.run(&pod, &spec).await?);
            }
            for id in &ids {
                node.wait_exited(id).await?;
            }
            drop(paused);
            agent.wait_ready().await?;
            let reported = check_reported_once(&agent, &ids).await;
            reported.with_context(|| format!("round {round}\n{}", agent.log_tail()))?;
            agent.stop()?;
        }
        Ok(())
    })
    .await
}

async fn check_reported_once(agent: &Agent, ids: &[String]) -> Result<()> {
    let replay = wait_for("the containers to be gone", LIMIT, async || {
        let list = agent.list().await?;
        let left = list.containers.iter().filter_map(|state| state.container.as_ref());
        let left = left.filter(|container| ids.contains(&container.id)).count();
        Ok(if left == 0 { Some(agent.replay().await?) } else { None })
    });
    let seen = replay.await?;
    seen.check_unbroken()?;
    for id in ids {
        let milestones = seen.milestones(id);
        let scanned = seen.of(id).any(|event| event.basis() == Basis::InitialScan);
        let right = match milestones[..] {
            ["created", "started", "stopped", "deleted"] => true,
            // It was over when the daemon began to look, but its cgroup was still there, or was not.
            ["created", "deleted"] => scanned,
            [] => true,
            _ => false,
        };
        ensure!(right, "the milestones of {id} are {milestones:?} in:\n{seen}");
    }
    Ok(())
}

/// The runtime is away when the daemon starts and while containers end; what it knows comes later.
pub(crate) async fn the_runtime_is_away(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_node(async |node| {
        let pod = node.run_pod(&PodSpec::new("away", ctx.combination.handler)?).await?;
        let ends = node.run(&pod, &ContainerSpec::new("ends", &["/bin/sleep", "1000"])).await?;
        let stays = node.run(&pod, &ContainerSpec::new("stays", &["/bin/sleep", "1000"])).await?;
        let pid = node.pid(&ends).await?;
        node.stop_containerd()?;
        ctx.with_agent(&[], async |agent| {
            let mut watcher = agent.watch(with_snapshot()).await?;
            let snapshot = watcher.snapshot().await?;
            ensure!(snapshot.containers.len() == 3, "{:#?}", snapshot.containers);
            for state in &snapshot.containers {
                let container = state.container.as_ref().context("no container")?;
                ensure!(
                    container.name.is_none() && container.labels.is_empty(),
                    "names from a runtime that is away: {container:?}"
                );
                ensure!(
                    container.pod.as_ref().is_some_and(|reported| reported.uid == pod.spec.uid),
                    "{container:?}"
                );
            }
            process::kill_pid(pid)?;
            let seen = watcher.wait_until("`stopped`", |seen| seen.has(&ends, "stopped")).await?;
            ensure!(
                seen.subject(&ends).is_some_and(|subject| subject.name.is_none()),
                "names from a runtime that is away:\n{seen}"
            );

            node.start_containerd().await?;
            let known = |seen: &Seen, id: &str| {
                let updated = seen.of(id).any(|event| kind(event) == "updated");
                updated && seen.subject(id).is_some_and(|subject| subject.name.is_some())
            };
            let seen = watcher.wait_until("`updated` with the name", |seen| known(seen, &stays)).await?;
            let life = Life::unstarted(&pod, &stays, "stays");
            seen.check_known(&life)?;
            node.remove_pod(&pod).await?;
            let seen = watcher.wait_until("the end", |seen| seen.has(&pod.sandbox, "deleted")).await?;
            seen.check_unbroken()?;
            seen.check_known(&sandbox(&pod))?;
            for id in [&ends, &stays, &pod.sandbox] {
                ensure!(seen.milestones(id) == ["stopped", "deleted"], "the milestones of {id} in:\n{seen}");
            }
            Ok(())
        })
        .await
    })
    .await
}

/// Pods outside of all roots, as with `cgroupsPerQOS: false`: nothing of them is seen, and daemon and doctor say so and what to set.
/// With that setting they are seen.
pub(crate) async fn containers_outside_of_all_roots(ctx: &Testbed<'_>) -> Result<()> {
    const NAME: &str = "containers_outside_roots";
    let elsewhere = ctx.environment.cgroup("elsewhere");
    ctx.with_node(async |node| {
        let pod = node.run_pod_below(&elsewhere, &PodSpec::new("outside", ctx.combination.handler)?).await?;
        let id = node.run(&pod, &ContainerSpec::new("main", &["/bin/sleep", "1000"])).await?;
        let path = process::cgroup_path(node.pid(&id).await?)?;
        let agent = Agent::start(&ctx.environment, &[]).await?;
        let problem = wait_for("the problem to be named", LIMIT, async || {
            let problems = agent.status().await?.problems;
            Ok(problems.into_iter().find(|problem| problem.name == NAME))
        })
        .await?;
        ensure!(problem.found.contains(&path), "{path} is not in: {}", problem.found);
        wait_for("the log", LIMIT, async || Ok(agent.log()?.contains(NAME).then_some(()))).await?;
        ensure!(agent.list().await?.containers.is_empty(), "something is tracked");
        agent.stop()?;
        let root = problem.remedy.split('"').nth(1).context("no root in the remedy")?;
        ensure!(path.starts_with(root), "{root} does not begin {path}");
        let mut doctor = Command::new(ctx.environment.kwitness());
        doctor.args(["doctor", "--socket", "/run/kwitness-is-not-here.sock", "-o", "wide"]);
        let doctor = doctor.output().context("run the doctor")?;
        let text = String::from_utf8_lossy(&doctor.stdout);
        ensure!(text.contains(&NAME.replace('_', " ")) && text.contains("kernel.roots"), "{text}");
        ctx.with_agent(&[&format!("kernel.roots=[{root:?}]")], async |agent| {
            wait_for("the container", LIMIT, async || {
                Ok(find(&agent.list().await?.containers, &id).is_ok().then_some(()))
            })
            .await?;
            let problems = agent.status().await?.problems;
            ensure!(problems.is_empty(), "{problems:?}");
            Ok(())
        })
        .await?;
        node.remove_pod(&pod).await?;
        cgroup::remove_everywhere(&elsewhere)
    })
    .await
}
