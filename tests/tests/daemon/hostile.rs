//! What others make in the hierarchy to be taken for a pod's container, or to keep the daemon from seeing any.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use kwitness_api::proto::{self, GapCause, Problem, event::Kind};
use kwitness_tests::cgroup::{Nest, TestCgroup};
use kwitness_tests::events;
use kwitness_tests::pod::new_uid;
use kwitness_tests::prelude::*;

use crate::manners::NOBODY;

const LIMIT: Duration = Duration::from_secs(20);

/// A cgroup that is given to a user, as systemd does with `user@UID.service`.
fn delegated(ctx: &TestContext) -> Result<TestCgroup> {
    let path = ctx.environment.cgroup(&format!("user-{}", std::process::id()));
    let cgroup = TestCgroup::make(&ctx.environment.cgroup2, &path)?;
    let directory = cgroup.directory();
    for file in [directory.to_owned(), directory.join("cgroup.procs")] {
        chown(&file, Some(NOBODY), Some(NOBODY)).with_context(|| format!("chown {}", file.display()))?;
    }
    Ok(cgroup)
}

/// Runs one of busybox' programs on a directory, as the user.
fn as_user(words: &[&str], directory: &Path) -> Result<()> {
    let mut command = Command::new("/usr/bin/busybox");
    let status = command.args(words).arg(directory).uid(NOBODY).gid(NOBODY).status();
    let status = status.with_context(|| format!("run {words:?}"))?;
    ensure!(status.success(), "{words:?} {}: {status}", directory.display());
    Ok(())
}

async fn problem(agent: &Agent, name: &str) -> Result<Option<Problem>> {
    Ok(agent.status().await?.problems.into_iter().find(|problem| problem.name == name))
}

async fn listed(agent: &Agent) -> Result<Vec<u64>> {
    let containers = agent.list().await?.containers;
    Ok(containers.into_iter().filter_map(|state| Some(state.container?.cgroup_id)).collect())
}

/// A cgroup of a user, below a name like the kubelet's, with a real container's id: nothing of it is reported, neither when it is
/// made nor after a scan.
pub(crate) async fn a_users_cgroup_is_no_container(ctx: &TestContext) -> Result<()> {
    let (kubepods, users) = (Kubepods::make(&ctx.environment)?, delegated(ctx)?);
    let container = kubepods.container()?;
    let fake = users.directory().join(format!("x-kubepods/kubepods/podfake/{}", container.id));
    let mut agent = Agent::start(&ctx.environment, &[]).await?;
    let mut watcher = agent.watch(from_now()).await?;
    as_user(&["mkdir", "-p"], &fake)?;
    let mut inside =
        Command::new("/usr/bin/busybox").args(["sleep", "1000"]).spawn().context("start sleep")?;
    let entered = cgroup::enter(&fake, inside.id());
    inside.kill().context("kill sleep")?;
    inside.wait().context("wait for sleep")?;
    entered?;
    // A process that has ended may still be in it for a moment.
    wait_for("the user's cgroup to be empty", LIMIT, async || Ok(as_user(&["rmdir"], &fake).ok())).await?;
    as_user(&["mkdir"], &fake)?;
    // All of that came before.
    let later = kubepods.container()?;
    let seen = watcher.wait_until("a real container", |seen| seen.has(&later.id, "created")).await?;
    let only = seen.events().map(|event| event.container.as_ref().map(|container| &container.id));
    ensure!(only.eq([Some(&later.id)]), "more than one real container:\n{seen}");
    drop(watcher);
    agent.restart().await?;
    let mut found = listed(&agent).await?;
    found.sort_unstable();
    let mut real = vec![container.cgroup().id()?, later.cgroup().id()?];
    real.sort_unstable();
    ensure!(found == real, "the scan found the cgroups {found:?}, not {real:?}");
    ensure!(problem(&agent, "ambiguous_container").await?.is_none(), "a user's cgroup is a problem");
    agent.stop()
}

