//! The API over its socket, with a real hub behind it and the engine's part played by a task.

mod at_once;
mod cri_reports;
mod forwarded;
mod guard_reports;
mod half_sent;
mod usage;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kwitness_core::journal::Epoch;
use kwitness_core::lifecycle::Bounds;
use kwitness_core::model::{
    Basis, CgroupId, ContainerId, Event, Evidence, KernelTime, Kind, Observation, Output, Requester, State,
    Subject,
};
use kwitness_core::node::Node;
use kwitness_service::{Limits, Socket};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use super::*;
use crate::cgroupfs::CgroupFs;
use crate::clock::Clock;
use crate::config::{Call, MaxCalls, RuntimeChoice};
use crate::cri;
use crate::engine::JudgeQueue;
use crate::engine::{Handle, Report, Request, Snapshot};
use crate::hub::testing::container;
use crate::hub::{Capacity, Hub, Writer, selects};
use crate::probe::Capabilities;
use crate::reported::Reported;
use crate::verify::Verifier;
use kwitness_api::proto::kwitness_client::KwitnessClient;

/// The older version of the reflection service.
mod v1alpha {
    pub use tonic_reflection::pb::v1alpha::ServerReflectionRequest;
    pub use tonic_reflection::pb::v1alpha::server_reflection_client::ServerReflectionClient;
    pub use tonic_reflection::pb::v1alpha::server_reflection_request::MessageRequest;
    pub use tonic_reflection::pb::v1alpha::server_reflection_response::MessageResponse;
}

const SOON: Duration = Duration::from_secs(60);

struct Served {
    _directory: tempfile::TempDir,
    path: PathBuf,
    writer: Writer,
    health: Health,
    stop: CancellationToken,
    serving: JoinHandle<anyhow::Result<()>>,
    forwarded: SocketAddr,
}

fn subject() -> Arc<Subject> {
    Arc::new(Subject {
        cgroup_id: CgroupId(7),
        cgroup_path: "/kubepods/x".into(),
        container_id: ContainerId("0123456789".into()),
        runtime: None,
        pod: None,
        facts: None,
    })
}

fn created() -> Event {
    Event {
        at: KernelTime(1),
        basis: Basis::CgroupMkdir,
        subject: Some(subject()),
        kind: Kind::Created { actor: None },
    }
}

/// One container, as of the journal's end.
async fn answer(mut requests: mpsc::Receiver<Request>, hub: Arc<Hub>, reported: Reported) {
    while let Some(request) = requests.recv().await {
        match request {
            Request::State(answer) => {
                let snapshot = Snapshot { position: hub.position(), containers: Vec::new() };
                answer.send((snapshot, Vec::new())).unwrap();
            }
            Request::Snapshot(filter, answer) => {
                let mut containers = vec![container(&subject(), State::Created)];
                containers.retain(|state| selects(&filter, &state.subject));
                answer.send(Snapshot { position: hub.position(), containers }).unwrap();
            }
            Request::MemoryLevels(..) => panic!("no call requests memory levels"),
            Request::Report(answer) => {
                let lost = BTreeMap::from([("ring_full/task_exec".to_owned(), 3)]);
                answer.send(Report { lost, containers: 1, ..Report::default() }).unwrap();
            }
            Request::Subjects(_, answer) => answer.send(vec![(subject(), State::Created)]).unwrap(),
            Request::Judge(evidence, answer) => {
                let mut node = Node::new(Bounds::default());
                let judge = |evidence: Evidence| {
                    assert_eq!(evidence.requester, Requester::Client, "by its own word");
                    let evidence = Observation::Evidence(Box::new(evidence));
                    node.observe(evidence, &mut Output::default()).unwrap()
                };
                answer.send(evidence.into_iter().map(judge).collect()).unwrap();
            }
            Request::Known(containers, answer) => {
                let known = containers.iter().map(|container| *container == subject().container_id);
                answer.send(known.collect()).unwrap();
            }
            Request::LimitReports(_, reports, answer) => {
                reports.into_iter().for_each(|of| drop(reported.take(of)));
                answer.send(()).unwrap();
            }
            Request::Observe(Observation::Guard(report)) => {
                assert_eq!(report.container, subject().container_id);
                reported.observe(&Observation::Guard(report));
            }
            Request::Observe(Observation::GuardReportsDropped { count, .. }) => assert_eq!(count, 3),
            Request::Observe(missed @ Observation::RequestsMissed { .. }) => reported.observe(&missed),
            Request::Observe(other) => panic!("{other:?}"),
        }
    }
}

impl Served {
    async fn start() -> Self {
        Self::start_with(MaxCalls::all(2)).await
    }

