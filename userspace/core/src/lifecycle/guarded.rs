//! What the guard did to a container: an event of it. The guard's reports change nothing that is known.

use super::Lifecycle;
use crate::model::{Basis, Gap, GapCause, GuardReport, KernelTime, Kind, Output};

impl Lifecycle {
    /// The report's event, if its container is known, also one that was removed a while ago.
    pub(super) fn guarded(&self, report: GuardReport, output: &mut Output) {
        let GuardReport { at, container, act } = report;
        let cgroup = self.cgroups.by_container(&container);
        if let Some(subject) = cgroup.and_then(|cgroup| self.cgroups.subject(cgroup)) {
            output.emit(at, Basis::Guard, subject, Kind::Guard(Box::new(act)));
        }
    }
}

/// No scan can find what the guard did.
pub(super) fn reports_dropped(
    at: KernelTime,
    from: KernelTime,
    to: KernelTime,
    count: u64,
    output: &mut Output,
) {
    let gap = Gap {
        cause: GapCause::GuardReportsDropped,
        lost: [("guard_report".to_owned(), count)].into(),
        capabilities: Vec::new(),
        from,
        to,
        path: None,
    };
    output.emit_own(at, Kind::Gap(gap));
}
