//! From a loan to a lower limit: one container at a time is lowered, verified, and reported.
//!
//! And what becomes of a change without an answer: the Kubernetes API is asked again, or the kernel's limit is read, until the loan says
//! what is.
//!
//! Decides nothing itself: [`GiveBack`](crate::give_back::GiveBack) does. Holds come first: while one is under way, nothing of its
//! container is sampled, and one that comes while a limit is being lowered waits for the answer, at most as long as it may be held.

use kwitness_api::proto;
use kwitness_api::proto::guard_report::Report;

use super::answers::{Answer, Input, LIMIT, Late};
use super::in_force::verify;
use super::shares::sizes;
use super::{Guard, Guarded, announce};
use crate::cgroup::{self, Cgroup};
use crate::daemon::Container;
use crate::give_back::{self, Loan, Next, Sample};
use crate::loans::Lent;
use crate::plan::{Change, Refusal};
use crate::policy::{Bytes, Rule};
use crate::program;
use crate::raise::Raiser;
use crate::reporter;

/// What is known of changes without an answer. The last one counts; one at a time is looked for.
#[derive(Debug, Default)]
pub(super) struct Open {
    /// Changes that were requested, with an answer or without.
    requests: u64,
    pub(super) is_looked_for: bool,
    /// A later one has none either, and is to be looked for next: since when.
    next: Option<u64>,
}

impl Guard {
    /// Records a change before it is requested.
    pub(super) fn request(&mut self, cgroup_id: u64, change: Change) {
        if let Some(guarded) = self.known_mut(cgroup_id) {
            guarded.open.requests += 1;
            guarded.open.next = None;
            guarded.raises.requested(change);
        }
        self.set_loan(cgroup_id, |loan| Some(Loan::requested(loan, change)));
    }

    /// Finds out what becomes of a change that has no answer. Through the CRI, nothing is requested meanwhile: it could come before that,
    /// and what was lost after it.
    pub(super) fn resolve(&mut self, cgroup_id: u64, late: Late) {
        let is_exclusive = matches!(self.options.raiser, Raiser::Cri(_));
        let Some(guarded) = self.known_mut(cgroup_id) else { return };
        guarded.unanswered |= is_exclusive;
        if std::mem::replace(&mut guarded.open.is_looked_for, true) {
            guarded.open.next = Some(late.since);
            return;
        }
        let (container, requests) = (guarded.container.clone(), guarded.open.requests);
        let raiser = self.options.raiser.clone();
        self.returns.spawn(async move {
            let is_accepted = raiser.is_accepted(&container, late.change).await;
            Answer { cgroup_id, input: Input::Resolved { late, requests, is_accepted } }
        });
    }

    fn resolved(&mut self, cgroup_id: u64, late: Late, requests: u64, is_accepted: bool) {
        let change = late.change;
        let is_exclusive = matches!(self.options.raiser, Raiser::Cri(_));
        let Some(guarded) = self.known_mut(cgroup_id) else { return };
        guarded.open.is_looked_for = false;
        guarded.unanswered &= !is_exclusive;
        // The same may have been requested again since, and accepted.
        let is_last = requests == guarded.open.requests;
        if is_accepted {
            guarded.raises.found(change);
        } else if is_last {
            guarded.raises.taken_back(change);
        }
        if let Some(since) = guarded.open.next.take() {
            if let Some(change) = guarded.loan.and_then(|loan| loan.unanswered()) {
                self.resolve(cgroup_id, Late { change, since });
            }
            return;
        }
        let container = &guarded.container.id;
        if is_accepted {
            tracing::info!(container, to = change.to.0, "a change without an answer was made");
            if change.to > change.from {
                self.verify_late(cgroup_id, late);
            }
        } else if is_last {
            tracing::info!(container, to = change.to.0, "a change without an answer was not made");
            self.set_loan(cgroup_id, |loan| loan?.withdrawn(change.to));
        }
    }

