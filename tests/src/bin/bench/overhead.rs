//! What the programs cost those who fork, execute and exit, outside of containers and inside one, and those who write to
//! files that are no cgroup's.

use std::io::Read;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use kwitness_tests::agent::Agent;
use kwitness_tests::environment::{Environment, Tier};
use kwitness_tests::handmade::Kubepods;

use crate::report::{Row, Target};

/// Enough that a round takes a fifth of a second on the machine itself.
const FORKS: u32 = 400;
const FORKS_IN_A_GUEST: u32 = 40;
/// Likewise.
const WRITES: u32 = 400_000;
const WRITES_IN_A_GUEST: u32 = 40_000;
const ROUNDS: usize = 24;
const ROUNDS_IN_A_GUEST: usize = 6;

pub(crate) async fn measure(environment: &Environment) -> Result<Vec<Row>> {
    let (rounds, forks, writes) = match environment.tier {
        Tier::Host => (ROUNDS, FORKS, WRITES),
        Tier::Vm => (ROUNDS_IN_A_GUEST, FORKS_IN_A_GUEST, WRITES_IN_A_GUEST),
    };
    let count = forks.to_string();
    let write_count = writes.to_string();
    let kubepods = Kubepods::make(&environment.cgroup2)?;
    let container = kubepods.container()?;
    let run = |arguments: &[&str]| {
        let mut command = Command::new("/proc/self/exe");
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
        time(command.spawn().context("start the workload")?)
    };
    let outside = || run(&["forks", &count]);
    let ordinary = || run(&["writes", &write_count]);
    let inside = || time(container.start("/proc/self/exe", &["forks", &count])?);

    let (mut off, mut on) = ([Vec::new(), Vec::new(), Vec::new()], [Vec::new(), Vec::new(), Vec::new()]);
    // The first round warms caches and is not counted.
    for round in 0..=rounds {
        let without = [outside()?, inside()?, ordinary()?];
        let agent = Agent::start(environment, &["log.level=warn"]).await?;
        let with = [outside()?, inside()?, ordinary()?];
        agent.stop()?;
        if round > 0 {
            (0..3).for_each(|place| {
                off[place].push(without[place]);
                on[place].push(with[place]);
            });
        }
    }
    let row = |place: usize, count: u32, name: &str, limit: f64| {
        let ratios: Vec<_> = on[place].iter().zip(&off[place]).map(|(on, off)| on / off).collect();
        let each = |values: &[f64]| crate::report::quantile(values, 0.5) / f64::from(count) / 1e3;
        let note = format!(
            "{:.2} us each without kwitness, {:.2} us with it; {rounds} rounds of {count}",
            each(&off[place]),
            each(&on[place])
        );
        Row::of(name, &ratios, "x", Target::AtMost(limit), note)
    };
    Ok(vec![
        row(0, forks, "overhead: fork+exec+exit outside containers", 1.02),
        row(1, forks, "overhead: fork+exec+exit in a container", 1.05),
        row(2, writes, "overhead: write to a file that is no cgroup's", 1.01),
    ])
}

/// The nanoseconds that a workload says it took.
fn time(mut child: Child) -> Result<f64> {
    let mut text = String::new();
    let output = child.stdout.as_mut().context("the workload has no output")?;
    output.read_to_string(&mut text).context("read the workload's output")?;
    let status = child.wait().context("wait for the workload")?;
    ensure!(status.success(), "the workload: {status}");
    text.trim().parse().with_context(|| format!("the workload said `{text}`"))
}
