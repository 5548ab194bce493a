//! The proxy between a client and a runtime of the tests: what passes.

mod clients;
mod order;
mod runtimes;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt as _, Full};
use hyper::Response;
use hyper::body::Incoming;
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;
use tonic::Code;
use tonic::body::Body;

use crate::testing::*;

const VERSION: &str = "/runtime.v1.RuntimeService/Version";
/// Ends a test that hangs.
const SOON: Duration = Duration::from_secs(60);

/// Answers with what it was sent: metadata in the headers, the request's path, and the message.
fn echo() -> Handler {
    Arc::new(|request| {
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let mut sent = head.headers.clone();
            sent.remove("content-type");
            let data = body.collect().await.unwrap().to_bytes();
            let mut answer = answered(
                &[("content-type", b"application/grpc")],
                data,
                &[("grpc-status", b"0"), ("path", head.uri.path().as_bytes())],
            );
            answer.headers_mut().extend(sent);
            answer
        })
    })
}

/// The same call at the runtime and through the proxy.
async fn both(bench: &Bench, path: &str, head: &[(&str, &[u8])], message: &[u8]) -> Seen {
    let straight = Client::connect(&bench.runtime()).await.call(path, head, message).await;
    let mut proxied = bench.client().await.call(path, head, message).await;
    let mut straight_head = straight.head.clone();
    // What the server of the tests adds of its own accord.
    assert_eq!(straight_head.remove("date").is_some(), proxied.head.remove("date").is_some());
    assert_eq!(Seen { head: straight_head, ..straight }, proxied);
    proxied
}

#[tokio::test]
async fn metadata_trailers_and_bytes_pass_as_they_are() {
    let bench = Bench::start();
    let _runtime = Server::start(&bench.runtime(), echo());
    let head: &[(&str, &[u8])] = &[
        ("grpc-timeout", b"1500m"),
        ("x-twice", b"one"),
        ("x-twice", b"two"),
        ("x-raw-bin", b"AP/+"),
        ("x-latin", b"caf\xe9"),
    ];
    for path in
        [VERSION, "/runtime.v1.ImageService/PullImage", "/runtime.v2.NotYet/Invented", "/no-service", "/"]
    {
        let seen = both(&bench, path, head, b"\xff\xff\xff no protobuf").await;
        assert_eq!(&*seen.data, &*framed(b"\xff\xff\xff no protobuf"));
        assert_eq!(seen.head["grpc-timeout"], "1500m");
        assert_eq!(seen.head.get_all("x-twice").iter().count(), 2);
        assert_eq!(seen.trailers.unwrap()["path"], path);
    }
    assert_eq!(bench.counters.calls.get(), 5);
}

#[tokio::test]
async fn every_status_passes_with_its_details() {
    let bench = Bench::start();
    let _runtime = Server::start(
        &bench.runtime(),
        Arc::new(|request| {
            let code: i32 = request.uri().path().rsplit('/').next().unwrap().parse().unwrap();
            Box::pin(async move {
                let message = "cannot find \"\u{fc}\" %\n\u{0}".to_owned() + &"x".repeat(100_000);
                let details = Bytes::from_static(b"\x08\x05\xff");
                let status = tonic::Status::with_details(Code::from(code), message, details);
                if code % 2 == 0 {
                    return refused(status);
                }
                let mut trailers = hyper::HeaderMap::new();
                status.add_header(&mut trailers).unwrap();
                let mut answer =
                    Response::new(body([Frame::data(framed(b"some")), Frame::trailers(trailers)]));
                answer.headers_mut().extend(headers(&[("content-type", b"application/grpc")]));
                answer
            })
        }),
    );
    for code in 1..=16 {
        let seen = both(&bench, &format!("/s/{code}"), &[], b"").await;
        assert_eq!(seen.status().code(), Code::from(code));
        assert_eq!(seen.status().details(), b"\x08\x05\xff");
        assert!(seen.status().message().starts_with("cannot find \"\u{fc}\" %\n\u{0}xxx"));
        assert_eq!(seen.trailers.is_none(), code % 2 == 0, "an answer without a body stays one");
    }
}

