//! A daemon that waits for another one's end (`--standby`), and what the last one leaves (`--unpin=unless-standby`).

use kwitness_tests::outage::{Bpffs, ledger_of};
use kwitness_tests::prelude::*;
use kwitness_tests::scrape::{get, scrape};
use kwitness_tests::standby::Standby;
use nix::sys::signal::Signal;

use crate::command::{kwitness, run};
use crate::pins::check_gone;

const LIMIT: Duration = Duration::from_secs(120);

/// All its probes succeed, so that a rollout goes on; it has no metrics of a daemon, and lets no third one wait. Signalled to stop, it
/// ends at once, and the daemon has not felt it.
pub(crate) async fn a_standby_is_ready_and_no_daemon_yet(ctx: &TestContext) -> Result<()> {
    let bpffs = Bpffs::mount()?;
    let mut agent = last_one(ctx, &bpffs).await?;
    let (sets, before) = (bpffs.sets()?, agent.status().await?);
    let mut standby = Standby::start(&agent, "second").await?;
    for probe in ["/startupz", "/readyz", "/livez"] {
        let (status, body) = get(&standby.http, "GET", probe)?;
        ensure!(status == "HTTP/1.1 200 OK" && body.starts_with("ok: standby: "), "{probe}: {status} {body}");
    }
    let samples = scrape(&standby.http)?;
    ensure!(samples.get("kwitness_standby") == Some(&1.0), "{samples:?}");
    ensure!(!samples.keys().any(|name| name.starts_with("kwitness_events_total")), "{samples:?}");
    let mut third = kwitness(ctx, ["daemon", "--standby", "--set", "kernel.pin=off", "--socket"]);
    third.arg(agent.socket());
    let pid = agent.pid().to_string();
    run(third).await?.check(1)?.check_says(&["another instance is running", &pid, "another standby"])?;

    standby.process().end(LIMIT)?;
    ensure!(agent.status().await?.started_at == before.started_at, "{}", agent.log_tail());
    ensure!(bpffs.sets()? == sets, "{:?} instead of {sets:?}", bpffs.sets()?);
    agent.process().end(LIMIT)?;
    check_gone(&bpffs, &agent)
}

/// It ends with the reason, and the daemon has not felt it.
pub(crate) async fn a_standby_whose_programs_do_not_load_is_never_ready(ctx: &TestContext) -> Result<()> {
    let bpffs = Bpffs::mount()?;
    let mut agent = last_one(ctx, &bpffs).await?;
    let (sets, before) = (bpffs.sets()?, agent.status().await?);
    let no_hooks = "--set=kernel.excluded_hooks=[\"raw_tp\", \"tp\"]";
    let mut standby = agent.spawn_beside("second", &["--standby", no_hooks])?;
    let status = standby.wait(LIMIT)?;
    let log = standby.log_tail();
    ensure!(status.code() == Some(1) && log.contains("could not take over"), "{status}: {log}");
    ensure!(!log.contains("taking over when it ends"), "{log}");
    ensure!(agent.status().await?.started_at == before.started_at, "{}", agent.log_tail());
    ensure!(bpffs.sets()? == sets, "{:?} instead of {sets:?}", bpffs.sets()?);
    agent.process().end(LIMIT)?;
    check_gone(&bpffs, &agent)
}

/// A daemon that is killed leaves everything to the next one; the last one that is signalled to stop leaves nothing, not even its lock.
pub(crate) async fn without_a_standby_nothing_is_left(ctx: &TestContext) -> Result<()> {
    let bpffs = Bpffs::mount()?;
    let mut agent = last_one(ctx, &bpffs).await?;
    let sets = bpffs.sets()?;
    agent.kill()?;
    ensure!(bpffs.sets()? == sets && ledger_of(&agent).exists(), "a crash has removed something");
    agent.start_again().await?;
    ensure!(bpffs.sets()? == sets, "{:?} instead of {sets:?}", bpffs.sets()?);
    agent.process().end(LIMIT)?;
    check_gone(&bpffs, &agent)?;
    let directory = agent.socket().parent().context("the socket has no directory")?;
    let left: Vec<_> = std::fs::read_dir(directory)?.collect();
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

/// An uninstall during a rollout: the standby, to which everything is left, is signalled to stop before it can go on.
pub(crate) async fn an_end_in_the_middle_of_a_hand_over_leaves_nothing(ctx: &TestContext) -> Result<()> {
    let bpffs = Bpffs::mount()?;
    let mut agent = last_one(ctx, &bpffs).await?;
    let mut standby = Standby::start(&agent, "second").await?;
    let stopped = standby.process().pause()?;
    agent.process().end(LIMIT)?;
    ensure!(bpffs.sets()?.len() == 1 && ledger_of(&agent).exists(), "nothing is left to the standby");
    standby.process().signal(Signal::SIGTERM)?;
    drop(stopped);
    let status = standby.process().wait(LIMIT)?;
    ensure!(status.success(), "{status}\n{}", standby.process().log_tail());
    check_gone(&bpffs, &agent)
}

/// A daemon that leaves everything to a standby, and without one nothing.
async fn last_one(ctx: &TestContext, bpffs: &Bpffs) -> Result<Agent> {
    let mut agent = bpffs.agent(&ctx.environment).await?;
    agent.kill()?;
    agent.add_argument("--unpin=unless-standby");
    agent.start_again().await?;
    Ok(agent)
}
