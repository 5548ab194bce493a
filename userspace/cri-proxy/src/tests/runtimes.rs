//! Runtimes that are away, go, hang, or are replaced.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use http_body::Frame;
use http_body_util::{BodyExt as _, Full};
use hyper::Response;
use tokio::net::UnixListener;
use tonic::Code;
use tonic::body::Body;

use super::{VERSION, echo};
use crate::runtime::{Runtime, RuntimeSocket};
use crate::testing::*;

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
