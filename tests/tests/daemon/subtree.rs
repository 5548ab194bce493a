//! A daemon that watches a subtree of the cgroup hierarchy, beside another node's containers.

use std::collections::BTreeMap;

use kwitness_tests::cgroup::TestCgroup;
use kwitness_tests::prelude::*;

use crate::command::{kwitness, run};

/// The environment of a node whose containers are all in a subtree of ours.
fn node(ctx: &TestContext) -> Result<(TestCgroup, Environment)> {
    let subtree = ctx.environment.cgroup(&format!("node-{}", std::process::id()));
    let top = TestCgroup::make(&ctx.environment.cgroup2, &subtree)?;
    Ok((top, Environment { subtree: Some(subtree), ..ctx.environment.clone() }))
}

/// Runs a program in the container to its end.
fn run_program(container: &HandMade) -> Result<()> {
    let status = container.start("/usr/bin/busybox", &["true"])?.wait().context("wait for the program")?;
    ensure!(status.success(), "the container's program ended with {status}");
    Ok(())
}

pub(crate) async fn a_neighbouring_subtree_is_not_seen(ctx: &TestContext) -> Result<()> {
    let (_top, node) = node(ctx)?;
    let (neighbours, own) = (Kubepods::make(&ctx.environment)?, Kubepods::make(&node)?);
    let (neighbour, container) = (neighbours.container()?, own.container()?);
    let agent = Agent::start(&node, &[]).await?;

    let found = agent.list().await?.containers;
    let ids: Vec<_> = found.iter().filter_map(|state| Some(&state.container.as_ref()?.id)).collect();
    ensure!(ids == [&container.id], "the scan found {ids:?}, not only {}", container.id);
    ensure!(Some(agent.status().await?.cgroup_subtree) == node.subtree, "the status names another subtree");

    let mut watcher = agent.watch(from_now()).await?;
    drop(neighbour);
    run_program(&neighbours.container()?)?;
    let new = own.container()?;
    // What the neighbours did came before.
    let seen = watcher.wait_until("the container in the subtree", |seen| seen.count("created") > 0).await?;
    for event in seen.events() {
        let id = event.container.as_ref().map(|container| &container.id);
        ensure!(id == Some(&new.id), "{event:?} is not about {}", new.id);
    }
    agent.stop()
}

/// Many more cgroups than the daemon has room for, all of them a neighbour's: neither the ring nor the set of tracked cgroups
/// is the fuller for them, and what the daemon counts is what one container of its own costs.
pub(crate) async fn a_storm_in_a_neighbouring_subtree_changes_nothing(ctx: &TestContext) -> Result<()> {
    const NEIGHBOURS: usize = 1000;
    const WITH_PROCESS: usize = 50;
    let (_top, node) = node(ctx)?;
    let (neighbours, own) = (Kubepods::make(&ctx.environment)?, Kubepods::make(&node)?);
    let agent = Agent::start(&node, &["kernel.lifecycle_ring=4KiB", "kernel.tracked_capacity=64"]).await?;
    let mut watcher = agent.watch(from_now()).await?;
    let mut known = Vec::new();
    // What a container of its own is counted as.
    let mut cost = async |number| -> Result<BTreeMap<String, u64>> {
        let before = counted(&agent).await?;
        known.push(own.container()?);
        watcher.wait_until("its own container", |seen| seen.count("created") == number).await?;
        let after = counted(&agent).await?;
        Ok(after.into_iter().map(|(name, count)| (name.clone(), count - before[&name])).collect())
    };
    let quiet = cost(1).await?;
    ensure!(quiet["records"] > 0, "{quiet:?}");

    let mut storm = (0..NEIGHBOURS).map(|_| neighbours.container()).collect::<Result<Vec<_>>>()?;
    for neighbour in &storm[..WITH_PROCESS] {
        run_program(neighbour)?;
    }
    // A half stays, and a half is gone.
    storm.truncate(NEIGHBOURS / 2);
    let stormy = cost(2).await?;
    ensure!(stormy == quiet, "in a storm: {stormy:?}, without: {quiet:?}");

    let seen = watcher.seen();
    seen.check_unbroken()?;
    ensure!(seen.events().count() == 2, "more than its own containers:\n{seen}");
    let listed = agent.list().await?.containers;
    let mut listed: Vec<_> = listed.into_iter().filter_map(|state| Some(state.container?.id)).collect();
    let mut expected: Vec<_> = known.iter().map(|container| container.id.clone()).collect();
    listed.sort();
    expected.sort();
    ensure!(listed == expected, "the list has {listed:?}");
    agent.stop()
}

/// All that the daemon counts of what the kernel has recorded, its losses included.
async fn counted(agent: &Agent) -> Result<BTreeMap<String, u64>> {
    let status = agent.status().await?;
    let of_kernel = |name: &str| matches!(name, "records" | "scans") || name.starts_with("lifecycle_");
    let mut counted = status.counters;
    counted.retain(|name, _| of_kernel(name));
    counted.insert("lost".to_owned(), status.lost.values().sum());
    counted.insert("events".to_owned(), status.journal.map_or(0, |journal| journal.last_seq));
    Ok(counted.into_iter().collect())
}

pub(crate) async fn a_subtree_that_is_not_there_is_an_error(ctx: &TestContext) -> Result<()> {
    let directory = tempfile::tempdir_in("/run")?;
    let mut command = kwitness(ctx, ["daemon", "--set", "kernel.subtree=/kwitness-is-not-here", "--socket"]);
    command.arg(directory.path().join("kwitness.sock"));
    run(command).await?.check(1)?.check_says(&["/kwitness-is-not-here", "kernel.subtree"])
}
