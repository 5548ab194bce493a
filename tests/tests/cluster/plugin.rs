//! `kubectl kwitness` against a real API server and kubelet: the daemon's API over the port-forward of a pod, and a daemon that
//! is restarted meanwhile.
//!
//! The pod that is forwarded to stands in for the daemon's own: it is on the node's network, where the daemon listens on loopback. So
//! the way is the real one (API server, kubelet, containerd, loopback), and the daemon can be restarted like any other here.

use std::path::Path;
use std::process::Command;

use kwitness_tests::prelude::*;
use kwitness_tests::process::run;
use serde_json::Value;

use crate::deployment;
use crate::join::{Cluster, SOON};

const LISTEN: &str = "api.listen=127.0.0.1:9769";
const LABEL: &str = "app.kubernetes.io/name=kwitness";
/// `EX_UNAVAILABLE`: a daemon, or all of them, cannot be reached.
const UNREACHABLE: i32 = 69;

pub(crate) async fn the_plugin_follows_a_node_over_a_restart_of_its_daemon(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_api(async |api| follows(ctx, api).await).await
}

async fn follows(ctx: &Testbed<'_>, api: &ControlPlane) -> Result<()> {
    ctx.with_node(async |node| {
        let mut agent = Agent::start(&ctx.environment, &[LISTEN]).await?;
        let runtime = Path::new(CONTAINERD_SOCKET);
        let kubelet = Kubelet::join(&ctx.environment, runtime, Pleg::Generic, api).await?;
        let done = tour(ctx, node, &mut agent, &kubelet, api).await;
        let done = done.with_context(|| kubelet.log_tail()).with_context(|| agent.log_tail());
        kubelet.retire(node).await?;
        done.with_context(|| api.log_tail())?;
        agent.stop()
    })
    .await
}

async fn tour(
    ctx: &TestContext,
    node: &Node,
    agent: &mut Agent,
    kubelet: &Kubelet,
    api: &ControlPlane,
) -> Result<()> {
    let cluster = Cluster { node, agent: &*agent, kubelet, api };
    cluster.pod("agent").await?;
    api.run(&["label", "pod", "agent", LABEL])?;
    let id = cluster.pod("web").await?;
    let plugin = deployment::plugin(ctx, api, "default")?;

    let status = run(&mut plugin(&["status"]))?;
    ensure!(status.lines().nth(1).is_some_and(|line| line.starts_with(NODE)), "{status}");
    let listed = run(&mut plugin(&["ps", "-p", "pod/web", "-o", "json"]))?;
    let listed: Value = serde_json::from_str(&listed).with_context(|| listed.clone())?;
    ensure!(listed["node"] == NODE && listed["container"]["id"] == *id, "{listed:#}");
    if ctx.environment.layout == CgroupLayout::Unified {
        check_limits(&run(&mut plugin(&["verify", "pod/web", "--wait", "60s", "-o", "json"]))?)?;
        cluster.pod("second").await?;
        deployment::create(api)?;
        api.run(&["label", "pods", "web", "second", deployment::LABEL])?;
        deployment::a_resize_is_followed_to_every_pod(api, node, ["web", "second"], &plugin).await?;
    }

    let directory = tempfile::tempdir().context("make a directory for the plugin's output")?;
    a_pod_that_is_labelled_later_is_followed(&cluster, &plugin, &directory.path().join("labelled")).await?;
    let log = directory.path().join("events");
    let follow = plugin(&["events", "-w", "-p", "pod/web", "--since", "1h", "-o", "json"]);
    let mut follow = Managed::spawn("kubectl-kwitness", follow, &log)?;
    wait_for_event(&mut follow, "what was before", |event| event["type"] == "started").await?;
    let executed = |program: &'static str| {
        move |event: &Value| event["node"] == NODE && event["exec"]["program"] == program
    };
    node.exec(&id, &["/bin/true"]).await?;
    wait_for_event(&mut follow, "an exec", executed("/bin/true")).await?;
    agent.restart().await?;
    node.exec(&id, &["/bin/echo"]).await?;
    wait_for_event(&mut follow, "an exec after the restart", executed("/bin/echo")).await?;
    wait_for_event(&mut follow, "the node's restart or gap", |event| {
        event["node"] == NODE && ["gap", "agentRestarted"].iter().any(|kind| event["type"] == *kind)
    })
    .await?;

    for (arguments, said) in [
        (["ps", "-A", "--kwitness-port", "1"], "node does not answer: "),
        (["ps", "-A", "--kwitness-selector", "app=none"], "install the chart"),
    ] {
        let output = plugin(&arguments).output().context("run the plugin")?;
        let noted = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(UNREACHABLE) && noted.contains(said), "{output:?}");
    }
    Ok(())
}

/// Neither its node nor the pod was there for a client that follows a label.
async fn a_pod_that_is_labelled_later_is_followed(
    cluster: &Cluster<'_>,
    plugin: &impl Fn(&[&str]) -> Command,
    log: &Path,
) -> Result<()> {
    let follow = plugin(&["events", "-w", "-l", "made=later", "-o", "json"]);
    let mut follow = Managed::spawn("kubectl-kwitness", follow, log)?;
    let waiting = "waiting for its events";
    wait_for(waiting, SOON, async || {
        follow.check_running()?;
        Ok(follow.log()?.contains(waiting).then_some(()))
    })
    .await?;
    cluster.pod("later").await?;
    cluster.api.run(&["label", "pod", "later", "made=later"])?;
    wait_for_event(&mut follow, "an event of the pod", |event| {
        event["node"] == NODE && event["container"]["pod"]["name"] == "later"
    })
    .await
}

/// What the API server's spec wants of the container is in force.
fn check_limits(text: &str) -> Result<()> {
    let verdicts: Vec<Value> =
        text.lines().map(serde_json::from_str).collect::<Result<_, _>>().context("parse")?;
    for (file, wanted) in [("memory.max", "67108864"), ("cpu.max", "20000 100000")] {
        let is_it = |of: &&Value| of["container"]["name"] == "main" && of["verdict"]["file"] == file;
        let verdict = verdicts.iter().find(is_it).with_context(|| format!("no verdict on {file}: {text}"))?;
        let desired = verdict["verdict"]["desired"].as_array().into_iter().flatten();
        let mut of_client = desired.filter(|desired| desired["source"] == "SOURCE_CLIENT");
        ensure!(of_client.any(|desired| desired["value"] == wanted), "{verdict:#}");
        ensure!(
            verdict["verdict"]["verdict"] == "VERDICT_KIND_IN_FORCE" && verdict["node"] == NODE,
            "{verdict:#}"
        );
    }
    Ok(())
}

async fn wait_for_event(follow: &mut Managed, what: &str, accept: impl Fn(&Value) -> bool) -> Result<()> {
    let waited = wait_for(what, SOON, async || {
        follow.check_running()?;
        let log = follow.log()?;
        // Notes are in between, and the last line may be incomplete.
        let mut events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        Ok(events.any(|event| accept(&event)).then_some(()))
    })
    .await;
    waited.with_context(|| follow.log_tail())
}
