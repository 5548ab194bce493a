//! What grows with the containers of a node: memory, idle CPU, time to start and to scan, `List` and `Verify` of all.

use bytes::Buf as _;
use kwitness_api::proto::{self, wanted};
use kwitness_tests::agent::{MESSAGE_MAX, STREAM_WINDOW, connect_with_window};
use kwitness_tests::prelude::*;
use tonic::Request;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic_prost::ProstEncoder;

use crate::curve::{Bound, Budget, Curve};
use crate::footprint::{Crowd, idle_shares, resident};

const SIZES: [usize; 4] = [100, 1000, 5000, 20_000];
const STARTS: usize = 3;
const CALLS: usize = 5;
/// More than any answer has.
const ONE_WINDOW: u32 = 64 << 20;
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
    /// The same without decoding the answer, and in one HTTP/2 window besides.
    undecoded: Vec<f64>,
    in_one_window: Vec<f64>,
    /// What is said of all three.
    list_note: String,
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
    let mut undecoded = curve("growth: List, not decoded", "ms", Bound::Linear);
    let mut in_one_window = curve("growth: List, not decoded, in one window", "ms", Bound::Linear);
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
            Ok(sample) => {
                let Sample { starts, verify: verified, .. } = &sample;
                let x = size as f64;
                memory.add(x, &starts.memory, "");
                idle.add(x, &sample.idle, "");
                ready.add(x, &starts.ready, "");
                scan.add(x, &starts.scan, "");
                list.add(x, &sample.list, &sample.list_note);
                undecoded.add(x, &sample.undecoded, &sample.list_note);
                in_one_window.add(x, &sample.in_one_window, &sample.list_note);
                match verified {
                    Ok(times) => verify.add(x, times, ""),
                    Err(error) => verify.leave_out(&label, error),
                }
            }
            Err(error) => {
                let lists = [&mut list, &mut undecoded, &mut in_one_window];
                let others = [&mut memory, &mut idle, &mut ready, &mut scan, &mut verify];
                others.into_iter().chain(lists).for_each(|curve| curve.leave_out(&label, &error));
            }
        }
    }
    Ok(vec![memory, idle, ready, scan, list, undecoded, in_one_window, verify])
}

async fn at(environment: &Environment, size: usize) -> Result<Sample> {
    let starts = Starts::measure(environment, size).await?;
    let agent = Agent::start(environment, &["log.level=warn"]).await?;
    let idle = idle_shares(agent.pid(), IDLE).await?;
    let (mut list, mut undecoded, mut in_one_window, mut bytes) = (Vec::new(), Vec::new(), Vec::new(), 0);
    let faults = || -> Result<u64> {
        Ok(process::procfs_of(agent.pid())?.stat().context("read the daemon's page faults")?.minflt)
    };
    let faults_before = faults()?;
    for _ in 0..CALLS {
        let began = Instant::now();
        agent.list().await?;
        list.push(began.elapsed().as_secs_f64() * 1e3);
        for (window, times) in [(STREAM_WINDOW, &mut undecoded), (ONE_WINDOW, &mut in_one_window)] {
            let began = Instant::now();
            bytes = list_undecoded(&agent, window).await?;
            times.push(began.elapsed().as_secs_f64() * 1e3);
        }
    }
    let faults = (faults()? - faults_before) / (3 * CALLS as u64);
    let list_note = format!("{:.2} MB, {faults} page faults", bytes as f64 / 1e6);
    let verify = verify_all(&agent, size).await;
    agent.stop()?;
    Ok(Sample { starts, idle, list, undecoded, in_one_window, list_note, verify })
}

/// Calls `List` and looks at nothing of the answer, whose bytes it gives: what of the time is the client's is not in this. The daemon
/// may send so many bytes that have not been read.
async fn list_undecoded(agent: &Agent, window: u32) -> Result<usize> {
    let channel = connect_with_window(agent.socket(), window).await?;
    let mut client = Grpc::new(channel).max_decoding_message_size(MESSAGE_MAX);
    client.ready().await.context("the daemon's channel")?;
    let path = PathAndQuery::from_static("/kwitness.v1alpha1.Kwitness/List");
    let answer = client.unary(Request::new(proto::ListRequest::default()), path, Length).await;
    Ok(answer.context("call List")?.into_inner())
}

/// How long an answer is.
#[derive(Clone, Copy, Debug, Default)]
struct Length;

impl Codec for Length {
    type Encode = proto::ListRequest;
    type Decode = usize;
    type Encoder = ProstEncoder<proto::ListRequest>;
    type Decoder = Self;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Decoder for Length {
    type Item = usize;
    type Error = tonic::Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<usize>, tonic::Status> {
        let length = buffer.remaining();
        buffer.advance(length);
        Ok(Some(length))
    }
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
