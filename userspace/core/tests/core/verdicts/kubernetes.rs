//! What the Kubernetes API says beside what the kernel has: each disagreement, and what is none.

use kwitness_core::model::{
    ApiAmounts, ApiComparison, ApiDisagreementKind, ApiLimit, ApiMissing, ApiOutage, ApiPod, ApiSince,
    ApiView, NotCompared, ResizeCondition, ResizeConditionKind,
};
use kwitness_core::verdicts::kubernetes::{KernelSide, SETTLE, compare};

use super::*;

/// When the file was written, and read.
const WRITTEN: u64 = 100_000_000_000;
const READ: u64 = WRITTEN + 3 * SETTLE;

/// A container whose spec, status and file say 256Mi, unless a test says otherwise.
struct Case {
    resource: Resource,
    role: LevelRole,
    pod: ApiPod,
    spec: ApiAmounts,
    status: ApiAmounts,
    or_earlier: bool,
    outage: Option<ApiOutage>,
    missing: Option<ApiMissing>,
    file: Reading,
    verdict: Verdict,
    attempt: Option<Attempt>,
    read: u64,
}

fn limit(text: &str) -> ApiAmounts {
    ApiAmounts { limit: Some(text.into()), request: None }
}

fn request(text: &str) -> ApiAmounts {
    ApiAmounts { limit: None, request: Some(text.into()) }
}

impl Default for Case {
    fn default() -> Self {
        let ended = Some(Ended::Returned(KernelTime(WRITTEN)));
        Self {
            resource: Resource::Memory,
            role: LevelRole::Container,
            pod: ApiPod {
                resource_version: "7".into(),
                generation: Some(2),
                observed_generation: Some(2),
                received: KernelTime(READ - 2),
                confirmed: Some(KernelTime(READ - 1)),
                conditions: Vec::new(),
                resized: None,
                is_deleting: false,
            },
            spec: limit("256Mi"),
            status: limit("256Mi"),
            or_earlier: false,
            outage: None,
            missing: None,
            file: bytes(256 * MIB),
            verdict: Verdict::InForce,
            attempt: Some(Attempt { ended, ..attempt("268435456", None, "runc") }),
            read: READ,
        }
    }
}

impl Case {
    /// The file has been overwritten.
    fn sabotaged() -> Self {
        Self { file: bytes(128 * MIB), verdict: Verdict::Reverted { writer: None }, ..Self::default() }
    }

    fn compare(self) -> ApiComparison {
        let limit = ApiLimit {
            pod: self.pod.into(),
            spec: self.spec,
            allocated: ApiAmounts::default(),
            status: self.status,
            status_since: ApiSince { at: KernelTime(50), or_earlier: self.or_earlier },
        };
        let view = ApiView {
            observed_from: KernelTime(1),
            outage: self.outage,
            said: self.missing.map_or(Ok(limit.into()), Err),
        };
        let judgement = Judgement {
            resource: self.resource,
            verdict: self.verdict,
            desired: None,
            disagreeing: Vec::new(),
            tolerance: None,
            in_force: self.file,
            effective: None,
        };
        let kernel = KernelSide {
            judgement: &judgement,
            role: self.role,
            attempt: self.attempt.as_ref(),
            read: KernelTime(self.read),
            page: PAGE,
        };
        compare(&view, &kernel)
    }
}

fn kinds(comparison: ApiComparison) -> Vec<ApiDisagreementKind> {
    match comparison {
        ApiComparison::Disagrees(found) => found.into_iter().map(|found| found.kind).collect(),
        other => panic!("{other:?}"),
    }
}

fn condition(kind: ResizeConditionKind) -> ResizeCondition {
    ResizeCondition { kind, reason: None, message: None, since: Some(1), observed_generation: None }
}

