//! Whole lives, from the cgroup's making to its removal.

use std::fs;

use kwitness_tests::pod::{Qos, new_static_uid};
use kwitness_tests::prelude::*;
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(60);
/// How containerd stops a sandbox.
const KILLED: End = End::Signal(9);

/// The life of a pod's sandbox, if the pod was removed while it ran.
pub(crate) fn sandbox(pod: &Pod) -> Life<'_> {
    Life { pod, id: &pod.sandbox, name: None, program: Some("/pause"), end: Some(KILLED), entered: &[] }
}

pub(crate) async fn a_pod_with_two_containers(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_both(&[], async |node, agent| {
        let mut watcher = agent.watch(from_now()).await?;
        let pod = node.run_pod(&PodSpec::new("tour", ctx.combination.handler)?).await?;

        // Run, exec into, kill from outside, and start again, which is a new container.
        let mut main = ContainerSpec::new("main", &["/bin/sleep", "1000"]);
        let killed = node.run(&pod, &main).await?;
        ensure!(node.exec(&killed, &["/bin/sh", "-c", "exit 5"]).await? == 5, "exec's exit code");
        process::kill_pid(node.pid(&killed).await?)?;
        ensure!(node.wait_exited(&killed).await?.exit_code == 137, "the runtime's exit code");
        main.attempt = 1;
        let stopped = node.run(&pod, &main).await?;
        // The runtime says "started" a moment before its helper has become the container's program.
        watcher.wait_until("the second start", |seen| seen.has(&stopped, "started")).await?;
        node.stop_container(&stopped, 0).await?;
        node.remove_container(&stopped).await?;

        let failed = node.run(&pod, &ContainerSpec::shell("three", "exit 3")).await?;
        ensure!(node.wait_exited(&failed).await?.exit_code == 3, "the runtime's exit code");
        node.remove_pod(&pod).await?;

        let lives = [
            sandbox(&pod),
            Life {
                entered: &[("/bin/sh", End::Code(5))],
                ..Life::of(&pod, &killed, "main", "/bin/sleep", KILLED)
            },
            Life::of(&pod, &stopped, "main", "/bin/sleep", KILLED),
            Life::of(&pod, &failed, "three", "/bin/sh", End::Code(3)),
        ];
        let all = |seen: &Seen| lives.iter().all(|life| seen.has(life.id, "deleted"));
        let seen = watcher.wait_until("the four containers' ends", all).await?;
        seen.check_unbroken()?;
        seen.check_complete()?;
        for life in &lives {
            seen.check_life(life)?;
            seen.check_known(life)?;
        }
        // No other process's containers, and no container twice under another id.
        ensure!(
            seen.count("created") == lives.len(),
            "created is there {} times:\n{seen}",
            seen.count("created")
        );
        ensure!(agent.list().await?.containers.is_empty(), "containers are left in the list");
        Ok(())
    })
    .await
}

pub(crate) async fn a_container_that_lives_two_milliseconds(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_both(&[], async |node, agent| {
        let mut watcher = agent.watch(from_now()).await?;
        let pod = node.run_pod(&PodSpec::new("quick", ctx.combination.handler)?).await?;
        let mut ids = Vec::new();
        for round in 0..5 {
            ids.push(node.run(&pod, &ContainerSpec::new(&format!("quick-{round}"), &["/bin/true"])).await?);
        }
        for id in &ids {
            node.wait_exited(id).await?;
        }
        node.remove_pod(&pod).await?;
        let all = watcher.wait_until("the ends", |seen| ids.iter().all(|id| seen.has(id, "deleted")));
        let seen = all.await?;
        seen.check_unbroken()?;
        for (round, id) in ids.iter().enumerate() {
            let name = format!("quick-{round}");
            let life = Life::of(&pod, id, &name, "/bin/true", End::Code(0));
            seen.check_life(&life)?;
            seen.check_known(&life)?;
        }
        Ok(())
    })
    .await
}

/// A life, and one that the daemon found: see [`kwitness_tests::recording`].
pub(crate) async fn a_recording_replays_to_the_same_events(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_node(async |node| {
        let old = node.run_pod(&PodSpec::new("old", ctx.combination.handler)?).await?;
        ctx.with_recorded_agent(&[], async |agent| {
            let pod = node.run_pod(&PodSpec::new("recorded", ctx.combination.handler)?).await?;
            let id = node.run(&pod, &ContainerSpec::shell("three", "exit 3")).await?;
            node.wait_exited(&id).await?;
            node.remove_pod(&pod).await?;
            node.remove_pod(&old).await?;
            let ids = [&old.sandbox, &pod.sandbox, &id];
            process::wait_for("the ends of the containers", LIMIT, async || {
                let seen = agent.replay().await?;
                Ok(ids.iter().all(|id| seen.has(id, "deleted")).then_some(()))
            })
            .await
        })
        .await
    })
    .await
}

