//! Whether a desired limit is in force: each verdict, and what holds of all of them.

mod kubernetes;
mod properties;
mod unobserved;

use std::sync::Arc;

use kwitness_core::model::{
    Attempt, Bound, CpuMax, DesiredLimit, Ended, Judgement, KernelTime, Level, LevelRole, Reading, Resource,
    Source, Tolerance, Unobserved, Value, Verdict, Wanted, WriteResult, Writer,
};
use kwitness_core::verdicts::{Case, VerdictHistory, judge};

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const EINVAL: i32 = 22;

/// What an error is called here.
fn number(errno: i32) -> String {
    errno.to_string()
}

/// A container's memory limit, in force at once at all levels, unless a test says otherwise.
struct Fixture {
    resource: Resource,
    desired: Vec<DesiredLimit>,
    may_be_less: bool,
    unobserved: Vec<Unobserved>,
    levels: Vec<Level>,
    attempts: Vec<Attempt>,
    usage: Option<u64>,
    kills: Option<u64>,
    deadline: Option<KernelTime>,
    now: KernelTime,
    history: VerdictHistory,
}

fn bytes(bytes: u64) -> Reading {
    Reading::Is(Value::Bound(Bound::At(bytes)))
}

fn cpu(quota: u64) -> Reading {
    Reading::Is(Value::Cpu(CpuMax { quota: Bound::At(quota), period: 100_000 }))
}

fn desired(source: Source, wanted: Wanted) -> DesiredLimit {
    DesiredLimit { source, at: KernelTime(1), wanted }
}

fn memory(bytes: u64) -> Wanted {
    Wanted::Memory(Bound::At(bytes))
}

fn writer(comm: &str) -> Option<Writer> {
    Some(Writer { pid: 7, comm: comm.into(), cgroup: None })
}

fn attempt(value: &str, errno: Option<i32>, by: &str) -> Attempt {
    Attempt {
        value: Some(value.into()),
        result: errno.map_or(WriteResult::Accepted, |errno| WriteResult::Refused { errno }),
        writer: writer(by),
        began: Some(KernelTime(1)),
        ended: Some(Ended::Returned(KernelTime(2))),
    }
}

impl Fixture {
    fn new(resource: Resource, wanted: Wanted, own: Reading, pod: Reading) -> Self {
        let unlimited = match resource {
            Resource::Cpu => Value::Cpu(CpuMax { quota: Bound::Unlimited, period: 100_000 }),
            _ => Value::Bound(Bound::Unlimited),
        };
        let level = |path: &str, role, reading| Level { path: path.into(), role, reading };
        let levels = vec![
            level("/kubepods/podu/c", LevelRole::Container, own),
            level("/kubepods/podu", LevelRole::Pod, pod),
            level("/kubepods", LevelRole::Kubepods, Reading::Is(unlimited)),
            level("/", LevelRole::Other, Reading::Absent),
        ];
        Self {
            resource,
            desired: vec![desired(Source::Runtime, wanted)],
            may_be_less: false,
            unobserved: Vec::new(),
            levels,
            attempts: Vec::new(),
            usage: None,
            kills: None,
            deadline: None,
            now: KernelTime(100),
            history: VerdictHistory::default(),
        }
    }

    fn judge(&self) -> Judgement {
        let case = Case {
            resource: self.resource,
            desired: &self.desired,
            may_be_less: self.may_be_less,
            unobserved: &self.unobserved,
            levels: &self.levels,
            own: 0,
            attempts: &self.attempts,
            other_writes: &[],
            usage: self.usage,
            kills: self.kills,
            deadline: self.deadline,
            now: self.now,
            page: PAGE,
        };
        judge(&case, &self.history)
    }

    fn note(&mut self) -> (Judgement, bool) {
        let judgement = self.judge();
        let changed = self.history.note(&judgement);
        (judgement, changed)
    }
}

fn memory_fixture() -> Fixture {
    Fixture::new(Resource::Memory, memory(64 * MIB), bytes(64 * MIB), bytes(128 * MIB))
}