#[test]
fn the_same_amount_agrees_whatever_its_spelling_and_rounding() {
    assert_eq!(Case::default().compare(), ApiComparison::Agrees);
    for (resource, role, status, file) in [
        (Resource::Memory, LevelRole::Container, limit("268435457"), bytes(256 * MIB)),
        (Resource::Memory, LevelRole::Container, limit("0"), Reading::Is(Value::Bound(Bound::Unlimited))),
        (Resource::Memory, LevelRole::Pod, limit("256Mi"), bytes(300 * MIB)),
        (Resource::Cpu, LevelRole::Container, limit("417m"), cpu(42_000)),
        (Resource::Cpu, LevelRole::Container, limit("0.2"), cpu(20_000)),
        (Resource::Cpu, LevelRole::Container, limit("4m"), cpu(1_000)),
        (Resource::Cpu, LevelRole::Pod, limit("200m"), cpu(30_000)),
        (Resource::CpuWeight, LevelRole::Container, request("100m"), Reading::Is(Value::Number(17))),
        (Resource::CpuWeight, LevelRole::Pod, request("100m"), Reading::Is(Value::Number(4))),
    ] {
        let case = Case { resource, role, status: status.clone(), file, ..Case::default() };
        assert_eq!(case.compare(), ApiComparison::Agrees, "{status:?}");
    }
    let unread = ApiPod { confirmed: None, ..Case::default().pod };
    assert_eq!(
        Case { pod: unread, ..Case::default() }.compare(),
        ApiComparison::Agrees,
        "no proof is needed"
    );
}

#[test]
fn a_status_that_the_file_does_not_have_disagrees_with_both_times() {
    let ApiComparison::Disagrees(found) = Case::sabotaged().compare() else { panic!("no disagreement") };
    let [found] = &*found else { panic!("{found:?}") };
    assert_eq!((found.kind, &*found.says), (ApiDisagreementKind::Status, "256Mi"));
    assert_eq!(found.since, ApiSince { at: KernelTime(50), or_earlier: false });
    assert_eq!(found.kernel, Value::Bound(Bound::At(128 * MIB)));
    assert_eq!((found.written, found.read), (Some(KernelTime(WRITTEN)), KernelTime(READ)));
    // The kernel may also be ahead of the status.
    let behind = Case { status: limit("128Mi"), ..Case::default() };
    assert_eq!(kinds(behind.compare()), [ApiDisagreementKind::Status]);
    let cpu_limit =
        Case { resource: Resource::Cpu, status: limit("400m"), file: cpu(20_000), ..Case::default() };
    assert_eq!(kinds(cpu_limit.compare()), [ApiDisagreementKind::Status]);
}

#[test]
fn a_write_that_was_not_seen_has_no_time() {
    let refused = attempt("1", Some(EINVAL), "runc");
    let refused = Attempt { ended: Some(Ended::Returned(KernelTime(WRITTEN))), ..refused };
    for attempt in [None, Some(refused)] {
        let ApiComparison::Disagrees(found) = (Case { attempt, ..Case::sabotaged() }).compare() else {
            panic!("no disagreement")
        };
        assert_eq!(found[0].written, None);
    }
}

#[test]
fn a_completed_resize_that_the_kernel_does_not_have_disagrees() {
    let resized = ApiPod { resized: Some(KernelTime(60)), ..Case::default().pod };
    let both = Case { pod: resized.clone(), ..Case::sabotaged() };
    assert_eq!(kinds(both.compare()), [ApiDisagreementKind::Status, ApiDisagreementKind::Resized]);
    // The kubelet said "completed" with the old amounts in its status, and has not called the runtime.
    let early = Case { pod: resized.clone(), status: limit("128Mi"), ..Case::sabotaged() };
    assert_eq!(kinds(early.compare()), [ApiDisagreementKind::Resized]);
    let good = Case { pod: resized.clone(), ..Case::default() };
    assert_eq!(good.compare(), ApiComparison::Agrees);
    // The next resize has been requested: that the last one was completed says nothing of it.
    let next = ApiPod { generation: Some(3), ..resized.clone() };
    let next = Case { pod: next, spec: limit("512Mi"), ..Case::default() };
    assert_eq!(next.compare(), ApiComparison::Agrees);
    let deferred = ApiPod { conditions: vec![condition(ResizeConditionKind::Pending)], ..resized };
    let deferred = Case { pod: deferred, spec: limit("512Mi"), ..Case::default() };
    assert_eq!(deferred.compare(), ApiComparison::Agrees);
}

