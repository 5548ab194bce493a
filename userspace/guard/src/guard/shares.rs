//! From what share of its limit on each container is held, as its threads and its `memory.high` are now: looked at when it is armed,
//! and again now and then, so many at a time.
//!
//! The rule is [`crate::share`]'s.

use std::io;

use super::{Guard, Guarded};
use crate::cgroup::Cgroup;
use crate::policy::Bytes;
use crate::program;
use crate::share::{Sizes, share};

/// Containers that are looked at again at a time.
const LOOKS: usize = 64;

impl Guarded {
    /// Why nothing of it is held at present, if so.
    pub(super) fn not_held(&self) -> Option<&'static str> {
        let by_share = || self.share.err().map(|reason| reason.name());
        self.suspended.as_ref().map(|suspended| suspended.reason).or_else(by_share)
    }
}

impl Guard {
    /// Looks at some containers again.
    pub(super) fn look_at_shares(&mut self) -> anyhow::Result<()> {
        let mut ids: Vec<u64> = self.guarded.keys().copied().collect();
        ids.sort_unstable();
        let later = ids.partition_point(|id| *id <= self.last_share);
        ids.rotate_left(later);
        for cgroup_id in ids.into_iter().take(LOOKS) {
            self.last_share = cgroup_id;
            if self.look_at_share(cgroup_id, None) {
                self.write_armed(cgroup_id)?;
            }
        }
        Ok(())
    }

    /// Looks at one, which is to get that limit; none: it has the limit of now. Whether anything has changed. What cannot be read, as of
    /// a container that ends, is as it was.
    pub(super) fn look_at_share(&mut self, cgroup_id: u64, to: Option<Bytes>) -> bool {
        let is_braked = self.brakes.has(cgroup_id);
        let Some(guarded) = self.guarded.get_mut(&cgroup_id) else { return false };
        let container = &guarded.container;
        let found = Cgroup::find(&container.cgroup_path, container.cgroup_id).ok().flatten();
        let Some(mut sizes) = found.and_then(|cgroup| sizes(&cgroup, is_braked).ok()) else { return false };
        // A lower limit that has been requested may come at any moment: it is armed for that one.
        let pending = guarded.loan.and_then(|loan| loan.pending);
        let lower = pending.filter(|pending| sizes.limit.is_none_or(|limit| *pending < limit));
        sizes.limit = to.or(lower).or(sizes.limit);
        let share = share(guarded.rule.threshold, sizes);
        let is_changed = share != guarded.share;
        if is_changed {
            let container = &guarded.container.id;
            match (guarded.share, share) {
                // With many threads, that changes all the time.
                (Ok(_), Ok(per_mille)) => {
                    tracing::debug!(container, per_mille, "held from another share of its limit on");
                }
                (Err(_), Ok(per_mille)) => {
                    tracing::info!(container, per_mille, "held again, from this share of its limit on");
                }
                (_, Err(reason)) => {
                    tracing::warn!(container, reason = reason.name(), "nothing of it is held: {reason}")
                }
            }
        }
        guarded.share = share;
        is_changed
    }
}

/// What the share of a container with that cgroup depends on; a brake there is the guard's own.
pub(crate) fn sizes(cgroup: &Cgroup, is_braked: bool) -> io::Result<Sizes> {
    let threads = cgroup.threads()?;
    Ok(Sizes {
        limit: cgroup.limit()?,
        high: if is_braked { None } else { cgroup.high()? },
        processes: cgroup.processes(threads),
        threads,
        cpus: program::cpus(),
        page: procfs::page_size(),
    })
}
