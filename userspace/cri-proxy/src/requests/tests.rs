//! Calls that carry limits, through the proxy: what is reported to the daemon, and that the call is unaffected.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::Frame;
use http_body_util::BodyExt as _;
use prost::Message as _;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::super::testing::*;
use super::*;
use kwitness_api::proto;
use kwitness_cri::runtime as cri;

const CREATE: &str = "/runtime.v1.RuntimeService/CreateContainer";
const UPDATE: &str = "/runtime.v1.RuntimeService/UpdateContainerResources";
const UPDATE_POD: &str = "/runtime.v1.RuntimeService/UpdatePodSandboxResources";

/// A daemon that records the reports, as bytes.
#[derive(Clone, Default)]
struct Daemon(Arc<Mutex<Vec<Bytes>>>);

impl Daemon {
    fn serve(&self, bench: &Bench) -> Server {
        let reports = Arc::clone(&self.0);
        Server::start(
            &bench.daemon(),
            Arc::new(move |request| {
                let reports = Arc::clone(&reports);
                Box::pin(async move {
                    assert_eq!(request.uri().path(), "/kwitness.v1alpha1.Kwitness/ReportCriRequests");
                    let message = request.into_body().collect().await.unwrap().to_bytes().slice(5..);
                    let report = proto::ReportCriRequestsRequest::decode(message.clone()).unwrap();
                    let accepted = report.requests.len() as u32;
                    reports.lock().unwrap().push(message);
                    good(
                        &proto::ReportCriRequestsResponse { accepted, malformed: Vec::new() }.encode_to_vec(),
                    )
                })
            }),
        )
    }

    fn reports(&self) -> Vec<proto::ReportCriRequestsRequest> {
        let reports = self.0.lock().unwrap();
        reports
            .iter()
            .map(|message| proto::ReportCriRequestsRequest::decode(message.clone()).unwrap())
            .collect()
    }

    fn requests(&self) -> Vec<proto::CriRequest> {
        self.reports().into_iter().flat_map(|report| report.requests).collect()
    }

    /// How many requests were missed of which it is not known whose they were.
    fn missed(&self) -> u64 {
        let missed: Vec<_> = self.reports().into_iter().flat_map(|report| report.missed).collect();
        assert!(missed.iter().all(|of| of.id.is_empty() && 0 < of.from && of.from <= of.to), "{missed:?}");
        missed.iter().map(|of| of.count).sum()
    }
}

/// Answers as a runtime does to these, each call after it was read and has waited.
fn runtime<F>(bench: &Bench, wait: impl Fn() -> F + Send + Sync + 'static) -> Server
where
    F: Future<Output = ()> + Send + 'static,
{
    let wait = Arc::new(wait);
    Server::start(
        &bench.runtime(),
        Arc::new(move |request| {
            let wait = Arc::clone(&wait);
            Box::pin(async move {
                let path = request.uri().path().to_owned();
                if request.into_body().collect().await.is_err() {
                    return refused(tonic::Status::cancelled("the client is gone"));
                }
                wait().await;
                match path.as_str() {
                    CREATE => {
                        good(&cri::CreateContainerResponse { container_id: "new".into() }.encode_to_vec())
                    }
                    UPDATE_POD => refused(tonic::Status::unimplemented("not yet")),
                    _ => good(b""),
                }
            })
        }),
    )
}

fn resources() -> cri::LinuxContainerResources {
    cri::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        unified: [("memory.swap.max", "0"), ("memory.high", "33554432"), ("x", "y")]
            .map(|(key, text)| (key.to_owned(), text.to_owned()))
            .into(),
    }
}

fn update(id: &str) -> Vec<u8> {
    cri::UpdateContainerResourcesRequest { container_id: id.to_owned(), linux: Some(resources()) }
        .encode_to_vec()
}

