//! The CRI's own event stream as the daemon serves it, on real pods: its contract, and the runtime's own stream beside it.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kwitness_cri::events::ContainerEventType as Type;
use kwitness_tests::agent::connect;
use kwitness_tests::bed::Bed;
use kwitness_tests::cri::{Cri, v1};
use kwitness_tests::cri_events::{LIFE, Subscriber, Told, sandbox_status, wall_clock};
use kwitness_tests::environment::{Combination, Tier};
use kwitness_tests::node::CONTAINERD_SOCKET;
use kwitness_tests::pod::{ContainerSpec, PodSpec};
use kwitness_tests::process;

/// Calls to the runtime for an event, at most: the pod is asked for soon and often, and then read.
const CALLS: u64 = 20;
/// While the runtime does not agree, a pod is asked for once in that time, with at most so many calls.
const ASKED: (Duration, u64) = (Duration::from_millis(100), 3);
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) async fn cri_events_of_a_pod(bed: &Bed, combination: Combination) -> Result<()> {
    bed.with_node(combination.driver, async |node| {
        bed.with_agent(&[], async |agent| {
            // The only one who takes the runtime's own events, so that none are taken from anybody else.
            let mut runtimes = Subscriber::open(Path::new(CONTAINERD_SOCKET), None).await?;
            let mut first = Subscriber::open(agent.socket(), None).await?;
            let mut second = Subscriber::open(agent.socket(), None).await?;
            let began = Instant::now();
            let pod = node.run_pod(&PodSpec::new("tour", combination.handler)?).await?;

            // Made, and not started: nothing that the kernel could show.
            let mut main = ContainerSpec::new("main", &["/bin/sleep", "1000"]);
            let killed = node.create(&pod, &main).await?;
            let told =
                first.wait_until("CREATED", |told| told.has(&killed, Type::ContainerCreatedEvent)).await?;
            ensure!(!told.has(&killed, Type::ContainerStartedEvent), "{told}");
            node.start_container(&killed).await?;
            first.wait_until("STARTED", |told| told.has(&killed, Type::ContainerStartedEvent)).await?;

            // An exec is no event of the container's.
            let before = first.told().0.len();
            ensure!(node.exec(&killed, &["/bin/sh", "-c", "exit 5"]).await? == 5, "exec's exit code");

            // In the event are the runtime's own bytes.
            let own = sandbox_status(connect(Path::new(CONTAINERD_SOCKET)).await?, &pod.sandbox).await?;
            let told = first.told();
            let started = told.find(&killed, Type::ContainerStartedEvent).context("STARTED")?;
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
            ensure!(told.0.len() == before, "the exec was told:\n{told}");

            process::kill_pid(node.pid(&killed).await?)?;
            first.wait_until("STOPPED", |told| told.has(&killed, Type::ContainerStoppedEvent)).await?;
            main.attempt = 1;
            let stopped = node.run(&pod, &main).await?;
            let told =
                first.wait_until("STARTED", |told| told.has(&stopped, Type::ContainerStartedEvent)).await?;
            let event = &told.find(&stopped, Type::ContainerStartedEvent).context("STARTED")?.event;
            ensure!(event.containers_statuses.len() == 2, "the one that ended is missing:\n{told}");
            node.remove_container(&killed).await?;
            first.wait_until("DELETED", |told| told.has(&killed, Type::ContainerDeletedEvent)).await?;
            node.stop_container(&stopped, 0).await?;
            let unstarted = node.create(&pod, &ContainerSpec::shell("unstarted", "exit 3")).await?;
            first.wait_until("CREATED", |told| told.has(&unstarted, Type::ContainerCreatedEvent)).await?;
            let quick = node.run(&pod, &ContainerSpec::new("quick", &["/bin/true"])).await?;
            node.wait_exited(&quick).await?;
            node.remove_pod(&pod).await?;

            let end = |told: &Told| told.has(&pod.sandbox, Type::ContainerDeletedEvent);
            let told = first.wait_until("the end", end).await?;
            told.check_contract()?;
            for id in [&pod.sandbox, &killed, &stopped, &quick] {
                told.check_life(id, &LIFE)?;
            }
            told.check_life(&unstarted, &[Type::ContainerCreatedEvent, Type::ContainerDeletedEvent])?;
            ensure!(told.0.len() == 18, "someone else's events:\n{told}");
            let same = second.wait_until("the end", end).await?;
            ensure!(same.events().eq(told.events()), "two subscribers differ:\n{told}\n{same}");

            // The runtime's own stream tells nothing of them that ours does not. (containerd 2.x begins with what nobody took before.)
            let theirs = runtimes.wait_until("the runtime's own end", end).await?;
            let of_pod = |id: &str| !told.of(id).is_empty();
            for event in theirs.events().filter(|event| of_pod(&event.container_id)) {
                ensure!(
                    told.has(&event.container_id, event.container_event_type()),
                    "the runtime told more:\n{theirs}\nthan:\n{told}"
                );
            }
            let status = agent.status().await?;
            let count = |name: &str| status.counters.get(name).copied().unwrap_or_default();
            ensure!(
                count("cri_events_told") == 18 && count("cri_events_withheld") == 0,
                "{:?}",
                status.counters
            );
            let calls = count("cri_events_calls");
            ensure!(calls < allowed(18, 1, began.elapsed()), "{calls} calls in {:?}", began.elapsed());
            println!(
                "{} calls for 18 events\n{told}\nand of the runtime itself\n{theirs}",
                count("cri_events_calls")
            );
            Ok(())
        })
        .await
    })
    .await
}