#[tokio::test]
async fn messages_beyond_16_mib_pass_both_ways() {
    let bench = Bench::start();
    let _runtime = Server::start(&bench.runtime(), echo());
    let message = vec![0xa5; 20 << 20];
    let seen = timeout(SOON, both(&bench, VERSION, &[], &message)).await.unwrap();
    assert_eq!(seen.data.len(), message.len() + 5);
}

#[tokio::test]
async fn a_stream_passes_as_it_comes_and_a_cancelled_one_ends_at_the_runtime() {
    let bench = Bench::start();
    let gone = Arc::new(Notify::new());
    let notify = Arc::clone(&gone);
    let _runtime = Server::start(
        &bench.runtime(),
        Arc::new(move |_| {
            let notify = Arc::clone(&notify);
            Box::pin(async move {
                let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, h2::Error>>(1);
                tokio::spawn(async move {
                    for number in 0..3 {
                        sender.send(Ok(Frame::data(framed(&[number])))).await.unwrap();
                    }
                    sender.closed().await;
                    notify.notify_one();
                });
                let frames = tokio_stream::wrappers::ReceiverStream::new(receiver);
                Response::new(Body::new(http_body_util::StreamBody::new(frames)))
            })
        }),
    );
    let mut client = bench.client().await;
    let request = Client::request("/s/Stream", &[], Body::new(Full::new(framed(b""))));
    let mut response = client.send(request).await.unwrap();
    let mut data = Vec::new();
    while data.len() < 18 {
        data.extend(response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap());
    }
    assert_eq!((data[5], data[11], data[17]), (0, 1, 2));
    drop(response);
    timeout(SOON, gone.notified()).await.expect("the runtime learns of it");
}

#[tokio::test]
async fn a_unary_call_that_is_cancelled_ends_at_the_runtime() {
    struct OnDrop(Arc<Notify>);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }
    let bench = Bench::start();
    let (began, gone) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (begins, ends) = (Arc::clone(&began), Arc::clone(&gone));
    let _runtime = Server::start(
        &bench.runtime(),
        Arc::new(move |_| {
            let notify = OnDrop(Arc::clone(&ends));
            begins.notify_one();
            Box::pin(async move {
                let _notify = notify;
                std::future::pending().await
            })
        }),
    );
    let mut client = bench.client().await;
    let calling = tokio::spawn(async move { client.call(VERSION, &[], b"").await });
    began.notified().await;
    calling.abort();
    timeout(SOON, gone.notified()).await.expect("the runtime learns of it");
}

#[tokio::test]
async fn a_stream_that_the_runtime_resets_is_reset_for_the_same_reason() {
    let bench = Bench::start();
    let _runtime = Server::start(
        &bench.runtime(),
        Arc::new(|request| {
            let at_once = request.uri().path() == "/s/AtOnce";
            Box::pin(async move {
                let error = Err(h2::Reason::ENHANCE_YOUR_CALM.into());
                let first = (!at_once).then(|| Ok(Frame::data(framed(b"first"))));
                let frames = first.into_iter().chain([error]).collect();
                Response::new(Body::new(Frames { frames, open: false }))
            })
        }),
    );
    for path in ["/s/AtOnce", "/s/Later"] {
        let seen = both(&bench, path, &[], b"").await;
        assert_eq!(seen.reset, Some(h2::Reason::ENHANCE_YOUR_CALM));
    }
}

