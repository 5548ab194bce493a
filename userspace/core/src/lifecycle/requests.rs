//! Requests for limits that a verdict may miss: gaps. They change nothing that is known of a life.

use std::sync::Arc;

use super::Lifecycle;
use crate::model::{Basis, ContainerId, Event, Gap, GapCause, KernelTime, Kind, Output, Subject};

/// What is lost, as gaps name it.
const REQUEST: &str = "cri_request";

impl Lifecycle {
    /// Requests for these containers' limits are not remembered any more.
    pub fn forgot_requests(&mut self, at: KernelTime, containers: &[ContainerId]) {
        for container in containers {
            let subject = self.subject_of(container);
            self.overflow.note(REQUEST, subject, at);
        }
    }

    /// So many requests between two times were not reported; for that container's limits, if it is known whose they were.
    pub(super) fn missed_requests(
        &self,
        at: KernelTime,
        container: Option<&ContainerId>,
        (from, to): (KernelTime, KernelTime),
        count: u64,
        output: &mut Output,
    ) {
        let gap = Gap {
            cause: GapCause::CriRequestsMissed,
            lost: [(REQUEST.to_owned(), count)].into(),
            capabilities: Vec::new(),
            from,
            to,
            path: None,
        };
        let subject = container.and_then(|container| self.subject_of(container));
        output.events.push(Event { at, basis: Basis::Daemon, subject, kind: Kind::Gap(gap) });
    }

    fn subject_of(&self, container: &ContainerId) -> Option<Arc<Subject>> {
        self.cgroups.subject(self.cgroups.by_container(container)?).cloned()
    }
}
