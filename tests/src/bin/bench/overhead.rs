//! What the programs cost those who fork, execute and exit, outside of containers and inside one, and those who write to
//! files that are no cgroup's.

use std::io::{Read, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use kwitness_api::proto::kwitness_client::KwitnessClient;
use kwitness_tests::agent::connect;
use kwitness_tests::prelude::*;
use kwitness_tests::process::Killed;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::footprint::{cpu_times, ran};
use crate::report::{Row, Target};

/// Enough that a round takes a fifth of a second on the machine itself.
const FORKS: u32 = 400;
const FORKS_IN_A_GUEST: u32 = 40;
/// Limit writes a round, enough for as long.
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
    let (rounds, forks, writes) = environment
        .of_tier((ROUNDS, FORKS, WRITES), (ROUNDS_IN_A_GUEST, FORKS_IN_A_GUEST, WRITES_IN_A_GUEST));
    let write_count = writes.to_string();
    let kubepods = Kubepods::make(environment)?;
    let container = kubepods.container()?;
    let ordinary = || workload(&["writes", &write_count]);

    let (mut off, mut on) = ([Vec::new(), Vec::new(), Vec::new()], [Vec::new(), Vec::new(), Vec::new()]);
    // The first round warms caches and is not counted.
    for round in 0..=rounds {
        let without = [outside(forks)?, inside(&container, forks)?, ordinary()?];
        let agent = Agent::start(environment, &["log.level=warn"]).await?;
        let with = [outside(forks)?, inside(&container, forks)?, ordinary()?];
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
    let (rounds, writes) = environment.of_tier((ROUNDS, WRITES), (ROUNDS_IN_A_GUEST, WRITES_IN_A_GUEST));
    let rest = environment.of_tier(REST, REST_IN_A_GUEST);
    let run = || workload(&["writes", &writes.to_string()]);
    let mut rows: Vec<Row> = Vec::new();
    let both = r#"["fentry", "kprobe"]"#;
    for (excluded, syscalls) in [("[]", false), (r#"["fentry"]"#, false), (both, false), (both, true)] {
        let setting = format!("kernel.excluded_hooks={excluded}");
        let syscalls = format!("kernel.syscall_hooks={syscalls}");
        let (mut on, mut off, mut way) = (Vec::new(), Vec::new(), String::new());
        for round in 0..=rounds {
            let without = run()?;
            let agent = Agent::start(environment, &["log.level=warn", &setting, &syscalls]).await?;
            way = hook(&agent).await?;
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

pub(crate) async fn hook(agent: &Agent) -> Result<String> {
    let mut capabilities = agent.status().await?.capabilities.into_iter();
    let capability = capabilities.find(|capability| capability.name == "limit_write");
    let hook = capability.context("no capability for limit writes")?.hook;
    Ok(hook.split(':').next().unwrap_or_default().to_owned())
}

/// What a life (fork, exec and exit in a container) costs the daemon and a client that watches, as a share of what it costs itself;
/// all of them on one CPU, so that nothing is hidden in parallel.
pub(crate) async fn of_a_life(environment: &Environment) -> Result<Vec<Row>> {
    let (rounds, forks) = environment.of_tier((ROUNDS / 2, FORKS), (ROUNDS_IN_A_GUEST, FORKS_IN_A_GUEST));
    let _pinned = Pinned::to_one_cpu()?;
    let kubepods = Kubepods::make(environment)?;
    let container = kubepods.container()?;
    let lives = || inside(&container, forks);
    let (mut daemon, mut client, mut took) = (Vec::new(), Vec::new(), (Vec::new(), Vec::new()));
    for round in 0..=rounds {
        let own = lives()?;
        let agent = Agent::start(environment, &["log.level=warn"]).await?;
        let with = Lives::of(&agent, lives).await?;
        agent.stop()?;
        if round > 0 {
            daemon.push(with.daemon / own);
            client.push(with.client / own);
            took.0.push(own);
            took.1.push(with.took);
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

/// What lives under a daemon and a client of its own take, in nanoseconds.
pub(crate) struct Lives {
    pub(crate) took: f64,
    pub(crate) daemon: f64,
    /// CPU time of the client, which watches everything.
    pub(crate) client: f64,
}

impl Lives {
    pub(crate) async fn of(agent: &Agent, lives: impl Fn() -> Result<f64>) -> Result<Self> {
        let watcher = Client::start(agent.socket(), 1)?;
        let before = (cpu_times(agent.pid())?, cpu_times(watcher.pid())?);
        let took = lives()?;
        // What is still on its way to the client belongs to these lives.
        tokio::time::sleep(SETTLE).await;
        let daemon = ran(&before.0, &cpu_times(agent.pid())?).as_nanos() as f64;
        let client = ran(&before.1, &cpu_times(watcher.pid())?).as_nanos() as f64;
        Ok(Self { took, daemon, client })
    }
}

/// This process, and those it starts, are on one CPU until this is dropped.
pub(crate) struct Pinned(CpuSet);

impl Pinned {
    pub(crate) fn to_one_cpu() -> Result<Self> {
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

/// A process that watches everything, by one stream or several, each with a connection of its own; ended when dropped.
pub(crate) struct Client(Killed);

impl Client {
    pub(crate) fn start(socket: &Path, streams: usize) -> Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.arg("watch").arg(socket).arg(streams.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut client = Self(Killed(command.spawn().context("start the client")?));
        let mut ready = [0];
        let output = client.0.stdout.as_mut().context("the client has no output")?;
        output.read_exact(&mut ready).context("wait for the client's streams")?;
        Ok(client)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

/// What a [`Client`] runs: prints a byte once its streams are open, and reads until it is ended.
pub(crate) async fn watch(socket: &Path, streams: usize) -> Result<()> {
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..streams {
        let mut client = KwitnessClient::new(connect(socket).await?);
        let mut stream = client.watch(from_now()).await.context("call Watch")?.into_inner();
        readers.spawn(async move {
            while stream.message().await.context("kwitness's stream")?.is_some() {}
            anyhow::Ok(())
        });
    }
    print!(".");
    std::io::stdout().flush().context("say that the streams are open")?;
    while let Some(ended) = readers.join_next().await {
        ended.context("a reader panicked")??;
    }
    Ok(())
}

/// The time of so many forks, execs and exits outside of containers, in nanoseconds.
pub(crate) fn outside(forks: u32) -> Result<f64> {
    workload(&["forks", &forks.to_string()])
}

pub(crate) fn inside(container: &HandMade, forks: u32) -> Result<f64> {
    time(container.start("/proc/self/exe", &["forks", &forks.to_string()])?)
}

/// The nanoseconds that one of this program's workloads takes outside of containers.
pub(crate) fn workload(arguments: &[&str]) -> Result<f64> {
    let mut command = Command::new("/proc/self/exe");
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
    time(command.spawn().context("start the workload")?)
}

/// The nanoseconds that a workload says it took.
pub(crate) fn time(mut child: Child) -> Result<f64> {
    let mut text = String::new();
    let output = child.stdout.as_mut().context("the workload has no output")?;
    output.read_to_string(&mut text).context("read the workload's output")?;
    let status = child.wait().context("wait for the workload")?;
    ensure!(status.success(), "the workload: {status}");
    text.trim().parse().with_context(|| format!("the workload said `{text}`"))
}
