//! What the programs cost those who fork, execute and exit, outside of containers and inside one, and those who write to
//! files that are no cgroup's.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

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
/// From the daemon's being ready to its having nothing to do.
const REST: Duration = Duration::from_millis(200);
const REST_IN_A_GUEST: Duration = Duration::from_secs(2);
const ROUNDS_IN_A_GUEST: usize = 6;

pub(crate) async fn measure(environment: &Environment) -> Result<Vec<Row>> {
    let (rounds, forks, writes) = match environment.tier {
        Tier::Host => (ROUNDS, FORKS, WRITES),
        Tier::Vm => (ROUNDS_IN_A_GUEST, FORKS_IN_A_GUEST, WRITES_IN_A_GUEST),
    };
    let count = forks.to_string();
    let write_count = writes.to_string();
    let kubepods = Kubepods::make(environment)?;
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

/// The same writes with each way of seeing limit writes that is not this kernel's first.
pub(crate) async fn by_each_way(environment: &Environment) -> Result<Vec<Row>> {
    let (rounds, writes) = match environment.tier {
        Tier::Host => (ROUNDS, WRITES),
        Tier::Vm => (ROUNDS_IN_A_GUEST, WRITES_IN_A_GUEST),
    };
    let rest = match environment.tier {
        Tier::Host => REST,
        Tier::Vm => REST_IN_A_GUEST,
    };
    let run = || {
        let mut command = Command::new("/proc/self/exe");
        command.args(["writes", &writes.to_string()]).stdin(Stdio::null()).stdout(Stdio::piped());
        time(command.spawn().context("start the workload")?)
    };
    let mut rows: Vec<Row> = Vec::new();
    let both = r#"["fentry", "kprobe"]"#;
    for (excluded, syscalls) in [("[]", false), (r#"["fentry"]"#, false), (both, false), (both, true)] {
        let setting = format!("kernel.excluded_hooks={excluded}");
        let syscalls = format!("kernel.syscall_hooks={syscalls}");
        let (mut ratios, mut way) = (Vec::new(), String::new());
        for round in 0..=rounds {
            let without = run()?;
            let agent = Agent::start(environment, &["log.level=warn", &setting, &syscalls]).await?;
            let capability = agent
                .status()
                .await?
                .capabilities
                .into_iter()
                .find(|capability| capability.name == "limit_write");
            let hook = capability.context("no capability for limit writes")?.hook;
            way = hook.split(':').next().unwrap_or_default().to_owned();
            // What the start left to do is no cost of a write.
            tokio::time::sleep(rest).await;
            let with = run()?;
            agent.stop()?;
            if round > 0 {
                ratios.push(with / without);
            }
        }
        let name = format!("limits: write to no cgroup's file, by {way}");
        // Where a way is refused anyhow, excluding it changes nothing.
        if rows.iter().all(|row| row.name != name) {
            let note = format!("{rounds} rounds of {writes} writes");
            // Whoever asks for that one pays for it.
            let target = if way == "syscall" { Target::None } else { Target::AtMost(1.01) };
            rows.push(Row::of(&name, &ratios, "x", target, note));
        }
    }
    Ok(rows)
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
