//! All pods: whose a container is, what to fetch from the runtime next, and when.
//!
//! ```text
//!  hint ─▶ known? ── yes ─▶ its pod asks (see `pod`)
//!            │ no
//!            ▼
//!         unknown ── find it, or list all when there are many ──▶ its pod, with the hint
//!            └── 30 s without an answer, or 2 s after the first list if it has ended by then: given up, counted
//!
//!  anything happened ─▶ list all after 0.5 s, 1 s, 2 s … and every 10 s
//! ```
//!
//! There is one list at a time and one question a pod; the worker bounds how many in all. So a hundred containers in a crash loop
//! cost no more calls at once than one, only more of them. Pure: time and answers come from outside.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kwitness_core::model::ContainerId;

use super::entity::{Kind, Progress, Shown};
use super::pod::{Origin, Plan, Pod, Reading};
use kwitness_cri::events::ContainerEventResponse;

/// Between two lists: after something happened, and at most. The first says how late a container that was made and not started, or
/// removed after its end, is reported; the second bounds what a quiet node costs.
const LIST_FIRST: Duration = Duration::from_millis(500);
const LIST_MAX: Duration = Duration::from_secs(10);
/// Between two tries to find a container that the runtime does not show yet: at first, and at most.
const FIND_FIRST: Duration = Duration::from_millis(4);
const FIND_MAX: Duration = Duration::from_millis(250);
/// How long a container is looked for. containerd shows a sandbox once it runs.
const FIND_FOR: Duration = Duration::from_secs(30);
/// The same after the first list, if it has ended by then: most of those, the runtime had removed before; but one whose whole life the
/// kernel has just shown, a runtime may list only now.
const FIND_ENDED_FOR: Duration = Duration::from_secs(2);
/// Containers looked for at most. With more, the oldest hints are as good as lost: lists find what they were about.
const UNKNOWN_MAX: usize = 4096;
/// With so many to find, one list is cheaper.
const FIND_ONE_BY_ONE: usize = 4;

/// A pod's name in here: its UID, or its sandbox's id where it has none.
pub(super) type PodKey = Arc<str>;

/// What the kernel showed of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hint {
    /// It came so far.
    Reached(Progress),
    /// Its cgroup was removed.
    Removed,
}

/// A query to the runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// All sandboxes and containers.
    List,
    /// Whose that one is.
    Find(ContainerId),
    /// A pod's statuses.
    Read(PodKey, Plan),
}

/// A sandbox as listed.
#[derive(Clone, Debug)]
pub(super) struct ListedSandbox {
    pub(super) id: ContainerId,
    pub(super) uid: Arc<str>,
    pub(super) progress: Option<Progress>,
}

/// A container as listed.
#[derive(Clone, Debug)]
pub(super) struct ListedContainer {
    pub(super) id: ContainerId,
    pub(super) sandbox: ContainerId,
    pub(super) progress: Option<Progress>,
}

/// What the runtime knows.
#[derive(Clone, Debug, Default)]
pub(super) struct Listing {
    pub(super) sandboxes: Vec<ListedSandbox>,
    pub(super) containers: Vec<ListedContainer>,
}

/// The answer to a [`Request::Read`].
#[derive(Clone, Debug)]
pub(super) enum Answer {
    /// None of those that were to be checked has come so far.
    NotYet,
    /// The statuses.
    Reading(Reading),
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Events sent.
    pub(super) events: u64,
    /// The runtime did not agree with the kernel in time: nothing was sent.
    pub(super) withheld: u64,
    /// The runtime never showed what the kernel showed.
    pub(super) never_found: u64,
    /// Containers that the runtime had removed before their end could be read.
    pub(super) unread_ends: u64,
    /// Events whose time is later than the wall clock, because that was set back.
    pub(super) clock_behind: u64,
}

impl Counts {
    /// Both together.
    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            events: self.events + other.events,
            withheld: self.withheld + other.withheld,
            never_found: self.never_found + other.never_found,
            unread_ends: self.unread_ends + other.unread_ends,
            clock_behind: self.clock_behind + other.clock_behind,
        }
    }
}

#[derive(Debug)]
struct Unknown {
    shown: Shown,
    /// It is looked for until then.
    until: Duration,
    due: Duration,
    pause: Duration,
    busy: bool,
}

/// The machine.
#[derive(Debug)]
pub(super) struct Machine {
    /// What happened later than that is reported, by the wall clock; what is older is known already.
    since: i64,
    listed: bool,
    pods: HashMap<PodKey, Pod>,
    owner: HashMap<ContainerId, PodKey>,
    unknown: HashMap<ContainerId, Unknown>,
    list_due: Duration,
    list_pause: Duration,
    listing: bool,
    counts: Counts,
}

