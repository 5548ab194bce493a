//! Requests for limits that pass the proxy: the daemon knows them, with their times.

use kwitness_api::proto;
use kwitness_tests::cri::{Cri, v1 as cri};
use kwitness_tests::prelude::*;

use crate::with_daemon;

/// Far more than a request takes to be known.
const LIMIT: Duration = Duration::from_secs(120);
fn update(id: &str, memory: i64, shares: i64) -> cri::UpdateContainerResourcesRequest {
    let linux = cri::LinuxContainerResources {
        memory_limit_in_bytes: memory,
        cpu_shares: shares,
        ..Default::default()
    };
    cri::UpdateContainerResourcesRequest { container_id: id.to_owned(), linux: Some(linux) }
}

/// What the daemon says of a container, as soon as it knows of a request that was received at that time or later.
async fn known(agent: &Agent, id: &str, since: u64) -> Result<Vec<proto::VerdictOf>> {
    wait_for("the daemon to know of the request", LIMIT, async || {
        let Ok(answer) = agent.verify(limit::of_container(id)).await else { return Ok(None) };
        let knows =
            |of: &proto::VerdictOf| of.last_request.as_ref().is_some_and(|last| last.received >= since);
        Ok(Some(answer.verdicts).filter(|verdicts| verdicts.iter().any(knows)))
    })
    .await
}

/// What was requested for one file over the CRI.
fn requested(verdicts: &[proto::VerdictOf], file: &str) -> Option<proto::DesiredLimit> {
    let mut verdicts = verdicts.iter().filter_map(|of| of.verdict.as_ref());
    let verdict = verdicts.find(|verdict| verdict.file == file)?;
    verdict.desired.iter().find(|limit| limit.source() == proto::Source::CriRequest).cloned()
}

pub(crate) async fn the_daemon_knows_what_was_requested_and_when(ctx: &Testbed<'_>) -> Result<()> {
    with_daemon(ctx, async |node, agent, proxy| report(node, agent, proxy, ctx.combination).await).await
}

async fn report(node: &Node, agent: &mut Agent, proxy: &Proxy, combination: Combination) -> Result<()> {
    let through = Cri::connect(proxy.socket()).await?;
    let pod = node.run_pod(&PodSpec::new("asked", combination.handler)?).await?;
    let spec = ContainerSpec::new("main", &["/bin/sleep", "1000"]).limited(64 << 20);
    let before = boottime();
    let id = node.create_by(&through, &pod, &spec).await?;
    let created = boottime();
    node.start_container(&id).await?;

    // The request came before there was a cgroup.
    let verdicts = known(agent, &id, before).await?;
    let last = verdicts[0].last_request.clone().context("the creation")?;
    ensure!(last.method() == proto::CriMethod::CreateContainer && last.code == Some(0), "{last:?}");
    ensure!(before <= last.received && last.received < last.answered && last.answered <= created, "{last:?}");
    let limit = requested(&verdicts, "memory.max").context("what was requested first")?;
    ensure!(limit.value == (64 << 20).to_string() && limit.time.is_some(), "{limit:?}");

    // Of a changed limit the new word counts, of the other the old.
    let before = boottime();
    through.update_container_resources(update(&id, 0, 512)).await?;
    let verdicts = known(agent, &id, before).await?;
    let still = requested(&verdicts, "memory.max").context("what was requested first")?;
    // The wall clock's time of the same moment, converted anew.
    let moved =
        still.time.zip(limit.time).map(|(now, then)| now.to_unix_nanos().abs_diff(then.to_unix_nanos()));
    ensure!(
        still.value == limit.value && moved.is_some_and(|nanos| nanos < 1_000_000),
        "{still:?} {limit:?}"
    );
    let shares = requested(&verdicts, "cpu.weight").context("what was requested then")?;
    ensure!(shares.time > limit.time, "{shares:?} {limit:?}");

    // A pod's limits come with its sandbox's id. (containerd 1.7 refuses the method before it has read the request: reported by hand.)
    ensure!(
        through.update_container_resources(update("nobody", 1 << 30, 0)).await.is_err(),
        "of an unknown container"
    );
    let now = boottime();
    let request = proto::CriRequest {
        method: proto::CriMethod::UpdatePodSandboxResources.into(),
        id: pod.sandbox.clone(),
        received: now,
        answered: now,
        code: Some(tonic::Code::Unimplemented.into()),
        resources: Some(proto::CriResources { memory_limit_in_bytes: 32 << 20, ..Default::default() }),
    };
    let reported = proto::ReportCriRequestsRequest { requests: vec![request], ..Default::default() };
    let answer = agent.client().await?.report_cri_requests(reported).await?.into_inner();
    ensure!(answer.accepted == 1, "{answer:?}");
    wait_for("what was requested for the pod", LIMIT, async || {
        let mut verdicts = agent.verify(limit::of_pod(&pod.spec.uid)).await?.verdicts;
        verdicts.retain(|of| of.container.is_none());
        let limit = requested(&verdicts, "memory.max").filter(|limit| limit.value == (32 << 20).to_string());
        Ok(limit.map(drop))
    })
    .await?;

    // Without a daemon the calls go on, and the next one gets what was requested meanwhile, with its time.
    agent.kill()?;
    through.update_container_resources(update(&id, 80 << 20, 0)).await?;
    let between = boottime();
    through.update_container_resources(update(&id, 0, 256)).await?;
    let after = boottime();
    agent.start_again().await?;
    let verdicts = known(agent, &id, between).await?;
    let last = verdicts[0].last_request.clone().context("the last one")?;
    ensure!(last.answered <= after, "{last:?}, {after}");
    let limit = requested(&verdicts, "memory.max").context("what was requested without a daemon")?;
    ensure!(limit.value == (80 << 20).to_string(), "{limit:?}");
    let shares = requested(&verdicts, "cpu.weight").context("what was requested after it")?;
    ensure!(shares.time > limit.time, "{shares:?} {limit:?}");
    let counts = proxy.counts().await?;
    ensure!(counts["connections"] > 0 && counts["requests_malformed"] == 0, "{counts:?}");
    ensure!(counts["requests_dropped"] == 0 && counts["requests_missed"] == 0, "{counts:?}");

    // What comes then is later.
    let before = boottime();
    through.update_container_resources(update(&id, 96 << 20, 0)).await?;
    // A verdict that was being made when the request came has not seen it.
    wait_for("what was requested last", LIMIT, async || {
        let verdicts = known(agent, &id, before).await?;
        let limit = requested(&verdicts, "memory.max");
        Ok(limit.filter(|limit| limit.value == (96 << 20).to_string()).map(drop))
    })
    .await?;

    // What has ended is forgotten.
    let before = agent.status().await?.counters;
    ensure!(before.get("cri_requests_known") == Some(&1), "{before:?}");
    node.remove_container(&id).await?;
    wait_for("it to be forgotten", LIMIT, async || {
        let gone = agent.verify(limit::of_container(&id)).await.is_err();
        let counters = agent.status().await?.counters;
        Ok((gone && counters.get("cri_requests_known") == Some(&0)).then_some(()))
    })
    .await?;
    node.remove_pod(&pod).await
}
