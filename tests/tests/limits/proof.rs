//! Proof by behaviour, with a container that takes all the CPU time that it gets.

use std::process::Command;

use kwitness_api::proto::{self, Proof, ProofKind, VerdictKind};
use kwitness_tests::cri::v1 as cri;
use kwitness_tests::prelude::*;

const MIB: u64 = 1 << 20;
const MILLI: u64 = 200;
/// How long usage is watched.
const INTERVAL: u32 = 3000;

pub(crate) async fn a_quota_is_kept_or_it_is_reported(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_both(&[], async |node, agent| {
        let pod = node.run_pod(&PodSpec::new("busy", ctx.combination.handler)?).await?;
        let mut spec = ContainerSpec::shell("main", "while :; do :; done");
        spec.resources = Some(cri::LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: (MILLI * 100) as i64,
            memory_limit_in_bytes: (64 * MIB) as i64,
            ..Default::default()
        });
        let id = node.run(&pod, &spec).await?;

        let (verdict, proof) = proved(agent, &id, "cpu.max").await?;
        ensure!(verdict == VerdictKind::InForce, "{verdict:?}");
        ensure!(proof.proof() == ProofKind::Kept, "{proof:?}");
        ensure!(proof.enforced.is_some_and(|times| times > 5), "{proof:?}");
        // It takes what it may: less than that would prove nothing.
        let share = INTERVAL as u64 * MILLI;
        ensure!(proof.used.is_some_and(|used| used > share / 2), "{proof:?}");
        let (_, proof) = proved(agent, &id, "memory.max").await?;
        ensure!(proof.proof() == ProofKind::NotReached, "a shell needs no 64 MiB: {proof:?}");

        let own = node.own_cgroup_of(&id).await?;
        // crun's inner cgroup keeps a quota of its own.
        for directory in [own.clone(), own.join("container")] {
            if directory.is_dir() {
                cgroup::write(&directory, "cpu.max", "max")?;
            }
        }
        let (verdict, proof) = proved(agent, &id, "cpu.max").await?;
        ensure!(verdict != VerdictKind::InForce, "{verdict:?}");
        ensure!(proof.proof() == ProofKind::Exceeded, "{proof:?}");

        // The same by the command.
        let mut command = Command::new(ctx.environment.kwitness());
        command.args(["verify", "busy", "--container", "main", "--cpu", "200m", "--prove", "2s", "--socket"]);
        let output = command.arg(agent.socket()).output().context("run `kwitness verify`")?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.code() == Some(16), "{}\n{text}", output.status);
        ensure!(text.contains("EXCEEDED for 2."), "{text}");
        node.remove_pod(&pod).await
    })
    .await
}

/// The verdict on a file of a container, and what its usage proves.
async fn proved(agent: &Agent, id: &str, file: &str) -> Result<(VerdictKind, Proof)> {
    let wanted = Some(limit::wanted(Some(64 * MIB), Some(MILLI)));
    let request = proto::VerifyRequest { wanted, prove_ms: INTERVAL, ..limit::of_container(id) };
    let answer = agent.verify(request).await.context("call Verify")?;
    let of = |of: &proto::VerdictOf| of.verdict.as_ref().is_some_and(|verdict| verdict.file == file);
    let found = answer.verdicts.into_iter().find(of).with_context(|| format!("no verdict on {file}"))?;
    let verdict = found.verdict.map_or(VerdictKind::Unspecified, |verdict| verdict.verdict());
    Ok((verdict, found.proof.with_context(|| format!("no proof on {file}"))?))
}
