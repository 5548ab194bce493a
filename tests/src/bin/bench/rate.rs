//! What events cost at a given rate: CPU of the daemon for each, and the time to a client beside others that watch, too.
//!
//! The events are ends of processes of one container, which forks as often as the rate asks for. A machine may not reach a rate: the
//! points are where it came to.

use std::io::Write as _;
use std::process::{Child, ChildStdin, Command, Stdio};

use kwitness_api::proto::{WatchRequest, WatchResponse};
use kwitness_tests::prelude::*;
use tokio::time::timeout_at;
use tonic::Streaming;

use crate::curve::{Bound, Budget, Curve};
use crate::footprint::{cpu_times, ran};
use crate::overhead::Client;
use crate::report::quantile;

/// Events a second; the last is more than any machine forks.
const RATES: [u32; 5] = [10, 100, 1000, 10_000, SATURATION];
pub(crate) const SATURATION: u32 = 1_000_000;
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

pub(crate) struct Sample {
    /// Events a second.
    pub(crate) rate: f64,
    /// Of the daemon, in microseconds for an event.
    pub(crate) cpu: f64,
    /// From the hook to the client, in microseconds; none if its filter let nothing through.
    pub(crate) delays: Vec<f64>,
    gaps: usize,
}

impl Sample {
    /// What a point says besides its figure.
    pub(crate) fn note(&self, label: &str) -> String {
        let lost = if self.gaps > 0 { format!(", {} gaps", self.gaps) } else { String::new() };
        format!("wanted: {label}{lost}")
    }
}

/// A rate as it was requested.
pub(crate) fn label(rate: u32) -> String {
    if rate == SATURATION { "most".to_owned() } else { rate.to_string() }
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
            let label = label(rate);
            let sample = async {
                budget.check(EACH)?;
                at(environment, rate, watchers).await
            };
            match sample.await {
                Ok(sample) => {
                    let note = sample.note(&label);
                    cpu.add(sample.rate, &[sample.cpu], &note);
                    median.add(sample.rate, &[quantile(&sample.delays, 0.5)], &note);
                    tail.add(sample.rate, &[quantile(&sample.delays, 0.99)], &note);
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
    let sample = sample(&agent, &container, rate, from_now()).await?;
    drop((others, container));
    agent.stop()?;
    Ok(sample)
}

/// What a watcher with that request costs while the container forks at that rate.
pub(crate) async fn sample(
    agent: &Agent,
    container: &HandMade,
    rate: u32,
    request: WatchRequest,
) -> Result<Sample> {
    let mut stream = agent.client().await?.watch(request).await.context("call Watch")?.into_inner();
    let before = recorded(agent).await?;
    let mut workload = container.start("/proc/self/exe", &["forks-at", &rate.to_string()])?;
    wait_for("the first event", FIRST, async || Ok((recorded(agent).await? != before).then_some(()))).await?;
    read(&mut stream, SETTLE, |_, _| {}).await?;
    let events = recorded(agent).await?;
    let (began, opened, before) = (Instant::now(), boottime(), cpu_times(agent.pid())?);
    let (mut delays, mut gaps) = (Vec::new(), 0);
    read(&mut stream, WINDOW, |message, at| {
        for event in &message.events {
            match kind(event) {
                "exited" if event.kernel_time >= opened => {
                    delays.push(at.saturating_sub(event.kernel_time) as f64 / 1e3);
                }
                "gap" => gaps += 1,
                _ => {}
            }
        }
    })
    .await?;
    let busy = ran(&before, &cpu_times(agent.pid())?);
    let took = began.elapsed();
    let events = (recorded(agent).await? - events) as f64;
    workload.kill().context("end the workload")?;
    workload.wait().context("wait for the workload")?;
    ensure!(events > 0.0, "no event in {WINDOW:?}");
    let cpu = busy.as_secs_f64() * 1e6 / events;
    Ok(Sample { rate: events / took.as_secs_f64(), cpu, delays, gaps })
}

/// How many events the daemon has recorded.
async fn recorded(agent: &Agent) -> Result<u64> {
    Ok(agent.status().await?.journal.context("a status without a journal")?.last_seq)
}

/// Reads a stream for that long. Each message comes with its time.
async fn read(
    stream: &mut Streaming<WatchResponse>,
    time: Duration,
    mut take: impl FnMut(&WatchResponse, u64),
) -> Result<()> {
    let until = tokio::time::Instant::now() + time;
    while tokio::time::Instant::now() < until {
        let Ok(message) = timeout_at(until, stream.message()).await else { break };
        let at = boottime();
        let message = message.context("kwitness's stream")?.context("kwitness's stream ended")?;
        take(&message, at);
    }
    Ok(())
}
