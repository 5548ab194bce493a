//! The CRI's own event stream as the daemon serves it, on real pods: its contract, and the runtime's own stream beside it.

use std::path::Path;
use std::process::Command;

use kwitness_cri::events::ContainerEventType as Type;
use kwitness_cri::wall_clock;
use kwitness_tests::agent::connect;
use kwitness_tests::cri::{Cri, v1};
use kwitness_tests::cri_events::{CriEvents, LIFE, Subscriber, sandbox_status};
use kwitness_tests::prelude::*;

/// Calls to the runtime for an event, at most: the pod is polled soon and often, and then read.
const CALLS: u64 = 20;
/// While the runtime does not agree, a pod is polled once in that time, with at most so many calls.
const ASKED: (Duration, u64) = (Duration::from_millis(100), 3);
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) async fn events_of_a_pod(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_both(&[], async |node, agent| {
        // The only subscriber of the runtime's own events, so that it misses none to another.
        let mut runtimes = Subscriber::open(Path::new(CONTAINERD_SOCKET), None).await?;
        let mut first = Subscriber::open(agent.socket(), None).await?;
        let mut second = Subscriber::open(agent.socket(), None).await?;
        let began = Instant::now();
        let pod = node.run_pod(&PodSpec::new("tour", ctx.combination.handler)?).await?;

        // Made, and not started: nothing that the kernel could show.
        let mut main = ContainerSpec::new("main", &["/bin/sleep", "1000"]);
        let killed = node.create(&pod, &main).await?;
        let reported = first.until(&killed, Type::ContainerCreatedEvent).await?;
        ensure!(!reported.has(&killed, Type::ContainerStartedEvent), "{reported}");
        node.start_container(&killed).await?;
        first.until(&killed, Type::ContainerStartedEvent).await?;

        // An exec is no event of the container's.
        let before = first.reported().0.len();
        ensure!(node.exec(&killed, &["/bin/sh", "-c", "exit 5"]).await? == 5, "exec's exit code");

        // In the event are the runtime's own bytes.
        let own = sandbox_status(connect(Path::new(CONTAINERD_SOCKET)).await?, &pod.sandbox).await?;
        let reported = first.reported();
        let started = reported.find(&killed, Type::ContainerStartedEvent).context("STARTED")?;
        // Go writes a map's entries in another order each time.
        let sorted = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            bytes.sort_unstable();
            bytes
        };
        ensure!(
            sorted(&started.event.pod_sandbox_status) == sorted(&own),
            "the sandbox's status is not the runtime's"
        );
        ensure!(reported.0.len() == before, "the exec was reported:\n{reported}");

        process::kill_pid(node.pid(&killed).await?)?;
        first.until(&killed, Type::ContainerStoppedEvent).await?;
        main.attempt = 1;
        let stopped = node.run(&pod, &main).await?;
        let reported = first.until(&stopped, Type::ContainerStartedEvent).await?;
        let event = &reported.find(&stopped, Type::ContainerStartedEvent).context("STARTED")?.event;
        ensure!(event.containers_statuses.len() == 2, "the one that ended is missing:\n{reported}");
        node.remove_container(&killed).await?;
        first.until(&killed, Type::ContainerDeletedEvent).await?;
        node.stop_container(&stopped, 0).await?;
        let unstarted = node.create(&pod, &ContainerSpec::shell("unstarted", "exit 3")).await?;
        first.until(&unstarted, Type::ContainerCreatedEvent).await?;
        let quick = node.run(&pod, &ContainerSpec::new("quick", &["/bin/true"])).await?;
        node.wait_exited(&quick).await?;
        node.remove_pod(&pod).await?;
        let reported = first.until(&pod.sandbox, Type::ContainerDeletedEvent).await?;
        reported.check_contract()?;
        for id in [&pod.sandbox, &killed, &stopped, &quick] {
            reported.check_life(id, &LIFE)?;
        }
        reported.check_life(&unstarted, &[Type::ContainerCreatedEvent, Type::ContainerDeletedEvent])?;
        ensure!(reported.0.len() == 18, "another's events:\n{reported}");
        let same = second.until(&pod.sandbox, Type::ContainerDeletedEvent).await?;
        ensure!(same.events().eq(reported.events()), "two subscribers differ:\n{reported}\n{same}");

        // The runtime's own stream reports nothing of them that ours does not. (containerd 2.x begins with what no subscriber
        // received before.)
        let theirs = runtimes.until(&pod.sandbox, Type::ContainerDeletedEvent).await?;
        let of_pod = |id: &str| !reported.of(id).is_empty();
        for event in theirs.events().filter(|event| of_pod(&event.container_id)) {
            ensure!(
                reported.has(&event.container_id, event.container_event_type()),
                "the runtime reported more:\n{theirs}\nthan:\n{reported}"
            );
        }
        let status = agent.status().await?;
        let count = |name: &str| status.counters.get(name).copied().unwrap_or_default();
        ensure!(count("cri_events_sent") == 18 && count("cri_events_withheld") == 0, "{:?}", status.counters);
        let calls = count("cri_events_calls");
        ensure!(calls < allowed(18, 1, began.elapsed()), "{calls} calls in {:?}", began.elapsed());
        println!(
            "{} calls for 18 events\n{reported}\nand of the runtime itself\n{theirs}",
            count("cri_events_calls")
        );
        Ok(())
    })
    .await
}