#[test]
fn a_deferred_resize_excuses_no_wrong_status() {
    let pod = ApiPod { conditions: vec![condition(ResizeConditionKind::Pending)], ..Case::default().pod };
    assert_eq!(kinds(Case { pod, ..Case::sabotaged() }.compare()), [ApiDisagreementKind::Status]);
}

#[test]
fn what_may_be_late_is_no_disagreement() {
    let pod = |change: fn(&mut ApiPod)| {
        let mut case = Case::sabotaged();
        change(&mut case.pod);
        case
    };
    let outage = Some(ApiOutage { since: KernelTime(5), why: "away".into() });
    let running = Attempt { ended: None, ..attempt("1", None, "runc") };
    for (case, why) in [
        (Case { outage, ..Case::sabotaged() }, NotCompared::Unreachable),
        (pod(|pod| pod.generation = Some(3)), NotCompared::GenerationBehind),
        (
            pod(|pod| pod.conditions.push(condition(ResizeConditionKind::InProgress))),
            NotCompared::ResizeInProgress,
        ),
        (Case { attempt: Some(running), ..Case::sabotaged() }, NotCompared::Settling),
        (Case { read: WRITTEN + SETTLE - 1, ..Case::sabotaged() }, NotCompared::Settling),
        (pod(|pod| pod.confirmed = None), NotCompared::Unconfirmed),
        // Before the kubelet had the time to report the write, and too long ago.
        (pod(|pod| pod.confirmed = Some(KernelTime(WRITTEN + SETTLE - 1))), NotCompared::Unconfirmed),
        (pod(|pod| pod.confirmed = Some(KernelTime(READ - SETTLE - 1))), NotCompared::Unconfirmed),
    ] {
        assert_eq!(case.compare(), ApiComparison::NotCompared(why));
    }
    assert_eq!(kinds(pod(|pod| pod.generation = None).compare()), [ApiDisagreementKind::Status]);
}

#[test]
fn what_is_absent_is_absent_and_never_0() {
    let absent = ApiAmounts::default;
    let unknown = Verdict::Unknown { missing: "CPU limits are not enforced here".into() };
    let deleting = ApiPod { is_deleting: true, ..Case::default().pod };
    for (case, why) in [
        (Case { status: absent(), ..Case::sabotaged() }, NotCompared::NoStatus),
        // A request says nothing of a limit.
        (Case { status: request("256Mi"), ..Case::sabotaged() }, NotCompared::NoStatus),
        (Case { status: limit("a lot"), ..Case::sabotaged() }, NotCompared::NotUnderstood),
        (Case { status: limit("-1"), ..Case::sabotaged() }, NotCompared::NotUnderstood),
        (Case { file: Reading::Gone, ..Case::sabotaged() }, NotCompared::KernelUnknown),
        (Case { verdict: unknown, ..Case::sabotaged() }, NotCompared::KernelUnknown),
        (Case { pod: deleting, ..Case::sabotaged() }, NotCompared::Deleting),
        (Case { resource: Resource::Swap, ..Case::sabotaged() }, NotCompared::NoStatus),
    ] {
        assert_eq!(case.compare(), ApiComparison::NotCompared(why));
    }
    for missing in [ApiMissing::Pod, ApiMissing::StoreFull, ApiMissing::Container, ApiMissing::OtherRun] {
        let case = Case { missing: Some(missing), ..Case::sabotaged() };
        assert_eq!(case.compare(), ApiComparison::NotCompared(NotCompared::Missing(missing)));
    }
    let unset_spec = Case { spec: absent(), ..Case::default() };
    assert_eq!(unset_spec.compare(), ApiComparison::Agrees);
}

#[test]
fn what_was_in_the_first_list_may_be_older() {
    let ApiComparison::Disagrees(found) = (Case { or_earlier: true, ..Case::sabotaged() }).compare() else {
        panic!("no disagreement")
    };
    assert!(found[0].since.or_earlier);
}
