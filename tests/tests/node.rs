//! The test ctx itself: a real containerd runs, execs into, stops and removes pods here, before anything is expected
//! of kwitness. What fails here is not kwitness's fault.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use kwitness_tests::context::TestContext;
use kwitness_tests::environment::{Combination, Environment};
use kwitness_tests::node::Node;
use kwitness_tests::pod::{ContainerSpec, PodSpec};
use kwitness_tests::suite::{self, Case};
use kwitness_tests::{cgroup, process};

fn main() -> Result<()> {
    let ctx = TestContext::new()?;
    let cases = Case::each(
        &ctx,
        &[("a_pods_whole_life", |ctx, combination| ctx.block_on(whole_life(&ctx.environment, combination)))],
    );
    suite::run(ctx, cases)
}

async fn whole_life(environment: &Environment, combination: Combination) -> Result<()> {
    let node = Node::start(environment, combination.driver).await?;
    let spec = PodSpec::new("ctx", combination.handler)?;
    let pod = node.run_pod(&spec).await?;

    let main = node.run(&pod, &ContainerSpec::shell("main", "exec sleep 1000")).await?;
    let pid = node.pid(&main).await?;
    let path = process::cgroup_path(pid)?;
    ensure!(path.starts_with(&pod.cgroup) && path.contains(&main), "{path} is not below {}", pod.cgroup);
    ensure!(cgroup::id(&node.cgroup_directory(&path))? > 0, "no cgroup id");
    ensure!(node.exec(&main, &["/bin/sh", "-c", "exit 5"]).await? == 5, "exec's exit code");

    let three = node.run(&pod, &ContainerSpec::shell("three", "exit 3")).await?;
    ensure!(node.wait_exited(&three).await?.exit_code == 3, "the exit code of `exit 3`");

    process::kill_pid(pid)?;
    ensure!(node.wait_exited(&main).await?.exit_code == 137, "the exit code of a killed container");

    let directory = node.cgroup_directory(&pod.cgroup);
    node.remove_pod(&pod).await?;
    ensure!(!directory.exists(), "{} is still there", directory.display());
    node.shutdown().await?;
    ensure!(!Path::new("/run/containerd").exists(), "/run/containerd is left behind");
    let left = process::find(|words| words.first().is_some_and(|word| word.contains("containerd")))
        .context("look")?;
    ensure!(left.is_empty(), "processes left behind: {left:?}");
    Ok(())
}