#[test]
fn in_force_names_the_tolerance_and_the_effective_limit() {
    let judgement = memory_fixture().judge();
    assert_eq!((judgement.verdict, judgement.tolerance), (Verdict::InForce, Some(Tolerance::Exact)));
    assert_eq!(judgement.effective, Some((Value::Bound(Bound::At(64 * MIB)), "/kubepods/podu/c".into())));

    let rounded = Fixture::new(Resource::Cpu, Wanted::MilliCpu(417), cpu(42_000), cpu(42_000)).judge();
    assert_eq!(
        (&rounded.verdict, rounded.tolerance),
        (&Verdict::InForce, Some(Tolerance::RoundedToTenMilliseconds))
    );
    assert!(rounded.reason(number).contains("rounded up by systemd"), "{}", rounded.reason(number));
}

#[test]
fn a_container_that_was_updated_and_a_pod_that_was_not() {
    let mut fixture = memory_fixture();
    fixture.levels[1].reading = bytes(32 * MIB);
    let judgement = fixture.judge();
    assert_eq!(
        judgement.verdict,
        Verdict::Shadowed {
            role: LevelRole::Pod,
            path: "/kubepods/podu".into(),
            limit: Value::Bound(Bound::At(32 * MIB))
        }
    );
    assert_eq!(judgement.effective, Some((Value::Bound(Bound::At(32 * MIB)), "/kubepods/podu".into())));
    assert!(judgement.reason(number).contains("the pod's cgroup /kubepods/podu allows only 32Mi"));
}

#[test]
fn the_tightest_of_several_ancestors_is_named() {
    let mut fixture = memory_fixture();
    fixture.levels[1].reading = bytes(32 * MIB);
    fixture.levels[2].reading = bytes(16 * MIB);
    assert!(matches!(fixture.judge().verdict, Verdict::Shadowed { role: LevelRole::Kubepods, .. }));
}

#[test]
fn cruns_inner_cgroup_counts() {
    let mut fixture = memory_fixture();
    fixture.levels.insert(
        0,
        Level { path: "/kubepods/podu/c/container".into(), role: LevelRole::Inner, reading: bytes(MIB) },
    );
    let case = Case {
        resource: Resource::Memory,
        desired: &fixture.desired,
        may_be_less: false,
        unobserved: &[],
        levels: &fixture.levels,
        own: 1,
        attempts: &[],
        other_writes: &[],
        usage: None,
        kills: None,
        deadline: None,
        now: fixture.now,
        page: PAGE,
    };
    assert!(matches!(
        judge(&case, &VerdictHistory::default()).verdict,
        Verdict::Shadowed { role: LevelRole::Inner, .. }
    ));
}

#[test]
fn a_level_that_keeps_what_another_rounds_up_does_not_shadow() {
    // crun: systemd rounds the scope's quota, the inner cgroup has the exact one.
    let rounded = Fixture::new(Resource::Cpu, Wanted::MilliCpu(417), cpu(42_000), cpu(41_700)).judge();
    assert_eq!(rounded.verdict, Verdict::InForce);
    assert_eq!(rounded.effective.map(|(value, _)| Reading::Is(value)), Some(cpu(41_700)));
    let less = Fixture::new(Resource::Cpu, Wanted::MilliCpu(417), cpu(42_000), cpu(41_600)).judge();
    assert!(matches!(less.verdict, Verdict::Shadowed { .. }), "{:?}", less.verdict);
}

#[test]
fn a_weight_is_no_matter_of_ancestors() {
    let mut fixture = memory_fixture();
    fixture.resource = Resource::CpuWeight;
    fixture.desired = vec![desired(Source::Runtime, Wanted::Shares(512))];
    for (own, tolerance) in [(20, Tolerance::OldWeightFormula), (59, Tolerance::NewWeightFormula)] {
        fixture.levels[0].reading = Reading::Is(Value::Number(own));
        fixture.levels[1].reading = Reading::Is(Value::Number(1));
        let judgement = fixture.judge();
        assert_eq!((judgement.verdict, judgement.tolerance), (Verdict::InForce, Some(tolerance)));
    }
}

