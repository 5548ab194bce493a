//! The CRI proxy's reports over the socket.

use kwitness_api::REQUESTS_MAX;

use super::*;

#[tokio::test]
async fn a_reported_request_is_a_desired_limit_and_a_malformed_one_is_named() {
    let served = Served::start().await;
    let mut client = KwitnessClient::new(served.channel().await);
    let now = Clock::read().now().0;
    let request = proto::CriRequest {
        method: proto::CriMethod::UpdateContainerResources.into(),
        id: "0123456789".into(),
        received: now - 2_000,
        answered: now - 1_000,
        code: Some(0),
        resources: Some(proto::CriResources { memory_limit_in_bytes: 8192, ..Default::default() }),
    };
    let nobodys = proto::CriRequest { id: String::new(), ..request.clone() };
    let reports =
        proto::ReportCriRequestsRequest { requests: vec![nobodys, request.clone()], ..Default::default() };
    let answer = client.report_cri_requests(reports).await.unwrap().into_inner();
    assert_eq!(answer.accepted, 1);
    assert!(answer.malformed[0].starts_with("requests[0]: `id` is empty"), "{answer:?}");
    let many = vec![request.clone(); REQUESTS_MAX + 1];
    let many = proto::ReportCriRequestsRequest { requests: many, ..Default::default() };
    assert_eq!(client.report_cri_requests(many).await.unwrap_err().code(), Code::InvalidArgument);

    let wanted = Some(proto::Wanted { memory: Some(proto::wanted::Memory::MemoryBytes(4096)), cpu: None });
    let verify = proto::VerifyRequest { wanted, ..Default::default() };
    let verdicts = client.verify(verify).await.unwrap().into_inner().verdicts;
    assert_eq!(verdicts[0].last_request, Some(request));
    let verdict = verdicts[0].verdict.as_ref().unwrap();
    let desired = verdict.desired.iter().find(|of| of.source() == proto::Source::CriRequest).unwrap();
    assert_eq!(desired.value, "8192");
    assert_eq!(Clock::read().kernel(desired.time.unwrap()).0.abs_diff(now - 2_000) / 1_000_000, 0);
    assert_eq!(
        verdict.disagreeing,
        [i32::from(proto::Source::CriRequest)],
        "the caller's own word comes first"
    );
    let status = client.status(proto::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.counters["cri_requests_reported"], status.counters["cri_requests_malformed"]), (1, 1));
}

#[tokio::test]
async fn what_was_missed_is_taken_in_and_what_cannot_have_been_is_named() {
    let served = Served::start().await;
    let mut client = KwitnessClient::new(served.channel().await);
    let now = Clock::read().now().0;
    let missed =
        |id: &str, to| proto::CriRequestsMissed { id: id.to_owned(), count: 2, from: now - 2_000, to };
    let one = missed("0123456789", now - 1_000);
    let many = vec![one.clone(); REQUESTS_MAX + 1];
    let many = proto::ReportCriRequestsRequest { missed: many, ..Default::default() };
    let refused = client.report_cri_requests(many).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, "more than 256 `missed`"));

    let all = vec![one, missed("", now - 1_000), missed("0123456789", now - 3_000)];
    let report = proto::ReportCriRequestsRequest { missed: all, ..Default::default() };
    let answer = client.report_cri_requests(report).await.unwrap().into_inner();
    assert_eq!(answer.accepted, 0, "no request is reported");
    let [malformed] = &answer.malformed[..] else { panic!("{answer:?}") };
    assert!(malformed.starts_with("missed[2]: `id` is longer"), "{malformed}");
    // Whatever is requested of the engine later comes after it.
    let wanted = Some(proto::Wanted { memory: Some(proto::wanted::Memory::MemoryBytes(4096)), cpu: None });
    client.verify(proto::VerifyRequest { wanted, ..Default::default() }).await.unwrap();
    let status = client.status(proto::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.counters["cri_requests_missed"], status.counters["cri_requests_malformed"]), (4, 1));
}

#[tokio::test]
async fn a_request_that_would_take_much_memory_is_not_decoded() {
    let served = Served::start().await;
    let mut client = KwitnessClient::new(served.channel().await);
    let (requests, missed) = (vec![proto::CriRequest::default(); 256], vec![Default::default(); 256]);
    client.report_cri_requests(proto::ReportCriRequestsRequest { requests, missed }).await.unwrap();
    let requests = vec![proto::CriRequest::default(); 1 << 17];
    let reports = proto::ReportCriRequestsRequest { requests, ..Default::default() };
    let filter = Some(proto::Filter { pods: vec![String::new(); 1 << 17], ..Default::default() });
    let watch = proto::WatchRequest { filter: filter.clone(), ..Default::default() };
    let list = proto::ListRequest { filter };
    for refused in [
        client.report_cri_requests(reports).await.map(drop),
        client.watch(watch).await.map(drop),
        client.list(list).await.map(drop),
    ] {
        let refused = refused.unwrap_err();
        assert!(
            refused.code() == Code::OutOfRange && refused.message().contains("too many fields"),
            "{refused}"
        );
    }
}
