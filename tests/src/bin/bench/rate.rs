//! What events cost at a given rate: CPU of the daemon for each, and the time to a client beside others that watch, too.
//!
//! The events are ends of processes of one container, which forks as often as the rate asks for. A machine may not reach a rate: the
//! points are where it came to.

use std::io::Write as _;
use std::process::{Child, ChildStdin, Command, Stdio};

use kwitness_api::proto::WatchResponse;
use kwitness_tests::prelude::*;
use tokio::time::timeout_at;
use tonic::Streaming;

use crate::curve::{Bound, Budget, Curve};
use crate::footprint::{cpu_times, ran};
use crate::overhead::Client;
use crate::report::quantile;

/// Events a second; the last is more than any machine forks.
const RATES: [u32; 5] = [10, 100, 1000, 10_000, SATURATION];
const SATURATION: u32 = 1_000_000;
const WATCHERS: [usize; 3] = [1, 8, 64];
/// From the first event on, which is not counted.
const SETTLE: Duration = Duration::from_secs(1);
const WINDOW: Duration = Duration::from_secs(8);
const LIMIT: Duration = Duration::from_secs(240);
const EACH: Duration = Duration::from_secs(14);
const FIRST: Duration = Duration::from_secs(30);

/// The shells that fork: one may not be enough for a whole machine.
const SHELLS: usize = 2;
/// Forks as often as each line that it reads says.
const FORKS: &str = "while read n; do while [ $n -gt 0 ]; do (:); n=$((n-1)); done; done";
/// Shells are given work this often, at most.
const TICK: Duration = Duration::from_millis(10);

/// Forks at a rate until it is ended: a part of each second's forks every ten milliseconds.
pub(crate) fn forks_at(rate: u32) -> Result<()> {
    let shell = |_| {
        let mut command = Command::new("/usr/bin/busybox");
        command.args(["sh", "-c", FORKS]).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child = command.spawn().context("start a shell")?;
        let stdin = child.stdin.take().context("the shell has no input")?;
        anyhow::Ok((child, stdin))
    };
    let mut shells: Vec<(Child, ChildStdin)> = (0..SHELLS).map(shell).collect::<Result<_>>()?;
    let tick = TICK.max(Duration::from_secs(1) / rate);
    let began = Instant::now();
    let (mut done, mut ticks) = (0, 0);
    loop {
        for (_, stdin) in &mut shells {
            ticks += 1;
            let due = tick / SHELLS as u32 * ticks;
            std::thread::sleep(due.saturating_sub(began.elapsed()));
            let wanted = (due.as_secs_f64() * f64::from(rate)) as u64;
            // Blocks while the shell is behind by more than a pipe holds.
            writeln!(stdin, "{}", wanted - done).context("give a shell its forks")?;
            done = wanted;
        }
    }
}

struct Sample {
    /// Events a second.
    rate: f64,
    /// Of the daemon, in microseconds for an event.
    cpu: f64,
    /// From the hook, in microseconds.
    delays: Vec<f64>,
    gaps: usize,
}

pub(crate) async fn measure(environment: &Environment) -> Result<Vec<Curve>> {
    let mut curves = Vec::new();
    let budget = Budget::of(LIMIT);
    for watchers in WATCHERS {
        let plural = if watchers == 1 { "watcher" } else { "watchers" };
        let curve = |what: &str, unit, bound| {
            Curve::new(&format!("rate: {what}, {watchers} {plural}"), "events a second", unit, bound)
        };
        let mut cpu = curve("CPU for an event", "us", Bound::Flat);
        let mut median = curve("hook to client p50", "us", Bound::None);
        let mut tail = curve("hook to client p99", "us", Bound::None);
        for rate in RATES {
            let label = if rate == SATURATION { "most".to_owned() } else { rate.to_string() };
            let sample = async {
                budget.check(EACH)?;
                at(environment, rate, watchers).await
            };
            match sample.await {
                Ok(Sample { rate, cpu: each, delays, gaps }) => {
                    let lost = if gaps > 0 { format!(", {gaps} gaps") } else { String::new() };
                    let note = format!("wanted: {label}{lost}");
                    cpu.add(rate, &[each], &note);
                    median.add(rate, &[quantile(&delays, 0.5)], &note);
                    tail.add(rate, &[quantile(&delays, 0.99)], &note);
                }
                Err(error) => [&mut cpu, &mut median, &mut tail]
                    .into_iter()
                    .for_each(|curve| curve.leave_out(&label, &error)),
            }
        }
        curves.extend([cpu, median, tail]);
    }
    Ok(curves)
}

async fn at(environment: &Environment, rate: u32, watchers: usize) -> Result<Sample> {
    let kubepods = Kubepods::make(environment)?;
    let container = kubepods.container()?;
    let agent = Agent::start(environment, &["log.level=warn"]).await?;
    let others = (watchers > 1).then(|| Client::start(agent.socket(), watchers - 1)).transpose()?;
    let mut stream = agent.client().await?.watch(from_now()).await.context("call Watch")?.into_inner();
    let mut workload = container.start("/proc/self/exe", &["forks-at", &rate.to_string()])?;

    let exits = |message: &WatchResponse| {
        let exits = message.events.iter().filter(|event| kind(event) == "exited");
        exits.map(|event| event.kernel_time).collect::<Vec<_>>()
    };
    let first = read(&mut stream, FIRST, |message, _| !exits(message).is_empty()).await?;
    ensure!(first, "no event in {FIRST:?}");
    read(&mut stream, SETTLE, |_, _| false).await?;
    let (began, opened, before) = (Instant::now(), boottime(), cpu_times(agent.pid())?);
    let (mut delays, mut gaps) = (Vec::new(), 0);
    read(&mut stream, WINDOW, |message, at| {
        let counted = exits(message).into_iter().filter(|time| *time >= opened);
        delays.extend(counted.map(|time| at.saturating_sub(time) as f64 / 1e3));
        gaps += message.events.iter().filter(|event| kind(event) == "gap").count();
        false
    })
    .await?;
    let busy = ran(&before, &cpu_times(agent.pid())?);
    let took = began.elapsed();
    workload.kill().context("end the workload")?;
    workload.wait().context("wait for the workload")?;
    drop((stream, others, container));
    agent.stop()?;
    let count = delays.len() as f64;
    let cpu = busy.as_secs_f64() * 1e6 / count;
    Ok(Sample { rate: count / took.as_secs_f64(), cpu, delays, gaps })
}

/// Reads a stream for that long, or until a message is the one that is waited for: then true. Each comes with its time.
async fn read(
    stream: &mut Streaming<WatchResponse>,
    time: Duration,
    mut is_last: impl FnMut(&WatchResponse, u64) -> bool,
) -> Result<bool> {
    let until = tokio::time::Instant::now() + time;
    while tokio::time::Instant::now() < until {
        let Ok(message) = timeout_at(until, stream.message()).await else { break };
        let at = boottime();
        let message = message.context("kwitness's stream")?.context("kwitness's stream ended")?;
        if is_last(&message, at) {
            return Ok(true);
        }
    }
    Ok(false)
}
