use super::*;
use crate::plan::tests::rule;

const MIB: u64 = 1 << 20;
const QUIET: Duration = Duration::from_secs(60);

/// Of a container whose threshold is the policy's.
const SIZES: Sizes = Sizes { limit: None, high: None, processes: 1, threads: 1, cpus: 1, page: 4096 };

fn mib(mib: u64) -> Bytes {
    Bytes(mib * MIB)
}

fn change(from: u64, to: u64) -> Change {
    Change { from: mib(from), to: mib(to) }
}

/// Raised from 64 MiB to 128 and 192.
fn loan() -> Loan {
    let loan = Loan::requested(None, change(64, 128)).confirmed(mib(128));
    Loan::requested(loan, change(128, 192)).confirmed(mib(192)).unwrap()
}

impl GiveBack {
    /// One whose change has been requested.
    pub(crate) fn lowering(change: Change) -> Self {
        Self { stage: Stage::Lowering(change) }
    }
}

/// A container that is looked at once a second, for so many seconds from then on, unless something is to be done before.
fn run(machine: &mut GiveBack, from: u64, seconds: u64, limit: u64, used: u64) -> (u64, Next) {
    for second in from..from + seconds {
        let sample = Sample { now: second * 1_000_000_000, limit: Some(mib(limit)), used: mib(used) };
        let next = machine.sample(&loan(), &rule(), QUIET, sample, || Some(SIZES));
        if next != Next::Wait {
            return (second, next);
        }
    }
    (from + seconds, Next::Wait)
}

#[test]
fn after_the_quiet_time_the_limit_goes_back_to_the_original() {
    let mut machine = GiveBack::default();
    assert_eq!(run(&mut machine, 100, 1000, 192, 51), (160, Next::Lower(change(192, 64))));
    assert!(machine.is_lowering());
    assert_eq!(run(&mut machine, 161, 100, 192, 1), (261, Next::Wait), "one at a time");
    assert_eq!(machine.lowered(Ok(())), Next::Verify(change(192, 64)));
    assert_eq!(machine.verified(Ok(())), Next::Returned(change(192, 64)));
    assert_eq!(loan_after(192, 64), None);
}

fn loan_after(from: u64, to: u64) -> Option<Loan> {
    Loan::requested(Some(loan()), change(from, to)).confirmed(mib(to))
}

#[test]
fn what_costs_more_to_read_is_read_once_the_quiet_time_has_passed_and_again_if_it_could_not_be() {
    let (mut machine, mut reads) = (GiveBack::default(), Vec::new());
    for second in 0..=61 {
        let sample = Sample { now: second * 1_000_000_000, limit: Some(mib(192)), used: mib(10) };
        let read = || {
            reads.push(second);
            (second > 60).then_some(SIZES)
        };
        let next = machine.sample(&loan(), &rule(), QUIET, sample, read);
        assert_eq!(next == Next::Lower(change(192, 64)), second == 61, "{second}: {next:?}");
    }
    assert_eq!(reads, [60, 61]);
}

#[test]
fn what_is_still_needed_is_given_back_step_by_step_and_never_below_usage_with_a_margin() {
    // 80 % of 64 MiB are 51.2, of 128 MiB 102.4.
    let mut machine = GiveBack::default();
    assert_eq!(run(&mut machine, 0, 1000, 192, 52), (60, Next::Lower(change(192, 128))));
    let left = loan_after(192, 128).unwrap();
    assert_eq!((left.original, left.limit), (mib(64), mib(128)));
    let mut machine = GiveBack::default();
    assert_eq!(run(&mut machine, 0, 1000, 192, 103), (1000, Next::Wait), "all is needed");
    for used in 0..=192 {
        if let Some(to) = lower(mib(64), mib(192), &rule(), SIZES, mib(used)) {
            assert!(to.0 * 8 >= mib(used).0 * 10, "{used} MiB used, lowered to {to}");
        }
    }
    let is_enough = |used| is_enough(mib(64), &rule(), SIZES, mib(used));
    assert!(is_enough(51) && !is_enough(52));
    // A ceiling that is no whole number of steps away.
    assert_eq!(lower(mib(64), mib(200), &rule(), SIZES, mib(60)), Some(mib(128)));
    assert_eq!(lower(mib(64), mib(128), &rule(), SIZES, mib(60)), None);
    assert_eq!(lower(Bytes(1), Bytes(u64::MAX), &rule(), SIZES, Bytes(u64::MAX)), None);
}

