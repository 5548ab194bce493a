//! A node whose controllers are in cgroup v1 hierarchies.

use anyhow::{Context as _, Result, ensure};
use kwitness_api::proto::{self, VerdictKind, wanted};
use kwitness_tests::context::TestContext;
use kwitness_tests::environment::Combination;
use kwitness_tests::pod::{ContainerSpec, PodSpec};

pub(crate) async fn limits_need_cgroup_v2(ctx: &TestContext, combination: Combination) -> Result<()> {
    ctx.with_node(combination.driver, async |node| {
        ctx.with_agent(&[], async |agent| {
            let pod = node.run_pod(&PodSpec::new("old", combination.handler)?).await?;
            let id = node.run(&pod, &ContainerSpec::new("main", &["/bin/sleep", "1000"])).await?;
            let request = proto::VerifyRequest {
                filter: Some(proto::Filter { containers: vec![id], ..Default::default() }),
                wanted: Some(proto::Wanted {
                    memory: Some(wanted::Memory::MemoryBytes(64 << 20)),
                    cpu: Some(wanted::Cpu::MilliCpu(500)),
                }),
                wait_ms: 0,
                prove_ms: 0,
            };
            let answer = agent.verify(request).await.context("call Verify")?;
            for (file, of) in ["cpu.max", "memory.max"].iter().zip(&answer.verdicts) {
                let verdict = of.verdict.as_ref().context("no verdict")?;
                ensure!(verdict.file == *file && verdict.verdict() == VerdictKind::Unknown, "{verdict:?}");
                ensure!(
                    verdict.reason.contains("cgroup v1"),
                    "the reason does not say why: {}",
                    verdict.reason
                );
            }
            // A runtime says on its own of which shares it was reported.
            ensure!(answer.verdicts.len() >= 2, "{answer:?}");
            node.remove_pod(&pod).await
        })
        .await
    })
    .await
}
