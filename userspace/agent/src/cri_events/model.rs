//! The machine against a small model of a kernel and a runtime: sandboxes and containers made, started, ended and removed in any
//! order; the kernel shows it at once or not at all, the runtime agrees later, its answers take time, and it goes away and comes
//! back. The daemon is restarted: its journal has what the kernel showed meanwhile, and its client, which drops doubles, resumes a while
//! before. At the end every life was reported whole: in order, once, with statuses that fit.

mod check;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use kwitness_core::model::ContainerId;
use proptest::prelude::*;
use prost::Message as _;

use super::entity::{Kind, Progress, Status};
use super::machine::{Answer, Hint, ListedContainer, ListedSandbox, Listing, Machine, Request};
use super::pod::{Plan, Reading};
use kwitness_cri::events as wire;

/// What can happen; the numbers choose among what there is.
#[derive(Clone, Copy, Debug)]
enum Op {
    RunPod,
    Create(u8),
    Start(u8),
    Exit(u8),
    Remove(u8),
    StopPod(u8),
    RemovePod(u8),
    /// Nothing, for so many milliseconds.
    Wait(u16),
    /// The runtime is away for so long.
    Away(u16),
    /// Hints were lost.
    Gap,
    /// After so long, the daemon is away for so long.
    Restart(u16, u16),
}

/// How long before the daemon's end its client resumes: what was still to be sent then is no older.
const UNDER_WAY: u64 = 12_000;

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => Just(Op::RunPod),
        4 => any::<u8>().prop_map(Op::Create),
        6 => any::<u8>().prop_map(Op::Start),
        6 => any::<u8>().prop_map(Op::Exit),
        3 => any::<u8>().prop_map(Op::Remove),
        1 => any::<u8>().prop_map(Op::StopPod),
        1 => any::<u8>().prop_map(Op::RemovePod),
        4 => (0..700u16).prop_map(Op::Wait),
        1 => (1..2000u16).prop_map(Op::Away),
        1 => Just(Op::Gap),
        1 => (prop_oneof![Just(0), Just(15_000)], 0..2000u16).prop_map(|(after, down)| Op::Restart(after, down)),
    ]
}

/// A sandbox or container as the runtime has it.
#[derive(Clone, Debug)]
struct Thing {
    kind: Kind,
    sandbox: ContainerId,
    state: i32,
    created_at: i64,
    started_at: i64,
    finished_at: i64,
}

impl Thing {
    /// With a field that the machine does not look at: the id.
    fn status(&self, id: &ContainerId) -> Status {
        let Self { state, created_at, started_at, finished_at, .. } = *self;
        let mut bytes = wire::PodSandboxStatusRequest { pod_sandbox_id: id.0.to_string() }.encode_to_vec();
        bytes.extend(match self.kind {
            Kind::Sandbox => wire::PodSandboxStatus { state, created_at }.encode_to_vec(),
            Kind::Container => {
                wire::ContainerStatus { state, created_at, started_at, finished_at }.encode_to_vec()
            }
        });
        Status::new(self.kind, bytes.into()).unwrap()
    }
}

/// What came of one.
#[derive(Clone, Debug)]
struct Life {
    sandbox: ContainerId,
    ran: bool,
    made: u64,
    removed: Option<u64>,
    /// A machine was given a status of it.
    read: bool,
    /// The first list of this machine had it, and no status of it was read since.
    is_only_listed: bool,
    /// A machine knew it by its first list alone: how it began, or that it did, may have been sent by the one before or not.
    was_only_listed: bool,
    /// The runtime had removed it before a daemon that was restarted had its first list: no event can be made of that.
    removed_unseen: bool,
}

/// What the runtime will say later.
#[derive(Clone, Debug)]
enum Change {
    Put(ContainerId, Thing),
    Gone(ContainerId),
}

struct World {
    now: u64,
    lag: u64,
    latency: u64,
    next: u32,
    /// What has really happened; the runtime says so after a lag.
    truth: BTreeMap<ContainerId, Thing>,
    says: BTreeMap<ContainerId, Thing>,
    changes: VecDeque<(u64, Change)>,
    machine: Machine,
    /// All that the kernel showed.
    journal: Vec<(u64, ContainerId, Hint)>,
    /// When the daemon ended, and when the next one begins.
    down: Option<(u64, u64)>,
    /// The machine has not had a list.
    is_unlisted: bool,
    /// It is not the first.
    is_resuming: bool,
    pending: Vec<(u64, i64, Request)>,
    away_until: u64,
    events: Vec<wire::ContainerEventResponse>,
    ever: BTreeMap<ContainerId, Life>,
    away: u64,
    most_pending: usize,
}