/// Calls that so many events of so many pods may take: an emulated runtime takes its time to agree.
fn allowed(events: usize, pods: usize, time: Duration) -> u64 {
    let looks = time.as_millis() / ASKED.0.as_millis();
    CALLS * events as u64 + ASKED.1 * pods as u64 * looks as u64
}

pub(crate) async fn events_of_a_crash_loop(ctx: &Testbed<'_>) -> Result<()> {
    // Emulated, each round takes ten seconds.
    let rounds = ctx.environment.of_tier(10, 3);
    ctx.with_both(&[], async |node, agent| {
        let began = Instant::now();
        let mut subscriber = Subscriber::open(agent.socket(), None).await?;
        let mut ids = Vec::new();
        let mut pods = Vec::new();
        for number in 0..3 {
            pods.push(
                node.run_pod(&PodSpec::new(&format!("loop-{number}"), ctx.combination.handler)?).await?,
            );
        }
        for round in 0..rounds {
            let spec = ContainerSpec::shell(&format!("main-{round}"), "exit 1");
            for pod in &pods {
                ids.push(node.run(pod, &spec).await?);
            }
        }
        for id in &ids {
            node.wait_exited(id).await?;
        }
        for pod in &pods {
            node.remove_pod(pod).await?;
        }
        ids.extend(pods.iter().map(|pod| pod.sandbox.clone()));
        let end = |reported: &CriEvents| ids.iter().all(|id| reported.has(id, Type::ContainerDeletedEvent));
        let reported = subscriber.wait_until("the ends", end).await?;
        reported.check_contract()?;
        for id in &ids {
            reported.check_life(id, &LIFE)?;
        }
        let counters = agent.status().await?.counters;
        let calls = counters.get("cri_events_calls").copied().unwrap_or_default();
        println!("{} events, {calls} calls", reported.0.len());
        let time = began.elapsed();
        ensure!(
            calls <= allowed(reported.0.len(), pods.len(), time),
            "{calls} calls in {time:?}\n{reported}"
        );
        Ok(())
    })
    .await
}

pub(crate) async fn the_runtime_is_away(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_both(&[], async |node, agent| {
        let mut subscriber = Subscriber::open(agent.socket(), None).await?;
        let pod = node.run_pod(&PodSpec::new("away", ctx.combination.handler)?).await?;
        let ends = node.run(&pod, &ContainerSpec::new("ends", &["/bin/sleep", "1000"])).await?;
        let stays = node.run(&pod, &ContainerSpec::new("stays", &["/bin/sleep", "1000"])).await?;
        subscriber.until(&stays, Type::ContainerStartedEvent).await?;
        let pid = node.pid(&ends).await?;
        for _ in 0..2 {
            node.stop_containerd()?;
            node.start_containerd().await?;
        }
        node.stop_containerd()?;
        process::kill_pid(pid)?;
        node.start_containerd().await?;
        let reported = subscriber.until(&ends, Type::ContainerStoppedEvent).await?;
        ensure!(
            !reported.has(&stays, Type::ContainerStoppedEvent),
            "the other one was reported to have stopped:\n{reported}"
        );
        reported.check_contract()?;
        reported.check_life(&ends, &LIFE[..3])?;
        reported.check_life(&pod.sandbox, &LIFE[..2])
    })
    .await
}

