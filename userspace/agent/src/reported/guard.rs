//! What the guard says that it sets: of each container the limit of memory, from the moment before it does.
//!
//! ```text
//!             announced            in force
//!   nothing ────────────▶ sets ─────────────▶ has
//!      ▲                  │  ▲                 │
//!      └── refused ───────┘  └─── announced ───┘     refused: what it had before counts again
//! ```
//!
//! And to what it has lowered `memory.high` for the time of a hold.
//!
//! Owns that memory, bounded: it is forgotten when its container is gone, and of too many the oldest goes first, which is counted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kwitness_core::model::{
    Bound, ContainerId, DesiredLimit, GuardAct, GuardReport, KernelTime, LevelRole, Resource, Source,
    Unobserved, Wanted,
};

use serde::{Deserialize, Serialize};

use super::desired::Desired;

/// Containers that are remembered: as many as a guard arms.
pub(super) const KNOWN_MAX: usize = 1024;

/// For how long `memory.high` may be lowered, in nanoseconds: the longest hold, and a second, and a second more. A guard that has died
/// does not say that it is restored.
const HIGH_MAX: u64 = 12_000_000_000;

/// The memory. Clones share it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(from = "Written", into = "Known")]
pub struct GuardLimits(Arc<Mutex<Known>>);

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    limits: BTreeMap<ContainerId, Limit>,
    /// When limits were set that had to be forgotten.
    forgotten: Option<Unobserved>,
    #[serde(skip)]
    evicted: u64,
}

/// What was written down: an earlier release did so with the limits alone.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Known(Known),
    Limits(BTreeMap<ContainerId, Limit>),
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Limit {
    sets: Option<(KernelTime, u64)>,
    has: Option<(KernelTime, u64)>,
    /// What `memory.high` is at least.
    high: Option<(KernelTime, u64)>,
}

impl Limit {
    fn last(&self) -> Option<(KernelTime, u64)> {
        self.sets.or(self.has)
    }

    fn at(&self) -> Option<KernelTime> {
        self.last().or(self.high).map(|(at, _)| at)
    }

    fn first_at(&self) -> Option<KernelTime> {
        [self.sets, self.has, self.high].into_iter().flatten().map(|(at, _)| at).min()
    }
}

impl From<Written> for GuardLimits {
    fn from(written: Written) -> Self {
        Self(Arc::new(Mutex::new(match written {
            Written::Known(known) => known,
            Written::Limits(limits) => Known { limits, ..Known::default() },
        })))
    }
}

impl From<GuardLimits> for Known {
    fn from(limits: GuardLimits) -> Self {
        limits.lock().clone()
    }
}

impl GuardLimits {
    pub(super) fn copied(&self) -> Self {
        Self(Arc::new(Mutex::new(self.lock().clone())))
    }

    /// It is about to set that.
    pub(super) fn announced(&self, container: ContainerId, at: KernelTime, bytes: u64) {
        self.lock().entry(container, at).sets = Some((at, bytes));
    }

    /// It lowers `memory.high` to that, or has restored it.
    pub(super) fn braked(&self, container: ContainerId, at: KernelTime, bytes: Option<u64>) {
        let mut known = self.lock();
        match bytes {
            Some(bytes) => known.entry(container, at).high = Some((at, bytes)),
            None => known.change(&container, |limit| limit.high = None),
        }
    }

    /// What came of that. What it does with the limit of a pod is no container's.
    pub(super) fn observe(&self, report: &GuardReport) {
        let mut known = self.lock();
        match report.act {
            GuardAct::Raised { level: LevelRole::Pod, .. }
            | GuardAct::Refused { level: LevelRole::Pod, .. }
            | GuardAct::Returned { level: LevelRole::Pod, .. } => {}
            GuardAct::Raised { to, .. } | GuardAct::Returned { to, .. } => {
                let limit = known.entry(report.container.clone(), report.at);
                *limit = Limit { sets: None, has: Some((report.at, to)), ..*limit };
            }
            GuardAct::Refused { .. } => known.change(&report.container, |limit| limit.sets = None),
            GuardAct::Held { .. } | GuardAct::Continued { .. } => {}
        }
    }