/// Or it would be held, raised and given back for ever.
#[test]
fn what_is_held_from_an_earlier_share_on_needs_a_higher_limit() {
    let many = Sizes { threads: 1000, cpus: 4, ..SIZES };
    assert_eq!(lower(mib(64), mib(192), &rule(), SIZES, mib(48)), Some(mib(64)));
    assert_eq!(lower(mib(64), mib(192), &rule(), many, mib(48)), Some(mib(128)), "held at 43.2 MiB of 64");
    let slowed = Sizes { high: Some(mib(40)), ..SIZES };
    assert_eq!(lower(mib(64), mib(192), &rule(), slowed, mib(30)), Some(mib(64)));
    assert_eq!(
        lower(mib(64), mib(192), &rule(), slowed, mib(35)),
        None,
        "more lets it no further than memory.high"
    );
    assert!(
        !is_enough(mib(64), &rule(), Sizes { threads: 1800, ..many }, mib(1)),
        "nothing of it is held there"
    );
}

#[test]
fn one_sample_of_use_a_hold_or_a_time_without_samples_begins_the_quiet_time_again() {
    let mut machine = GiveBack::default();
    run(&mut machine, 0, 59, 192, 10);
    run(&mut machine, 59, 1, 192, 150);
    assert_eq!(run(&mut machine, 60, 1000, 192, 10), (121, Next::Lower(change(192, 64))));
    let mut machine = GiveBack::default();
    run(&mut machine, 0, 59, 192, 10);
    machine.held();
    assert_eq!(run(&mut machine, 60, 1000, 192, 10), (120, Next::Lower(change(192, 64))));
    let mut machine = GiveBack::default();
    run(&mut machine, 0, 59, 192, 10);
    assert_eq!(run(&mut machine, 70, 1000, 192, 10), (130, Next::Lower(change(192, 64))));
}

#[test]
fn what_another_process_has_set_is_not_given_back() {
    let forget = |limit| Next::Forget { limit };
    assert_eq!(run(&mut GiveBack::default(), 0, 1, 160, 10).1, forget(Some(mib(160))));
    assert_eq!(run(&mut GiveBack::default(), 0, 1, 64, 10).1, forget(Some(mib(64))));
    let unlimited = Sample { now: 1, limit: None, used: mib(1) };
    assert_eq!(GiveBack::default().sample(&loan(), &rule(), QUIET, unlimited, || Some(SIZES)), forget(None));
    // The next raise begins at what that process has set.
    let next = Loan::requested(Some(loan()), change(160, 192));
    assert_eq!((next.original, next.pending), (mib(160), Some(mib(192))));
}

#[test]
fn a_limit_that_the_kernel_has_rounded_down_to_a_page_is_the_guards() {
    let to = Bytes(64 * MIB + 10_000_000);
    let loan = Loan::requested(None, Change { from: mib(64), to }).confirmed(to).unwrap();
    let next = |limit: u64| {
        let sample =
            |second: u64| Sample { now: second * 1_000_000_000, limit: Some(Bytes(limit)), used: mib(1) };
        let mut machine = GiveBack::default();
        let looks =
            (1..=61).map(|second| machine.sample(&loan, &rule(), QUIET, sample(second), || Some(SIZES)));
        looks.last()
    };
    for page in [4096, 65536] {
        let limit = to.0 / page * page;
        let change = Change { from: Bytes(limit), to: mib(64) };
        assert_eq!(next(limit), Some(Next::Lower(change)), "pages of {page} bytes");
        let again = Loan::requested(Some(loan), change);
        assert_eq!((again.original, again.confirmed(mib(64))), (mib(64), None));
    }
    for other in [to.0 + 1, to.0 - PAGE_MAX] {
        assert_eq!(next(other), Some(Next::Forget { limit: Some(Bytes(other)) }), "another process'");
    }
}

