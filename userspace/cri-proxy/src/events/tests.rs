//! The relay between two sources that come, go, hang and refuse, and clients that do not read.

use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tokio::time::{Instant, sleep};
use tonic::{Code, Status};

use super::super::testing::*;
use super::*;

/// Each far above what a step takes on a busy machine.
const TIMING: Timing = Timing {
    silent: Duration::from_secs(2),
    overlap: Duration::from_secs(2),
    patience: Duration::from_secs(3),
    answer_held: Duration::from_secs(60),
};

struct Sources {
    bench: Bench,
    daemon: FakeSource,
    runtime: FakeSource,
}

impl Sources {
    fn make() -> Self {
        Self { bench: Bench::with(TIMING), daemon: FakeSource::daemon(), runtime: FakeSource::default() }
    }

    fn serve_daemon(&self) -> Server {
        self.daemon.serve(&self.bench.daemon())
    }

    fn serve_runtime(&self) -> Server {
        self.runtime.serve(&self.bench.runtime())
    }
}

#[tokio::test]
async fn the_daemons_events_without_a_call_to_the_runtime() {
    let sources = Sources::make();
    let _serving = (sources.serve_daemon(), sources.serve_runtime());
    let mut client = sources.bench.client().await;
    let (mut one, mut two) = (client.events().await, client.events().await);
    sources.daemon.followed(1).await;
    for event in ["a:0", "a:1", "b:0"] {
        sources.daemon.send(event).await;
        assert_eq!(one.next().await.unwrap(), event);
        assert_eq!(two.next().await.unwrap(), event);
    }
    sleep(TIMING.silent * 2).await;
    assert_eq!(sources.runtime.subscriptions(), 0);
    drop((one, two));
    sources.daemon.followed(0).await;
    let _again = client.events().await;
    sources.daemon.followed(1).await;
}

#[tokio::test]
async fn without_a_daemon_the_runtimes_and_back_without_loss_or_double() {
    let sources = Sources::make();
    let _serving = sources.serve_runtime();
    let mut client = sources.bench.client().await;
    let mut events = client.events().await;
    sources.runtime.followed(1).await;
    sources.runtime.send("a:0").await;
    assert_eq!(events.next().await.unwrap(), "a:0");

    let daemon = sources.serve_daemon();
    sources.daemon.followed(1).await;
    // For a while both are read, and each sends the same.
    for event in ["a:1", "b:0"] {
        sources.runtime.send(event).await;
        sources.daemon.send(event).await;
        assert_eq!(events.next().await.unwrap(), event);
    }
    sources.runtime.send("c:0").await;
    assert_eq!(events.next().await.unwrap(), "c:0", "only the runtime sent it");
    // The runtime reports the deletion first, and missed the stop.
    sources.runtime.send("a:3").await;
    assert_eq!(events.next().await.unwrap(), "a:3");
    sources.daemon.send("a:2").await;
    assert_eq!(events.next().await.unwrap(), "a:2");
    sources.runtime.followed(0).await;
    sources.daemon.send("c:0").await;
    sources.daemon.send("c:1").await;
    assert_eq!(events.next().await.unwrap(), "c:1");

    // containerd 2.x sends a new subscriber what no other received.
    sources.runtime.backlog(&["c:0", "c:1", "d:0"]);
    drop(daemon);
    sources.runtime.followed(1).await;
    assert_eq!(events.next().await.unwrap(), "d:0");
    let counters = &sources.bench.counters;
    eventually("the doubles", || counters.events_double.get() >= 5).await;
    assert_eq!((counters.moves_to_daemon.get(), counters.moves_to_runtime.get()), (1, 2));
    events.silent(Duration::from_millis(100)).await;
}

#[tokio::test]
async fn a_stream_stays_open_while_everything_behind_it_is_restarted() {
    let sources = Sources::make();
    let mut client = sources.bench.client().await;
    let mut events = client.events().await;
    for round in 0..5 {
        let runtime = sources.serve_runtime();
        sources.runtime.followed(1).await;
        sources.runtime.send(&format!("r{round}:0")).await;
        assert_eq!(events.next().await.unwrap(), format!("r{round}:0"));
        let daemon = sources.serve_daemon();
        sources.daemon.followed(1).await;
        sources.daemon.send(&format!("d{round}:0")).await;
        assert_eq!(events.next().await.unwrap(), format!("d{round}:0"));
        drop(runtime);
        sources.daemon.send(&format!("e{round}:0")).await;
        assert_eq!(events.next().await.unwrap(), format!("e{round}:0"), "the runtime's end is nothing to it");
        drop(daemon);
        events.silent(Duration::from_millis(100)).await;
    }
    events.silent(TIMING.patience * 2).await;
}

