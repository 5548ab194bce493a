//! The containers that the runtime runs in cgroups outside of all roots: nothing of them is seen, so that has to be said.
//!
//! ```text
//!  running, and unknown at two looks one after the other ──▶ a walk looks for their cgroups ──▶ found outside: a problem
//!                                                            (again only for others, and not soon)
//! ```
//!
//! A container that the runtime lists is known to the node soon after: its cgroup is made before. One that stays unknown may have no
//! cgroup of its own (a virtual machine's), or one that found no room, which others report; a problem is made of those only whose
//! cgroup was found in no root. A walk that fails is a problem, too, and is made again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use kwitness_core::model::{ContainerId, Problem};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::cgroupfs::{CgroupFs, Roots, outside_roots};

/// Between two walks, at least.
const PAUSE_MIN: Duration = Duration::from_secs(10);
/// The share of the time that walking may take: one part in so many and one.
const PAUSE_FACTOR: u32 = 100;

type Found = BTreeMap<ContainerId, Arc<str>>;

/// Looks for the cgroups of these containers; an error says why it cannot.
type Walk = Arc<dyn Fn(&BTreeSet<ContainerId>) -> Result<Found, String> + Send + Sync>;

pub(crate) struct Outside {
    walk: Walk,
    walking: Option<JoinHandle<Walked>>,
    /// No walk begins before.
    earliest: Instant,
    /// What the runtime ran at the last look.
    running: Arc<BTreeSet<ContainerId>>,
    /// Of these, those that were unknown.
    unknown: BTreeSet<ContainerId>,
    /// Of these, what a walk has looked for.
    looked_for: BTreeSet<ContainerId>,
    /// Of these, what lies outside.
    found: Found,
    /// Why the last walk failed, if it did.
    failed: Option<Arc<str>>,
}

struct Walked {
    looked_for: BTreeSet<ContainerId>,
    found: Result<Found, String>,
    took: Duration,
}

impl Outside {
    /// Looks in that hierarchy.
    pub(crate) fn new(cgroups: CgroupFs, roots: Roots) -> Self {
        Self::by(move |sought| outside_roots(&cgroups, &roots, sought).map_err(|error| error.to_string()))
    }

    /// Looks by that.
    pub(super) fn by(
        walk: impl Fn(&BTreeSet<ContainerId>) -> Result<Found, String> + Send + Sync + 'static,
    ) -> Self {
        Self {
            walk: Arc::new(walk),
            walking: None,
            earliest: Instant::now(),
            running: Arc::default(),
            unknown: BTreeSet::new(),
            looked_for: BTreeSet::new(),
            found: Found::new(),
            failed: None,
        }
    }

    /// Compares what the runtime runs with what is known. A list is gone through once: after that, only what was unknown is looked at.
    pub(super) fn look(
        &mut self,
        running: &Arc<BTreeSet<ContainerId>>,
        is_known: impl Fn(&ContainerId) -> bool,
    ) {
        let is_new = !Arc::ptr_eq(&self.running, running);
        let open = if is_new { &**running } else { &self.unknown };
        let unknown: BTreeSet<_> = open.iter().filter(|id| !is_known(id)).cloned().collect();
        self.running = Arc::clone(running);
        let before = std::mem::replace(&mut self.unknown, unknown);
        if let Some(walked) = self.walking.as_mut().and_then(|walking| walking.now_or_never()) {
            self.walking = None;
            self.walked(walked.unwrap_or_else(|panic| Walked {
                looked_for: BTreeSet::new(),
                found: Err(panic.to_string()),
                took: Duration::ZERO,
            }));
        }
        self.looked_for.retain(|id| self.unknown.contains(id));
        self.found.retain(|id, _| self.unknown.contains(id));
        let lasting: BTreeSet<_> = self.unknown.intersection(&before).cloned().collect();
        if self.walking.is_none() && Instant::now() >= self.earliest && !lasting.is_subset(&self.looked_for) {
            self.walk_for(lasting);
        }
    }

    fn walk_for(&mut self, looked_for: BTreeSet<ContainerId>) {
        let walk = Arc::clone(&self.walk);
        self.walking = Some(tokio::task::spawn_blocking(move || {
            let began = Instant::now();
            let found = walk(&looked_for);
            Walked { looked_for, found, took: began.elapsed() }
        }));
    }

    fn walked(&mut self, Walked { looked_for, found, took }: Walked) {
        self.earliest = Instant::now() + PAUSE_MIN.max(took * PAUSE_FACTOR);
        match found {
            Ok(found) => {
                self.looked_for = looked_for;
                self.found = found;
                self.failed = None;
            }
            // What was found before may still be true, and nothing has been looked for.
            Err(error) => self.failed = Some(error.into()),
        }
    }

