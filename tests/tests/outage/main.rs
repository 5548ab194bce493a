//! Daemons that come and go while containers do: what happened in between is reported, and clients keep their place.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kwitness_api::Timestamp;
use kwitness_api::proto::{self, Basis, GapCause, event};
use kwitness_tests::agent::{Agent, from_now};
use kwitness_tests::context::TestContext;
use kwitness_tests::events::{Seen, kind};
use kwitness_tests::handmade::{self, Kubepods};
use kwitness_tests::outage::{Bpffs, Client, Lived, Storm, lasting, ledger_of};
use kwitness_tests::process::wait_for;
use kwitness_tests::suite::{self, Case};

const LIMIT: Duration = Duration::from_secs(120);

fn main() -> Result<()> {
    handmade::become_container_if_requested()?;
    let ctx = TestContext::new()?;
    macro_rules! cases {
        ($($name:ident),* $(,)?) => {
            vec![$(Case::new(stringify!($name), |ctx| ctx.block_on($name(ctx)))),*]
        };
    }
    let cases = cases![
        nothing_is_lost_over_crashes,
        nothing_is_lost_over_upgrades,
        other_records_replace_the_programs_and_keep_the_epoch,
        what_is_half_made_or_torn_is_replaced_by_name,
        pins_that_vanish_cost_the_outage_only,
    ];
    suite::run(ctx, cases)
}

/// That each of these lives is reported exactly once, and by the kernel's own records; and that nothing was lost.
fn check_lives<'a>(seen: &Seen, ids: impl Iterator<Item = &'a str>) -> Result<()> {
    seen.check_unbroken()?;
    for id in ids {
        let milestones = seen.milestones(id);
        ensure!(
            milestones == ["created", "started", "stopped", "deleted"],
            "{id}: {milestones:?} in:\n{seen}"
        );
        let scanned = |event: &&proto::Event| matches!(event.basis(), Basis::InitialScan | Basis::RepairScan);
        ensure!(seen.of(id).find(scanned).is_none(), "{id} was found by a scan in:\n{seen}");
        let of_processes = |event: &&proto::Event| matches!(kind(event), "exec" | "exited");
        let mut of_processes: Vec<_> =
            seen.of(id).filter(of_processes).map(|event| format!("{:?}", event.kind)).collect();
        of_processes.sort();
        let double = of_processes.windows(2).find(|pair| pair[0] == pair[1]);
        ensure!(double.is_none(), "{id}: {double:?} in:\n{seen}");
    }
    check_gaps(seen, |capability| capability == "limit_write")
}

fn ids(lived: &[Lived]) -> impl Iterator<Item = &str> {
    lived.iter().map(|lived| lived.id.as_str())
}

/// Containers that come and go, while the daemon is killed again and again, and a client resumes each time: each container's life is
/// reported exactly once and by the kernel's own records, and the numbers go on without a hole.
async fn nothing_is_lost_over_crashes(ctx: &TestContext) -> Result<()> {
    const CRASHES: usize = 5;
    /// Lives between two crashes, at least.
    const LIVES: usize = 10;
    let (bpffs, kubepods) = (Bpffs::mount()?, Kubepods::make(&ctx.environment)?);
    let mut agent = bpffs.agent(&ctx.environment).await?;
    let mut watcher = agent.watch(from_now()).await?;
    // One that lives through all of it: its start is older than every crash.
    let (lasting, mut sleeper) = lasting(&kubepods, &mut watcher).await?;
    let mut client = Client::new(watcher);

    let storm = Storm::begin(kubepods);
    for _ in 0..CRASHES {
        storm.more(LIVES).await?;
        agent.kill()?;
        storm.more(LIVES).await?;
        agent.start_again().await?;
        client = client.resume(&agent).await?;
    }
    let (kubepods, lived) = storm.end()?;
    ensure!(lived.len() >= 2 * CRASHES * LIVES, "only {} lives", lived.len());
    sleeper.kill()?;
    sleeper.wait()?;
    let last = lasting.id.clone();
    drop(lasting);

    let seen = client.until_deleted(&last).await.with_context(|| agent.log_tail())?;
    check_lives(&seen, ids(&lived).chain([last.as_str()]))?;
    ensure!(seen.count("agentRestarted") == CRASHES, "{} restarts in:\n{seen}", seen.count("agentRestarted"));
    // What the last daemon replays is what its predecessors sent, times included.
    let replayed = agent.replay().await?;
    let position = |event: &proto::Event| event.position.as_ref().map(|position| position.seq);
    let first = seen.events().next().and_then(position);
    let replayed: Vec<_> = replayed.events().skip_while(|event| position(event) != first).collect();
    ensure!(seen.events().zip(&replayed).all(|(sent, again)| sent == *again), "other events than were sent");
    ensure!(replayed.len() >= seen.0.len(), "{} of {} events are replayed", replayed.len(), seen.0.len());
    drop(kubepods);
    agent.stop()
}

