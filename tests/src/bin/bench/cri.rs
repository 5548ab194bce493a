//! From a container's end to STOPPED at a client of the CRI: the daemon's stream against the runtime's own, on the same ends; and to
//! `stopped` at a client of kwitness's own stream. And what
//! the daemon asks of the runtime for an event.

use std::path::Path;

use kwitness_cri::events::ContainerEventType as Type;
use kwitness_tests::cri_events::Subscriber;
use kwitness_tests::events::Received;
use kwitness_tests::prelude::*;

use crate::report::{Row, Target, quantile};

const ENDS: usize = 100;
const ENDS_IN_A_GUEST: usize = 10;

pub(crate) async fn measure(environment: &Environment) -> Result<Vec<Row>> {
    let count = environment.of_tier(ENDS, ENDS_IN_A_GUEST);
    let combination = environment.first_combination()?;
    let node = Node::start(environment, combination.driver).await?;
    let agent = Agent::start(environment, &["log.level=warn"]).await?;
    // The only one who takes the runtime's events.
    let mut theirs = Subscriber::open(Path::new(CONTAINERD_SOCKET), None).await?;
    let mut ours = Subscriber::open(agent.socket(), None).await?;
    let mut native = agent.watch(from_now()).await?;
    let pod = node.run_pod(&PodSpec::new("bench", combination.handler)?).await?;
    let (mut later, mut sooner, mut delays) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..count {
        let id = node.run(&pod, &ContainerSpec::shell(&format!("end-{number}"), "sleep 0.1; exit 1")).await?;
        let stopped =
            |seen: &kwitness_tests::cri_events::CriEvents| seen.has(&id, Type::ContainerStoppedEvent);
        let mut at = Vec::new();
        for subscriber in [&mut ours, &mut theirs] {
            let seen = subscriber.wait_until("STOPPED", stopped).await?;
            at.push(seen.find(&id, Type::ContainerStoppedEvent).context("STOPPED")?.at);
        }
        later.push((at[0] - at[1]) as f64 / 1e6);
        let seen = native.wait_until("stopped", |seen| seen.has(&id, "stopped")).await?;
        let is_end = |of: &&Received| {
            kind(&of.event) == "stopped" && of.event.container.as_ref().is_some_and(|whose| whose.id == id)
        };
        let stopped = seen.0.iter().find(is_end).context("stopped")?;
        // Both from the kernel's own time of the end, by the clock that each was received by.
        let ended = stopped.event.time.context("its time")?.to_unix_nanos();
        let natively = stopped.at.saturating_sub(stopped.event.kernel_time).max(1) as f64;
        let theirs = (at[1] - ended) as f64;
        sooner.push(theirs / natively);
        delays.push((natively / 1e6, theirs / 1e6));
        // One or two containers that have ended are what a kubelet keeps.
        node.remove_container(&id).await?;
    }
    node.remove_pod(&pod).await?;
    let seen = ours.wait_until("the end", |seen| seen.has(&pod.sandbox, Type::ContainerDeletedEvent)).await?;
    let counters = agent.status().await?.counters;
    let calls = counters.get("cri_events_calls").copied().unwrap_or_default();
    let a_call = calls as f64 / seen.0.len() as f64;
    drop((ours, theirs));
    agent.stop()?;
    node.shutdown().await?;
    let median = |of: fn(&(f64, f64)) -> f64| quantile(&delays.iter().map(of).collect::<Vec<_>>(), 0.5);
    let natively = format!(
        "kwitness {:.3} ms, containerd {:.1} ms after the kernel's own time of the end; the same {count} ends",
        median(|delay| delay.0),
        median(|delay| delay.1)
    );
    let note = format!(
        "{count} ends, one after the other; STOPPED received from kwitness minus received from containerd"
    );
    Ok(vec![
        Row::of("cri: STOPPED later than the runtime's own", &later, "ms", Target::AtMost(2.0), note),
        Row::of(
            "cri: native `stopped` sooner than the runtime's STOPPED",
            &sooner,
            "x",
            Target::AtLeast(20.0),
            natively,
        ),
        Row::of(
            "cri: calls to the runtime for an event",
            &[a_call],
            "",
            Target::None,
            format!("{calls} calls for {} events", seen.0.len()),
        ),
    ])
}
