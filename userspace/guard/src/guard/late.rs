//! Raises that were accepted, and were not in force when their hold ended.
//!
//! They are verified and reported like others. What the kubelet has put off is taken out of the spec again, so that it neither comes
//! when no process needs it any more, nor keeps the pod from its next raise.

use kwitness_api::proto;
use kwitness_api::proto::guard_report::Report;

use super::Guard;
use super::answers::{Answer, Input, LIMIT, Late};
use super::in_force::verify;
use crate::episode::Proof;
use crate::plan::{Change, Refusal};
use crate::program;

impl Guard {
    /// The hold has ended without the raise, for that reason.
    pub(super) fn left_open(&mut self, cgroup_id: u64, late: Late, refusal: &Refusal) {
        if refusal.is_put_off() {
            self.take_back(cgroup_id, late.change);
        } else if *refusal != Refusal::Gone {
            self.verify_late(cgroup_id, late);
        }
    }

    /// Waits for a raise for which no process is held any more.
    pub(super) fn verify_late(&mut self, cgroup_id: u64, late: Late) {
        let Some(guarded) = self.known(cgroup_id) else { return };
        let container = guarded.container.clone();
        let (address, raiser) = (self.options.daemon.clone(), self.options.raiser.clone());
        self.returns.spawn(async move {
            let verified = verify(address, &raiser, &container, late.change.to, LIMIT).await;
            Answer { cgroup_id, input: Input::Late { late, verified } }
        });
    }

    /// It is in force, or not.
    pub(super) fn late(
        &mut self,
        cgroup_id: u64,
        late: Late,
        verified: Result<Proof, Refusal>,
    ) -> anyhow::Result<()> {
        let Change { from, to } = late.change;
        let Some(guarded) = self.known_mut(cgroup_id) else { return Ok(()) };
        // Another hold waits for it, or it has been reported, or is not the last change any more.
        if guarded.episode.is_some() || guarded.loan.and_then(|loan| loan.pending) != Some(to) {
            return Ok(());
        }
        let container = &guarded.container;
        match verified {
            Ok(proof) => {
                tracing::info!(
                    container = container.id,
                    from = from.0,
                    to = to.0,
                    ?proof,
                    "guardRaised, late"
                );
                let raised = proto::GuardRaised {
                    level: container.level().into(),
                    limit_before: from.0,
                    limit_after: to.0,
                    held_ns: program::now().saturating_sub(late.since),
                };
                let id = container.id.clone();
                guarded.raises.in_force();
                // It is not in need any more.
                guarded.quiet_until = 0;
                self.reporter.push(&id, Report::Raised(raised));
                self.counts.late_raises += 1;
                self.set_loan(cgroup_id, |loan| loan?.confirmed(to));
                self.write_armed(cgroup_id)
            }
            Err(refusal) => {
                tracing::warn!(container = container.id, to = to.0, %refusal, "a raise is not in force after its hold");
                if refusal.is_put_off() {
                    self.take_back(cgroup_id, late.change);
                }
                Ok(())
            }
        }
    }

    fn take_back(&mut self, cgroup_id: u64, change: Change) {
        let Some(guarded) = self.known_mut(cgroup_id) else { return };
        guarded.is_taking_back = true;
        let container = guarded.container.clone();
        let raiser = self.options.raiser.clone();
        self.returns.spawn(async move {
            let answer = raiser.take_back(&container, change, LIMIT).await;
            Answer { cgroup_id, input: Input::TakenBack { change, answer } }
        });
    }

    /// The spec has the limit again that is in force, or not.
    pub(super) fn taken_back(&mut self, cgroup_id: u64, change: Change, answer: Result<bool, Refusal>) {
        let Some(guarded) = self.known_mut(cgroup_id) else { return };
        guarded.is_taking_back = false;
        let (container, to) = (&guarded.container.id, change.to.0);
        match answer {
            Ok(true) => {
                tracing::info!(container, to, "a raise that the kubelet had put off is taken back");
                guarded.raises.taken_back(change);
                self.set_loan(cgroup_id, |loan| loan?.withdrawn(change.to));
            }
            // The kubelet has begun with it, or another client has changed the limit.
            Ok(false) => {}
            Err(refusal) => {
                tracing::warn!(container, to, %refusal, "cannot take back a raise that the kubelet has put off");
            }
        }
    }
}
