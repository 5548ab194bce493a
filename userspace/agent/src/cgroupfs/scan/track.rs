//! The tracked set, as a walk adds to it.

use std::io;

use kwitness_core::model::CgroupId;

use super::Ancestry;
use crate::probe::{Listed, TrackedCgroup, TrackedLife, Tracker};

/// Where the walk adds the cgroups that are to be tracked.
pub trait Track {
    /// Adds a cgroup, which lies where that says; whether it was not there before.
    fn track(&self, id: CgroupId, ancestry: Ancestry) -> io::Result<bool>;
    /// Whether a cgroup is there.
    fn is_tracked(&self, id: CgroupId) -> bool;
    /// Takes out one that was added and is gone.
    fn untrack(&self, id: CgroupId) -> io::Result<()>;
    /// Adds one that is above a tracked root: its limits hold below.
    fn track_above(&self, id: CgroupId) -> io::Result<()>;
    /// What is there already, about `most` of each at most: it need not be added. Nothing, if that is not known.
    fn listed(&self, most: usize) -> Listed;
}

impl Track for Tracker {
    fn track(&self, id: CgroupId, Ancestry { in_pods, within }: Ancestry) -> io::Result<bool> {
        let container = within.container().map(|container| container.0);
        // Whether it has been started, the core infers from its processes: nothing rests on the kernel side's mark.
        Tracker::track(self, id.0, TrackedCgroup { life: TrackedLife::Unstarted, in_pods, container })
    }

    fn is_tracked(&self, id: CgroupId) -> bool {
        Tracker::is_tracked(self, id.0)
    }

    fn untrack(&self, id: CgroupId) -> io::Result<()> {
        Tracker::untrack(self, id.0)
    }

    fn track_above(&self, id: CgroupId) -> io::Result<()> {
        Tracker::track_above(self, id.0)
    }

    fn listed(&self, most: usize) -> Listed {
        Tracker::listed(self, most)
    }
}

/// Adds what is not there already: a call into the kernel for each cgroup that it tracks by itself would cost records of others,
/// see [`Tracker::listed`].
pub(super) struct Missing<'a, T> {
    track: &'a T,
    listed: Listed,
}

impl<'a, T: Track> Missing<'a, T> {
    /// With what is listed of about `most` of each.
    pub(super) fn of(track: &'a T, most: usize) -> Self {
        Self { track, listed: track.listed(most) }
    }
}

impl<T: Track> Track for Missing<'_, T> {
    fn track(&self, id: CgroupId, ancestry: Ancestry) -> io::Result<bool> {
        if self.listed.tracked.contains(&id.0) { Ok(false) } else { self.track.track(id, ancestry) }
    }

    fn is_tracked(&self, id: CgroupId) -> bool {
        self.listed.tracked.contains(&id.0) || self.track.is_tracked(id)
    }

    fn untrack(&self, id: CgroupId) -> io::Result<()> {
        self.track.untrack(id)
    }

    fn track_above(&self, id: CgroupId) -> io::Result<()> {
        if self.listed.above.contains(&id.0) { Ok(()) } else { self.track.track_above(id) }
    }

    fn listed(&self, _: usize) -> Listed {
        self.listed.clone()
    }
}

/// For a walk that only looks.
pub(super) struct TrackNothing;

impl Track for TrackNothing {
    fn track(&self, _: CgroupId, _: Ancestry) -> io::Result<bool> {
        Ok(false)
    }

    fn is_tracked(&self, _: CgroupId) -> bool {
        false
    }

    fn untrack(&self, _: CgroupId) -> io::Result<()> {
        Ok(())
    }

    fn track_above(&self, _: CgroupId) -> io::Result<()> {
        Ok(())
    }

    fn listed(&self, _: usize) -> Listed {
        Listed::default()
    }
}
