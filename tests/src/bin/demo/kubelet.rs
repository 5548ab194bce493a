//! The scene `kubelet`: the same crashes of the same pods, once for a kubelet that asks its runtime every second (the generic PLEG), once for
//! a kubelet that lives on kwitness's events (the Evented PLEG). Each kubelet is a fresh one.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kwitness_tests::agent::Agent;
use kwitness_tests::environment::{Combination, Environment};
use kwitness_tests::kubelet::{Kubelet, Pleg};
use kwitness_tests::node::{CONTAINERD_SOCKET, Node};
use kwitness_tests::process::{kill_pid, wait_for};
use kwitness_tests::proxy::Proxy;

use crate::stage;

/// A kubelet makes a container wait before its second restart, so each pod crashes once.
const PODS: usize = 5;
const SOON: Duration = Duration::from_secs(60);
/// On events, a restart takes what the runtime takes.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Whether the kubelet was sooner on events, and used them.
pub(crate) async fn play(environment: &Environment, combination: Combination, fast: bool) -> Result<bool> {
    let pause = if fast { Duration::ZERO } else { Duration::from_millis(1500) };
    stage::say("A node comes up: containerd, the kwitness daemon, and the CRI proxy before containerd.");
    let mut node = Node::start(environment, combination.driver).await?;
    let agent = Agent::start(environment, &[]).await?;
    let proxy = Proxy::start(environment, agent.socket()).await?;
    stage::introduce(&node, &agent).await?;

    tokio::time::sleep(pause).await;
    stage::say(
        "A kubelet with the generic PLEG, straight on containerd: it lists all containers every second.",
    );
    let listing = Kubelet::start(environment, CONTAINERD_SOCKET.as_ref(), Pleg::Generic).await?;
    let on_lists = crashes(&node, &listing).await.with_context(|| listing.log_tail())?;
    listing.retire(&mut node).await?;

    tokio::time::sleep(pause).await;
    stage::say("A kubelet with the Evented PLEG, on the proxy: kwitness reports its containers' events.");
    let reported = Kubelet::start(environment, proxy.socket(), Pleg::Evented).await?;
    let on_events = crashes(&node, &reported).await.with_context(|| reported.log_tail())?;
    let in_use = reported.check_events_in_use().await;
    reported.retire(&mut node).await?;
    proxy.stop()?;
    agent.stop()?;
    node.shutdown().await?;

    let (generic, evented) = (median(&on_lists), median(&on_events));
    let sooner = evented < generic && on_events.iter().all(|took| *took < AT_ONCE);
    let good = sooner && in_use.is_ok();
    stage::say(match (sooner, &in_use) {
        (true, Ok(())) => "On kwitness's events, pods run again sooner.",
        (false, _) => "On kwitness's events, pods do NOT run again sooner.",
        (_, Err(_)) => "The kubelet did NOT use the events.",
    });
    stage::item("", "from a container's end until it runs again");
    stage::item("on lists", &line(&on_lists));
    stage::item("on events", &line(&on_events));
    stage::item("medians", &format!("{generic:.2?} and {evented:.2?}"));
    if let Err(error) = in_use {
        stage::item("events", &format!("{error:#}"));
    }
    Ok(good)
}

/// Has each pod crash once; how long each took to run again.
async fn crashes(node: &Node, kubelet: &Kubelet) -> Result<Vec<Duration>> {
    let pods: Vec<_> = (1..=PODS).map(|number| format!("web{number}")).collect();
    for pod in &pods {
        kubelet.add_pod(pod, &["/bin/sleep", "100000"])?;
    }
    let mut took = Vec::new();
    for pod in &pods {
        let running = async |not: &str| {
            let what = format!("pod {pod} to run");
            wait_for(&what, SOON, async || node.running(pod, not).await).await
        };
        let id = running("").await?;
        let pid = node.pid(&id).await?;
        let killed = Instant::now();
        kill_pid(pid)?;
        running(&id).await?;
        let again = killed.elapsed();
        stage::item("", &format!("{pod} is killed with SIGKILL, and runs again {again:.2?} later"));
        took.push(again);
    }
    Ok(took)
}

fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted[sorted.len() / 2]
}

fn line(times: &[Duration]) -> String {
    times.iter().map(|took| format!("{took:.2?}")).collect::<Vec<_>>().join("  ")
}