    async fn start_with(max_calls: MaxCalls) -> Self {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into(), max_calls).await
    }

    async fn start_at(listen: SocketAddr, max_calls: MaxCalls) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api.sock");
        let (hub, writer) =
            Hub::new(Epoch("now".into()), Capacity { items: NonZeroUsize::new(64).unwrap(), bytes: 1 << 20 });
        let (engine, requests) = Handle::new();
        let reported = Reported::default();
        tokio::spawn(answer(requests, hub.clone(), reported.clone()));
        let (resolver, _) = cri::start(RuntimeChoice::Never, mpsc::channel(1).0);
        let loopback = Loopback::new(listen);
        let forwarded = loopback.address().unwrap_or(listen);
        let info = DaemonInfo {
            started: KernelTime(0),
            config_file: Some("/etc/kwitness/config.toml".into()),
            settings: BTreeMap::from([("kernel.pin", "\"off\"".to_owned())]),
            socket: path.clone(),
            node_name: "node-1".into(),
            capabilities: Capabilities {
                kernel: "6.18".into(),
                environment: Vec::new(),
                reports: Vec::new(),
            },
            subtree: "/".into(),
            bindings: vec![loopback.binding()],
        };
        let stop = CancellationToken::new();
        let cgroups = CgroupFs::at(directory.path());
        let verifier = Verifier::new(
            cgroups,
            engine.clone(),
            JudgeQueue::default(),
            resolver.clone(),
            "/does/not/exist".into(),
            reported,
        );
        let admission = Admission::new(max_calls);
        let service =
            Service::new(hub.clone(), engine, resolver.clone(), verifier, info, admission, stop.clone());
        let events = RuntimeEvents::new(crate::cri_events::start(resolver, hub).0, stop.clone());
        let socket = Socket::listen(&path).unwrap();
        let listener = Listener::new(socket, Limits::for_descriptors(10_000, 1)).unwrap();
        let serving = serve(listener, Some(loopback), service, events, stop.clone());
        let (health, serving) = serving.await.unwrap();
        let serving = tokio::spawn(serving);
        Self { _directory: directory, path, writer, health, stop, serving, forwarded }
    }

    async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("unix://{}", self.path.display())).unwrap().connect().await.unwrap()
    }

    async fn watch(
        &self,
        request: proto::WatchRequest,
    ) -> Result<Streaming<proto::WatchResponse>, tonic::Status> {
        Ok(KwitnessClient::new(self.channel().await).watch(request).await?.into_inner())
    }
}

async fn next(stream: &mut Streaming<proto::WatchResponse>) -> proto::WatchResponse {
    timeout(SOON, stream.message()).await.unwrap().unwrap().unwrap()
}

#[tokio::test]
async fn a_snapshot_then_what_happens_after_it() {
    let mut served = Served::start().await;
    served.writer.append([created(), created()], Clock::read());
    let request = proto::WatchRequest { snapshot: true, ..Default::default() };
    let mut stream = served.watch(request).await.unwrap();
    let first = next(&mut stream).await;
    let snapshot = first.snapshot.unwrap();
    let position = proto::Position { epoch: "now".into(), seq: 2 };
    assert_eq!((snapshot.position.as_ref(), first.begins_after.as_ref()), (Some(&position), Some(&position)));
    assert_eq!(snapshot.containers[0].container.as_ref().unwrap().id, "0123456789");
    assert_eq!(first.events, []);
    served.writer.append([created()], Clock::read());
    let second = next(&mut stream).await;
    assert_eq!((second.snapshot, second.begins_after), (None, None));
    assert_eq!(second.events[0].position.as_ref().unwrap().seq, 3);
}

#[tokio::test]
async fn a_snapshot_stands_in_for_a_place_that_is_gone() {
    let mut served = Served::start().await;
    served.writer.append((0..100).map(|_| created()), Clock::read());
    let request = |epoch: &str, seq| proto::WatchRequest {
        snapshot: true,
        after: Some(proto::Position { epoch: epoch.into(), seq }),
        ..Default::default()
    };
    let mut kept = served.watch(request("now", 50)).await.unwrap();
    let first = next(&mut kept).await;
    assert_eq!((first.snapshot, first.begins_after.unwrap().seq), (None, 50), "nothing is missing");
    drop(kept);
    for (epoch, from) in [("now", Some(6)), ("before", None)] {
        let mut stream = served.watch(request(epoch, 5)).await.unwrap();
        let first = next(&mut stream).await;
        assert_eq!(first.snapshot.unwrap().position.unwrap().seq, 100);
        let Some(proto::event::Kind::Gap(gap)) = &first.events[0].kind else {
            panic!("{first:?}", first = first.events)
        };
        assert_eq!((gap.cause(), gap.first_seq), (proto::GapCause::ReplayExpired, from));
    }
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let served = Served::start().await;
    let after = Some(proto::Position { epoch: "now".into(), seq: 0 });
    let since = Some(Default::default());
    let filter = Some(proto::Filter { kinds: vec![99], ..Default::default() });
    for (request, code) in [
        (proto::WatchRequest { after: after.clone(), since, ..Default::default() }, Code::InvalidArgument),
        (proto::WatchRequest { snapshot: true, since, ..Default::default() }, Code::InvalidArgument),
        (proto::WatchRequest { filter, ..Default::default() }, Code::InvalidArgument),
        (
            proto::WatchRequest {
                after: Some(proto::Position { epoch: "now".into(), seq: 9 }),
                ..Default::default()
            },
            Code::OutOfRange,
        ),
    ] {
        assert_eq!(served.watch(request.clone()).await.unwrap_err().code(), code, "{request:?}");
    }
}

