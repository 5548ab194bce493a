//! Giving raises back: what the guard has lent to a container, and when it is taken back. Pure: it gets samples, answers and the
//! time, and returns what to do next.
//!
//! ```text
//!                usage allows for no lower limit: the quiet time begins again
//!              ┌──────┐
//!              ▼      │          quiet for `give_back_after`            accepted
//!   raised ─▶ watching ────────────────────────────────────▶ lowering ─────────▶ verifying
//!              ▲   │                                            │ refused           │
//!              │   │ the limit is not what the guard has set    │                   │
//!              │   ▼                                            │                   │
//!              │  forgotten: it is another process' now         │                   │
//!              ├────────────────────────────────────────────────┘                   │
//!              ├──────────────────────────── not in force ──────────────────────────┤
//!              └──────────────────────────── in force: returned ────────────────────┘   ─▶ done, if it is the original limit
//! ```
//!
//! # The quiet rule
//!
//! A limit to which it is lowered must have been enough for the whole time: no sample of usage above the threshold of *that* limit
//! less 10 % of it. Of the limits that the raises went through (the original one, one step more, two steps more) the
//! lowest that was enough is taken: so a container that still needs some of it gives the rest back, step by step. What is lowered is
//! never below usage, and no process is held again by the next charge.
//!
//! Usage is `memory.current`, file cache included: the kubelet and CRI-O refuse a limit below that.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::plan::{Change, Refusal};
use crate::policy::{Bytes, Rule};
use crate::program::nanos;

/// What must be left below the threshold of the lower limit, in thousandths of it.
const MARGIN_PER_MILLE: u32 = 100;
/// After so long without a sample, what usage was in between is not known: the quiet time begins again.
const BLIND_MAX: Duration = Duration::from_secs(10);
/// The largest page. The kernel rounds a limit down to a whole page.
const PAGE_MAX: u64 = 64 << 10;

/// What a container has been lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Loan {
    /// The limit before the first raise.
    pub original: Bytes,
    /// The limit that is known to have been in force last.
    limit: Bytes,
    /// What was requested last, while that may still come into force.
    pub pending: Option<Bytes>,
}

impl Loan {
    /// A change is requested. A limit that is not what the guard has set is another process': what counts is what that has set.
    pub fn requested(loan: Option<Self>, change: Change) -> Self {
        let (limit, pending) = (change.from, Some(change.to));
        match loan.filter(|loan| loan.is_ours(change.from)) {
            Some(loan) => Self { limit, pending, ..loan },
            None => Self { original: limit, limit, pending },
        }
    }

    /// What was requested is in force. What is left of the loan, if anything is.
    pub fn confirmed(self, to: Bytes) -> Option<Self> {
        let is_last = self.pending == Some(to);
        if is_last { Self { limit: to, pending: None, ..self }.left() } else { Some(self) }
    }

    /// What was requested will not come into force. What is left of the loan, if anything is.
    pub fn withdrawn(self, to: Bytes) -> Option<Self> {
        let is_last = self.pending == Some(to);
        if is_last { Self { pending: None, ..self }.left() } else { Some(self) }
    }

    /// The limit that the guard has requested last.
    pub fn asked(&self) -> Bytes {
        self.pending.unwrap_or(self.limit)
    }

    /// What may still be taken of it, with that limit and that usage. What was allowed before any raise was not lent.
    pub fn promised(&self, limit: Bytes, usage: Bytes) -> Bytes {
        let limit = self.pending.map_or(limit, |pending| limit.max(pending));
        Bytes(limit.0.saturating_sub(usage.max(self.original).0))
    }

    /// The change of which it is not known yet whether it comes.
    pub fn unanswered(&self) -> Option<Change> {
        self.pending.map(|to| Change { from: self.limit, to })
    }

    fn left(self) -> Option<Self> {
        (self.limit > self.original || self.pending.is_some()).then_some(self)
    }

    /// Whether the kernel's limit is one that the guard has set. What was requested need not be whole pages.
    fn is_ours(&self, limit: Bytes) -> bool {
        let is_it = |set: Bytes| set.0.checked_sub(limit.0).is_some_and(|rest| rest < PAGE_MAX);
        is_it(self.limit) || self.pending.is_some_and(is_it)
    }
}

