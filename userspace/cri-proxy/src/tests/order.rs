//! Answers to calls that start something, and the events of the start.

use std::sync::Arc;
use std::time::Duration;

use kwitness_cri::runtime::{RunPodSandboxResponse, StartContainerRequest};
use prost::Message as _;
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use crate::events::Timing;
use crate::metrics::Sources;
use crate::testing::*;

const START: &str = "/runtime.v1.RuntimeService/StartContainer";
const RUN: &str = "/runtime.v1.RuntimeService/RunPodSandbox";

/// A bench with a daemon, and a runtime that starts whatever is requested, but for "bad".
struct Node {
    bench: Bench,
    daemon: FakeSource,
    sources: Sources,
    _serving: [Server; 2],
}

impl Node {
    fn start(answer_held: Duration) -> Self {
        let bench = Bench::with(Timing { answer_held, ..Timing::default() });
        let daemon = FakeSource::daemon();
        let runtime: Handler = Arc::new(|request| {
            Box::pin(async move {
                if request.headers().contains_key("x-bad") {
                    return refused(Status::not_found("no such container"));
                }
                good(&RunPodSandboxResponse { pod_sandbox_id: "sandbox".to_owned() }.encode_to_vec())
            })
        });
        let serving = [daemon.serve(&bench.daemon()), Server::start(&bench.runtime(), runtime)];
        let sources = bench.sources();
        Self { bench, daemon, sources, _serving: serving }
    }

    /// A client that takes events.
    async fn kubelet(&self) -> (Client, EventReader) {
        let mut client = self.bench.client().await;
        let events = client.events().await;
        self.daemon.followed(1).await;
        eventually("the daemon's events are in use", || self.sources.events.source().is_some()).await;
        (client, events)
    }

    fn held(&self) -> u64 {
        self.bench.counters.answers_held.get()
    }
}

fn start(client: &Client, id: &str) -> JoinHandle<Seen> {
    let (mut client, message) = (client.clone(), StartContainerRequest { container_id: id.to_owned() });
    tokio::spawn(async move { client.call(START, &[], &message.encode_to_vec()).await })
}

/// Longer than any test waits.
const FOR_EVER: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn an_answer_waits_for_its_event() {
    let node = Node::start(FOR_EVER);
    let (client, mut events) = node.kubelet().await;
    let answer = start(&client, "a");
    eventually("it is held", || node.held() == 1).await;
    // Neither another container's start nor another event of this one is it.
    for event in ["b:1", "a:0"] {
        node.daemon.send(event).await;
        assert_eq!(events.next().await.unwrap(), event);
    }
    assert!(!answer.is_finished());
    node.daemon.send("a:1").await;
    assert_eq!(answer.await.unwrap().status().code(), Code::Ok);
    assert_eq!(events.next().await.unwrap(), "a:1");
    assert_eq!(start(&client, "b").await.unwrap().status().code(), Code::Ok);
    assert_eq!(node.held(), 1, "an event that was sent is not waited for");
}

#[tokio::test]
async fn the_sandboxs_id_is_in_the_answer() {
    let node = Node::start(FOR_EVER);
    let (mut client, mut events) = node.kubelet().await;
    let answer = tokio::spawn(async move { client.call(RUN, &[], b"").await });
    eventually("it is held", || node.held() == 1).await;
    node.daemon.send("sandbox:1").await;
    let answer = answer.await.unwrap();
    let expected = RunPodSandboxResponse { pod_sandbox_id: "sandbox".to_owned() }.encode_to_vec();
    assert_eq!((answer.data.clone(), answer.status().code()), (framed(&expected), Code::Ok));
    assert_eq!(events.next().await.unwrap(), "sandbox:1");
}

#[tokio::test]
async fn who_takes_no_events_and_what_did_not_start_waits_for_nothing() {
    let node = Node::start(FOR_EVER);
    let (mut client, events) = node.kubelet().await;
    let other = node.bench.client().await;
    assert_eq!(start(&other, "a").await.unwrap().status().code(), Code::Ok);
    let refused = client.call(START, &[("x-bad", b"1")], b"").await;
    assert_eq!(refused.status().code(), Code::NotFound);
    // A request that is none: the runtime decides.
    assert_eq!(client.call(START, &[], b"\xff").await.status().code(), Code::Ok);
    assert_eq!(node.held(), 0);
    let held = start(&client, "a");
    eventually("it is held", || node.held() == 1).await;
    drop(events);
    assert_eq!(held.await.unwrap().status().code(), Code::Ok, "no stream is left that it waits for");
}

#[tokio::test]
async fn a_stream_on_which_a_start_is_missing_ends() {
    let node = Node::start(Duration::from_millis(50));
    let (mut client, mut events) = node.kubelet().await;
    let other = node.bench.client().await.events().await;
    assert_eq!(start(&client, "a").await.unwrap().status().code(), Code::Ok);
    let end = events.next().await.unwrap_err();
    assert_eq!(end.code(), Code::Unavailable);
    assert!(end.message().contains("start of a did not come"), "{end}");
    assert_eq!((node.held(), node.bench.counters.answers_before_event.get()), (1, 1));
    assert_eq!(start(&client, "b").await.unwrap().status().code(), Code::Ok);
    assert_eq!(node.held(), 1, "no stream, nothing to wait for");
    let mut again = client.events().await;
    assert_eq!(start(&client, "b").await.unwrap().status().code(), Code::Ok);
    let counters = &node.bench.counters;
    assert_eq!(
        (node.held(), counters.answers_before_event.get()),
        (1, 2),
        "the source is not waited for again"
    );
    let mut streams = [&mut again, &mut { other }];
    node.daemon.send("c:1").await;
    for stream in &mut streams {
        assert_eq!(stream.next().await.unwrap(), "c:1", "another's stream and a new one go on");
    }
    assert_eq!(start(&client, "d").await.unwrap().status().code(), Code::Ok);
    assert_eq!(
        (node.held(), counters.event_streams_late.get()),
        (2, 2),
        "an event came: it is waited for again"
    );
}

/// As containerd 1.6: nothing that a start could wait for.
#[tokio::test]
async fn without_a_source_that_has_events_nothing_is_waited_for() {
    let bench = Bench::start();
    let runtime = FakeSource::default();
    runtime.conduct(Conduct::Refuse(Err(Status::unimplemented("no events"))));
    let _serving = runtime.serve(&bench.runtime());
    let mut client = bench.client().await;
    let _events = client.events().await;
    eventually("the runtime refuses", || runtime.subscriptions() > 0).await;
    let sources = bench.sources();
    eventually("no source", || sources.events.source().is_none()).await;
    assert_eq!(start(&client, "a").await.unwrap().status().code(), Code::Ok);
    assert_eq!(bench.counters.answers_held.get(), 0);
}