pub(crate) async fn an_entry_point_that_does_not_exist(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_both(&[], async |node, agent| {
        let mut watcher = agent.watch(from_now()).await?;
        let pod = node.run_pod(&PodSpec::new("nothing", ctx.combination.handler)?).await?;
        let id = node.create(&pod, &ContainerSpec::new("missing", &["/bin/there-is-no-such"])).await?;
        ensure!(
            node.start_container(&id).await.is_err(),
            "the runtime started a program that does not exist"
        );
        node.remove_pod(&pod).await?;
        let seen = watcher.wait_until("the end", |seen| seen.has(&id, "deleted")).await?;
        seen.check_unbroken()?;
        let life = Life::unstarted(&pod, &id, "missing");
        seen.check_life(&life)
    })
    .await
}

pub(crate) async fn a_pod_in_the_nodes_pid_namespace(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_both(&[], async |node, agent| {
        let mut watcher = agent.watch(from_now()).await?;
        let mut spec = PodSpec::new("host-pid", ctx.combination.handler)?;
        spec.host_pid = true;
        let pod = node.run_pod(&spec).await?;
        let id = node.run(&pod, &ContainerSpec::new("main", &["/bin/sleep", "1000"])).await?;
        // Not the first process of a pid namespace, so that a signal without a handler ends it.
        let pid = node.pid(&id).await?;
        process::signal(pid, Signal::SIGTERM)?;
        ensure!(node.wait_exited(&id).await?.exit_code == 128 + 15, "the runtime's exit code");
        node.remove_pod(&pod).await?;
        let seen = watcher.wait_until("the end", |seen| seen.has(&id, "deleted")).await?;
        seen.check_unbroken()?;
        let life = Life::of(&pod, &id, "main", "/bin/sleep", End::Signal(15));
        seen.check_life(&life)
    })
    .await
}

/// systemd in a container makes cgroups of its own; so does a test from outside, on every kernel alike.
pub(crate) async fn cgroups_made_inside_a_container(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_both(&[], async |node, agent| {
        let mut watcher = agent.watch(from_now()).await?;
        let pod = node.run_pod(&PodSpec::new("nested", ctx.combination.handler)?).await?;
        let id = node.run(&pod, &ContainerSpec::new("main", &["/bin/sleep", "1000"])).await?;
        let pid = node.pid(&id).await?;
        let outer = node.cgroup_directory(&process::cgroup_path(pid)?);
        for inner in ["init.scope", "system.slice/unit.service"] {
            let inner = outer.join(inner);
            fs::create_dir_all(&inner).with_context(|| format!("make {}", inner.display()))?;
            // The container's own cgroup is empty now, but the container has not stopped.
            cgroup::enter(&inner, pid)?;
        }
        ensure!(node.exec(&id, &["/bin/true"]).await? == 0, "exec's exit code");
        process::kill_pid(pid)?;
        node.wait_exited(&id).await?;
        node.remove_pod(&pod).await?;
        let seen = watcher.wait_until("the end", |seen| seen.has(&id, "deleted")).await?;
        seen.check_unbroken()?;
        let life = Life {
            entered: &[("/bin/true", End::Code(0))],
            ..Life::of(&pod, &id, "main", "/bin/sleep", KILLED)
        };
        seen.check_life(&life)?;
        ensure!(seen.count("created") == 2, "an inner cgroup was mistaken for a container:\n{seen}");
        Ok(())
    })
    .await
}

pub(crate) async fn classes_and_static_pods(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_both(&[], async |node, agent| {
        let mut watcher = agent.watch(from_now()).await?;
        let mut pods = Vec::new();
        for (name, qos) in [
            ("guaranteed", Qos::Guaranteed),
            ("burstable", Qos::Burstable),
            ("best-effort", Qos::BestEffort),
            ("static", Qos::Burstable),
        ] {
            let mut spec = PodSpec::new(name, ctx.combination.handler)?;
            spec.qos = qos;
            spec.namespace = format!("of-{name}");
            if name == "static" {
                spec.uid = new_static_uid()?;
            }
            let pod = node.run_pod(&spec).await?;
            // A runtime reports a sandbox once it runs, and no more once it is removed; its program it executes a little later.
            let known =
                |seen: &Seen| seen.check_known(&sandbox(&pod)).is_ok() && seen.has(&pod.sandbox, "started");
            watcher.wait_until("the start, and the runtime's knowledge", known).await?;
            node.remove_pod(&pod).await?;
            pods.push(pod);
        }
        let all =
            watcher.wait_until("the ends", |seen| pods.iter().all(|pod| seen.has(&pod.sandbox, "deleted")));
        let seen = all.await?;
        seen.check_unbroken()?;
        for pod in &pods {
            seen.check_life(&sandbox(pod))?;
            seen.check_known(&sandbox(pod))?;
        }
        Ok(())
    })
    .await
}