/// A container's cgroup at a moment.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// `CLOCK_BOOTTIME` in nanoseconds.
    pub now: u64,
    /// The limit; none: there is none any more.
    pub limit: Option<Bytes>,
    /// The usage.
    pub used: Bytes,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing.
    Wait,
    /// Lower the limit.
    Lower(Change),
    /// Have the daemon verify it.
    Verify(Change),
    /// It is in force.
    Returned(Change),
    /// It is not.
    Refused {
        /// What was to be.
        change: Change,
        /// Why not.
        refusal: Refusal,
        /// It may come into force nevertheless: it was accepted, or no answer says that it was not.
        may_come_later: bool,
    },
    /// The loan is over: another process has set this limit.
    Forget {
        /// The limit; none: there is none any more.
        limit: Option<Bytes>,
    },
}

/// The state machine of one container.
#[derive(Clone, Debug, Default)]
pub struct GiveBack {
    stage: Stage,
}

#[derive(Clone, Debug)]
enum Stage {
    Watching(Option<Window>),
    Lowering(Change),
    Verifying(Change),
}

impl Default for Stage {
    fn default() -> Self {
        Self::Watching(None)
    }
}

/// A quiet time so far.
#[derive(Clone, Copy, Debug)]
struct Window {
    since: u64,
    /// When the last sample was taken.
    seen: u64,
    /// The highest usage of all samples.
    peak: Bytes,
}

impl GiveBack {
    /// Whether a lower limit has been requested, and the answer is to come.
    pub fn is_lowering(&self) -> bool {
        matches!(self.stage, Stage::Lowering(_))
    }

    /// Takes a sample of a container whose loan is to be given back after such a quiet time.
    pub fn sample(&mut self, loan: &Loan, rule: &Rule, quiet: Duration, sample: Sample) -> Next {
        let Stage::Watching(window) = &mut self.stage else { return Next::Wait };
        let Sample { now, limit, used } = sample;
        let Some(limit) = limit.filter(|limit| loan.is_ours(*limit)) else {
            return Next::Forget { limit };
        };
        // A raise that has been requested may still come. What was lowered, and was not in force in time, has come.
        let is_late = loan.pending == Some(limit) && limit < loan.limit;
        if limit <= loan.original && !is_late {
            *window = None;
            return Next::Wait;
        }
        let is_blind = |window: &Window| now.saturating_sub(window.seen) > nanos(BLIND_MAX);
        let last = window.filter(|window| !is_blind(window));
        let current = last.map_or(Window { since: now, seen: now, peak: used }, |last| Window {
            seen: now,
            peak: last.peak.max(used),
            ..last
        });
        *window = Some(current);
        if now.saturating_sub(current.since) < nanos(quiet) {
            return Next::Wait;
        }
        *window = None;
        if limit <= loan.original {
            let change = Change { from: loan.limit, to: limit };
            self.stage = Stage::Verifying(change);
            return Next::Verify(change);
        }
        match lower(loan.original, limit, rule, current.peak) {
            Some(to) => {
                let change = Change { from: limit, to };
                self.stage = Stage::Lowering(change);
                Next::Lower(change)
            }
            None => Next::Wait,
        }
    }

    /// A process of the container is held: it is not quiet.
    pub fn held(&mut self) {
        if let Stage::Watching(window) = &mut self.stage {
            *window = None;
        }
    }

    /// The container runtime or the Kubernetes API has answered.
    pub fn lowered(&mut self, answer: Result<(), Refusal>) -> Next {
        let Stage::Lowering(change) = self.stage else { return Next::Wait };
        match answer {
            Ok(()) => {
                self.stage = Stage::Verifying(change);
                Next::Verify(change)
            }
            Err(refusal) => {
                let may_come_later = refusal.may_come_later();
                self.refused(change, refusal, may_come_later)
            }
        }
    }

    /// The daemon has answered.
    pub fn verified(&mut self, answer: Result<(), Refusal>) -> Next {
        let Stage::Verifying(change) = self.stage else { return Next::Wait };
        match answer {
            Ok(()) => {
                self.stage = Stage::default();
                Next::Returned(change)
            }
            Err(refusal) => self.refused(change, refusal, true),
        }
    }

    fn refused(&mut self, change: Change, refusal: Refusal, may_come_later: bool) -> Next {
        self.stage = Stage::default();
        Next::Refused { change, refusal, may_come_later }
    }
}

