//! Events a second to one client, none lost: what everything behind the rings can carry.
//!
//! A machine cannot fork as fast as kwitness can report, so the records of a real container's processes are recorded
//! once from the rings and then fed, again and again as other processes, through what the daemon is made of: the
//! decoder, the reorder buffer, the lifecycle machine, the journal, the gRPC stream. Feeder and client are two processes,
//! as daemon and client are. The feeder stays within half a replay window of what the client has read, so that
//! the figure is what goes through and not what is thrown away.

use std::mem::offset_of;
use std::num::NonZeroUsize;
use std::path::Path;
use std::pin::Pin;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kwitness_abi::{Header, Process, RecordKind, TaskExec, TaskExit, TaskFork};
use kwitness_agent::api::Listed;
use kwitness_agent::api::kwitness_server::{Kwitness, KwitnessServer};
use kwitness_agent::clock::Clock;
use kwitness_agent::hub::{Batch, Capacity, Filter, Hub, Start, Watcher, Writer};
use kwitness_agent::probe::{Loaded, Settings};
use kwitness_api::proto;
use kwitness_api::proto::kwitness_client::KwitnessClient;
use kwitness_core::decode::Decoder;
use kwitness_core::journal::Epoch;
use kwitness_core::lifecycle::{Bounds, Lifecycle};
use kwitness_core::model::{Observation, Output, Scan, ScanReason};
use kwitness_core::reorder::ReorderBuffer;
use kwitness_tests::agent::connect;
use kwitness_tests::prelude::*;
use tokio_stream::Stream;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use crate::report::{Row, Target};

const ROUNDS: usize = 7;
const RECORDS: u64 = 3_000_000;
const RECORDS_IN_A_GUEST: u64 = 100_000;
/// The daemon's defaults.
const REPLAY_WINDOW: usize = 65_536;
const DRAIN_BUDGET: usize = 1024;
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) async fn measure(environment: &Environment) -> Result<Vec<Row>> {
    let records = environment.of_tier(RECORDS, RECORDS_IN_A_GUEST);
    let mut rates = Vec::new();
    let mut events = 0;
    for _ in 0..ROUNDS {
        let (count, took) = one_round(records).await?;
        events = count;
        rates.push(count as f64 / took.as_secs_f64() / 1e6);
    }
    let note = format!(
        "{events} events of {records} recorded records through decoder, lifecycle, journal and gRPC to another process"
    );
    Ok(vec![Row::of("throughput: events a second to one client", &rates, "M/s", Target::AtLeast(0.5), note)])
}

/// The events that came, without a hole, and the time from the first to the last.
async fn one_round(records: u64) -> Result<(u64, Duration)> {
    let directory = tempfile::tempdir_in("/run").context("make a directory in /run")?;
    let socket = directory.path().join("feed.sock");
    let mut command = Command::new("/proc/self/exe");
    command.arg("feed").arg(&socket).arg(records.to_string());
    let mut feeder = Managed::spawn("the feeder", command, &directory.path().join("log"))?;
    let channel = feeder.wait_for("the feeder", LIMIT, async || Ok(connect(&socket).await.ok()));
    let mut client = KwitnessClient::new(channel.await?);
    let mut stream = client.watch(from_now()).await.context("call Watch")?.into_inner();
    let mut began = None;
    let (mut first, mut last) = (0, 0);
    loop {
        let message = tokio::time::timeout(LIMIT, stream.message()).await.context("the feeder is silent")?;
        let Some(message) = message.context("the feeder's stream")? else { break };
        for event in message.events {
            let seq = event.position.context("an event without a position")?.seq;
            if began.is_none() {
                (began, first) = (Some(Instant::now()), seq);
            } else {
                ensure!(seq == last + 1, "{seq} came after {last}: events were lost");
            }
            last = seq;
        }
    }
    let took = began.context("no event came")?.elapsed();
    feeder.check_running()?;
    Ok((last - first, took))
}

