//! The client against a server in this process that answers each `Watch` call by a script.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Code, Request, Response, Status};

use super::{Address, Client, Error, Item, UsageItem, Watch};
use crate::Timestamp;
use crate::proto::kwitness_server::{Kwitness, KwitnessServer};
use crate::proto::{self, Event, Position, UsageSample, WatchRequest, WatchResponse};

/// What a stream sends; without an error at its end, it ends well, and [`Code::Aborted`] stands for silence.
type Script = Vec<Result<WatchResponse, Status>>;
type UsageScript = Vec<Result<UsageSample, Status>>;

#[derive(Clone, Default)]
struct Scripted {
    /// One for each call to come; an error refuses the call.
    scripts: Arc<Mutex<VecDeque<Result<Script, Status>>>>,
    requests: Arc<Mutex<Vec<WatchRequest>>>,
    /// The same for `WatchUsage`.
    usage: Arc<Mutex<VecDeque<Result<UsageScript, Status>>>>,
}

#[tonic::async_trait]
impl Kwitness for Scripted {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;
    type WatchUsageStream = Pin<Box<dyn Stream<Item = Result<UsageSample, Status>> + Send>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.requests.lock().unwrap().push(request.into_inner());
        let script = self.scripts.lock().unwrap().pop_front().expect("a call too many")?;
        let is_silence =
            |message: &Result<_, Status>| matches!(message, Err(status) if status.code() == Code::Aborted);
        let (said, is_silent) = match script.iter().position(is_silence) {
            Some(silence) => (script.into_iter().take(silence).collect(), true),
            None => (script, false),
        };
        let said = tokio_stream::iter(said);
        Ok(Response::new(match is_silent {
            true => Box::pin(said.chain(tokio_stream::pending())),
            false => Box::pin(said),
        }))
    }

    async fn watch_usage(
        &self,
        _: Request<proto::WatchUsageRequest>,
    ) -> Result<Response<Self::WatchUsageStream>, Status> {
        let script = self.usage.lock().unwrap().pop_front().expect("a call too many")?;
        Ok(Response::new(Box::pin(tokio_stream::iter(script))))
    }

    async fn list(&self, _: Request<proto::ListRequest>) -> Result<Response<proto::ListResponse>, Status> {
        Err(Status::not_found("no container matches"))
    }

    async fn verify(
        &self,
        _: Request<proto::VerifyRequest>,
    ) -> Result<Response<proto::VerifyResponse>, Status> {
        Err(Status::invalid_argument("`wait_ms` is too large"))
    }

    async fn status(
        &self,
        _: Request<proto::StatusRequest>,
    ) -> Result<Response<proto::StatusResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn report_cri_requests(
        &self,
        _: Request<proto::ReportCriRequestsRequest>,
    ) -> Result<Response<proto::ReportCriRequestsResponse>, Status> {
        Err(Status::resource_exhausted("too many"))
    }

    async fn report_guard_events(
        &self,
        _: Request<proto::ReportGuardEventsRequest>,
    ) -> Result<Response<proto::ReportGuardEventsResponse>, Status> {
        Err(Status::resource_exhausted("too many"))
    }
}

/// A daemon's place for the time of a test.
struct Server {
    scripted: Scripted,
    directory: tempfile::TempDir,
    running: tokio::task::JoinHandle<()>,
}

impl Server {
    fn start(scripts: impl IntoIterator<Item = Result<Script, Status>>) -> Self {
        let scripted = Scripted::default();
        scripted.scripts.lock().unwrap().extend(scripts);
        let directory = tempfile::tempdir().unwrap();
        let running = serve(&scripted, directory.path());
        Self { scripted, directory, running }
    }

    /// As a restart of the daemon looks from outside: connections break, the socket is another one.
    async fn restart(&mut self) {
        self.running.abort();
        assert!((&mut self.running).await.unwrap_err().is_cancelled());
        std::fs::remove_file(socket(self.directory.path())).unwrap();
        self.running = serve(&self.scripted, self.directory.path());
    }

    async fn client(&self) -> Client {
        Client::connect(Address::Unix(socket(self.directory.path()))).await.unwrap()
    }

