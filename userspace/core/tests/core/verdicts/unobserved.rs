//! Limits that a request may have set which was not observed, because no daemon ran or the CRI proxy missed it.

use super::*;

/// The kubelet has admitted 64 MiB at 5, and the file says 96 MiB, as the runtime does; no daemon ran until 10.
fn raised() -> Fixture {
    let mut fixture = Fixture::new(Resource::Memory, memory(96 * MIB), bytes(96 * MIB), bytes(128 * MIB));
    let at = KernelTime(5);
    let allocated = DesiredLimit { source: Source::KubeletAllocated, at, wanted: memory(64 * MIB) };
    fixture.desired.push(allocated);
    fixture.unobserved = vec![Unobserved { from: KernelTime(0), to: KernelTime(10) }];
    fixture
}

fn written(at: u64) -> Vec<Attempt> {
    vec![Attempt { began: Some(KernelTime(at)), ..attempt("100663296", None, "runc") }]
}

fn is_unknown(fixture: &Fixture) -> bool {
    match fixture.judge().verdict {
        Verdict::Unknown { missing } => {
            assert!(missing.contains("a request that was not observed"), "{missing}");
            true
        }
        Verdict::Diverged | Verdict::Reverted { .. } => false,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_limit_that_the_runtime_was_sent_before_the_daemon_came_is_no_divergence() {
    assert!(is_unknown(&raised()));
    let observed = Fixture { unobserved: Vec::new(), ..raised() };
    assert_eq!(observed.judge().verdict, Verdict::Diverged);
    assert!(is_unknown(&Fixture { attempts: written(9), ..raised() }));
    assert!(!is_unknown(&Fixture { attempts: written(11), ..raised() }), "its request would be known");
}

#[test]
fn what_the_runtime_or_the_kubelet_contradicts_was_requested_by_none() {
    let mut sabotaged = raised();
    sabotaged.desired[0].wanted = memory(64 * MIB);
    assert!(!is_unknown(&sabotaged), "the runtime was sent something else");
    let mut not_actuated = raised();
    not_actuated.desired.push(desired(Source::KubeletActuated, memory(96 * MIB)));
    assert!(!is_unknown(&not_actuated), "the kubelet had it set");
    let mut admitted_later = raised();
    admitted_later.desired[1].at = KernelTime(11);
    assert!(!is_unknown(&admitted_later), "whatever was requested is older than the kubelet's word");
    let mut silent = raised();
    silent.desired.remove(0);
    assert!(is_unknown(&silent), "the runtime does not answer, and no write was seen");
    assert!(!is_unknown(&Fixture { attempts: written(9), ..silent }));
}

#[test]
fn what_was_written_while_no_daemon_ran_is_not_reverted_by_a_request() {
    let mut fixture = raised();
    fixture.levels[0].reading = bytes(64 * MIB);
    let judgement = fixture.judge();
    assert_eq!(judgement.verdict, Verdict::InForce);
    let mut history = VerdictHistory::default();
    history.note(&judgement);
    let outage = Unobserved { from: KernelTime(20), to: KernelTime(30) };
    let unobserved = vec![fixture.unobserved[0], outage];
    let of = |at| Fixture {
        attempts: written(at),
        history: history.clone(),
        unobserved: unobserved.clone(),
        ..raised()
    };
    assert!(is_unknown(&of(25)));
    for at in [15, 31] {
        assert!(matches!(of(at).judge().verdict, Verdict::Reverted { .. }), "{at}: a daemon ran");
    }
}

/// As with fanotify.
#[test]
fn a_write_of_which_only_the_end_was_seen_may_be_of_a_missed_request() {
    let of = |from, to, ended| {
        let ended = Some(Ended::Returned(KernelTime(ended)));
        Fixture {
            attempts: vec![Attempt { began: None, ended, ..attempt("100663296", None, "runc") }],
            unobserved: vec![Unobserved { from: KernelTime(from), to: KernelTime(to) }],
            ..raised()
        }
    };
    assert!(is_unknown(&of(20, 30, 25)));
    assert!(!is_unknown(&of(20, 30, 31)));
    assert!(is_unknown(&of(0, 10, 25)), "it may be older than the daemon");
}

#[test]
fn a_request_that_is_reported_late_counts_by_its_own_time() {
    let with_request = |at, bytes| {
        let mut fixture = raised();
        let (source, at) = (Source::CriRequest, KernelTime(at));
        fixture.desired.push(DesiredLimit { source, at, wanted: memory(bytes) });
        fixture
    };
    assert_eq!(with_request(7, 96 * MIB).judge().verdict, Verdict::InForce);
    assert!(is_unknown(&with_request(3, 96 * MIB)), "the kubelet's word is younger");
    let mut both = with_request(7, 96 * MIB);
    both.desired.extend(with_request(6, 80 * MIB).desired.pop());
    assert_eq!(both.judge().verdict, Verdict::InForce, "the last request counts");
}