/// Records a container's processes, then serves one watcher with them as fast as it takes them.
pub(crate) fn feed(socket: &Path, records: u64) -> Result<()> {
    // As the daemon runs: two threads on a machine with two CPUs.
    let runtime = tokio::runtime::Runtime::new().context("start tokio")?;
    runtime.block_on(async {
        let recording = Recording::take().await?;
        let epoch = Epoch("bench".into());
        let (hub, writer) = Hub::new(
            epoch,
            Capacity {
                items: NonZeroUsize::new(REPLAY_WINDOW).context("no replay window")?,
                bytes: 64 << 20,
            },
        );
        let listener = tokio::net::UnixListener::bind(socket).context("listen")?;
        let read = Arc::new(AtomicU64::new(0));
        let (arrived, mut arrival) = tokio::sync::mpsc::channel(1);
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let service = Feeder { hub: Arc::clone(&hub), read: Arc::clone(&read), arrived, stopped };
        let server = tonic::transport::Server::builder()
            .add_service(KwitnessServer::new(service))
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async move {
                arrival.recv().await;
                let fed = recording.feed(writer, &read, records).await;
                if let Err(error) = fed {
                    eprintln!("{error:?}");
                }
                // The stream ends once the watcher has read everything. The connection stays until this process is ended: the
                // watcher may still be reading what was sent.
                let _ = stop.send(true);
                std::future::pending::<()>().await;
            });
        server.await.context("serve")
    })
}

/// Real records: those that make a container known, and those of its processes.
struct Recording {
    life: Vec<Vec<u8>>,
    activity: Vec<Vec<u8>>,
}

impl Recording {
    async fn take() -> Result<Self> {
        let mut running = Loaded::load(&Settings::default())?.attach()?.run()?;
        let kubepods = Kubepods::make(&Environment::find()?)?;
        let container = kubepods.container()?;
        let mut child = container.start("/proc/self/exe", &["forks", "200"])?;
        let status = child.wait().context("wait for the workload")?;
        ensure!(status.success(), "the workload: {status}");
        let (mut life, mut activity) = (Vec::new(), Vec::new());
        running.drain(usize::MAX, |record| match kind(record) {
            // The end of the container's life is not fed: its processes go on.
            Some(RecordKind::CgroupMkdir | RecordKind::CgroupAttach) => life.push(record.to_vec()),
            Some(RecordKind::TaskFork | RecordKind::TaskExec | RecordKind::TaskExit) => {
                activity.push(record.to_vec())
            }
            _ => {}
        });
        ensure!(activity.len() >= 600, "only {} records of 200 processes", activity.len());
        Ok(Self { life, activity })
    }

    async fn feed(mut self, mut writer: Writer, read: &AtomicU64, records: u64) -> Result<()> {
        let (mut decoder, mut order) = (Decoder::default(), ReorderBuffer::default());
        let (mut lifecycle, mut output) = (Lifecycle::new(Bounds::default()), Output::default());
        let now = Clock::read().now();
        let scan = Scan::empty(ScanReason::Initial, now);
        lifecycle.observe(Observation::Scan(scan), &mut output);
        let mut fed = 0;
        let mut batch = std::mem::take(&mut self.life);
        let mut next = 0;
        while fed < records {
            for record in &mut batch {
                // Each round's processes are other ones: their start is later.
                order.push(decoder.decode(record)?);
            }
            fed += batch.len() as u64;
            let clock = Clock::read();
            for event in order.release(clock.now()) {
                lifecycle.observe(Observation::Kernel(event), &mut output);
            }
            writer.append(output.events.drain(..), clock);
            output.actions.clear();
            while writer.position().seq.saturating_sub(read.load(Ordering::Acquire))
                > REPLAY_WINDOW as u64 / 2
            {
                tokio::task::yield_now().await;
            }
            tokio::task::yield_now().await;
            batch.clear();
            while batch.len() < DRAIN_BUDGET {
                batch.push(self.again(next, clock.now().0));
                next += 1;
            }
        }
        Ok(())
    }