#[tokio::test]
async fn limits_ids_times_and_status_are_reported_and_nothing_else() {
    let bench = Bench::start();
    let daemon = Daemon::default();
    let _serving = (daemon.serve(&bench), runtime(&bench, || tokio::time::sleep(Duration::from_millis(20))));
    let mut client = bench.client().await;
    let linux = cri::LinuxContainerConfig { resources: Some(resources()) };
    let config = cri::ContainerConfig { linux: Some(linux) };
    let mut create = cri::CreateContainerRequest { config: Some(config) }.encode_to_vec();
    // The sandbox's configuration, with an environment; the kubelet's own come before it, and are skipped likewise.
    prost::encoding::string::encode(3, &"TOKEN=secret".to_owned(), &mut create);
    let pod = cri::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: "pod".to_owned(),
        resources: Some(resources()),
    };
    let expected = proto::CriResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        memory_swap_max: "0".to_owned(),
        memory_high: "33554432".to_owned(),
    };
    for (number, (path, message, method, id, code)) in [
        (UPDATE, update("a"), CriMethod::UpdateContainerResources, "a", Code::Ok),
        (CREATE, create, CriMethod::CreateContainer, "new", Code::Ok),
        (UPDATE_POD, pod.encode_to_vec(), CriMethod::UpdatePodSandboxResources, "pod", Code::Unimplemented),
    ]
    .into_iter()
    .enumerate()
    {
        let before = now();
        let seen = client.call(path, &[], &message).await;
        let after = now();
        assert_eq!(seen.status().code(), code);
        eventually("the report", || daemon.requests().len() > number).await;
        let report = daemon.requests().remove(number);
        assert_eq!((report.method(), report.id.as_str(), report.code), (method, id, Some(code as i32)));
        assert_eq!(report.resources.as_ref(), Some(&expected));
        assert!(before < report.received && report.received + 20_000_000 <= report.answered, "{report:?}");
        assert!(report.answered < after + 10_000_000_000, "{report:?}");
    }
    eventually("the last to be counted", || bench.counters.requests_reported.get() == 3).await;
    let reports = daemon.0.lock().unwrap().concat();
    assert!(!reports.windows(6).any(|bytes| bytes == b"secret"), "the rest of the request is not reported");
}

#[tokio::test]
async fn what_cannot_be_read_passes_all_the_same_and_is_counted() {
    let bench = Bench::start();
    let daemon = Daemon::default();
    let _serving = (daemon.serve(&bench), runtime(&bench, || std::future::ready(())));
    let mut client = bench.client().await;
    let mut large = update("large");
    prost::encoding::bytes::encode(15, &vec![0_u8; limits::MESSAGE_KEPT], &mut large);
    let mut compressed = framed(&update("compressed")).to_vec();
    compressed[0] = 1;
    for bytes in [
        framed(&large).to_vec(),
        compressed,
        framed(b"\xff\xff\xff").to_vec(),
        // An id that is not UTF-8.
        framed(b"\x0a\x02\xc3\x28").to_vec(),
        b"\x07\0\0\0\0".to_vec(),
        b"\0\0\0".to_vec(),
        // In two pieces, the head cut as well: this one can be read.
        framed(&update("pieces")).to_vec(),
    ] {
        let pieces = [Bytes::copy_from_slice(&bytes[..3]), Bytes::copy_from_slice(&bytes[3..])];
        let request = Client::request(UPDATE, &[], body(pieces.map(Frame::data)));
        let seen = collect(client.send(request).await.unwrap()).await;
        assert_eq!(seen.status().code(), Code::Ok);
    }
    let counters = &bench.counters;
    eventually("the last", || counters.requests_reported.get() == 1).await;
    assert_eq!(daemon.requests()[0].id, "pieces");
    assert_eq!((counters.requests_oversized.get(), counters.requests_compressed.get()), (1, 1));
    assert_eq!((counters.requests_malformed.get(), counters.requests_unfinished.get()), (3, 1));
    assert_eq!(counters.requests_dropped.get(), 0);
    eventually("all but the unfinished, which the runtime cannot have read", || daemon.missed() == 5).await;
}

#[tokio::test]
async fn what_neither_can_read_sets_no_limit_and_an_unread_creation_names_its_container() {
    let bench = Bench::start();
    let daemon = Daemon::default();
    let answer: Handler = Arc::new(|request| {
        Box::pin(async move {
            let path = request.uri().path().to_owned();
            request.into_body().collect().await.unwrap();
            match path.as_str() {
                CREATE => good(&cri::CreateContainerResponse { container_id: "new".into() }.encode_to_vec()),
                _ => refused(tonic::Status::internal("grpc: error unmarshalling request")),
            }
        })
    });
    let _serving = (daemon.serve(&bench), Server::start(&bench.runtime(), answer));
    let mut client = bench.client().await;
    assert_eq!(client.call(UPDATE, &[], b"\xff").await.status().code(), Code::Internal);
    let large = vec![0; limits::MESSAGE_KEPT + 1];
    let before = now();
    assert_eq!(client.call(CREATE, &[], &large).await.status().code(), Code::Ok);
    eventually("the report", || !daemon.reports().is_empty()).await;
    let [missed] = &daemon.reports().remove(0).missed[..] else { panic!("{:?}", daemon.reports()) };
    assert_eq!((missed.id.as_str(), missed.count), ("new", 1));
    assert!(before <= missed.from && missed.from <= missed.to, "{missed:?}");
    assert_eq!((bench.counters.requests_malformed.get(), bench.counters.requests_oversized.get()), (1, 1));
}

