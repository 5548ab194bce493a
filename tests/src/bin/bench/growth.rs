//! What grows with the containers of a node: memory, idle CPU, time to start and to scan, `List` and `Verify` of all.

use kwitness_api::proto::{self, wanted};
use kwitness_tests::prelude::*;

use crate::curve::{Bound, Budget, Curve};
use crate::footprint::{Crowd, idle_shares, resident};

const SIZES: [usize; 4] = [100, 1000, 5000, 20_000];
const STARTS: usize = 3;
const CALLS: usize = 5;
const IDLE: Duration = Duration::from_secs(8);
const LIMIT: Duration = Duration::from_secs(420);
/// What a size takes beside its containers: starts, rests, calls.
const REST: Duration = Duration::from_secs(20);
/// The size at which memory and idle CPU have targets, in megabytes and in per cent of a core.
const LARGEST: f64 = 20_000.0;
const MEMORY: f64 = 150.0;
const CPU: f64 = 0.5;

const CONTAINERS: &str = "containers";

struct Sample {
    starts: Starts,
    idle: Vec<f64>,
    list: Vec<f64>,
    /// Or why the call was refused.
    verify: Result<Vec<f64>>,
}

#[derive(Debug, Default)]
pub(crate) struct Starts {
    /// From execve to SERVING, in milliseconds.
    pub(crate) ready: Vec<f64>,
    /// The part of it that is the first scan, in milliseconds.
    pub(crate) scan: Vec<f64>,
    /// What is resident after it, in megabytes.
    pub(crate) memory: Vec<f64>,
}

impl Starts {
    /// Starts the daemon several times; each must know so many containers.
    pub(crate) async fn measure(environment: &Environment, containers: usize) -> Result<Self> {
        let mut starts = Self::default();
        for _ in 0..STARTS {
            let began = Instant::now();
            let agent = Agent::start(environment, &["log.level=info"]).await?;
            starts.ready.push(began.elapsed().as_secs_f64() * 1e3);
            let known = agent.list().await?.containers.len();
            ensure!(known == containers, "kwitness knows {known} of {containers} containers");
            starts.memory.push(resident(agent.pid())? / 1e6);
            starts.scan.push(scan_ms(&agent.log()?)?);
            agent.stop()?;
        }
        Ok(starts)
    }
}

/// The time of the first scan, from the line in which the daemon says that it is ready.
fn scan_ms(log: &str) -> Result<f64> {
    let (_, rest) = log.split_once("scan_ms=").context("the daemon's log has no scan_ms")?;
    let digits = rest.split(|letter: char| !letter.is_ascii_digit()).next().unwrap_or_default();
    digits.parse().with_context(|| format!("scan_ms={digits}"))
}

pub(crate) async fn measure(environment: &Environment, sizes: &[usize]) -> Result<Vec<Curve>> {
    let sizes = if sizes.is_empty() { &SIZES } else { sizes };
    let curve = |name: &str, unit, bound| Curve::new(name, CONTAINERS, unit, bound);
    let mut memory = curve("growth: resident memory", "MB", Bound::Linear).with_target(LARGEST, MEMORY);
    let mut idle = curve("growth: idle CPU", "%", Bound::Linear).with_target(LARGEST, CPU);
    let mut ready = curve("growth: start to ready", "ms", Bound::Linear);
    let mut scan = curve("growth: first scan", "ms", Bound::Linear);
    let mut list = curve("growth: List", "ms", Bound::Linear);
    let mut verify = curve("growth: Verify of all", "ms", Bound::Linear);

    let budget = Budget::of(LIMIT);
    let mut crowd = Crowd::new(environment, environment.layout == CgroupLayout::Unified)?;
    // What a container took to make so far, from the largest step.
    let mut each = Duration::ZERO;
    for &size in sizes {
        let more = u32::try_from(size.saturating_sub(crowd.len())).context("a size that is too large")?;
        let sample = async {
            budget.check(each * more + REST)?;
            let began = Instant::now();
            let grown = crowd.grow(size);
            each = began.elapsed() / more.max(1);
            grown?;
            at(environment, size).await
        };
        let label = size.to_string();
        match sample.await {
            Ok(Sample { starts, idle: shares, list: lists, verify: verified }) => {
                let x = size as f64;
                memory.add(x, &starts.memory, "");
                idle.add(x, &shares, "");
                ready.add(x, &starts.ready, "");
                scan.add(x, &starts.scan, "");
                list.add(x, &lists, "");
                match verified {
                    Ok(times) => verify.add(x, &times, ""),
                    Err(error) => verify.leave_out(&label, &error),
                }
            }
            Err(error) => {
                for curve in [&mut memory, &mut idle, &mut ready, &mut scan, &mut list, &mut verify] {
                    curve.leave_out(&label, &error);
                }
            }
        }
    }
    Ok(vec![memory, idle, ready, scan, list, verify])
}

async fn at(environment: &Environment, size: usize) -> Result<Sample> {
    let starts = Starts::measure(environment, size).await?;
    let agent = Agent::start(environment, &["log.level=warn"]).await?;
    let idle = idle_shares(agent.pid(), IDLE).await?;
    let mut list = Vec::new();
    for _ in 0..CALLS {
        let began = Instant::now();
        agent.list().await?;
        list.push(began.elapsed().as_secs_f64() * 1e3);
    }
    let verify = verify_all(&agent, size).await;
    agent.stop()?;
    Ok(Sample { starts, idle, list, verify })
}

/// The times of calls that ask for the memory limit of all containers.
async fn verify_all(agent: &Agent, size: usize) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    for _ in 0..CALLS {
        let memory = Some(wanted::Memory::MemoryBytes(64 << 20));
        let request = proto::VerifyRequest {
            wanted: Some(proto::Wanted { memory, cpu: None }),
            ..proto::VerifyRequest::default()
        };
        let began = Instant::now();
        let answer = agent.verify(request).await.map_err(|status| anyhow::anyhow!("{}", status.message()))?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
        let count = answer.verdicts.len();
        ensure!(count >= size, "{count} verdicts on {size} containers");
    }
    Ok(times)
}