    /// The recording's record of that place, as of now and of a process that was not there before.
    fn again(&self, place: usize, now: u64) -> Vec<u8> {
        let (round, place) = (place / self.activity.len(), place % self.activity.len());
        let mut record = self.activity[place].clone();
        const PROCESS: usize = offset_of!(TaskFork, child);
        const { assert!(PROCESS == offset_of!(TaskExec, process) && PROCESS == offset_of!(TaskExit, process)) };
        const START: usize = PROCESS + offset_of!(Process, start_boottime);
        record[offset_of!(Header, ktime)..][..8].copy_from_slice(&now.to_ne_bytes());
        let start = u64::from_ne_bytes(*record[START..].first_chunk().unwrap_or(&[0; 8]));
        record[START..][..8].copy_from_slice(&(start + round as u64).to_ne_bytes());
        record
    }
}

fn kind(record: &[u8]) -> Option<RecordKind> {
    let bytes = record.get(offset_of!(Header, kind)..)?.first_chunk()?;
    RecordKind::from_u16(u16::from_ne_bytes(*bytes))
}

/// The API, as far as the bench needs it: `Watch` with the daemon's own hub and codec.
struct Feeder {
    hub: Arc<Hub>,
    /// The last event handed to the stream.
    read: Arc<AtomicU64>,
    arrived: tokio::sync::mpsc::Sender<()>,
    stopped: tokio::sync::watch::Receiver<bool>,
}

#[tonic::async_trait]
impl Kwitness for Feeder {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<Batch, Status>> + Send>>;
    type WatchUsageStream = Pin<Box<dyn Stream<Item = Result<proto::UsageSample, Status>> + Send>>;

    async fn watch(&self, _: Request<proto::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let watcher = self.hub.watch(Start::Now, true, Filter::default());
        let watcher = watcher.map_err(|error| Status::out_of_range(error.to_string()))?;
        let _ = self.arrived.send(()).await;
        let state = (watcher, Arc::clone(&self.hub), Arc::clone(&self.read), self.stopped.clone());
        let stream = futures_util::stream::unfold(state, async |(mut watcher, hub, read, mut stopped)| {
            let batch = next(&mut watcher, &hub, &read, &mut stopped).await?;
            Some((Ok(batch), (watcher, hub, read, stopped)))
        });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn watch_usage(
        &self,
        _: Request<proto::WatchUsageRequest>,
    ) -> Result<Response<Self::WatchUsageStream>, Status> {
        Err(Status::unimplemented("the feeder only feeds"))
    }

    async fn list(&self, _: Request<proto::ListRequest>) -> Result<Response<Listed>, Status> {
        Err(Status::unimplemented("the feeder only feeds"))
    }

    async fn verify(
        &self,
        _: Request<proto::VerifyRequest>,
    ) -> Result<Response<proto::VerifyResponse>, Status> {
        Err(Status::unimplemented("the feeder only feeds"))
    }

    async fn status(
        &self,
        _: Request<proto::StatusRequest>,
    ) -> Result<Response<proto::StatusResponse>, Status> {
        Err(Status::unimplemented("the feeder only feeds"))
    }

    async fn report_cri_requests(
        &self,
        _: Request<proto::ReportCriRequestsRequest>,
    ) -> Result<Response<proto::ReportCriRequestsResponse>, Status> {
        Err(Status::unimplemented("the feeder only feeds"))
    }

    async fn report_guard_events(
        &self,
        _: Request<proto::ReportGuardEventsRequest>,
    ) -> Result<Response<proto::ReportGuardEventsResponse>, Status> {
        Err(Status::unimplemented("the feeder only feeds"))
    }
}

/// The next batch; none once everything was fed and read.
async fn next(
    watcher: &mut Watcher,
    hub: &Hub,
    read: &AtomicU64,
    stopped: &mut tokio::sync::watch::Receiver<bool>,
) -> Option<Batch> {
    loop {
        if *stopped.borrow() && watcher.seq() >= hub.position().seq {
            return None;
        }
        tokio::select! {
            batch = watcher.next() => {
                read.store(watcher.seq(), Ordering::Release);
                return batch;
            }
            changed = stopped.changed() => changed.ok()?,
        }
    }
}