#[tokio::test]
async fn a_slow_call_delays_no_other_on_the_same_connection() {
    let bench = Bench::start();
    let _runtime = Server::start(
        &bench.runtime(),
        Arc::new(|request| {
            Box::pin(async move {
                match request.uri().path() {
                    "/s/Slow" => std::future::pending().await,
                    // Far more than the windows hold, for a client that does not read.
                    "/s/Large" => Response::new(Body::new(Full::new(Bytes::from(vec![0; 4 << 20])))),
                    _ => good(b"quick"),
                }
            })
        }),
    );
    let client = bench.client().await;
    let mut unread = Vec::new();
    for _ in 0..32 {
        let mut client = client.clone();
        tokio::spawn(async move { client.call("/s/Slow", &[], b"").await });
    }
    for _ in 0..8 {
        let request = Client::request("/s/Large", &[], Body::new(Full::new(framed(b""))));
        unread.push(bench.client().await.send(request).await.unwrap());
        let request = Client::request("/s/Large", &[], Body::new(Full::new(framed(b""))));
        unread.push(client.clone().send(request).await.unwrap());
    }
    for _ in 0..100 {
        let mut client = client.clone();
        let seen = timeout(SOON, client.call(VERSION, &[], b"")).await.expect("it waits for no other");
        assert_eq!(&*seen.data, &*framed(b"quick"));
    }
    for response in unread {
        assert_eq!(collect(response).await.data.len(), 4 << 20, "what was not read is not lost");
    }
}

#[tokio::test]
async fn a_message_that_says_4_gib_is_the_runtimes_to_refuse_and_here_refused_for_events() {
    let bench = Bench::start();
    let _runtime = Server::start(
        &bench.runtime(),
        Arc::new(|request: hyper::Request<Incoming>| {
            Box::pin(async move {
                let first = request.into_body().frame().await.unwrap().unwrap().into_data().unwrap();
                assert_eq!(&first[..5], b"\x00\xff\xff\xff\xff");
                refused(tonic::Status::resource_exhausted("too large"))
            })
        }),
    );
    let mut client = bench.client().await;
    for (path, code) in [(VERSION, Code::ResourceExhausted), (super::events::METHOD, Code::OutOfRange)] {
        let frames = [Ok(Frame::data(Bytes::from_static(b"\x00\xff\xff\xff\xff and no more")))].into();
        let request = Client::request(path, &[], Body::new(Frames { frames, open: true }));
        let seen = collect(client.send(request).await.unwrap()).await;
        assert_eq!(seen.status().code(), code, "{path}");
    }
}

#[tokio::test]
async fn when_it_stops_calls_that_are_under_way_get_their_answer() {
    let bench = Bench::start();
    let (arrived, answered) = (Arc::new(Semaphore::new(0)), Arc::new(Notify::new()));
    let (arrives, answers) = (Arc::clone(&arrived), Arc::clone(&answered));
    let _runtime = Server::start(
        &bench.runtime(),
        Arc::new(move |request| {
            let (arrives, answer) = (Arc::clone(&arrives), Arc::clone(&answers));
            Box::pin(async move {
                let path = request.uri().path();
                arrives.add_permits(usize::from(path.starts_with("/s/")));
                if path != "/s/Slow" {
                    std::future::pending::<()>().await;
                }
                answer.notified().await;
                good(b"late")
            })
        }),
    );
    let client = bench.client().await;
    let [mut slow, mut endless] = [client.clone(), client.clone()];
    let slow = tokio::spawn(async move { slow.call("/s/Slow", &[], b"").await });
    let endless = tokio::spawn(async move {
        let request = Client::request("/s/Endless", &[], Body::new(Full::new(framed(b""))));
        endless.send(request).await.map(drop)
    });
    let mut events = bench.client().await;
    let mut events = events.events().await;
    let _both = timeout(SOON, arrived.acquire_many(2)).await.expect("both calls are under way").unwrap();
    bench.stop.cancel();
    assert_eq!(events.next().await.unwrap_err().code(), Code::Unavailable);
    answered.notify_one();
    assert_eq!(&*slow.await.unwrap().data, &*framed(b"late"));
    assert!(endless.await.unwrap().is_err(), "it is cut off");
    timeout(SOON, bench.serving).await.expect("it stops").unwrap();
}
