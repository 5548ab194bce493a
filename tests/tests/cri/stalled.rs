//! Subscribers that stop reading during a storm of containers: no other client notices.

use kwitness_cri::events::{self as wire, ContainerEventType as Type};
use kwitness_tests::cri::{Cri, v1};
use kwitness_tests::cri_events::{LIFE, Subscriber, subscribe};
use kwitness_tests::prelude::*;
use tonic::transport::Endpoint;
use tonic::{Code, Status, Streaming};

use crate::with_daemon;

/// How long they do not read.
const STALL: Duration = Duration::from_secs(15);
/// With `--long`.
const STALL_LONG: Duration = Duration::from_secs(60);
/// The storm goes on until the bound is reached, however slow the machine is; a bound that is not reached in that time is none.
const OVERFLOW_MAX: Duration = Duration::from_secs(300);
/// The storm that it is compared with, in which all subscribers read.
const CALM: Duration = Duration::from_secs(5);
/// What a call may take longer while others do not read: far more than the machine's other work adds, and far less than waiting for
/// them would.
const DELAY: Duration = Duration::from_secs(1);
/// Labels of the storm's pods, and bytes of each: they are in every event, so that 16 MiB of events come together in time. containerd
/// takes no longer ones.
const LABELS: (usize, usize) = (12, 4000);
/// HTTP/2's own: what is not read is not buffered, either.
const WINDOW: u32 = 65_535;
/// What a stalled stream is waited for before it counts as ended.
const SILENT: Duration = Duration::from_secs(2);

/// One after the other is made, started and removed until it is enough: how long each StartContainer took, and all ids, the
/// sandbox's last.
async fn storm(
    node: &Node,
    through: &Cri,
    name: &str,
    combination: Combination,
    enough: impl AsyncFn(Duration) -> Result<bool>,
) -> Result<(Vec<Duration>, Vec<String>)> {
    let mut spec = PodSpec::new(name, combination.handler)?;
    spec.labels.extend((0..LABELS.0).map(|number| (format!("filler-{number}"), "x".repeat(LABELS.1))));
    let pod = node.run_pod(&spec).await?;
    let began = Instant::now();
    let (mut starts, mut ids) = (Vec::new(), Vec::new());
    while !enough(began.elapsed()).await? {
        let container = ContainerSpec::shell(&format!("c{}", ids.len()), "exit 0");
        let id = node.create_by(through, &pod, &container).await?;
        let starting = Instant::now();
        through.start_container(v1::StartContainerRequest { container_id: id.clone() }).await?;
        starts.push(starting.elapsed());
        node.wait_exited(&id).await?;
        node.remove_container(&id).await?;
        ids.push(id);
    }
    node.remove_pod(&pod).await?;
    starts.sort_unstable();
    ids.push(pod.sandbox);
    Ok((starts, ids))
}

async fn stalled(socket: &std::path::Path) -> Result<Streaming<wire::ContainerEventResponse>> {
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?;
    let endpoint = endpoint.initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW);
    Ok(subscribe(endpoint.connect().await?, None).await?)
}

/// What it reads at last, and how its stream ended; none: it has not.
async fn read(mut stream: Streaming<wire::ContainerEventResponse>) -> (Vec<(String, Type)>, Option<Status>) {
    let mut events = Vec::new();
    loop {
        match tokio::time::timeout(SILENT, stream.message()).await {
            Err(_) | Ok(Ok(None)) => return (events, None),
            Ok(Err(status)) => return (events, Some(status)),
            Ok(Ok(Some(event))) => {
                let kind = event.container_event_type();
                events.push((event.container_id, kind));
            }
        }
    }
}

pub(crate) async fn a_subscriber_that_does_not_read_delays_no_other(ctx: &Testbed<'_>) -> Result<()> {
    with_daemon(ctx, async |node, agent, proxy| {
        let time = if ctx.environment.long { STALL_LONG } else { STALL };
        stall(node, agent, proxy, ctx.combination, time).await?;
        // containerd 1.7 keeps undelivered events for its next subscriber: these are more than a test can read.
        node.stop_containerd()?;
        node.start_containerd().await
    })
    .await
}

async fn stall(
    node: &Node,
    agent: &Agent,
    proxy: &Proxy,
    combination: Combination,
    time: Duration,
) -> Result<()> {
    let through = Cri::connect(proxy.socket()).await?;
    let mut quick = Vec::new();
    for socket in [proxy.socket(), proxy.socket(), agent.socket()] {
        quick.push(Subscriber::open(socket, None).await?);
    }
    let (calm, _) = storm(node, &through, "calm", combination, async |took| Ok(took >= CALM)).await?;

    let (of_proxy, of_daemon) = (stalled(proxy.socket()).await?, stalled(agent.socket()).await?);
    let overflowed = async || Ok::<_, anyhow::Error>(proxy.counts().await?["event_streams_overflowed"] > 0);
    let enough = async |took: Duration| {
        ensure!(took < OVERFLOW_MAX, "events of {took:?} are no overflow");
        Ok(took >= time && overflowed().await?)
    };
    let (starts, ids) = storm(node, &through, "storm", combination, enough).await?;

    let (before, during) = (calm[calm.len() / 2], starts[starts.len() / 2]);
    println!("StartContainer took {before:?} of {}, then {during:?} of {}", calm.len(), starts.len());
    ensure!(during < before + DELAY, "slower: {before:?}, then {during:?}");

    // All others have everything, once, in order.
    let sandbox = ids.last().context("the sandbox")?;
    for subscriber in &mut quick {
        let ended = |reported: &kwitness_tests::cri_events::CriEvents| {
            reported.has(sandbox, Type::ContainerDeletedEvent)
        };
        let reported = subscriber.wait_until("the storm's end", ended).await?;
        for id in &ids {
            ensure!(reported.of(id) == LIFE, "{id}: {:?}", reported.of(id));
        }
        ensure!(subscriber.end().is_none(), "{:?}", subscriber.end());
    }

    // Those that did not read have what was reported at first without a hole, and an error that says that this was not all.
    let reported = quick[0].reported();
    let all: Vec<_> =
        reported.events().map(|event| (event.container_id.clone(), event.container_event_type())).collect();
    for (whose, stream, must_end) in [("the proxy", of_proxy, true), ("the daemon", of_daemon, false)] {
        let (events, end) = read(stream).await;
        let first = events.first().with_context(|| format!("nothing of {whose}"))?;
        let from =
            all.iter().position(|event| event == first).context("an event that no other client has")?;
        ensure!(all[from..].starts_with(&events), "a hole in what {whose} reported");
        let code = end.as_ref().map(Status::code);
        ensure!(code.is_none_or(|code| code == Code::ResourceExhausted), "{whose}: {end:?}");
        ensure!(
            code.is_some() || !must_end && from + events.len() == all.len(),
            "{whose}: not all, and no end"
        );
    }
    Ok(())
}
