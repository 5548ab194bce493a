//! Daemons that come and go while containers do: what happened in between is reported, and clients keep their place.

use std::fs;

use kwitness_api::Timestamp;
use kwitness_api::proto::{self, Basis, GapCause};
use kwitness_tests::alone;
use kwitness_tests::outage::{Bpffs, Client, Lived, Storm, lasting, ledger_of};
use kwitness_tests::prelude::*;
use kwitness_tests::standby::Standby;

const LIMIT: Duration = Duration::from_secs(120);

fn main() -> Result<()> {
    handmade::become_container_if_requested()?;
    let ctx = TestContext::new()?;
    let mut cases = alone![
        nothing_is_lost_over_crashes,
        nothing_is_lost_over_upgrades,
        nothing_is_lost_over_hand_overs,
        other_records_replace_the_programs_and_keep_the_epoch,
        what_is_incomplete_or_truncated_is_replaced_by_name,
        pins_that_vanish_cost_the_outage_only,
        a_hook_that_is_not_whole_costs_its_capability_only,
        a_ledger_of_other_pins_is_refused_by_name,
    ];
    let long = Case::new("nothing_is_lost_in_a_long_storm", |ctx| {
        ctx.block_on(nothing_is_lost_in_a_long_storm(ctx))
    });
    cases.push(long.refused((!ctx.environment.long).then_some("only with --long")));
    suite::run(ctx, cases)
}

/// That each of these lives is reported exactly once, and by the kernel's own records; and that nothing was lost.
fn check_lives(seen: &Seen, lived: &[Lived], last: &str) -> Result<()> {
    seen.check_unbroken()?;
    let by_container = seen.by_container();
    for id in lived.iter().map(|lived| lived.id.as_str()).chain([last]) {
        let own = by_container.get(id).with_context(|| format!("nothing of {id}"))?;
        own.check_whole(id)?;
        let scanned = |event: &&proto::Event| matches!(event.basis(), Basis::InitialScan | Basis::RepairScan);
        ensure!(own.events().find(scanned).is_none(), "{id} was found by a scan in:\n{own}");
        check_single(own)?;
    }
    check_gaps(seen, |capability| capability == "limit_write")
}

/// That no process of a container was reported twice.
fn check_single(own: &Seen) -> Result<()> {
    let of_processes = |event: &&proto::Event| matches!(kind(event), "exec" | "exited");
    let mut of_processes: Vec<_> =
        own.events().filter(of_processes).map(|event| format!("{:?}", event.kind)).collect();
    of_processes.sort();
    let double = of_processes.windows(2).find(|pair| pair[0] == pair[1]);
    ensure!(double.is_none(), "{double:?} in:\n{own}");
    Ok(())
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
    let lasting = lasting(&kubepods, &mut watcher).await?;
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
    let last = lasting.end()?;

    let seen = client.until_deleted(&last).await.with_context(|| agent.log_tail())?;
    check_lives(&seen, &lived, &last)?;
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
    let lasting = lasting(&kubepods, &mut watcher).await?;
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
        state.container.as_ref().is_some_and(|container| container.id == lasting.id())
    };
    let now = agent.list().await?.containers;
    ensure!(
        now.iter().find(is_lasting).map(known) == before.iter().find(is_lasting).map(known),
        "{now:?} is not {before:?}"
    );
    let last = lasting.end()?;

    let seen = client.until_deleted(&last).await.with_context(|| agent.log_tail())?;
    check_lives(&seen, &lived, &last).with_context(|| agent.log_tail())?;
    let reported = seen.count("agentRestarted");
    ensure!(reported == restarts, "{reported} of {restarts} restarts in:\n{seen}");
    drop(kubepods);
    agent.stop()
}