/// Two cgroups of root that are named as one container, in two pods: the problem is named as long as there are two, and each keeps
/// its own events.
pub(crate) async fn two_cgroups_with_one_containers_id_are_reported(ctx: &TestContext) -> Result<()> {
    const NAME: &str = "ambiguous_container";
    let kubepods = Kubepods::make(&ctx.environment)?;
    ctx.with_agent(&[], async |agent| {
        let mut watcher = agent.watch(from_now()).await?;
        let first = kubepods.container()?;
        let uid = new_uid()?;
        let path = format!("kubepods/burstable/pod{uid}/{}", first.id);
        let second = kubepods.container_at(&path, &uid, &first.id)?;
        let named =
            wait_for("the problem to be named", LIMIT, async || problem(agent, NAME).await).await?.found;
        ensure!(named.contains(&first.id) && named.contains(&uid), "{named}");
        second.start("/usr/bin/busybox", &["true"])?.wait().context("wait for the program")?;
        let second_id = second.cgroup().id()?;
        drop(second);
        let is_of_second = |event: &kwitness_api::proto::Event| {
            event.container.as_ref().is_some_and(|container| container.cgroup_id == second_id)
        };
        let seen = watcher
            .wait_until("the end of the second", |seen| {
                seen.events().any(|event| is_of_second(event) && events::kind(event) == "deleted")
            })
            .await?;
        for event in seen.of(&first.id) {
            let container = event.container.as_ref().context("no container")?;
            let pod = container.pod.as_ref().map(|pod| &pod.uid);
            let expected = if is_of_second(event) { &uid } else { &first.pod_uid };
            ensure!(pod == Some(expected), "an event of pod {pod:?}, not {expected}: {event:?}");
        }
        let of_first = |event: &&kwitness_api::proto::Event| !is_of_second(event);
        let of_first: Vec<_> = seen.of(&first.id).filter(of_first).map(events::kind).collect();
        ensure!(of_first == ["created"], "of the first was reported {of_first:?}");
        wait_for("the problem to disappear", LIMIT, async || {
            Ok(problem(agent, NAME).await?.is_none().then_some(()))
        })
        .await
    })
    .await
}

/// Cgroups in each other that no path reaches, beside the pods, in the subtree that is watched: they are walked through when the
/// daemon starts and when it repairs a loss.
pub(crate) async fn a_nest_keeps_it_from_nothing(ctx: &TestContext) -> Result<()> {
    // More than the smallest ring holds, see `a_loss_is_reported_and_repaired`.
    const CONTAINERS: usize = 150;
    let (kubepods, users) = (Kubepods::make(&ctx.environment)?, delegated(ctx)?);
    let _nest = Nest::make(users.directory())?;
    let before = kubepods.container()?;
    ctx.with_agent(&["kernel.lifecycle_ring=4KiB"], async |agent| {
        ensure!(listed(agent).await? == [before.cgroup().id()?], "the first scan is not right");
        let mut watcher = agent.watch(from_now()).await?;
        let paused = agent.pause()?;
        let containers: Vec<HandMade> =
            (0..CONTAINERS).map(|_| kubepods.container()).collect::<Result<_>>()?;
        drop(paused);
        watcher
            .wait_until("the repair", |seen| {
                let last = |wanted: &str| {
                    seen.0.iter().rposition(|received| events::kind(&received.event) == wanted)
                };
                last("gap").is_some() && last("resynced") > last("gap")
            })
            .await?;
        ensure!(listed(agent).await?.len() == containers.len() + 1, "the list is not complete");
        let unreadable = problem(agent, "unreadable_cgroups").await?;
        ensure!(unreadable.is_none(), "{unreadable:?}");
        Ok(())
    })
    .await
}

/// A container makes many more groups than all containers together may have, while the daemon is stopped, so that only the kernel
/// side can keep it from that; then a container of another pod lives and ends. The first one's loss is reported as its own.
pub(crate) async fn one_containers_groups_cost_no_other_pod_an_event(ctx: &TestContext) -> Result<()> {
    const GROUPS: usize = 500;
    let kubepods = Kubepods::make(&ctx.environment)?;
    ctx.with_agent(&["kernel.tracked_capacity=64"], async |agent| {
        let mut watcher = agent.watch(from_now()).await?;
        let hog = kubepods.container()?;
        watcher.wait_until("the first container", |seen| seen.has(&hog.id, "created")).await?;
        let paused = agent.pause()?;
        for group in 0..GROUPS {
            let group = hog.cgroup().directory().join(group.to_string());
            std::fs::create_dir(&group).with_context(|| format!("make {}", group.display()))?;
        }
        let other = kubepods.container()?;
        let inner = other.cgroup().directory().join("inner");
        std::fs::create_dir(&inner).with_context(|| format!("make {}", inner.display()))?;
        other.start("/usr/bin/busybox", &["true"])?.wait().context("wait for the program")?;
        let id = other.id.clone();
        drop(other);
        drop(paused);
        let seen = watcher
            .wait_until("the end of the second, and what the first has lost", |seen| {
                seen.has(&id, "deleted") && seen.has(&hog.id, "gap")
            })
            .await?;
        seen.check_whole(&id)?;
        let full = |event: &&proto::Event| {
            let causes = [GapCause::CapacityExceeded, GapCause::TrackedSetFull];
            matches!(&event.kind, Some(Kind::Gap(gap)) if causes.contains(&gap.cause()))
        };
        for gap in seen.events().filter(full) {
            let whose = gap.container.as_ref().map(|container| &container.id);
            ensure!(whose == Some(&hog.id), "a gap of {whose:?}:\n{seen}");
        }
        let named = problem(agent, "cgroups_beyond_share").await?.context("no problem is named")?;
        ensure!(named.found.contains(&hog.id), "{named:?}");
        Ok(())
    })
    .await
}
