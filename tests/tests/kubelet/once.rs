//! A start whose event is late: the kubelet gets the answer after it, and does not start the container a second time.

use kwitness_cri::events::ContainerEventType as Type;
use kwitness_tests::cri::v1;
use kwitness_tests::cri_events::Subscriber;
use kwitness_tests::kubelet::{container, pod};
use kwitness_tests::prelude::*;
use serde_json::{Value, json};

use crate::restart::with_kubelet;

const SOON: Duration = Duration::from_secs(60);
const POD: &str = "pod";

/// The kubelet starts `second` once the hook of `first` has ended: between them the daemon is stopped.
fn manifest() -> Value {
    let [mut first, second] = ["first", "second"].map(|name| container(name, &["/bin/sleep", "100000"]));
    first["lifecycle"] = json!({ "postStart": { "exec": { "command": ["/bin/sleep", "3"] } } });
    pod(POD, &[first, second])
}

pub(crate) async fn a_start_is_answered_after_its_event(ctx: &Testbed<'_>) -> Result<()> {
    with_kubelet(ctx, Pleg::Evented.into(), async |node, agent, proxy, kubelet| {
        let mut events = Subscriber::subscribed(agent.socket()).await?;
        kubelet.place(POD, &manifest())?;
        let first = wait_container(node, "first").await?;
        events.until(&first, Type::ContainerStartedEvent).await?;
        let paused = agent.pause()?;
        ensure!(named(node, "second").await?.is_empty(), "the hook was too short");
        let held = proxy.counts().await?["answers_held"];
        let second = wait_container(node, "second").await?;
        wait_for("the answer to be held", SOON, async || {
            Ok((proxy.counts().await?["answers_held"] > held).then_some(()))
        })
        .await?;
        drop(paused);
        events.until(&second, Type::ContainerStartedEvent).await?;
        kubelet.check_events_in_use().await?;
        for name in ["first", "second"] {
            let containers = named(node, name).await?;
            ensure!(containers.len() == 1, "{name} was started more than once: {containers:?}");
        }
        Ok(())
    })
    .await
}

async fn named(node: &Node, name: &str) -> Result<Vec<v1::Container>> {
    let mut containers = node.containers(POD).await?;
    containers.retain(|container| container.metadata.as_ref().is_some_and(|of| of.name == name));
    Ok(containers)
}

async fn wait_container(node: &Node, name: &str) -> Result<String> {
    wait_for(&format!("container {name}"), SOON, async || {
        let mut containers = named(node, name).await?.into_iter();
        let runs = |container: &v1::Container| container.state() == v1::ContainerState::ContainerRunning;
        Ok(containers.find(runs).map(|container| container.id))
    })
    .await
}