#[test]
fn not_yet_until_the_deadline_then_diverged() {
    let mut fixture = memory_fixture();
    fixture.levels[0].reading = bytes(32 * MIB);
    fixture.deadline = Some(KernelTime(200));
    assert_eq!(fixture.judge().verdict, Verdict::Pending { until: KernelTime(200) });
    fixture.now = KernelTime(200);
    assert_eq!(fixture.judge().verdict, Verdict::Diverged);
    fixture.deadline = None;
    assert_eq!(fixture.judge().verdict, Verdict::Diverged);
}

#[test]
fn a_refused_write_is_reported_at_once_with_errno_and_writer() {
    // Of a child that wants 4096m where systemd rounded its parent: 410000 would not fit.
    let mut fixture = Fixture::new(Resource::Cpu, Wanted::MilliCpu(4096), cpu(100_000), cpu(409_600));
    fixture.deadline = Some(KernelTime(200));
    fixture.attempts = vec![
        attempt("100000 100000", None, "runc"),
        attempt("410000 100000\n", Some(EINVAL), "runc"),
        attempt("nonsense", Some(EINVAL), "sh"),
    ];
    let verdict = fixture.judge().verdict;
    let value = "410000 100000".into();
    assert_eq!(verdict, Verdict::Rejected { value, errno: EINVAL, writer: writer("runc") });
    // An invalid write by another process is no attempt at what is wanted.
    fixture.attempts.remove(1);
    assert!(matches!(fixture.judge().verdict, Verdict::Pending { .. }));
    // A burst forbids to lower the quota below it.
    let mut burst = Fixture::new(Resource::Cpu, Wanted::MilliCpu(500), cpu(100_000), cpu(409_600));
    burst.attempts = vec![attempt("50000 100000", Some(EINVAL), "koordlet")];
    assert!(matches!(burst.judge().verdict, Verdict::Rejected { errno: EINVAL, .. }));
    // A later attempt that succeeds is what counts.
    fixture.attempts.push(attempt("409600 100000", Some(EINVAL), "runc"));
    fixture.attempts.push(attempt("409600 100000", None, "runc"));
    assert!(matches!(fixture.judge().verdict, Verdict::Pending { .. }));
}

#[test]
fn what_was_in_force_and_is_undone_is_reverted_by_its_writer() {
    let mut fixture = memory_fixture();
    assert_eq!(fixture.note().0.verdict, Verdict::InForce);
    fixture.levels[0].reading = Reading::Is(Value::Bound(Bound::Unlimited));
    fixture.attempts = vec![attempt("67108864", None, "runc"), attempt("max", None, "systemd")];
    let (judgement, changed) = fixture.note();
    assert_eq!(judgement.verdict, Verdict::Reverted { writer: writer("systemd") });
    assert!(changed && judgement.reason(number).contains("systemd (7)"), "{}", judgement.reason(number));
    assert!(!fixture.note().1, "once");
    // It is put right, and undone by an unseen write.
    fixture.levels[0].reading = bytes(64 * MIB);
    assert_eq!(fixture.note().0.verdict, Verdict::InForce);
    fixture.levels[0].reading = bytes(MIB);
    fixture.attempts.clear();
    assert_eq!(fixture.note().0.verdict, Verdict::Reverted { writer: None });
}

#[test]
fn another_wish_is_no_reversal() {
    let mut fixture = memory_fixture();
    fixture.note();
    fixture.desired = vec![desired(Source::Runtime, memory(96 * MIB))];
    assert_eq!(fixture.note().0.verdict, Verdict::Diverged);
    fixture.desired = vec![desired(Source::Runtime, memory(64 * MIB))];
    fixture.levels[0].reading = bytes(96 * MIB);
    assert_eq!(fixture.note().0.verdict, Verdict::Diverged, "the first wish is long forgotten");
}