    /// Looks at every container whose raises are to be given back.
    pub(super) fn sample(&mut self) -> anyhow::Result<()> {
        let is_due = |guarded: &Guarded| {
            let gives_back = guarded.loan.is_some() && guarded.rule.give_back_after.is_some();
            gives_back && guarded.episode.is_none() && !guarded.unanswered
        };
        let due = self.guarded.iter().filter(|(_, guarded)| is_due(guarded)).map(|(id, _)| *id);
        for cgroup_id in due.collect::<Vec<_>>() {
            let is_braked = self.brakes.has(cgroup_id);
            let Some(guarded) = self.guarded.get_mut(&cgroup_id) else { continue };
            let (Some(loan), Some(quiet)) = (guarded.loan, guarded.rule.give_back_after) else { continue };
            let read = || -> std::io::Result<_> {
                let cgroup = Cgroup::find(&guarded.container.cgroup_path, cgroup_id)?;
                cgroup.map(|cgroup| Ok((cgroup.limit()?, cgroup.usage()?, cgroup))).transpose()
            };
            let (limit, used, cgroup) = match read() {
                Ok(Some(read)) => read,
                Ok(None) => continue,
                Err(error) if cgroup::is_gone(&error) => continue,
                Err(error) => {
                    // The quiet time begins again once it can be read.
                    tracing::debug!(container = guarded.container.id, %error, "cannot sample a container");
                    continue;
                }
            };
            let sample = Sample { now: program::now(), limit, used };
            let container = &guarded.container.id;
            let sizes = || {
                let sizes = sizes(&cgroup, is_braked);
                sizes
                    .inspect_err(|error| tracing::debug!(container, %error, "cannot sample a container"))
                    .ok()
            };
            let next = guarded.give_back.sample(&loan, &guarded.rule, quiet, sample, sizes);
            self.follow(cgroup_id, next)?;
        }
        Ok(())
    }

    /// The container runtime, the Kubernetes API or the daemon has answered.
    pub(super) fn return_answered(&mut self, answer: Answer) -> anyhow::Result<()> {
        let Answer { cgroup_id, input } = answer;
        let Some(guarded) = self.known_mut(cgroup_id) else { return Ok(()) };
        let next = match input {
            Input::Late { late, verified } => return self.late(cgroup_id, late, verified),
            Input::TakenBack { change, answer } => {
                self.taken_back(cgroup_id, change, answer);
                return Ok(());
            }
            Input::Resolved { late, requests, is_accepted } => {
                self.resolved(cgroup_id, late, requests, is_accepted);
                return Ok(());
            }
            Input::Lowered(answer) => {
                let is_unanswered = answer == Err(Refusal::Unanswered);
                // It may come after a raise, and set less than is used by then.
                guarded.unanswered |= is_unanswered;
                let next = guarded.give_back.lowered(answer);
                // A hold that has waited in vain for this answer has begun a cool-down.
                if !is_unanswered {
                    self.arm_again(cgroup_id)?;
                }
                next
            }
            Input::Verified { requests, answer } if requests == guarded.open.requests => {
                guarded.give_back.verified(answer.map(drop))
            }
            // A raise was requested meanwhile.
            Input::Verified { .. } => Next::Wait,
        };
        self.follow(cgroup_id, next)
    }

    fn follow(&mut self, cgroup_id: u64, next: Next) -> anyhow::Result<()> {
        match next {
            Next::Wait => {}
            Next::Lower(change) => self.lower(cgroup_id, change)?,
            Next::Verify(change) => self.verify_return(cgroup_id, change),
            Next::Returned(change) => self.returned(cgroup_id, change),
            Next::Refused { change, refusal, may_come_later } => {
                self.return_refused(cgroup_id, Some(change.from), &refusal);
                if refusal == Refusal::Gone {
                    self.set_loan(cgroup_id, |_| None);
                } else if !may_come_later {
                    self.set_loan(cgroup_id, |loan| loan?.withdrawn(change.to));
                } else if refusal.is_open() {
                    self.resolve(cgroup_id, Late { change, since: program::now() });
                }
            }
            Next::Forget { limit } => {
                self.return_refused(cgroup_id, limit, &Refusal::LimitChanged(limit));
                self.set_loan(cgroup_id, |_| None);
            }
        }
        Ok(())
    }

    /// Holds of it what crosses the threshold from now on, whatever was refused under another limit.
    fn arm_again(&mut self, cgroup_id: u64) -> anyhow::Result<()> {
        let Some(guarded) = self.guarded.get_mut(&cgroup_id) else { return Ok(()) };
        guarded.quiet_until = 0;
        guarded.suspended = None;
        self.write_armed(cgroup_id)
    }

    fn lower(&mut self, cgroup_id: u64, change: Change) -> anyhow::Result<()> {
        let asked = self.known(cgroup_id).and_then(|guarded| guarded.loan).map(|loan| loan.asked());
        self.request(cgroup_id, change);
        // Before the kernel has the lower limit: see the order in `give_back`.
        self.look_at_share(cgroup_id, Some(change.to));
        self.arm_again(cgroup_id)?;
        let Some(guarded) = self.guarded.get(&cgroup_id) else { return Ok(()) };
        let container = guarded.container.clone();
        tracing::info!(container = container.id, from = change.from.0, to = change.to.0, "giving back");
        let (rule, is_braked) = (guarded.rule.clone(), self.brakes.has(cgroup_id));
        let (raiser, reporter) = (self.options.raiser.clone(), self.reporter.clone());
        self.returns.spawn(async move {
            announce(&reporter, &container, change.to).await;
            let answer = match in_use(&container, &rule, is_braked, change.to) {
                Some(used) => Err(Refusal::InUse { used, limit: change.to }),
                None => raiser.set(&container, change, asked, LIMIT).await,
            };
            Answer { cgroup_id, input: Input::Lowered(answer) }
        });
        Ok(())
    }

