//! The relay between two sources that come, go, hang and refuse, and clients that do not read.

use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tokio::time::{Instant, sleep};
use tonic::{Code, Status};

use super::super::testing::*;
use super::*;

const TIMING: Timing = Timing {
    silent: Duration::from_millis(400),
    overlap: Duration::from_millis(300),
    patience: Duration::from_millis(700),
};

struct Place {
    bench: Bench,
    daemon: Source,
    runtime: Source,
}

impl Place {
    fn make() -> Self {
        Self { bench: Bench::with(TIMING), daemon: Source::daemon(), runtime: Source::default() }
    }

    fn serve_daemon(&self) -> Server {
        self.daemon.serve(&self.bench.daemon())
    }

    fn serve_runtime(&self) -> Server {
        self.runtime.serve(&self.bench.runtime())
    }
}

#[tokio::test]
async fn the_daemons_events_and_nobody_asks_the_runtime() {
    let place = Place::make();
    let _serving = (place.serve_daemon(), place.serve_runtime());
    let mut client = place.bench.client().await;
    let (mut one, mut two) = (client.events().await, client.events().await);
    place.daemon.followed(1).await;
    for event in ["a:0", "a:1", "b:0"] {
        place.daemon.tell(event).await;
        assert_eq!(one.next().await.unwrap(), event);
        assert_eq!(two.next().await.unwrap(), event);
    }
    sleep(TIMING.silent * 2).await;
    assert_eq!(place.runtime.subscriptions(), 0);
    drop((one, two));
    place.daemon.followed(0).await;
    let _again = client.events().await;
    place.daemon.followed(1).await;
}

#[tokio::test]
async fn without_a_daemon_the_runtimes_and_back_without_loss_or_double() {
    let place = Place::make();
    let _serving = place.serve_runtime();
    let mut client = place.bench.client().await;
    let mut events = client.events().await;
    place.runtime.followed(1).await;
    place.runtime.tell("a:0").await;
    assert_eq!(events.next().await.unwrap(), "a:0");

    let daemon = place.serve_daemon();
    place.daemon.followed(1).await;
    // For a while both are read, and each tells the same.
    for event in ["a:1", "b:0"] {
        place.runtime.tell(event).await;
        place.daemon.tell(event).await;
        assert_eq!(events.next().await.unwrap(), event);
    }
    place.runtime.tell("c:0").await;
    assert_eq!(events.next().await.unwrap(), "c:0", "only the runtime told it");
    place.runtime.followed(0).await;
    place.daemon.tell("c:0").await;
    place.daemon.tell("c:1").await;
    assert_eq!(events.next().await.unwrap(), "c:1");

    // containerd 2.x gives a new subscriber what nobody took.
    place.runtime.backlog(&["c:0", "c:1", "d:0"]);
    drop(daemon);
    place.runtime.followed(1).await;
    assert_eq!(events.next().await.unwrap(), "d:0");
    let counters = &place.bench.counters;
    eventually("the doubles", || counters.events_double.get() >= 5).await;
    assert_eq!((counters.moves_to_daemon.get(), counters.moves_to_runtime.get()), (1, 2));
    events.silent(Duration::from_millis(100)).await;
}

#[tokio::test]
async fn a_stream_stays_open_while_everything_behind_it_is_restarted() {
    let place = Place::make();
    let mut client = place.bench.client().await;
    let mut events = client.events().await;
    for round in 0..5 {
        let runtime = place.serve_runtime();
        place.runtime.followed(1).await;
        place.runtime.tell(&format!("r{round}:0")).await;
        assert_eq!(events.next().await.unwrap(), format!("r{round}:0"));
        let daemon = place.serve_daemon();
        place.daemon.followed(1).await;
        place.daemon.tell(&format!("d{round}:0")).await;
        assert_eq!(events.next().await.unwrap(), format!("d{round}:0"));
        drop(runtime);
        place.daemon.tell(&format!("e{round}:0")).await;
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
        let place = Place::make();
        place.daemon.conduct(conduct);
        let _serving = (place.serve_daemon(), place.serve_runtime());
        let mut client = place.bench.client().await;
        let mut events = client.events().await;
        place.runtime.followed(1).await;
        place.runtime.tell("a:0").await;
        assert_eq!(events.next().await.unwrap(), "a:0");
    }
}

