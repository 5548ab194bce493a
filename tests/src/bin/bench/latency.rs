//! From the kernel's hook to a gRPC client, on an idle machine: kwitness against a floor.

use std::collections::HashMap;
use std::process::Command;

use kwitness_api::proto::Event;
use kwitness_tests::prelude::*;
use kwitness_tests::process::Killed;
use tokio::time::timeout;

use crate::floor::{self, Record};
use crate::report::{Row, Target, quantile};

const TICKS: u32 = 200;
const ROUNDS: usize = 10;
const TICKS_IN_A_GUEST: u32 = 60;
const ROUNDS_IN_A_GUEST: usize = 4;
const LIMIT: Duration = Duration::from_secs(30);

pub(crate) async fn measure(environment: &Environment) -> Result<Vec<Row>> {
    let (rounds, ticks) = environment.of_tier((ROUNDS, TICKS), (ROUNDS_IN_A_GUEST, TICKS_IN_A_GUEST));
    let kubepods = Kubepods::make(environment)?;
    let (mut floor, mut full) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        floor.push(floor_round(&kubepods, ticks).await.context("of the floor")?);
        full.push(of_kwitness(environment, &kubepods, ticks).await.context("of kwitness")?);
    }
    let waits = |rounds: &[Round]| quantile(&rounds.iter().map(|round| round.waits).collect::<Vec<_>>(), 0.5);
    let (floor_waits, full_waits) = (waits(&floor), waits(&full));
    let row = |name: &str, share: f64, target: Target| {
        let of =
            |rounds: &[Round]| rounds.iter().map(|round| quantile(&round.delays, share)).collect::<Vec<_>>();
        let (floor, full) = (of(&floor), of(&full));
        let note = format!(
            "kwitness {:.0} us, {full_waits:.1} waits of its threads an event; floor {:.0} us, {floor_waits:.1}; {rounds} \
             rounds of {ticks} events, 10 ms apart",
            quantile(&full, 0.5) / 1e3,
            quantile(&floor, 0.5) / 1e3
        );
        Row::ratio(name, &full, &floor, target, note)
    };
    Ok(vec![
        row("latency: hook to client, p50, against floor", 0.5, Target::AtMost(1.2)),
        row("latency: hook to client, p99, against floor", 0.99, Target::None),
    ])
}

/// The container ticks longer than delays are wanted: a record that comes together with another one, of this container
/// or of the machine's others, is not one of an idle machine.
const SPARE: u32 = 1000;

/// A container that has a program executed every ten milliseconds; killed when dropped.
pub(crate) struct Ticking {
    _child: Killed,
    pub(crate) cgroup: u64,
    _container: HandMade,
}

impl Ticking {
    pub(crate) fn start(kubepods: &Kubepods, ticks: u32) -> Result<Self> {
        let container = kubepods.container()?;
        let child = Killed(container.start("/proc/self/exe", &["ticks", &(ticks + SPARE).to_string()])?);
        Ok(Self { _child: child, cgroup: container.cgroup().id()?, _container: container })
    }
}

/// What a round showed.
struct Round {
    /// From the hook to a client, in nanoseconds.
    delays: Vec<f64>,
    /// How often a thread of the server waited, for each event: each time is a wake-up, too.
    waits: f64,
}

impl Round {
    /// `before` and `after`: see [`waited`].
    fn new(delays: Vec<f64>, before: &HashMap<i32, u64>, after: &HashMap<i32, u64>) -> Self {
        let more =
            after.iter().map(|(thread, count)| count - before.get(thread).copied().unwrap_or_default());
        let waits = more.sum::<u64>() as f64 / delays.len() as f64;
        Self { delays, waits }
    }
}

/// How often each thread of a process has waited.
fn waited(pid: u32) -> Result<HashMap<i32, u64>> {
    let tasks = process::procfs_of(pid)?.tasks().context("list its threads")?;
    // A thread may end while the others are looked at.
    let each = tasks.filter_map(|task| {
        let task = task.ok()?;
        Some((task.tid, task.status().ok()?.voluntary_ctxt_switches?))
    });
    Ok(each.collect())
}

/// From the hook to a client of the floor, in nanoseconds.
pub(crate) async fn of_floor(kubepods: &Kubepods, ticks: u32) -> Result<Vec<f64>> {
    Ok(floor_round(kubepods, ticks).await?.delays)
}

async fn floor_round(kubepods: &Kubepods, ticks: u32) -> Result<Round> {
    let directory = tempfile::tempdir_in("/run").context("make a directory in /run")?;
    let socket = directory.path().join("floor.sock");
    let mut command = Command::new("/proc/self/exe");
    command.arg("floor").arg(&socket).arg(kubepods.id()?.to_string());
    let mut server = Managed::spawn("the floor", command, &directory.path().join("log"))?;
    let channel = server.wait_for("the floor", LIMIT, async || Ok(floor::connect(&socket).await.ok()));
    let mut stream = floor::watch(channel.await?).await?;
    let ticking = Ticking::start(kubepods, ticks)?;
    let (mut delays, before) = (Vec::new(), waited(server.pid())?);
    while delays.len() < ticks as usize {
        let message = timeout(LIMIT, stream.message()).await.context("the floor is silent")?;
        let at = boottime();
        let records = message.context("the floor's stream")?.context("the floor's stream ended")?;
        if let [Record { time, cgroup }] = records[..]
            && cgroup == ticking.cgroup
        {
            delays.push(at.saturating_sub(time) as f64);
        }
    }
    let after = waited(server.pid())?;
    drop(ticking);
    server.terminate(LIMIT)?;
    Ok(Round::new(delays, &before, &after))
}

async fn of_kwitness(environment: &Environment, kubepods: &Kubepods, ticks: u32) -> Result<Round> {
    let agent = Agent::start(environment, &["log.level=warn"]).await?;
    let mut stream = agent.client().await?.watch(from_now()).await.context("call Watch")?.into_inner();
    let ticking = Ticking::start(kubepods, ticks)?;
    let own = |event: &Event| {
        event.container.as_ref().is_some_and(|container| container.cgroup_id == ticking.cgroup)
    };
    let (mut delays, before) = (Vec::new(), waited(agent.pid())?);
    while delays.len() < ticks as usize {
        let message = timeout(LIMIT, stream.message()).await.context("kwitness is silent")?;
        let at = boottime();
        let events = message.context("kwitness's stream")?.context("kwitness's stream ended")?.events;
        if let [event] = &events[..]
            && own(event)
            && kind(event) == "exec"
        {
            delays.push(at.saturating_sub(event.kernel_time) as f64);
        }
    }
    let after = waited(agent.pid())?;
    drop((ticking, stream));
    agent.stop()?;
    Ok(Round::new(delays, &before, &after))
}