    fn verify_return(&mut self, cgroup_id: u64, change: Change) {
        let Some(guarded) = self.known(cgroup_id) else { return };
        let (container, requests) = (guarded.container.clone(), guarded.open.requests);
        let (address, raiser) = (self.options.daemon.clone(), self.options.raiser.clone());
        self.returns.spawn(async move {
            let answer = verify(address, &raiser, &container, change.to, LIMIT).await;
            Answer { cgroup_id, input: Input::Verified { requests, answer } }
        });
    }

    /// A raise takes the place of a return that is not known to be in force.
    pub(super) fn replace_return(&mut self, cgroup_id: u64, used: Bytes) {
        let replaced = self.known_mut(cgroup_id).and_then(|guarded| guarded.give_back.replaced());
        if let Some(Change { from, to }) = replaced {
            self.return_refused(cgroup_id, Some(from), &Refusal::InUse { used, limit: to });
        }
    }

    pub(super) fn returned(&mut self, cgroup_id: u64, change: Change) {
        let Some(guarded) = self.known(cgroup_id) else { return };
        let original = guarded.loan.map_or(change.to, |loan| loan.original);
        let Change { from, to } = change;
        tracing::info!(
            container = guarded.container.id,
            from = from.0,
            to = to.0,
            original = original.0,
            "guardReturned"
        );
        let returned = proto::GuardReturned {
            level: guarded.container.level().into(),
            limit_before: from.0,
            limit_after: to.0,
            original_limit: original.0,
        };
        self.reporter.push(&guarded.container.id, Report::Returned(returned));
        self.counts.returns += 1;
        if let Some(guarded) = self.known_mut(cgroup_id) {
            let steps = from.0.saturating_sub(to.0).div_ceil(guarded.rule.step.0);
            let is_all = guarded.loan.and_then(|loan| loan.confirmed(to)).is_none();
            guarded.raises.returned(steps, is_all);
        }
        // With what is left of the raises.
        self.set_loan(cgroup_id, |loan| loan?.confirmed(to));
    }

    fn return_refused(&mut self, cgroup_id: u64, limit: Option<Bytes>, refusal: &Refusal) {
        let Some(guarded) = self.known(cgroup_id) else { return };
        let (container, reason) = (&guarded.container.id, refusal.name());
        tracing::warn!(container, reason, %refusal, "not given back");
        let refused = proto::GuardRefused {
            attempt: proto::GuardAttempt::Return.into(),
            reason: reason.to_owned(),
            detail: reporter::detail(refusal.to_string()),
            level: guarded.container.level().into(),
            limit_bytes: limit.map(|limit| limit.0),
            held_ns: None,
        };
        self.reporter.push(container, Report::Refused(refused));
        *self.counts.return_refusals.entry(reason).or_default() += 1;
    }

    /// Changes what a container has been lent, and puts it down before anything else is done.
    pub(super) fn set_loan(&mut self, cgroup_id: u64, change: impl FnOnce(Option<Loan>) -> Option<Loan>) {
        let Some(guarded) = self.known_mut(cgroup_id) else { return };
        let loan = change(guarded.loan);
        if guarded.loan == loan {
            return;
        }
        guarded.loan = loan;
        let of = |guarded: &Guarded| {
            let loan = guarded.loan?;
            Some(Lent {
                cgroup_id: guarded.container.cgroup_id,
                cgroup_path: guarded.container.cgroup_path.clone(),
                container_id: guarded.container.id.clone(),
                raises: Some(guarded.raises.recorded(&loan)),
                loan,
            })
        };
        let known = self.guarded.values().chain(self.retired.values()).filter_map(of);
        let all: Vec<_> = known.chain(self.inherited.values().cloned()).collect();
        self.loans.save(&all);
    }
}

/// The usage, if the limit is not enough for it any more: for a limit below usage the kernel would kill, and not every container
/// runtime compares.
fn in_use(container: &Container, rule: &Rule, is_braked: bool, limit: Bytes) -> Option<Bytes> {
    let cgroup = Cgroup::find(&container.cgroup_path, container.cgroup_id).ok()??;
    let sizes = sizes(&cgroup, is_braked).ok()?;
    cgroup.usage().ok().filter(|used| !give_back::is_enough(limit, rule, sizes, *used))
}
