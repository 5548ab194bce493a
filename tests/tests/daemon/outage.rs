//! Daemons that come and go while containers do: what happened in between is reported, and clients keep their place.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kwitness_api::proto::{self, Basis, GapCause, event};
use kwitness_tests::agent::{Agent, Watcher, after, from_now};
use kwitness_tests::context::TestContext;
use kwitness_tests::events::Seen;
use kwitness_tests::handmade::Kubepods;
use kwitness_tests::process::wait_for;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;

use crate::command::{kwitness, run};

const LIMIT: Duration = Duration::from_secs(120);

/// A BPF file system of the test's own; what is pinned in it ends with it.
struct Bpffs(tempfile::TempDir);

impl Bpffs {
    fn mount() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("kwitness-bpffs-").tempdir_in("/run")?;
        mount(Some("bpf"), directory.path(), Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mount a BPF file system at {}", directory.path().display()))?;
        Ok(Self(directory))
    }

    /// Where the daemon pins.
    fn pins(&self) -> PathBuf {
        self.0.path().join("kwitness")
    }

    /// The sets that are pinned.
    fn sets(&self) -> Result<Vec<PathBuf>> {
        let pins = self.pins();
        let entries = fs::read_dir(&pins).with_context(|| format!("list {}", pins.display()))?;
        Ok(entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?)
    }

    async fn agent(&self, ctx: &TestContext) -> Result<Agent> {
        let directory = format!("kernel.pin_directory={}", self.pins().display());
        Agent::start(&ctx.environment, &["kernel.pin=auto", &directory]).await
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        if let Err(error) = umount2(self.0.path(), MntFlags::MNT_DETACH) {
            eprintln!("cannot unmount {}: {error}", self.0.path().display());
        }
    }
}

/// What a client has that resumes whenever its stream ends.
struct Client {
    watcher: Watcher,
    before: Seen,
}

impl Client {
    async fn resume(self, agent: &Agent) -> Result<Self> {
        let mut before = self.before;
        before.0.extend(self.watcher.seen().0);
        let last = before.0.last().and_then(|received| received.event.position.clone());
        let watcher = agent.watch(after(&last.context("nothing was received")?)).await?;
        Ok(Self { watcher, before })
    }

    /// Everything, once a container's end has come.
    async fn until_deleted(mut self, id: &str) -> Result<Seen> {
        let mut all = self.before;
        let ended = |seen: &Seen| seen.milestones(id).contains(&"deleted");
        if !ended(&all) {
            self.watcher.wait_until("the last container's end", ended).await?;
        }
        all.0.extend(self.watcher.seen().0);
        Ok(all)
    }
}

