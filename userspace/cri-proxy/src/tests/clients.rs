//! Clients that misbehave, or differ from the kubelet.

use std::io::ErrorKind;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;
use tonic::Code;

use super::{SOON, VERSION, echo};
use crate::events::Timing;
use crate::testing::*;

/// What a raw client gets until the proxy closes.
async fn say(bench: &Bench, bytes: &[u8]) -> Vec<u8> {
    let mut stream = UnixStream::connect(bench.socket()).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let closed = timeout(SOON, stream.read_to_end(&mut answer)).await.expect("it is closed");
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
    let seen = timeout(SOON, client.call(VERSION, &[], b"")).await.expect("it is not kept out");
    assert_eq!(seen.status().code(), Code::Ok);
    assert_eq!(bench.connections.connections.get(), 1001);
    assert_eq!(bench.counters.runtime_connections.get(), 1, "who does not call costs the runtime nothing");
}

/// What grpcio 1.85.3 (C-core, Python) sends for two calls; `:authority` is the socket's path, percent-encoded.
const GRPCIO: &[u8] = include_bytes!("../../../../tests/corpus/http2/grpcio-1.85.3");

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
        timeout(SOON, client.read_exact(&mut head)).await.unwrap().unwrap();
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
    let seen = timeout(SOON, calls.join_next()).await.unwrap().unwrap().unwrap();
    assert_eq!(seen.status().code(), Code::ResourceExhausted);
    assert!(bench.counters.calls_exhausted.get() > 0);
}
