//! The exporter against a collector in this process that answers by a script.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kwitness_api::Timestamp;
use kwitness_api::client::Item;
use kwitness_api::proto::event::Kind;
use kwitness_api::proto::{Event, Gap, GapCause, Position, Updated, VerdictKind};
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{LogsService, LogsServiceServer};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use tokio::net::TcpListener;
use tokio::sync::mpsc::Receiver;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};
use tower::util::MapResponseLayer;

use crate::collector::{Collector, CollectorOptions};
use crate::counters::Shared;
use crate::exporter::Exporter;
use crate::kubernetes::{Post, Reporter};
use crate::queue::{Progress, Queue};
use crate::record::{Mapping, Node};
use crate::replay::Replay;
use crate::state::StateFile;
use crate::testing::{named, oom_kill, verdict};

/// One answer.
type Answer = Result<ExportLogsServiceResponse, Status>;

#[derive(Clone, Default)]
struct Scripted {
    /// For the calls to come; without one, it accepts.
    answers: Arc<Mutex<VecDeque<Answer>>>,
    /// The numbers of each message's records, sorted; 0 for a gap of the exporter's.
    received: Arc<Mutex<Vec<Vec<i64>>>>,
}

#[tonic::async_trait]
impl LogsService for Scripted {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        assert_eq!(request.metadata().get("authorization").unwrap(), "Bearer secret");
        let groups = request.into_inner().resource_logs;
        let scopes = groups.into_iter().flat_map(|group| group.scope_logs);
        let mut seqs: Vec<_> = scopes.flat_map(|scope| scope.log_records).map(|log| seq(&log)).collect();
        seqs.sort_unstable();
        self.received.lock().unwrap().push(seqs);
        let answer = self.answers.lock().unwrap().pop_front();
        answer.unwrap_or_else(|| Ok(ExportLogsServiceResponse::default())).map(Response::new)
    }
}

fn seq(log: &LogRecord) -> i64 {
    let found = log.attributes.iter().find(|attribute| attribute.key == "kwitness.seq");
    match found.map(|attribute| attribute.value.as_ref().unwrap().value.as_ref().unwrap()) {
        Some(Value::IntValue(seq)) => *seq,
        Some(other) => panic!("{other:?}"),
        None => 0,
    }
}

struct Bench {
    scripted: Scripted,
    endpoint: String,
    state: StateFile,
    shared: Arc<Shared>,
    _directory: tempfile::TempDir,
}

impl Bench {
    async fn start(answers: impl IntoIterator<Item = Answer>) -> Self {
        Self::behind(answers, []).await
    }

    /// With a proxy before the collector, which answers the first calls with these statuses of HTTP instead of the collector's own.
    async fn behind(
        answers: impl IntoIterator<Item = Answer>,
        statuses: impl IntoIterator<Item = u16>,
    ) -> Self {
        let statuses = Arc::new(Mutex::new(VecDeque::from_iter(statuses)));
        let proxy = MapResponseLayer::new(move |response: http::Response<Body>| {
            let status = statuses.lock().unwrap().pop_front();
            status.map_or(response, |status| {
                http::Response::builder().status(status).body(Body::empty()).unwrap()
            })
        });
        let scripted = Scripted::default();
        scripted.answers.lock().unwrap().extend(answers);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let server = tonic::transport::Server::builder()
            .layer(proxy)
            .add_service(LogsServiceServer::new(scripted.clone()));
        drop(tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener))));
        let directory = tempfile::tempdir().unwrap();
        let state = StateFile::new(&directory.path().join("state.json"));
        Self { scripted, endpoint, state, shared: Arc::default(), _directory: directory }
    }

    fn exporter(&self, with_collector: bool) -> Exporter {
        self.exporter_with(with_collector, None, None)
    }

    /// One that makes Kubernetes Events, and goes on as `run` does; those that it makes.
    fn reporting(&self) -> (Exporter, Receiver<Post>) {
        let (reporter, posts) = Reporter::new(|_| String::new(), Arc::clone(&self.shared));
        let Progress { position, kubernetes, .. } = self.progress();
        let replay = Replay::plan(position.as_ref(), &kubernetes).map(|(replay, _)| replay);
        (self.exporter_with(true, Some(reporter), replay), posts)
    }

    fn exporter_with(
        &self,
        with_collector: bool,
        reporter: Option<Reporter>,
        replay: Option<Replay>,
    ) -> Exporter {
        let options = CollectorOptions {
            endpoint: self.endpoint.clone(),
            ca: None,
            headers: vec!["authorization=Bearer secret".parse().unwrap()],
        };
        let collector = Collector::new(&options, Arc::clone(&self.shared)).unwrap();
        let mapping = Mapping { node: Node::default(), sentence: |_| String::new() };
        let queue = Queue::new(1 << 20, self.state.load().unwrap());
        let collector = with_collector.then_some(collector);
        let shared = Arc::clone(&self.shared);
        Exporter::new(mapping, collector, reporter, queue, self.state.clone(), replay, shared)
    }

    fn received(&self) -> Vec<Vec<i64>> {
        self.scripted.received.lock().unwrap().clone()
    }

    fn progress(&self) -> Progress {
        self.state.load().unwrap()
    }
}