/// Rollouts: the next daemon waits until the last one has been signalled to stop, and goes on with everything. The last one of all
/// leaves nothing, and one that is killed leaves everything.
async fn nothing_is_lost_over_hand_overs(ctx: &TestContext) -> Result<()> {
    /// Lives between two steps, at least.
    const LIVES: usize = 10;
    let (bpffs, kubepods) = (Bpffs::mount()?, Kubepods::make(&ctx.environment)?);
    let mut agent = bpffs.agent(&ctx.environment).await?;
    agent.add_argument("--unpin=unless-standby");
    agent.kill()?;
    agent.start_again().await?;
    let (first, sets) = (epoch(&agent).await?, bpffs.sets()?);
    let mut watcher = agent.watch(from_now()).await?;
    let lasting = lasting(&kubepods, &mut watcher).await?;
    let mut client = Client::new(watcher);

    let storm = Storm::begin(kubepods);
    let hand_overs = ["second", "third"];
    for name in hand_overs {
        storm.more(LIVES).await?;
        let standby = Standby::start(&agent, name).await?;
        // It is no outage: the last one still runs.
        storm.more(LIVES).await?;
        standby.take_over(&mut agent).await.with_context(|| agent.log_tail())?;
        client = client.resume(&agent).await?;
    }
    storm.more(LIVES).await?;
    agent.kill()?;
    agent.start_again().await?;
    client = client.resume(&agent).await?;
    let (kubepods, lived) = storm.end()?;
    let last = lasting.end()?;
    let seen = client.until_deleted(&last).await.with_context(|| agent.log_tail())?;
    check_lives(&seen, &lived, &last).with_context(|| agent.log_tail())?;
    let restarts = seen.count("agentRestarted");
    ensure!(restarts == hand_overs.len() + 1, "{restarts} restarts in:\n{seen}");
    ensure!(epoch(&agent).await? == first && bpffs.sets()? == sets, "{}", agent.log_tail());
    drop(kubepods);
    let ledger = ledger_of(&agent);
    agent.stop()?;
    ensure!(!bpffs.pins().exists() && !ledger.exists(), "the last one has left something");
    Ok(())
}

/// Thousands of containers, twenty crashes, and three upgrades to another layout: nothing is missing, nothing is double, and the client
/// never sees another epoch.
async fn nothing_is_lost_in_a_long_storm(ctx: &TestContext) -> Result<()> {
    /// Crashes, with upgrades in between.
    const STEPS: usize = 23;
    const UPGRADES: [usize; 3] = [5, 11, 17];
    // A guest is emulated: there, a container takes twenty times as long.
    let lives = ctx.environment.of_tier(10_000, 2_000);
    let each = lives / (STEPS + 1) + 1;
    let (bpffs, kubepods) = (Bpffs::mount()?, Kubepods::make(&ctx.environment)?);
    let mut agent = bpffs.agent(&ctx.environment).await?;
    let mut watcher = agent.watch(from_now()).await?;
    let lasting = lasting(&kubepods, &mut watcher).await?;
    let mut client = Client::new(watcher);

    let storm = Storm::begin(kubepods);
    for step in 0..STEPS {
        // Half of them while no daemon runs.
        storm.more(each / 2).await?;
        agent.kill()?;
        if let Some(upgrade) = UPGRADES.iter().position(|at| *at == step) {
            agent.add_argument(&format!("--set=kernel.tasks_ring={}MiB", 1 << upgrade));
        }
        storm.more(each - each / 2).await?;
        agent.start_again().await?;
        client = client.resume(&agent).await?;
    }
    storm.more(each).await?;
    let (kubepods, lived) = storm.end()?;
    ensure!(lived.len() >= lives, "only {} lives", lived.len());
    let last = lasting.end()?;
    let seen = client.until_deleted(&last).await.with_context(|| agent.log_tail())?;
    check_lives(&seen, &lived, &last).with_context(|| agent.log_tail())?;
    ensure!(seen.count("agentRestarted") == STEPS, "{} restarts", seen.count("agentRestarted"));
    drop(kubepods);
    agent.stop()
}

/// A program whose pin is gone, while its link's is not: it is attached anew, no exec is reported twice, and what was not recorded
/// meanwhile is a gap of that capability.
async fn a_hook_that_is_not_whole_costs_its_capability_only(ctx: &TestContext) -> Result<()> {
    const CAPABILITY: &str = "task_exec";
    let (bpffs, kubepods) = (Bpffs::mount()?, Kubepods::make(&ctx.environment)?);
    let mut agent = bpffs.agent(&ctx.environment).await?;
    let mut watcher = agent.watch(from_now()).await?;
    let container = lasting(&kubepods, &mut watcher).await?;
    agent.kill()?;
    let sets = bpffs.sets()?;
    let [set] = &sets[..] else { bail!("{sets:?}") };
    let mut removed = 0;
    for pin in fs::read_dir(set.join("programs"))? {
        let pin = pin?;
        if pin.file_name().to_string_lossy().starts_with(CAPABILITY) {
            fs::remove_file(pin.path())?;
            removed += 1;
        }
    }
    ensure!(removed > 0, "no program of {CAPABILITY} is pinned");
    agent.start_again().await?;
    let client = Client::new(watcher).resume(&agent).await?;
    ensure!(bpffs.sets()? == sets, "the rest is adopted");
    let script = "/usr/bin/busybox true; /usr/bin/busybox true";
    let id = kubepods.container()?.live(&["sh", "-c", script], 0)?;
    let last = container.end()?;
    let seen = client.until_deleted(&last).await.with_context(|| agent.log_tail())?;
    seen.check_unbroken()?;
    let by_container = seen.by_container();
    let own = by_container.get(&id).context("the container after the restart")?;
    own.check_whole(&id)?;
    check_single(own)?;
    let names = |gap: &&proto::Gap| gap.capabilities.iter().any(|capability| capability == CAPABILITY);
    ensure!(seen.gaps().filter(names).count() == 1, "no gap of {CAPABILITY} in:\n{seen}");
    check_gaps(&seen, |capability| [CAPABILITY, "limit_write"].contains(&capability))?;
    agent.stop()
}

