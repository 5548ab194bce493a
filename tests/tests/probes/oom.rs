//! OOM kills: who, by which limit, at what usage, and how the victim came to be one.

use std::path::Path;
use std::sync::Arc;

use kwitness_core::model::{Caller, CgroupId, ExitStatus, Fact, OomChoice, OomKill, OomScope};
use kwitness_tests::prelude::*;

use crate::limits::root_with_controllers;
use crate::producer;
use crate::session::Session;
use crate::{Loaded, Scenario, by_function_hooks};

/// Each with either kind of hook at a function.
const SCENARIOS: &[Scenario] = &[
    ("a_kill_by_the_containers_own_limit", own_limit),
    ("a_kill_by_the_pods_limit", pods_limit),
    ("a_group_killed_as_one", group),
    ("a_child_process_killed", child_process),
    ("a_limit_lowered_below_usage", lowered),
];

pub fn cases(ctx: &TestContext, loaded: &Arc<Loaded>) -> impl Iterator<Item = Case> {
    let hybrid = ctx.environment.layout == CgroupLayout::Hybrid;
    let reason = hybrid.then_some("the memory controller is in v1");
    by_function_hooks(ctx, loaded, SCENARIOS).into_iter().map(move |case| case.refused(reason))
}

const PAGE: u64 = 4096;
const LIMIT: u64 = 32 << 20;

fn kills(session: &Session, id: u64) -> Vec<OomKill> {
    let facts = session.facts(id).into_iter();
    facts
        .filter_map(|fact| match fact {
            Fact::OomKill(kill) => Some((**kill).clone()),
            _ => None,
        })
        .collect()
}

fn only_kill(session: &mut Session, id: u64) -> Result<OomKill> {
    session.settle()?;
    let mut reported = kills(session, id);
    ensure!(reported.len() == 1, "{reported:#?}");
    reported.pop().context("one kill")
}

/// Starts the hog in a container's cgroup, and waits until it is killed; its pid.
fn hog(container: &Path) -> Result<u32> {
    let child = producer::spawn(container, "hog")?;
    let pid = child.pid();
    ensure!(child.wait()? == killed(), "the hog survived");
    Ok(pid)
}

fn killed() -> ExitStatus {
    ExitStatus::Signal { signal: 9, core_dumped: false }
}

/// The one kill, of that process, by that cgroup's limit of [`LIMIT`].
fn check(kill: &OomKill, pid: u32, limit: u64) -> Result<()> {
    ensure!(kill.victim.key.pid == pid, "not {pid}: {kill:#?}");
    ensure!(kill.choice == Some(OomChoice::Chosen), "{kill:#?}");
    ensure!(kill.scope == Some(OomScope::Limit(CgroupId(limit))), "not {limit}: {kill:#?}");
    let usage = kill.usage.context("no usage")?;
    ensure!(usage.limit == LIMIT / PAGE, "{kill:#?}");
    // What the kernel keeps ready for each CPU is charged, too, or given back.
    ensure!(usage.usage.abs_diff(usage.limit) <= 256 || usage.usage > usage.limit, "{kill:#?}");
    Ok(())
}

fn own_limit(session: &mut Session, parent: &Path) -> Result<()> {
    let root = root_with_controllers(parent, "oom")?;
    let container = root.sub("ctr")?;
    limit(&container)?;
    let (pid, id) = (hog(&container)?, cgroup::id(&container)?);
    let kill = only_kill(session, id)?;
    check(&kill, pid, id)?;
    let Caller { pid: by, cgroup, .. } = kill.trigger;
    ensure!((by, cgroup) == (Some(pid), Some(CgroupId(id))), "triggered by {by:?} in {cgroup:?}");
    Ok(())
}

fn limit(directory: &Path) -> Result<()> {
    cgroup::write(directory, "memory.max", LIMIT)
}

fn pods_limit(session: &mut Session, parent: &Path) -> Result<()> {
    let root = root_with_controllers(parent, "oompod")?;
    let pod = root.sub("pod")?;
    cgroup::write(&pod, "cgroup.subtree_control", "+memory")?;
    limit(&pod)?;
    let container = root.sub("pod/ctr")?;
    let pid = hog(&container)?;
    check(&only_kill(session, cgroup::id(&container)?)?, pid, cgroup::id(&pod)?)
}

fn group(session: &mut Session, parent: &Path) -> Result<()> {
    let root = root_with_controllers(parent, "oomgroup")?;
    let container = root.sub("ctr")?;
    limit(&container)?;
    cgroup::write(&container, "memory.oom.group", "1")?;
    let others = [producer::spawn(&container, "pause")?, producer::spawn(&container, "pause")?];
    let pid = hog(&container)?;
    let mut members: Vec<_> = others.iter().map(|child| child.pid()).collect();
    for other in others {
        ensure!(other.wait()? == killed(), "a member survived");
    }
    let id = cgroup::id(&container)?;
    session.settle()?;
    let reported = kills(session, id);
    ensure!(reported.len() == 3, "{reported:#?}");
    let (chosen, rest): (Vec<_>, Vec<_>) =
        reported.iter().partition(|kill| kill.choice == Some(OomChoice::Chosen));
    ensure!(chosen.len() == 1, "{reported:#?}");
    check(chosen[0], pid, id)?;
    ensure!(rest.iter().all(|kill| kill.choice == Some(OomChoice::GroupMember)), "{reported:#?}");
    let mut pids: Vec<_> = rest.iter().map(|kill| kill.victim.key.pid).collect();
    pids.sort_unstable();
    members.sort_unstable();
    ensure!(pids == members, "{reported:#?}");
    Ok(())
}

fn child_process(session: &mut Session, parent: &Path) -> Result<()> {
    let root = root_with_controllers(parent, "oomchild")?;
    let container = root.sub("ctr")?;
    limit(&container)?;
    let parent = producer::spawn(&container, "parent-of-hog")?;
    let pid = parent.pid();
    ensure!(parent.wait()? == ExitStatus::Code(0), "the parent did not survive");
    let id = cgroup::id(&container)?;
    let kill = only_kill(session, id)?;
    ensure!(kill.victim.ppid == pid, "{kill:#?}");
    check(&kill, kill.victim.key.pid, id)
}

fn lowered(session: &mut Session, parent: &Path) -> Result<()> {
    let root = root_with_controllers(parent, "oomlow")?;
    let container = root.sub("ctr")?;
    let child = producer::spawn(&container, "hog")?;
    let pid = child.pid();
    // It has what it wants: from here on only the write can hit the limit.
    child.wait_stopped()?;
    limit(&container)?;
    ensure!(child.wait()? == killed(), "the hog survived");
    let id = cgroup::id(&container)?;
    let kill = only_kill(session, id)?;
    check(&kill, pid, id)?;
    // Whoever lowered the limit, not the container.
    ensure!(kill.trigger.pid == Some(std::process::id()), "{kill:#?}");
    // The kill happened within the write.
    let order: Vec<_> = session
        .facts(id)
        .into_iter()
        .filter_map(|fact| match fact {
            Fact::LimitWrite(write) => Some(format!("{:?}", std::mem::discriminant(&write.phase))),
            Fact::OomKill(_) => Some("kill".to_owned()),
            _ => None,
        })
        .collect();
    ensure!(order.len() == 3 && order[1] == "kill", "{order:?}");
    Ok(())
}
