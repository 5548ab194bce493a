//! `kwitness top`: the screen at a terminal, and what it prints elsewhere.

use kwitness_api::proto::{UsageSample, amount};
use kwitness_tests::events::short;
use kwitness_tests::prelude::*;
use kwitness_tests::pty::Pty;
use nix::sys::signal::Signal;

use crate::command::{client, kwitness};
use crate::output::json_lines;

/// Ends a test that hangs.
const LIMIT: Duration = Duration::from_secs(30);

/// At a terminal, once the container is to be seen.
async fn screen(ctx: &TestContext, agent: &Agent, id: &str) -> Result<Pty> {
    let mut command = kwitness(ctx, ["top", "--interval", "500ms", "--socket"]);
    command.arg(agent.socket());
    let pty = Pty::start(command)?;
    pty.wait_text("VERDICT").await?;
    pty.wait_text(&short(id)[..9]).await?;
    ensure!(pty.is_taken()?, "the terminal is not taken over");
    Ok(pty)
}

pub(crate) async fn the_screen_takes_keys_and_gives_the_terminal_back(ctx: &TestContext) -> Result<()> {
    let kubepods = Kubepods::make(&ctx.environment)?;
    ctx.with_agent(&[], async |agent| {
        let container = kubepods.run()?;
        let mut pty = screen(ctx, agent, container.id()).await?;
        pty.press("?")?;
        pty.wait_text("reverse the order").await?;
        pty.press("x")?;
        pty.wait_text("VERDICT").await?;
        pty.press("s")?;
        pty.wait_text("by share of limit").await?;
        pty.press("/nothing-has-this-name")?;
        pty.wait_text("0 of 1 containers").await?;
        pty.press("\x1b")?;
        pty.wait_text("top: 1 containers by share of limit").await?;
        // Typed as fast as that, the terminal's bytes are those of Alt-q.
        pty.press("/q")?;
        pty.wait_text("/q_").await?;
        pty.press("\x1bq")?;
        let status = pty.wait_restored().await?;
        ensure!(status.code() == Some(0), "q: {status}");

        let pty = &mut screen(ctx, agent, container.id()).await?;
        pty.signal(Signal::SIGTERM)?;
        let status = pty.wait_restored().await?;
        ensure!(status.code() == Some(0), "SIGTERM: {status}");

        let pty = &mut screen(ctx, agent, container.id()).await?;
        pty.press("\x03")?;
        let status = pty.wait_restored().await?;
        ensure!(status.code() == Some(130), "Ctrl-C: {status}");
        container.end().map(drop)
    })
    .await
}

pub(crate) async fn the_screen_keeps_old_rows_until_the_daemon_is_back(ctx: &TestContext) -> Result<()> {
    let kubepods = Kubepods::make(&ctx.environment)?;
    let container = kubepods.run()?;
    let mut agent = Agent::start(&ctx.environment, &[]).await?;
    let mut pty = screen(ctx, &agent, container.id()).await?;
    agent.kill()?;
    pty.wait_text("STALE since").await?;
    let shown = pty.text();
    ensure!(shown.contains(&short(container.id())[..9]), "the row is gone:\n{shown}");
    agent.start_again().await?;
    pty.wait_gone("STALE since").await?;
    pty.press("q")?;
    let status = pty.wait_restored().await?;
    ensure!(status.code() == Some(0), "{status}");
    container.end()?;
    agent.stop()
}

pub(crate) async fn what_cannot_be_read_is_not_zero(ctx: &TestContext) -> Result<()> {
    let kubepods = Kubepods::make(&ctx.environment)?;
    ctx.with_agent(&[], async |agent| {
        // Its cgroup has no memory controller.
        let container = kubepods.run()?;
        let done = client(ctx, agent.socket(), "top -o json --interval 500ms").await?;
        let samples: Vec<UsageSample> = json_lines(&done)?;
        let [sample] = &samples[..] else { anyhow::bail!("{} samples", samples.len()) };
        let [usage] = &sample.containers[..] else { anyhow::bail!("{sample:?}") };
        ensure!(usage.container.as_ref().is_some_and(|of| of.id == container.id()), "{usage:?}");
        for amount in [&usage.memory_usage, &usage.memory_limit, &usage.oom_kills] {
            let amount = amount.as_ref().and_then(|amount| amount.amount.as_ref());
            ensure!(
                matches!(amount, Some(amount::Amount::Absent(true) | amount::Amount::Unknown(_))),
                "{usage:?}"
            );
        }
        ensure!(usage.fill_rate.is_none() && usage.time_to_limit_ms.is_none(), "{usage:?}");

        // No terminal: one table.
        let table = client(ctx, agent.socket(), "top --interval 500ms").await?;
        let lines: Vec<_> = table.check(0)?.stdout.lines().collect();
        ensure!(
            lines.len() == 2 && lines[0].contains("%LIM") && lines[1].contains(short(container.id())),
            "{table:?}"
        );
        ensure!(!table.stdout.contains('\x1b'), "{table:?}");
        client(ctx, agent.socket(), "top -p no-such-pod").await?.check(66)?.check_says(&["no-such-pod"])?;
        // No client watches: nothing is sampled. The daemon learns of a client's end after it.
        wait_for("the end of every WatchUsage", LIMIT, async || {
            let calls = agent.status().await?.calls;
            let is_over = calls.iter().any(|call| call.name == "watch_usage" && call.active == 0);
            Ok(is_over.then_some(()))
        })
        .await?;
        container.end().map(drop)
    })
    .await
}