#[test]
fn memory_below_usage_is_over_limit_or_kills() {
    let mut fixture = memory_fixture();
    fixture.usage = Some(70 * MIB);
    assert_eq!(fixture.judge().verdict, Verdict::OverLimit { usage: 70 * MIB });
    fixture.kills = Some(1);
    assert_eq!(fixture.judge().verdict, Verdict::Killed { kills: 1 });
    fixture.kills = Some(0);
    fixture.usage = Some(64 * MIB);
    assert_eq!(fixture.judge().verdict, Verdict::InForce);
}

#[test]
fn what_is_missing_is_said() {
    let missing = |fixture: &Fixture| match fixture.judge().verdict {
        Verdict::Unknown { missing } => missing.to_string(),
        other => panic!("{other:?}"),
    };
    let mut fixture = memory_fixture();
    fixture.desired.clear();
    assert_eq!(missing(&fixture), "no source says what is wanted");
    let mut fixture = memory_fixture();
    fixture.levels[0].reading = Reading::Absent;
    assert!(missing(&fixture).contains("cgroup v1 and hybrid"), "{}", missing(&fixture));
    fixture.levels[0].reading = Reading::Gone;
    assert_eq!(missing(&fixture), "the cgroup /kubepods/podu/c is gone");
    let mut fixture = memory_fixture();
    fixture.levels[2].reading = Reading::Unknown("Permission denied".into());
    assert_eq!(missing(&fixture), "/kubepods/memory.max: Permission denied");
    assert_eq!(fixture.judge().effective, None);
}

#[test]
fn the_nearest_source_is_compared_with_and_others_are_shown_to_disagree() {
    let mut fixture = memory_fixture();
    fixture.desired.push(desired(Source::KubeletAllocated, memory(96 * MIB)));
    fixture.desired.push(desired(Source::KubeletActuated, memory(96 * MIB)));
    let judgement = fixture.judge();
    assert_eq!(judgement.desired.map(|desired| desired.source), Some(Source::KubeletAllocated));
    assert_eq!(judgement.verdict, Verdict::Diverged);
    assert_eq!(judgement.disagreeing, [Source::Runtime]);
    assert!(
        judgement.reason(number).ends_with("the sources disagree: runtime has another limit"),
        "{}",
        judgement.reason(number)
    );

    let mut fixture = Fixture::new(Resource::Cpu, Wanted::MilliCpu(417), cpu(42_000), cpu(42_000));
    let quota = CpuMax { quota: Bound::At(41_700), period: 100_000 };
    fixture.desired.push(desired(Source::Client, Wanted::Quota(quota)));
    assert_eq!(fixture.judge().disagreeing, [], "the same, said in other terms");
}

fn unlimited_cpu() -> Reading {
    Reading::Is(Value::Cpu(CpuMax { quota: Bound::Unlimited, period: 100_000 }))
}

/// Of a kubelet with `cpuCFSQuota: false`, and of a container with exclusive CPUs.
#[test]
fn a_cpu_limit_that_the_node_does_not_enforce_is_not_diverged() {
    let quota = CpuMax { quota: Bound::Unlimited, period: 100_000 };
    for sent in [Wanted::NoQuotaSent, Wanted::Quota(quota)] {
        let mut fixture = Fixture::new(Resource::Cpu, sent, unlimited_cpu(), unlimited_cpu());
        fixture.desired.push(desired(Source::KubeletAllocated, Wanted::MilliCpu(500)));
        fixture.desired.push(desired(Source::KubeletActuated, Wanted::MilliCpu(500)));
        let judgement = fixture.judge();
        assert!(
            matches!(&judgement.verdict, Verdict::Unknown { missing } if missing.contains("not enforced")),
            "{judgement:?}"
        );
        assert_eq!(judgement.disagreeing, [Source::Runtime]);
        // It was in force: then the node does enforce it.
        fixture.history = VerdictHistory::default();
        fixture.levels[0].reading = cpu(50_000);
        assert_eq!(fixture.note().0.verdict, Verdict::InForce);
        fixture.levels[0].reading = unlimited_cpu();
        assert!(matches!(fixture.judge().verdict, Verdict::Reverted { .. }));
        // Admitted, and not yet sent.
        fixture.history = VerdictHistory::default();
        fixture.desired[2].wanted = Wanted::MilliCpu(0);
        assert_eq!(fixture.judge().verdict, Verdict::Diverged);
        // The client's word is its own.
        fixture.desired =
            vec![desired(Source::Client, Wanted::MilliCpu(500)), desired(Source::Runtime, sent)];
        assert_eq!(fixture.judge().verdict, Verdict::Diverged);
    }
}

