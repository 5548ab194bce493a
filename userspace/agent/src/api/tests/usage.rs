//! `WatchUsage`, over the socket and over the forwarded port.

use super::*;

#[tokio::test]
async fn usage_is_streamed_on_both_ways_until_the_daemon_stops() {
    let served = Served::start().await;
    let endpoint = Endpoint::from_shared(format!("http://{}", served.forwarded)).unwrap();
    let mut streams = Vec::new();
    for channel in [endpoint.connect().await.unwrap(), served.channel().await] {
        let mut client = KwitnessClient::new(channel);
        let request = proto::WatchUsageRequest { interval_ms: 499, ..Default::default() };
        assert_eq!(client.watch_usage(request).await.unwrap_err().code(), Code::InvalidArgument);
        let mut stream = client.watch_usage(proto::WatchUsageRequest::default()).await.unwrap().into_inner();
        let sample = timeout(SOON, stream.message()).await.unwrap().unwrap().unwrap();
        assert!(sample.time.is_some() && sample.kernel_time > 0 && sample.skipped == 0, "{sample:?}");
        streams.push(stream);
    }
    served.stop.cancel();
    for mut stream in streams {
        let ended = loop {
            match timeout(SOON, stream.message()).await.unwrap() {
                Ok(sample) => assert!(sample.is_some(), "it ends with a status"),
                Err(status) => break status,
            }
        };
        assert_eq!(ended.code(), Code::Unavailable);
    }
}
