//! The stream of events through the proxy: the daemon's, or without one the runtime's own; for everyone and for long.

use kwitness_cri::events::ContainerEventType::{
    ContainerDeletedEvent, ContainerStartedEvent, ContainerStoppedEvent,
};
use kwitness_tests::cri::{Cri, v1};
use kwitness_tests::cri_events::{LIFE, Subscriber};
use kwitness_tests::prelude::*;

use crate::{with_daemon, with_proxy};

/// Rounds of restarts; of three, two restart the daemon and two the runtime.
const RESTARTS: usize = 15;

/// Far more than a daemon's start ever takes.
const LIMIT: Duration = Duration::from_secs(30);

/// Lets a pod live and end, and its events come: on containerd 1.7 a subscriber that is gone takes one more with it.
async fn warm_up(subscriber: &mut Subscriber, node: &Node, combination: Combination) -> Result<()> {
    let pod = node.run_pod(&PodSpec::new("warm-up", combination.handler)?).await?;
    node.remove_pod(&pod).await?;
    subscriber.until(&pod.sandbox, ContainerDeletedEvent).await.map(drop)
}

/// A pod with containers that end; returns the ids of all of them, the sandbox last. It is removed once `watching` has its end:
/// containerd reports none of a sandbox that is removed before it has handled that.
async fn life(node: &Node, combination: Combination, watching: &mut Subscriber) -> Result<Vec<String>> {
    let pod = node.run_pod(&PodSpec::new("shared", combination.handler)?).await?;
    let mut ids = Vec::new();
    for number in 0..5 {
        ids.push(node.run(&pod, &ContainerSpec::shell(&format!("c{number}"), "exit 0")).await?);
    }
    for id in &ids {
        node.wait_exited(id).await?;
        node.remove_container(id).await?;
    }
    node.stop_sandbox(&pod.sandbox).await?;
    watching.until(&pod.sandbox, ContainerStoppedEvent).await?;
    node.remove_pod(&pod).await?;
    ids.push(pod.sandbox);
    Ok(ids)
}

/// On containerd 1.7 two subscribers take events from each other; behind the proxy each has all of them.
pub(crate) async fn no_client_loses_an_event_to_another(ctx: &Testbed<'_>) -> Result<()> {
    with_proxy(ctx, async |node, proxy| {
        let mut subscribers = Vec::new();
        for _ in 0..3 {
            // Each with a connection of its own, as three clients.
            subscribers.push(Subscriber::subscribed(proxy.socket()).await?);
        }
        warm_up(&mut subscribers[0], node, ctx.combination).await?;
        let ids = life(node, ctx.combination, &mut subscribers[0]).await?;
        // containerd reports a short life's end before its start now and then, or after its deletion.
        for subscriber in &mut subscribers {
            let all = subscriber.wait_until("every event", |reported| {
                ids.iter().all(|id| LIFE.into_iter().all(|kind| reported.has(id, kind)))
            });
            let all = all.await?;
            ids.iter().try_for_each(|id| all.check_whole(id))?;
        }
        Ok(())
    })
    .await
}

/// The runtime is restarted again and again: the client's one stream goes on.
pub(crate) async fn a_stream_outlives_the_runtime(ctx: &Testbed<'_>) -> Result<()> {
    with_proxy(ctx, async |node, proxy| {
        let cri = Cri::connect(proxy.socket()).await?;
        let mut subscriber = Subscriber::subscribed(proxy.socket()).await?;
        warm_up(&mut subscriber, node, ctx.combination).await?;
        for round in 0..5 {
            let pod =
                node.run_pod(&PodSpec::new(&format!("round-{round}"), ctx.combination.handler)?).await?;
            let reported = subscriber.until(&pod.sandbox, ContainerStartedEvent).await?;
            reported.check_life(&pod.sandbox, &LIFE[..2])?;
            node.stop_containerd()?;
            let refused = cri.version(v1::VersionRequest { version: "v1".to_owned() }).await;
            let words = refused.err().context("there is no runtime")?;
            ensure!(format!("{words:#}").contains("Unavailable: "), "{words:#}");
            node.start_containerd().await?;
            cri.version(v1::VersionRequest { version: "v1".to_owned() }).await?;
            node.remove_pod(&pod).await?;
            // A sandbox that is removed right after containerd's start is not always reported as stopped.
            subscriber.until(&pod.sandbox, ContainerDeletedEvent).await?;
        }
        Ok(())
    })
    .await
}

/// One stream over ten restarts of the daemon and as many of containerd, in turn and together: each container and each sandbox is
/// created, started, stopped and deleted once in it, also what ended while both were away.
pub(crate) async fn a_stream_of_the_daemon_outlives_restarts_of_everything(ctx: &Testbed<'_>) -> Result<()> {
    with_daemon(ctx, async |node, agent, proxy| restarts(node, agent, proxy, ctx.combination).await).await
}

async fn restarts(node: &mut Node, agent: &mut Agent, proxy: &Proxy, combination: Combination) -> Result<()> {
    let mut subscriber = Subscriber::subscribed(proxy.socket()).await?;
    warm_up(&mut subscriber, node, combination).await?;
    let mut ids = Vec::new();
    for round in 0..RESTARTS {
        let in_round = || format!("round {round}");
        let pod = node.run_pod(&PodSpec::new(&format!("round-{round}"), combination.handler)?).await?;
        let id = node.run(&pod, &ContainerSpec::new("main", &["/bin/sleep", "1000"])).await?;
        let pid = node.pid(&id).await?;
        let (daemon, runtime) = [(true, false), (false, true), (true, true)][round % 3];
        if runtime {
            node.stop_containerd()?;
        }
        if daemon {
            agent.kill()?;
        }
        process::kill_pid(pid)?;
        if runtime {
            node.start_containerd().await?;
        }
        if daemon {
            agent.start_again().await?;
        }
        node.wait_exited(&id).await?;
        // What is removed before its end was read can only be reported as deleted.
        subscriber.until(&id, ContainerStoppedEvent).await.with_context(in_round)?;
        if daemon {
            process::wait_for("the proxy to follow the daemon", LIMIT, async || {
                let calls = agent.status().await?.calls;
                Ok(calls.iter().any(|call| call.name == "container_events" && call.active > 0).then_some(()))
            })
            .await?;
            // Before the new daemon reports a later pod's whole life, it has listed and read the earlier ones.
            let later = node.run_pod(&PodSpec::new(&format!("later-{round}"), combination.handler)?).await?;
            subscriber.until(&later.sandbox, ContainerStartedEvent).await.with_context(in_round)?;
            node.remove_pod(&later).await?;
            subscriber.until(&later.sandbox, ContainerDeletedEvent).await.with_context(in_round)?;
            ids.push(later.sandbox);
        }
        node.remove_container(&id).await?;
        node.remove_pod(&pod).await?;
        ids.extend([id, pod.sandbox]);
        // While two sources are followed, the one that missed a stop may report the deletion before the other reports the stop.
        let all = subscriber.wait_until("every event", |reported| {
            ids.iter().all(|id| LIFE.into_iter().all(|kind| reported.has(id, kind)))
        });
        let all = all.await.with_context(in_round)?;
        ids.iter().try_for_each(|id| all.check_whole(id)).with_context(in_round)?;
    }
    Ok(())
}