#[tokio::test]
async fn one_watcher_too_many_is_refused_and_room_is_made_again() {
    let served = Served::start().await;
    let first = served.watch(proto::WatchRequest::default()).await.unwrap();
    let _second = served.watch(proto::WatchRequest::default()).await.unwrap();
    let refused = served.watch(proto::WatchRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    drop(first);
    let again = async {
        while served.watch(proto::WatchRequest::default()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, again).await.unwrap();
}

#[tokio::test]
async fn health_watches_are_limited_and_counted() {
    let served = Served::start().await;
    let watch = async || HealthClient::new(served.channel().await).watch(HealthCheckRequest::default()).await;
    let _held = [watch().await.unwrap(), watch().await.unwrap()];
    let refused = watch().await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("api.max_health_watchers"), "{refused}");
    let status = KwitnessClient::new(served.channel().await).status(proto::StatusRequest {}).await.unwrap();
    let calls = status.into_inner().calls;
    let row = calls.iter().find(|row| row.name == "health_watch").unwrap();
    assert_eq!((row.max, row.active, row.refused), (2, 2, 1));
}

#[tokio::test]
async fn a_giant_filter_is_refused() {
    let served = Served::start().await;
    let watch = async |pods| {
        let filter = Some(proto::Filter { pods, ..Default::default() });
        served.watch(proto::WatchRequest { filter, ..Default::default() }).await.unwrap_err()
    };
    let many = watch(vec!["pod".to_owned(); 1000]).await;
    assert_eq!(many.code(), Code::InvalidArgument);
    assert!(many.message().contains("filter.pods"), "{many}");
    // 3.9 MB: it is not even decoded.
    assert_eq!(watch(vec!["p".to_owned(); 1_300_000]).await.code(), Code::OutOfRange);
}

#[tokio::test]
async fn list_and_status() {
    let mut served = Served::start().await;
    served.writer.append([created()], Clock::read());
    let mut client = KwitnessClient::new(served.channel().await);
    let list = client.list(proto::ListRequest::default()).await.unwrap().into_inner();
    assert_eq!((list.position.unwrap().seq, list.containers.len()), (1, 1));
    let filter = Some(proto::Filter { containers: vec!["another".into()], ..Default::default() });
    let list = client.list(proto::ListRequest { filter }).await.unwrap().into_inner();
    assert_eq!(list.containers, []);
    let status = client.status(proto::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((&*status.node_name, &*status.kernel_release, &*status.epoch), ("node-1", "6.18", "now"));
    assert_eq!((status.containers, status.lost["ring_full/task_exec"]), (1, 3));
    let journal = status.journal.unwrap();
    assert_eq!((journal.first_seq, journal.last_seq, journal.capacity), (1, 1, 64));
    assert_eq!(journal.capacity_bytes, 1 << 20);
    assert_eq!(status.config_file.as_deref(), Some("/etc/kwitness/config.toml"));
    assert_eq!(status.settings, BTreeMap::from([("kernel.pin".to_owned(), "\"off\"".to_owned())]));
    assert_eq!(status.socket, served.path.display().to_string());
    assert!(status.uptime_seconds > 0 && status.resident_bytes.is_some_and(|bytes| bytes > 0), "{status:?}");
    assert_eq!(status.calls.len(), Call::ALL.len());
}

#[tokio::test]
async fn health_says_serving_once_ready() {
    let served = Served::start().await;
    let mut client = HealthClient::new(served.channel().await);
    let mut status = async |service: &str| {
        let request = HealthCheckRequest { service: service.to_owned() };
        client.check(request).await.unwrap().into_inner().status()
    };
    assert_eq!(status("").await, ServingStatus::NotServing);
    served.health.ready().await;
    assert_eq!((status("").await, status(SERVICE).await), (ServingStatus::Serving, ServingStatus::Serving));
}

#[tokio::test]
async fn reflection_streams_that_are_held_leave_health_checks_their_room() {
    let served = Served::start().await;
    let reflect = async || {
        let mut client = ServerReflectionClient::new(served.channel().await);
        client.server_reflection_info(tokio_stream::pending()).await
    };
    let _held = [reflect().await.unwrap(), reflect().await.unwrap()];
    let refused = reflect().await.unwrap_err();
    assert!(refused.message().contains("api.max_other_calls"), "{refused}");
    let mut health = HealthClient::new(served.channel().await);
    health.check(HealthCheckRequest::default()).await.unwrap();
}

#[tokio::test]
async fn reflection_names_the_services() {
    let served = Served::start().await;
    let mut client = ServerReflectionClient::new(served.channel().await);
    let request = tonic_reflection::pb::v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = answer else { panic!("{answer:?}") };
    let names: Vec<&str> = list.service.iter().map(|service| &*service.name).collect();
    assert!(names.contains(&SERVICE) && names.contains(&"grpc.health.v1.Health"), "{names:?}");
}

#[tokio::test]
async fn reflection_v1alpha_names_the_services() {
    let served = Served::start().await;
    let mut client = v1alpha::ServerReflectionClient::new(served.channel().await);
    let request = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1alpha::MessageRequest::ListServices(String::new())),
    };
    let mut answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response;
    let Some(v1alpha::MessageResponse::ListServicesResponse(list)) = answer else { panic!("{answer:?}") };
    let names: Vec<&str> = list.service.iter().map(|service| &*service.name).collect();
    assert!(names.contains(&SERVICE) && names.contains(&"grpc.health.v1.Health"), "{names:?}");
}

