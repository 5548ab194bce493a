//! `kubectl kwitness verify deploy/NAME`: a resize of a Deployment's pods, followed to each of them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use kwitness_tests::kubelet::pod_spec;
use kwitness_tests::prelude::*;
use serde_json::{Value, json};

use crate::join::{SOON, sleeper};

const NAME: &str = "resized";
pub(crate) const LABEL: &str = "app=resized";
const PATCH: &str = r#"{"spec":{"containers":[{"name":"main","resources":
    {"requests":{"memory":"48Mi"},"limits":{"memory":"96Mi"}}}]}}"#;
const BEFORE: u64 = 64 << 20;
const AFTER: u64 = 96 << 20;
/// What another process writes into the second pod's limit.
const OTHER: u64 = 80 << 20;
const IN_FORCE: &str = "VERDICT_KIND_IN_FORCE";

/// The verdict on each pod's `memory.max`, with the amount that the API server wants.
type Verdicts = BTreeMap<String, (String, String)>;

/// The plugin, for daemons in that namespace.
pub(crate) fn plugin(
    ctx: &TestContext,
    api: &ControlPlane,
    namespace: &'static str,
) -> Result<impl Fn(&[&str]) -> Command> {
    let (program, kubeconfig) = (ctx.environment.plugin(), api.verifying_kubeconfig()?);
    Ok(move |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.arg("--kubeconfig").arg(&kubeconfig).args(["--kwitness-namespace", namespace]);
        command.args(arguments);
        command
    })
}

/// Makes the Deployment. Without controllers its pods are whatever has the label, which is all that the plugin goes by.
pub(crate) fn create(api: &ControlPlane) -> Result<()> {
    api.create(&json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": NAME, "namespace": "default" },
        "spec": {
            "replicas": 2,
            "selector": { "matchLabels": { "app": NAME } },
            "template": { "metadata": { "labels": { "app": NAME } }, "spec": pod_spec(&[sleeper()]) },
        },
    }))
}

/// Removes it, and waits for the end of its pods.
pub(crate) async fn remove(api: &ControlPlane) -> Result<()> {
    api.run(&["delete", "deployment", NAME])?;
    wait_for("the end of the Deployment's pods", SOON, async || {
        let list = api.json(&["get", "pods", "--selector", LABEL])?;
        Ok(list["items"].as_array().is_some_and(Vec::is_empty).then_some(()))
    })
    .await
}

/// Waits until the controllers have made both pods, and these run; their names.
pub(crate) async fn running(api: &ControlPlane) -> Result<Vec<String>> {
    wait_for("the Deployment's pods", SOON, async || {
        let list = api.json(&["get", "pods", "--selector", LABEL])?;
        let pods = list["items"].as_array().into_iter().flatten();
        let running = pods.filter(|pod| pod["status"]["phase"] == "Running");
        let names = running.filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned));
        let names: Vec<_> = names.collect();
        Ok((names.len() == 2).then_some(names))
    })
    .await
}

/// Resizes one pod after the other, and overwrites the limit of the second in the end. Their containers run.
pub(crate) async fn a_resize_is_followed_to_every_pod(
    api: &ControlPlane,
    node: &Node,
    [first, second]: [&str; 2],
    plugin: &impl Fn(&[&str]) -> Command,
) -> Result<()> {
    let verify = |wait: &str| -> Result<(Option<i32>, Verdicts)> {
        let mut command =
            plugin(&["verify", "deploy/resized", "-n", "default", "--wait", wait, "-o", "json"]);
        let output = command.output().context("run the plugin")?;
        let said = String::from_utf8_lossy(&output.stdout);
        let verdicts = verdicts(&said).with_context(|| format!("{output:?}"))?;
        Ok((output.status.code(), verdicts))
    };
    let in_force = |wanted: [u64; 2]| -> Verdicts {
        let pods = [first, second].into_iter().zip(wanted);
        pods.map(|(pod, wanted)| (pod.to_owned(), (IN_FORCE.to_owned(), wanted.to_string()))).collect()
    };

    // As a rollout would do it: meanwhile each pod is measured by what its own spec wants.
    for (pod, wanted) in [(first, [AFTER, BEFORE]), (second, [AFTER, AFTER])] {
        api.run(&["patch", "pod", pod, "--subresource=resize", "--patch", PATCH])?;
        let found = verify("240s")?;
        ensure!(found == (Some(0), in_force(wanted)), "after the resize of {pod}: {found:?}");
    }
    for pod in [first, second] {
        let limit = cgroup::number(&cgroup_of(node, pod).await?, "memory.max")?;
        ensure!(limit == AFTER, "{pod} has {limit}");
    }

    cgroup::write(&cgroup_of(node, second).await?, "memory.max", OTHER)?;
    let (code, found) = verify("0s")?;
    let is_in_force = |pod: &str| found.get(pod).is_some_and(|(verdict, _)| verdict == IN_FORCE);
    ensure!(is_in_force(first) && !is_in_force(second), "{found:?}");
    ensure!(code.is_some_and(|code| code != 0), "{code:?} {found:?}");
    Ok(())
}

async fn cgroup_of(node: &Node, pod: &str) -> Result<PathBuf> {
    let id = node.running(pod, "").await?.with_context(|| format!("{pod} does not run"))?;
    node.cgroup_of(&id).await
}

fn verdicts(text: &str) -> Result<Verdicts> {
    let mut found = Verdicts::new();
    for line in text.lines() {
        let of: Value = serde_json::from_str(line).context("parse a verdict")?;
        let verdict = &of["verdict"];
        if of["container"]["name"] != "main" || verdict["file"] != "memory.max" {
            continue;
        }
        let pod = of["container"]["pod"]["name"].as_str().context("a container without a pod")?;
        let desired = verdict["desired"].as_array().into_iter().flatten();
        let mut of_client = desired.filter(|desired| desired["source"] == "SOURCE_CLIENT");
        let wanted = of_client.find_map(|desired| desired["value"].as_str()).context("nothing is wanted")?;
        let kind = verdict["verdict"].as_str().context("no verdict")?;
        found.insert(pod.to_owned(), (kind.to_owned(), wanted.to_owned()));
    }
    Ok(found)
}