/// The wall clock of the model, in nanoseconds.
fn wall(now: u64) -> i64 {
    1_000_000_000_000 + now as i64 * 1_000_000
}

impl World {
    fn new(lag: u64, latency: u64) -> Self {
        Self {
            now: 1,
            lag,
            latency,
            next: 0,
            truth: BTreeMap::new(),
            says: BTreeMap::new(),
            changes: VecDeque::new(),
            machine: Machine::new(wall(0)),
            journal: Vec::new(),
            down: None,
            is_unlisted: true,
            is_resuming: false,
            pending: Vec::new(),
            away_until: 0,
            events: Vec::new(),
            ever: BTreeMap::new(),
            away: 0,
            most_pending: 0,
        }
    }

    fn clock(&self) -> Duration {
        Duration::from_millis(self.now)
    }

    fn id(&mut self) -> ContainerId {
        self.next += 1;
        ContainerId(format!("{:064x}", self.next).into())
    }

    fn pick(&self, kind: Kind, number: u8, test: impl Fn(&Thing) -> bool) -> Option<ContainerId> {
        let all: Vec<_> = self
            .truth
            .iter()
            .filter(|(_, thing)| thing.kind == kind && test(thing))
            .map(|(id, _)| id)
            .collect();
        (!all.is_empty()).then(|| all[usize::from(number) % all.len()].clone())
    }

    fn change(&mut self, id: &ContainerId, change: impl FnOnce(&mut Thing)) {
        let thing = self.truth.get_mut(id).unwrap();
        change(thing);
        self.changes.push_back((self.now + self.lag, Change::Put(id.clone(), thing.clone())));
    }

    fn hint(&mut self, id: &ContainerId, hint: Hint) {
        self.journal.push((self.now, id.clone(), hint));
        if self.down.is_none() {
            self.machine.hint(self.clock(), id, hint);
        }
    }

    fn end_daemon(&mut self, down: u64) {
        self.down = Some((self.now, self.now + down));
        self.pending.clear();
        self.away += down;
    }

    fn begin_daemon(&mut self, ended: u64) {
        let since = ended.saturating_sub(UNDER_WAY + self.away);
        self.machine = Machine::new(wall(since));
        (self.down, self.is_unlisted, self.is_resuming) = (None, true, true);
        self.forget_listed();
        let now = self.clock();
        for (_, id, hint) in self.journal.iter().filter(|(at, ..)| *at >= since) {
            self.machine.hint(now, id, *hint);
        }
    }

    /// Which lives this machine knew by its first list alone.
    fn forget_listed(&mut self) {
        for life in self.ever.values_mut() {
            life.was_only_listed |= std::mem::take(&mut life.is_only_listed);
        }
    }

    /// The first list of a daemon.
    fn look_at_first_list(&mut self) {
        for (id, life) in &mut self.ever {
            life.is_only_listed = self.says.contains_key(id);
            life.removed_unseen |=
                self.is_resuming && !self.says.contains_key(id) && !self.truth.contains_key(id);
        }
    }

    fn make(&mut self, kind: Kind, sandbox: Option<ContainerId>) -> ContainerId {
        let id = self.id();
        let sandbox = sandbox.unwrap_or_else(|| id.clone());
        let at = wall(self.now);
        let of = sandbox.clone();
        let thing = Thing { kind, sandbox, state: 0, created_at: at, started_at: 0, finished_at: 0 };
        self.truth.insert(id.clone(), thing);
        let life = Life {
            sandbox: of,
            ran: kind == Kind::Sandbox,
            made: self.now,
            removed: None,
            read: false,
            is_only_listed: false,
            was_only_listed: false,
            removed_unseen: false,
        };
        self.ever.insert(id.clone(), life);
        self.change(&id, |_| {});
        id
    }