#[tokio::test]
async fn a_daemon_that_hangs_or_knows_no_events_is_not_waited_for() {
    for conduct in
        [Conduct::Hang, Conduct::Refuse(Err(Status::unimplemented("of old"))), Conduct::Refuse(Ok(()))]
    {
        let sources = Sources::make();
        sources.daemon.conduct(conduct);
        let _serving = (sources.serve_daemon(), sources.serve_runtime());
        let mut client = sources.bench.client().await;
        let mut events = client.events().await;
        sources.runtime.followed(1).await;
        sources.runtime.send("a:0").await;
        assert_eq!(events.next().await.unwrap(), "a:0");
    }
}

#[tokio::test]
async fn without_any_events_clients_get_the_runtimes_own_status() {
    for end in [Err(Status::unimplemented("unknown method GetContainerEvents")), Ok(())] {
        let code = end.as_ref().map_or_else(Status::code, |()| Code::Ok);
        let sources = Sources::make();
        sources.runtime.conduct(Conduct::Refuse(end));
        let _serving = sources.serve_runtime();
        let mut client = sources.bench.client().await;
        let began = Instant::now();
        assert_eq!(client.events().await.next().await.unwrap_err().code(), code);
        assert!(began.elapsed() >= TIMING.patience, "{:?}", began.elapsed());
        let began = Instant::now();
        assert_eq!(client.events().await.next().await.unwrap_err().code(), code);
        assert!(began.elapsed() < TIMING.patience, "the second is not kept waiting: {:?}", began.elapsed());
        assert_eq!(sources.bench.counters.event_streams_refused.get(), 2);
        // A daemon that comes serves whoever asks then.
        let _daemon = sources.serve_daemon();
        let mut events = client.events().await;
        sources.daemon.followed(1).await;
        sources.daemon.send("a:0").await;
        assert_eq!(events.next().await.unwrap(), "a:0");
    }
}

#[tokio::test]
async fn a_daemon_that_comes_before_patience_ends_saves_the_streams() {
    let sources = Sources::make();
    sources.runtime.conduct(Conduct::Refuse(Err(Status::unimplemented("none"))));
    let _serving = sources.serve_runtime();
    let mut client = sources.bench.client().await;
    let mut events = client.events().await;
    eventually("a refusal", || sources.runtime.subscriptions() > 0).await;
    let _daemon = sources.serve_daemon();
    sources.daemon.followed(1).await;
    events.silent(TIMING.patience).await;
    sources.daemon.send("a:0").await;
    assert_eq!(events.next().await.unwrap(), "a:0");
}

#[tokio::test]
async fn a_client_that_does_not_read_delays_no_other_and_gets_an_error() {
    let sources = Sources::make();
    let _serving = sources.serve_runtime();
    let mut stalled = sources.bench.client().await;
    let mut stalled = stalled.events().await;
    let mut quick = sources.bench.client().await;
    let mut quick = quick.events().await;
    sources.runtime.followed(1).await;
    let began = Instant::now();
    // Twice what may wait, with every event 64 KiB.
    let count = 2 * limits::EVENTS_WAITING / (64 << 10);
    for number in 0..count {
        let name = format!("c{number}");
        let mut event = seen::EventName { container_id: name.clone().into(), kind: 0 }.encode_to_vec();
        // A field of tomorrow.
        prost::encoding::bytes::encode(15, &vec![0_u8; 64 << 10], &mut event);
        sources.runtime.send_bytes(Bytes::from(event)).await;
        assert_eq!(quick.next().await.unwrap(), format!("{name}:0"));
    }
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    let mut read = 0;
    let end = loop {
        match stalled.next().await {
            Ok(_) => read += 1,
            Err(status) => break status,
        }
    };
    assert_eq!(end.code(), Code::ResourceExhausted, "{end}");
    assert!(read < count, "{read}");
    assert_eq!(sources.bench.counters.event_streams_overflowed.get(), 1);
}

#[tokio::test]
async fn what_cannot_be_decoded_is_passed_on_and_a_bad_request_is_refused() {
    let sources = Sources::make();
    let _serving = sources.serve_daemon();
    let mut client = sources.bench.client().await;
    let seen = client.call(METHOD, &[], b"\xff\xff").await;
    assert_eq!(seen.status().code(), Code::Internal);
    assert!(seen.status().message().starts_with("grpc: error unmarshalling request: "));
    let request = Client::request(METHOD, &[], body([http_body::Frame::data(framed(b""))]));
    let response = client.send(request).await.unwrap();
    sources.daemon.followed(1).await;
    sources.daemon.send_bytes(Bytes::from_static(b"\xff\xff\xff")).await;
    let mut response = response;
    let frame = http_body_util::BodyExt::frame(response.body_mut()).await.unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), framed(b"\xff\xff\xff"));
    assert_eq!(sources.bench.counters.events_opaque.get(), 1);
}