#[test]
fn that_no_quota_was_sent_is_no_wish() {
    let fixture = Fixture::new(Resource::Cpu, Wanted::NoQuotaSent, unlimited_cpu(), unlimited_cpu());
    assert!(matches!(fixture.judge().verdict, Verdict::Unknown { .. }));
    assert_eq!(fixture.judge().desired, None);
}

/// By a request past the kubelet, or by a rule of a kubelet of tomorrow.
#[test]
fn a_limit_that_only_the_runtime_was_sent_is_not_diverged() {
    let mut fixture = Fixture::new(Resource::Memory, memory(200 * MIB), bytes(200 * MIB), bytes(200 * MIB));
    fixture.desired.push(desired(Source::KubeletAllocated, Wanted::Memory(Bound::Unlimited)));
    let verdict = fixture.judge().verdict;
    assert!(
        matches!(&verdict, Verdict::Unknown { missing } if missing.contains("was sent this one")),
        "{verdict:?}"
    );
    // This one was not requested.
    fixture.levels[0].reading = bytes(100 * MIB);
    assert_eq!(fixture.judge().verdict, Verdict::Diverged);
    fixture.desired[0].wanted = Wanted::Memory(Bound::Unlimited);
    assert_eq!(fixture.judge().verdict, Verdict::Diverged);
}

/// Without the runtime's word, nothing says whether the kubelet enforces CPU limits at all.
#[test]
fn no_quota_without_the_runtimes_word_is_not_diverged() {
    let mut fixture = Fixture::new(Resource::Cpu, Wanted::MilliCpu(500), unlimited_cpu(), unlimited_cpu());
    fixture.desired[0].source = Source::KubeletAllocated;
    let verdict = fixture.judge().verdict;
    assert!(matches!(&verdict, Verdict::Unknown { missing } if missing.contains("no source")), "{verdict:?}");
    fixture.levels[0].reading = cpu(5_000);
    assert_eq!(fixture.judge().verdict, Verdict::Diverged, "a quota, but another one");
}

/// The limits of a pod's containers may be more together than the pod's own: the API server checks each by itself
/// (`validatePodResourceConsistency`).
#[test]
fn a_pod_may_have_less_than_the_sum_of_its_containers() {
    let mut fixture = Fixture::new(Resource::Cpu, Wanted::MilliCpuAtLeast(1600), cpu(100_000), cpu(100_000));
    assert_eq!(fixture.judge().verdict, Verdict::Diverged, "it has no limit of its own");
    fixture.may_be_less = true;
    let verdict = fixture.judge().verdict;
    assert!(matches!(&verdict, Verdict::Unknown { missing } if missing.contains("pod-level")), "{verdict:?}");
    fixture.levels[0].reading = cpu(160_000);
    fixture.levels[1].reading = cpu(160_000);
    assert_eq!(fixture.note().0.verdict, Verdict::InForce);
    fixture.levels[0].reading = cpu(100_000);
    assert!(matches!(fixture.judge().verdict, Verdict::Reverted { .. }), "it had as much");
}

