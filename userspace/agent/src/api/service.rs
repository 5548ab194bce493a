//! The methods of `kwitness.v1alpha1.Kwitness`. Each answer is put together here from what the hub, the engine and the resolver
//! know; nothing is remembered from one call to the next.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use kwitness_core::journal::{Epoch, Position};
use kwitness_core::model::{Judged, KernelTime, Observation, Subject};
use prost::Message;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::api::admission::Admission;
use crate::api::cri_reports::{self, Checked};
use crate::api::guard_reports::{self, Report};
use crate::api::kwitness_server::Kwitness;
use crate::api::list::Listed;
use crate::api::wanted;
use crate::clock::Clock;
use crate::config::Call;
use crate::cri::Resolver;
use crate::cri_events::Events;
use crate::engine::{Handle, Snapshot, Stopped};
use crate::hub::{Batch, Filter, Hub, Start, Watcher};
use crate::privileges;
use crate::probe::Capabilities;
use crate::reported::LimitReport;
use crate::usage::{self, Subscription, Usage};
use crate::verify::{Verifier, VerifyError};
use crate::wire::containers::{self, TooLarge};
use crate::wire::{capability, convert, problem, program, unserved, verdicts};
use kwitness_api::text::escape;
use kwitness_api::{GUARD_REPORTS_MAX, proto};
use kwitness_service::{BindingState, Origin};

/// The longest that `Verify` waits.
const WAIT_MAX_MS: u32 = 600_000;
/// The longest that it watches usage.
const PROVE_MAX_MS: u32 = 60_000;

/// Bytes of the containers or verdicts in one answer, encoded, at most: ten thousand containers with 3 KiB of labels each. More fails
/// the call.
const ANSWER_BYTES_MAX: usize = 32 << 20;

/// What does not change while the daemon runs.
#[derive(Clone, Debug)]
pub struct DaemonInfo {
    /// When it was started.
    pub started: KernelTime,
    /// The configuration file in use.
    pub config_file: Option<PathBuf>,
    /// The settings in use, each as the file writes it.
    pub settings: BTreeMap<&'static str, String>,
    /// The socket that it serves.
    pub socket: PathBuf,
    /// The node's name.
    pub node_name: String,
    /// What the kernel offers.
    pub capabilities: Capabilities,
    /// The part of the cgroup hierarchy that is watched.
    pub subtree: String,
    /// The addresses that are served besides the socket.
    pub bindings: Vec<BindingState>,
}

/// The service.
#[derive(Clone)]
pub struct Service {
    hub: Arc<Hub>,
    engine: Handle,
    resolver: Resolver,
    verifier: Verifier,
    usage: Usage,
    info: Arc<DaemonInfo>,
    admission: Admission,
    cri_events: Option<Events>,
    /// Whether clients may report anything.
    takes_reports: bool,
    stop: CancellationToken,
}

impl Service {
    /// A service that ends its streams when stopped.
    pub fn new(
        hub: Arc<Hub>,
        engine: Handle,
        resolver: Resolver,
        verifier: Verifier,
        info: DaemonInfo,
        admission: Admission,
        stop: CancellationToken,
    ) -> Self {
        let (info, cri_events) = (Arc::new(info), None);
        let usage = Usage::new(verifier.cgroups().clone(), engine.clone(), hub.clone());
        Self {
            hub,
            engine,
            resolver,
            verifier,
            usage,
            info,
            admission,
            cri_events,
            takes_reports: true,
            stop,
        }
    }

    /// Shows the counters of the CRI's event stream, too.
    pub fn with_cri_events(self, events: Events) -> Self {
        Self { cri_events: Some(events), ..self }
    }

    /// The same, without the calls that take something in.
    pub fn read_only(self) -> Self {
        Self { takes_reports: false, ..self }
    }

    /// How many calls it answers at a time.
    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    /// The position and the containers as of it, encoded as [`containers::encode`] does.
    async fn containers(&self, filter: Filter) -> Result<(Position, Vec<u8>), Status> {
        let Snapshot { position, containers } = self.engine.snapshot(filter).await?;
        let encoded = containers::encode(&position, &containers, Clock::read(), ANSWER_BYTES_MAX)?;
        Ok((position, encoded))
    }

