//! Requests that do not end, by frames that are made by hand.

use std::future::poll_fn;

use bytes::Bytes;
use tonic::codegen::http;

use super::*;

/// Sends a request but for its last byte; none: the server has ended the call before.
async fn send_half(
    client: &mut h2::client::SendRequest<Bytes>,
) -> (h2::client::ResponseFuture, Option<h2::SendStream<Bytes>>) {
    let request = http::Request::post("http://localhost/kwitness.v1alpha1.Kwitness/Verify")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let (response, mut body) = client.send_request(request, false).unwrap();
    let length = (REQUEST_BYTES_MAX as u32).to_be_bytes();
    let mut rest = Bytes::from([&[0], &length[..], &vec![0; REQUEST_BYTES_MAX - 1]].concat());
    while !rest.is_empty() {
        body.reserve_capacity(rest.len());
        let Some(Ok(room)) = timeout(SOON, poll_fn(|context| body.poll_capacity(context))).await.unwrap()
        else {
            return (response, None);
        };
        body.send_data(rest.split_to(room.min(rest.len())), false).unwrap();
    }
    (response, Some(body))
}

#[tokio::test]
async fn half_sent_requests_are_bounded_in_bytes_and_leave_other_connections_room() {
    let served = Served::start_with(MaxCalls::all(1000)).await;
    let stream = tokio::net::UnixStream::connect(&served.path).await.unwrap();
    let (mut attacker, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut held = Vec::new();
    let refused = loop {
        attacker = attacker.ready().await.unwrap();
        match send_half(&mut attacker).await {
            (response, Some(body)) => held.push((response, body)),
            (response, None) => break timeout(SOON, response).await.unwrap().unwrap(),
        }
        assert!(held.len() < 100, "there is no bound");
    };
    let status = tonic::Status::from_header_map(refused.headers()).unwrap();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(held.len() >= 16, "{}", held.len());
    let mut client = KwitnessClient::new(served.channel().await);
    client.list(proto::ListRequest::default()).await.unwrap();
    let status = client.status(proto::StatusRequest {}).await.unwrap().into_inner();
    assert!(status.counters["request_bytes_refused"] >= 1);
}
