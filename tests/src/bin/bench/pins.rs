//! What it costs that a daemon's work outlives it: pins and ledger, against a daemon that has neither.

use kwitness_tests::outage::Bpffs;
use kwitness_tests::prelude::*;

use crate::footprint::{CONTAINERS, Crowd};
use crate::overhead::{Lives, Pinned, inside};
use crate::report::{Row, Target, quantile};
use crate::start::Floor;

/// Enough that a round takes half a second on the machine itself.
const FORKS: u32 = 1000;
const FORKS_IN_A_GUEST: u32 = 40;
const ROUNDS: usize = 16;
const ROUNDS_IN_A_GUEST: usize = 6;
const STARTS: usize = 10;
const STARTS_IN_A_GUEST: usize = 3;
const QUIET: &str = "log.level=warn";

pub(crate) async fn measure(environment: &Environment) -> Result<Vec<Row>> {
    Ok(vec![lives(environment).await?, start(environment).await?])
}

/// Lives, daemon and client on one CPU that has no rest: what they take together is what limits how many there can be.
async fn lives(environment: &Environment) -> Result<Row> {
    let (rounds, forks) = environment.of_tier((ROUNDS, FORKS), (ROUNDS_IN_A_GUEST, FORKS_IN_A_GUEST));
    let _pinned = Pinned::to_one_cpu()?;
    let kubepods = Kubepods::make(environment)?;
    let container = kubepods.container()?;
    let under = async |is_pinned: bool| {
        // Of its own, so that its programs are gone with it.
        let bpffs = is_pinned.then(Bpffs::mount).transpose()?;
        let agent = match &bpffs {
            Some(bpffs) => bpffs.agent_with(environment, &[QUIET]).await?,
            None => Agent::start(environment, &[QUIET]).await?,
        };
        let lives = Lives::of(&agent, || inside(&container, forks)).await?;
        agent.stop()?;
        anyhow::Ok(lives.took)
    };
    let (mut with, mut without) = (Vec::new(), Vec::new());
    // The first round warms caches and is not counted.
    for round in 0..=rounds {
        let is_first = round % 2 == 0;
        let (one, other) = (under(is_first).await?, under(!is_first).await?);
        if round > 0 {
            let (on, off) = if is_first { (one, other) } else { (other, one) };
            with.push(on);
            without.push(off);
        }
    }
    let each = |values: &[f64]| quantile(values, 0.5) / f64::from(forks) / 1e3;
    let note = format!(
        "{:.1} us of CPU with pins and ledger, {:.1} us without: the life, daemon and client; {rounds} rounds of {forks}",
        each(&with),
        each(&without)
    );
    let name = "pins: fork+exec+exit in a container, daemon and client on one CPU";
    Ok(Row::ratio(name, &with, &without, Target::AtMost(1.02), note))
}

/// A daemon that goes on where an earlier one ended.
async fn start(environment: &Environment) -> Result<Row> {
    let starts = environment.of_tier(STARTS, STARTS_IN_A_GUEST);
    let mut crowd = Crowd::new(environment, false)?;
    crowd.grow(CONTAINERS)?;
    let bpffs = Bpffs::mount()?;
    let mut agent = bpffs.agent_with(environment, &[QUIET]).await?;
    let epoch = agent.status().await?.epoch;
    let floor = Floor::of_this_kernel()?;
    let (mut times, mut floors) = (Vec::new(), Vec::new());
    for _ in 0..starts {
        agent.kill()?;
        floors.push(floor.time(&environment.cgroup2)?);
        let began = Instant::now();
        agent.start_again().await?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
        let known = agent.list().await?.containers.len();
        ensure!(known == crowd.len(), "kwitness knows {known} of {CONTAINERS} containers");
    }
    let now = agent.status().await?.epoch;
    ensure!(now == epoch, "it did not go on: another epoch, {now}");
    agent.stop()?;
    let note = format!(
        "{:.0} ms from execve to SERVING after a kill, with what the last daemon left; a bare loader and a bare walk of the tree {:.0} ms; {starts} starts",
        quantile(&times, 0.5),
        quantile(&floors, 0.5)
    );
    let name = "pins: start with 1,000 containers, against floor";
    Ok(Row::ratio(name, &times, &floors, Target::AtMost(1.5), note))
}