impl Machine {
    /// A machine that reports what happens after a time of the wall clock.
    pub(super) fn new(since: i64) -> Self {
        Self {
            since,
            listed: false,
            pods: HashMap::new(),
            owner: HashMap::new(),
            unknown: HashMap::new(),
            list_due: Duration::ZERO,
            list_pause: LIST_FIRST,
            listing: false,
            counts: Counts::default(),
        }
    }

    /// What was counted.
    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// The kernel showed something.
    pub(super) fn hint(&mut self, now: Duration, id: &ContainerId, hint: Hint) {
        self.list_soon(now);
        if let Some(pod) = self.owner.get(id).and_then(|key| self.pods.get_mut(key)) {
            match hint {
                Hint::Reached(progress) => pod.hint(now, id, progress),
                Hint::Removed => pod.hurry(now, id),
            }
            return;
        }
        let Hint::Reached(reached) = hint else { return };
        if let Some(unknown) = self.unknown.get_mut(id) {
            unknown.shown.add(reached);
            (unknown.due, unknown.pause) = (now, FIND_FIRST);
        } else if self.unknown.len() < UNKNOWN_MAX {
            let mut shown = Shown::default();
            shown.add(reached);
            let unknown = Unknown { shown, until: now + FIND_FOR, due: now, pause: FIND_FIRST, busy: false };
            self.unknown.insert(id.clone(), unknown);
        } else {
            self.counts.never_found += 1;
        }
    }

    /// Hints may have been lost.
    pub(super) fn gap(&mut self, now: Duration) {
        self.list_due = now;
        self.pods.values_mut().for_each(|pod| pod.gap(now));
    }

    /// Hints of one container may have been lost. Others are left in peace: a container that loses many would have all of them read
    /// again and again.
    pub(super) fn gap_of(&mut self, now: Duration, id: &ContainerId) {
        match self.owner.get(id).and_then(|key| self.pods.get_mut(key)) {
            Some(pod) => pod.gap(now),
            None => self.list_soon(now),
        }
    }

    /// The runtime can be called again; earlier calls will get no answer.
    pub(super) fn connected(&mut self, now: Duration) {
        self.listing = false;
        self.list_due = now;
        for unknown in self.unknown.values_mut() {
            (unknown.busy, unknown.until, unknown.due) = (false, now + FIND_FOR, now);
        }
        self.pods.values_mut().for_each(|pod| pod.start_over(now));
    }

    /// A request got no answer.
    pub(super) fn failed(&mut self, now: Duration, request: &Request) {
        match request {
            Request::List => {
                (self.listing, self.list_due) = (false, now + self.list_pause);
                self.list_pause = LIST_MAX.min(self.list_pause * 2);
            }
            Request::Find(id) => {
                if let Some(unknown) = self.unknown.get_mut(id) {
                    unknown.retry(now);
                }
            }
            Request::Read(key, _) => {
                if let Some(pod) = self.pods.get_mut(key) {
                    pod.failed(now);
                }
            }
        }
    }

    fn list_soon(&mut self, now: Duration) {
        self.list_pause = LIST_FIRST;
        self.list_due = self.list_due.min(now + LIST_FIRST);
    }

    /// When [`Self::poll`] will have something; none: only an answer or a hint can change that.
    pub(super) fn due(&self) -> Option<Duration> {
        let list = (!self.listing).then_some(self.list_due);
        let unknown = self.unknown.values().filter(|unknown| !unknown.busy).map(|unknown| unknown.due);
        let pods = self.pods.values().filter_map(Pod::due);
        list.into_iter().chain(unknown).chain(pods).min()
    }

    /// What to ask now. Each request is to be answered before it comes again.
    pub(super) fn poll(&mut self, now: Duration) -> Option<Request> {
        let pod = self.pods.iter_mut().filter_map(|(key, pod)| Some((pod.due()?, key, pod)));
        if self.listed
            && let Some((due, key, pod)) = pod.min_by_key(|(due, ..)| *due)
            && due <= now
        {
            return Some(Request::Read(key.clone(), pod.plan()));
        }
        if self.listing {
            return None;
        }
        let due = |unknown: &Unknown| !unknown.busy && unknown.due <= now;
        let unknown = self.unknown.values().filter(|unknown| due(unknown)).count();
        if self.list_due <= now || unknown > FIND_ONE_BY_ONE || (unknown > 0 && !self.listed) {
            self.listing = true;
            return Some(Request::List);
        }
        let (id, unknown) = self.unknown.iter_mut().find(|(_, unknown)| due(unknown))?;
        unknown.busy = true;
        Some(Request::Find(id.clone()))
    }

