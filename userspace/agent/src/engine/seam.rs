//! The handover from the programs of one layout to those of another, see `probe::handover` and [`kwitness_core::seam`].
//!
//! ```text
//!  old rings ──▶ taken, remembered ──▶ counters accounted for, ledger ──▶ new rings ──▶ doubles left out ──▶ forgotten
//!                 `Read::Replaced`                                                       `Read::Doubled`
//! ```
//!
//! Decides when; never compares records.

use std::collections::BTreeMap;

use kwitness_core::model::KernelTime;
use kwitness_core::seam::TOLERANCE;

use super::losses::{Seen, SuppressedWrites};
use super::{Engine, Probe, Read};
use crate::clock::Clock;
use crate::probe::Overlap;

impl<P: Probe> Engine<P> {
    /// Has new programs take over from old ones once they have run side by side for long enough, and forgets the old ones' records
    /// once the new ones' have been compared with them.
    pub(super) fn look_at_seam(&mut self, now: KernelTime) {
        let Some(seam) = &self.seam else { return };
        if self.untracked.is_some() && !seam.is_full() {
            // Of a new epoch: what the old programs lose until the first scan is looked at after it.
            return;
        }
        match self.probe.overlap() {
            Some(Overlap { whole, .. }) => {
                if now.0.saturating_sub(whole.0) > TOLERANCE || seam.is_full() {
                    self.wait_for_records(Read::Replaced);
                }
            }
            None => {
                if seam.is_over(now) {
                    self.wait_for_records(Read::Doubled);
                }
            }
        }
    }

    /// From now on, the new programs' records are read.
    pub(super) fn hand_over(&mut self) {
        let Some(Overlap { began, .. }) = self.probe.overlap() else { return };
        // What the old programs lose from now on, the new ones have.
        self.look_for_losses();
        self.look_for_skipped();
        self.look_for_suppressed(Clock::read());
        // What the new ones have lost so far, the old ones had until their rings were read for the last time.
        self.losses.count_anew(began);
        self.suppressed = SuppressedWrites::default();
        // First the ledger: a daemon that finds the new programs has to know what it was that the old ones recorded. One that finds
        // the old ones still reports their losses a second time.
        self.turn_without_base();
        self.probe.hand_over();
        // Then again: if the old programs could not be removed, no daemon goes on with them.
        self.turn();
        // Writes that both only counted have just been reported.
        let counters = self.probe.counters();
        if counters.suppressed > 0 {
            let suppressed = self.probe.suppressed_writes().unwrap_or_default();
            self.suppressed = Seen::all(counters, BTreeMap::new(), suppressed).suppressed();
        }
        tracing::info!("the new programs have taken over");
    }
}