/// A daemon that pins elsewhere, between two that pin here: what the rings here hold, it has reported already.
async fn a_ledger_of_other_pins_is_refused_by_name(ctx: &TestContext) -> Result<()> {
    let (here, elsewhere) = (Bpffs::mount()?, Bpffs::mount()?);
    let mut agent = here.agent(&ctx.environment).await?;
    let first = epoch(&agent).await?;
    agent.add_argument(&format!("--set=kernel.pin_directory={}", elsewhere.pins().display()));
    agent.restart().await?;
    ensure!(epoch(&agent).await? == first, "{}", agent.log_tail());
    agent.add_argument(&format!("--set=kernel.pin_directory={}", here.pins().display()));
    agent.restart().await?;
    ensure!(agent.log()?.contains("does not belong to the pinned programs"), "{}", agent.log_tail());
    ensure!(epoch(&agent).await? != first, "a new epoch begins");
    agent.stop()
}

async fn epoch(agent: &Agent) -> Result<String> {
    Ok(agent.list().await?.position.context("no position")?.epoch)
}

/// That nothing was lost but what no program recorded while no daemon ran, and of that only what may be.
fn check_gaps(seen: &Seen, may_be: impl Fn(&str) -> bool) -> Result<()> {
    for gap in seen.gaps() {
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
    let container = lasting(&kubepods, &mut watcher).await?;
    let before = agent.list().await?.containers;
    let sets = bpffs.sets()?;
    agent.add_argument("--set=kernel.roots=[\"kwitness-none-\"]");
    agent.restart().await?;
    ensure!(bpffs.sets()?.len() == 1 && bpffs.sets()? != sets, "{:?} instead of {sets:?}", bpffs.sets()?);
    let client = Client::new(watcher).resume(&agent).await?;
    let now = agent.list().await?.containers;
    ensure!(now.iter().map(known).eq(before.iter().map(known)), "{now:?} is not {before:?}");
    let id = container.end()?;
    let seen = client.until_deleted(&id).await?;
    check_gap_of_everything(&seen, &id)?;
    agent.stop()
}

/// That the outage is a gap of every capability, and nothing else is missing: not of that container, either.
fn check_gap_of_everything(seen: &Seen, id: &str) -> Result<()> {
    seen.check_unbroken()?;
    seen.check_whole(id)?;
    let mut capabilities = seen.gaps().flat_map(|gap| &gap.capabilities);
    ensure!(capabilities.any(|capability| capability == "cgroup_mkdir"), "no gap in:\n{seen}");
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
    let container = lasting(&kubepods, &mut watcher).await?;
    agent.restart().await?;
    let client = Client::new(watcher).resume(&agent).await?;
    let id = container.end()?;
    let seen = client.until_deleted(&id).await.with_context(|| agent.log_tail())?;
    check_gap_of_everything(&seen, &id)?;
    agent.stop()
}

/// What must not change of a container that runs on. Of its main process the pid alone, for a scan reads a process's start to the clock
/// tick only.
fn known(state: &proto::ContainerState) -> (i32, Option<Timestamp>, Option<Timestamp>, Option<u32>) {
    (state.state, state.created_at, state.started_at, state.main.as_ref().map(|main| main.pid))
}

/// A set that a crash left incomplete, and a truncated ledger: each is replaced, and the log names it.
async fn what_is_incomplete_or_truncated_is_replaced_by_name(ctx: &TestContext) -> Result<()> {
    let bpffs = Bpffs::mount()?;
    let mut agent = bpffs.agent(&ctx.environment).await?;
    let first = epoch(&agent).await?;
    agent.kill()?;
    for set in bpffs.sets()? {
        fs::remove_dir(set.join("complete"))?;
    }
    agent.start_again().await?;
    ensure!(agent.log()?.contains("it is incomplete"), "{}", agent.log_tail());
    ensure!(epoch(&agent).await? == first, "the ledger was whole");

    agent.kill()?;
    for segment in fs::read_dir(ledger_of(&agent))? {
        fs::OpenOptions::new().write(true).open(segment?.path())?.set_len(100)?;
    }
    agent.start_again().await?;
    ensure!(agent.log()?.contains("is truncated"), "{}", agent.log_tail());
    ensure!(epoch(&agent).await? != first, "a new epoch begins");
    agent.stop()
}
