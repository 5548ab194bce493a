//! Against h2, as client and as server, over a socket.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::beginning::ConnectionCounters;
use crate::slots::{Admitted, Peer, Slots};

fn connection(stream: UnixStream) -> Connection {
    let Admitted::Room(slot) = Slots::new(1).admit(Peer::of(&stream), &stream) else { panic!() };
    Connection::new(stream, slot, Duration::from_secs(120), Arc::new(ConnectionCounters::default()))
}

/// What grpcio 1.85.3 (C-core) sends for two calls to `unix:/run/kwitness/kwitness.sock`; the second request has references only.
const GRPCIO: &[u8] = include_bytes!("../../../../tests/corpus/http2/grpcio-1.85.3");

#[tokio::test]
async fn a_path_as_authority_reaches_the_server_also_by_reference_and_byte_by_byte() {
    let (mut client, server) = UnixStream::pair().unwrap();
    let writing = tokio::spawn(async move {
        for byte in GRPCIO {
            client.write_all(&[*byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        client
    });
    let mut server = h2::server::handshake(connection(server)).await.unwrap();
    for _ in 0..2 {
        let (request, _) = server.accept().await.unwrap().unwrap();
        let authority = request.uri().authority().unwrap().as_str();
        assert_eq!(authority, "run-2Fkwitness-2Fkwitness.sock");
        assert_eq!(request.uri().path(), "/runtime.v1.RuntimeService/Version");
        assert!(request.headers()["user-agent"].to_str().unwrap().starts_with("grpc-python/1.85.3"));
    }
    drop(writing.await.unwrap());
}

#[tokio::test]
async fn a_block_that_is_cut_off_is_passed_on_with_the_end() {
    let (mut client, server) = UnixStream::pair().unwrap();
    // In the middle of the first request's header block.
    let wire = &GRPCIO[..200];
    client.write_all(wire).await.unwrap();
    drop(client);
    let mut read = Vec::new();
    tokio::time::timeout(Duration::from_secs(10), connection(server).read_to_end(&mut read))
        .await
        .expect("the end")
        .unwrap();
    assert_eq!(read, wire);
}

/// RFC 9113, 4.1: a request without a body.
fn request(stream: u8, authority: &[u8]) -> Vec<u8> {
    // `:method: POST`, `:scheme: http`, `:path: /`.
    let block = [&[0x83, 0x86, 0x84], authority].concat();
    [&[0, 0, block.len() as u8, 1, 5, 0, 0, 0, stream], &block[..]].concat()
}

#[tokio::test]
async fn an_authority_that_cannot_be_mended_costs_its_call_only() {
    let (mut client, server) = UnixStream::pair().unwrap();
    let path = b"/run/kwitness.sock";
    let value = |head: &[u8]| [head, &[path.len() as u8], path].concat();
    let wire = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec(),
        // Into the dynamic table, whose first entry is 62.
        request(1, &value(&[0x41])),
        request(3, &[0x01, 0]),
        request(5, &value(&[0x0f, 62 - 15])),
        request(7, &[0x80 | 62]),
    ];
    client.write_all(&wire.concat()).await.unwrap();
    let mut server = h2::server::handshake(connection(server)).await.unwrap();
    for stream in [1, 7] {
        let (request, respond) = server.accept().await.unwrap().unwrap();
        assert_eq!(u32::from(respond.stream_id()), stream);
        assert_eq!(request.uri().authority().unwrap(), "-run-kwitness.sock");
    }
}