fn events(seqs: impl IntoIterator<Item = u64>) -> Item {
    Item::Events(seqs.into_iter().map(|seq| named(seq, Kind::Updated(Updated::default()))).collect())
}

fn position(seq: u64) -> Option<Position> {
    Some(crate::testing::position(seq))
}

#[tokio::test]
async fn a_message_without_success_is_sent_again_and_the_rest_waits() {
    let details = ErrorDetails::with_retry_info(Some(Duration::from_millis(1)));
    let busy = Status::with_error_details(Code::ResourceExhausted, "busy", details);
    let bench = Bench::start([Err(busy), Err(Status::unauthenticated("no"))]).await;
    let mut exporter = bench.exporter(true);
    exporter.take(events(1..=3));
    exporter.dispatch();
    exporter.take(events(4..=5));
    assert_eq!(bench.progress(), Progress::default(), "nothing is answered yet");
    exporter.next_answer().await;
    exporter.settle_state().await;
    assert_eq!(bench.progress().position, position(3));
    exporter.dispatch();
    exporter.next_answer().await;
    exporter.settle_state().await;
    assert_eq!(bench.progress(), Progress { position: position(5), ..Progress::default() });
    let first = vec![1, 2, 3];
    assert_eq!(bench.received(), [first.clone(), first.clone(), first, vec![4, 5]]);
    let counters = &bench.shared.counters;
    let counted =
        (counters.records_accepted.get(), counters.requests_accepted.get(), counters.requests_failed.get());
    assert_eq!(counted, (5, 2, 2));
}

#[tokio::test]
async fn what_is_refused_is_exported_as_a_gap_by_the_next_exporter() {
    let partial = ExportLogsPartialSuccess { rejected_log_records: 1, error_message: "too old".to_owned() };
    let partial = ExportLogsServiceResponse { partial_success: Some(partial) };
    let bench = Bench::start([Err(Status::invalid_argument("bad")), Ok(partial)]).await;
    let mut exporter = bench.exporter(true);
    exporter.take(events(1..=2));
    exporter.dispatch();
    exporter.next_answer().await;
    exporter.settle_state().await;
    assert_eq!(bench.progress().position, position(2));
    drop(exporter);

    let mut exporter = bench.exporter(true);
    exporter.take(events(3..=4));
    exporter.dispatch();
    exporter.next_answer().await;
    exporter.settle_state().await;
    exporter.take(events(5..=5));
    exporter.dispatch();
    exporter.next_answer().await;
    exporter.settle_state().await;
    assert_eq!(bench.received(), [vec![1, 2], vec![0, 3, 4], vec![0, 5]]);
    assert_eq!(bench.progress(), Progress { position: position(5), ..Progress::default() });
    let counters = &bench.shared.counters;
    let counted =
        (counters.records_accepted.get(), counters.records_rejected.get(), counters.records_refused.get());
    assert_eq!(counted, (2, 1, 2));
}