    /// What lies outside of all roots, if anything does, and whether that is not known.
    pub(super) fn problems(&self) -> impl Iterator<Item = Problem> {
        let failed = self.failed.clone().map(|error| Problem::RootsUnchecked { error });
        Problem::outside_roots(&self.found).into_iter().chain(failed)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn set(ids: &[&str]) -> BTreeSet<ContainerId> {
        ids.iter().map(|id| ContainerId((*id).into())).collect()
    }

    /// A list of the runtime's.
    fn ids(ids: &[&str]) -> Arc<BTreeSet<ContainerId>> {
        Arc::new(set(ids))
    }

    /// Looks until the walk that is under way has ended.
    async fn look_until_walked(outside: &mut Outside, running: &Arc<BTreeSet<ContainerId>>) {
        while outside.walking.is_some() {
            tokio::task::yield_now().await;
            outside.look(running, |_| false);
        }
    }

    #[tokio::test]
    async fn what_stays_unknown_is_looked_for_once_and_recovers() {
        let walks = Arc::new(Mutex::new(Vec::new()));
        let made = walks.clone();
        let mut outside = Outside::by(move |sought| {
            made.lock().unwrap().push(sought.clone());
            let is_outside = |id: &&ContainerId| id.0.starts_with("out");
            Ok(sought
                .iter()
                .filter(is_outside)
                .map(|id| (id.clone(), Arc::from(format!("/x/{id}"))))
                .collect())
        });
        let running = ids(&["out1", "out2", "vm", "known", "new"]);
        outside.look(&running, |id| &*id.0 == "known");
        assert!(outside.walking.is_none(), "its record may be on its way");
        outside.look(&running, |id| matches!(&*id.0, "known" | "new"));
        look_until_walked(&mut outside, &ids(&["out1", "out2", "vm"])).await;
        assert_eq!(*walks.lock().unwrap(), [set(&["out1", "out2", "vm"])]);
        let container = ContainerId("out1".into());
        let problem = Problem::OutsideRoots { count: 2, container, path: "/x/out1".into() };
        assert_eq!(outside.problems().collect::<Vec<_>>(), [problem]);

        // The same ones: nothing to look for. Another one: not before its time.
        outside.earliest = Instant::now();
        outside.look(&ids(&["out1", "out2", "vm"]), |_| false);
        assert!(outside.walking.is_none());
        outside.earliest = Instant::now() + Duration::from_secs(3600);
        for _ in 0..2 {
            outside.look(&ids(&["out2", "out3"]), |_| false);
        }
        assert!(outside.walking.is_none());
        let problems: Vec<_> = outside.problems().collect();
        assert!(matches!(problems[..], [Problem::OutsideRoots { count: 1, .. }]));

        outside.look(&ids(&["out2", "vm"]), |id| &*id.0 == "out2");
        assert_eq!(outside.problems().count(), 0, "it is tracked now");
    }

    #[test]
    fn a_list_is_gone_through_once() {
        let mut outside = Outside::by(|_| Ok(Found::new()));
        let looked_at = Mutex::new(Vec::new());
        let mut look = |running: &Arc<BTreeSet<ContainerId>>, known: &str| {
            outside.look(running, |id| {
                looked_at.lock().unwrap().push(id.clone());
                &*id.0 == known
            });
            std::mem::take(&mut *looked_at.lock().unwrap()).into_iter().collect::<BTreeSet<_>>()
        };
        let running = ids(&["known", "new"]);
        assert_eq!(look(&running, "known"), set(&["known", "new"]));
        assert_eq!(look(&running, "new"), set(&["new"]));
        assert_eq!(look(&running, "known"), set(&[]), "all of them are known");
        assert_eq!(look(&ids(&["known", "new"]), "known"), set(&["known", "new"]), "another list");
    }

    #[tokio::test]
    async fn a_walk_that_fails_is_a_problem_until_another_succeeds() {
        let walks = Mutex::new(0);
        let mut outside = Outside::by(move |_| {
            *walks.lock().unwrap() += 1;
            let walk = *walks.lock().unwrap();
            match walk {
                1 => panic!("a fault of ours"),
                2 => Err("cannot read /".to_owned()),
                _ => Ok(Found::new()),
            }
        });
        let running = ids(&["vm"]);
        outside.look(&running, |_| false);
        for expected in ["panic", "cannot read /", ""] {
            outside.earliest = Instant::now();
            outside.look(&running, |_| false);
            assert!(outside.walking.is_some(), "it has not been looked for");
            look_until_walked(&mut outside, &running).await;
            match &outside.problems().collect::<Vec<_>>()[..] {
                [Problem::RootsUnchecked { error }] if !expected.is_empty() => {
                    assert!(error.contains(expected), "{error}");
                }
                problems => assert!(problems.is_empty() && expected.is_empty(), "{problems:?}"),
            }
        }
    }
}
