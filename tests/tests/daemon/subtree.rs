//! A daemon that watches a subtree of the cgroup hierarchy, beside another node's containers.

use anyhow::{Result, ensure};
use kwitness_tests::agent::{Agent, from_now};
use kwitness_tests::cgroup::TestCgroup;
use kwitness_tests::context::TestContext;
use kwitness_tests::environment::Environment;
use kwitness_tests::handmade::Kubepods;

use crate::command::{kwitness, run};

pub(crate) async fn a_neighbouring_subtree_is_not_seen(ctx: &TestContext) -> Result<()> {
    let subtree = ctx.environment.cgroup(&format!("node-{}", std::process::id()));
    let _top = TestCgroup::make(&ctx.environment.cgroup2, &subtree)?;
    let node = Environment { subtree: Some(subtree.clone()), ..ctx.environment.clone() };
    let (neighbours, own) = (Kubepods::make(&ctx.environment)?, Kubepods::make(&node)?);
    let (neighbour, container) = (neighbours.container()?, own.container()?);
    let agent = Agent::start(&node, &[]).await?;

    let found = agent.list().await?.containers;
    let ids: Vec<_> = found.iter().filter_map(|state| Some(&state.container.as_ref()?.id)).collect();
    ensure!(ids == [&container.id], "the scan found {ids:?}, not only {}", container.id);
    ensure!(agent.status().await?.cgroup_subtree == subtree, "the status names another subtree");

    let mut watcher = agent.watch(from_now()).await?;
    drop(neighbour);
    neighbours.container()?.start("/bin/true", &[])?.wait()?;
    let new = own.container()?;
    // What the neighbours did came before.
    let seen = watcher.wait_until("the container in the subtree", |seen| seen.count("created") > 0).await?;
    for event in seen.events() {
        let id = event.container.as_ref().map(|container| &container.id);
        ensure!(id == Some(&new.id), "{event:?} is not about {}", new.id);
    }
    agent.stop()
}

pub(crate) async fn a_subtree_that_is_not_there_is_an_error(ctx: &TestContext) -> Result<()> {
    let directory = tempfile::tempdir_in("/run")?;
    let mut command = kwitness(ctx, ["daemon", "--set", "kernel.subtree=/kwitness-is-not-here", "--socket"]);
    command.arg(directory.path().join("kwitness.sock"));
    run(command).await?.check(1)?.check_says(&["/kwitness-is-not-here", "kernel.subtree"])
}
