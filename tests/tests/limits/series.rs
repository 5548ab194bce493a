//! The series. Good resizes are waited for; sabotage is judged as it stands.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use kwitness::proto::v1::{Source, Tolerance, VerdictKind};
use kwitness_tests::agent::{Agent, from_now};
use kwitness_tests::bed::Bed;
use kwitness_tests::cri::v1 as cri;
use kwitness_tests::environment::{CgroupDriver, Combination};
use kwitness_tests::node::Node;
use kwitness_tests::pod::{ContainerSpec, PodSpec, Qos, new_static_uid};
use kwitness_tests::process;
use tokio::time::{Duration, sleep};

use super::bench::{Bench, Limit, MIB, number, write};

/// At least so many resizes, for each combination.
const STEPS: usize = 40;

/// A container with a child that holds 40 MB, and that starts no other process once it has them.
const HOG: &str = "(head -c 40000000 /dev/zero; exec sleep 1000) | tail; sleep 1000";

pub(crate) async fn resizes(bed: &Bed, combination: Combination) -> Result<()> {
    let kubelet = tempfile::tempdir().context("make the kubelet's directory")?;
    let setting = format!("kubelet.directory={}", kubelet.path().display());
    bed.with_node(combination.driver, async |node| {
        bed.with_agent(&[&setting], async |agent| {
            let mut steps = ordinary(node, agent, combination).await?;
            steps += hungry(node, agent, combination).await?;
            steps += checkpoints(node, agent, combination, kubelet.path()).await?;
            steps += static_pod(node, agent, combination).await?;
            ensure!(steps >= STEPS, "only {steps} steps");
            println!("  {steps} steps");
            Ok(())
        })
        .await
    })
    .await
}

fn sleeper() -> ContainerSpec {
    let mut spec = ContainerSpec::new("main", &["/bin/sleep", "1000"]);
    spec.resources = Some(cri::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        ..Default::default()
    });
    spec
}

fn shares(shares: i64) -> cri::LinuxContainerResources {
    cri::LinuxContainerResources { cpu_shares: shares, ..Default::default() }
}

async fn ordinary(node: &Node, agent: &Agent, combination: Combination) -> Result<usize> {
    let pod = node.run_pod(&PodSpec::new("resized", combination.handler)?).await?;
    let mut watcher = agent.watch(from_now()).await?;
    let id = node.run(&pod, &sleeper()).await?;
    let mut bench = Bench::new(node, agent, &pod, id.clone()).await?;
    let b = &mut bench;
    b.in_force("memory as it was made", Limit::Memory(64 * MIB)).await?;
    b.in_force("CPU as it was made", Limit::Cpu(500)).await?;
    b.in_force("weight as it was made", Limit::Weight).await?;

    // As the kubelet goes up: pod first. Down: containers first.
    b.resize_pod(Limit::Memory(128 * MIB))?;
    b.update(Limit::Memory(96 * MIB)).await?;
    b.in_force("memory up, within the pod's", Limit::Memory(96 * MIB)).await?;
    b.update(Limit::Memory(80 * MIB)).await?;
    b.in_force("memory down", Limit::Memory(80 * MIB)).await?;
    b.resize_pod(Limit::Memory(80 * MIB))?;
    b.in_force("the pod's memory down to the container's", Limit::Memory(80 * MIB)).await?;
    b.resize_pod(Limit::Cpu(2000))?;
    for (step, milli) in [("CPU up", 1000), ("CPU down", 250), ("the least CPU", 10), ("CPU of 417m", 417)] {
        b.update(Limit::Cpu(milli)).await?;
        let verdict = b.in_force(step, Limit::Cpu(milli)).await?;
        if milli == 417 && combination.driver == CgroupDriver::Systemd {
            // Which of the two, the runtime's version decides.
            ensure!(
                matches!(verdict.tolerance(), Tolerance::Exact | Tolerance::RoundedToTenMilliseconds),
                "{verdict:?}"
            );
        }
    }
    b.update(Limit::Cpu(1234)).await?;
    b.in_force("CPU of 1234m", Limit::Cpu(1234)).await?;
    for (step, count) in [("few shares", 2), ("shares of 100m", 102), ("shares of 1", 1024)] {
        b.update_to(shares(count)).await?;
        let verdict = b.in_force(step, Limit::Weight).await?;
        ensure!(verdict.tolerance() != Tolerance::Unspecified, "{verdict:?}");
    }
    b.resize_pod(Limit::Memory(128 * MIB))?;
    b.update(Limit::Memory(70 * MIB + 5000)).await?;
    let odd = b.in_force("memory that is no whole number of pages", Limit::Memory(70 * MIB + 5000)).await?;
    ensure!(odd.tolerance() == Tolerance::RoundedToPage, "{odd:?}");
    b.update(Limit::Memory(64 * MIB)).await?;
    b.in_force("memory back", Limit::Memory(64 * MIB)).await?;
    b.update(Limit::Memory(64 * MIB)).await?;
    b.in_force("the same once more", Limit::Memory(64 * MIB)).await?;

    sabotage(b, &id).await?;
    let steps = b.steps();
    let resized = |seen: &kwitness_tests::events::Seen| seen.has(&id, "verdict");
    let seen = watcher.wait_until("verdicts that nobody asked for", resized).await?;
    ensure!(seen.count("gap") == 0, "records were lost:\n{seen}");
    node.stop_container(&id, 0).await?;
    node.remove_container(&id).await?;
    agent_forgets(b).await?;
    node.remove_pod(&pod).await?;
    Ok(steps + 1)
}

