//! The proxy between a client and a runtime of the tests: what passes, and what happens when one side misbehaves.

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt as _, Full};
use hyper::Response;
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tonic::Code;
use tonic::body::Body;

use super::events::Timing;
use super::runtime::{Runtime, RuntimeSocket};
use super::testing::*;

const VERSION: &str = "/runtime.v1.RuntimeService/Version";

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
    let seen = timeout(Duration::from_secs(60), both(&bench, VERSION, &[], &message)).await.unwrap();
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
    timeout(Duration::from_secs(5), gone.notified()).await.expect("the runtime learns of it");
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
    timeout(Duration::from_secs(5), gone.notified()).await.expect("the runtime learns of it");
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
    let began = Instant::now();
    for _ in 0..100 {
        let seen = client.clone().call(VERSION, &[], b"").await;
        assert_eq!(&*seen.data, &*framed(b"quick"));
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    for response in unread {
        assert_eq!(collect(response).await.data.len(), 4 << 20, "what was not read is not lost");
    }
}

#[tokio::test]
async fn a_runtime_that_is_away_looks_as_to_grpc_go_and_is_used_once_it_is_back() {
    let bench = Bench::start();
    let mut client = bench.client().await;
    let away = async |client: &mut Client, reason: &str| {
        let seen = client.call(VERSION, &[], b"").await;
        let status = seen.status();
        assert_eq!(status.code(), Code::Unavailable);
        let dial = "connection error: desc = \"transport: Error while dialing: dial unix";
        assert_eq!(status.message(), format!("{dial} {}: connect: {reason}\"", bench.runtime().display()));
    };
    away(&mut client, "no such file or directory").await;
    std::fs::write(bench.runtime(), "a file").unwrap();
    away(&mut client, "connection refused").await;
    for _ in 0..3 {
        let runtime = Server::start(&bench.runtime(), echo());
        assert_eq!(client.call(VERSION, &[], b"").await.status().code(), Code::Ok);
        drop(runtime);
        // The end of the connection may or may not have been seen.
        assert_eq!(client.call(VERSION, &[], b"").await.status().code(), Code::Unavailable);
        away(&mut client, "connection refused").await;
    }
    assert!(bench.counters.calls_unavailable.get() >= 8);
    assert_eq!(bench.counters.runtime_connections.get(), 3);
}

#[tokio::test]
async fn a_socket_that_may_not_be_used_is_said_so() {
    if nix::unistd::geteuid().is_root() {
        // Root may use every socket: a directory that is none stands in for the permission.
        let bench = Bench::start();
        std::fs::create_dir(bench.runtime()).unwrap();
        let status = bench.client().await.call(VERSION, &[], b"").await.status();
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().contains("connection refused"), "{status}");
        return;
    }
    let bench = Bench::start();
    let _runtime = Server::start(&bench.runtime(), echo());
    std::fs::set_permissions(bench.runtime(), std::fs::Permissions::from_mode(0o000)).unwrap();
    let status = bench.client().await.call(VERSION, &[], b"").await.status();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("permission denied"), "{status}");
}