#[tokio::test]
async fn the_end_waits_for_the_answer() {
    let bench = Bench::start([]).await;
    let mut exporter = bench.exporter(true);
    exporter.take(events(1..=9));
    exporter.dispatch();
    exporter.finish().await;
    assert_eq!(bench.progress().position, position(9), "the next exporter does not send them again");
}

#[tokio::test]
async fn without_a_collector_the_position_moves_by_itself() {
    let bench = Bench::start([]).await;
    let mut exporter = bench.exporter(false);
    exporter.take(events(1..=9));
    exporter.dispatch();
    exporter.tick();
    exporter.settle_state().await;
    assert_eq!((bench.progress().position, bench.received()), (position(9), Vec::new()));
}

#[tokio::test]
async fn a_state_file_that_cannot_be_written_does_not_stop_the_export() {
    let mut bench = Bench::start([]).await;
    bench.state = StateFile::new(Path::new("/does/not/exist/state.json"));
    let mut exporter = bench.exporter(true);
    exporter.take(events(1..=2));
    exporter.dispatch();
    exporter.next_answer().await;
    exporter.settle_state().await;
    assert_eq!((bench.received(), bench.shared.counters.state_failed.get()), (vec![vec![1, 2]], 1));
}

/// The one thread for files is busy with something that does not end, as with a disk that hangs.
#[test]
fn a_disk_that_hangs_holds_up_no_record_and_no_end() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
    let (ends, hung) = std::sync::mpsc::channel::<()>();
    runtime.block_on(async {
        let bench = Bench::start([]).await;
        let disk = tokio::task::spawn_blocking(move || hung.recv().is_ok());
        let mut exporter = bench.exporter(true);
        for seqs in [1..=2, 3..=4, 5..=6] {
            exporter.take(events(seqs));
            exporter.dispatch();
            exporter.next_answer().await;
        }
        assert_eq!(bench.received(), [[1, 2], [3, 4], [5, 6]]);
        assert_eq!(bench.progress(), Progress::default(), "nothing is saved yet");
        bench.exporter(true).finish().await;

        drop(ends);
        assert!(!disk.await.unwrap());
        exporter.settle_state().await;
        assert_eq!(bench.progress().position, position(6), "the newest");
    });
}

#[tokio::test]
async fn an_error_of_a_proxy_costs_no_record() {
    let statuses = [400, 500];
    let bench = Bench::behind([], statuses).await;
    let mut exporter = bench.exporter(true);
    exporter.take(events(1..=3));
    exporter.dispatch();
    exporter.next_answer().await;
    exporter.settle_state().await;
    assert_eq!(bench.progress(), Progress { position: position(3), ..Progress::default() });
    assert_eq!(
        bench.received(),
        vec![vec![1, 2, 3]; statuses.len() + 1],
        "the same until there is an answer"
    );
    let counters = &bench.shared.counters;
    assert_eq!((counters.records_accepted.get(), counters.records_refused.get()), (3, 0));
}

/// Events that are in the journal after its beginning, read by an exporter without a state file.
#[tokio::test]
async fn a_missing_state_file_is_a_gap() {
    let bench = Bench::start([]).await;
    let mut exporter = bench.exporter(true);
    exporter.take(events(7..=8));
    exporter.dispatch();
    exporter.next_answer().await;
    exporter.settle_state().await;
    assert_eq!(bench.received(), [vec![0, 7, 8]]);
    assert_eq!(bench.progress(), Progress { position: position(8), ..Progress::default() });
}

fn diverged(seq: u64) -> Item {
    Item::Events(vec![named(seq, verdict(VerdictKind::Diverged))])
}

/// An exporter that has read up to event 5, and ends while the Kubernetes Event of event 3 waits.
async fn leave_one_waiting(bench: &Bench) {
    let (mut exporter, _posts) = bench.reporting();
    exporter.take(events(1..=2));
    exporter.take(diverged(3));
    exporter.take(events(4..=5));
    exporter.dispatch();
    exporter.finish().await;
}

