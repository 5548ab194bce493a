//! What a watcher costs that resumes from far behind: how long it takes to read all that the journal keeps, and what that does to a
//! watcher of what happens meanwhile.
//!
//! It is a process of its own, which begins with the oldest event and reads to the newest, again and again.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use kwitness_api::proto::kwitness_client::KwitnessClient;
use kwitness_api::proto::{Event, WatchRequest, WatchResponse};
use kwitness_tests::agent::{connect, from_oldest};
use kwitness_tests::prelude::*;
use kwitness_tests::process::Killed;
use tokio::time::timeout;
use tonic::Streaming;

use crate::curve::{Bound, Budget, Curve};
use crate::latency::Ticking;
use crate::rate::SATURATION;
use crate::report::{number, quantile};

/// Events in the journal, which has room for 65,536.
const SIZES: [u64; 3] = [1000, 10_000, 60_000];
/// Live events that are timed without one that resumes, and the time that is read with one.
const TICKS: usize = 400;
const WINDOW: Duration = Duration::from_secs(4);
const LIMIT: Duration = Duration::from_secs(180);
const EACH: Duration = Duration::from_secs(30);
const FILLED: Duration = Duration::from_secs(60);
const SILENCE: Duration = Duration::from_secs(30);

const BEHIND: &str = "events behind";

pub(crate) async fn measure(environment: &Environment) -> Result<Vec<Curve>> {
    let mut time = Curve::new("resume: time to catch up", BEHIND, "ms", Bound::Linear);
    let mut speed = Curve::new("resume: events a second", BEHIND, "1/s", Bound::None);
    let mut live = Curve::new("resume: p99 of a live watcher beside it", BEHIND, "us", Bound::None);
    let budget = Budget::of(LIMIT);
    for size in SIZES {
        let sample = async {
            budget.check(EACH)?;
            at(environment, size).await
        };
        match sample.await {
            Ok(Sample { runs, alone, beside }) => {
                let x = quantile(&runs.iter().map(|run| run.events).collect::<Vec<_>>(), 0.5);
                let note = format!("{} times", runs.len());
                time.add(x, &runs.iter().map(|run| run.nanos / 1e6).collect::<Vec<_>>(), &note);
                let each = |run: &Run| run.events / run.nanos * 1e9;
                speed.add(x, &runs.iter().map(each).collect::<Vec<_>>(), &note);
                live.add(x, &[beside], &format!("{} us without", number(alone)));
            }
            Err(error) => {
                for curve in [&mut time, &mut speed, &mut live] {
                    curve.leave_out(&size.to_string(), &error);
                }
            }
        }
    }
    Ok(vec![time, speed, live])
}

struct Sample {
    runs: Vec<Run>,
    /// Of a live watcher, from the hook, in microseconds: the 99th percentile without one that resumes, and with it.
    alone: f64,
    beside: f64,
}

/// One way from the oldest event to the newest.
struct Run {
    events: f64,
    nanos: f64,
}

async fn at(environment: &Environment, size: u64) -> Result<Sample> {
    let kubepods = Kubepods::make(environment)?;
    let agent = Agent::start(environment, &["log.level=warn"]).await?;
    let container = kubepods.container()?;
    let mut workload = container.start("/proc/self/exe", &["forks-at", &SATURATION.to_string()])?;
    let filled = async || {
        let journal = agent.status().await?.journal.context("a status without a journal")?;
        Ok((journal.events >= size).then_some(()))
    };
    let filling = wait_for("the journal to fill", FILLED, filled).await;
    workload.kill().context("end the workload")?;
    workload.wait().context("wait for the workload")?;
    filling?;

    let mut live = Live::start(&agent, &kubepods).await?;
    let alone = live.delays(|delays| delays.len() >= TICKS).await?;
    let mut resuming = Resuming::start(agent.socket())?;
    let began = Instant::now();
    let beside = live.delays(|_| began.elapsed() >= WINDOW).await?;
    let runs = resuming.end()?;
    drop(live);
    agent.stop()?;
    let [alone, beside] = [alone, beside].map(|delays| quantile(&delays, 0.99));
    Ok(Sample { runs, alone, beside })
}

/// A watcher of what happens now in a container that has a program executed every ten milliseconds.
struct Live {
    ticking: Ticking,
    stream: Streaming<WatchResponse>,
}

impl Live {
    async fn start(agent: &Agent, kubepods: &Kubepods) -> Result<Self> {
        let stream = agent.client().await?.watch(from_now()).await.context("call Watch")?.into_inner();
        Ok(Self { ticking: Ticking::start(kubepods, 2 * TICKS as u32)?, stream })
    }

    /// From the hook, in microseconds, until that is enough.
    async fn delays(&mut self, is_enough: impl Fn(&[f64]) -> bool) -> Result<Vec<f64>> {
        let cgroup = self.ticking.cgroup;
        let own = |event: &&Event| {
            event.container.as_ref().is_some_and(|of| of.cgroup_id == cgroup) && kind(event) == "exec"
        };
        let mut delays = Vec::new();
        while delays.is_empty() || !is_enough(&delays) {
            let message = timeout(SILENCE, self.stream.message()).await.context("kwitness is silent")?;
            let at = boottime();
            let message = message.context("kwitness's stream")?.context("kwitness's stream ended")?;
            let delay = |event: &Event| at.saturating_sub(event.kernel_time) as f64 / 1e3;
            delays.extend(message.events.iter().filter(own).map(delay));
        }
        Ok(delays)
    }
}

/// The process that resumes; ended when dropped.
struct Resuming(Killed);

impl Resuming {
    fn start(socket: &Path) -> Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.arg("catch-up").arg(socket).stdin(Stdio::piped()).stdout(Stdio::piped());
        Ok(Self(Killed(command.spawn().context("start what resumes")?)))
    }

    /// Has it end after the run that it is in; what it says of all.
    fn end(&mut self) -> Result<Vec<Run>> {
        drop(self.0.stdin.take());
        let mut text = String::new();
        let output = self.0.stdout.as_mut().context("what resumes has no output")?;
        output.read_to_string(&mut text).context("read its output")?;
        let status = self.0.wait().context("wait for its end")?;
        ensure!(status.success(), "what resumes: {status}");
        let run = |line: &str| {
            let (events, nanos) = line.split_once(' ')?;
            Some(Run { events: events.parse().ok()?, nanos: nanos.parse().ok()? })
        };
        let runs: Option<Vec<_>> = text.lines().map(run).collect();
        runs.filter(|runs| !runs.is_empty()).with_context(|| format!("what resumes said `{text}`"))
    }
}

/// What a [`Resuming`] runs: prints the events and the nanoseconds of each run until its input ends.
pub(crate) async fn catch_up(socket: &Path) -> Result<()> {
    let (ended, is_over) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        // Whatever it says, it is over.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = ended.send(());
    });
    let mut client = KwitnessClient::new(connect(socket).await?);
    let mut output = std::io::stdout().lock();
    while is_over.try_recv().is_err() {
        let request = WatchRequest { no_follow: true, ..from_oldest() };
        let began = Instant::now();
        let mut stream = client.watch(request).await.context("call Watch")?.into_inner();
        let mut events = 0;
        while let Some(message) = stream.message().await.context("kwitness's stream")? {
            events += message.events.len();
        }
        writeln!(output, "{events} {}", began.elapsed().as_nanos()).context("say how long it took")?;
    }
    Ok(())
}