    async fn watch(&self, request: WatchRequest) -> Watch {
        self.client().await.watch(request).await.unwrap()
    }

    fn requests(&self) -> Vec<WatchRequest> {
        self.scripted.requests.lock().unwrap().clone()
    }
}

fn socket(directory: &Path) -> std::path::PathBuf {
    directory.join("a socket.sock")
}

fn serve(scripted: &Scripted, directory: &Path) -> tokio::task::JoinHandle<()> {
    let incoming = UnixListenerStream::new(UnixListener::bind(socket(directory)).unwrap());
    let service = KwitnessServer::new(scripted.clone());
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(async move { server.serve_with_incoming(incoming).await.unwrap() })
}

fn position(epoch: &str, seq: u64) -> Position {
    Position { epoch: epoch.to_owned(), seq }
}

fn begins(epoch: &str, seq: u64) -> Result<WatchResponse, Status> {
    Ok(WatchResponse { begins_after: Some(position(epoch, seq)), ..Default::default() })
}

fn batch(epoch: &str, seqs: &[u64]) -> Result<WatchResponse, Status> {
    Ok(WatchResponse { events: events(epoch, seqs), ..Default::default() })
}

fn events(epoch: &str, seqs: &[u64]) -> Vec<Event> {
    seqs.iter().map(|seq| Event { position: Some(position(epoch, *seq)), ..Default::default() }).collect()
}

fn gone() -> Result<WatchResponse, Status> {
    Err(Status::unavailable("the daemon is stopping"))
}

async fn item(watch: &mut Watch) -> Item {
    watch.next().await.unwrap().expect("an item")
}

fn since() -> WatchRequest {
    WatchRequest { since: Some(Timestamp::default()), ..Default::default() }
}

#[tokio::test]
async fn a_broken_stream_resumes_after_the_highest_position() {
    let server = Server::start([
        // 5 is late: its container's names became known after 7.
        Ok(vec![begins("a", 3), batch("a", &[6, 7]), batch("a", &[5]), gone()]),
        Err(Status::unavailable("not ready")),
        Err(Status::resource_exhausted("too many watchers")),
        Ok(vec![begins("a", 7), batch("a", &[8])]),
    ]);
    let mut watch = server.watch(since()).await;
    assert_eq!(item(&mut watch).await, Item::Events(events("a", &[6, 7])));
    assert_eq!(item(&mut watch).await, Item::Events(events("a", &[5])));
    for reason in ["stopping", "not ready", "too many watchers"] {
        let Item::Disconnected(error) = item(&mut watch).await else { panic!("no {reason}") };
        assert!(error.is_transient() && error.to_string().contains(reason), "{error}");
    }
    assert_eq!(item(&mut watch).await, Item::Reconnected);
    assert_eq!(item(&mut watch).await, Item::Events(events("a", &[8])));
    assert_eq!(watch.next().await, Ok(None));
    assert_eq!(watch.position(), Some(&position("a", 8)));
    let requests = server.requests();
    assert_eq!(requests[0], since());
    for request in &requests[1..] {
        assert_eq!((&request.after, &request.since), (&Some(position("a", 7)), &None));
    }
}

#[tokio::test]
async fn a_restarted_daemon_is_found_again_and_its_epoch_counts() {
    let server_restarts = Ok(vec![begins("a", 90), batch("a", &[91]), gone()]);
    let mut server = Server::start([server_restarts, Ok(vec![begins("b", 0), batch("b", &[1]), gone()])]);
    let mut watch = server.watch(WatchRequest::default()).await;
    assert_eq!(item(&mut watch).await, Item::Events(events("a", &[91])));
    server.restart().await;
    assert!(matches!(item(&mut watch).await, Item::Disconnected(Error::Unreachable { .. })));
    loop {
        match item(&mut watch).await {
            Item::Disconnected(_) => {}
            other => break assert_eq!(other, Item::Reconnected),
        }
    }
    assert_eq!(item(&mut watch).await, Item::Events(events("b", &[1])));
    assert_eq!(watch.position(), Some(&position("b", 1)));
    assert_eq!(server.requests()[1].after, Some(position("a", 91)));
}