/// Calls that so many events of so many pods may take: an emulated runtime takes its time to agree.
fn allowed(events: usize, pods: usize, time: Duration) -> u64 {
    let looks = time.as_millis() / ASKED.0.as_millis();
    CALLS * events as u64 + ASKED.1 * pods as u64 * looks as u64
}

pub(crate) async fn cri_events_of_a_crash_loop(bed: &Bed, combination: Combination) -> Result<()> {
    // Emulated, each round takes ten seconds.
    let rounds = if bed.environment.tier == Tier::Host { 10 } else { 3 };
    bed.with_node(combination.driver, async |node| {
        bed.with_agent(&[], async |agent| {
            let began = Instant::now();
            let mut subscriber = Subscriber::open(agent.socket(), None).await?;
            let mut ids = Vec::new();
            let mut pods = Vec::new();
            for number in 0..3 {
                pods.push(
                    node.run_pod(&PodSpec::new(&format!("loop-{number}"), combination.handler)?).await?,
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
            let end = |told: &Told| ids.iter().all(|id| told.has(id, Type::ContainerDeletedEvent));
            let told = subscriber.wait_until("the ends", end).await?;
            told.check_contract()?;
            for id in &ids {
                told.check_life(id, &LIFE)?;
            }
            let counters = agent.status().await?.counters;
            let calls = counters.get("cri_events_calls").copied().unwrap_or_default();
            println!("{} events, {calls} calls", told.0.len());
            let time = began.elapsed();
            ensure!(calls <= allowed(told.0.len(), pods.len(), time), "{calls} calls in {time:?}\n{told}");
            Ok(())
        })
        .await
    })
    .await
}

pub(crate) async fn cri_events_while_the_runtime_is_away(bed: &Bed, combination: Combination) -> Result<()> {
    bed.with_node(combination.driver, async |node| {
        bed.with_agent(&[], async |agent| {
            let mut subscriber = Subscriber::open(agent.socket(), None).await?;
            let pod = node.run_pod(&PodSpec::new("away", combination.handler)?).await?;
            let ends = node.run(&pod, &ContainerSpec::new("ends", &["/bin/sleep", "1000"])).await?;
            let stays = node.run(&pod, &ContainerSpec::new("stays", &["/bin/sleep", "1000"])).await?;
            subscriber.wait_until("STARTED", |told| told.has(&stays, Type::ContainerStartedEvent)).await?;
            let pid = node.pid(&ends).await?;
            for _ in 0..2 {
                node.stop_containerd()?;
                node.start_containerd().await?;
            }
            node.stop_containerd()?;
            process::kill_pid(pid)?;
            node.start_containerd().await?;
            let told =
                subscriber.wait_until("STOPPED", |told| told.has(&ends, Type::ContainerStoppedEvent)).await?;
            ensure!(
                !told.has(&stays, Type::ContainerStoppedEvent),
                "the other one was told to have stopped:\n{told}"
            );
            told.check_contract()?;
            told.check_life(&ends, &LIFE[..3])?;
            told.check_life(&pod.sandbox, &LIFE[..2])
        })
        .await
    })
    .await
}

pub(crate) async fn cri_events_over_a_restart_of_the_daemon(
    bed: &Bed,
    combination: Combination,
) -> Result<()> {
    bed.with_node(combination.driver, async |node| {
        let mut agent = kwitness_tests::agent::Agent::start(&bed.environment, &[]).await?;
        let mut subscriber = Subscriber::open(agent.socket(), None).await?;
        let pod = node.run_pod(&PodSpec::new("restart", combination.handler)?).await?;
        let ends = node.run(&pod, &ContainerSpec::new("ends", &["/bin/sleep", "1000"])).await?;
        let told =
            subscriber.wait_until("STARTED", |told| told.has(&ends, Type::ContainerStartedEvent)).await?;
        let since = told.events().map(|event| event.created_at).max().unwrap_or_else(wall_clock);
        agent.kill()?;
        process::kill_pid(node.pid(&ends).await?)?;
        node.wait_exited(&ends).await?;
        let late = node.run(&pod, &ContainerSpec::new("late", &["/bin/sleep", "1000"])).await?;
        agent.start_again().await?;
        ensure!(subscriber.end().is_some(), "the stream outlived the daemon");

        let mut again = Subscriber::open(agent.socket(), Some(since)).await?;
        let told = again.wait_until("STARTED", |told| told.has(&late, Type::ContainerStartedEvent)).await?;
        told.check_contract()?;
        // An event's time is before the runtime's own of what it tells: the last one may come twice.
        let of_ends = told.of(&ends);
        ensure!(
            of_ends.last() == Some(&Type::ContainerStoppedEvent) && of_ends.len() <= 2,
            "{ends}:\n{told}"
        );
        told.check_life(&late, &[Type::ContainerCreatedEvent, Type::ContainerStartedEvent])?;
        let mut from_now = Subscriber::open(agent.socket(), None).await?;
        node.remove_pod(&pod).await?;
        let end = |told: &Told| told.has(&pod.sandbox, Type::ContainerDeletedEvent);
        let told = again.wait_until("the end", end).await?;
        told.check_life(&pod.sandbox, &[Type::ContainerStoppedEvent, Type::ContainerDeletedEvent])?;
        let told = from_now.wait_until("the end", end).await?;
        told.check_life(&late, &[Type::ContainerStoppedEvent, Type::ContainerDeletedEvent])?;
        told.check_life(&ends, &[Type::ContainerDeletedEvent])?;
        agent.stop()
    })
    .await
}

pub(crate) async fn cri_methods_that_the_daemon_does_not_serve(
    bed: &Bed,
    combination: Combination,
) -> Result<()> {
    bed.with_node(combination.driver, async |node| {
        bed.with_agent(&[], async |agent| {
            let daemon = Cri::connect(agent.socket()).await?;
            let request = v1::VersionRequest { version: "v1".to_owned() };
            let (ours, theirs) = (daemon.version(request.clone()).await?, node.cri().version(request).await?);
            ensure!(ours == theirs, "{ours:?} instead of {theirs:?}");
            let refused = daemon.list_containers(v1::ListContainersRequest::default()).await.err();
            let refused = format!("{:#}", refused.context("ListContainers was answered")?);
            ensure!(refused.contains("Unimplemented") && refused.contains("cri-proxy"), "{refused}");
            let refused =
                format!("{:#}", daemon.has_image("x").await.err().context("ImageStatus was answered")?);
            ensure!(refused.contains("Unimplemented") && refused.contains("cri-proxy"), "{refused}");
            Ok(())
        })
        .await
    })
    .await
}

pub(crate) async fn crictl_events(bed: &Bed, combination: Combination) -> Result<()> {
    bed.with_node(combination.driver, async |node| {
        bed.with_agent(&[], async |agent| {
            let crictl = bed.environment.job.join("bin/crictl");
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
            let pod = node.run_pod(&PodSpec::new("seen", combination.handler)?).await?;
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
                let whole: Vec<_> =
                    LIFE.iter().map(|kind| format!("{} {of} seen", kind.as_str_name())).collect();
                ensure!(lines == whole, "crictl printed:\n{text}");
            }
            Ok(())
        })
        .await
    })
    .await
}