    async fn start(&self, request: proto::WatchRequest, filter: Filter) -> Result<Watching, Status> {
        let options = |mut watcher: Watcher| {
            if let Some(until) = request.until {
                watcher = watcher.until(Clock::read().kernel(until));
            }
            if request.limit > 0 {
                watcher = watcher.with_limit(request.limit);
            }
            if request.resolve_names { watcher.resolving_names() } else { watcher }
        };
        let after =
            request.after.clone().map(|after| Position { epoch: Epoch(after.epoch.into()), seq: after.seq });
        let start = match (after, request.since) {
            (Some(_), Some(_)) => {
                return Err(Status::invalid_argument("`after` and `since` exclude each other"));
            }
            (None, Some(_)) if request.snapshot => {
                return Err(Status::invalid_argument("`snapshot` and `since` exclude each other"));
            }
            (after, None)
                if request.snapshot && !after.as_ref().is_some_and(|at| self.hub.can_resume(at)) =>
            {
                let (position, snapshot) = self.containers(filter.clone()).await?;
                let mut watcher = self
                    .hub
                    .watch(Start::Snapshot { position, instead_of: after }, !request.no_follow, filter)
                    .map_err(|error| Status::out_of_range(error.to_string()))?;
                let first = watcher.opening().with_snapshot(snapshot);
                return Ok(Watching { first: Some(first), watcher: options(watcher) });
            }
            (Some(position), None) => Start::After(position),
            (None, Some(time)) => Start::Since(Clock::read().kernel(time)),
            (None, None) => Start::Now,
        };
        let mut watcher = self
            .hub
            .watch(start, !request.no_follow, filter)
            .map_err(|error| Status::out_of_range(error.to_string()))?;
        Ok(Watching { first: Some(watcher.opening()), watcher: options(watcher) })
    }
}

/// What a `Watch` stream is made of.
struct Watching {
    first: Option<Batch>,
    watcher: Watcher,
}

impl Watching {
    fn into_stream(self, stop: CancellationToken) -> impl Stream<Item = Result<Batch, Status>> {
        futures_util::stream::unfold(Some((self, stop)), async |state| {
            let (mut watching, stop) = state?;
            if let Some(first) = watching.first.take() {
                return Some((Ok(first), Some((watching, stop))));
            }
            tokio::select! {
                biased;
                batch = watching.watcher.next() => Some((Ok(batch?), Some((watching, stop)))),
                () = stop.cancelled() => Some((Err(Status::unavailable("the daemon is stopping")), None)),
            }
        })
    }
}

/// What a `WatchUsage` stream is made of.
struct UsageWatching {
    subscription: Subscription,
    filter: Filter,
}

impl UsageWatching {
    async fn next(&mut self) -> Result<proto::UsageSample, Status> {
        let (sample, skipped) = self.subscription.next().await;
        let containers = bounded(sample.containers(&self.filter), ANSWER_BYTES_MAX)?;
        Ok(proto::UsageSample { containers, ..sample.head(skipped) })
    }

    fn into_stream(self, stop: CancellationToken) -> impl Stream<Item = Result<proto::UsageSample, Status>> {
        futures_util::stream::unfold(Some((self, stop)), async |state| {
            let (mut watching, stop) = state?;
            let sample = tokio::select! {
                biased;
                sample = watching.next() => sample,
                () = stop.cancelled() => Err(Status::unavailable("the daemon is stopping")),
            };
            let goes_on = sample.is_ok();
            Some((sample, goes_on.then_some((watching, stop))))
        })
    }
}

#[tonic::async_trait]
impl Kwitness for Service {
    type WatchUsageStream = Pin<Box<dyn Stream<Item = Result<proto::UsageSample, Status>> + Send>>;

    async fn watch_usage(
        &self,
        request: Request<proto::WatchUsageRequest>,
    ) -> Result<Response<Self::WatchUsageStream>, Status> {
        let proto::WatchUsageRequest { filter, interval_ms } = request.into_inner();
        let filter = self::filter(filter)?;
        let interval = usage::interval(interval_ms).map_err(Status::invalid_argument)?;
        let watching = UsageWatching { subscription: self.usage.subscribe(interval), filter };
        Ok(Response::new(Box::pin(watching.into_stream(self.stop.clone()))))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<Batch, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<proto::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let mut request = request.into_inner();
        let filter = filter(request.filter.take())?;
        let watching = self.start(request, filter).await?;
        Ok(Response::new(Box::pin(watching.into_stream(self.stop.clone()))))
    }

    async fn list(&self, request: Request<proto::ListRequest>) -> Result<Response<Listed>, Status> {
        let filter = filter(request.into_inner().filter)?;
        let (_, containers) = self.containers(filter).await?;
        Ok(Response::new(Listed(containers)))
    }