#[tokio::test]
async fn what_one_client_makes_large_is_no_part_of_a_batch() {
    let bench = Bench::start();
    let daemon = Daemon::default();
    let _serving = (daemon.serve(&bench), runtime(&bench, || std::future::ready(())));
    let mut client = bench.client().await;
    let text = "9".repeat(limits::MESSAGE_KEPT / 4);
    let linux = cri::LinuxContainerResources {
        unified: [("memory.swap.max".to_owned(), text.clone()), ("memory.high".to_owned(), text.clone())]
            .into(),
        ..resources()
    };
    let request =
        cri::UpdateContainerResourcesRequest { container_id: "texts".to_owned(), linux: Some(linux) };
    for message in [update(&text), request.encode_to_vec()] {
        assert_eq!(client.call(UPDATE, &[], &message).await.status().code(), Code::Ok);
    }
    eventually("the report", || bench.counters.requests_reported.get() == 1).await;
    assert_eq!(bench.counters.requests_malformed.get(), 1, "no runtime has such an id");
    let report = daemon.requests().remove(0);
    assert_eq!(report.id, "texts");
    let resources = report.resources.unwrap();
    assert_eq!((&*resources.memory_swap_max, &*resources.memory_high), ("", ""));
    assert_eq!(resources.memory_limit_in_bytes, 64 << 20);
}

#[tokio::test]
async fn a_daemon_that_is_away_or_hangs_costs_the_call_nothing() {
    let bench = Bench::start();
    let _runtime = runtime(&bench, || std::future::ready(()));
    let mut client = bench.client().await;
    assert_eq!(client.call(UPDATE, &[], &update("away")).await.status().code(), Code::Ok);

    let hanging = Server::start(&bench.daemon(), Arc::new(|_| Box::pin(std::future::pending())));
    let began = Instant::now();
    for _ in 0..100 {
        assert_eq!(client.call(UPDATE, &[], &update("hangs")).await.status().code(), Code::Ok);
    }
    // If each waited for the daemon, they would take ten times as long.
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    drop(hanging);
    let daemon = Daemon::default();
    let _serving = daemon.serve(&bench);
    // Each sets all anew that an earlier one of its container did.
    eventually("all reports that count", || {
        let counters = &bench.counters;
        counters.requests_superseded.get() + counters.requests_reported.get() == 101
    })
    .await;
    let ids: BTreeSet<_> = daemon.requests().into_iter().map(|report| report.id).collect();
    assert!(ids.iter().eq(["away", "hangs"]), "{ids:?}");
    assert_eq!((bench.counters.requests_dropped.get(), daemon.missed()), (0, 0));
}

#[tokio::test]
async fn what_is_requested_while_no_daemon_runs_is_reported_in_order_and_with_its_time() {
    let bench = Bench::start();
    let daemon = Daemon::default();
    let _runtime = runtime(&bench, || std::future::ready(()));
    let serving = daemon.serve(&bench);
    let mut client = bench.client().await;
    assert_eq!(client.call(UPDATE, &[], &update("before")).await.status().code(), Code::Ok);
    eventually("a report", || bench.counters.requests_reported.get() == 1).await;
    drop(serving);
    let is_gone = || std::os::unix::net::UnixStream::connect(bench.daemon()).is_err();
    eventually("the daemon to be gone", is_gone).await;
    let mut times = Vec::new();
    for id in ["c", "a", "b"] {
        let before = now();
        assert_eq!(client.call(UPDATE, &[], &update(id)).await.status().code(), Code::Ok);
        times.push(before..=now());
    }
    let _serving = daemon.serve(&bench);
    eventually("the reports", || daemon.requests().len() == 4).await;
    let requests = daemon.requests();
    let ids: Vec<_> = requests.iter().map(|report| report.id.as_str()).collect();
    assert_eq!(ids, ["before", "c", "a", "b"]);
    assert!(
        times.iter().zip(&requests[1..]).all(|(time, report)| time.contains(&report.received)),
        "{requests:?}"
    );
    assert_eq!((bench.counters.requests_dropped.get(), daemon.missed()), (0, 0));
}

