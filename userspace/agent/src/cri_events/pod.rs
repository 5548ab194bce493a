//! One pod: what was reported of its sandboxes and containers, what the runtime is expected to report soon, and the events that a reading
//! of its statuses makes.
//!
//! ```text
//!              hint beyond what was sent                     the runtime agrees
//!  at rest ───────────────────────────────▶ expecting ───────────────────────────▶ read ──▶ events, at rest
//!     │                                      │     ▲                                ▲
//!     │ a list differs, or a gap             │     └── not yet: polled again, later │
//!     └──────────────────────────────────────┼──────────────────────────────────────┘
//!                                            └── not within 10 s: withheld, counted, at rest
//! ```
//!
//! A reading gives every status of the pod at one time; what in it is newer than what was sent becomes events, all with these
//! statuses. So a burst of hints costs one reading, and a container that came and went between two of them still has its whole
//! life, in order. Pure: time and answers come from outside.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use kwitness_core::model::ContainerId;

use super::entity::{Kind, Progress, Shown, Status, steps};
use kwitness_cri::events::{ContainerEventResponse, ContainerEventType};

/// How long the runtime gets to agree with the kernel. containerd needs 30 ms; a runtime on a disk that stalls, seconds.
pub(super) const AGREE_MAX: Duration = Duration::from_secs(10);
/// Between two questions whether it agrees: first, when the kernel showed the last thing that it does before, and at most.
const ASK_FIRST: Duration = Duration::from_millis(4);
const ASK_SOON: Duration = Duration::from_millis(1);
/// So many polls come soon before the pauses grow: containerd has its last steps behind it 5 to 30 ms after the cgroup's removal.
const SOON_TIMES: u8 = 20;
const ASK_MAX: Duration = Duration::from_millis(100);
/// After a question that the runtime failed to answer: at first as after others, then twice as long each time, and at most.
const FAILED_MAX: Duration = Duration::from_secs(10);

/// What to ask of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Its sandboxes.
    pub(super) sandboxes: Vec<ContainerId>,
    /// Its containers, as far as known, but for those that have ended.
    pub(super) containers: Vec<ContainerId>,
    /// Its containers that have ended: their statuses do not change any more, so they are fetched only if they are not listed.
    pub(super) ended: Vec<ContainerId>,
    /// Those that are expected to have come that far. Unless one has, nothing else need be fetched, if [`Self::whole`] is not set.
    pub(super) checks: Vec<(Kind, ContainerId, Progress)>,
    /// Everything is wanted in any case.
    pub(super) whole: bool,
}

/// What the runtime said of a pod.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    /// The wall clock before the first question, in nanoseconds.
    pub(super) at: i64,
    /// Each sandbox and container that was fetched or listed; no status: the runtime does not know it any more.
    pub(super) statuses: Vec<(Kind, ContainerId, Option<Status>)>,
}

/// What is known of one sandbox or container.
#[derive(Debug)]
struct Entity {
    kind: Kind,
    /// None: it is older than the first list, and its first status decides.
    sent: Option<Progress>,
    /// How far it was by the first list, if that had it and the runtime knew.
    listed: Option<Progress>,
    shown: Shown,
    /// The kernel showed that a program runs in it, and no end since.
    runs: bool,
    /// How far the runtime is expected to say it is, and since when.
    expected: Option<(Progress, Duration)>,
    status: Option<Status>,
}

impl Entity {
    fn new(now: Duration, kind: Kind, origin: Origin, shown: Shown) -> Self {
        let (sent, listed) = match origin {
            Origin::New => (Some(Progress::Unseen), None),
            Origin::FirstList(listed) => (None, listed),
        };
        let expected = (shown.reached > Progress::Unseen).then_some((shown.reached, now));
        Self { kind, sent, listed, shown, runs: shown.reached == Progress::Started, expected, status: None }
    }

    /// What of one that is older than the first list has been sent, by its first status: where it was at a time, from which on events
    /// are wanted. Of a sandbox a status does not say when it stopped. If the kernel showed that, or it ran by the first list, it
    /// was later.
    fn sent_by(&self, status: &Status, since: i64) -> Progress {
        let sent = status.progress_at(since);
        let has_just_stopped =
            self.listed == Some(Progress::Started) || self.shown.reached == Progress::Stopped;
        if self.kind == Kind::Sandbox && has_just_stopped { sent.min(Progress::Started) } else { sent }
    }

    /// The same of one that is gone before it has a status: nothing, if the kernel showed its beginning; otherwise as far as the
    /// first list had it, unless the kernel showed its end.
    fn sent_without_status(&self) -> Option<Progress> {
        match (self.shown.began, self.shown.reached) {
            (true, _) => Some(Progress::Unseen),
            (false, Progress::Stopped) => self.listed.map(|listed| listed.min(Progress::Started)),
            (false, _) => self.listed,
        }
    }

