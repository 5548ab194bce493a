//! crictl, straight and through the proxy.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use kwitness_tests::context::TestContext;
use kwitness_tests::environment::Combination;
use kwitness_tests::node::CONTAINERD_SOCKET;
use kwitness_tests::pod::{APP_IMAGE, PAUSE_IMAGE, PodSpec, new_uid};
use serde_json::{Value, json};

use crate::with_proxy;

/// How often an output that reports ages is compared: a second may end in between.
const TRIES: usize = 5;

struct Crictl {
    program: PathBuf,
    endpoint: String,
}

impl Crictl {
    fn new(ctx: &TestContext, socket: &Path) -> Self {
        Self {
            program: ctx.environment.job.join("bin/crictl"),
            endpoint: format!("unix://{}", socket.display()),
        }
    }

    fn output(&self, words: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.program);
        command.args(["--runtime-endpoint", &self.endpoint, "--image-endpoint", &self.endpoint]);
        command.args(["--timeout", "30s"]).args(words).stdin(Stdio::null());
        command.output().with_context(|| format!("run crictl {}", words.join(" ")))
    }

    /// What it printed; fails if it failed.
    fn run(&self, words: &[&str]) -> Result<String> {
        let output = self.output(words)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "crictl {}: {}\n{said}", words.join(" "), output.status);
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }

    /// What it printed as JSON, without what changes by itself.
    fn json(&self, words: &[&str]) -> Result<Value> {
        let text = self.run(words)?;
        let mut value = serde_json::from_str(&text).with_context(|| format!("parse {text}"))?;
        still(&mut value);
        Ok(value)
    }

    /// How it failed: its exit code and its words, without times and ids.
    fn failure(&self, words: &[&str]) -> Result<(Option<i32>, String)> {
        let output = self.output(words)?;
        ensure!(!output.status.success(), "crictl {} did not fail", words.join(" "));
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().last().unwrap_or_default();
        let words = last.split_once("msg=").map_or(last, |(_, words)| words);
        Ok((output.status.code(), without_ids(words)))
    }
}

/// Each id, of 64 hexadecimal digits, as `ID`: that of an exec is another one each time.
fn without_ids(text: &str) -> String {
    let parts = text.split_inclusive(|character: char| !character.is_ascii_hexdigit());
    parts.map(|part| if part.len() < 64 { part } else { "ID " }).collect()
}

/// Blanks times and measured values.
fn still(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match key.as_str() {
                    "timestamp" | "value" => *value = Value::Null,
                    _ => still(value),
                }
            }
        }
        Value::Array(all) => all.iter_mut().for_each(still),
        _ => {}
    }
}

fn write(directory: &Path, name: &str, value: &Value) -> Result<String> {
    let path = directory.join(name);
    std::fs::write(&path, value.to_string()).with_context(|| format!("write {}", path.display()))?;
    Ok(path.display().to_string())
}