    async fn verify(
        &self,
        request: Request<proto::VerifyRequest>,
    ) -> Result<Response<proto::VerifyResponse>, Status> {
        let origin = request.extensions().get::<Origin>().copied().unwrap_or_default();
        let proto::VerifyRequest { filter, wanted, wait_ms, prove_ms } = request.into_inner();
        if wait_ms > WAIT_MAX_MS {
            return Err(Status::invalid_argument(format!("`wait_ms` is more than {WAIT_MAX_MS}")));
        }
        if prove_ms > PROVE_MAX_MS {
            return Err(Status::invalid_argument(format!("`prove_ms` is more than {PROVE_MAX_MS}")));
        }
        let filter = self::filter(filter)?;
        let desired = wanted::read(&wanted.unwrap_or_default(), Clock::read().now())
            .map_err(Status::invalid_argument)?;
        let wait = Duration::from_millis(wait_ms.into());
        let verifier = self.verifier.of_client(origin.into());
        let verify = async {
            let mut verdicts = verifier.verify(&filter, &desired, wait).await?;
            if prove_ms > 0 {
                verifier.prove(&mut verdicts, Duration::from_millis(prove_ms.into())).await?;
            }
            Ok::<_, Status>(verdicts)
        };
        let verdicts = tokio::select! {
            verdicts = verify => verdicts?,
            () = self.stop.cancelled() => return Err(Stopped.into()),
        };
        let clock = Clock::read();
        let mut proofs = verdicts.proofs.iter();
        let of = |(subject, judged): &(Option<Arc<Subject>>, Judged)| proto::VerdictOf {
            container: subject.as_ref().map(|subject| convert::container(subject)),
            verdict: Some(verdicts::verdict(judged, clock)),
            proof: proofs.next().and_then(Option::as_ref).map(|(seen, proof)| verdicts::proof(seen, proof)),
            last_request: subject
                .as_ref()
                .and_then(|subject| self.verifier.reported().requests().last(&subject.container_id.0)),
        };
        Ok(Response::new(proto::VerifyResponse {
            // Each has its container with it, labels included.
            verdicts: bounded(verdicts.judged.iter().map(of), ANSWER_BYTES_MAX)?,
            unavailable: verdicts.unavailable,
        }))
    }

    async fn report_cri_requests(
        &self,
        request: Request<proto::ReportCriRequestsRequest>,
    ) -> Result<Response<proto::ReportCriRequestsResponse>, Status> {
        if !self.takes_reports {
            return Err(Status::permission_denied("requests are reported on the Unix socket only"));
        }
        let now = Clock::read().now();
        let Checked { reports, missed, answer } =
            cri_reports::check(request.into_inner(), self.verifier.reported().requests(), now)?;
        if let Some(first) = answer.malformed.first() {
            tracing::warn!(count = answer.malformed.len(), first, "rejected malformed request reports");
        }
        for missed in missed {
            self.engine.observe(missed).await?;
        }
        // When the engine answers this, it has taken in what came before, too.
        self.engine.report_limits(now, reports).await?;
        Ok(Response::new(answer))
    }

    async fn report_guard_events(
        &self,
        request: Request<proto::ReportGuardEventsRequest>,
    ) -> Result<Response<proto::ReportGuardEventsResponse>, Status> {
        if !self.takes_reports {
            return Err(Status::permission_denied("the guard reports on the Unix socket only"));
        }
        let proto::ReportGuardEventsRequest { reports, dropped } = request.into_inner();
        if reports.len() > GUARD_REPORTS_MAX {
            return Err(Status::invalid_argument(format!("more than {GUARD_REPORTS_MAX} `reports`")));
        }
        let now = Clock::read().now();
        let mut answer = proto::ReportGuardEventsResponse::default();
        match dropped.map(|dropped| guard_reports::read_dropped(&dropped, now)) {
            Some(Ok(dropped)) => self.engine.observe(dropped).await?,
            Some(Err(malformed)) => answer.rejected.push(malformed.to_string()),
            None => {}
        }
        let mut read = Vec::with_capacity(reports.len());
        for (index, report) in reports.into_iter().enumerate() {
            match guard_reports::read(report, now) {
                Ok(report) => read.push((index, report)),
                Err(malformed) => answer.rejected.push(format!("reports[{index}]: {malformed}")),
            }
        }
        let containers = read.iter().map(|(_, report)| report.container().clone()).collect();
        let known = self.engine.known(containers).await?;
        let mut limits = Vec::new();
        for ((index, report), is_known) in read.into_iter().zip(known) {
            if !is_known {
                let id = escape(&report.container().0).into_owned();
                answer.rejected.push(format!("reports[{index}]: no container with the ID {id:?} is known"));
                continue;
            }
            answer.accepted += 1;
            match report {
                Report::SetsLimit { container, at, bytes } => {
                    limits.push(LimitReport::GuardSets { container, at, bytes });
                }
                Report::SetsHigh { container, at, bytes } => {
                    limits.push(LimitReport::GuardBrakes { container, at, bytes });
                }
                Report::Act(report) => {
                    if !limits.is_empty() {
                        self.engine.report_limits(now, std::mem::take(&mut limits)).await?;
                    }
                    self.engine.observe(Observation::Guard(report)).await?;
                }
            }
        }
        // When the engine answers this, it has taken in what came before, too.
        self.engine.report_limits(now, limits).await?;
        if let Some(first) = answer.rejected.first() {
            tracing::warn!(count = answer.rejected.len(), first, "rejected reports of the guard");
        }
        Ok(Response::new(answer))
    }