/// Upgrades to another layout of the maps, while containers come and go: after an ordinary end, after a crash, and with a crash of
/// the new daemon right after its start. Nothing is lost, and nothing is reported twice.
async fn nothing_is_lost_over_upgrades(ctx: &TestContext) -> Result<()> {
    /// Each makes another layout, with the same records.
    const UPGRADES: [&str; 3] =
        ["kernel.tasks_ring=4MiB", "kernel.forks_ring=4MiB", "kernel.lifecycle_ring=16MiB"];
    /// Lives between two steps, at least.
    const LIVES: usize = 10;
    let (bpffs, kubepods) = (Bpffs::mount()?, Kubepods::make(&ctx.environment)?);
    let mut agent = bpffs.agent(&ctx.environment).await?;
    let mut watcher = agent.watch(from_now()).await?;
    let (lasting, mut sleeper) = lasting(&kubepods, &mut watcher).await?;
    let before = agent.list().await?.containers;
    let mut client = Client::new(watcher);

    let storm = Storm::begin(kubepods);
    let (mut restarts, mut sets) = (0, bpffs.sets()?);
    for (upgrade, setting) in UPGRADES.into_iter().enumerate() {
        storm.more(LIVES).await?;
        if upgrade == 0 {
            agent.process().terminate(LIMIT)?;
        } else {
            agent.kill()?;
        }
        storm.more(LIVES).await?;
        agent.add_argument(&format!("--set={setting}"));
        agent.start_again().await?;
        restarts += 1;
        if upgrade == 2 {
            // Either before the new programs have taken over, or right after: neither is lost or double.
            agent.kill()?;
            storm.more(LIVES).await?;
            agent.start_again().await?;
            restarts += 1;
        }
        client = client.resume(&agent).await?;
        let taken_over = async || Ok(bpffs.sets()?.into_iter().all(|set| !sets.contains(&set)).then_some(()));
        let taken_over = wait_for("the new programs to take over", LIMIT, taken_over).await;
        taken_over.with_context(|| agent.log_tail())?;
        sets = bpffs.sets()?;
        ensure!(sets.len() == 1, "{sets:?}");
    }
    storm.more(LIVES).await?;
    let (kubepods, lived) = storm.end()?;
    let is_lasting = |state: &&proto::ContainerState| {
        state.container.as_ref().is_some_and(|container| container.id == lasting.id)
    };
    let now = agent.list().await?.containers;
    ensure!(
        now.iter().find(is_lasting).map(known) == before.iter().find(is_lasting).map(known),
        "{now:?} is not {before:?}"
    );
    sleeper.kill()?;
    sleeper.wait()?;
    let last = lasting.id.clone();
    drop(lasting);

    let seen = client.until_deleted(&last).await.with_context(|| agent.log_tail())?;
    check_lives(&seen, ids(&lived).chain([last.as_str()])).with_context(|| agent.log_tail())?;
    let reported = seen.count("agentRestarted");
    ensure!(reported == restarts, "{reported} of {restarts} restarts in:\n{seen}");
    drop(kubepods);
    agent.stop()
}

/// That nothing was lost but what no program recorded while no daemon ran, and of that only what may be.
fn check_gaps(seen: &Seen, may_be: impl Fn(&str) -> bool) -> Result<()> {
    for event in seen.events() {
        let Some(event::Kind::Gap(gap)) = &event.kind else { continue };
        ensure!(gap.cause() == GapCause::AgentDown, "{gap:?} in:\n{seen}");
        ensure!(gap.capabilities.iter().all(|capability| may_be(capability)), "{gap:?}");
    }
    Ok(())
}