    /// The answer to a [`Request::List`].
    pub(super) fn list(&mut self, now: Duration, listing: &Listing) {
        self.listing = false;
        self.list_due = now + self.list_pause;
        self.list_pause = LIST_MAX.min(self.list_pause * 2);
        let changed = self.take(now, listing);
        if changed && self.listed {
            self.list_soon(now);
        }
        if !std::mem::replace(&mut self.listed, true) {
            for unknown in self.unknown.values_mut().filter(|unknown| unknown.has_ended()) {
                unknown.until = now + FIND_ENDED_FOR;
            }
        }
        // What is known and not listed may be gone.
        let mut listed: std::collections::HashSet<&ContainerId> =
            listing.sandboxes.iter().map(|sandbox| &sandbox.id).collect();
        listed.extend(listing.containers.iter().map(|container| &container.id));
        for pod in self.pods.values_mut() {
            if !pod.ids().all(|id| listed.contains(id)) {
                pod.read_whole(now);
            }
        }
        for (id, unknown) in &mut self.unknown {
            if !listed.contains(id) {
                unknown.retry(now);
            }
        }
        self.give_up(now);
    }

    /// The answer to a [`Request::Find`].
    pub(super) fn found(&mut self, now: Duration, id: &ContainerId, listing: &Listing) {
        self.take(now, listing);
        if let Some(unknown) = self.unknown.get_mut(id) {
            unknown.retry(now);
        }
        self.give_up(now);
    }

    fn give_up(&mut self, now: Duration) {
        let counts = &mut self.counts;
        self.unknown.retain(|_, unknown| {
            let is_kept = now < unknown.until;
            match unknown.has_ended() {
                true => counts.unread_ends += u64::from(!is_kept),
                false => counts.never_found += u64::from(!is_kept),
            }
            is_kept
        });
    }

    /// Puts what was listed where it belongs; gives whether anything in it is news.
    fn take(&mut self, now: Duration, listing: &Listing) -> bool {
        let mut changed = false;
        for sandbox in &listing.sandboxes {
            let key = if sandbox.uid.is_empty() { sandbox.id.0.clone() } else { sandbox.uid.clone() };
            changed |= self.place(now, Kind::Sandbox, &sandbox.id, sandbox.progress, Some(key));
        }
        for container in &listing.containers {
            // A container whose sandbox was not listed is listed again with it, or gone with it.
            let key = self.owner.get(&container.sandbox).cloned();
            changed |= self.place(now, Kind::Container, &container.id, container.progress, key);
        }
        changed
    }

    fn place(
        &mut self,
        now: Duration,
        kind: Kind,
        id: &ContainerId,
        listed: Option<Progress>,
        key: Option<PodKey>,
    ) -> bool {
        if let Some(pod) = self.owner.get(id).and_then(|key| self.pods.get_mut(key)) {
            let differs = pod.differs(id, listed);
            // While its end is expected, it is polled anyway.
            if differs && pod.due().is_none() {
                pod.read_whole(now);
            }
            return differs;
        }
        let Some(key) = key else { return false };
        let shown = self.unknown.remove(id).map(|unknown| unknown.shown).unwrap_or_default();
        let origin = if self.listed { Origin::New } else { Origin::FirstList(listed) };
        self.owner.insert(id.clone(), key.clone());
        self.pods.entry(key).or_default().add(now, kind, id, origin, shown);
        true
    }

    /// The answer to a [`Request::Read`]; gives the events that it makes.
    pub(super) fn answer(
        &mut self,
        now: Duration,
        key: &PodKey,
        answer: Answer,
    ) -> Vec<ContainerEventResponse> {
        let Some(pod) = self.pods.get_mut(key) else { return Vec::new() };
        let reading = match answer {
            Answer::NotYet => {
                self.counts.withheld += pod.not_yet(now);
                return Vec::new();
            }
            Answer::Reading(reading) => reading,
        };
        let (outcome, withheld) = pod.read(now, reading, self.since);
        let empty = pod.is_empty();
        let counts = &mut self.counts;
        counts.withheld += withheld;
        counts.events += outcome.events.len() as u64;
        counts.unread_ends += outcome.unread_ends;
        counts.clock_behind += if outcome.clock_behind { outcome.events.len() as u64 } else { 0 };
        for id in &outcome.gone {
            self.owner.remove(id);
        }
        for id in outcome.found {
            if let Some(unknown) = self.unknown.remove(&id) {
                pod.hint(now, &id, unknown.shown.reached);
            }
            self.owner.insert(id, key.clone());
        }
        if empty {
            self.pods.remove(key);
        }
        if !outcome.events.is_empty() {
            self.list_soon(now);
        }
        outcome.events
    }
}

impl Unknown {
    fn has_ended(&self) -> bool {
        self.shown.reached == Progress::Stopped
    }

    fn retry(&mut self, now: Duration) {
        self.busy = false;
        self.due = now + self.pause;
        self.pause = FIND_MAX.min(self.pause * 2);
    }
}
