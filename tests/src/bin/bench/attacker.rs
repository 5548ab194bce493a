//! What a client that means harm costs another client, beside an attacker and without one: from the kernel's hook to a watcher, and
//! a call of `Status`.
//!
//! The attacker has half of all watchers, which begin with the oldest event and read nothing, on a connection each; half of all `Verify`
//! calls, which wait for what never comes; and lists, one every millisecond.

use std::path::Path;
use std::process::Command;

use kwitness_api::proto;
use kwitness_api::proto::kwitness_client::KwitnessClient;
use kwitness_tests::agent::{connect, from_oldest};
use kwitness_tests::prelude::*;
use tokio::time::timeout;

use crate::latency::Ticking;
use crate::report::{Row, Target, quantile};

/// Half of the defaults of `api.max_watchers` and `api.max_verify_calls`.
const WATCHERS: usize = 32;
const VERIFY_CALLS: usize = 512;
const PAUSE: Duration = Duration::from_millis(1);
const ATTACKING: &str = "attacking";

const TICKS: u32 = 500;
const ROUNDS: usize = 7;
const TICKS_IN_A_GUEST: u32 = 100;
const ROUNDS_IN_A_GUEST: usize = 4;
const LIMIT: Duration = Duration::from_secs(30);

pub(crate) async fn measure(environment: &Environment) -> Result<Vec<Row>> {
    let (rounds, ticks) = environment.of_tier((ROUNDS, TICKS), (ROUNDS_IN_A_GUEST, TICKS_IN_A_GUEST));
    let kubepods = Kubepods::make(environment)?;
    let (mut alone, mut beside) = (Rounds::default(), Rounds::default());
    for _ in 0..rounds {
        for (attacked, figures) in [(false, &mut alone), (true, &mut beside)] {
            let of_round = one_round(environment, &kubepods, ticks, attacked).await;
            let Round { delays, calls } = of_round.with_context(|| format!("attacked: {attacked}"))?;
            figures.delays.push(quantile(&delays, 0.99));
            figures.calls.push(quantile(&calls, 0.99));
        }
    }
    let row = |name: &str, alone: &[f64], beside: &[f64], what: &str| {
        let ratios: Vec<_> = beside.iter().zip(alone).map(|(beside, alone)| beside / alone).collect();
        let note = format!(
            "{:.0} us beside {WATCHERS} watchers that do not read, {VERIFY_CALLS} waiting calls and a list every ms; {:.0} \
             us without; {rounds} rounds of {ticks} {what}",
            quantile(beside, 0.5) / 1e3,
            quantile(alone, 0.5) / 1e3
        );
        Row::of(name, &ratios, "x", Target::AtMost(3.0), note)
    };
    Ok(vec![
        row("attacker: hook to a watcher beside one, p99", &alone.delays, &beside.delays, "events"),
        row("attacker: Status beside one, p99", &alone.calls, &beside.calls, "calls"),
    ])
}

/// What another client met in a round, in nanoseconds.
struct Round {
    /// From the hook to a watcher, of each event.
    delays: Vec<f64>,
    /// Of each call of `Status`.
    calls: Vec<f64>,
}

#[derive(Default)]
struct Rounds {
    delays: Vec<f64>,
    calls: Vec<f64>,
}

async fn one_round(
    environment: &Environment,
    kubepods: &Kubepods,
    ticks: u32,
    attacked: bool,
) -> Result<Round> {
    let agent = Agent::start(environment, &["log.level=warn"]).await?;
    let mut stream = agent.client().await?.watch(from_now()).await.context("call Watch")?.into_inner();
    let ticking = Ticking::start(kubepods, ticks)?;
    let directory = tempfile::tempdir_in("/run").context("make a directory in /run")?;
    let mut attacker = match attacked {
        true => Some(start(agent.socket(), &directory.path().join("log")).await?),
        false => None,
    };
    let began = boottime();
    let mut delays = Vec::new();
    while delays.len() < ticks as usize {
        let message = timeout(LIMIT, stream.message()).await.context("kwitness is silent")?;
        let at = boottime();
        for event in message.context("kwitness's stream")?.context("kwitness's stream ended")?.events {
            let container = event.container.as_ref();
            let is_own = container.is_some_and(|container| container.cgroup_id == ticking.cgroup);
            if is_own && kind(&event) == "exec" && event.kernel_time > began {
                delays.push(at.saturating_sub(event.kernel_time) as f64);
            }
        }
    }
    drop((ticking, stream));
    let mut client = agent.client().await?;
    let mut calls = Vec::new();
    for _ in 0..ticks {
        let began = Instant::now();
        client.status(proto::StatusRequest {}).await.context("call Status")?;
        calls.push(began.elapsed().as_nanos() as f64);
        tokio::time::sleep(PAUSE).await;
    }
    if let Some(attacker) = &mut attacker {
        attacker.check_running()?;
    }
    drop(attacker);
    agent.stop()?;
    Ok(Round { delays, calls })
}

async fn start(socket: &Path, log: &Path) -> Result<Managed> {
    let mut command = Command::new("/proc/self/exe");
    command.arg("attack").arg(socket);
    let mut attacker = Managed::spawn("the attacker", command, log)?;
    wait_for("the attack", LIMIT, async || {
        attacker.check_running()?;
        Ok(attacker.log()?.contains(ATTACKING).then_some(()))
    })
    .await?;
    Ok(attacker)
}

pub(crate) async fn attack(socket: &Path) -> Result<()> {
    let everything = from_oldest();
    let mut unread = Vec::new();
    for _ in 0..WATCHERS {
        let mut client = KwitnessClient::new(connect(socket).await?);
        unread.push(client.watch(everything.clone()).await.context("call Watch")?);
    }
    let mut client = KwitnessClient::new(connect(socket).await?);
    let never = proto::VerifyRequest {
        wanted: Some(proto::Wanted { memory: Some(proto::wanted::Memory::MemoryBytes(4096)), cpu: None }),
        wait_ms: 600_000,
        ..proto::VerifyRequest::default()
    };
    for _ in 0..VERIFY_CALLS {
        let (mut client, request) = (client.clone(), never.clone());
        // It ends with the process.
        drop(tokio::spawn(async move { client.verify(request).await }));
    }
    wait_for("the waiting calls", LIMIT, async || {
        let status = client.status(proto::StatusRequest {}).await.context("call Status")?.into_inner();
        let verify =
            status.calls.iter().find(|limit| limit.name == "verify").context("no limit of Verify")?;
        ensure!(verify.refused == 0, "{} of the attacker's calls were refused", verify.refused);
        Ok((verify.active as usize == VERIFY_CALLS).then_some(()))
    })
    .await?;
    println!("{ATTACKING}");
    loop {
        client.list(proto::ListRequest { filter: None }).await.context("call List")?;
        tokio::time::sleep(PAUSE).await;
    }
}
