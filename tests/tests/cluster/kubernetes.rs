//! The Kubernetes API as a source: what it says of a resize beside what the kernel has, and that it is wrong where it is.

use std::path::Path;

use kwitness_api::Timestamp;
use kwitness_api::proto::{
    KubernetesComparison, KubernetesDisagreement, KubernetesDisagreementReason, KubernetesLimit, Verdict,
    VerdictKind,
};
use kwitness_tests::prelude::*;

use crate::join::{Cluster, SOON, Way, with_configured_cluster};

const POD: &str = "kubeapi";
const PATCH: &str = r#"{"spec":{"containers":[{"name":"main","resources":
    {"requests":{"memory":"48Mi"},"limits":{"memory":"96Mi"}}}]}}"#;
/// What the resize sets, and what a process writes over it.
const RESIZED: u64 = 96 << 20;
const SABOTAGED: u64 = 80 << 20;
/// What the conversion of a time may be wrong by, in nanoseconds.
const CONVERSION: i64 = 1_000_000;

pub(crate) async fn a_status_that_the_kernel_does_not_have_is_named(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_api(async |api| is_named(ctx, api).await).await
}

async fn is_named(ctx: &Testbed<'_>, api: &ControlPlane) -> Result<()> {
    let kubeconfig = api.verifying_kubeconfig()?;
    let settings = [
        "kubernetes.enabled=true".to_owned(),
        format!("kubernetes.kubeconfig={}", kubeconfig.display()),
        format!("node.name={NODE}"),
    ];
    let settings: Vec<_> = settings.iter().map(String::as_str).collect();
    let way = (Pleg::Generic, Way::Proxy);
    with_configured_cluster(ctx, api, way, &settings, async |cluster| {
        let id = cluster.pod(POD).await?;
        let directory = cluster.node.cgroup_of(&id).await?;
        agrees(cluster, "64Mi", "32Mi").await?;
        cluster.api.run(&["patch", "pod", POD, "--subresource=resize", "--patch", PATCH])?;
        let resized = agrees(cluster, "96Mi", "48Mi").await?;
        ensure!(resized.generation == resized.observed_generation, "{resized:?}");
        sabotage(cluster, &directory).await?;
        cgroup::write(&directory, "memory.max", RESIZED)?;
        agrees(cluster, "96Mi", "48Mi").await?;
        connected(cluster).await
    })
    .await
}

/// Overwrites the limit behind the kubelet's back, and waits until that is named, with both times.
async fn sabotage(cluster: &Cluster<'_>, directory: &Path) -> Result<()> {
    let began = wall()?;
    cgroup::write(directory, "memory.max", SABOTAGED)?;
    let ended = wall()?;
    let verdict = until(cluster, "the API and the kernel to disagree", |_, of| {
        of.comparison() == KubernetesComparison::Disagrees
    })
    .await?;
    // What the API says changes no verdict: it is the kernel's.
    ensure!(verdict.verdict() == VerdictKind::Reverted, "{verdict:?}");
    let of = verdict.kubernetes.context("no word of the API")?;
    let status = |of: &&KubernetesDisagreement| of.reason() == KubernetesDisagreementReason::StatusDiffers;
    let found = of.disagreements.iter().find(status).with_context(|| format!("{of:?}"))?;
    println!(
        "status says {} since {:?}, the kernel has {} since {:?}",
        found.says, found.since, found.kernel, found.written
    );
    ensure!(found.says == "96Mi" && found.kernel == SABOTAGED.to_string(), "{found:?}");
    let (since, written) =
        (found.since.context("no time of the status")?, found.written.context("no write seen")?);
    // The kernel's clock is converted to the wall's.
    let between = |earlier: Timestamp, later: Timestamp| {
        earlier.to_unix_nanos() <= later.to_unix_nanos().saturating_add(CONVERSION)
    };
    let in_order = since < began && between(began, written) && between(written, ended);
    ensure!(in_order, "{began:?} {ended:?} {found:?}");
    ensure!(of.confirmed >= Some(written), "it was not read after the write: {of:?}");
    Ok(())
}

/// Waits until spec, allocated amounts, status and the kernel say that, and the limit is in force; what the API says.
async fn agrees(cluster: &Cluster<'_>, limit: &str, request: &str) -> Result<KubernetesLimit> {
    let what = format!("all to say {limit}");
    let verdict = until(cluster, &what, |verdict, of| {
        let (spec, allocated, status) = (of.spec.as_ref(), of.allocated.as_ref(), of.status.as_ref());
        of.comparison() == KubernetesComparison::Agrees
            && verdict.verdict() == VerdictKind::InForce
            && [spec, status].iter().all(|of| of.is_some_and(|of| of.limit.as_deref() == Some(limit)))
            && allocated.is_some_and(|of| of.request.as_deref() == Some(request) && of.limit.is_none())
            && of.conditions.is_empty()
    });
    verdict.await?.kubernetes.context("no word of the API")
}

async fn until(
    cluster: &Cluster<'_>,
    what: &str,
    is_so: impl Fn(&Verdict, &KubernetesLimit) -> bool,
) -> Result<Verdict> {
    let is_so = |verdict: &Verdict| verdict.kubernetes.as_ref().is_some_and(|of| is_so(verdict, of));
    limit::judged(cluster.agent, &limit::of_pod(POD), what, SOON, is_so).await
}

async fn connected(cluster: &Cluster<'_>) -> Result<()> {
    let status = cluster.agent.status().await?;
    let of = status.kubernetes.context("no status of the watch")?;
    println!("{of:?}");
    ensure!(of.connected && of.pods > 0 && of.node_name == NODE && of.not_stored == 0, "{of:?}");
    Ok(())
}

fn wall() -> Result<Timestamp> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).context("a clock")?;
    Ok(Timestamp::from_unix_nanos(i64::try_from(now.as_nanos())?))
}
