//! How an earlier daemon's work goes on: what was not recorded meanwhile is reported first, then requests without an
//! answer are repeated.
//!
//! ```text
//!  the same maps ──▶ the outage, as a gap ──▶ the ring's records ──▶ `agentRestarted`
//!  others        ──▶ the first scan ──▶ the outage until then ──▶ the scan's corrections ──▶ `agentRestarted`
//! ```
//!
//! Decides when an outage is reported. Never reads the earlier daemon's ledger.

use std::collections::BTreeMap;

use kwitness_core::model::{GapCause, KernelTime, Loss, Observation, Scan, ScanReason, VerdictScope};

use super::asked::Asked;
use super::{Engine, Probe, Read};
use crate::clock::Clock;

/// How an earlier daemon's work goes on.
#[derive(Clone, Debug)]
pub(crate) struct Resumes {
    /// What was not recorded meanwhile, by capability; everything, if the programs ended with that daemon.
    pub(crate) unrecorded: Vec<&'static str>,
    /// Whether the maps are that daemon's, the counters with them.
    pub(crate) same_maps: bool,
}

/// New programs that track no cgroup yet: a container that comes and goes before the first scan, they do not record.
pub(super) struct Untracked {
    /// Since when nothing is recorded that an earlier daemon did, and by which capabilities.
    outage: Option<(KernelTime, Vec<&'static str>)>,
}

impl<P: Probe> Engine<P> {
    /// Goes on with what an earlier daemon had begun.
    pub(super) fn resume(&mut self) {
        let Some(Resumes { unrecorded, same_maps }) = self.resumes.take() else {
            self.untracked = Some(Untracked { outage: None });
            self.scans.want(ScanReason::Initial);
            return;
        };
        let clock = Clock::read();
        let from = self.outage.unwrap_or_else(|| self.losses.looked());
        let is_tracked = same_maps || self.probe.overlap().is_some();
        if is_tracked {
            self.report_outage(from, clock.now(), unrecorded);
            self.probe.may_be_adopted();
        } else {
            self.untracked = Some(Untracked { outage: Some((from, unrecorded)) });
        }
        self.output.actions.extend(self.asked.actions());
        self.asked = Asked::default();
        self.publish(clock);
        self.scans.want(ScanReason::Repair);
        self.verdicts.push(VerdictScope::All);
        if is_tracked {
            self.wait_for_records(Read::Restarted { from });
        }
    }

    fn report_outage(&mut self, from: KernelTime, to: KernelTime, unrecorded: Vec<&'static str>) {
        if unrecorded.is_empty() {
            return;
        }
        self.observe(Observation::Lost(Loss {
            from,
            to,
            cause: GapCause::AgentDown,
            lost: BTreeMap::new(),
            by_container: BTreeMap::new(),
            capabilities: unrecorded.into_iter().map(str::to_owned).collect(),
        }));
    }

    /// Observes a scan; the first one ends what new programs did not track.
    pub(super) fn scanned(&mut self, scan: Scan) {
        let Some(Untracked { outage }) = self.untracked.take() else {
            self.observe(Observation::Scan(scan));
            return;
        };
        let from = outage.map(|(from, unrecorded)| {
            self.report_outage(from, scan.ended, unrecorded);
            from
        });
        self.observe(Observation::Scan(scan));
        // Not earlier: a daemon that adopts them relies on what they track.
        self.probe.may_be_adopted();
        if let Some(from) = from {
            self.restarted(from);
        }
    }

    pub(super) fn restarted(&mut self, from: KernelTime) {
        let (to, records) = (Clock::read().now(), self.records);
        tracing::info!(records, "resumed from the ledger of the previous daemon");
        self.observe(Observation::AgentRestarted { from, to, records });
    }
}