pub(crate) async fn a_restart_of_the_daemon(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_node(async |node| {
        let mut agent = kwitness_tests::agent::Agent::start(&ctx.environment, &[]).await?;
        let mut subscriber = Subscriber::open(agent.socket(), None).await?;
        let pod = node.run_pod(&PodSpec::new("restart", ctx.combination.handler)?).await?;
        let ends = node.run(&pod, &ContainerSpec::new("ends", &["/bin/sleep", "1000"])).await?;
        let reported = subscriber.until(&ends, Type::ContainerStartedEvent).await?;
        let since = reported.events().map(|event| event.created_at).max().unwrap_or_else(wall_clock);
        agent.kill()?;
        process::kill_pid(node.pid(&ends).await?)?;
        node.wait_exited(&ends).await?;
        let late = node.run(&pod, &ContainerSpec::new("late", &["/bin/sleep", "1000"])).await?;
        agent.start_again().await?;
        ensure!(subscriber.end().is_some(), "the stream outlived the daemon");

        let mut again = Subscriber::open(agent.socket(), Some(since)).await?;
        let reported = again.until(&late, Type::ContainerStartedEvent).await?;
        reported.check_contract()?;
        // An event's time is before the runtime's own of what it reports: the last one may come twice.
        let of_ends = reported.of(&ends);
        ensure!(
            of_ends.last() == Some(&Type::ContainerStoppedEvent) && of_ends.len() <= 2,
            "{ends}:\n{reported}"
        );
        reported.check_life(&late, &[Type::ContainerCreatedEvent, Type::ContainerStartedEvent])?;
        let mut from_now = Subscriber::open(agent.socket(), None).await?;
        node.remove_pod(&pod).await?;
        let reported = again.until(&pod.sandbox, Type::ContainerDeletedEvent).await?;
        reported.check_life(&pod.sandbox, &[Type::ContainerStoppedEvent, Type::ContainerDeletedEvent])?;
        let reported = from_now.until(&pod.sandbox, Type::ContainerDeletedEvent).await?;
        reported.check_life(&late, &[Type::ContainerStoppedEvent, Type::ContainerDeletedEvent])?;
        reported.check_life(&ends, &[Type::ContainerDeletedEvent])?;
        agent.stop()
    })
    .await
}

pub(crate) async fn methods_that_the_daemon_does_not_serve(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_both(&[], async |_, agent| {
        let daemon = Cri::connect(agent.socket()).await?;
        let refused = daemon.list_containers(v1::ListContainersRequest::default()).await.err();
        let refused = format!("{:#}", refused.context("ListContainers was answered")?);
        ensure!(refused.contains("Unimplemented") && refused.contains("cri-proxy"), "{refused}");
        let refused = format!("{:#}", daemon.has_image("x").await.err().context("ImageStatus was answered")?);
        ensure!(refused.contains("Unimplemented") && refused.contains("cri-proxy"), "{refused}");
        Ok(())
    })
    .await
}

pub(crate) async fn crictl_events(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_both(&[], async |node, agent| {
        let crictl = ctx.environment.job.join("bin/crictl");
        let directory = tempfile::tempdir_in("/run").context("make a directory in /run")?;
        let mut command = Command::new(&crictl);
        command.arg("--runtime-endpoint").arg(format!("unix://{}", agent.socket().display()));
        command.args(["events", "--output", "go-template", "--template"]);
        command.arg("{{.containerEventType}} {{.containerId}} {{.podSandboxStatus.metadata.name}}");
        let log = directory.path().join("crictl.log");
        let mut crictl = process::Managed::spawn("crictl", command, &log)?;
        process::wait_for("crictl to subscribe", LIMIT, async || {
            crictl.check_running()?;
            let counters = agent.status().await?.counters;
            Ok((counters.get("cri_events_subscribers") == Some(&1)).then_some(()))
        })
        .await?;
        let pod = node.run_pod(&PodSpec::new("seen", ctx.combination.handler)?).await?;
        let id = node.run(&pod, &ContainerSpec::shell("main", "exit 3")).await?;
        node.wait_exited(&id).await?;
        node.remove_pod(&pod).await?;
        let last = format!("CONTAINER_DELETED_EVENT {} seen", pod.sandbox);
        let text = process::wait_for("the end in crictl's output", LIMIT, async || {
            let text = crictl.log()?;
            Ok(text.contains(&last).then_some(text))
        })
        .await
        .with_context(|| crictl.log_tail())?;
        for of in [&pod.sandbox, &id] {
            let lines: Vec<_> = text.lines().filter(|line| line.contains(of.as_str())).collect();
            let whole: Vec<_> = LIFE.iter().map(|kind| format!("{} {of} seen", kind.as_str_name())).collect();
            ensure!(lines == whole, "crictl printed:\n{text}");
        }
        Ok(())
    })
    .await
}
