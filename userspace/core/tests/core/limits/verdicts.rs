//! What is remembered of verdicts, and when one is reported: by the writes that a tracker has seen.

use kwitness_core::model::{
    DesiredLimit, Evidence, Level, OomKill, OomScope, ProcKey, Requester, Resource, Source, TaskInfo,
    Verdict, Wanted,
};
use kwitness_core::verdicts::VerdictTracker;

use super::*;

fn evidence(limit: u64, at: u64) -> Observation {
    evidence_for(Requester::Node, limit, at)
}

fn evidence_for(requester: Requester, limit: u64, at: u64) -> Observation {
    let level = Level { path: "/kubepods/podu".into(), role: LevelRole::Pod, reading: bytes(limit) };
    let wanted = Wanted::Memory(Bound::At(4096));
    Observation::Evidence(Box::new(Evidence {
        requester,
        at: KernelTime(at),
        cgroup: POD,
        inner: None,
        resource: Resource::Memory,
        desired: vec![DesiredLimit { source: Source::Runtime, at: KernelTime(at), wanted }],
        may_be_less: false,
        unobserved: Vec::new(),
        levels: vec![level],
        own: 0,
        usage: None,
        deadline: None,
        page: 4096,
        kubernetes: None,
    }))
}

fn oom_kill(at: u64) -> Observation {
    let process = ProcKey { pid: 9, start: KernelTime(1) };
    let victim = TaskInfo { key: process, ppid: 1, mnt_ns: None, parent_mnt_ns: None, comm: "hog".into() };
    let kill = OomKill {
        victim,
        choice: None,
        scope: Some(OomScope::Limit(POD)),
        usage: None,
        trigger: Caller::default(),
    };
    // In a container below.
    let (at, cgroup) = (KernelTime(at), CgroupId(8));
    Observation::Kernel(KernelEvent { at, cgroup, fact: Fact::OomKill(Box::new(kill)) })
}