/// Each way in which a resize that was told to be done is not.
async fn sabotage(b: &mut Bench<'_>, id: &str) -> Result<()> {
    let (own, around) = (b.own.clone(), b.around.clone());
    let above = around.parent().context("a pod's cgroup without a parent")?.to_owned();

    b.resize_pod(Limit::Memory(64 * MIB))?;
    b.update(Limit::Memory(96 * MIB)).await?;
    let verdict =
        b.now("container updated but pod not", Limit::Memory(96 * MIB), VerdictKind::Shadowed).await?;
    let effective = verdict.effective.context("no effective limit")?;
    ensure!(effective.value == (64 * MIB).to_string(), "{effective:?}");
    ensure!(own.ends_with(id) || own.to_string_lossy().contains(id), "{}", own.display());
    b.resize_pod(Limit::Memory(128 * MIB))?;
    b.in_force("the pod follows", Limit::Memory(96 * MIB)).await?;

    b.resize_pod(Limit::Cpu(500))?;
    b.update(Limit::Cpu(1000)).await?;
    b.now("quota above the pod's", Limit::Cpu(1000), VerdictKind::Shadowed).await?;
    b.resize_pod(Limit::Cpu(2000))?;
    b.in_force("the pod's quota follows", Limit::Cpu(1000)).await?;

    let before = fs::read_to_string(above.join("cpu.max")).context("read the class's cpu.max")?;
    write(&above.join("cpu.max"), "30000 100000")?;
    let verdict = b.now("the class allows less", Limit::Cpu(1000), VerdictKind::Shadowed).await?;
    ensure!(verdict.reason.contains("class"), "{}", verdict.reason);
    write(&above.join("cpu.max"), before.trim())?;
    b.in_force("the class is put right", Limit::Cpu(1000)).await?;

    b.update(Limit::Memory(64 * MIB)).await?;
    b.in_force("memory before it is undone", Limit::Memory(64 * MIB)).await?;
    write(&own.join("memory.max"), "max")?;
    b.now("a write that undoes it", Limit::Memory(64 * MIB), VerdictKind::Reverted).await?;
    write(&own.join("memory.max"), &(64 * MIB).to_string())?;
    b.in_force("and one that does it again", Limit::Memory(64 * MIB)).await?;
    write(&own.join("cpu.max"), "20000 100000")?;
    b.now("a quota that is undone", Limit::Cpu(1000), VerdictKind::Reverted).await?;
    b.update(Limit::Cpu(500)).await?;
    b.in_force("another resize repairs it", Limit::Cpu(500)).await?;

    b.now("never told to anybody", Limit::Memory(77 * MIB), VerdictKind::Diverged).await?;
    let verdict =
        b.verdict("waited for in vain", Limit::Memory(77 * MIB), 300, VerdictKind::Diverged).await?;
    ensure!(verdict.disagreeing().any(|source| source == Source::Runtime), "{verdict:?}");

    // 50m in a period of two seconds, which is longer than the kernel takes.
    let refused = fs::write(own.join("cpu.max"), "100000 2000000");
    ensure!(refused.is_err(), "the kernel took a period of two seconds");
    b.now("a write that the kernel refuses", Limit::Cpu(50), VerdictKind::Rejected).await?;
    b.in_force("what was before is still in force", Limit::Cpu(500)).await?;

    let (wanted, update) = (Limit::Memory(100 * MIB), Limit::Memory(100 * MIB));
    let late = async {
        sleep(Duration::from_millis(300)).await;
        b.update(update).await
    };
    let asked = b.ask(
        Some(kwitness::proto::v1::Wanted {
            memory: Some(kwitness::proto::v1::wanted::Memory::MemoryBytes(100 * MIB)),
            cpu: None,
        }),
        20_000,
    );
    let (updated, asked) = tokio::join!(late, asked);
    updated?;
    ensure!(asked.context("call Verify")?.verdicts.len() >= 2, "no verdicts");
    b.in_force("a resize that comes while it is waited for", wanted).await?;

    let (one, other) = tokio::join!(b.update(Limit::Memory(88 * MIB)), b.update(Limit::Memory(92 * MIB)));
    one?;
    other?;
    let text = fs::read_to_string(own.join("memory.max")).context("read memory.max")?;
    let (won, lost) = if text.trim() == (88 * MIB).to_string() { (88, 92) } else { (92, 88) };
    b.in_force("the resize that won a race", Limit::Memory(won * MIB)).await?;
    let verdict = b.ask_file(Limit::Memory(lost * MIB)).await?;
    ensure!(
        matches!(verdict.verdict(), VerdictKind::Diverged | VerdictKind::Reverted),
        "the one that lost is {verdict:?}"
    );
    b.done("the resize that lost it");
    overwritten(b).await
}