    fn has_ended(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.progress == Some(Progress::Stopped))
    }

    /// How far it has come, if the runtime says this. A sandbox in which a program runs has not stopped: "not ready" may also mean
    /// that it has no address of its own (cri-dockerd says so of those in the host's network).
    fn reached(&self, said: Progress) -> Progress {
        let is_only_not_ready = self.kind == Kind::Sandbox && self.runs && said == Progress::Stopped;
        if is_only_not_ready { Progress::Started } else { said }
    }
}

/// How one came to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// After the first list: no event of it was sent.
    New,
    /// By the first list, which had it so far.
    FirstList(Option<Progress>),
}

/// A pod.
#[derive(Debug, Default)]
pub(super) struct Pod {
    entities: BTreeMap<ContainerId, Entity>,
    /// The time of the last event.
    last: i64,
    /// When it is to be polled; none: at rest.
    due: Option<Duration>,
    pause: Duration,
    /// Questions until the pause grows.
    soon: u8,
    whole: bool,
    busy: bool,
    /// Questions in a row that were not answered.
    failures: u32,
}

/// What came of a reading.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) events: Vec<ContainerEventResponse>,
    /// Sandboxes and containers that are gone.
    pub(super) gone: Vec<ContainerId>,
    /// Found by the reading.
    pub(super) found: Vec<ContainerId>,
    /// Ends that the runtime never showed, because it had removed the container by then.
    pub(super) unread_ends: u64,
    /// The wall clock had been set back: the events' times are later than it.
    pub(super) clock_behind: bool,
}

impl Pod {
    /// Puts a sandbox or container into the pod, to be read; what is known already stays.
    pub(super) fn add(&mut self, now: Duration, kind: Kind, id: &ContainerId, origin: Origin, shown: Shown) {
        if !self.entities.contains_key(id) {
            self.entities.insert(id.clone(), Entity::new(now, kind, origin, shown));
            self.read_whole(now);
        }
    }

    /// The kernel showed that one of them has come so far.
    pub(super) fn hint(&mut self, now: Duration, id: &ContainerId, progress: Progress) {
        let Some(entity) = self.entities.get_mut(id) else { return };
        entity.shown.add(progress);
        entity.runs = match progress {
            Progress::Unseen | Progress::Created => entity.runs,
            Progress::Started => true,
            Progress::Stopped => false,
        };
        let sent = entity.sent.unwrap_or(Progress::Unseen);
        if progress > sent && entity.expected.is_none_or(|(expected, _)| progress > expected) {
            entity.expected = Some((progress, now));
            self.ask(now, ASK_FIRST);
        }
    }

    /// The kernel showed the last thing that a runtime does before it calls a container ended: its cgroup was removed.
    pub(super) fn hurry(&mut self, now: Duration, id: &ContainerId) {
        if let Some(entity) = self.entities.get_mut(id) {
            entity.runs = false;
        }
        if self.expects() {
            self.ask(now, ASK_SOON);
            self.soon = SOON_TIMES;
        }
    }

    /// Whether a state that a list shows is newer than what was sent.
    pub(super) fn differs(&self, id: &ContainerId, listed: Option<Progress>) -> bool {
        let Some(entity) = self.entities.get(id) else { return true };
        let sent = entity.sent.unwrap_or(Progress::Unseen);
        listed.is_some_and(|listed| entity.reached(listed) > sent)
    }

    /// Hints may have been lost: what ran may have ended.
    pub(super) fn gap(&mut self, now: Duration) {
        self.entities.values_mut().for_each(|entity| entity.runs = false);
        self.read_whole(now);
    }

    /// Asks for everything.
    pub(super) fn read_whole(&mut self, now: Duration) {
        self.whole = true;
        self.ask(now, ASK_FIRST);
    }

    /// After the runtime was away: it has as long as ever to agree.
    pub(super) fn start_over(&mut self, now: Duration) {
        self.busy = false;
        self.failures = 0;
        for entity in self.entities.values_mut() {
            if let Some((_, since)) = &mut entity.expected {
                *since = now;
            }
        }
        self.read_whole(now);
    }

    fn ask(&mut self, now: Duration, pause: Duration) {
        self.due = Some(now);
        self.pause = pause;
        self.soon = 0;
    }

    fn expects(&self) -> bool {
        self.entities.values().any(|entity| entity.expected.is_some())
    }