    async fn status(
        &self,
        _: Request<proto::StatusRequest>,
    ) -> Result<Response<proto::StatusResponse>, Status> {
        let report = self.engine.report().await?;
        let info = &*self.info;
        let clock = Clock::read();
        let mut counters = report.counters;
        counters.extend(self.resolver.counters());
        counters.extend(self.admission.bytes_refused().map(|(name, count)| (name.to_owned(), count)));
        counters.extend(self.verifier.reported().counters());
        counters.extend(self.cri_events.iter().flat_map(Events::counters));
        let kubernetes = self.verifier.kubernetes();
        counters.extend(kubernetes.iter().flat_map(|kubernetes| kubernetes.counters()));
        Ok(Response::new(proto::StatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            epoch: self.hub.position().epoch.0.to_string(),
            started_at: Some(clock.wall(info.started)),
            kernel_release: info.capabilities.kernel.clone(),
            node_name: info.node_name.clone(),
            journal: Some(self.hub.extent()),
            capabilities: info.capabilities.reports.iter().map(capability).collect(),
            programs: report.programs.iter().map(program).collect(),
            lost: report.lost,
            counters,
            runtime: Some(self.resolver.status()),
            containers: u32::try_from(report.containers).unwrap_or(u32::MAX),
            watchers: self.admission.active(Call::Watch),
            cgroup_subtree: info.subtree.clone(),
            uptime_seconds: clock.now().0.saturating_sub(info.started.0) / 1_000_000_000,
            config_file: info.config_file.as_ref().map(|path| path.display().to_string()),
            socket: info.socket.display().to_string(),
            resident_bytes: resident_bytes(),
            calls: self.admission.limits(),
            problems: info
                .bindings
                .iter()
                .filter_map(unserved)
                .chain(report.problems.iter().map(problem))
                .collect(),
            kubernetes: kubernetes.map(|kubernetes| kubernetes.status(clock)),
            privileges: privileges::held(),
            settings: info.settings.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect(),
        }))
    }
}

fn filter(filter: Option<proto::Filter>) -> Result<Filter, Status> {
    Filter::try_from(filter.unwrap_or_default()).map_err(|error| Status::invalid_argument(error.to_string()))
}

/// The entries of one answer, unless they take more bytes than that.
fn bounded<T: Message>(entries: impl Iterator<Item = T>, max: usize) -> Result<Vec<T>, Status> {
    let mut left = max;
    let fits = |entry: T| {
        left = left.checked_sub(entry.encoded_len()).ok_or(TooLarge { max })?;
        Ok(entry)
    };
    entries.map(fits).collect()
}

impl From<TooLarge> for Status {
    fn from(refused: TooLarge) -> Self {
        Self::resource_exhausted(refused.to_string())
    }
}

/// The memory that this process has resident.
fn resident_bytes() -> Option<u64> {
    let pages = procfs::process::Process::myself().and_then(|process| process.statm()).ok()?.resident;
    pages.checked_mul(procfs::page_size())
}

impl From<VerifyError> for Status {
    fn from(error: VerifyError) -> Self {
        match error {
            VerifyError::NoContainer => Self::not_found(error.to_string()),
            VerifyError::Stopped(stopped) => stopped.into(),
        }
    }
}

impl From<Stopped> for Status {
    fn from(stopped: Stopped) -> Self {
        Self::unavailable(stopped.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_is_too_large_is_refused_with_what_to_do() {
        let container = proto::ContainerState { program: Some("x".repeat(1000)), ..Default::default() };
        let size = container.encoded_len();
        let many = |count| std::iter::repeat_n(container.clone(), count);
        assert_eq!(bounded(many(3), 3 * size).unwrap().len(), 3);
        let refused = bounded(many(4), 3 * size).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        assert!(refused.message().contains("`filter`"), "{refused}");
        // What comes after that is not even looked at.
        let mut looked_at = 0;
        let endless = std::iter::repeat(container.clone()).inspect(|_| looked_at += 1);
        assert!(bounded(endless, 10 * size).is_err());
        assert_eq!(looked_at, 11);
    }
}