#[test]
fn what_is_promised_is_at_most_what_was_lent() {
    let large = Loan::requested(None, change(64 << 10, 65 << 10)).confirmed(mib(65 << 10)).unwrap();
    let promised = |loan: &Loan, limit: u64, usage: u64| loan.promised(mib(limit), mib(usage));
    assert_eq!(promised(&large, 65 << 10, 20 << 10), mib(1 << 10), "most was never used");
    assert_eq!(promised(&loan(), 192, 100), mib(92));
    assert_eq!(promised(&loan(), 192, 200), mib(0));
    let raised = Loan::requested(Some(loan()), change(192, 256));
    assert_eq!(promised(&raised, 192, 100), mib(156), "not yet in force");
}

#[test]
fn a_raise_whose_answer_is_to_come_is_waited_for_whether_it_came_or_not() {
    let raised = Loan::requested(None, change(64, 128));
    let sample = |limit| Sample { now: 1, limit: Some(mib(limit)), used: mib(1) };
    let next =
        |loan: &Loan, limit| GiveBack::default().sample(loan, &rule(), QUIET, sample(limit), || Some(SIZES));
    assert_eq!((next(&raised, 64), next(&raised, 128)), (Next::Wait, Next::Wait));
    assert_eq!(raised.withdrawn(mib(128)), None);
    // What was lowered late is back.
    let lowered = Loan::requested(Some(loan()), change(192, 64));
    assert_eq!(next(&lowered, 192), Next::Wait);
    let mut machine = GiveBack::default();
    let late = |second: u64| Sample { now: second * 1_000_000_000, ..sample(64) };
    let looks = (1..=61).map(|second| machine.sample(&lowered, &rule(), QUIET, late(second), || Some(SIZES)));
    assert_eq!(looks.last(), Some(Next::Verify(change(192, 64))), "lowered late");
    assert_eq!(machine.verified(Ok(())), Next::Returned(change(192, 64)));
    assert_eq!(lowered.confirmed(mib(64)), None);
    let again = Loan::requested(Some(lowered), change(64, 128));
    assert_eq!((again.original, again.limit), (mib(64), mib(64)), "raised before it was verified");
    assert_eq!(again.confirmed(mib(64)), Some(again), "an answer to an earlier change");
}

#[test]
fn a_hold_while_a_return_is_verified_proves_or_replaces_it() {
    let verifying = || GiveBack { stage: Stage::Verifying(change(192, 64)) };
    let mut machine = verifying();
    assert_eq!(machine.proven(mib(192)), None);
    assert_eq!(machine.replaced(), Some(change(192, 64)));
    assert_eq!(machine.replaced(), None);
    assert_eq!(machine.verified(Ok(())), Next::Wait, "a late answer");
    assert_eq!(verifying().proven(mib(64)), Some(change(192, 64)));
    let mut lowering = GiveBack::lowering(change(192, 64));
    assert_eq!((lowering.proven(mib(64)), lowering.replaced()), (None, None), "not before its answer");
    let lent = Loan::requested(Some(loan()), change(192, 64));
    assert!(lent.is_taken_from(mib(192)) && !lent.is_taken_from(mib(64)) && !loan().is_taken_from(mib(192)));
}

#[test]
fn a_refusal_in_either_stage_begins_the_quiet_time_again() {
    let refusal = || Refusal::Runtime("away".to_owned());
    let refused =
        |may_come_later| Next::Refused { change: change(192, 64), refusal: refusal(), may_come_later };
    let mut machine = GiveBack::default();
    run(&mut machine, 0, 61, 192, 10);
    assert_eq!(machine.lowered(Err(refusal())), refused(false));
    assert_eq!(machine.verified(Ok(())), Next::Wait, "of another stage");
    assert_eq!(run(&mut machine, 61, 1000, 192, 10), (121, Next::Lower(change(192, 64))));
    assert_eq!(machine.lowered(Ok(())), Next::Verify(change(192, 64)));
    assert_eq!(machine.verified(Err(refusal())), refused(true), "it was accepted");
    assert_eq!(run(&mut machine, 122, 1000, 192, 10).0, 182);
    let loan = Loan::requested(Some(loan()), change(192, 64));
    assert_eq!(loan.withdrawn(mib(64)).unwrap().limit, mib(192));
}