/// Programs that record something else: they are replaced, which is a gap that says so. The client keeps its place, and a container
/// that runs keeps its start.
async fn other_records_replace_the_programs_and_keep_the_epoch(ctx: &TestContext) -> Result<()> {
    let (bpffs, kubepods) = (Bpffs::mount()?, Kubepods::make(&ctx.environment)?);
    let mut agent = bpffs.agent(&ctx.environment).await?;
    let mut watcher = agent.watch(from_now()).await?;
    let (container, mut sleeper) = lasting(&kubepods, &mut watcher).await?;
    let before = agent.list().await?.containers;
    let sets = bpffs.sets()?;
    agent.add_argument("--set=kernel.roots=[\"kwitness-none-\"]");
    agent.restart().await?;
    ensure!(bpffs.sets()?.len() == 1 && bpffs.sets()? != sets, "{:?} instead of {sets:?}", bpffs.sets()?);
    let client = Client::new(watcher).resume(&agent).await?;
    let now = agent.list().await?.containers;
    ensure!(now.iter().map(known).eq(before.iter().map(known)), "{now:?} is not {before:?}");
    sleeper.kill()?;
    sleeper.wait()?;
    let id = container.id.clone();
    drop(container);
    let seen = client.until_deleted(&id).await?;
    seen.check_unbroken()?;
    ensure!(seen.milestones(&id) == ["created", "started", "stopped", "deleted"], "in:\n{seen}");
    check_gap_of_everything(&seen)?;
    agent.stop()
}

/// That the outage is a gap of every capability.
fn check_gap_of_everything(seen: &Seen) -> Result<()> {
    let mut gaps = seen.events().filter_map(|event| match &event.kind {
        Some(event::Kind::Gap(gap)) => Some(gap),
        _ => None,
    });
    ensure!(
        gaps.any(|gap| gap.capabilities.iter().any(|capability| capability == "cgroup_mkdir")),
        "no gap in:\n{seen}"
    );
    check_gaps(seen, |_| true)
}

/// Pins that are removed while the daemon runs: its programs stay attached, and the next daemon reports what was not recorded.
async fn pins_that_vanish_cost_the_outage_only(ctx: &TestContext) -> Result<()> {
    let (bpffs, kubepods) = (Bpffs::mount()?, Kubepods::make(&ctx.environment)?);
    let mut agent = bpffs.agent(&ctx.environment).await?;
    let mut watcher = agent.watch(from_now()).await?;
    for set in bpffs.sets()? {
        fs::remove_dir_all(&set).with_context(|| format!("remove {}", set.display()))?;
    }
    let (container, mut sleeper) = lasting(&kubepods, &mut watcher).await?;
    agent.restart().await?;
    let client = Client::new(watcher).resume(&agent).await?;
    sleeper.kill()?;
    sleeper.wait()?;
    let id = container.id.clone();
    drop(container);
    let seen = client.until_deleted(&id).await.with_context(|| agent.log_tail())?;
    seen.check_unbroken()?;
    ensure!(seen.milestones(&id) == ["created", "started", "stopped", "deleted"], "in:\n{seen}");
    check_gap_of_everything(&seen)?;
    agent.stop()
}

/// What must not change of a container that runs on. Of its main process the pid alone, for a scan reads a process's start to the clock
/// tick only.
fn known(state: &proto::ContainerState) -> (i32, Option<Timestamp>, Option<Timestamp>, Option<u32>) {
    (state.state, state.created_at, state.started_at, state.main.as_ref().map(|main| main.pid))
}

/// A set that a crash left half made, and a ledger that is torn: each is replaced, and the log names it.
async fn what_is_half_made_or_torn_is_replaced_by_name(ctx: &TestContext) -> Result<()> {
    let bpffs = Bpffs::mount()?;
    let mut agent = bpffs.agent(&ctx.environment).await?;
    let epoch = async |agent: &Agent| {
        Ok::<_, anyhow::Error>(agent.list().await?.position.context("no position")?.epoch)
    };
    let first = epoch(&agent).await?;
    agent.kill()?;
    for set in bpffs.sets()? {
        fs::remove_dir(set.join("complete"))?;
    }
    agent.start_again().await?;
    ensure!(agent.log()?.contains("it is half made"), "{}", agent.log_tail());
    ensure!(epoch(&agent).await? == first, "the ledger was whole");

    agent.kill()?;
    for segment in fs::read_dir(ledger_of(&agent))? {
        fs::OpenOptions::new().write(true).open(segment?.path())?.set_len(100)?;
    }
    agent.start_again().await?;
    ensure!(agent.log()?.contains("is torn"), "{}", agent.log_tail());
    ensure!(epoch(&agent).await? != first, "a new epoch begins");
    agent.stop()
}