#[tokio::test]
async fn a_snapshot_comes_before_what_happens_after_it() {
    let snapshot = proto::Snapshot { position: Some(position("a", 9)), ..Default::default() };
    let first = WatchResponse { snapshot: Some(snapshot.clone()), ..begins("a", 9).unwrap() };
    let server = Server::start([Ok(vec![Ok(first), gone()]), Ok(vec![begins("a", 9)])]);
    let mut watch = server.watch(WatchRequest { snapshot: true, ..Default::default() }).await;
    assert_eq!(item(&mut watch).await, Item::Snapshot(snapshot));
    assert!(matches!(item(&mut watch).await, Item::Disconnected(_)));
    assert_eq!(item(&mut watch).await, Item::Reconnected);
    assert_eq!(watch.next().await, Ok(None));
    assert!(server.requests()[1].snapshot, "for the case that it cannot resume");
}

#[tokio::test]
async fn a_first_attempt_can_be_repeated() {
    let server =
        Server::start([Err(Status::unavailable("not ready")), Ok(vec![begins("a", 3), batch("a", &[4])])]);
    let mut watch = server.client().await.watch_eventually(since());
    assert!(matches!(item(&mut watch).await, Item::Disconnected(Error::Unreachable { .. })));
    assert_eq!(item(&mut watch).await, Item::Reconnected);
    assert_eq!(item(&mut watch).await, Item::Events(events("a", &[4])));
    assert_eq!(server.requests(), [since(), since()]);
}

#[tokio::test]
async fn another_filter_goes_on_after_the_last_event() {
    let server = Server::start([
        Ok(vec![begins("a", 3), batch("a", &[4]), batch("a", &[5])]),
        Ok(vec![begins("a", 4), batch("a", &[6])]),
    ]);
    let mut watch = server.watch(since()).await;
    assert_eq!(item(&mut watch).await, Item::Events(events("a", &[4])));
    let filter = proto::Filter { pods: vec!["web-1".into()], ..Default::default() };
    watch.refilter(filter.clone());
    assert_eq!(item(&mut watch).await, Item::Events(events("a", &[6])));
    let second = &server.requests()[1];
    assert_eq!((&second.filter, &second.after), (&Some(filter), &Some(position("a", 4))));
    assert_eq!(watch.next().await, Ok(None));
    watch.refilter(proto::Filter::default());
    assert_eq!(watch.next().await, Ok(None), "what has ended stays so");
}

#[tokio::test]
async fn a_refused_resume_is_final() {
    let server = Server::start([Ok(vec![begins("a", 1), gone()]), Err(Status::invalid_argument("no"))]);
    let mut watch = server.watch(WatchRequest::default()).await;
    assert!(matches!(item(&mut watch).await, Item::Disconnected(_)));
    assert_eq!(watch.next().await, Err(Error::InvalidRequest("no".into())));
    assert_eq!(watch.next().await, Ok(None));
}

#[tokio::test]
async fn a_limit_counts_across_reconnections() {
    let gap = Event { kind: Some(proto::event::Kind::Gap(proto::Gap::default())), ..Default::default() };
    let lost = Ok(WatchResponse { events: vec![gap.clone()], ..Default::default() });
    let server = Server::start([
        Ok(vec![begins("a", 0), batch("a", &[1, 2]), lost, gone()]),
        Ok(vec![begins("a", 2), batch("a", &[3]), gone()]),
    ]);
    let mut watch = server.watch(WatchRequest { limit: 3, ..Default::default() }).await;
    assert_eq!(item(&mut watch).await, Item::Events(events("a", &[1, 2])));
    assert_eq!(item(&mut watch).await, Item::Events(vec![gap]));
    assert!(matches!(item(&mut watch).await, Item::Disconnected(_)));
    assert_eq!(item(&mut watch).await, Item::Reconnected);
    assert_eq!(item(&mut watch).await, Item::Events(events("a", &[3])));
    assert_eq!(watch.next().await, Ok(None), "no third stream for what is complete");
    assert_eq!(server.requests().iter().map(|request| request.limit).collect::<Vec<_>>(), [3, 1]);
}

