//! Pods that crash, and how soon the kubelet starts them again.

use kwitness_tests::cri::v1::ContainerState;
use kwitness_tests::kubelet::Setup;
use kwitness_tests::prelude::*;

const SOON: Duration = Duration::from_secs(180);
/// Each of daemon and runtime: many more than the five ends of a stream after which a kubelet gives events up for good.
const RESTARTS: usize = 20;
/// Where the runtime is another than the one that is tried thoroughly.
const FEW_RESTARTS: usize = 3;
/// On events the kubelet lists everything once in that time (`eventedPlegRelistPeriod`).
const RELIST_PERIOD: Duration = Duration::from_secs(300);
/// Of the proxy: each may cost one of the five.
const PROXY_RESTARTS: u32 = 3;

pub(crate) async fn wait_running(node: &Node, pod: &str, not: &str) -> Result<String> {
    wait_for(&format!("the container of pod {pod}"), SOON, async || node.running(pod, not).await).await
}

/// Kills a pod's container; how long until the kubelet, by an event, runs another.
async fn crash(node: &Node, kubelet: &Kubelet, pod: &str) -> Result<Duration> {
    let id = wait_running(node, pod, "").await?;
    let pid = node.pid(&id).await?;
    let restarts = async || {
        process::kill_pid(pid)?;
        wait_running(node, pod, &id).await.map(drop)
    };
    kubelet.acts_on_events(restarts).await
}

pub(crate) async fn with_kubelet(
    ctx: &Testbed<'_>,
    setup: Setup,
    body: impl AsyncFnOnce(&mut Node, &mut Agent, &mut Proxy, &Kubelet) -> Result<()>,
) -> Result<()> {
    ctx.with_node(async |node| {
        let mut agent = Agent::start(&ctx.environment, &[]).await?;
        let mut proxy = Proxy::activated(&ctx.environment, agent.socket())?;
        let kubelet = Kubelet::start_as(&ctx.environment, proxy.socket(), setup, None).await?;
        let done = body(node, &mut agent, &mut proxy, &kubelet).await;
        let done = done.with_context(|| kubelet.log_tail()).with_context(|| proxy.log_tail());
        let done = done.with_context(|| agent.log_tail());
        kubelet.retire(node).await?;
        done?;
        proxy.stop()?;
        agent.stop()
    })
    .await
}

pub(crate) async fn events_stay_in_use_over_restarts_of_daemon_and_runtime(ctx: &Testbed<'_>) -> Result<()> {
    with_kubelet(ctx, Pleg::Evented.into(), async |node, agent, _, kubelet| {
        let restarts = match std::env::var("KWITNESS_ROOT").as_deref() {
            Ok("bookworm") => FEW_RESTARTS,
            _ => RESTARTS,
        };
        let began = Instant::now();
        let pods: Vec<_> = (0..2 * restarts).map(|number| format!("pod{number:02}")).collect();
        for pod in &pods {
            kubelet.add_pod(pod, &["/bin/sleep", "100000"])?;
        }
        for pod in &pods {
            wait_running(node, pod, "").await?;
        }
        let (relists, counting) = (kubelet.relists().await?, Instant::now());
        let mut longest = Duration::ZERO;
        for (number, pod) in pods.iter().enumerate() {
            if number % 2 == 0 {
                agent.restart().await?;
            } else {
                node.stop_containerd()?;
                node.start_containerd().await?;
            }
            let took = crash(node, kubelet, pod).await?;
            longest = longest.max(took);
            kubelet.check_events_in_use().await?;
        }
        for pod in &pods {
            let mut containers = node.containers(pod).await?;
            containers.retain(|container| container.state() == ContainerState::ContainerRunning);
            ensure!(containers.len() == 1, "{pod} runs {} containers: {containers:?}", containers.len());
        }
        println!("{} restarts in {:.0} s", pods.len(), began.elapsed().as_secs_f64());
        println!("at the latest running again {longest:?} after it was killed");
        let relists = kubelet.relists().await? - relists;
        println!("{relists} relists meanwhile");
        let most = 1.0 + (counting.elapsed().as_secs_f64() / RELIST_PERIOD.as_secs_f64()).floor();
        let is_trusting = relists <= most || kubelet.lists_anyway();
        ensure!(is_trusting, "{relists} relists: the kubelet does not trust the events");
        Ok(())
    })
    .await
}

pub(crate) async fn a_restart_of_the_proxy_costs_one_attempt(ctx: &Testbed<'_>) -> Result<()> {
    with_kubelet(ctx, Pleg::Evented.into(), async |node, agent, proxy, kubelet| {
        let pods: Vec<_> = (0..PROXY_RESTARTS).map(|number| format!("pod{number}")).collect();
        for pod in &pods {
            kubelet.add_pod(pod, &["/bin/sleep", "100000"])?;
        }
        for pod in &pods {
            wait_running(node, pod, "").await?;
        }
        kubelet.check_events_in_use().await?;
        for (ends, pod) in (1..).zip(&pods) {
            proxy.restart()?;
            wait_for("the kubelet to have events again", SOON, async || {
                Ok(kubelet.check_events_in_use_over(ends).await.is_ok().then_some(()))
            })
            .await?;
            let took = crash(node, kubelet, pod).await?;
            println!("after restart {ends} of the proxy: running again {took:?} after it was killed");
            kubelet.check_events_in_use_over(ends).await?;
        }
        let counters = agent.status().await?.counters;
        ensure!(counters.get("cri_events_withheld") == Some(&0), "{counters:?}");
        kubelet.remove(&pods[0])?;
        wait_for("the pod's end", SOON, async || {
            Ok(node.running(&pods[0], "").await?.is_none().then_some(()))
        })
        .await
    })
    .await
}