/// Containers that come and go, while the daemon is killed again and again, and a client resumes each time: each container's life is
/// reported exactly once and by the kernel's own records, and the numbers go on without a hole.
pub(crate) async fn nothing_is_lost_over_crashes(ctx: &TestContext) -> Result<()> {
    const CRASHES: usize = 5;
    /// Lives between two crashes, at least.
    const LIVES: usize = 10;
    let (bpffs, kubepods) = (Bpffs::mount()?, Kubepods::make(&ctx.environment)?);
    let mut agent = bpffs.agent(ctx).await?;
    let mut watcher = agent.watch(from_now()).await?;
    // One that lives through all of it: its start is older than every crash.
    let lasting = kubepods.container()?;
    let mut sleeper = lasting.start("/usr/bin/busybox", &["sleep", "1000"])?;
    watcher
        .wait_until("the lasting container", |seen| seen.milestones(&lasting.id).contains(&"started"))
        .await?;
    let mut client = Client { watcher, before: Seen(Vec::new()) };

    let (stop, lived) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (stopped, count) = (Arc::clone(&stop), Arc::clone(&lived));
    let storm = std::thread::spawn(move || -> Result<(Kubepods, Vec<String>)> {
        let mut ids = Vec::new();
        while !stopped.load(Ordering::Relaxed) {
            let container = kubepods.container()?;
            container.start("/usr/bin/busybox", &["true"])?.wait()?;
            ids.push(container.id.clone());
            drop(container);
            count.fetch_add(1, Ordering::Relaxed);
        }
        Ok((kubepods, ids))
    });
    let more = async |lives: usize| {
        let until = lived.load(Ordering::Relaxed) + lives;
        let enough =
            async || Ok((lived.load(Ordering::Relaxed) >= until || storm.is_finished()).then_some(()));
        wait_for("the storm", LIMIT, enough).await
    };
    for _ in 0..CRASHES {
        more(LIVES).await?;
        agent.kill()?;
        more(LIVES).await?;
        agent.start_again().await?;
        client = client.resume(&agent).await?;
    }
    stop.store(true, Ordering::Relaxed);
    let (kubepods, ids) = storm.join().map_err(|_| anyhow::anyhow!("the storm panicked"))??;
    sleeper.kill()?;
    sleeper.wait()?;
    let last = lasting.id.clone();
    drop(lasting);

    let seen = client.until_deleted(&last).await.with_context(|| agent.log_tail())?;
    seen.check_unbroken()?;
    ensure!(ids.len() >= 2 * CRASHES * LIVES, "only {} lives", ids.len());
    for id in ids.iter().chain([&last]) {
        let milestones = seen.milestones(id);
        ensure!(
            milestones == ["created", "started", "stopped", "deleted"],
            "{id}: {milestones:?} in:\n{seen}"
        );
        let scanned = |event: &&proto::Event| matches!(event.basis(), Basis::InitialScan | Basis::RepairScan);
        ensure!(seen.of(id).find(scanned).is_none(), "{id} was found by a scan in:\n{seen}");
    }
    ensure!(seen.count("agentRestarted") == CRASHES, "{} restarts in:\n{seen}", seen.count("agentRestarted"));
    check_gaps(&seen, |capability| capability == "limit_write")?;
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

/// That nothing was lost but what no program recorded while no daemon ran, and of that only what may be.
fn check_gaps(seen: &Seen, may_be: impl Fn(&str) -> bool) -> Result<()> {
    for event in seen.events() {
        let Some(event::Kind::Gap(gap)) = &event.kind else { continue };
        ensure!(gap.cause() == GapCause::AgentDown, "{gap:?} in:\n{seen}");
        ensure!(gap.capabilities.iter().all(|capability| may_be(capability)), "{gap:?}");
    }
    Ok(())
}

/// An upgrade that needs other maps: the programs are replaced, which is a gap that says so. The client keeps its place, and a
/// container that runs keeps its start.
pub(crate) async fn another_layout_replaces_the_programs_and_keeps_the_epoch(
    ctx: &TestContext,
) -> Result<()> {
    let (bpffs, kubepods) = (Bpffs::mount()?, Kubepods::make(&ctx.environment)?);
    let mut agent = bpffs.agent(ctx).await?;
    let mut watcher = agent.watch(from_now()).await?;
    let container = kubepods.container()?;
    let mut sleeper = container.start("/usr/bin/busybox", &["sleep", "1000"])?;
    let started = |seen: &Seen| seen.milestones(&container.id).contains(&"started");
    watcher.wait_until("the start", started).await?;
    let before = agent.list().await?.containers;
    let sets = bpffs.sets()?;
    agent.add_argument("--set=kernel.tasks_ring=4MiB");
    agent.restart().await?;
    ensure!(bpffs.sets()?.len() == 1 && bpffs.sets()? != sets, "{:?} instead of {sets:?}", bpffs.sets()?);
    let client = Client { watcher, before: Seen(Vec::new()) }.resume(&agent).await?;
    let now = agent.list().await?.containers;
    // A scan reads a process's start to the clock tick only.
    let known = |containers: &[proto::ContainerState]| -> Vec<_> {
        let of =
            |state: &proto::ContainerState| (state.state, state.created_at, state.started_at, pid(state));
        containers.iter().map(of).collect()
    };
    ensure!(known(&now) == known(&before), "{now:?} is not {before:?}");
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
pub(crate) async fn pins_that_vanish_cost_the_outage_only(ctx: &TestContext) -> Result<()> {
    let (bpffs, kubepods) = (Bpffs::mount()?, Kubepods::make(&ctx.environment)?);
    let mut agent = bpffs.agent(ctx).await?;
    let mut watcher = agent.watch(from_now()).await?;
    for set in bpffs.sets()? {
        fs::remove_dir_all(&set).with_context(|| format!("remove {}", set.display()))?;
    }
    let container = kubepods.container()?;
    let mut sleeper = container.start("/usr/bin/busybox", &["sleep", "1000"])?;
    let started = |seen: &Seen| seen.milestones(&container.id).contains(&"started");
    watcher.wait_until("the start", started).await?;
    agent.restart().await?;
    let client = Client { watcher, before: Seen(Vec::new()) }.resume(&agent).await?;
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

fn pid(state: &proto::ContainerState) -> Option<u32> {
    state.main.as_ref().map(|main| main.pid)
}

/// A set that a crash left half made, and a ledger that is torn: each is replaced, and the log names it.
pub(crate) async fn what_is_half_made_or_torn_is_replaced_by_name(ctx: &TestContext) -> Result<()> {
    let bpffs = Bpffs::mount()?;
    let mut agent = bpffs.agent(ctx).await?;
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

/// A daemon that ends leaves its programs and its ledger; `uninstall-pins` removes them, and so does `--unpin`.
pub(crate) async fn nothing_is_left_behind(ctx: &TestContext) -> Result<()> {
    let bpffs = Bpffs::mount()?;
    let mut agent = bpffs.agent(ctx).await?;
    let directory = format!("kernel.pin_directory={}", bpffs.pins().display());
    let socket = agent.socket().to_owned();
    let uninstall = async || {
        let mut command = kwitness(ctx, ["uninstall-pins", "--set", &directory, "--socket"]);
        command.arg(&socket);
        run(command).await
    };
    uninstall().await?.check(1)?.check_says(&["another daemon uses"])?;
    agent.process().terminate(LIMIT)?;
    ensure!(bpffs.sets()?.len() == 1, "{:?}", bpffs.sets()?);
    ensure!(ledger_of(&agent).exists(), "there is no {}", ledger_of(&agent).display());
    uninstall().await?.check(0)?;
    check_gone(&bpffs, &agent)?;
    uninstall().await?.check(0).context("nothing to be removed")?;

    let mut agent = bpffs.agent(ctx).await?;
    agent.process().signal(Signal::SIGKILL)?;
    agent.process().wait(LIMIT)?;
    agent.add_argument("--unpin");
    agent.start_again().await?;
    agent.process().terminate(LIMIT)?;
    check_gone(&bpffs, &agent)
}

/// Where what was observed is kept.
fn ledger_of(agent: &Agent) -> PathBuf {
    let mut ledger = agent.socket().as_os_str().to_owned();
    ledger.push(".ledger");
    ledger.into()
}

fn check_gone(bpffs: &Bpffs, agent: &Agent) -> Result<()> {
    for path in [bpffs.pins(), ledger_of(agent)] {
        ensure!(!path.exists(), "{} is still there", path.display());
    }
    Ok(())
}
