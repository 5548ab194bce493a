//! The machine that makes containers' lives out of kernel records, scans and the runtime's answers.
//!
//! ```text
//!  Mkdir ─▶ Created            Exec of its own ─▶ Started          Exec ─▶ Exec
//!             │                        │                           Exit ─▶ Exited
//!           Empty ──▶ Preparing ──▶ Running ──▶ Stopped ──▶ removed ──▶ forgotten
//!                                                  │           │
//!                            Populated(false) ─▶ Stopped     Rmdir ─▶ Deleted
//! ```
//!
//! The happy path; the private module `container` draws all of it. The events of one container come in the order `created`,
//! `started`, `stopped`, `deleted`; one that was emptied and filled again starts and stops again; one that never had
//! a process is not stopped.
//!
//! | What happens | What comes out |
//! |---|---|
//! | exec by `kubectl exec` or a probe | `exec`, role `entered`: it came from outside into the container's mount namespace |
//! | a thread | nothing: the kernel side makes no record of one |
//! | a pid used again | another process: it is named by pid and start time |
//! | the first process dies before it executes anything | `exited` with `before_exec`, `stopped` with `never_started` |
//! | groups made in the container | theirs are the container's; its own cgroup's `populated` counts them in |
//! | crun's inner `container` group | the start happens there, and is the container's |
//! | an exit that comes late through the other ring, after `stopped` or `deleted` | `exited` is sent all the same: its time shows the order |
//! | the kernel OOM-kills | `oomKill`, then `exited`; `stopped` says so if it was the main process |
//! | removed while thought to run | `stopped` on the same fact, then `deleted` |
//! | an unknown cgroup | the record is parked, a scan is requested, then the record replayed |
//! | the runtime answers after the end | `updated` goes out for as long as removed cgroups are remembered |
//!
//! **Loss.** A [`Loss`] goes out as `gap` at once and asks for a scan, one at a time. The scan's corrections carry
//! the basis `repair_scan`, and `resynced` says that nothing is outstanding. A scan that began before the last loss
//! ended corrects what it can, and another is requested. The private module
//! `scan` says what weighs more than a scan.
//!
//! Every memory is bounded by [`Bounds`]; what they drop is in [`LifecycleCounters`]. Never reads a clock: time is what the
//! observations say.

mod bounds;
mod cgroups;
mod container;
mod facts;
mod guarded;
mod helper;
mod parked;
mod processes;
mod queries;
mod requests;
mod room;
mod scan;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use bounds::{Bounds, LifecycleCounters};

use serde::{Deserialize, Serialize};

use crate::model::{
    Action, Actor, Basis, CgroupId, ContainerId, Fact, Gap, KernelEvent, KernelTime, Kind, LevelRole, Loss,
    Observation, OomExhausted, OomKill, OomKilled, OomScope, Output, PodUid, RuntimeFacts, Subject,
    Unreadable,
};

use crate::overflow::Overflow;
use cgroups::{Added, Cgroups, Owner};
use parked::Parked;
use processes::Budget;
use room::Room;
use scan::Repair;

/// How many records of each kind were lost.
type Lost = BTreeMap<String, u64>;

/// The machine: all containers of the node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Lifecycle {
    bounds: Bounds,
    counters: LifecycleCounters,
    budget: Budget,
    cgroups: Cgroups,
    parked: Parked,
    start_up: StartUp,
    repair: Option<Repair>,
    overflow: Overflow,
    /// For what is not followed.
    room: Room,
    /// Containers that are of another pod by the runtime's word than by their cgroup's path.
    #[serde(with = "crate::pairs")]
    other_pods: BTreeMap<CgroupId, PodUid>,
    /// What the last scan could not read.
    unreadable: Unreadable,
    /// Containers in which the last scan found nothing but what may be the runtime's helper.
    #[serde(default)]
    preparing: BTreeSet<CgroupId>,
    /// The end of the last loss: what must rest on unbroken records rests on younger ones.
    unbroken_since: KernelTime,
}

