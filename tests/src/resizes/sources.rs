//! What the kubelet's checkpoints say is nearer to the intention than what the runtime says.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use kwitness_api::proto::{Source, Verdict, VerdictKind};
use serde_json::json;
use tokio::time::Duration;

use super::{Account, Limit, MIB, ResizeContext, Stage, sleeper};
use crate::kubelet::checkpoint;
use crate::pod::PodSpec;
use crate::{limit, process};

/// Verdicts by the kubelet's word.
pub(super) async fn checkpoints(stage: Stage<'_>, kubelet: &Path, account: &mut Account) -> Result<()> {
    let pod = stage.node.run_pod(&PodSpec::new("checkpointed", stage.combination.handler)?).await?;
    let id = stage.node.run(&pod, &sleeper()).await?;
    let mut context = ResizeContext::new(stage, &pod, id, account).await?;
    let ctx = &mut context;
    // Without names, a checkpoint cannot be matched to a container.
    known(ctx).await?;
    let (allocated, actuated) = (kubelet.join("allocated_pods_state"), kubelet.join("actuated_pods_state"));
    let write =
        |path: &Path, text: &str| fs::write(path, text).with_context(|| format!("write {}", path.display()));
    let of = |memory: &str| checkpoint(&pod.spec.uid, &json!({ "cpu": "500m", "memory": memory }));
    ctx.account.requested("the kubelet has admitted: memory 64 MiB");
    write(&allocated, &of("64Mi"))?;
    let verdict = judged(ctx, "in force, by the kubelet's word", 0, VerdictKind::InForce).await?;
    ensure!(verdict.compared_with() == Source::KubeletAllocated, "{verdict:?}");

    ctx.account.requested("the kubelet has admitted: memory 96 MiB");
    write(&allocated, &of("96Mi"))?;
    let step = "admitted by the kubelet, not actuated";
    let verdict = judged(ctx, step, 0, VerdictKind::Diverged).await?;
    ensure!(verdict.disagreeing().any(|source| source == Source::Runtime), "{verdict:?}");

    ctx.account.requested("the kubelet has actuated: memory 96 MiB");
    write(&actuated, &of("96Mi"))?;
    let step = "done by the kubelet's word, and not by the file";
    let verdict = judged(ctx, step, 0, VerdictKind::Diverged).await?;
    let disagreeing: Vec<_> = verdict.disagreeing().collect();
    ensure!(disagreeing == [Source::Runtime], "{verdict:?}");
    ctx.update(Limit::Memory(96 * MIB)).await?;
    judged(ctx, "sent to the runtime", 10_000, VerdictKind::InForce).await?;

    ctx.account.meddled("the checkpoint has an unknown version");
    write(&allocated, r#"{"version":"v9","data":"{}","checksum":0}"#)?;
    let answer = ctx.ask(None, 0).await.context("call Verify")?;
    let refusal = answer.unavailable.iter().find(|text| text.contains("\"v9\""));
    let refusal = refusal.with_context(|| format!("not refused: {:?}", answer.unavailable))?;
    ctx.account.reported("a checkpoint of an unknown version is refused by name", refusal).await;
    for file in [allocated, actuated] {
        fs::remove_file(&file).with_context(|| format!("remove {}", file.display()))?;
    }
    stage.node.remove_pod(&pod).await
}

/// The verdict on the container's memory, without a limit of the request's own.
async fn judged(
    ctx: &mut ResizeContext<'_>,
    step: &str,
    wait_ms: u32,
    expected: VerdictKind,
) -> Result<Verdict> {
    let verdict = limit::own(ctx.ask(None, wait_ms).await.context("call Verify")?, "memory.max")?;
    ensure!(
        ctx.account.judged(step, &verdict, expected).await,
        "step \"{step}\": not {expected:?}: {verdict:?}"
    );
    Ok(verdict)
}

async fn known(ctx: &ResizeContext<'_>) -> Result<()> {
    process::wait_for("the container's name", Duration::from_secs(30), async || {
        let list = ctx.agent.list().await?;
        let mut all = list.containers.iter().filter_map(|state| state.container.as_ref());
        Ok(all.any(|of| of.id == ctx.container && of.name.is_some()).then_some(()))
    })
    .await
}