#[tokio::test]
async fn a_runtime_that_goes_away_in_the_middle_is_unavailable() {
    let bench = Bench::start();
    let runtime = Server::start(
        &bench.runtime(),
        Arc::new(|request| {
            Box::pin(async move {
                if request.uri().path() == "/s/Silent" {
                    std::future::pending::<()>().await;
                }
                let frames = [Ok(Frame::data(framed(b"first")))].into();
                let mut answer = Response::new(Body::new(Frames { frames, open: true }));
                answer.headers_mut().extend(headers(&[("content-type", b"application/grpc")]));
                answer
            })
        }),
    );
    let mut client = bench.client().await;
    let mut silent = client.clone();
    let silent = tokio::spawn(async move { silent.call("/s/Silent", &[], b"").await });
    let request = Client::request("/s/Stream", &[], Body::new(Full::new(framed(b""))));
    let mut stream = client.send(request).await.unwrap();
    stream.body_mut().frame().await.unwrap().unwrap();
    drop(runtime);
    let silent = silent.await.unwrap();
    let stream = collect(stream).await;
    for seen in [silent, stream] {
        let status = seen.status();
        assert_eq!(status.code(), Code::Unavailable, "{seen:?}");
        assert!(status.message().starts_with("error reading from server: "), "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_takes_connections_and_says_nothing_is_given_up() {
    let bench = Bench::start();
    let listener = UnixListener::bind(bench.runtime()).unwrap();
    let taking = tokio::spawn(async move {
        let mut accepted = Vec::new();
        loop {
            accepted.push(listener.accept().await.unwrap());
        }
    });
    let mut client = bench.client().await;
    let status = client.call(VERSION, &[], b"").await.status();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("nothing came from unix"), "{status}");
    taking.abort();
    let _ = taking.await;
    tokio::time::resume();
    let _runtime = Server::start(&bench.runtime(), echo());
    assert_eq!(client.call(VERSION, &[], b"").await.status().code(), Code::Ok, "another is tried");
}

/// What a raw client gets until the proxy closes.
async fn say(bench: &Bench, bytes: &[u8]) -> Vec<u8> {
    let mut stream = UnixStream::connect(bench.socket()).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let closed =
        timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await.expect("it is closed");
    // What it did not read of ours makes the end a reset.
    assert!(closed.is_ok() || closed.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
    answer
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[tokio::test]
async fn what_is_no_http2_ends_its_own_connection_only() {
    let bench = Bench::start();
    let _runtime = Server::start(&bench.runtime(), echo());
    let mut other = bench.client().await;
    other.call(VERSION, &[], b"").await;
    say(&bench, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    // A frame of 16 MiB - 1, the largest that can be said, while 16 KiB are allowed: FRAME_SIZE_ERROR.
    let answer = say(&bench, &[PREFACE, b"\xff\xff\xff\x00\x00\x00\x00\x00\x01"].concat()).await;
    let goaway = answer.windows(9).position(|head| head[3] == 7 && head[5..9] == [0; 4]).expect("a GOAWAY");
    assert_eq!(answer[goaway + 13..goaway + 17], [0, 0, 0, 6], "FRAME_SIZE_ERROR");
    assert_eq!(bench.counters.connections_broken.get(), 2);
    assert_eq!(other.call(VERSION, &[], b"").await.status().code(), Code::Ok);
}

#[tokio::test]
async fn a_client_that_never_reads_its_socket_is_no_longer_read() {
    let bench = Bench::start();
    let _runtime = Server::start(&bench.runtime(), echo());
    let mut stream = UnixStream::connect(bench.socket()).await.unwrap();
    stream.write_all(&[PREFACE, b"\0\0\0\x04\0\0\0\0\0"].concat()).await.unwrap();
    // PINGs, each of which has to be answered.
    let pings = b"\0\0\x08\x06\0\0\0\0\0........".repeat(1000);
    let mut written = 0;
    while let Ok(more) = timeout(Duration::from_millis(500), stream.write(&pings)).await {
        written += more.unwrap();
        assert!(written < 64 << 20, "its answers are kept, without end");
    }
    let mut other = bench.client().await;
    assert_eq!(other.call(VERSION, &[], b"").await.status().code(), Code::Ok);
}

#[tokio::test]
async fn a_runtime_whose_socket_is_replaced_while_it_lives_serves_what_it_has() {
    let bench = Bench::start();
    let named =
        |name: &'static str| -> Handler { Arc::new(move |_| Box::pin(async move { good(name.as_bytes()) })) };
    let old = Server::start(&bench.runtime(), named("old"));
    let mut before = bench.client().await;
    assert_eq!(before.call(VERSION, &[], b"").await.data, framed(b"old"));
    let _new = Server::start(&bench.runtime(), named("new"));
    assert_eq!(before.call(VERSION, &[], b"").await.data, framed(b"old"), "its connection is there");
    assert_eq!(bench.client().await.call(VERSION, &[], b"").await.data, framed(b"new"));
    drop(old);
    // The end of the connection may or may not have been seen.
    before.call(VERSION, &[], b"").await;
    assert_eq!(before.call(VERSION, &[], b"").await.data, framed(b"new"));
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

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_begin_is_closed() {
    let bench = Bench::start();
    let mut silent = UnixStream::connect(bench.socket()).await.unwrap();
    let mut half = UnixStream::connect(bench.socket()).await.unwrap();
    half.write_all(&PREFACE[..10]).await.unwrap();
    for stream in [&mut silent, &mut half] {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
    }
    assert_eq!(bench.connections.connections_silent.get(), 2);
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_made_anew() {
    let bench = Bench::start();
    let _serving = Server::start(&bench.runtime(), echo());
    let runtime = Arc::new(Runtime::new(RuntimeSocket::At(bench.runtime()), Arc::clone(&bench.counters)));
    let upstream = runtime.upstream(bench.budget.meter(0));
    let request = || Client::request(VERSION, &[], body([http_body::Frame::data(framed(b""))]));
    for connections in 1..=2 {
        let answer = upstream.call(request()).await.unwrap();
        assert!(!upstream.give_up_if_idle(), "there was a call");
        // While its answer is still under way.
        assert!(upstream.give_up_if_idle());
        assert!(!upstream.give_up_if_idle(), "there is none any more");
        assert_eq!(collect(answer).await.status().code(), Code::Ok);
        assert_eq!(bench.counters.runtime_connections.get(), connections);
    }
}

#[tokio::test]
async fn a_thousand_connections_do_not_keep_anybody_out() {
    let bench = Bench::start();
    let _runtime = Server::start(&bench.runtime(), echo());
    let mut connections = Vec::new();
    for number in 0..1000 {
        let mut stream = UnixStream::connect(bench.socket()).await.unwrap();
        // A third says nothing, a third half a preface, a third half a frame.
        let said =
            [&b""[..], &PREFACE[..12], &[PREFACE, b"\x00\x00\x20\x01"].concat()][number % 3].to_owned();
        stream.write_all(&said).await.unwrap();
        connections.push(stream);
    }
    let mut client = bench.client().await;
    let began = Instant::now();
    assert_eq!(client.call(VERSION, &[], b"").await.status().code(), Code::Ok);
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(bench.connections.connections.get(), 1001);
    assert_eq!(bench.counters.runtime_connections.get(), 1, "who does not call costs the runtime nothing");
}

#[tokio::test]
async fn when_it_stops_calls_that_are_under_way_get_their_answer() {
    let bench = Bench::start();
    let _runtime = Server::start(
        &bench.runtime(),
        Arc::new(|request| {
            let time = if request.uri().path() == "/s/Slow" { 300 } else { 3_600_000 };
            Box::pin(async move {
                sleep(Duration::from_millis(time)).await;
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
    sleep(Duration::from_millis(100)).await;
    bench.stop.cancel();
    assert_eq!(events.next().await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(&*slow.await.unwrap().data, &*framed(b"late"));
    assert!(endless.await.unwrap().is_err(), "it is cut off");
    timeout(Duration::from_secs(5), bench.serving).await.expect("it stops").unwrap();
}

/// What grpcio 1.85.3 (C-core, Python) sends for two calls; `:authority` is the socket's path, percent-encoded.
const GRPCIO: &[u8] = include_bytes!("../../../tests/corpus/http2/grpcio-1.85.3");

#[tokio::test]
async fn a_client_that_sends_the_sockets_path_as_authority_is_served() {
    const DATA: u8 = 0;
    const RST_STREAM: u8 = 3;
    let bench = Bench::start();
    let _runtime = Server::start(&bench.runtime(), echo());
    let mut client = UnixStream::connect(bench.socket()).await.unwrap();
    client.write_all(GRPCIO).await.unwrap();
    let mut answered = 0;
    while answered < 2 {
        let mut head = [0; 9];
        timeout(Duration::from_secs(20), client.read_exact(&mut head)).await.unwrap().unwrap();
        assert_ne!(head[3], RST_STREAM, "{head:?}");
        answered += usize::from(head[3] == DATA && head[2] == 5);
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        client.read_exact(&mut payload).await.unwrap();
    }
    assert_eq!(bench.counters.calls.get(), 2);
}

/// A frame of HTTP/2 (RFC 9113, 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A request's header block, with a field in the dynamic table, and so many references to it: each is a byte on the wire.
fn bomb(stream: u32, references: usize) -> Vec<u8> {
    let mut block = vec![0x83, 0x86, 0x84, 0x41, 1, b'x'];
    block.extend(b"\x40\x01a\x01b");
    block.extend(vec![0xbe; references]);
    let last = block.chunks(16384).count() - 1;
    let frames = block.chunks(16384).enumerate().map(|(number, piece)| {
        frame(if number == 0 { 1 } else { 9 }, if number == last { 4 } else { 0 }, stream, piece)
    });
    frames.collect::<Vec<_>>().concat()
}

#[tokio::test]
async fn a_client_that_fills_the_memory_while_the_runtime_hangs_is_closed_and_no_other() {
    const MEMORY: i64 = 16 << 20;
    let bench = Bench::within(Timing::default(), MEMORY, i64::MAX);
    // It accepts, by its queue, and never reads.
    let _hung = UnixListener::bind(bench.runtime()).unwrap();
    let daemon = FakeSource::daemon();
    let _daemon = daemon.serve(&bench.daemon());
    let mut client = bench.client().await;
    let mut events = client.events().await;
    daemon.followed(1).await;
    let mut attacker = UnixStream::connect(bench.socket()).await.unwrap();
    attacker.write_all(&[PREFACE, &frame(4, 0, 0, &[])].concat()).await.unwrap();
    // Each is some 2 MB of memory: far more than there is.
    let mut written = Ok(());
    let mut peak = 0;
    for number in 0..100 {
        written = attacker.write_all(&bomb(2 * number + 1, 25_000)).await;
        peak = peak.max(bench.budget.used());
        if written.is_err() {
            break;
        }
    }
    assert!(written.is_err(), "it is closed");
    assert!(peak < MEMORY + (4 << 20), "{peak}");
    assert_eq!(bench.counters.connections_exhausted.get(), 1);
    daemon.send("a:0").await;
    assert_eq!(events.next().await.unwrap(), "a:0");
    eventually("its memory to be free", || bench.budget.used() < 1 << 20).await;
}

#[tokio::test]
async fn calls_that_hold_too_much_memory_are_followed_by_resource_exhausted() {
    let bench = Bench::within(Timing::default(), i64::MAX, 2 << 20);
    let _hung = UnixListener::bind(bench.runtime()).unwrap();
    let client = bench.client().await;
    let large = "x".repeat(500_000);
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (mut client, large) = (client.clone(), large.clone());
        calls.spawn(async move { client.call(VERSION, &[("x-large", large.as_bytes())], b"").await });
    }
    // The others hang.
    let seen = timeout(Duration::from_secs(60), calls.join_next()).await.unwrap().unwrap().unwrap();
    assert_eq!(seen.status().code(), Code::ResourceExhausted);
    assert!(bench.counters.calls_exhausted.get() > 0);
}