#[tokio::test]
async fn a_kubernetes_event_that_waits_outlives_the_exporter() {
    let bench = Bench::start([]).await;
    leave_one_waiting(&bench).await;
    let progress = bench.progress();
    assert_eq!((progress.position, progress.kubernetes.events), (position(5), 1));
    assert_eq!(progress.kubernetes.first, position(3), "from there on it is read again");

    let (mut exporter, mut posts) = bench.reporting();
    exporter.take(diverged(3));
    exporter.take(events(4..=6));
    exporter.dispatch();
    exporter.next_answer().await;
    exporter.settle_state().await;
    assert_eq!(bench.received(), [vec![1, 2, 3, 4, 5], vec![6]], "the collector has the others");
    assert_eq!(bench.progress().kubernetes.first, position(3), "it waits anew");
    // An OOM kill waits for the API server alone.
    let time = Timestamp::from_unix_nanos(i64::try_from(crate::exporter::now()).unwrap());
    let kill = Event { time: Some(time), ..named(7, oom_kill()) };
    exporter.take(Item::Events(vec![kill]));
    exporter.finish().await;
    assert_eq!(bench.progress().kubernetes.events, 2);
    assert_eq!(posts.try_recv().unwrap().notice.position, crate::testing::position(7));
}

#[tokio::test]
async fn a_kubernetes_event_that_waits_outlives_an_exporter_that_ends_before_it_has_found_it_again() {
    let bench = Bench::start([]).await;
    leave_one_waiting(&bench).await;
    let waiting = bench.progress().kubernetes;
    assert_eq!(waiting.first, position(3));

    let (mut exporter, _posts) = bench.reporting();
    exporter.tick();
    exporter.finish().await;
    assert_eq!(bench.progress().kubernetes, waiting, "no event was read");

    let (mut exporter, _posts) = bench.reporting();
    exporter.take(diverged(3));
    exporter.take(events(4..=5));
    exporter.take(Item::Events(vec![named(6, verdict(VerdictKind::InForce))]));
    exporter.finish().await;
    assert_eq!(bench.progress().kubernetes, Progress::default().kubernetes, "found again, and over");
}

#[tokio::test]
async fn a_kubernetes_event_that_is_not_found_again_is_a_gap() {
    let bench = Bench::start([]).await;
    let (mut exporter, _posts) = bench.reporting();
    exporter.take(events(1..=2));
    exporter.take(diverged(3));
    exporter.dispatch();
    exporter.finish().await;

    let (mut exporter, _posts) = bench.reporting();
    let gap = Gap {
        cause: GapCause::ReplayExpired.into(),
        first_seq: Some(3),
        last_seq: Some(4),
        ..Gap::default()
    };
    exporter.take(Item::Events(vec![named(4, Kind::Gap(gap))]));
    exporter.take(events(5..=5));
    exporter.dispatch();
    exporter.finish().await;
    assert_eq!(bench.received(), [vec![1, 2, 3], vec![0, 4, 5]], "a gap of the exporter's, and the daemon's");
    assert_eq!(bench.shared.counters.kubernetes_dropped.get(), 1);
    assert_eq!(bench.progress(), Progress { position: position(5), ..Progress::default() });
}

#[tokio::test]
async fn a_kubernetes_event_that_is_found_again_before_a_gap_is_lost_once() {
    let bench = Bench::start([]).await;
    leave_one_waiting(&bench).await;
    assert_eq!(bench.progress().kubernetes.events, 1);

    let (mut exporter, _posts) = bench.reporting();
    exporter.take(diverged(3));
    let gap = Gap {
        cause: GapCause::WatcherLagged.into(),
        first_seq: Some(4),
        last_seq: Some(4),
        ..Gap::default()
    };
    exporter.take(Item::Events(vec![named(4, Kind::Gap(gap))]));
    assert_eq!(bench.shared.counters.kubernetes_dropped.get(), 1);
}