#[tokio::test]
async fn where_nobody_has_events_clients_are_told_as_the_runtime_tells() {
    for end in [Err(Status::unimplemented("unknown method GetContainerEvents")), Ok(())] {
        let code = end.as_ref().map_or_else(Status::code, |()| Code::Ok);
        let place = Place::make();
        place.runtime.conduct(Conduct::Refuse(end));
        let _serving = place.serve_runtime();
        let mut client = place.bench.client().await;
        let began = Instant::now();
        assert_eq!(client.events().await.next().await.unwrap_err().code(), code);
        assert!(began.elapsed() >= TIMING.patience, "{:?}", began.elapsed());
        let began = Instant::now();
        assert_eq!(client.events().await.next().await.unwrap_err().code(), code);
        assert!(began.elapsed() < TIMING.patience, "the second is not kept waiting: {:?}", began.elapsed());
        assert_eq!(place.bench.counters.event_streams_refused.get(), 2);
        // A daemon that comes serves whoever asks then.
        let _daemon = place.serve_daemon();
        let mut events = client.events().await;
        place.daemon.followed(1).await;
        place.daemon.tell("a:0").await;
        assert_eq!(events.next().await.unwrap(), "a:0");
    }
}

#[tokio::test]
async fn a_daemon_that_comes_before_patience_ends_saves_the_streams() {
    let place = Place::make();
    place.runtime.conduct(Conduct::Refuse(Err(Status::unimplemented("none"))));
    let _serving = place.serve_runtime();
    let mut client = place.bench.client().await;
    let mut events = client.events().await;
    sleep(TIMING.patience / 3).await;
    let _daemon = place.serve_daemon();
    place.daemon.followed(1).await;
    events.silent(TIMING.patience).await;
    place.daemon.tell("a:0").await;
    assert_eq!(events.next().await.unwrap(), "a:0");
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_nobody_and_is_told() {
    let place = Place::make();
    let _serving = place.serve_runtime();
    let mut stalled = place.bench.client().await;
    let mut stalled = stalled.events().await;
    let mut quick = place.bench.client().await;
    let mut quick = quick.events().await;
    place.runtime.followed(1).await;
    let began = Instant::now();
    // Twice what may wait, with every event 64 KiB.
    let count = 2 * limits::EVENTS_WAITING / (64 << 10);
    for number in 0..count {
        let name = format!("c{number}");
        let mut event = seen::EventName { container_id: name.clone().into(), kind: 0 }.encode_to_vec();
        // A field of tomorrow.
        prost::encoding::bytes::encode(15, &vec![0_u8; 64 << 10], &mut event);
        place.runtime.tell_bytes(Bytes::from(event)).await;
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
    assert_eq!(place.bench.counters.event_streams_overflowed.get(), 1);
}

#[tokio::test]
async fn what_cannot_be_decoded_is_passed_on_and_a_bad_request_is_refused() {
    let place = Place::make();
    let _serving = place.serve_daemon();
    let mut client = place.bench.client().await;
    let seen = client.call(METHOD, &[], b"\xff\xff").await;
    assert_eq!(seen.status().code(), Code::Internal);
    assert!(seen.status().message().starts_with("grpc: error unmarshalling request: "));
    let request = Client::request(METHOD, &[], body([http_body::Frame::data(framed(b""))]));
    let response = client.send(request).await.unwrap();
    place.daemon.followed(1).await;
    place.daemon.tell_bytes(Bytes::from_static(b"\xff\xff\xff")).await;
    let mut response = response;
    let frame = http_body_util::BodyExt::frame(response.body_mut()).await.unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), framed(b"\xff\xff\xff"));
    assert_eq!(place.bench.counters.events_opaque.get(), 1);
}
