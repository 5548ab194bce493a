//! A node whose controllers are in cgroup v1 hierarchies.

use kwitness_api::proto::{VerdictKind, VerifyRequest};
use kwitness_tests::prelude::*;

pub(crate) async fn limits_need_cgroup_v2(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_both(&[], async |node, agent| {
        let pod = node.run_pod(&PodSpec::new("old", ctx.combination.handler)?).await?;
        let id = node.run(&pod, &ContainerSpec::new("main", &["/bin/sleep", "1000"])).await?;
        let wanted = Some(limit::wanted(Some(64 << 20), Some(500)));
        let request = VerifyRequest { wanted, ..limit::of_container(&id) };
        let answer = agent.verify(request).await.context("call Verify")?;
        let mut files = Vec::new();
        for of in &answer.verdicts {
            let verdict = of.verdict.as_ref().context("no verdict")?;
            files.push(verdict.file.as_str());
            ensure!(verdict.verdict() == VerdictKind::Unknown, "{verdict:?}");
            ensure!(verdict.reason.contains("cgroup v1"), "the reason does not say why: {}", verdict.reason);
        }
        files.sort_unstable();
        // Some runtimes report shares that were not requested.
        ensure!(
            files == ["cpu.max", "memory.max"] || files == ["cpu.max", "cpu.weight", "memory.max"],
            "{answer:?}"
        );
        node.remove_pod(&pod).await
    })
    .await
}
