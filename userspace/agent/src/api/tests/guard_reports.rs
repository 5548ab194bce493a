//! The guard's reports over the socket.

use kwitness_api::GUARD_REPORTS_MAX;
use kwitness_api::proto::guard_report::Report;

use super::*;

#[tokio::test]
async fn the_guards_limit_is_a_desired_one_and_a_report_of_an_unknown_container_is_rejected() {
    let served = Served::start().await;
    let mut client = KwitnessClient::new(served.channel().await);
    let now = Clock::read().now().0;
    let report = |container_id: &str, report| proto::GuardReport {
        container_id: container_id.to_owned(),
        time: now,
        report: Some(report),
    };
    let raised = proto::GuardRaised {
        level: proto::CgroupRole::Container.into(),
        limit_before: 4096,
        limit_after: 8192,
        held_ns: 1,
    };
    let reports = vec![
        report("0123456789", Report::SetsLimit(8192)),
        report("no\x1b", Report::Raised(raised)),
        report("0123456789", Report::Raised(raised)),
        report("0123456789", Report::Raised(proto::GuardRaised::default())),
    ];
    let dropped = Some(proto::GuardReportsDropped { count: 3, from: now - 1, to: now });
    let request = proto::ReportGuardEventsRequest { reports, dropped };
    let answer = client.report_guard_events(request).await.unwrap().into_inner();
    assert_eq!(answer.accepted, 2);
    let rejected: Vec<_> = answer.rejected.iter().map(String::as_str).collect();
    let [malformed, unknown] = rejected[..] else { panic!("{rejected:?}") };
    assert!(malformed.starts_with("reports[3]: `level` is unspecified"), "{malformed}");
    assert!(unknown.starts_with("reports[1]: no container with the ID"), "{unknown}");
    assert!(!unknown.contains('\x1b'), "{unknown}");
    let one = report("0123456789", Report::SetsLimit(1));
    let many = proto::ReportGuardEventsRequest { reports: vec![one; GUARD_REPORTS_MAX + 1], dropped: None };
    assert_eq!(client.report_guard_events(many).await.unwrap_err().code(), Code::InvalidArgument);

    let wanted = Some(proto::Wanted { memory: Some(proto::wanted::Memory::MemoryBytes(4096)), cpu: None });
    let verify = proto::VerifyRequest { wanted, ..Default::default() };
    let verdicts = client.verify(verify).await.unwrap().into_inner().verdicts;
    let verdict = verdicts[0].verdict.as_ref().unwrap();
    let desired = verdict.desired.iter().find(|of| of.source() == proto::Source::Guard).unwrap();
    assert_eq!(desired.value, "8192");
    assert_eq!(verdict.compared_with(), proto::Source::Client, "the caller's own word comes first");
}