    /// Whether none is remembered.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().limits.is_empty()
    }

    /// When limits were set that may have been that container's: none is known that is.
    pub(super) fn forgotten(&self, container: &ContainerId) -> Option<Unobserved> {
        let known = self.lock();
        known.forgotten.filter(|_| !known.limits.contains_key(container))
    }

    /// What was counted.
    pub(super) fn counters(&self) -> [(&'static str, u64); 1] {
        [("guard_limits_evicted", self.lock().evicted)]
    }

    /// Forgets what has ended, given all that is there.
    pub(crate) fn keep(&self, there: &BTreeSet<&str>) {
        self.lock().limits.retain(|container, _| there.contains(&*container.0));
    }

    /// What a container should have.
    pub(crate) fn desired(&self, container: &ContainerId) -> Option<Desired> {
        let (at, bytes) = self.lock().limits.get(container)?.last()?;
        let wanted = Wanted::Memory(Bound::At(bytes));
        Some((Resource::Memory, DesiredLimit { source: Source::Guard, at, wanted }))
    }

    /// What its `memory.high` should be now: as the guard has lowered it, or restored.
    pub(crate) fn high(&self, container: &ContainerId, now: KernelTime) -> Option<Desired> {
        let (at, bytes) = self.lock().limits.get(container)?.high?;
        if now.0.saturating_sub(at.0) > HIGH_MAX {
            return None;
        }
        let wanted = Wanted::MemoryAtLeast(Bound::At(bytes));
        Some((Resource::MemoryHigh, DesiredLimit { source: Source::Guard, at, wanted }))
    }

    /// Nothing that could panic runs while it is held.
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// Changes what is remembered of a container, if anything is, and forgets what says nothing any more.
    fn change(&mut self, container: &ContainerId, by: impl FnOnce(&mut Limit)) {
        if let Some(limit) = self.limits.get_mut(container) {
            by(limit);
            if limit.at().is_none() {
                self.limits.remove(container);
            }
        }
    }

    /// What is remembered of a container, for which there is room from then on.
    fn entry(&mut self, container: ContainerId, at: KernelTime) -> &mut Limit {
        if self.limits.len() >= KNOWN_MAX && !self.limits.contains_key(&container) {
            let oldest = self.limits.iter().min_by_key(|(_, limit)| limit.at());
            let oldest = oldest.map(|(container, _)| container.clone());
            if let Some(limit) = oldest.and_then(|oldest| self.limits.remove(&oldest)) {
                self.evicted += 1;
                super::extend(&mut self.forgotten, limit.first_at().unwrap_or(at), at);
            }
        }
        self.limits.entry(container).or_default()
    }
}

#[cfg(test)]
mod tests {
    use kwitness_core::model::GuardAttempt;

    use super::*;

    fn id(name: &str) -> ContainerId {
        ContainerId(name.into())
    }

    fn report(at: u64, act: GuardAct) -> GuardReport {
        GuardReport { at: KernelTime(at), container: id("c"), act }
    }

    fn raised(to: u64) -> GuardAct {
        GuardAct::Raised { level: LevelRole::Container, from: 64, to, held: 1 }
    }

    fn refused() -> GuardAct {
        GuardAct::Refused {
            attempt: GuardAttempt::Raise,
            reason: "runtime".into(),
            detail: "away".into(),
            level: LevelRole::Container,
            limit: Some(64),
            held: Some(1),
        }
    }

    fn wanted(limits: &GuardLimits) -> Option<(u64, Wanted)> {
        limits.desired(&id("c")).map(|(_, limit)| (limit.at.0, limit.wanted))
    }

    #[test]
    fn what_is_announced_counts_until_it_is_refused() {
        let limits = GuardLimits::default();
        let bytes = |bytes| Wanted::Memory(Bound::At(bytes));
        limits.announced(id("c"), KernelTime(1), 128);
        assert_eq!(wanted(&limits), Some((1, bytes(128))));
        limits.observe(&report(2, refused()));
        assert_eq!(wanted(&limits), None);
        assert!(limits.is_empty());

        limits.announced(id("c"), KernelTime(3), 128);
        limits.observe(&report(4, raised(128)));
        limits.announced(id("c"), KernelTime(5), 192);
        assert_eq!(wanted(&limits), Some((5, bytes(192))));
        limits.observe(&report(6, refused()));
        assert_eq!(wanted(&limits), Some((4, bytes(128))), "what it has");
        let returned = GuardAct::Returned { level: LevelRole::Container, from: 128, to: 64, original: 64 };
        limits.observe(&report(7, returned));
        assert_eq!(wanted(&limits), Some((7, bytes(64))));
        let of_pod = GuardAct::Raised { level: LevelRole::Pod, from: 256, to: 512, held: 1 };
        limits.observe(&report(8, of_pod));
        assert_eq!(wanted(&limits), Some((7, bytes(64))), "its pod's is another limit");
        limits.keep(&BTreeSet::from(["c"]));
        assert!(!limits.is_empty());
        limits.keep(&BTreeSet::new());
        assert_eq!(wanted(&limits), None);
    }

