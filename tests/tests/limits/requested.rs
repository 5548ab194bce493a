//! Limits that only a request to the container runtime explains, over restarts of the daemon.

use std::path::Path;

use kwitness_api::proto;
use kwitness_api::proto::Source::CriRequest;
use kwitness_api::proto::VerdictKind::{Diverged, InForce, Reverted, Unknown};
use kwitness_tests::cri::{Cri, v1 as cri};
use kwitness_tests::kubelet::checkpoint;
use kwitness_tests::outage::Bpffs;
use kwitness_tests::prelude::*;

/// Far more than a verdict takes.
const LIMIT: Duration = Duration::from_secs(120);

fn update(id: &str, memory: i64) -> cri::UpdateContainerResourcesRequest {
    let linux = cri::LinuxContainerResources { memory_limit_in_bytes: memory, ..Default::default() };
    cri::UpdateContainerResourcesRequest { container_id: id.to_owned(), linux: Some(linux) }
}

/// A limit that only a request explains is in force for the next daemon, too; for one without a ledger, it is unknown.
pub(crate) async fn a_restart_turns_no_requested_limit_into_a_diverged_one(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_node(async |node| {
        let (bpffs, kubelet) = (Bpffs::mount()?, process::directory("kubelet")?);
        let setting = format!("kubelet.directory={}", kubelet.path().display());
        let mut agent = bpffs.agent_with(&ctx.environment, &[&setting]).await?;
        let proxy = Proxy::start(&ctx.environment, agent.socket()).await?;
        let done = restarts(node, &mut agent, &proxy, kubelet.path(), ctx.combination).await;
        done.with_context(|| proxy.log_tail()).with_context(|| agent.log_tail())?;
        proxy.stop()?;
        agent.stop()
    })
    .await
}

async fn restarts(
    node: &Node,
    agent: &mut Agent,
    proxy: &Proxy,
    kubelet: &Path,
    combination: Combination,
) -> Result<()> {
    let through = Cri::connect(proxy.socket()).await?;
    let pod = node.run_pod(&PodSpec::new("kept", combination.handler)?).await?;
    let spec = ContainerSpec::new("main", &["/bin/sleep", "1000"]).limited(64 << 20);
    let id = node.create_by(&through, &pod, &spec).await?;
    node.start_container(&id).await?;
    let checkpoint = checkpoint(&pod.spec.uid, &serde_json::json!({ "memory": "64Mi" }));
    std::fs::write(kubelet.join("allocated_pods_state"), checkpoint).context("write the checkpoint")?;
    judged(agent, &id, "admitted", |verdict| {
        verdict.verdict() == InForce && verdict.compared_with() == proto::Source::KubeletAllocated
    })
    .await?;

    // As the guard does it, too. A file's time is exact to a tick of the kernel's clock.
    let written = boottime();
    wait_for("a later tick", LIMIT, async || Ok((boottime() > written + 100_000_000).then_some(()))).await?;
    through.update_container_resources(update(&id, 96 << 20)).await?;
    let is_requested =
        |verdict: &proto::Verdict| verdict.verdict() == InForce && verdict.compared_with() == CriRequest;
    judged(agent, &id, "requested", is_requested).await?;
    // The node's own verdict, after which nothing is to change.
    wait_for("the node's own verdict", LIMIT, async || {
        Ok(own(agent, &id).await?.last().is_some_and(|last| *last == InForce).then_some(()))
    })
    .await?;
    let before = own(agent, &id).await?;

    for _ in 0..2 {
        agent.kill()?;
        agent.start_again().await?;
        let first = judged(agent, &id, "a verdict after a crash", |_| true).await?;
        ensure!(is_requested(&first), "{first:?}");
    }

    // Requested while no daemon runs, and reported to the next one.
    agent.kill()?;
    let since = boottime();
    through.update_container_resources(update(&id, 104 << 20)).await?;
    let until = boottime();
    agent.start_again().await?;
    let value = (104_i64 << 20).to_string();
    judged(agent, &id, "requested without a daemon", |verdict| {
        is_requested(verdict)
            && verdict.desired.iter().any(|of| of.source() == CriRequest && of.value == value)
    })
    .await?;
    let verdicts = agent.verify(limit::of_container(&id)).await?.verdicts;
    let last = verdicts.into_iter().find_map(|of| of.last_request).context("the last request")?;
    ensure!(since <= last.received && last.answered <= until, "{since}, {last:?}, {until}");
    wait_for("the node's own verdict on it", LIMIT, async || {
        Ok(own(agent, &id).await?.last().is_some_and(|last| *last == InForce).then_some(()))
    })
    .await?;
    let over_the_outage = own(agent, &id).await?;
    ensure!(!over_the_outage.iter().any(|of| matches!(of, Diverged | Reverted)), "{over_the_outage:?}");

    // Without a ledger, in a new epoch: this daemon cannot know.
    agent.kill()?;
    agent.add_argument("--set=kernel.pin=off");
    agent.start_again().await?;
    let unknown = judged(agent, &id, "without a ledger", |verdict| verdict.verdict() == Unknown).await?;
    ensure!(unknown.reason.contains("request that was not observed"), "{unknown:?}");
    wait_for("its own verdict", LIMIT, async || Ok((!own(agent, &id).await?.is_empty()).then_some(())))
        .await?;
    let after = own(agent, &id).await?;
    let wrong = |verdict: &proto::VerdictKind| matches!(verdict, Diverged | Reverted);
    ensure!(!before.iter().chain(&after).any(wrong), "{before:?}, then {after:?}");

    // What is requested from then on is known.
    through.update_container_resources(update(&id, 112 << 20)).await?;
    judged(agent, &id, "requested again", is_requested).await?;
    node.remove_pod(&pod).await
}

/// The node's own verdicts on the container's memory limit, the oldest first.
async fn own(agent: &Agent, id: &str) -> Result<Vec<proto::VerdictKind>> {
    let of = |event: &proto::Event| match &event.kind {
        Some(proto::event::Kind::Verdict(verdict)) if verdict.file == "memory.max" => Some(verdict.verdict()),
        _ => None,
    };
    Ok(agent.replay().await?.of(id).filter_map(of).collect())
}

/// The verdict on the container's memory limit, as soon as it is so.
async fn judged(
    agent: &Agent,
    id: &str,
    step: &str,
    is_so: impl Fn(&proto::Verdict) -> bool,
) -> Result<proto::Verdict> {
    limit::judged(agent, &limit::of_container(id), step, LIMIT, is_so).await
}
