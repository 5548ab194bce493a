//! `kwitness-chaos`: containers come and go without a rest, while everything that may befall the daemon does, at random.
//!
//! At the end each container's life is compared with what the storm knows of it: each event is there exactly once, or its life
//! touches a gap, of as many records as lives. A seed repeats a sequence; what the kernel interleaves with it is another each time.
//! What a place cannot do is left out of the sequence by name.

mod account;
mod actions;
mod stage;

use std::time::{SystemTime, UNIX_EPOCH};

use clap::Parser;
use kwitness_tests::outage::{Bpffs, Client, StateDirectory, Storm, lasting};
use kwitness_tests::prelude::*;

use crate::account::Account;
use crate::actions::Sequence;
use crate::stage::{Stage, WATCHERS};

const LIMIT: Duration = Duration::from_secs(60);

/// Makes chaos around a daemon.
#[derive(Debug, Parser)]
struct Arguments {
    /// Repeat the sequence of actions of that seed [default: another one each time].
    #[arg(long)]
    seed: Option<u64>,
    /// How long: seconds, or minutes with an `m`.
    #[arg(long = "for", default_value = "60s", value_parser = duration)]
    duration: Duration,
}

fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.strip_suffix('m') {
        Some(minutes) => (minutes, 60),
        None => (text.strip_suffix('s').unwrap_or(text), 1),
    };
    let number: u64 = number.parse().map_err(|_| format!("`{text}` is not a time, such as 60s or 30m"))?;
    Ok(Duration::from_secs(number * unit))
}

fn main() -> Result<()> {
    handmade::become_container_if_requested()?;
    let arguments = Arguments::parse();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seed = arguments.seed.unwrap_or(u64::from(now.subsec_nanos()));
    println!("seed {seed}, for {:?}", arguments.duration);
    let account = tokio::runtime::Runtime::new()
        .context("start tokio")?
        .block_on(play(seed, arguments.duration))
        .with_context(|| format!("with --seed {seed}"))?;
    println!("{account}");
    ensure!(account.is_balanced(), "with --seed {seed}:\n{}", account.failures());
    Ok(())
}

async fn play(seed: u64, duration: Duration) -> Result<Account> {
    let environment = Environment::find()?;
    let (bpffs, kubepods) = (Bpffs::mount()?, Kubepods::make(&environment)?);
    let mut agent = bpffs.agent_with(&environment, &[WATCHERS]).await?;
    // It has made its directory, which is mounted over while it does not run.
    agent.process().terminate(LIMIT)?;
    let state = StateDirectory::mount(agent.socket())?;
    agent.start_again().await?;
    let mut watcher = agent.watch(from_now()).await?;
    // Its end is the last event that is waited for.
    let lasting = lasting(&kubepods, &mut watcher).await?;

    let client = Client::new(watcher);
    let mut stage = Stage::new(&environment, agent, bpffs, state, client).await?;
    let storm = Storm::begin(kubepods);
    let (mut sequence, began) = (Sequence::new(seed), Instant::now());
    while began.elapsed() < duration {
        let (action, lives) = sequence.next();
        if let Some(reason) = stage.refuses(action) {
            println!("{:5.1} s: not here: {action:?}: {reason}", began.elapsed().as_secs_f64());
            continue;
        }
        println!("{:5.1} s: {action:?}", began.elapsed().as_secs_f64());
        stage.perform(action, lives, &storm).await.with_context(|| stage.log_tail())?;
    }
    // Small rings and lost pins end here: what comes last is seen.
    stage.settle(&storm).await.with_context(|| stage.log_tail())?;
    let (kubepods, mut lived) = storm.end()?;
    let (mut agent, bpffs, state, client, of_runtime) = stage.end().await?;
    lived.extend(of_runtime);
    let last = lasting.end()?;
    let seen = client.until_deleted(&last).await.with_context(|| agent.log_tail())?;
    seen.check_numbered()?;
    let account = Account::of(&seen, &lived);
    drop(kubepods);
    agent.process().end(LIMIT)?;
    // In this order: its directory has the other mounted in it.
    drop(state);
    drop(agent);
    drop(bpffs);
    Ok(account)
}
