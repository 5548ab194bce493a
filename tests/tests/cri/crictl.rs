//! crictl, straight and through the proxy.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use kwitness_tests::pod::PAUSE_IMAGE;
use kwitness_tests::prelude::*;
use serde_json::Value;

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

/// What critest does by the same library is not done again: here is what a person reads.
pub(crate) async fn crictl_says_the_same(ctx: &Testbed<'_>) -> Result<()> {
    with_proxy(ctx, async |node, proxy| {
        let (straight, proxied) =
            (Crictl::new(ctx, Path::new(CONTAINERD_SOCKET)), Crictl::new(ctx, proxy.socket()));
        let pod = node.run_pod(&PodSpec::new("tour", ctx.combination.handler)?).await?;
        let id = node.run(&pod, &ContainerSpec::new("main", &["/bin/sleep", "1000"])).await?;

        for (words, part) in [
            (&["version"][..], "RuntimeName:  containerd"),
            (&["pods"], "tour"),
            (&["ps", "-a"], "main"),
            (&["images"], "docker.io/library/bb"),
            (&["exec", "-s", &id, "/bin/echo", "in", "sync"], "in sync"),
            (&["exec", &id, "/bin/echo", "over", "a", "stream"], "over a stream"),
        ] {
            let mut tries = 0;
            loop {
                let (expected, found) = (straight.run(words)?, proxied.run(words)?);
                if expected == found {
                    ensure!(found.contains(part), "crictl {}: {found}", words.join(" "));
                    break;
                }
                tries += 1;
                ensure!(
                    tries < TRIES,
                    "crictl {}: {expected}\nand through the proxy: {found}",
                    words.join(" ")
                );
            }
        }
        for words in [
            &["info"][..],
            &["pods", "-o", "json"],
            &["ps", "-o", "json"],
            &["images", "-o", "json"],
            &["inspect", &id],
            &["inspectp", &pod.sandbox],
            &["inspecti", PAUSE_IMAGE],
            &["imagefsinfo"],
            &["stats", "-o", "json"],
            &["statsp", "-o", "json"],
        ] {
            let (expected, found) = (straight.json(words)?, proxied.json(words)?);
            ensure!(
                expected == found,
                "crictl {}: {expected}\nand through the proxy: {found}",
                words.join(" ")
            );
        }
        for words in [
            &["inspect", "there-is-none"][..],
            &["start", &id],
            &["rmi", "there-is-none"],
            &["exec", "-s", &id, "/bin/there-is-none"],
            &["exec", &id, "/bin/sh", "-c", "exit 7"],
            &["pull", "127.0.0.1:1/there-is/no-registry:1"],
        ] {
            let (expected, found) = (straight.failure(words)?, proxied.failure(words)?);
            ensure!(
                expected == found,
                "crictl {}: {expected:?}, through the proxy {found:?}",
                words.join(" ")
            );
        }
        node.remove_pod(&pod).await
    })
    .await
}
