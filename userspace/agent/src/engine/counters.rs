//! What no record reports: once a second, the kernel's counters are compared with the last look, and what was lost, skipped or only
//! counted is observed.
//!
//! Decides what is looked at when, and keeps what was observed and the counters that it accounts for together. What the difference
//! of two looks is, [`losses`](super::losses) knows.

use kwitness_core::model::{Fact, GapCause, KernelEvent, Observation};

use super::ledger::Accounted;
use super::loss_owners::LossOwners;
use super::losses::Look;
use super::{Engine, Probe};
use crate::clock::Clock;

impl<P: Probe> Engine<P> {
    pub(super) fn look_for_losses(&mut self) {
        if self.untracked.is_some() {
            // Until then everything is lost: the gap begins where the last daemon looked.
            return;
        }
        let (counters, look) = Look::at(|| self.probe.counters());
        let mut losses = self.losses.since_last(counters, look);
        if let Some(loss) = losses.iter_mut().find(|loss| loss.cause == GapCause::RingFull) {
            match self.probe.lost_by_container() {
                Ok(counted) => self.losses.attribute(loss, LossOwners::new(counted)),
                Err(error) => tracing::error!(%error, "cannot read whose the lost records are"),
            }
        }
        for loss in &losses {
            tracing::warn!(cause = ?loss.cause, lost = ?loss.lost, "records were lost; a scan follows");
        }
        self.account(losses.into_iter().map(Observation::Lost).collect());
    }

    pub(super) fn look_for_skipped(&mut self) {
        let (skipped, look) = Look::at(|| self.probe.skipped());
        if let Some(loss) = self.losses.skipped_since_last(skipped, look) {
            tracing::warn!(lost = ?loss.lost, "the kernel skipped programs; a scan follows");
            self.account(vec![Observation::Lost(loss)]);
        }
    }

    /// A cgroup's limit files were written to faster than is reported.
    pub(super) fn look_for_suppressed(&mut self, clock: Clock) {
        let total = self.probe.counters().suppressed;
        if !self.suppressed.is_more(total) {
            return;
        }
        match self.probe.suppressed_writes() {
            Ok(suppressed) => {
                let observed = self.suppressed.since_last(total, suppressed).into_iter().map(|(cgroup, writes)| {
                    tracing::warn!(%cgroup, writes, "limits are written to too fast: writes were only counted");
                    let fact = Fact::LimitWritesSuppressed(writes);
                    Observation::Kernel(KernelEvent { at: clock.now(), cgroup, fact })
                });
                let observed = observed.collect();
                self.account(observed);
            }
            Err(error) => tracing::error!(%error, "cannot read which limit writes were only counted"),
        }
    }

    /// Observes what the kernel's counters showed, and has that accounted for.
    pub(super) fn account(&mut self, observations: Vec<Observation>) {
        if observations.is_empty() {
            return;
        }
        let accounted = Accounted { observations, seen: self.losses.seen(&self.suppressed) };
        let is_kept = self.keep(|ledger| ledger.account(&accounted));
        accounted.observations.into_iter().for_each(|observation| drop(self.take_in(observation)));
        self.turn_unless(is_kept);
    }

    /// Notes for the next daemon that all losses until then are accounted for.
    pub(super) fn note_look(&mut self, clock: Clock) {
        if self.untracked.is_none() {
            // A new segment begins with it.
            if !self.keep(|ledger| ledger.look(clock.now())) {
                self.turn();
            }
        }
    }
}