    #[test]
    fn a_lowered_high_is_in_force_as_it_is_and_restored() {
        let limits = GuardLimits::default();
        let high_at = |now| limits.high(&id("c"), KernelTime(now));
        let high = || high_at(HIGH_MAX).map(|(resource, limit)| (resource, limit.at.0, limit.wanted));
        let lowered = |at| Some((Resource::MemoryHigh, at, Wanted::MemoryAtLeast(Bound::At(56))));
        limits.braked(id("c"), KernelTime(1), Some(56));
        assert_eq!((high(), wanted(&limits)), (lowered(1), None));
        assert_eq!(high_at(HIGH_MAX + 2), None, "of a guard that has died");
        limits.announced(id("c"), KernelTime(2), 128);
        limits.observe(&report(3, raised(128)));
        assert_eq!(high(), lowered(1));
        limits.braked(id("c"), KernelTime(4), None);
        assert_eq!((high(), wanted(&limits).is_some()), (None, true));
        limits.braked(id("d"), KernelTime(5), None);
        limits.keep(&BTreeSet::from(["d"]));
        assert!(limits.is_empty(), "nothing is remembered of what was never lowered");
    }

    #[test]
    fn what_is_written_down_is_read_again() {
        let limits = GuardLimits::default();
        limits.announced(id("c"), KernelTime(1), 128);
        limits.observe(&report(2, raised(128)));
        limits.braked(id("c"), KernelTime(3), Some(56));
        let again: GuardLimits = serde_json::from_str(&serde_json::to_string(&limits).unwrap()).unwrap();
        assert_eq!(wanted(&again), wanted(&limits));
        assert_eq!(again.high(&id("c"), KernelTime(3)), limits.high(&id("c"), KernelTime(3)));
    }

    #[test]
    fn of_too_many_the_oldest_is_forgotten_and_when_it_was_set_is_not() {
        let limits = GuardLimits::default();
        let none = limits.forgotten(&id("c"));
        limits.announced(id("c"), KernelTime(1), 128);
        for at in 2..=KNOWN_MAX as u64 + 1 {
            limits.announced(id(&at.to_string()), KernelTime(at), 128);
        }
        assert_eq!(wanted(&limits), None);
        assert_eq!(limits.lock().limits.len(), KNOWN_MAX);
        assert_eq!(limits.counters(), [("guard_limits_evicted", 1)]);
        let when = Some(Unobserved { from: KernelTime(1), to: KernelTime(KNOWN_MAX as u64 + 1) });
        assert_eq!((none, limits.forgotten(&id("c")), limits.forgotten(&id("2"))), (None, when, None));
        let again: GuardLimits = serde_json::from_str(&serde_json::to_string(&limits).unwrap()).unwrap();
        assert_eq!(again.forgotten(&id("c")), when);
        assert_eq!(again.lock().limits.len(), KNOWN_MAX);
    }

    /// An ID is whatever a client says.
    #[test]
    fn no_id_of_a_container_makes_what_is_written_down_unreadable() {
        for ids in [&["forgotten"][..], &["limits", "forgotten"], &["limits"], &["evicted"], &[]] {
            let limits = GuardLimits::default();
            ids.iter().for_each(|of| limits.announced(id(of), KernelTime(1), 128));
            let written = serde_json::to_string(&limits).unwrap();
            let again: GuardLimits = serde_json::from_str(&written).unwrap();
            assert!(ids.iter().all(|of| again.desired(&id(of)).is_some()), "{written}");
            let of_earlier = serde_json::to_string(&limits.lock().limits).unwrap();
            let again: GuardLimits = serde_json::from_str(&of_earlier).unwrap();
            assert_eq!(again.lock().limits.len(), ids.len(), "{of_earlier}");
        }
    }
}