/// What somebody wrote past the runtime is lost with the runtime's next update.
async fn overwritten(b: &mut Bench<'_>) -> Result<()> {
    b.update(Limit::Memory(64 * MIB)).await?;
    b.in_force("memory, told to the runtime", Limit::Memory(64 * MIB)).await?;
    write(&b.own.join("memory.max"), &(72 * MIB).to_string())?;
    b.in_force("memory, not told to the runtime", Limit::Memory(72 * MIB)).await?;
    b.update(Limit::Memory(64 * MIB)).await?;
    let step = "the runtime's next update undoes it";
    let verdict = b.now(step, Limit::Memory(72 * MIB), VerdictKind::Reverted).await?;
    ensure!(verdict.writer.is_some_and(|writer| writer.pid.is_some()), "who reverted it is not known");
    Ok(())
}

/// A container that is gone has no limits.
async fn agent_forgets(b: &Bench<'_>) -> Result<()> {
    process::wait_for("the end of the container", Duration::from_secs(60), async || {
        let answer = b.ask(None, 0).await;
        Ok(answer.is_err_and(|status| status.code() == tonic::Code::NotFound).then_some(()))
    })
    .await
}

/// A limit below what is used, with nobody whom the OOM killer may kill.
async fn hungry(node: &Node, agent: &Agent, combination: Combination) -> Result<usize> {
    let pod = node.run_pod(&PodSpec::new("hungry", combination.handler)?).await?;
    let mut spec = sleeper();
    spec.command = ["/bin/sh", "-c", HOG].map(str::to_owned).to_vec();
    let id = node.run(&pod, &spec).await?;
    let mut bench = Bench::new(node, agent, &pod, id).await?;
    let b = &mut bench;
    // From then on nobody in the container starts another process.
    process::wait_for("the end of what the child reads", Duration::from_secs(60), async || {
        Ok(b.pids()?
            .into_iter()
            .any(|pid| {
                let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                words.split(|byte| *byte == 0).any(|word| word == b"sleep")
            })
            .then_some(()))
    })
    .await?;
    number(&b.own.join("memory.current"), |bytes| bytes > 38 * MIB).await?;
    b.in_force("a container that uses most of its 64 MiB", Limit::Memory(64 * MIB)).await?;

    for pid in b.pids()? {
        write(format!("/proc/{pid}/oom_score_adj").as_ref(), "-1000")?;
    }
    // The write returns, and the limit is exceeded.
    write(&b.own.join("memory.max"), &(16 * MIB).to_string())?;
    let step = "memory below usage, nobody to kill";
    let verdict = b.now(step, Limit::Memory(16 * MIB), VerdictKind::OverLimit).await?;
    ensure!(verdict.usage.is_some_and(|usage| usage > 16 * MIB), "{verdict:?}");
    write(&b.own.join("memory.max"), &(64 * MIB).to_string())?;
    b.in_force("and raised again", Limit::Memory(64 * MIB)).await?;
    let steps = b.steps();
    node.remove_pod(&pod).await?;
    Ok(steps)
}