fn verdicts(fixture: &mut Fixture, verdicts: &mut VerdictTracker, observation: &Observation) -> Vec<Verdict> {
    fixture.output.events.clear();
    match observation {
        Observation::Evidence(evidence) => {
            verdicts.judge(evidence, &fixture.limits, &fixture.index, &mut fixture.output);
        }
        other => verdicts.observe(other, &fixture.index),
    }
    fixture
        .output
        .events
        .drain(..)
        .map(|event| match event.kind {
            Kind::Verdict(judged) => judged.judgement.verdict,
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn a_verdict_is_reported_when_it_is_another() {
    let mut fixture = Fixture::new();
    let mut all = VerdictTracker::default();
    let mut verdict_of = |fixture: &mut Fixture, limit| verdicts(fixture, &mut all, &evidence(limit, 1_000));
    assert_eq!(verdict_of(&mut fixture, 4096), [Verdict::InForce]);
    assert_eq!(verdict_of(&mut fixture, 4096), []);
    fixture.write(LimitFile::MemoryMax, "max");
    let reverted = verdict_of(&mut fixture, 8192);
    assert!(
        matches!(&reverted[..], [Verdict::Reverted { writer: Some(writer) }] if &*writer.comm == "runc"),
        "{reverted:?}"
    );
    assert_eq!(verdict_of(&mut fixture, 8192), []);
    assert_eq!(verdict_of(&mut fixture, 4096), [Verdict::InForce]);
}

#[test]
fn a_weight_that_another_file_has_changed_is_reverted_by_its_writer() {
    let weighs = |weight| {
        let Observation::Evidence(mut evidence) = evidence(0, 1_000) else { unreachable!() };
        evidence.resource = Resource::CpuWeight;
        evidence.desired[0].wanted = Wanted::Shares(1024);
        evidence.levels[0].reading = Reading::Is(Value::Number(weight));
        Observation::Evidence(evidence)
    };
    for file in Resource::CpuWeight.other_writers() {
        let mut fixture = Fixture::new();
        let mut all = VerdictTracker::default();
        assert_eq!(verdicts(&mut fixture, &mut all, &weighs(39)), [Verdict::InForce]);
        fixture.write(*file, "1");
        let reverted = verdicts(&mut fixture, &mut all, &weighs(0));
        assert!(
            matches!(&reverted[..], [Verdict::Reverted { writer: Some(writer) }] if &*writer.comm == "runc"),
            "{file:?}: {reverted:?}"
        );
        assert_eq!(Resource::changed_by(*file), Some(Resource::CpuWeight), "it is judged anew at once");
    }
}

#[test]
fn a_file_that_no_level_has_is_no_news_of_a_container() {
    let mut fixture = Fixture::new();
    let mut all = VerdictTracker::default();
    let Observation::Evidence(mut evidence) = evidence(4096, 1_000) else { unreachable!() };
    evidence.levels[0].reading = Reading::Absent;
    assert_eq!(verdicts(&mut fixture, &mut all, &Observation::Evidence(evidence.clone())), []);
    let parent = Level { path: "/kubepods".into(), role: LevelRole::Kubepods, reading: bytes(8192) };
    evidence.levels.push(parent);
    let reported = verdicts(&mut fixture, &mut all, &Observation::Evidence(evidence));
    assert!(matches!(&reported[..], [Verdict::Unknown { .. }]), "not enabled for this one: {reported:?}");
}

#[test]
fn what_a_client_found_in_force_is_remembered_and_not_reported() {
    let mut fixture = Fixture::new();
    let mut all = VerdictTracker::default();
    let mut verdict_of =
        |requester, limit| verdicts(&mut fixture, &mut all, &evidence_for(requester, limit, 1_000));
    assert_eq!(verdict_of(Requester::Client, 4096), []);
    assert_eq!(verdict_of(Requester::Client, 8192), []);
    assert_eq!(verdict_of(Requester::Node, 8192), [Verdict::Reverted { writer: None }]);
}

#[test]
fn the_last_verdicts_are_the_nodes_own_on_what_exists() {
    let mut fixture = Fixture::new();
    let mut all = VerdictTracker::default();
    verdicts(&mut fixture, &mut all, &evidence_for(Requester::Client, 8192, 1_000));
    assert_eq!(all.last(&fixture.index), [], "a client's own word is none");
    for (limit, verdict) in [(8192, Verdict::Diverged), (4096, Verdict::InForce)] {
        assert_eq!(verdicts(&mut fixture, &mut all, &evidence(limit, 1_000)), std::slice::from_ref(&verdict));
        let last = all.last(&fixture.index);
        assert_eq!(last.iter().map(|last| &last.verdict).collect::<Vec<_>>(), [&verdict]);
        assert_eq!(last[0].resource, Resource::Memory);
    }
    let gone = fixture.index.0.get_mut(&POD).expect("it is there");
    gone.exists = false;
    assert_eq!(all.last(&fixture.index), [], "its verdicts went with it");
}

#[test]
fn nothing_is_kept_of_a_cgroup_whose_end_was_not_seen() {
    let empty = Scan::empty(ScanReason::Repair, KernelTime(1_100));
    let scan = Observation::Scan(Scan { ended: KernelTime(1_200), ..empty });
    let mut fixture = Fixture::new();
    let mut all = VerdictTracker::default();
    assert_eq!(verdicts(&mut fixture, &mut all, &evidence(4096, 1_000)), [Verdict::InForce]);
    let place = fixture.index.0.remove(&POD).expect("it was there");
    assert_eq!(verdicts(&mut fixture, &mut all, &scan), []);
    assert_eq!(verdicts(&mut fixture, &mut all, &evidence(8192, 1_300)), [], "it is unknown");
    fixture.index.0.insert(POD, place);
    // Not a reversal: that it was in force before is forgotten.
    assert_eq!(verdicts(&mut fixture, &mut all, &evidence(8192, 1_400)), [Verdict::Diverged]);
}

#[test]
fn a_kill_counts_while_the_limit_is_written_and_shortly_after() {
    const SECOND: u64 = 1_000_000_000;
    let mut fixture = Fixture::new();
    let mut all = VerdictTracker::default();
    // Before the write began: another limit's doing.
    verdicts(&mut fixture, &mut all, &oom_kill(1));
    fixture.now = 100;
    fixture.phase(LimitFile::MemoryMax, Some("4096"), WritePhase::Began, 100);
    verdicts(&mut fixture, &mut all, &oom_kill(105));
    let returned = Some(KernelTime(200));
    let phase = WritePhase::Returned { result: WriteResult::Accepted, at: returned };
    fixture.phase(LimitFile::MemoryMax, Some("4096"), phase, 100);
    verdicts(&mut fixture, &mut all, &oom_kill(200 + SECOND));
    verdicts(&mut fixture, &mut all, &oom_kill(201 + SECOND));
    let sent = verdicts(&mut fixture, &mut all, &evidence(4096, 300));
    assert_eq!(sent, [Verdict::Killed { kills: 2 }]);
    // Nothing is remembered of a cgroup that is gone.
    let gone = Observation::Kernel(KernelEvent { at: KernelTime(400), cgroup: POD, fact: Fact::Release });
    verdicts(&mut fixture, &mut all, &gone);
    assert_eq!(verdicts(&mut fixture, &mut all, &evidence(4096, 500)), [Verdict::InForce]);
}

#[test]
fn a_kill_by_the_limit_of_the_group_that_the_runtime_made_is_the_containers() {
    let mut fixture = Fixture::new();
    let mut all = VerdictTracker::default();
    let scope = CgroupId(77);
    let of_scope = CgroupInfo { exists: true, ..fixture.index.info(POD).unwrap() };
    fixture.index.0.insert(scope, of_scope);
    fixture.write(LimitFile::MemoryMax, "4096");
    let Observation::Evidence(mut evidence) = evidence(4096, 30) else { unreachable!() };
    let Observation::Kernel(mut killed) = oom_kill(fixture.now + 1) else { unreachable!() };
    let Fact::OomKill(kill) = &mut killed.fact else { unreachable!() };
    kill.scope = Some(OomScope::Limit(scope));
    verdicts(&mut fixture, &mut all, &Observation::Kernel(killed));
    assert_eq!(
        verdicts(&mut fixture, &mut all, &Observation::Evidence(evidence.clone())),
        [Verdict::InForce]
    );
    evidence.inner = Some(scope);
    let sent = verdicts(&mut fixture, &mut all, &Observation::Evidence(evidence));
    assert_eq!(sent, [Verdict::Killed { kills: 1 }]);
}

#[test]
fn a_kill_long_after_a_write_was_given_up_has_other_causes() {
    const SECOND: u64 = 1_000_000_000;
    let mut fixture = Fixture::new();
    let mut all = VerdictTracker::default();
    fixture.phase(LimitFile::MemoryMax, Some("4096"), WritePhase::Began, 15);
    verdicts(&mut fixture, &mut all, &oom_kill(30 * SECOND));
    tick(&mut fixture, LimitTracker::RETURNS_WITHIN);
    let later = fixture.now + 2 * SECOND;
    verdicts(&mut fixture, &mut all, &oom_kill(later));
    assert_eq!(
        verdicts(&mut fixture, &mut all, &evidence(4096, later + 1)),
        [Verdict::Killed { kills: 1 }],
        "while it ran, and not since"
    );
}

#[test]
fn what_the_api_says_is_shown_and_changes_no_verdict() {
    use kwitness_core::model::{ApiComparison, ApiMissing, ApiView, NotCompared};

    let mut fixture = Fixture::new();
    let mut all = VerdictTracker::default();
    let Observation::Evidence(mut evidence) = evidence(4096, 1_000) else { unreachable!("it is evidence") };
    let mut judge = |fixture: &mut Fixture, evidence: &Evidence| {
        all.judge(evidence, &fixture.limits, &fixture.index, &mut fixture.output)
    };
    let without = judge(&mut fixture, &evidence);
    assert_eq!(without.kubernetes, None, "the API is no source");
    let said = Err(ApiMissing::Pod);
    evidence.kubernetes = Some(ApiView { observed_from: KernelTime(1), outage: None, said });
    let with = judge(&mut fixture, &evidence);
    assert_eq!(with.judgement, without.judgement);
    let comparison = with.kubernetes.map(|found| found.comparison);
    assert_eq!(comparison, Some(ApiComparison::NotCompared(NotCompared::Missing(ApiMissing::Pod))));
}
