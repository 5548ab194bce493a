//! The node: containerd, daemon, proxy, control plane and kubelet; and pods that the API gives it.

use std::path::Path;

use kwitness_tests::cluster_node::{registered, running};
use kwitness_tests::kubelet::{container, pod};
use kwitness_tests::prelude::*;
use serde_json::{Value, json};

pub(crate) const SOON: Duration = Duration::from_secs(240);

/// Which way the kubelet's calls take, and whose events it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Through the CRI proxy: kwitness's.
    Proxy,
    /// To containerd: its own.
    Straight,
}

pub(crate) struct Cluster<'a> {
    pub(crate) node: &'a Node,
    pub(crate) agent: &'a Agent,
    pub(crate) kubelet: &'a Kubelet,
    pub(crate) api: &'a ControlPlane,
}

pub(crate) async fn with_cluster(
    ctx: &Testbed<'_>,
    api: &ControlPlane,
    (pleg, way): (Pleg, Way),
    body: impl AsyncFnOnce(&Cluster<'_>) -> Result<()>,
) -> Result<()> {
    with_configured_cluster(ctx, api, (pleg, way), &[], body).await
}

pub(crate) async fn with_configured_cluster(
    ctx: &Testbed<'_>,
    api: &ControlPlane,
    (pleg, way): (Pleg, Way),
    settings: &[&str],
    body: impl AsyncFnOnce(&Cluster<'_>) -> Result<()>,
) -> Result<()> {
    ctx.with_node(async |node| {
        let agent = Agent::start(&ctx.environment, settings).await?;
        let proxy = Proxy::start(&ctx.environment, agent.socket()).await?;
        let runtime = match way {
            Way::Proxy => proxy.socket(),
            Way::Straight => Path::new(CONTAINERD_SOCKET),
        };
        let kubelet = Kubelet::join(&ctx.environment, runtime, pleg, api).await?;
        let done = body(&Cluster { node, agent: &agent, kubelet: &kubelet, api }).await;
        let done = done.with_context(|| kubelet.log_tail()).with_context(|| proxy.log_tail());
        let done = done.with_context(|| agent.log_tail()).with_context(|| api.log_tail());
        kubelet.retire(node).await?;
        done?;
        proxy.stop()?;
        agent.stop()
    })
    .await
}

/// A container that sleeps, with limits.
pub(crate) fn sleeper() -> Value {
    let mut main = container("main", &["/bin/sleep", "100000"]);
    main["resources"] = json!({
        "requests": { "cpu": "100m", "memory": "32Mi" },
        "limits": { "cpu": "200m", "memory": "64Mi" },
    });
    main
}

impl Cluster<'_> {
    /// Makes a pod with one container, `main`, that sleeps, and waits until that runs and the API says so; its id.
    pub(crate) async fn pod(&self, name: &str) -> Result<String> {
        registered(self.api).await?;
        self.api.create(&pod(name, &[sleeper()]))?;
        running(self.api, self.node, name).await
    }

    /// Whether the container runs, and how many ran before it, as the API has it.
    fn reported(&self, name: &str) -> Result<(bool, Option<u64>)> {
        let pod = self.api.get("pod", name)?;
        let main = &pod["status"]["containerStatuses"][0];
        Ok((!main["state"]["running"].is_null(), main["restartCount"].as_u64()))
    }
}

pub(crate) async fn a_crashed_pod_of_the_api_is_restarted_at_once(ctx: &Testbed<'_>) -> Result<()> {
    let way = (Pleg::Evented, Way::Proxy);
    let crash = async |cluster: &Cluster<'_>| {
        let began = Instant::now();
        let id = cluster.pod("crash").await?;
        println!("running {:.2} s after the request", began.elapsed().as_secs_f64());
        let (_, restarts) = cluster.reported("crash")?;
        let restarts = restarts.context("no restart count")?;
        let pid = cluster.node.pid(&id).await?;
        let killed = Instant::now();
        let crash = async || {
            process::kill_pid(pid)?;
            let again = async || cluster.node.running("crash", &id).await;
            wait_for("the container to run again", SOON, again).await.map(drop)
        };
        let took = cluster.kubelet.acts_on_events(crash).await?;
        println!("running again {took:?} after it was killed");
        wait_for("the API to say that it was restarted", SOON, async || {
            tokio::time::sleep(PAUSE).await;
            let (runs, count) = cluster.reported("crash")?;
            Ok((runs && count > Some(restarts)).then_some(()))
        })
        .await?;
        println!("the API says so {:?} after it was killed", killed.elapsed());
        cluster.kubelet.check_events_in_use().await
    };
    ctx.with_api(async |api| with_cluster(ctx, api, way, crash).await).await
}
