//! Against h2, as client and as server, over a socket.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::connection::ConnectionCounters;
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