    fn end(&mut self, id: &ContainerId) {
        let at = wall(self.now);
        let kind = self.truth[id].kind;
        self.change(id, |thing| {
            (thing.state, thing.finished_at) = (if kind == Kind::Sandbox { 1 } else { 2 }, at)
        });
        self.hint(id, Hint::Reached(Progress::Stopped));
        self.hint(id, Hint::Removed);
    }

    fn remove(&mut self, id: &ContainerId) {
        self.truth.remove(id);
        self.ever.get_mut(id).unwrap().removed = Some(self.now);
        self.changes.push_back((self.now + self.lag, Change::Gone(id.clone())));
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::RunPod => {
                let id = self.make(Kind::Sandbox, None);
                self.hint(&id, Hint::Reached(Progress::Created));
                self.hint(&id, Hint::Reached(Progress::Started));
            }
            Op::Create(number) => {
                if let Some(sandbox) = self.pick(Kind::Sandbox, number, |thing| thing.state == 0) {
                    self.make(Kind::Container, Some(sandbox));
                }
            }
            Op::Start(number) => {
                if let Some(id) = self.pick(Kind::Container, number, |thing| thing.state == 0) {
                    let at = wall(self.now);
                    self.change(&id, |thing| (thing.state, thing.started_at) = (1, at));
                    self.ever.get_mut(&id).unwrap().ran = true;
                    self.hint(&id, Hint::Reached(Progress::Created));
                    self.hint(&id, Hint::Reached(Progress::Started));
                }
            }
            Op::Exit(number) => {
                if let Some(id) = self.pick(Kind::Container, number, |thing| thing.state == 1) {
                    self.end(&id);
                }
            }
            Op::Remove(number) => {
                if let Some(id) = self.pick(Kind::Container, number, |thing| thing.state != 1) {
                    self.remove(&id);
                }
            }
            Op::StopPod(number) => {
                if let Some(sandbox) = self.pick(Kind::Sandbox, number, |thing| thing.state == 0) {
                    self.stop_pod(&sandbox);
                }
            }
            Op::RemovePod(number) => {
                if let Some(sandbox) = self.pick(Kind::Sandbox, number, |_| true) {
                    self.remove_pod(&sandbox);
                }
            }
            Op::Wait(time) => self.run(u64::from(time)),
            Op::Away(time) => {
                self.away_until = self.now + u64::from(time);
                self.away += u64::from(time);
                self.pending.clear();
            }
            Op::Gap => self.machine.gap(self.clock()),
            Op::Restart(after, down) => {
                self.run(u64::from(after));
                if self.down.is_none() {
                    self.end_daemon(u64::from(down));
                }
            }
        }
    }

    fn stop_pod(&mut self, sandbox: &ContainerId) {
        let running: Vec<_> = self
            .truth
            .iter()
            .filter(|(_, thing)| {
                thing.kind == Kind::Container && &thing.sandbox == sandbox && thing.state == 1
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in running {
            self.end(&id);
        }
        if self.truth[sandbox].state == 0 {
            self.end(sandbox);
        }
    }

    fn remove_pod(&mut self, sandbox: &ContainerId) {
        self.stop_pod(sandbox);
        let all: Vec<_> = self
            .truth
            .iter()
            .filter(|(_, thing)| &thing.sandbox == sandbox)
            .map(|(id, _)| id.clone())
            .collect();
        // The sandbox last, as a runtime does.
        for id in all.iter().filter(|id| *id != sandbox).chain([sandbox]) {
            self.remove(id);
        }
    }

    fn run(&mut self, time: u64) {
        for _ in 0..time {
            self.now += 1;
            while self.changes.front().is_some_and(|(at, _)| *at <= self.now) {
                match self.changes.pop_front().unwrap().1 {
                    Change::Put(id, thing) => drop(self.says.insert(id, thing)),
                    Change::Gone(id) => drop(self.says.remove(&id)),
                }
            }
            if let Some((ended, begins)) = self.down
                && begins <= self.now
            {
                self.begin_daemon(ended);
            }
            if self.down.is_some() || self.now < self.away_until {
                continue;
            }
            if self.now == self.away_until {
                self.machine.connected(self.clock());
            }
            let (due, later): (Vec<_>, Vec<_>) =
                std::mem::take(&mut self.pending).into_iter().partition(|(at, ..)| *at <= self.now);
            self.pending = later;
            for (_, at, request) in due {
                self.answer(at, &request);
            }
            while let Some(request) = self.machine.poll(self.clock()) {
                self.pending.push((self.now + self.latency, wall(self.now), request));
            }
            self.most_pending = self.most_pending.max(self.pending.len());
        }
    }

    fn answer(&mut self, at: i64, request: &Request) {
        let now = self.clock();
        match request {
            Request::List => {
                if std::mem::take(&mut self.is_unlisted) {
                    self.look_at_first_list();
                }
                self.machine.list(now, &self.listing(|_, _| true));
            }
            Request::Find(id) => {
                let sandbox = self.says.get(id).map(|thing| thing.sandbox.clone());
                let listing = self.listing(|of, _| of == id || Some(of) == sandbox.as_ref());
                self.machine.found(now, id, &listing);
            }
            Request::Read(key, plan) => {
                let answer = self.read(at, plan);
                if let Answer::Reading(reading) = &answer {
                    for (_, id, _) in reading.statuses.iter().filter(|(.., status)| status.is_some()) {
                        let life = self.ever.get_mut(id).unwrap();
                        (life.read, life.is_only_listed) = (true, false);
                    }
                }
                let events = self.machine.answer(now, key, answer);
                self.events.extend(events);
            }
        }
    }

    fn listing(&self, test: impl Fn(&ContainerId, &Thing) -> bool) -> Listing {
        let mut listing = Listing::default();
        for (id, thing) in self.says.iter().filter(|(id, thing)| test(id, thing)) {
            let progress = thing.kind.progress(thing.state);
            match thing.kind {
                Kind::Sandbox => {
                    let uid = format!("uid of {}", id.0).into();
                    listing.sandboxes.push(ListedSandbox { id: id.clone(), uid, progress });
                }
                Kind::Container => {
                    let sandbox = thing.sandbox.clone();
                    listing.containers.push(ListedContainer { id: id.clone(), sandbox, progress });
                }
            }
        }
        listing
    }

    fn read(&self, at: i64, plan: &Plan) -> Answer {
        let status = |id: &ContainerId| self.says.get(id).map(|thing| thing.status(id));
        let agrees = |(_, id, expected): &(Kind, ContainerId, Progress)| {
            status(id).is_none_or(|status| status.progress.is_some_and(|progress| progress >= *expected))
        };
        if !plan.whole && !plan.checks.iter().any(agrees) {
            return Answer::NotYet;
        }
        let mut fetched: BTreeMap<ContainerId, Kind> =
            plan.sandboxes.iter().map(|id| (id.clone(), Kind::Sandbox)).collect();
        fetched.extend(plan.containers.iter().map(|id| (id.clone(), Kind::Container)));
        let gone = plan.ended.iter().filter(|id| !self.says.contains_key(*id));
        fetched.extend(gone.map(|id| (id.clone(), Kind::Container)));
        let of_pod = |thing: &Thing| thing.kind == Kind::Container && plan.sandboxes.contains(&thing.sandbox);
        fetched.extend(
            self.says.iter().filter(|(_, thing)| of_pod(thing)).map(|(id, _)| (id.clone(), Kind::Container)),
        );
        fetched.retain(|id, _| !plan.ended.contains(id) || !self.says.contains_key(id));
        let statuses = fetched.into_iter().map(|(id, kind)| (kind, id.clone(), status(&id))).collect();
        Answer::Reading(Reading { at, statuses })
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_life_is_sent_whole(
        ops in proptest::collection::vec(op(), 0..60),
        lag in 0..60u64,
        latency in 0..40u64,
    ) {
        let mut world = World::new(lag, latency);
        for op in ops {
            world.apply(op);
            world.run(1);
        }
        world.finish()?;
    }
}

/// The first list was requested while it lived, and the runtime listed it only after its end.
#[test]
fn a_life_around_the_first_list_is_sent_whole() -> Result<(), TestCaseError> {
    let mut world = World::new(38, 21);
    for op in [Op::RunPod, Op::Create(0), Op::Start(0), Op::StopPod(0), Op::Wait(519), Op::Remove(0)] {
        world.apply(op);
        world.run(1);
    }
    world.finish()
}
