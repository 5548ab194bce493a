//! The watchdog at work, and what others than the guard have continued: heard from the one, read from the file that is left by a
//! dead guard's.
//!
//! Decides nothing about a hold.

use std::path::Path;

use tokio::time::Instant;

use super::Guard;
use crate::CONTINUED_FILE;
use crate::continued;

impl Guard {
    /// Takes in which holds the watchdog ends.
    pub(super) fn hear(&mut self) {
        let endings = self.watchdog.hear();
        self.ended_by_watchdog.extend(endings.into_iter().map(|ending| (ending.id(), ending)));
    }

    /// Whether the watchdog looks on.
    pub(super) fn is_watched(&mut self) -> bool {
        self.hear();
        self.watchdog.check(Instant::now())
    }

    /// Reports holds that ended without a guard, of containers that are known by now.
    pub(super) fn report_left(&mut self) {
        if self.left.is_empty() {
            return;
        }
        let left = std::mem::take(&mut self.left);
        let count = left.len();
        let (known, left): (Vec<_>, Vec<_>) =
            left.into_iter().partition(|of| self.id_of(of.cgroup_id).is_some());
        for of in &known {
            if let Some(container) = self.id_of(of.cgroup_id) {
                self.reporter.push_at(of.at, container, of.report());
            }
        }
        self.left = left;
        if self.left.len() < count {
            continued::save(Path::new(CONTINUED_FILE), &self.left);
        }
    }

    /// The id of a container that runs, or is or was armed.
    fn id_of(&self, cgroup_id: u64) -> Option<&str> {
        let running = || self.running.containers.iter().find(|container| container.cgroup_id == cgroup_id);
        self.container_id(cgroup_id).or_else(|| Some(&running()?.id))
    }
}