/// The lowest of the limits that raises went through for which this much usage is quiet, if that is below the limit.
fn lower(original: Bytes, limit: Bytes, rule: &Rule, peak: Bytes) -> Option<Bytes> {
    if is_enough(original, rule, peak) {
        return (original < limit).then_some(original);
    }
    // Whole steps above the original limit.
    let needed = u64::try_from((u128::from(peak.0) * 1000).div_ceil(quiet_per_mille(rule))).ok()?;
    let steps = needed.saturating_sub(original.0).div_ceil(rule.step.0);
    let lower = original.0.checked_add(steps.checked_mul(rule.step.0)?)?;
    (lower < limit.0).then_some(Bytes(lower))
}

/// Whether that limit is enough for this much usage: see the quiet rule.
pub(crate) fn is_enough(limit: Bytes, rule: &Rule, used: Bytes) -> bool {
    u128::from(used.0) * 1000 <= u128::from(limit.0) * quiet_per_mille(rule)
}

fn quiet_per_mille(rule: &Rule) -> u128 {
    u128::from(rule.threshold.per_mille() - MARGIN_PER_MILLE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::rule;

    const MIB: u64 = 1 << 20;
    const QUIET: Duration = Duration::from_secs(60);

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

    /// A container that is looked at once a second, for so many seconds from then on, unless something is to be done before.
    fn run(machine: &mut GiveBack, from: u64, seconds: u64, limit: u64, used: u64) -> (u64, Next) {
        for second in from..from + seconds {
            let sample = Sample { now: second * 1_000_000_000, limit: Some(mib(limit)), used: mib(used) };
            let next = machine.sample(&loan(), &rule(), QUIET, sample);
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
    fn what_is_still_needed_is_given_back_step_by_step_and_never_below_usage_with_a_margin() {
        // 80 % of 64 MiB are 51.2, of 128 MiB 102.4.
        let mut machine = GiveBack::default();
        assert_eq!(run(&mut machine, 0, 1000, 192, 52), (60, Next::Lower(change(192, 128))));
        let left = loan_after(192, 128).unwrap();
        assert_eq!((left.original, left.limit), (mib(64), mib(128)));
        let mut machine = GiveBack::default();
        assert_eq!(run(&mut machine, 0, 1000, 192, 103), (1000, Next::Wait), "all is needed");
        for used in 0..=192 {
            if let Some(to) = lower(mib(64), mib(192), &rule(), mib(used)) {
                assert!(to.0 * 8 >= mib(used).0 * 10, "{used} MiB used, lowered to {to}");
            }
        }
        let is_enough = |used| is_enough(mib(64), &rule(), mib(used));
        assert!(is_enough(51) && !is_enough(52));
        // A ceiling that is no whole number of steps away.
        assert_eq!(lower(mib(64), mib(200), &rule(), mib(60)), Some(mib(128)));
        assert_eq!(lower(mib(64), mib(128), &rule(), mib(60)), None);
        assert_eq!(lower(Bytes(1), Bytes(u64::MAX), &rule(), Bytes(u64::MAX)), None);
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
        assert_eq!(GiveBack::default().sample(&loan(), &rule(), QUIET, unlimited), forget(None));
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
            let looks = (1..=61).map(|second| machine.sample(&loan, &rule(), QUIET, sample(second)));
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
        let next = |loan: &Loan, limit| GiveBack::default().sample(loan, &rule(), QUIET, sample(limit));
        assert_eq!((next(&raised, 64), next(&raised, 128)), (Next::Wait, Next::Wait));
        assert_eq!(raised.withdrawn(mib(128)), None);
        // What was lowered late is back.
        let lowered = Loan::requested(Some(loan()), change(192, 64));
        assert_eq!(next(&lowered, 192), Next::Wait);
        let mut machine = GiveBack::default();
        let late = |second: u64| Sample { now: second * 1_000_000_000, ..sample(64) };
        let looks = (1..=61).map(|second| machine.sample(&lowered, &rule(), QUIET, late(second)));
        assert_eq!(looks.last(), Some(Next::Verify(change(192, 64))), "lowered late");
        assert_eq!(machine.verified(Ok(())), Next::Returned(change(192, 64)));
        assert_eq!(lowered.confirmed(mib(64)), None);
        let again = Loan::requested(Some(lowered), change(64, 128));
        assert_eq!((again.original, again.limit), (mib(64), mib(64)), "raised before it was verified");
        assert_eq!(again.confirmed(mib(64)), Some(again), "an answer to an earlier change");
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
}
