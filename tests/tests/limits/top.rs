//! Usage against a limit, in whichever hierarchy the memory controller is, with a container that is filled as the test wants.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use kwitness_api::proto::{ContainerUsage, UsageSample, amount};
use kwitness_tests::hog::{LIMIT, limited};
use kwitness_tests::prelude::*;

const MIB: usize = 1 << 20;
/// How long a container may take to be ready, and a sample to show what is so.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) async fn usage_its_limit_and_when_it_is_reached(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_both(&[], async |node, agent| {
        let out = Out::make()?;
        let pod = node.run_pod(&PodSpec::new("filling", ctx.combination.handler)?).await?;
        node.run(&pod, &limited("main", KEEP, &out)).await?;
        out.wait("gate", PATIENCE).await?;
        let gate = out.at("gate");
        let open = tokio::task::spawn_blocking(move || File::options().write(true).open(gate));
        let mut pipe = open.await?.context("open the pipe")?;
        pipe.write_all(&vec![0; 8 * MIB]).context("fill the container")?;

        let mut command = Command::new(ctx.environment.kwitness());
        command.args(["top", "-o", "json", "-w", "--interval", "500ms", "-p", "filling", "--socket"]);
        command.arg(agent.socket()).stdout(Stdio::piped());
        // Its names are known as soon as the runtime has reported them.
        wait_for("the pod's name", PATIENCE, async || {
            let containers = agent.list().await?.containers;
            let names = containers.iter().filter_map(|state| state.container.as_ref()?.name.as_deref());
            Ok(names.into_iter().any(|name| name == "main").then_some(()))
        })
        .await?;
        let mut child = command.spawn().context("start `kwitness top`")?;
        let output = BufReader::new(child.stdout.take().context("no standard output")?);
        let filled = tokio::task::spawn_blocking(move || -> Result<()> {
            let mut lines = output.lines();
            let mut next = |what: &str, is_it: &dyn Fn(&ContainerUsage) -> bool| -> Result<ContainerUsage> {
                loop {
                    let line =
                        lines.next().with_context(|| format!("no sample with {what}"))?.context("read it")?;
                    let sample: UsageSample = serde_json::from_str(&line).with_context(|| line.clone())?;
                    let [usage] = &sample.containers[..] else { anyhow::bail!("{line}") };
                    if is_it(usage) {
                        return Ok(usage.clone());
                    }
                }
            };
            let first = next("the usage", &|usage| bytes(usage).is_some_and(|bytes| bytes > 7 * MIB as u64))?;
            let limit = first.memory_limit.as_ref().and_then(|limit| limit.amount.clone());
            ensure!(limit == Some(amount::Amount::Value(LIMIT)), "{first:?}");
            pipe.write_all(&vec![0; 8 * MIB]).context("fill the container further")?;
            let rising = next("a rate", &|usage| {
                bytes(usage).is_some_and(|bytes| bytes > 15 * MIB as u64) && usage.fill_rate > Some(0)
            })?;
            ensure!(rising.time_to_limit_ms.is_some_and(|left| left > 0), "{rising:?}");
            ensure!(bytes(&rising).is_some_and(|bytes| bytes < LIMIT), "{rising:?}");
            let still = next("a rate of nothing", &|usage| usage.fill_rate.is_some_and(|rate| rate <= 0))?;
            ensure!(still.time_to_limit_ms.is_none(), "{still:?}");
            Ok(())
        });
        let filled = tokio::time::timeout(PATIENCE, filled).await;
        child.kill().context("kill `kwitness top`")?;
        child.wait().context("wait for `kwitness top`")?;
        filled.context("the samples do not show it")???;
        node.remove_pod(&pod).await
    })
    .await
}

fn bytes(usage: &ContainerUsage) -> Option<u64> {
    match usage.memory_usage.as_ref()?.amount.as_ref()? {
        amount::Amount::Value(bytes) => Some(*bytes),
        _ => None,
    }
}