pub(crate) async fn crictl_says_the_same(ctx: &TestContext, combination: Combination) -> Result<()> {
    with_proxy(ctx, combination, async |node, proxy| {
        let (straight, proxied) =
            (Crictl::new(ctx, Path::new(CONTAINERD_SOCKET)), Crictl::new(ctx, proxy.socket()));
        let same = |words: &[&str]| -> Result<String> {
            let mut tries = 0;
            loop {
                let (expected, found) = (straight.run(words)?, proxied.run(words)?);
                if expected == found {
                    return Ok(found);
                }
                tries += 1;
                ensure!(tries < TRIES, "crictl {}: {expected}\nand through the proxy: {found}", words.join(" "));
            }
        };
        let same_json = |words: &[&str]| -> Result<Value> {
            let (expected, found) = (straight.json(words)?, proxied.json(words)?);
            ensure!(expected == found, "crictl {}: {expected}\nand through the proxy: {found}", words.join(" "));
            Ok(found)
        };
        let same_failure = |words: &[&str]| -> Result<()> {
            let (expected, found) = (straight.failure(words)?, proxied.failure(words)?);
            ensure!(expected == found, "crictl {}: {expected:?}, through the proxy {found:?}", words.join(" "));
            Ok(())
        };

        let directory = tempfile::tempdir_in("/run").context("make a directory in /run")?;
        let at = directory.path();
        // The cgroup's place is the node's; the rest is reported by crictl's own files.
        let other = node.run_pod(&PodSpec::new("other", combination.handler)?).await?;
        let parent = other.cgroup.rsplit_once('/').map(|(parent, _)| parent).context("the pod's cgroup")?;
        let pod_file = write(at, "pod.json", &json!({
            "metadata": { "name": "tour", "namespace": "default", "uid": new_uid()?, "attempt": 1 },
            "log_directory": at,
            "labels": { "app": "tour" },
            "linux": {
                "cgroup_parent": format!("{parent}/podtour"),
                "security_context": { "namespace_options": { "network": 2, "ipc": 2 }, "privileged": true },
            },
        }))?;
        let container_file = write(at, "container.json", &json!({
            "metadata": { "name": "main" },
            "image": { "image": APP_IMAGE },
            "command": ["/bin/sh", "-c", "echo one; echo two >&2; exec sleep 1000"],
            "log_path": "main.log",
            "linux": {
                "resources": { "cpu_shares": 256, "memory_limit_in_bytes": 67_108_864 },
                "security_context": { "namespace_options": { "network": 2, "ipc": 2 } },
            },
        }))?;

        let pod = proxied.run(&["runp", "--runtime", combination.handler.name(), &pod_file])?;
        let id = proxied.run(&["create", &pod, &container_file, &pod_file])?;
        proxied.run(&["start", &id])?;

        ensure!(same(&["version"])?.contains("RuntimeName:  containerd"), "version");
        ensure!(same(&["pods"])?.contains("tour"), "pods");
        ensure!(same(&["ps", "-a"])?.contains("main"), "ps");
        ensure!(same(&["images"])?.contains("docker.io/library/bb"), "images");
        ensure!(same(&["logs", &id])?.contains("one"), "logs");
        for words in [
            &["info"][..],
            &["pods", "-o", "json"],
            &["ps", "-o", "json"],
            &["images", "-o", "json"],
            &["inspect", &id],
            &["inspectp", &pod],
            &["inspecti", PAUSE_IMAGE],
            &["imagefsinfo"],
            &["stats", "-o", "json"],
            &["statsp", "-o", "json"],
        ] {
            same_json(words)?;
        }
        for words in [
            &["inspect", "there-is-none"][..],
            &["start", &id],
            &["rmi", "there-is-none"],
            &["exec", "-s", &id, "/bin/there-is-none"],
            &["pull", "127.0.0.1:1/there-is/no-registry:1"],
        ] {
            same_failure(words)?;
        }
        ensure!(same(&["exec", "-s", &id, "/bin/echo", "in", "sync"])? == "in sync", "exec -s");
        ensure!(same(&["exec", &id, "/bin/echo", "over", "a", "stream"])? == "over a stream", "exec");
        let (code, _) = proxied.failure(&["exec", &id, "/bin/sh", "-c", "exit 7"])?;
        ensure!(straight.failure(&["exec", &id, "/bin/sh", "-c", "exit 7"])?.0 == code, "exec's exit code");

        proxied.run(&["update", "--cpu-share", "512", "--memory", "134217728", &id])?;
        let resources = &same_json(&["inspect", &id])?["status"]["resources"]["linux"];
        ensure!(resources["memoryLimitInBytes"] == json!("134217728"), "update: {resources}");

        proxied.run(&["stop", "-t", "0", &id])?;
        same_json(&["inspect", &id])?;
        proxied.run(&["rm", &id])?;
        proxied.run(&["stopp", &pod])?;
        same_json(&["inspectp", &pod])?;
        proxied.run(&["rmp", &pod])?;
        ensure!(!same(&["pods"])?.contains("tour"), "the pod is still there");
        Ok(())
    })
    .await
}
