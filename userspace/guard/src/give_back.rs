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
//! # While a limit is being lowered
//!
//! The program compares with the limit that the kernel has at that charge, so threshold and limit never disagree. What could are the
//! guard's map of armed cgroups and its own plans. So each return takes these steps, in this order:
//!
//! ```text
//!  recorded as lent ─▶ armed, its cool-down and suspension ended ─▶ requested ─▶ the kernel has it ─▶ verified
//!                      └── a process is held ────────────────────────┴───────────┴──────────────────┴─▶
//!  held before the answer:           waits for it, then the raise is planned from what the process had when it was held
//!  held at the higher limit:         the raise replaces the return, which is refused as `inUse`, and goes no lower than that limit
//!  held at the lower limit:          the record is the kernel's own word that it has it: returned, and raised again
//! ```
//!
//! # The quiet rule
//!
//! A limit to which it is lowered must have been enough for the whole time: no sample of usage above the threshold of *that* limit
//! (the policy's, or less, as `share` says) less 10 % of it. Of the limits that the raises went through (the original one, one step
//! more, two steps more) the lowest that was enough is taken: so a container that still needs some of it gives the rest back, step by
//! step. What is lowered is never below usage, and no process is held again by the next charge.
//!
//! Usage is `memory.current`, file cache included: the kubelet and CRI-O refuse a limit below that.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::plan::{Change, Refusal};
use crate::policy::{Bytes, Rule};
use crate::program::nanos;
use crate::share::{Sizes, share};

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

    /// Whether a limit was requested that is below the one at which a process was held: what it had is being taken from it.
    pub fn is_taken_from(&self, held_at: Bytes) -> bool {
        self.pending.is_some_and(|pending| pending < held_at)
    }

    /// How many raises by such a step it takes, that counted which may still come.
    pub fn raises(&self, step: Bytes) -> u32 {
        let lent = self.limit.max(self.asked()).0.saturating_sub(self.original.0);
        u32::try_from(lent.div_ceil(step.0.max(1))).unwrap_or(u32::MAX)
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
        is_kept_as(self.limit, limit) || self.pending.is_some_and(|pending| is_kept_as(pending, limit))
    }
}

/// Whether the kernel has what was requested as that limit: it rounds down to a page.
fn is_kept_as(requested: Bytes, limit: Bytes) -> bool {
    requested.0.checked_sub(limit.0).is_some_and(|rest| rest < PAGE_MAX)
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
    /// Wait: there is nothing to do yet.
    Wait,
    /// Lower the limit.
    Lower(Change),
    /// Have the daemon verify it.
    Verify(Change),
    /// It is in force.
    Returned(Change),
    /// It is not in force, and will not be.
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

    /// Takes a sample of a container whose loan is to be given back after such a quiet time. `sizes` reads what else the threshold depends
    /// on, and is called only when that has passed; none: it cannot be read, and the next sample asks again.
    pub(crate) fn sample(
        &mut self,
        loan: &Loan,
        rule: &Rule,
        quiet: Duration,
        sample: Sample,
        sizes: impl FnOnce() -> Option<Sizes>,
    ) -> Next {
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
        if limit <= loan.original {
            let change = Change { from: loan.limit, to: limit };
            self.stage = Stage::Verifying(change);
            return Next::Verify(change);
        }
        let Some(sizes) = sizes() else { return Next::Wait };
        *window = None;
        match lower(loan.original, limit, rule, sizes, current.peak) {
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

    /// A process is held at that limit. If it is the one that is being verified, the kernel has it: returned.
    pub fn proven(&mut self, held_at: Bytes) -> Option<Change> {
        let Stage::Verifying(change) = self.stage else { return None };
        is_kept_as(change.to, held_at).then(|| {
            self.stage = Stage::default();
            change
        })
    }

    /// A raise is requested: what was being verified is not to come any more.
    pub fn replaced(&mut self) -> Option<Change> {
        let Stage::Verifying(change) = self.stage else { return None };
        self.stage = Stage::default();
        Some(change)
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
fn lower(original: Bytes, limit: Bytes, rule: &Rule, sizes: Sizes, peak: Bytes) -> Option<Bytes> {
    let mut lower = original;
    while lower < limit {
        if is_enough(lower, rule, sizes, peak) {
            return Some(lower);
        }
        // Not one by one: the limit may be very many steps away.
        let missing = peak.0.saturating_sub(lower.0).div_ceil(rule.step.0).max(1);
        lower = Bytes(lower.0.checked_add(missing.checked_mul(rule.step.0)?)?);
    }
    None
}

/// Whether that limit is enough for this much usage: see the quiet rule.
pub(crate) fn is_enough(limit: Bytes, rule: &Rule, sizes: Sizes, used: Bytes) -> bool {
    let Ok(held_from) = share(rule.threshold, Sizes { limit: Some(limit), ..sizes }) else { return false };
    let quiet = held_from.saturating_sub(MARGIN_PER_MILLE);
    u128::from(used.0) * 1000 <= u128::from(limit.0) * u128::from(quiet)
}

#[cfg(test)]
mod tests;
