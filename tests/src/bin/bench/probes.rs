//! What each program costs: by the kernel's own clock (`BPF_ENABLE_STATS`), where it makes a record of a container's process and where
//! it only finds that a process is none; and what it costs those outside of containers, attached alone, against nothing attached.

use std::collections::BTreeMap;

use aya::sys::{Stats, enable_stats};
use kwitness_tests::prelude::*;

use crate::overhead::{inside, outside, workload};
use crate::pressure::{self, EXCLUDED, FAULTS, FAULTS_IN_A_GUEST, PASS, QUIET};
use crate::report::{Row, Target, quantile};
use crate::start::Floor;

const ROUNDS: usize = 24;
const ROUNDS_IN_A_GUEST: usize = 6;
/// Rounds by the kernel's clock; in each, processes, and containers that come and go.
const TIMED: (usize, u32, u32) = (8, 400, 50);
const TIMED_IN_A_GUEST: (usize, u32, u32) = (3, 40, 10);
/// Runs of a program in a round that say something of it: others are those of the rest of the machine.
const RUNS_MIN: u64 = 10;

/// What is done outside of containers: the capability whose program is at it, its name, the workload, and how often it is done.
const UNTRACKED: [(&str, &str, &str, u32); 4] = [
    ("task_fork", "fork", "subshells", 2000),
    ("task_exec", "exec", "execs", 400),
    ("task_exit", "exit", "subshells", 2000),
    ("limit_write", "write", "writes", 400_000),
];
const SLOWER_IN_A_GUEST: u32 = 10;
const LIMIT: f64 = 1.01;

pub(crate) async fn measure(environment: &Environment) -> Result<Vec<Row>> {
    let mut rows = by_the_kernels_clock(environment).await?;
    for (capability, name, words, count) in UNTRACKED {
        rows.push(alone(environment, capability, name, words, count)?);
    }
    rows.push(faults(environment).await?);
    Ok(rows)
}

/// Nanoseconds and number of a program's runs.
type Runs = BTreeMap<String, (u64, u64)>;

/// The time of a run of each program, which ran for the processes and cgroups of a container, and for those of none.
async fn by_the_kernels_clock(environment: &Environment) -> Result<Vec<Row>> {
    let counting = match enable_stats(Stats::RunTime) {
        Ok(counting) => counting,
        Err(error) => {
            // Before 5.8; the sysctl, which is everybody's, is left as it is.
            let reason = format!("{:#}", anyhow::Error::from(error));
            return Ok(vec![Row::missing("probes: a run of each program", &reason)]);
        }
    };
    let (rounds, forks, lives) = environment.of_tier(TIMED, TIMED_IN_A_GUEST);
    let kubepods = Kubepods::make(environment)?;
    let container = kubepods.container()?;
    let agent = Agent::start(environment, &[QUIET]).await?;
    let mut figures: BTreeMap<(String, &str), Vec<(f64, u64)>> = BTreeMap::new();
    for _ in 0..rounds {
        let before = runs(&agent).await?;
        inside(&container, forks)?;
        for _ in 0..lives {
            kubepods.container()?.live(&["true"], 0)?;
        }
        let between = runs(&agent).await?;
        outside(forks)?;
        let after = runs(&agent).await?;
        for (place, from, to) in [("in a container", &before, &between), ("outside", &between, &after)] {
            for (program, (nanos, count)) in to {
                let (nanos_before, count_before) = from.get(program).copied().unwrap_or_default();
                let count = count - count_before;
                if count >= RUNS_MIN {
                    let each = (nanos - nanos_before) as f64 / count as f64;
                    figures.entry((program.clone(), place)).or_default().push((each, count));
                }
            }
        }
    }
    agent.stop()?;
    drop(counting);
    let row = |((program, place), rounds): ((String, &str), Vec<(f64, u64)>)| {
        let (each, counts): (Vec<_>, Vec<_>) =
            rounds.into_iter().map(|(each, count)| (each, count as f64)).unzip();
        let note =
            format!("by the kernel's own clock; {} rounds of {:.0} runs", each.len(), quantile(&counts, 0.5));
        Row::of(&format!("probes: {program}, a run {place}"), &each, "ns", Target::None, note)
    };
    Ok(figures.into_iter().map(row).collect())
}

async fn runs(agent: &Agent) -> Result<Runs> {
    let programs = agent.status().await?.programs.into_iter();
    Ok(programs.map(|of| (of.name, (of.run_time_ns.unwrap_or(0), of.run_count.unwrap_or(0)))).collect())
}

/// What is done outside of containers with the programs of one capability, against nothing attached.
fn alone(environment: &Environment, capability: &str, name: &str, words: &str, count: u32) -> Result<Row> {
    let title = format!("probes: {name} outside containers, {capability}");
    let Some(programs) = Floor::of_capability(capability)? else {
        return Ok(Row::missing(&title, "this kernel has no hook for it"));
    };
    let (rounds, count) =
        environment.of_tier((ROUNDS, count), (ROUNDS_IN_A_GUEST, count / SLOWER_IN_A_GUEST));
    let run = || workload(&[words, &count.to_string()]);
    let (mut off, mut on) = (Vec::new(), Vec::new());
    // The first round warms caches and is not counted.
    for round in 0..=rounds {
        let without = run()?;
        let attached = programs.start(&environment.cgroup2)?;
        let with = run()?;
        drop(attached);
        if round > 0 {
            off.push(without);
            on.push(with);
        }
    }
    Ok(against(&title, &on, &off, f64::from(count), rounds))
}

/// The CPU time of page faults outside of containers, with the program at charges of memory against the same daemon without it.
async fn faults(environment: &Environment) -> Result<Row> {
    let title = "probes: fault outside containers, memory_charge";
    let agent = Agent::start(environment, &[QUIET]).await?;
    let way = pressure::hook(&agent).await?;
    agent.stop()?;
    if !pressure::is_program(&way) {
        return Ok(Row::missing(title, &format!("no program at charges: {way}")));
    }
    let (rounds, passes) = environment.of_tier(FAULTS, FAULTS_IN_A_GUEST);
    let words = [0, PASS, u64::from(passes), 0].map(|number: u64| number.to_string());
    let words: Vec<_> = ["faults"].into_iter().chain(words.iter().map(String::as_str)).collect();
    let (mut off, mut on) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        for (settings, figures) in [(&[QUIET, EXCLUDED][..], &mut off), (&[QUIET][..], &mut on)] {
            let agent = Agent::start(environment, settings).await?;
            let took = workload(&words)?;
            agent.stop()?;
            if round > 0 {
                figures.push(took);
            }
        }
    }
    let pages = (u64::from(passes) * PASS / procfs::page_size()) as f64;
    Ok(against(title, &on, &off, pages, rounds))
}

fn against(title: &str, on: &[f64], off: &[f64], count: f64, rounds: usize) -> Row {
    let each = |values: &[f64]| quantile(values, 0.5) / count;
    let note = format!(
        "{:.0} ns each with nothing at it, {:.0} ns with it; {rounds} rounds of {count}",
        each(off),
        each(on)
    );
    Row::ratio(title, on, off, Target::AtMost(LIMIT), note)
}