#[tokio::test]
async fn it_stops_soon_with_streams_open_and_leaves_nothing() {
    let served = Served::start().await;
    let mut stream = served.watch(proto::WatchRequest::default()).await.unwrap();
    next(&mut stream).await;
    // A client that never reads.
    let _idle = served.watch(proto::WatchRequest::default()).await.unwrap();
    let began = Instant::now();
    served.stop.cancel();
    assert_eq!(timeout(SOON, stream.message()).await.unwrap().unwrap_err().code(), Code::Unavailable);
    served.serving.await.unwrap().unwrap();
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert!(!served.path.exists());
}

#[tokio::test]
async fn a_verdict_says_what_it_rests_on() {
    let served = Served::start().await;
    let verify = async |request| KwitnessClient::new(served.channel().await).verify(request).await;
    let wanted = Some(proto::Wanted { memory: Some(proto::wanted::Memory::MemoryBytes(4096)), cpu: None });
    let answer = verify(proto::VerifyRequest { wanted, ..Default::default() }).await.unwrap().into_inner();
    assert_eq!(answer.verdicts.len(), 1, "no source has a CPU limit");
    let verdict = answer.verdicts[0].verdict.as_ref().unwrap();
    assert_eq!(
        (verdict.verdict(), verdict.compared_with()),
        (proto::VerdictKind::Unknown, proto::Source::Client)
    );
    assert!(verdict.reason.contains("gone"), "there is no such cgroup: {}", verdict.reason);
    assert!(answer.unavailable.iter().any(|text| text.starts_with("runtime: ")), "{:?}", answer.unavailable);

    let filter = Some(proto::Filter { pods: vec!["nobody".into()], ..Default::default() });
    let refused = verify(proto::VerifyRequest { filter, ..Default::default() }).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::NotFound);
    let zero = Some(proto::Wanted { memory: None, cpu: Some(proto::wanted::Cpu::MilliCpu(0)) });
    for wrong in [
        proto::VerifyRequest { wanted: zero, ..Default::default() },
        proto::VerifyRequest { wait_ms: 600_001, ..Default::default() },
        proto::VerifyRequest { prove_ms: 60_001, ..Default::default() },
    ] {
        assert_eq!(verify(wrong).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    }
}

/// What grpcio 1.85.3 (C-core, Python) sends for two calls; `:authority` is the socket's path, percent-encoded.
const GRPCIO: &[u8] = include_bytes!("../../../../tests/corpus/http2/grpcio-1.85.3");

#[tokio::test]
async fn a_client_that_sends_the_sockets_path_as_authority_is_answered() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    const HEADERS: u8 = 1;
    const RST_STREAM: u8 = 3;
    let served = Served::start().await;
    let mut client = tokio::net::UnixStream::connect(&served.path).await.unwrap();
    client.write_all(GRPCIO).await.unwrap();
    let mut answered = std::collections::BTreeSet::new();
    while answered.len() < 2 {
        let mut head = [0; 9];
        timeout(SOON, client.read_exact(&mut head)).await.unwrap().unwrap();
        assert_ne!(head[3], RST_STREAM, "{head:?}");
        if head[3] == HEADERS {
            answered.insert(head[8]);
        }
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        client.read_exact(&mut payload).await.unwrap();
    }
}
