//! Pods that crash, and how soon the kubelet starts them again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kwitness_tests::agent::Agent;
use kwitness_tests::bed::Bed;
use kwitness_tests::cri::v1;
use kwitness_tests::environment::Combination;
use kwitness_tests::kubelet::{Kubelet, Pleg};
use kwitness_tests::node::Node;
use kwitness_tests::process::{self, wait_for};
use kwitness_tests::proxy::Proxy;

/// The kubelet's generic PLEG looks once a second; on events it is much sooner.
const AT_ONCE: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_secs(60);
/// Each of daemon and runtime: more than the five ends of a stream after which a kubelet gives events up for good.
const RESTARTS: usize = 7;

/// The running container of a pod, if there is one; its pod's name is in its labels.
async fn running(node: &Node, pod: &str, not: &str) -> Result<Option<String>> {
    let containers = node.cri().list_containers(v1::ListContainersRequest::default()).await?.containers;
    let is = |container: &&v1::Container| {
        container.state() == v1::ContainerState::ContainerRunning
            && container.id != not
            && container.labels.get("io.kubernetes.pod.name").is_some_and(|name| name.starts_with(pod))
    };
    Ok(containers.iter().find(is).map(|container| container.id.clone()))
}

async fn wait_running(node: &Node, pod: &str, not: &str) -> Result<String> {
    wait_for(&format!("the container of pod {pod}"), SOON, async || running(node, pod, not).await).await
}

/// Kills a pod's container; how long until another runs.
async fn crash(node: &Node, pod: &str) -> Result<Duration> {
    let id = wait_running(node, pod, "").await?;
    let pid = node.pid(&id).await?;
    let killed = Instant::now();
    process::kill_pid(pid)?;
    wait_running(node, pod, &id).await?;
    Ok(killed.elapsed())
}

/// The kubelet has used events, and nothing else, so far.
async fn check_events_in_use(kubelet: &Kubelet) -> Result<()> {
    let connected = kubelet.metric("kubelet_evented_pleg_connection_success_count").await?;
    ensure!(connected == Some(1.0), "connected to the event stream {connected:?} times");
    let failed = kubelet.metric("kubelet_evented_pleg_connection_error_count").await?;
    ensure!(failed.is_none_or(|failed| failed == 0.0), "the event stream ended {failed:?} times");
    let log = kubelet.log()?;
    ensure!(!log.contains("Fall back to Generic PLEG"), "the kubelet gave events up");
    ensure!(log.contains("Generated pod status from the received event"), "the kubelet used no event");
    Ok(())
}

async fn with_kubelet(
    bed: &Bed,
    combination: Combination,
    body: impl AsyncFnOnce(&mut Node, &mut Agent, &Kubelet) -> Result<()>,
) -> Result<()> {
    bed.with_node(combination.driver, async |node| {
        let mut agent = Agent::start(&bed.environment, &[]).await?;
        let proxy = Proxy::start(&bed.environment, agent.socket()).await?;
        let mut kubelet = Kubelet::start(&bed.environment, proxy.socket(), Pleg::Evented).await?;
        let done = body(node, &mut agent, &kubelet).await;
        let done = done.with_context(|| kubelet.log_tail()).with_context(|| proxy.log_tail());
        let done = done.with_context(|| agent.log_tail());
        // Nobody else may start what is to be removed, and its cgroups are removed after it.
        kubelet.stop()?;
        node.remove_all_pods().await?;
        drop(kubelet);
        done?;
        proxy.stop()?;
        agent.stop()
    })
    .await
}

pub(crate) async fn a_crashed_pod_is_restarted_at_once(bed: &Bed, combination: Combination) -> Result<()> {
    with_kubelet(bed, combination, async |node, agent, kubelet| {
        kubelet.place("crash", &["/bin/sleep", "100000"])?;
        let placed = Instant::now();
        let id = wait_running(node, "crash", "").await?;
        println!("running {:?} after it was placed", placed.elapsed());
        let took = crash(node, "crash").await?;
        println!("running again {took:?} after it was killed");
        ensure!(took < AT_ONCE, "restarted {took:?} after its end");
        check_events_in_use(kubelet).await?;
        // The second crash waits for the kubelet's back-off, not for anybody's events.
        ensure!(wait_running(node, "crash", &id).await? != id, "the killed container runs");
        let counters = agent.status().await?.counters;
        ensure!(counters.get("cri_events_withheld") == Some(&0), "{counters:?}");
        kubelet.remove("crash")?;
        wait_for("the pod's end", SOON, async || {
            Ok(running(node, "crash", "").await?.is_none().then_some(()))
        })
        .await
    })
    .await
}

pub(crate) async fn events_stay_in_use_over_restarts_of_daemon_and_runtime(
    bed: &Bed,
    combination: Combination,
) -> Result<()> {
    with_kubelet(bed, combination, async |node, agent, kubelet| {
        let pods: Vec<_> = (0..2 * RESTARTS).map(|number| format!("pod{number:02}")).collect();
        for pod in &pods {
            kubelet.place(pod, &["/bin/sleep", "100000"])?;
        }
        for pod in &pods {
            wait_running(node, pod, "").await?;
        }
        for (number, pod) in pods.iter().enumerate() {
            if number % 2 == 0 {
                agent.restart().await?;
            } else {
                node.stop_containerd()?;
                node.start_containerd().await?;
            }
            let took = crash(node, pod).await?;
            println!("after restart {number}: running again {took:?} after it was killed");
            ensure!(took < SOON, "restarted {took:?} after its end");
            check_events_in_use(kubelet).await?;
        }
        Ok(())
    })
    .await
}