/// What the kubelet's checkpoints say is nearer to the intention than what the runtime says.
async fn checkpoints(
    node: &Node,
    agent: &Agent,
    combination: Combination,
    kubelet: &std::path::Path,
) -> Result<usize> {
    let pod = node.run_pod(&PodSpec::new("checkpointed", combination.handler)?).await?;
    let id = node.run(&pod, &sleeper()).await?;
    let mut bench = Bench::new(node, agent, &pod, id).await?;
    let b = &mut bench;
    let allocated = |memory: &str| {
        let resources = serde_json::json!({ "limits": { "cpu": "500m", "memory": memory } });
        let pod_entry = serde_json::json!({ "ContainerResources": { "main": resources } });
        let data = serde_json::json!({ "entries": { (pod.spec.uid.as_str()): pod_entry } });
        serde_json::json!({ "data": data.to_string(), "checksum": 0 }).to_string()
    };
    let file = kubelet.join("allocated_pods_state");
    // Without names, nobody knows which container the checkpoint means.
    write(&file, &allocated("64Mi"))?;
    known(b).await?;
    let compared = |answer: &kwitness::proto::v1::VerifyResponse| {
        let all = answer.verdicts.iter().filter_map(|of| of.verdict.clone());
        let memory: Vec<_> = all.filter(|verdict| verdict.file == "memory.max").collect();
        memory.into_iter().next().context("no verdict on memory.max")
    };
    let verdict = compared(&b.ask(None, 0).await.context("call Verify")?)?;
    ensure!(
        (verdict.verdict(), verdict.compared_with()) == (VerdictKind::InForce, Source::KubeletAllocated),
        "{verdict:?}"
    );
    b.done("in force, by the kubelet's word");
    write(&file, &allocated("96Mi"))?;
    let verdict = compared(&b.ask(None, 0).await.context("call Verify")?)?;
    ensure!(verdict.verdict() != VerdictKind::InForce, "admitted, but told to nobody: {verdict:?}");
    ensure!(verdict.disagreeing().any(|source| source == Source::Runtime), "{verdict:?}");
    b.done("admitted by the kubelet, told to nobody");
    b.update(Limit::Memory(96 * MIB)).await?;
    let verdict = compared(&b.ask(None, 10_000).await.context("call Verify")?)?;
    ensure!(verdict.verdict() == VerdictKind::InForce, "{verdict:?}");
    b.done("told to the runtime");
    write(&file, r#"{"version":"v9","data":"{}","checksum":0}"#)?;
    let answer = b.ask(None, 0).await.context("call Verify")?;
    ensure!(answer.unavailable.iter().any(|text| text.contains("\"v9\"")), "{:?}", answer.unavailable);
    b.done("a checkpoint of an unknown version is refused by name");
    fs::remove_file(&file).context("remove the checkpoint")?;
    let steps = b.steps();
    node.remove_pod(&pod).await?;
    Ok(steps)
}

/// Waits until the runtime has told the container's name.
async fn known(b: &Bench<'_>) -> Result<()> {
    process::wait_for("the container's name", Duration::from_secs(30), async || {
        let list = b.agent.list().await?;
        let mut all = list.containers.iter().filter_map(|state| state.container.as_ref());
        Ok(all.any(|of| of.id == b.container && of.name.is_some()).then_some(()))
    })
    .await
}

async fn static_pod(node: &Node, agent: &Agent, combination: Combination) -> Result<usize> {
    let mut spec = PodSpec::new("static", combination.handler)?;
    spec.uid = new_static_uid()?;
    spec.qos = Qos::Guaranteed;
    let pod = node.run_pod(&spec).await?;
    let id = node.run(&pod, &sleeper()).await?;
    let mut bench = Bench::new(node, agent, &pod, id).await?;
    let b = &mut bench;
    b.in_force("a static pod's memory", Limit::Memory(64 * MIB)).await?;
    b.update(Limit::Memory(48 * MIB)).await?;
    b.in_force("a static pod's resize", Limit::Memory(48 * MIB)).await?;
    b.resize_pod(Limit::Memory(32 * MIB))?;
    b.now("a static pod that is smaller than its container", Limit::Memory(48 * MIB), VerdictKind::Shadowed)
        .await?;
    let steps = b.steps();
    node.remove_pod(&pod).await?;
    Ok(steps)
}