/// Whether the first scan is still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum StartUp {
    /// Cgroups that are not known may be older than the probes.
    Scanning,
    Done,
}

impl Lifecycle {
    /// A machine that knows no container yet, and expects the observation of an initial scan.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            budget: Budget::new(bounds.processes),
            cgroups: Cgroups::new(&bounds),
            parked: Parked::new(bounds.parked),
            bounds,
            counters: LifecycleCounters::default(),
            start_up: StartUp::Scanning,
            repair: None,
            overflow: Overflow::default(),
            room: Room::default(),
            other_pods: BTreeMap::new(),
            unreadable: Unreadable::default(),
            preparing: BTreeSet::new(),
            unbroken_since: KernelTime(0),
        }
    }

    /// Takes one observation; appends what follows from it.
    pub fn observe(&mut self, observation: Observation, output: &mut Output) {
        match observation {
            Observation::Kernel(event) => self.kernel(event, output),
            Observation::Lost(loss) => self.lost(loss, output),
            Observation::Scan(scan) => self.scan(&scan, output),
            Observation::Runtime { at, container, facts } => self.resolved(at, &container, facts, output),
            Observation::Tick { at } => self.tick(at, output),
            Observation::AgentRestarted { from, to, records } => {
                output.emit_own(to, Kind::AgentRestarted { from, to, records });
            }
            Observation::Guard(report) => self.guarded(report, output),
            Observation::GuardReportsDropped { at, from, to, count } => {
                guarded::reports_dropped(at, from, to, count, output);
            }
            Observation::RequestsMissed { at, container, from, to, count } => {
                self.missed_requests(at, container.as_ref(), (from, to), count, output);
            }
            // Bounds are no part of a life.
            Observation::LimitsRead(_)
            | Observation::Evidence(_)
            | Observation::MemorySampled(_)
            | Observation::LimitsRequested { .. } => {}
        }
    }

    fn kernel(&mut self, event: KernelEvent, output: &mut Output) {
        let (at, cgroup) = (event.at, event.cgroup);
        match &event.fact {
            Fact::Mkdir { parent, beyond_share: true, .. } => match self.cgroups.owner(*parent) {
                Owner::Unknown => self.unknown(event, output),
                Owner::Container(_) | Owner::None | Owner::BeyondShare(_) => {
                    if let Added::Full { owner } = self.cgroups.add_beyond_share(cgroup, *parent) {
                        self.not_followed(owner, at);
                    }
                }
            },
            Fact::Mkdir { parent, path, root: _, beyond_share: false, actor } => {
                match self.cgroups.add(cgroup, *parent, path, at, Some(at)) {
                    Added::Container => self.introduce(at, cgroup, actor.clone(), output),
                    Added::Group | Added::Known => {}
                    Added::Full { owner } => self.refused(cgroup, owner, at, output),
                    Added::Unplaced => self.unknown(event, output),
                }
            }
            Fact::Rmdir { actor } if self.cgroups.owner(cgroup) != Owner::Unknown => {
                self.removed(at, cgroup, Some(actor.clone()), Basis::CgroupRmdir, output);
            }
            Fact::Release => {
                // The removal was lost if this is news.
                self.removed(at, cgroup, None, Basis::CgroupRelease, output);
                // A scan on its way may have met the cgroup.
                let keep_all = self.scan_is_expected();
                self.cgroups.release(cgroup, keep_all, &mut self.budget);
            }
            // What becomes of a container's bounds is no matter of its life, nor how near it comes to them.
            Fact::LimitWrite(_) | Fact::LimitWritesSuppressed(_) | Fact::MemoryCharge(_) => {}
            Fact::OomKill(_)
            | Fact::Rmdir { .. }
            | Fact::Attach { .. }
            | Fact::Populated(_)
            | Fact::Fork { .. }
            | Fact::Exec { .. }
            | Fact::Exit { .. } => match self.cgroups.owner(cgroup) {
                Owner::Container(container) => self.in_container(event, container, output),
                Owner::None | Owner::BeyondShare(_) => {}
                Owner::Unknown => self.unknown(event, output),
            },
        }
    }

    fn container_of(&self, cgroup: CgroupId) -> Option<Arc<Subject>> {
        match self.cgroups.owner(cgroup) {
            Owner::Container(container) | Owner::BeyondShare(container) => {
                self.cgroups.subject(container).cloned()
            }
            Owner::None | Owner::Unknown => None,
        }
    }

    /// A cgroup that exists is not followed because there is no room. What is beyond a container's share gives up its place in the
    /// kernel's set, too.
    fn refused(&mut self, cgroup: CgroupId, owner: Option<CgroupId>, at: KernelTime, output: &mut Output) {
        self.not_followed(owner, at);
        if owner.is_some() {
            output.actions.push(Action::Untrack(cgroup));
        }
    }

    /// A cgroup that exists is not followed, by its container's share or because there is no room at all.
    fn not_followed(&mut self, owner: Option<CgroupId>, at: KernelTime) {
        self.counters.cgroups_full += 1;
        let subject = owner.and_then(|owner| self.cgroups.subject(owner)).cloned();
        self.overflow.note("cgroup_mkdir", subject, at);
        match owner {
            Some(owner) => {
                self.room.is_beyond_share(owner);
            }
            None => self.room.has_no_room(),
        }
    }

    /// Reports processes that did not fit, as that container's.
    fn note_refused_processes(&mut self, container: CgroupId, at: KernelTime) {
        let refused = self.budget.take_unreported();
        if refused > 0 {
            self.overflow.note_many("process", refused, self.cgroups.subject(container).cloned(), at);
        }
    }

    /// Reports what did not fit since the last tick, and looks again where there may be room by now.
    fn tick(&mut self, at: KernelTime, output: &mut Output) {
        self.cgroups.expire(at, &mut self.budget);
        self.overflow.report(at, output);
        if self.room.is_due(at) {
            self.repair_when_there_is_room(at, output);
        }
        self.look_again_at_preparing(at, output);
    }

    fn introduce(&mut self, at: KernelTime, cgroup: CgroupId, actor: Actor, output: &mut Output) {
        if let Some(container) = self.cgroups.container_mut(cgroup) {
            output.emit(at, Basis::CgroupMkdir, &container.subject, Kind::Created { actor: Some(actor) });
            output.actions.push(Action::Resolve(container.subject.container_id.clone()));
        }
    }

    fn removed(
        &mut self,
        at: KernelTime,
        cgroup: CgroupId,
        actor: Option<Actor>,
        basis: Basis,
        output: &mut Output,
    ) {
        if !self.cgroups.exists(cgroup) {
            return;
        }
        if let Some(container) = self.cgroups.container_mut(cgroup) {
            if let Some(stopped) = container.removed(at) {
                output.emit(at, basis, &container.subject, stopped);
            }
            output.emit(at, basis, &container.subject, Kind::Deleted { actor });
        }
        self.other_pods.remove(&cgroup);
        if let Some(container) = self.cgroups.leave_twins(cgroup) {
            output.actions.push(Action::Resolve(container));
        }
        self.forget_existing(cgroup, at);
    }

    /// The cgroup is no more. What is forgotten early for that is reported as its owner's.
    fn forget_existing(&mut self, cgroup: CgroupId, at: KernelTime) {
        let owner = self.cgroups.holder(cgroup);
        for forgotten in self.cgroups.remove(cgroup, at, &mut self.budget) {
            self.counters.removed_forgotten += 1;
            let subject = forgotten.and_then(|owner| self.cgroups.subject(owner)).cloned();
            self.overflow.note("removed_cgroup", subject, at);
        }
        self.room.made(cgroup, owner);
    }

    fn in_container(&mut self, event: KernelEvent, id: CgroupId, output: &mut Output) {
        let KernelEvent { at, cgroup, fact } = event;
        if let Fact::OomKill(kill) = fact {
            return self.oom_kill(at, id, *kill, output);
        }
        let Some(container) = self.cgroups.container_mut(id) else { return };
        let budget = &mut self.budget;
        let (basis, kind) = match fact {
            Fact::Attach { process, actor: _ } => {
                container.attach(at, &process, budget);
                return self.note_refused_processes(id, at);
            }
            Fact::Fork { child, entered } => {
                container.fork(at, &child, entered, budget);
                return self.note_refused_processes(id, at);
            }
            // An inner group's.
            Fact::Populated(_) if cgroup != id => return,
            Fact::Populated(populated) => {
                let stopped = if populated { container.populated(at) } else { container.emptied(at) };
                match stopped {
                    Some(stopped) => (Basis::CgroupPopulated, stopped),
                    None => return,
                }
            }
            Fact::Exec { process, program, first } => {
                let kind = container.exec(at, process, program, first, budget);
                if matches!(kind, Kind::Started { .. }) {
                    container.home = (cgroup != id).then_some(cgroup);
                }
                (Basis::TaskExec, kind)
            }
            Fact::Exit { process, status, first } => {
                (Basis::TaskExit, container.exit(process, status, first, self.unbroken_since, budget))
            }
            Fact::Mkdir { .. }
            | Fact::Rmdir { .. }
            | Fact::Release
            | Fact::LimitWrite(_)
            | Fact::LimitWritesSuppressed(_)
            | Fact::MemoryCharge(_)
            | Fact::OomKill(_) => return,
        };
        output.emit(at, basis, &container.subject, kind);
        self.note_refused_processes(id, at);
    }

    fn oom_kill(&mut self, at: KernelTime, id: CgroupId, kill: OomKill, output: &mut Output) {
        let OomKill { victim, choice, scope, usage, trigger } = kill;
        let home = self.cgroups.container_mut(id).and_then(|container| container.home);
        let scope = scope.map(|scope| match scope {
            OomScope::Machine => OomExhausted::Machine,
            OomScope::Limit(cgroup) => {
                let info = self.cgroups.info_of(cgroup);
                OomExhausted::Limit {
                    cgroup,
                    path: info.as_ref().map(|info| Arc::clone(&info.path)),
                    role: info
                        .as_ref()
                        .map(|info| if home == Some(cgroup) { LevelRole::Container } else { info.role }),
                    pod: info.and_then(|info| info.pod),
                }
            }
        });
        let trigger_cgroup = trigger.cgroup.and_then(|id| self.cgroups.info_of(id)).map(|info| info.path);
        let Some(container) = self.cgroups.container_mut(id) else { return };
        let process = container.oom_kill(victim);
        let kill = OomKilled { process, choice, scope, usage, trigger, trigger_cgroup };
        output.emit(at, Basis::OomKill, &container.subject, Kind::OomKill(Box::new(kill)));
    }

    /// A record about an unknown cgroup: either a scan in progress identifies it, or one is requested, provided
    /// that it can still find the cgroup.
    fn unknown(&mut self, event: KernelEvent, output: &mut Output) {
        self.counters.unknown_cgroup += 1;
        let hopeless = !self.scan_is_expected() && !shows_living_cgroup(&event.fact);
        if hopeless || self.cgroups.is_full() {
            return self.drop_record(event.at);
        }
        if !self.scan_is_expected() {
            self.ask_for_repair(event.at, output);
        }
        // Whose it was is known once the scan has been observed, and reported then.
        if !self.parked.push(event) {
            self.counters.unknown_dropped += 1;
        }
    }

    /// A record is dropped, and nothing says whose it was.
    fn drop_record(&mut self, at: KernelTime) {
        self.counters.unknown_dropped += 1;
        self.overflow.note("record", None, at);
    }

    fn lost(&mut self, loss: Loss, output: &mut Output) {
        let Loss { from, to, cause, lost, by_container, capabilities } = loss;
        self.unbroken_since = self.unbroken_since.max(to);
        let (owned, lost) = self.owners(lost, &by_container);
        // What is left may be any container's.
        let is_any = owned.is_empty() || !lost.is_empty();
        for (subject, lost) in owned {
            let gap = Gap { cause, lost, capabilities: Vec::new(), from, to, path: None };
            output.emit(to, Basis::Daemon, &subject, Kind::Gap(gap));
        }
        if is_any {
            output.emit_own(to, Kind::Gap(Gap { cause, lost, capabilities, from, to, path: None }));
        }
        self.ask_for_repair(to, output).after_gap();
    }

    /// Divides a loss into what was each container's, of those that are known, and the rest.
    fn owners(
        &self,
        mut lost: Lost,
        by_container: &BTreeMap<u32, Lost>,
    ) -> (Vec<(Arc<Subject>, Lost)>, Lost) {
        if by_container.is_empty() {
            return (Vec::new(), lost);
        }
        let mut owned = Vec::new();
        for subject in self.cgroups.named() {
            let number = kwitness_abi::container_number(subject.cgroup_id.0);
            let Some(of_it) = by_container.get(&number) else { continue };
            for (kind, count) in of_it {
                lost.entry(kind.clone()).and_modify(|left| *left = left.saturating_sub(*count));
            }
            owned.push((Arc::clone(subject), of_it.clone()));
        }
        lost.retain(|_, count| *count > 0);
        owned.sort_unstable_by_key(|(subject, _)| subject.cgroup_id);
        (owned, lost)
    }

    fn resolved(
        &mut self,
        at: KernelTime,
        id: &ContainerId,
        facts: Option<Arc<RuntimeFacts>>,
        output: &mut Output,
    ) {
        let Some((facts, cgroup)) = facts.zip(self.cgroups.by_container(id)) else {
            self.counters.runtime_unmatched += 1;
            return;
        };
        let uid = facts.pod_uid.as_ref();
        let is_of_pod = |cgroup: &CgroupId| {
            let pod = self.cgroups.subject(*cgroup).and_then(|subject| subject.pod.as_ref());
            pod.zip(uid).is_none_or(|(pod, uid)| pod.uid.is_static() || pod.uid.is_same(uid))
        };
        let cgroup = match self.cgroups.twins().get(id) {
            None if is_of_pod(&cgroup) => Some(cgroup),
            None => {
                self.other_pods.extend(uid.map(|uid| (cgroup, uid.clone())));
                None
            }
            // The one that lies where the runtime says; if that fits several or none, it is unknown which is the container's.
            Some(twins) => {
                let mut of_pod = twins.iter().copied().filter(is_of_pod);
                of_pod.next().filter(|_| of_pod.next().is_none())
            }
        };
        let Some((cgroup, container)) = cgroup.and_then(|id| Some((id, self.cgroups.container_mut(id)?)))
        else {
            self.counters.runtime_unmatched += 1;
            return;
        };
        let fields = facts::changed_fields(&container.subject, &facts);
        if !fields.is_empty() {
            container.subject = Arc::new(Subject { facts: Some(facts), ..(*container.subject).clone() });
            output.emit(at, Basis::Runtime, &container.subject, Kind::Updated { fields });
        }
        self.cgroups.prefer(id, cgroup);
    }
}

/// Only a cgroup that exists can be the place of this.
fn shows_living_cgroup(fact: &Fact) -> bool {
    match fact {
        Fact::Mkdir { .. }
        | Fact::Attach { .. }
        | Fact::Populated(true)
        | Fact::Fork { .. }
        | Fact::Exec { .. } => true,
        Fact::Rmdir { .. }
        | Fact::Release
        | Fact::Populated(false)
        | Fact::Exit { .. }
        | Fact::LimitWrite(_)
        | Fact::LimitWritesSuppressed(_)
        | Fact::MemoryCharge(_)
        | Fact::OomKill(_) => false,
    }
}