#[tokio::test]
async fn history_that_breaks_off_is_an_error() {
    let request = WatchRequest { no_follow: true, ..since() };
    let server = Server::start([Ok(vec![begins("a", 0), batch("a", &[1]), gone()])]);
    let mut watch = server.watch(request).await;
    assert_eq!(item(&mut watch).await, Item::Events(events("a", &[1])));
    assert!(matches!(watch.next().await, Err(Error::Unreachable { .. })));
}

#[tokio::test]
async fn a_daemon_that_goes_silent_in_its_history_does_not_answer_and_may_be_silent_otherwise() {
    let silence = || vec![begins("a", 0), batch("a", &[1]), Err(Status::aborted(""))];
    let server = Server::start([Ok(silence()), Ok(silence())]);
    let mut history = server.watch(WatchRequest { no_follow: true, ..since() }).await;
    let mut following = server.watch(since()).await;
    for watch in [&mut history, &mut following] {
        assert_eq!(item(watch).await, Item::Events(events("a", &[1])));
    }
    tokio::time::pause();
    let Err(Error::Unreachable { reason, .. }) = history.next().await else { panic!("it has ended") };
    assert_eq!(reason, "it has sent nothing for 30 s");
    assert_eq!(history.next().await, Ok(None));
    let hour = Duration::from_secs(3600);
    assert!(tokio::time::timeout(hour, following.next()).await.is_err(), "nothing has happened");
}

#[tokio::test]
async fn usage_goes_on_after_an_outage_and_ends_with_what_is_final() {
    let sample = |kernel_time| UsageSample { kernel_time, ..Default::default() };
    let server = Server::start([]);
    server.scripted.usage.lock().unwrap().extend([
        Ok(vec![Ok(sample(1)), Ok(sample(2)), Err(Status::unavailable("the daemon is stopping"))]),
        Err(Status::unavailable("not ready")),
        Ok(vec![Ok(sample(3)), Err(Status::resource_exhausted("narrow it"))]),
        Err(Status::unimplemented("")),
    ]);
    let mut watch = server.client().await.watch_usage(Default::default()).await.unwrap();
    let mut seen = Vec::new();
    let error = loop {
        match watch.next().await {
            Ok(UsageItem::Sample(sample)) => seen.push(sample.kernel_time.to_string()),
            Ok(UsageItem::Disconnected(error)) => seen.push(error.to_string()),
            Ok(UsageItem::Reconnected) => seen.push("back".to_owned()),
            Err(error) => break error,
        }
    };
    let address = Address::Unix(socket(server.directory.path()));
    let stopping = format!("no daemon at {address}: the daemon is stopping");
    let not_ready = format!("no daemon at {address}: not ready");
    assert_eq!(seen, ["1", "2", &stopping, &not_ready, "back", "3", "narrow it"]);
    assert_eq!(error, Error::Unimplemented { address }, "an older daemon");
}

#[tokio::test]
async fn each_status_has_its_meaning() {
    let server = Server::start([Err(Status::unavailable("the daemon is stopping"))]);
    let mut client = server.client().await;
    let first = client.watch(WatchRequest::default()).await.unwrap_err();
    assert!(matches!(first, Error::Unreachable { .. }), "the first attempt is not repeated: {first}");
    assert_eq!(client.list(Default::default()).await, Err(Error::NotFound("no container matches".into())));
    let invalid = client.verify(Default::default()).await.unwrap_err();
    assert_eq!(invalid.to_string(), "invalid request: `wait_ms` is too large");
    assert!(matches!(client.status().await, Err(Error::Unimplemented { .. })));
}

#[tokio::test]
async fn no_daemon_and_no_permission_are_distinguished() {
    let directory = tempfile::tempdir().unwrap();
    let address = Address::Unix(socket(directory.path()));
    let error = Client::connect(address.clone()).await.unwrap_err();
    assert!(
        matches!(&error, Error::Unreachable { reason, .. } if reason.contains("No such file")),
        "{error}"
    );
    // Root may always connect, so the kernel's answer is made up here; the privileged tests have the real one.
    let denied = io::Error::from(io::ErrorKind::PermissionDenied);
    let status = Status::from_error(Box::new(denied));
    assert_eq!(Error::calling(&address, &status), Error::PermissionDenied { address });
}