    /// When it is to be polled.
    pub(super) fn due(&self) -> Option<Duration> {
        self.due.filter(|_| !self.busy)
    }

    /// Nothing of it is left.
    pub(super) fn is_empty(&self) -> bool {
        self.entities.is_empty()
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = &ContainerId> {
        self.entities.keys()
    }

    /// What to fetch now. Nothing else of this pod is fetched until the answer has come.
    pub(super) fn plan(&mut self) -> Plan {
        self.busy = true;
        self.due = None;
        let of = |kind, ended| {
            let wanted = move |(id, entity): (&ContainerId, &Entity)| {
                (entity.kind == kind && (kind == Kind::Sandbox || entity.has_ended() == ended))
                    .then(|| id.clone())
            };
            self.entities.iter().filter_map(wanted).collect()
        };
        let expected = |(id, entity): (&ContainerId, &Entity)| {
            entity.expected.map(|(progress, _)| (entity.kind, id.clone(), progress))
        };
        Plan {
            sandboxes: of(Kind::Sandbox, false),
            containers: of(Kind::Container, false),
            ended: of(Kind::Container, true),
            checks: self.entities.iter().filter_map(expected).collect(),
            whole: std::mem::take(&mut self.whole),
        }
    }

    /// The runtime does not agree yet; returns how many are given up.
    pub(super) fn not_yet(&mut self, now: Duration) -> u64 {
        self.busy = false;
        self.failures = 0;
        self.settle(now)
    }

    /// There was no answer: everything is fetched again, later each time.
    pub(super) fn failed(&mut self, now: Duration) {
        self.busy = false;
        self.whole = true;
        let pause = ASK_MAX.saturating_mul(2_u32.saturating_pow(self.failures));
        self.failures = self.failures.saturating_add(1);
        self.due = Some(now + pause.min(FAILED_MAX));
    }

    /// Asks again for what is still expected, unless that took too long.
    fn settle(&mut self, now: Duration) -> u64 {
        let mut withheld = 0;
        for entity in self.entities.values_mut() {
            let Some((expected, since)) = entity.expected else { continue };
            if entity.sent.is_some_and(|sent| sent >= expected) {
                entity.expected = None;
            } else if now.saturating_sub(since) >= AGREE_MAX {
                entity.expected = None;
                withheld += 1;
            }
        }
        // A hint that came while the question was under way has set an earlier time.
        if self.due.is_none() && self.expects() {
            self.due = Some(now + self.pause);
            if self.soon > 0 {
                self.soon -= 1;
            } else {
                self.pause = ASK_MAX.min(self.pause.mul_f64(1.5));
            }
        }
        withheld
    }

    /// Takes what the runtime said, and makes events of what is new in it. `since`: of what is older than the first list, what
    /// happened later than that is new.
    pub(super) fn read(&mut self, now: Duration, reading: Reading, since: i64) -> (Outcome, u64) {
        self.busy = false;
        self.failures = 0;
        let mut outcome = Outcome::default();
        let mut gone = BTreeMap::new();
        for (kind, id, status) in reading.statuses {
            let entity = self.entities.entry(id.clone()).or_insert_with(|| {
                outcome.found.push(id.clone());
                Entity::new(now, kind, Origin::New, Shown::default())
            });
            match status {
                Some(status) => {
                    entity.sent = Some(entity.sent.unwrap_or_else(|| entity.sent_by(&status, since)));
                    entity.status = Some(status);
                }
                None => {
                    if let Some(mut entity) = self.entities.remove(&id) {
                        entity.sent = entity.sent.or_else(|| entity.sent_without_status());
                        gone.insert(id, entity);
                    }
                }
            }
        }
        self.emit(reading.at, &gone, &mut outcome);
        outcome.gone = gone.into_keys().collect();
        let withheld = self.settle(now);
        (outcome, withheld)
    }

    fn emit(&mut self, at: i64, gone: &BTreeMap<ContainerId, Entity>, outcome: &mut Outcome) {
        let Some(sandbox) = self.sandbox(gone) else { return };
        let left = statuses(self.entities.values());
        let with_gone = statuses(self.entities.values().chain(gone.values()));
        let mut steps = self.take_steps(gone, outcome);
        steps.sort_by_key(|step| (step.order, step.time));
        outcome.clock_behind = at <= self.last && !steps.is_empty();
        for step in steps {
            self.last = at.max(self.last + 1);
            let deleted = step.event == ContainerEventType::ContainerDeletedEvent;
            outcome.events.push(ContainerEventResponse {
                container_id: step.id.0.to_string(),
                container_event_type: step.event.into(),
                created_at: self.last,
                pod_sandbox_status: sandbox.clone(),
                containers_statuses: if deleted { with_gone.clone() } else { left.clone() },
            });
        }
    }

    /// The status of the pod's newest sandbox, which is the one that counts: a kubelet takes it for the pod's only one.
    fn sandbox(&self, gone: &BTreeMap<ContainerId, Entity>) -> Option<Bytes> {
        let newest = |entities: &mut dyn Iterator<Item = &Entity>| {
            entities
                .filter(|entity| entity.kind == Kind::Sandbox)
                .filter_map(|entity| entity.status.clone())
                .max_by_key(|status| status.created_at)
        };
        if let Some(there) = newest(&mut self.entities.values()) {
            return Some(there.bytes);
        }
        let last_known = newest(&mut gone.values())?;
        Some(if last_known.progress == Some(Progress::Stopped) {
            last_known.bytes
        } else {
            not_ready(&last_known.bytes)
        })
    }

    /// What is new, as steps; from here on it counts as sent.
    fn take_steps(&mut self, gone: &BTreeMap<ContainerId, Entity>, outcome: &mut Outcome) -> Vec<Step> {
        let mut all = Vec::new();
        for (id, entity) in &mut self.entities {
            let (Some(status), Some(sent)) = (&entity.status, entity.sent) else { continue };
            let reached = status.progress.map(|said| entity.reached(said));
            let Some(reached) = reached.filter(|reached| *reached > sent) else { continue };
            for step in steps(sent, reached, status.never_started()) {
                all.push(Step::of(id, entity.kind, step, status.time_of(step)));
            }
            entity.sent = Some(reached);
        }
        for (id, entity) in gone {
            // Nothing is known of it: not even how far it was.
            let Some(sent) = entity.sent else { continue };
            let ran = entity.kind == Kind::Sandbox || sent.max(entity.shown.reached) >= Progress::Started;
            let reached = if ran { Progress::Stopped } else { Progress::Created };
            outcome.unread_ends += u64::from(reached > sent);
            let time = |step| entity.status.as_ref().map_or(i64::MAX, |status| status.time_of(step));
            all.extend(steps(sent, reached, !ran).map(|step| Step::of(id, entity.kind, step, time(step))));
            all.push(Step::deleted(id, entity.kind));
        }
        all
    }
}

/// An event in the making.
struct Step {
    id: ContainerId,
    event: ContainerEventType,
    /// A sandbox begins before its containers and ends after them.
    order: u8,
    time: i64,
}

impl Step {
    fn of(id: &ContainerId, kind: Kind, progress: Progress, time: i64) -> Self {
        let (event, order) = match (progress, kind) {
            (Progress::Unseen | Progress::Created, Kind::Sandbox) => {
                (ContainerEventType::ContainerCreatedEvent, 0)
            }
            (Progress::Started, Kind::Sandbox) => (ContainerEventType::ContainerStartedEvent, 0),
            (Progress::Stopped, Kind::Sandbox) => (ContainerEventType::ContainerStoppedEvent, 3),
            (Progress::Unseen | Progress::Created, Kind::Container) => {
                (ContainerEventType::ContainerCreatedEvent, 1)
            }
            (Progress::Started, Kind::Container) => (ContainerEventType::ContainerStartedEvent, 1),
            (Progress::Stopped, Kind::Container) => (ContainerEventType::ContainerStoppedEvent, 1),
        };
        Self { id: id.clone(), event, order, time }
    }

    fn deleted(id: &ContainerId, kind: Kind) -> Self {
        let order = if kind == Kind::Sandbox { 4 } else { 2 };
        Self { id: id.clone(), event: ContainerEventType::ContainerDeletedEvent, order, time: i64::MAX }
    }
}

/// The containers' statuses, oldest first.
fn statuses<'a>(entities: impl Iterator<Item = &'a Entity>) -> Vec<Bytes> {
    let mut all: Vec<&Status> = entities
        .filter(|entity| entity.kind == Kind::Container)
        .filter_map(|entity| entity.status.as_ref())
        .collect();
    all.sort_by_key(|status| status.created_at);
    all.into_iter().map(|status| status.bytes.clone()).collect()
}

/// The last status of a sandbox that was removed before it was read as stopped, with its state put right: of a field that comes
/// twice, the last counts.
fn not_ready(status: &Bytes) -> Bytes {
    /// `PodSandboxStatus.state`, field 3, a number: `SANDBOX_NOTREADY`.
    const STATE: [u8; 2] = [3 << 3, 1];
    let mut bytes = BytesMut::with_capacity(status.len() + STATE.len());
    bytes.put_slice(status);
    bytes.put_slice(&STATE);
    bytes.freeze()
}
