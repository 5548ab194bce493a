//! What clients report of limits goes on in the next daemon, and so do the verdicts that rest on it.

use kwitness_api::proto;
use kwitness_core::model::{
    Bound, CgroupId, ContainerId, DesiredLimit, Evidence, GuardAct, GuardReport, Kind, Level, LevelRole,
    Reading, Requester, Resource, Scan, ScanReason, ScannedCgroup, Source, Unobserved, Value, Verdict,
    Wanted,
};

use super::*;
use crate::reported::LimitReport;

#[test]
fn what_was_requested_and_what_the_guard_set_is_known_to_the_next_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(directory.path());
    let mut daemon = Daemon::begin(&place);
    let id = || ContainerId("c".into());
    let request = |memory| proto::CriRequest {
        method: proto::CriMethod::UpdateContainerResources.into(),
        id: "c".into(),
        received: 1,
        answered: 2,
        code: Some(0),
        resources: Some(proto::CriResources { memory_limit_in_bytes: memory, ..Default::default() }),
    };
    let report = |daemon: &mut Daemon, report: LimitReport| {
        assert!(daemon.ledger.report(&report));
        daemon.memory.reported.take(report);
    };
    report(&mut daemon, LimitReport::Requested(request(64 << 20)));
    report(&mut daemon, LimitReport::GuardSets { container: id(), at: KernelTime(3), bytes: 96 << 20 });
    let wanted = |memory: &Memory| {
        let (requests, guard) =
            (memory.reported.requests().desired("c"), memory.reported.guard().desired(&id()));
        requests.into_iter().chain(guard).map(|(_, limit)| (limit.source, limit.wanted)).collect::<Vec<_>>()
    };
    let both = wanted(&daemon.memory);
    assert_eq!(both.len(), 2);
    assert_eq!(wanted(&replay(&place).1), both, "of the entries");
    daemon
        .ledger
        .turn(daemon.writer.position(), &daemon.memory.borrowed(), Before::Broken, &daemon.writer)
        .unwrap();
    let memory = replay(&place).1;
    assert_eq!(wanted(&memory), both, "of the state");
    assert_eq!(memory.reported.requests().last("c"), Some(request(64 << 20)));

    // What it came to is in an observation; and that no request was observed for a while.
    let level = LevelRole::Container;
    let act = GuardAct::Returned { level, from: 96 << 20, to: 64 << 20, original: 64 << 20 };
    daemon.observe(Observation::Guard(GuardReport { at: KernelTime(4), container: id(), act }));
    daemon.observe(Observation::AgentRestarted { from: KernelTime(5), to: KernelTime(8), records: 0 });
    let memory = replay(&place).1;
    let guards = (Source::Guard, Wanted::Memory(Bound::At(64 << 20)));
    assert_eq!(wanted(&memory)[1], guards);
    let outage = Unobserved { from: KernelTime(5), to: KernelTime(8) };
    let unobserved = |memory: &Memory| memory.reported.unobserved(&id(), Resource::Memory);
    assert_eq!(unobserved(&memory)[1..], [outage]);

    // So is what the proxy missed.
    let missed = Unobserved { from: KernelTime(9), to: KernelTime(10) };
    let Unobserved { from, to } = missed;
    let at = KernelTime(11);
    daemon.observe(Observation::RequestsMissed { at, container: Some(id()), from, to, count: 1 });
    assert_eq!(unobserved(&replay(&place).1)[1..], [outage, missed], "of the entries");
    daemon
        .ledger
        .turn(daemon.writer.position(), &daemon.memory.borrowed(), Before::Broken, &daemon.writer)
        .unwrap();
    assert_eq!(unobserved(&replay(&place).1)[1..], [outage, missed], "of the state");
}

#[test]
fn a_limit_that_was_in_force_is_so_for_the_next_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(directory.path());
    let mut daemon = Daemon::begin(&place);
    let path: Arc<str> =
        Arc::from(format!("/kubepods/pod3f1c2a3e-1111-2222-3333-444455556666/{}", "c".repeat(64)));
    let scanned = |id, parent, path: &Arc<str>| ScannedCgroup {
        id: CgroupId(id),
        parent: CgroupId(parent),
        path: path.clone(),
        beyond_share: false,
        populated: Some(true),
        processes: Vec::new(),
    };
    let pod: Arc<str> = path.rsplit_once('/').unwrap().0.into();
    let mut scan = Scan::empty(ScanReason::Initial, KernelTime(1));
    scan.cgroups = vec![scanned(6, 0, &pod), scanned(7, 6, &path)];
    daemon.observe(Observation::Scan(scan));
    let request = proto::CriRequest {
        method: proto::CriMethod::UpdateContainerResources.into(),
        id: "c".repeat(64),
        received: 3,
        answered: 3,
        code: Some(0),
        resources: Some(proto::CriResources { memory_limit_in_bytes: 96 << 20, ..Default::default() }),
    };
    let report = LimitReport::Requested(request);
    assert!(daemon.ledger.report(&report));
    daemon.memory.reported.take(report);

    // The kubelet has admitted less, before.
    let evidence = |memory: &Memory, at| {
        let of = |source, at, bytes| DesiredLimit {
            source,
            at: KernelTime(at),
            wanted: Wanted::Memory(Bound::At(bytes)),
        };
        let mut desired = vec![of(Source::KubeletAllocated, 2, 64 << 20), of(Source::Runtime, at, 96 << 20)];
        let requested = memory.reported.requests().desired(&"c".repeat(64));
        desired.extend(requested.into_iter().map(|(_, limit)| limit));
        let reading = Reading::Is(Value::Bound(Bound::At(96 << 20)));
        Evidence {
            requester: Requester::Node,
            at: KernelTime(at),
            cgroup: CgroupId(7),
            inner: None,
            resource: Resource::Memory,
            desired,
            may_be_less: false,
            unobserved: memory.reported.unobserved(&ContainerId("c".repeat(64).into()), Resource::Memory),
            levels: vec![Level { path: path.clone(), role: LevelRole::Container, reading }],
            own: 0,
            usage: None,
            deadline: None,
            page: 4096,
            kubernetes: None,
        }
    };
    let in_force = evidence(&daemon.memory, 4);
    daemon.observe(Observation::Evidence(Box::new(in_force)));
    let Some(Kind::Verdict(judged)) = daemon.output.events.last().map(|event| &event.kind) else { panic!() };
    assert_eq!(judged.judgement.verdict, Verdict::InForce);
    daemon.publish();

    let mut memory = replay(&place).1;
    let again = evidence(&memory, 9);
    let mut output = Output::default();
    let judge = |memory: &mut Memory, of: Evidence, output: &mut Output| {
        let judged = memory.node.observe(Observation::Evidence(Box::new(of)), output).unwrap();
        judged.judgement.verdict
    };
    assert_eq!(judge(&mut memory, again, &mut output), Verdict::InForce);
    assert_eq!(output.events, [], "nothing has changed");

    // An earlier release's ledger has no requests.
    let mut state = serde_json::to_value(memory.borrowed()).unwrap();
    state.as_object_mut().unwrap().remove("reported").unwrap();
    let mut memory: Memory = serde_json::from_value(state).unwrap();
    let without = evidence(&memory, 10);
    assert_eq!(without.desired.len(), 2);
    let verdict = judge(&mut memory, without, &mut output);
    assert!(matches!(verdict, Verdict::Unknown { .. }), "{verdict:?}");
}
