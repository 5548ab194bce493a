//! The pod of `deploy/kwitness.yaml` on a node: whether it becomes ready with exactly the privileges that the chart gives it, and works.
//!
//! There is neither a controller nor a network plugin here: the test makes the pod of the DaemonSet's template, on the node's network.

use std::fs;
use std::path::Path;

use kwitness_tests::prelude::*;
use serde_json::{Value, json};

use crate::join::{Cluster, SOON, Way, with_cluster};

pub(crate) const NAMESPACE: &str = "kwitness";
const POD: &str = "kwitness-node";
/// What a runtime makes of the chart's `kwitness:VERSION`.
pub(crate) const IMAGE: &str = concat!("docker.io/library/kwitness:", env!("CARGO_PKG_VERSION"));
/// Where it pins on the host by default.
pub(crate) const PINS: &str = "/sys/fs/bpf/kwitness";
/// `CAP_BPF`, `CAP_PERFMON` and `CAP_SYS_PTRACE` of `linux/capability.h`: the chart's defaults.
const CAPABILITIES: u64 = 1 << 39 | 1 << 38 | 1 << 19;
/// Without `CAP_PERFMON`, which the daemon gives up once its probes are attached.
const KEPT: u64 = 1 << 39 | 1 << 19;

pub(crate) async fn the_charts_pod_is_ready_with_its_privileges_alone(ctx: &Testbed<'_>) -> Result<()> {
    // Nothing removes its namespace.
    ctx.stop_api().await;
    let api = ControlPlane::start(&ctx.environment).await?;
    api.create_from(&ctx.environment.job.join("deploy/kwitness.yaml"))?;
    let way = (Pleg::Generic, Way::Straight);
    let done = with_cluster(ctx, &api, way, async |cluster| {
        cluster.node.import(&ctx.environment.job.join("kwitness.tar"), IMAGE).await?;
        cluster.pod("seen").await?;
        let set = get(cluster, "daemonset", "kwitness")?;
        let template = &set["spec"]["template"];
        let mut pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": POD, "namespace": NAMESPACE, "labels": template["metadata"]["labels"] },
            "spec": template["spec"],
        });
        pod["spec"]["nodeName"] = json!(NODE);
        pod["spec"]["hostNetwork"] = json!(true);
        cluster.api.create(&pod)?;
        let id = ready(cluster).await?;
        check_privileges(cluster, &id).await?;
        check_doctor(cluster, &id).await?;
        let listed = cluster.node.exec_output(&id, &["kwitness", "ps"]).await?;
        ensure!(listed.code == 0 && listed.stdout.contains("seen"), "{listed:?}");
        ensure!(Path::new(PINS).exists(), "nothing is pinned at {PINS}");
        cluster.api.run(&["delete", "pod", POD, "--namespace", NAMESPACE, "--wait=false"])?;
        // No daemon stands by to go on with it.
        wait_for("the end of what is pinned", SOON, async || {
            tokio::time::sleep(PAUSE).await;
            Ok((!Path::new(PINS).exists()).then_some(()))
        })
        .await
    })
    .await;
    // Made by the kubelet for the pod, and kept for the next one.
    let removed = fs::remove_dir_all("/run/kwitness").context("remove the pod's directory");
    done.and(removed)
}

fn get(cluster: &Cluster<'_>, kind: &str, name: &str) -> Result<Value> {
    cluster.api.json(&["get", kind, name, "--namespace", NAMESPACE])
}

async fn ready(cluster: &Cluster<'_>) -> Result<String> {
    let mut last = Value::Null;
    let waited = wait_for("the chart's pod to be ready", SOON, async || {
        tokio::time::sleep(PAUSE).await;
        last = get(cluster, "pod", POD)?["status"].clone();
        let conditions = last["conditions"].as_array().into_iter().flatten();
        let is_ready = |condition: &Value| condition["type"] == "Ready" && condition["status"] == "True";
        Ok(conditions.into_iter().any(is_ready).then_some(()))
    })
    .await;
    waited.with_context(|| format!("{last:#}"))?;
    let running = cluster.node.running(POD, "").await?;
    running.context("the pod is ready and has no container")
}

/// What the kernel says of the process, not what the manifest requests.
async fn check_privileges(cluster: &Cluster<'_>, id: &str) -> Result<()> {
    let pid = cluster.node.pid(id).await?;
    let status = process::status(pid)?;
    ensure!(status.capbnd == Some(CAPABILITIES), "not {CAPABILITIES:x}: {status:?}");
    for held in [status.capeff, status.capprm] {
        ensure!(held == KEPT, "{held:x}, not {KEPT:x}: {status:?}");
    }
    ensure!(status.nonewprivs == Some(1) && status.seccomp == Some(2), "{status:?}");
    Ok(())
}

/// `kwitness doctor` in the pod finds a daemon that can do everything, and names what is missing on the node.
async fn check_doctor(cluster: &Cluster<'_>, id: &str) -> Result<()> {
    let doctor = cluster.node.exec_output(id, &["kwitness", "doctor", "-o", "json"]).await?;
    println!("{}", doctor.stdout);
    ensure!(doctor.code == 0, "{doctor:?}");
    let report: Value = serde_json::from_str(&doctor.stdout).context("parse the doctor's report")?;
    ensure!(report["healthy"] == true && report["daemon"] == true, "{report:#}");
    let held = report["privileges"].as_array().into_iter().flatten();
    let held: Vec<_> = held.filter_map(|privilege| privilege["name"].as_str()).collect();
    ensure!(held == ["CAP_SYS_PTRACE", "CAP_BPF"], "{held:?}: {report:#}");
    let capabilities = report["capabilities"].as_array().context("no capabilities")?;
    ensure!(!capabilities.is_empty(), "{report:#}");
    for capability in capabilities {
        let hook = capability["hook"].as_str().unwrap_or_default();
        ensure!(!hook.is_empty(), "no hook in the pod: {capability:#}");
    }
    Ok(())
}
