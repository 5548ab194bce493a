//! What the programs cost those who fork, execute and exit, outside of containers and inside one, and those who write to
//! files that are no cgroup's.

use std::io::{Read, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kwitness_api::proto::kwitness_client::KwitnessClient;
use kwitness_tests::agent::{Agent, connect, from_now};
use kwitness_tests::environment::{Environment, Tier};
use kwitness_tests::handmade::Kubepods;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::footprint::{cpu_times, ran};
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
/// Longer than the longest rest of the daemon's reader.
const SETTLE: Duration = Duration::from_millis(50);
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
        let each = |values: &[f64]| crate::report::quantile(values, 0.5) / f64::from(count) / 1e3;
        let note = format!(
            "{:.2} us each without kwitness, {:.2} us with it; {rounds} rounds of {count}",
            each(&off[place]),
            each(&on[place])
        );
        Row::ratio(name, &on[place], &off[place], Target::AtMost(limit), note)
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
        let (mut on, mut off, mut way) = (Vec::new(), Vec::new(), String::new());
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
                on.push(with);
                off.push(without);
            }
        }
        let name = format!("limits: write to no cgroup's file, by {way}");
        // Where a way is refused anyhow, excluding it changes nothing.
        if rows.iter().all(|row| row.name != name) {
            let note = format!("{rounds} rounds of {writes} writes");
            // Whoever asks for that one pays for it.
            let target = if way == "syscall" { Target::None } else { Target::AtMost(1.01) };
            rows.push(Row::ratio(&name, &on, &off, target, note));
        }
    }
    Ok(rows)
}

/// What a life (fork, exec and exit in a container) costs the daemon and a client that watches, as a share of what it costs itself;
/// all of them on one CPU, so that nothing is hidden in parallel.
pub(crate) async fn of_a_life(environment: &Environment) -> Result<Vec<Row>> {
    let (rounds, forks) = match environment.tier {
        Tier::Host => (ROUNDS / 2, FORKS),
        Tier::Vm => (ROUNDS_IN_A_GUEST, FORKS_IN_A_GUEST),
    };
    let _pinned = Pinned::to_one_cpu()?;
    let count = forks.to_string();
    let kubepods = Kubepods::make(environment)?;
    let container = kubepods.container()?;
    let lives = || time(container.start("/proc/self/exe", &["forks", &count])?);
    let (mut daemon, mut client, mut took) = (Vec::new(), Vec::new(), (Vec::new(), Vec::new()));
    for round in 0..=rounds {
        let own = lives()?;
        let mut agent = Agent::start(environment, &["log.level=warn"]).await?;
        let mut command = Command::new("/proc/self/exe");
        command.arg("watch").arg(agent.socket()).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut watcher = command.spawn().context("start the client")?;
        let mut ready = [0];
        let output = watcher.stdout.as_mut().context("the client has no output")?;
        output.read_exact(&mut ready).context("wait for the client's stream")?;
        let pids = [agent.process().pid(), watcher.id()];
        let before = pids.map(cpu_times);
        let with = lives()?;
        // What is still on its way to the client belongs to these lives.
        tokio::time::sleep(SETTLE).await;
        let [daemons, clients] = std::array::from_fn(|place| -> Result<f64> {
            let before = before[place].as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?;
            Ok(ran(before, &cpu_times(pids[place])?).as_nanos() as f64)
        });
        watcher.kill().context("end the client")?;
        watcher.wait().context("wait for the client")?;
        agent.stop()?;
        if round > 0 {
            daemon.push(daemons? / own);
            client.push(clients? / own);
            took.0.push(own);
            took.1.push(with);
        }
    }
    let each = |values: &[f64]| crate::report::quantile(values, 0.5) / f64::from(forks) / 1e3;
    let note = |who: &str, share: &[f64]| {
        format!(
            "{:.0} us of {who} for a life of {:.0} us without kwitness, {:.0} us with it; {rounds} rounds of {forks}",
            crate::report::quantile(share, 0.5) * each(&took.0),
            each(&took.0),
            each(&took.1)
        )
    };
    let row = |who: &str, share: &[f64], limit: f64| {
        let name = format!("cpu: {who}, for a fork+exec+exit in a container");
        Row::of(&name, share, "x", Target::AtMost(limit), note(who, share))
    };
    Ok(vec![row("daemon", &daemon, 0.27), row("client", &client, 0.12)])
}

/// This process, and those it starts, are on one CPU until this is dropped.
struct Pinned(CpuSet);

impl Pinned {
    fn to_one_cpu() -> Result<Self> {
        let this = Pid::from_raw(0);
        let all = sched_getaffinity(this).context("read the CPUs of this process")?;
        let first = (0..CpuSet::count()).find(|cpu| all.is_set(*cpu).unwrap_or(false));
        let mut one = CpuSet::new();
        one.set(first.context("no CPU")?).context("choose a CPU")?;
        sched_setaffinity(this, &one).context("stay on one CPU")?;
        Ok(Self(all))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // What was allowed before is allowed again; the measures that follow say themselves where they run.
        let _ = sched_setaffinity(Pid::from_raw(0), &self.0);
    }
}

/// The client of [`of_a_life`]: prints a byte once its stream is open, and reads until it is ended.
pub(crate) async fn watch(socket: &Path) -> Result<()> {
    let mut client = KwitnessClient::new(connect(socket).await?);
    let mut stream = client.watch(from_now()).await.context("call Watch")?.into_inner();
    print!(".");
    std::io::stdout().flush().context("say that the stream is open")?;
    while stream.message().await.context("kwitness's stream")?.is_some() {}
    Ok(())
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
