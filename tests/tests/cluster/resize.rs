//! `kubectl patch --subresource resize`, and what becomes of it: as the API reports, as the kernel has it, as kwitness judges.
//!
//! Whatever the API says of a resize, and when: the verdict must not follow it, but the kernel.

use std::collections::BTreeMap;

use kwitness_api::proto::event::Kind;
use kwitness_api::proto::{CgroupRole, VerdictKind, VerifyRequest, WatchRequest};
use kwitness_tests::prelude::*;
use serde_json::json;

use crate::join::{Cluster, SOON, Way, with_cluster};

const PATCH: &str = r#"{"spec":{"containers":[{"name":"main","resources":
    {"requests":{"cpu":"200m","memory":"48Mi"},"limits":{"cpu":"400m","memory":"96Mi"}}}]}}"#;
const MEMORY: u64 = 96 << 20;
const MILLI_CPU: u64 = 400;
/// What the kernel must say in the end, of the container and of its pod.
const IN_THE_END: [(&str, &str); 2] = [("memory.max", "100663296"), ("cpu.max", "40000 100000")];

type Verdicts = BTreeMap<String, VerdictKind>;

pub(crate) async fn a_resize_is_in_force_when_the_kernel_has_it(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_api(async |api| all_ways(ctx, api).await).await
}

async fn all_ways(ctx: &Testbed<'_>, api: &ControlPlane) -> Result<()> {
    for (name, pleg, way) in [
        ("evented", Pleg::Evented, Way::Proxy),
        ("straight", Pleg::Evented, Way::Straight),
        ("generic", Pleg::Generic, Way::Proxy),
    ] {
        with_cluster(ctx, api, (pleg, way), async |cluster| {
            let id = cluster.pod(name).await?;
            resized(cluster, name, &id).await.with_context(|| format!("{pleg:?} PLEG, {way:?}"))?;
            if pleg == Pleg::Evented {
                cluster.kubelet.check_events_in_use().await?;
            }
            cluster.api.run(&["delete", "pod", name, "--force", "--grace-period=0", "--wait=false"]).map(drop)
        })
        .await?;
    }
    Ok(())
}

/// Patches, and waits until all say that it is done: what the kernel has is in force, and nothing before that.
async fn resized(cluster: &Cluster<'_>, name: &str, id: &str) -> Result<()> {
    let before = verdicts(cluster.agent, request(id, 64 << 20, 200, 60_000)).await?;
    ensure!(all_in_force(&before), "before the resize: {before:?}");
    let watch = WatchRequest { filter: limit::of_pod(name).filter, ..from_now() };
    let mut watcher = cluster.agent.watch(watch).await?;
    cluster.api.run(&["patch", "pod", name, "--subresource=resize", "--patch", PATCH])?;
    // One call answers when all is in force, and not before; others look at it as it is.
    let waiting = in_force(cluster, request(id, MEMORY, MILLI_CPU, 600_000));
    let looking = in_force(cluster, request(id, MEMORY, MILLI_CPU, 0));
    let (waited, looked, ()) = tokio::try_join!(waiting, looking, settled(cluster, name))?;

    let seen = watcher.wait_until("the last write", |seen| {
        IN_THE_END.iter().all(|(_, value)| writes_of(seen, value).count() >= 2)
    });
    let seen = seen.await?;
    let mut written = 0;
    for (file, value) in IN_THE_END {
        for role in [CgroupRole::Pod, CgroupRole::Container] {
            let write = writes_of(&seen, value).find(|(of, _)| *of == role);
            let (_, at) = write.with_context(|| format!("no write of {value} to the {role:?}'s {file}"))?;
            written = written.max(at);
        }
    }
    for (how, at) in [("waited for", waited), ("looked at", looked)] {
        ensure!(at >= written, "in force {} ns before the last write, when {how}", written - at);
    }
    println!("{name}: in force is reported {:.1} ms after the last write", (waited - written) as f64 / 1e6);
    Ok(())
}

/// The writes of that value: whose limit, and when they returned.
fn writes_of(seen: &Seen, value: &str) -> impl Iterator<Item = (CgroupRole, u64)> {
    seen.events().filter_map(move |event| {
        let Some(Kind::LimitChanged(changed)) = &event.kind else { return None };
        let write = changed.write.as_ref().filter(|write| write.value.as_deref() == Some(value))?;
        Some((changed.cgroup.as_ref()?.role(), write.returned.unwrap_or(event.kernel_time)))
    })
}

/// Asks until all are in force; when that was answered.
async fn in_force(cluster: &Cluster<'_>, request: VerifyRequest) -> Result<u64> {
    let mut last = Verdicts::new();
    let answered = wait_for("all to be in force", SOON, async || {
        last = verdicts(cluster.agent, request.clone()).await?;
        let is_in_vain = request.wait_ms > 0 && !all_in_force(&last);
        ensure!(!is_in_vain, "waited in vain");
        Ok(all_in_force(&last).then(boottime))
    });
    answered.await.with_context(|| format!("{last:?}"))
}

/// Waits until the API has the new limits, and says that the resize is completed and no more that it is under way.
async fn settled(cluster: &Cluster<'_>, name: &str) -> Result<()> {
    wait_for("the API to have the new limits", SOON, async || {
        tokio::time::sleep(PAUSE).await;
        let status = cluster.api.get("pod", name)?["status"].take();
        let conditions = status["conditions"].as_array().into_iter().flatten();
        let mut kinds = conditions.filter_map(|condition| condition["type"].as_str());
        let is_under_way = kinds.any(|kind| kind.starts_with("PodResize"));
        let limits = &status["containerStatuses"][0]["resources"]["limits"];
        if is_under_way || *limits != json!({ "cpu": "400m", "memory": "96Mi" }) {
            return Ok(None);
        }
        let selector = format!("--field-selector=involvedObject.name={name}");
        let events =
            cluster.api.run(&["get", "events", &selector, "--output=jsonpath={.items[*].reason}"])?;
        Ok(events.contains("ResizeCompleted").then_some(()))
    })
    .await
}

fn request(id: &str, memory: u64, milli_cpu: u64, wait_ms: u32) -> VerifyRequest {
    let wanted = Some(limit::wanted(Some(memory), Some(milli_cpu)));
    VerifyRequest { wanted, wait_ms, ..limit::of_container(id) }
}

async fn verdicts(agent: &Agent, request: VerifyRequest) -> Result<Verdicts> {
    let answer = agent.verify(request).await.context("call Verify")?;
    let verdicts = answer.verdicts.into_iter().filter_map(|of| of.verdict);
    let verdicts: Verdicts = verdicts.map(|verdict| (verdict.file.clone(), verdict.verdict())).collect();
    if verdicts.is_empty() {
        bail!("nothing was judged; unavailable: {:?}", answer.unavailable);
    }
    Ok(verdicts)
}

fn all_in_force(verdicts: &Verdicts) -> bool {
    IN_THE_END.iter().all(|(file, _)| verdicts.get(*file) == Some(&VerdictKind::InForce))
}
