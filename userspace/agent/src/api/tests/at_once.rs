//! Calls that a client makes at once on one connection, before any is looked at.

use futures_util::future::join_all;

use super::*;

/// Far more than fit into half of HTTP/2's default window at what h2 takes a small frame to cost.
const CALLS: u32 = 1000;

async fn all_are_answered(channel: Channel) {
    let mut client = KwitnessClient::new(channel);
    // From here on the client knows how many calls it may have.
    client.status(proto::StatusRequest {}).await.unwrap();
    let calls = (0..CALLS).map(|_| {
        let mut client = client.clone();
        async move { client.status(proto::StatusRequest {}).await }
    });
    let answers = timeout(SOON, join_all(calls)).await.unwrap();
    assert_eq!(answers.into_iter().find_map(Result::err).map(|error| error.to_string()), None);
}

#[tokio::test]
async fn calls_at_once_end_no_connection() {
    let served = Served::start_with(MaxCalls::all(2 * CALLS)).await;
    all_are_answered(served.channel().await).await;
    let forwarded = Endpoint::from_shared(format!("http://{}", served.forwarded)).unwrap();
    all_are_answered(forwarded.connect().await.unwrap()).await;
}