#[tokio::test]
async fn what_a_daemon_that_hangs_has_not_taken_is_reported_by_the_next_proxy() {
    let bench = Bench::start();
    let _runtime = runtime(&bench, || std::future::ready(()));
    let arrived = Arc::new(Notify::new());
    let arrives = Arc::clone(&arrived);
    let hangs: Handler = Arc::new(move |_| {
        arrives.notify_one();
        Box::pin(std::future::pending())
    });
    let hanging = Server::start(&bench.daemon(), hangs);
    let before = now();
    let mut client = bench.client().await;
    assert_eq!(client.call(UPDATE, &[], &update("first")).await.status().code(), Code::Ok);
    arrived.notified().await;
    // One is on its way, and others wait.
    assert_eq!(client.call(UPDATE, &[], &update("second")).await.status().code(), Code::Ok);
    let large = vec![0; limits::MESSAGE_KEPT + 1];
    assert_eq!(client.call(UPDATE, &[], &large).await.status().code(), Code::Ok);
    drop(client);
    let after = now();
    let bench = bench.restarted().await;
    drop(hanging);
    let daemon = Daemon::default();
    let _serving = daemon.serve(&bench);
    eventually("the reports", || daemon.requests().len() == 2).await;
    let requests = daemon.requests();
    let ids: Vec<_> = requests.iter().map(|report| report.id.as_str()).collect();
    assert_eq!(ids, ["first", "second"]);
    assert!(requests.iter().all(|report| before <= report.received && report.answered <= after));
    eventually("what was missed", || daemon.missed() == 1).await;
    let bench = bench.restarted().await;
    assert_eq!(reported_before_another(&bench, &daemon).await, 2, "once");
}

/// How many requests were reported, once one more has been.
async fn reported_before_another(bench: &Bench, daemon: &Daemon) -> usize {
    let before = daemon.requests().len();
    let mut client = bench.client().await;
    assert_eq!(client.call(UPDATE, &[], &update("later")).await.status().code(), Code::Ok);
    eventually("the report", || daemon.requests().iter().any(|report| report.id == "later")).await;
    assert_eq!(daemon.requests().len(), before + 1);
    before
}

#[tokio::test]
async fn a_client_with_very_many_calls_misses_its_own_and_no_other_clients() {
    let bench = Bench::start();
    let daemon = Daemon::default();
    let go = CancellationToken::new();
    let wait = go.clone();
    let _serving = (daemon.serve(&bench), runtime(&bench, move || wait.clone().cancelled_owned()));
    const MORE: usize = 10;
    const ALL: u64 = (limits::CALLS_OBSERVED + MORE) as u64;
    let mut calls = tokio::task::JoinSet::new();
    let mut call = |mut client: Client, id: String| {
        calls.spawn(async move { client.call(UPDATE, &[], &update(&id)).await });
    };
    let (busy, other) = (bench.client().await, bench.client().await);
    (0..ALL).for_each(|number| call(busy.clone(), number.to_string()));
    let counters = &bench.counters;
    eventually("all to be under way", || counters.calls.get() == ALL).await;
    call(other, "other".to_owned());
    eventually("one more", || counters.calls.get() == ALL + 1).await;
    go.cancel();
    while let Some(seen) = calls.join_next().await {
        assert_eq!(seen.unwrap().status().code(), Code::Ok);
    }
    eventually("the reports", || counters.requests_reported.get() == 1 + limits::CALLS_OBSERVED as u64).await;
    assert!(daemon.requests().iter().any(|report| report.id == "other"));
    eventually("what was missed", || daemon.missed() == MORE as u64).await;
    assert_eq!(counters.requests_missed.get(), MORE as u64);
}

#[tokio::test]
async fn a_cancelled_call_is_reported_without_a_status() {
    let bench = Bench::start();
    let daemon = Daemon::default();
    let arrived = Arc::new(Notify::new());
    let arrives = Arc::clone(&arrived);
    let hangs = move || {
        arrives.notify_one();
        std::future::pending()
    };
    let _serving = (daemon.serve(&bench), runtime(&bench, hangs));
    let mut client = bench.client().await;
    let calling = tokio::spawn(async move { client.call(UPDATE, &[], &update("given up")).await });
    arrived.notified().await;
    let given_up = now();
    calling.abort();
    eventually("the report", || daemon.requests().len() == 1).await;
    let report = daemon.requests().remove(0);
    assert_eq!((report.id.as_str(), report.code), ("given up", None));
    assert!(report.received <= given_up && given_up <= report.answered, "{given_up}: {report:?}");
}

#[test]
fn a_request_for_what_the_runtime_does_not_know_is_none() {
    let counters = Counters::default();
    let reported = |method, code: Code, request| {
        let answer = First::default();
        let call = Call { method, received: 1, answered: 2, code: Some(code as i32), request, answer };
        report::report(call, &counters)
    };
    let request = || Some(First::Whole(update("a")));
    for method in [CriMethod::UpdateContainerResources, CriMethod::UpdatePodSandboxResources] {
        assert_eq!(reported(method, Code::NotFound, request()), None);
        assert_eq!(reported(method, Code::NotFound, None), None, "nor is one that was missed");
    }
    let refused = reported(CriMethod::UpdateContainerResources, Code::Internal, request());
    let Some(report::Report::Request(refused)) = refused else { panic!("it counts") };
    assert_eq!((refused.id.as_str(), refused.code), ("a", Some(Code::Internal as i32)));
    assert_eq!(counters.requests_missed.get(), 0);
}