/// What all pods may have together limits every pod, and is no limit of this one's; a pod's own is.
#[test]
fn where_no_limit_is_desired_the_nodes_takes_nothing_away() {
    let none = || Reading::Is(Value::Bound(Bound::Unlimited));
    for wanted in [Wanted::Memory(Bound::Unlimited), memory(i64::MAX.unsigned_abs())] {
        let mut fixture = Fixture::new(Resource::Memory, wanted, none(), none());
        fixture.levels[2].reading = bytes(4096 * MIB);
        assert_eq!(fixture.judge().verdict, Verdict::InForce);
        assert_eq!(
            fixture.judge().effective,
            Some((Value::Bound(Bound::At(4096 * MIB)), "/kubepods".into()))
        );
        fixture.levels[1].reading = bytes(64 * MIB);
        assert!(matches!(fixture.judge().verdict, Verdict::Shadowed { role: LevelRole::Pod, .. }));
    }
    // More than the node has.
    let mut fixture = Fixture::new(Resource::Memory, memory(8192 * MIB), bytes(8192 * MIB), none());
    fixture.levels[2].reading = bytes(4096 * MIB);
    assert!(matches!(fixture.judge().verdict, Verdict::Shadowed { role: LevelRole::Kubepods, .. }));
}

/// A kubelet whose disk is full goes on by its memory.
#[test]
fn a_stale_checkpoint_does_not_outvote_a_younger_request() {
    let at = |source, at, mebibytes| DesiredLimit {
        at: KernelTime(at),
        ..desired(source, memory(mebibytes * MIB))
    };
    let mut fixture = Fixture::new(Resource::Memory, memory(96 * MIB), bytes(96 * MIB), bytes(96 * MIB));
    fixture.desired.push(at(Source::KubeletAllocated, 10, 64));
    fixture.desired.push(at(Source::CriRequest, 20, 96));
    let judgement = fixture.judge();
    assert_eq!(
        (&judgement.verdict, &judgement.disagreeing[..]),
        (&Verdict::InForce, &[Source::KubeletAllocated][..])
    );
    assert_eq!(judgement.desired.map(|desired| desired.source), Some(Source::CriRequest));
    // Written since: the request was not the kubelet's last word.
    fixture.desired[1].at = KernelTime(30);
    assert_eq!(fixture.judge().verdict, Verdict::Diverged);
    // The same, said in other terms, is compared with in the checkpoint's.
    fixture.desired[1] = at(Source::KubeletAllocated, 10, 96);
    assert_eq!(fixture.judge().desired.map(|desired| desired.source), Some(Source::KubeletAllocated));
}

#[test]
fn the_guards_word_precedes_the_others_until_one_of_them_says_something_else_after_it() {
    let at = |source, at, mebibytes| DesiredLimit {
        at: KernelTime(at),
        ..desired(source, memory(mebibytes * MIB))
    };
    let raised = || bytes(128 * MIB);
    let mut fixture = Fixture::new(Resource::Memory, memory(128 * MIB), raised(), raised());
    fixture.desired = vec![
        at(Source::CriRequest, 10, 64),
        at(Source::KubeletAllocated, 10, 64),
        at(Source::Guard, 20, 128),
        at(Source::Runtime, 30, 128),
    ];
    let compared = |fixture: &Fixture| {
        let judgement = fixture.judge();
        (judgement.verdict, judgement.desired.map(|desired| desired.source))
    };
    assert_eq!(compared(&fixture), (Verdict::InForce, Some(Source::Guard)));
    assert_eq!(fixture.judge().disagreeing, [Source::KubeletAllocated, Source::CriRequest]);
    // Whoever reports a limit as the guard's is not believed against the runtime.
    let confirmed = std::mem::replace(&mut fixture.desired[3], at(Source::Runtime, 30, 64));
    assert_eq!(compared(&fixture), (Verdict::Diverged, Some(Source::KubeletAllocated)));
    fixture.desired[3] = confirmed;
    // Another limit, desired since.
    fixture.desired[1] = at(Source::KubeletAllocated, 25, 96);
    assert_eq!(compared(&fixture), (Verdict::Diverged, Some(Source::KubeletAllocated)));
    fixture.desired[1] = at(Source::KubeletAllocated, 25, 128);
    assert_eq!(compared(&fixture), (Verdict::InForce, Some(Source::Guard)), "the guard's own resize");
    fixture.desired.push(at(Source::Client, 1, 64));
    assert_eq!(compared(&fixture), (Verdict::Diverged, Some(Source::Client)));
}
