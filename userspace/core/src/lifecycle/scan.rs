//! What a walk of the cgroup tree changes: containers found, gone and corrected.
//!
//! The probes are attached before a scan begins, and all records that were made until it ended have been observed before it. So
//! a scan is compared with the present state, and three things weigh more than what it found:
//!
//! - a removal that was observed: the scan met the cgroup before, and does not bring it back;
//! - a record on which a container's phase rests and that is not older than the scan's beginning;
//! - parked records: they are what happened in a cgroup that was unknown. The cgroup takes the state in which
//!   the first of them must have found it, then they are replayed.
//!
//! A cgroup that was made before the scan began and that it did not meet is gone, unless it may lie in one that could not be
//! read. A scan that met no process where one was seen since settles nothing: another is requested, once. What may be the runtime's
//! helper is weighed in [`super::helper`].

use std::collections::BTreeSet;
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};
use serde::{Deserialize, Serialize};

use crate::model::{
    Action, Basis, CgroupId, Event, Fact, Gap, GapCause, KernelTime, Kind, Output, PathText, ProcKey, Role,
    Scan, ScanReason, ScannedProcess, Unreadable, UnreadableCgroup,
};

use super::cgroups::{Added, Owner};
use super::container::{Container, Found, Main, Weight, leaves_parents_namespace, with_role};
use super::helper::may_be_helper;
use super::parked::{Refused, place};
use super::processes::{Executed, Known};
use super::{Lifecycle, StartUp, shows_living_cgroup};

/// A requested repair.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Repair {
    /// A scan settles it if it did not begin before.
    since: KernelTime,
    /// Watchers got a gap, and wait for the end.
    is_reported: bool,
    /// By scans that did not settle it.
    tally: Tally,
}

impl Repair {
    fn new(since: KernelTime) -> Self {
        Self { since, is_reported: false, tally: Tally::default() }
    }

    pub(super) fn after_gap(&mut self) {
        self.is_reported = true;
    }
}

/// What scans changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Tally {
    found: u32,
    gone: u32,
    corrected: u32,
}

impl Tally {
    fn resynced(self) -> Kind {
        let Self { found, gone, corrected } = self;
        Kind::Resynced { found, gone, corrected }
    }

    fn add(&mut self, other: Self) {
        self.found += other.found;
        self.gone += other.gone;
        self.corrected += other.corrected;
    }
}

/// What a scan found of one container, its inner groups included.
#[derive(Debug)]
struct View<'a> {
    container: CgroupId,
    known: Knowledge,
    /// When the scan began.
    began: KernelTime,
    populated: Option<bool>,
    processes: Vec<&'a ScannedProcess>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Knowledge {
    Known,
    /// Found by this scan.
    News,
}

/// What a scan did to a container that was known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Correction {
    None,
    Made,
    /// A scan that does not begin before that time shows it.
    Unclear {
        since: KernelTime,
    },
}

/// What parked records say about the state in which they found a container.
#[derive(Clone, Copy, Debug, Default)]
struct Before {
    /// The first of them.
    first: Option<KernelTime>,
    started_by: Option<ProcKey>,
    filled: bool,
    emptied: bool,
}

impl Lifecycle {
    pub(super) fn scan_is_expected(&self) -> bool {
        self.start_up == StartUp::Scanning || self.repair.is_some()
    }

    /// Asks for a scan that begins now, unless one is on its way; that one may turn out to have begun too early.
    pub(super) fn ask_for_repair(&mut self, since: KernelTime, output: &mut Output) -> &mut Repair {
        if self.repair.is_none() {
            output.actions.push(Action::Rescan);
        }
        let repair = self.repair.get_or_insert(Repair::new(since));
        repair.since = repair.since.max(since);
        repair
    }

    pub(super) fn scan(&mut self, scan: &Scan, output: &mut Output) {
        let basis = match scan.reason {
            ScanReason::Initial => Basis::InitialScan,
            ScanReason::Repair => Basis::RepairScan,
        };
        let beyond_share = self.room.scanned(scan.ended);
        self.cgroups.reconsider();
        let gone = self.remove_missing(scan, basis, output);
        let before = std::mem::replace(&mut self.unreadable, scan.unreadable.clone());
        if scan.untracked > 0 {
            self.room.has_no_room();
            self.overflow.note_many("cgroup_mkdir", scan.untracked, None, scan.ended);
        }
        let views = self.look(scan, &beyond_share, output);
        let found = self.introduce_found(&views, scan, basis, output);
        self.report_unreadable(&before, scan, output);
        for view in &views {
            self.remember_processes(view, scan.began);
        }
        self.replay_parked(scan, output);
        let mut corrected = 0;
        let mut unclear = self.unsettled();
        self.preparing.clear();
        for view in &views {
            match self.correct(view, scan, basis, output) {
                Correction::None => {}
                Correction::Made => corrected += 1,
                Correction::Unclear { since } => unclear = unclear.max(Some(since)),
            }
        }
        self.conclude(scan, Tally { found, gone, corrected }, unclear, output);
        for container in beyond_share.difference(self.room.beyond_share()) {
            if let Some(subject) =
                self.cgroups.subject(*container).filter(|_| self.cgroups.exists(*container))
            {
                output.emit(scan.ended, Basis::Daemon, subject, Tally::default().resynced());
            }
        }
    }

    /// What is not followed may be by now.
    pub(super) fn repair_when_there_is_room(&mut self, at: KernelTime, output: &mut Output) {
        self.room.scan_is_requested();
        output.actions.push(Action::Rescan);
        self.repair.get_or_insert(Repair::new(at)).after_gap();
    }

    /// Reports what could not be read and could be before, by its name as far as it is named; and that all can be again.
    fn report_unreadable(&mut self, before: &Unreadable, scan: &Scan, output: &mut Output) {
        let Unreadable { count, cgroups } = &scan.unreadable;
        let is_news =
            |cgroup: &&UnreadableCgroup| !before.cgroups.iter().any(|known| known.path == cgroup.path);
        let unnamed = |unreadable: &Unreadable| unreadable.count - unreadable.cgroups.len() as u64;
        let more = unnamed(&scan.unreadable).saturating_sub(unnamed(before));
        let news = cgroups.iter().filter(is_news).map(|cgroup| (1, Some(cgroup)));
        for (count, cgroup) in news.chain((more > 0).then_some((more, None))) {
            let gap = Gap {
                cause: GapCause::CgroupUnreadable,
                lost: [("cgroup".to_owned(), count)].into(),
                capabilities: Vec::new(),
                from: scan.began,
                to: scan.ended,
                path: cgroup.map(|cgroup| Arc::clone(&cgroup.path)),
            };
            let subject = cgroup.and_then(|cgroup| self.container_of(cgroup.parent));
            output.events.push(Event { at: scan.ended, basis: Basis::Daemon, subject, kind: Kind::Gap(gap) });
        }
        if *count == 0 && !before.is_empty() {
            self.repair.get_or_insert(Repair::new(scan.began)).after_gap();
        }
    }

    fn remove_missing(&mut self, scan: &Scan, basis: Basis, output: &mut Output) -> u32 {
        let met: FxHashSet<CgroupId> = scan.cgroups.iter().map(|cgroup| cgroup.id).collect();
        let mut gone = 0;
        for id in self.cgroups.existing_before(scan.began) {
            if !met.contains(&id) && !self.cgroups.may_be_hidden(id, &scan.unreadable) {
                gone += u32::from(self.cgroups.container_mut(id).is_some());
                self.removed(scan.ended, id, None, basis, output);
            }
        }
        gone
    }

    /// Adds the cgroups that are news, and sorts all processes by container.
    /// `beyond_share`: the containers that were before, whose gaps are reported.
    fn look<'a>(
        &mut self,
        scan: &'a Scan,
        beyond_share: &BTreeSet<CgroupId>,
        output: &mut Output,
    ) -> Vec<View<'a>> {
        let mut views: Vec<View<'a>> = Vec::new();
        let mut index: FxHashMap<CgroupId, usize> = FxHashMap::default();
        for cgroup in &scan.cgroups {
            let path = PathText::Full(Arc::clone(&cgroup.path));
            let added = match cgroup.beyond_share {
                true => self.cgroups.add_beyond_share(cgroup.id, cgroup.parent),
                false => self.cgroups.add(cgroup.id, cgroup.parent, &path, scan.began, None),
            };
            let known = match added {
                Added::Container => Knowledge::News,
                Added::Group | Added::Known => Knowledge::Known,
                Added::Full { owner: Some(owner) } if beyond_share.contains(&owner) => {
                    self.room.is_beyond_share(owner);
                    output.actions.push(Action::Untrack(cgroup.id));
                    continue;
                }
                Added::Full { owner } => {
                    self.refused(cgroup.id, owner, scan.ended, output);
                    continue;
                }
                // In a container that was removed or found no place.
                Added::Unplaced => continue,
            };
            let Owner::Container(container) = self.cgroups.owner(cgroup.id) else { continue };
            if !self.cgroups.exists(container) {
                // The scan met it before. What is parked of it is still its container's.
                self.forget_existing(cgroup.id, scan.ended);
                continue;
            }
            if !self.cgroups.exists(cgroup.id) {
                continue;
            }
            let place = *index.entry(container).or_insert_with(|| {
                views.push(View {
                    container,
                    known,
                    began: scan.began,
                    populated: None,
                    processes: Vec::new(),
                });
                views.len() - 1
            });
            let view = &mut views[place];
            if cgroup.id == container {
                view.populated = cgroup.populated;
            }
            view.processes.extend(&cgroup.processes);
        }
        views
    }

    fn before_parked(&self) -> FxHashMap<CgroupId, Before> {
        let mut all: FxHashMap<CgroupId, Before> = FxHashMap::default();
        let mut made_within: FxHashMap<CgroupId, CgroupId> = FxHashMap::default();
        for event in self.parked.iter() {
            let place = place(event);
            let owner = match self.cgroups.owner(place) {
                Owner::Container(container) => Some(container),
                Owner::None => None,
                Owner::BeyondShare(_) => None,
                Owner::Unknown => made_within.get(&place).copied(),
            };
            let Some(container) = owner else { continue };
            made_within.insert(event.cgroup, container);
            let before = all.entry(container).or_default();
            before.first = Some(before.first.map_or(event.at, |first| first.min(event.at)));
            match &event.fact {
                Fact::Exec { process, first, .. }
                    if *first || (before.filled && leaves_parents_namespace(process)) =>
                {
                    before.started_by.get_or_insert(process.key);
                }
                Fact::Populated(true) if event.cgroup == container => before.filled = true,
                Fact::Populated(false) if event.cgroup == container => before.emptied = true,
                _ => {}
            }
        }
        all
    }

    /// Gives the containers that are news the state that they were in before what is parked happened in them.
    fn introduce_found(&mut self, views: &[View<'_>], scan: &Scan, basis: Basis, output: &mut Output) -> u32 {
        let before = self.before_parked();
        let mut found = 0;
        for view in views.iter().filter(|view| view.known == Knowledge::News) {
            let Some(container) = self.cgroups.container_mut(view.container) else { continue };
            let before = before.get(&view.container).copied().unwrap_or_default();
            let made = before.first.map_or(scan.began, |first| first.min(scan.began));
            output.emit(made, basis, &container.subject, Kind::Created { actor: None });
            output.actions.push(Action::Resolve(container.subject.container_id.clone()));
            let state = before.state(view, container);
            if let Some(kind) = container.correct(state, made) {
                output.emit(made, basis, &container.subject, kind);
            }
            found += 1;
        }
        found
    }

    fn remember_processes(&mut self, view: &View<'_>, began: KernelTime) {
        let Some(container) = self.cgroups.container_mut(view.container) else { return };
        let main = container.main().cloned();
        let remember =
            |process: &&ScannedProcess| (process.task.key, remembered(process, main.as_ref(), began));
        let processes: Vec<_> = view.processes.iter().map(remember).collect();
        container.reconcile(&processes, began, &mut self.budget);
        self.note_refused_processes(view.container, began);
    }

    /// Corrects what the records did not show.
    fn correct(&mut self, view: &View<'_>, scan: &Scan, basis: Basis, output: &mut Output) -> Correction {
        let Some(container) = self.cgroups.container_mut(view.container) else { return Correction::None };
        let Some(found) = view.found(container) else { return Correction::None };
        if matches!(found, Found::Preparing) {
            self.preparing.insert(view.container);
        }
        match container.weigh(&found, scan.began) {
            Weight::Outweighed => return Correction::None,
            Weight::Unclear { since } => return Correction::Unclear { since },
            Weight::Holds => {}
        }
        let Some(kind) = container.correct(found, scan.began) else { return Correction::None };
        output.emit(scan.ended, basis, &container.subject, kind);
        match view.known {
            Knowledge::Known => Correction::Made,
            Knowledge::News => Correction::None,
        }
    }

    /// Records whose cgroup is known by now have their effect; of the others, those that the scan could have seen
    /// are given up.
    fn replay_parked(&mut self, scan: &Scan, output: &mut Output) {
        for (place, Refused { count, from }) in self.parked.take_refused() {
            let owner = place.and_then(|place| self.container_of(place));
            self.overflow.note_many("record", count, owner, from);
        }
        for event in self.parked.take() {
            let placed = match &event.fact {
                Fact::Mkdir { parent, .. } => {
                    self.cgroups.owner(event.cgroup) != Owner::Unknown
                        || self.cgroups.owner(*parent) != Owner::Unknown
                }
                _ => self.cgroups.owner(event.cgroup) != Owner::Unknown,
            };
            if placed {
                self.kernel(event, output);
            } else if event.at >= scan.began {
                // It had room before.
                let _ = self.parked.push(event);
            } else {
                self.give_up(event.at, scan);
            }
        }
    }

    /// A parked record is given up. Of what was gone before the first scan came by, nothing was reported, so nothing is missing.
    fn give_up(&mut self, at: KernelTime, scan: &Scan) {
        match scan.reason {
            ScanReason::Initial => self.counters.unknown_dropped += 1,
            ScanReason::Repair => self.drop_record(at),
        }
    }

    /// The latest parked record of a cgroup that a later scan may find.
    fn unsettled(&self) -> Option<KernelTime> {
        let ended: FxHashSet<CgroupId> = self
            .parked
            .iter()
            .filter(|event| matches!(event.fact, Fact::Rmdir { .. }))
            .map(|event| event.cgroup)
            .collect();
        self.parked
            .iter()
            .filter(|event| shows_living_cgroup(&event.fact) && !ended.contains(&event.cgroup))
            .map(|event| event.at)
            .max()
    }

    /// `unclear`: the time of the latest record that only a later scan can make sense of.
    fn conclude(&mut self, scan: &Scan, tally: Tally, unclear: Option<KernelTime>, output: &mut Output) {
        self.start_up = StartUp::Done;
        match scan.reason {
            ScanReason::Initial => {
                if let Some(latest) = unclear {
                    self.ask_for_repair(latest, output);
                }
            }
            ScanReason::Repair => {
                let mut repair = self.repair.take().unwrap_or(Repair::new(scan.began));
                repair.since = repair.since.max(unclear.unwrap_or(scan.began));
                repair.tally.add(tally);
                if scan.began < repair.since {
                    output.actions.push(Action::Rescan);
                    self.repair = Some(repair);
                } else if self.room.is_full() {
                    // Not right as long as something is not followed.
                    self.repair = Some(repair);
                } else if repair.is_reported || repair.tally != Tally::default() {
                    output.emit_own(scan.ended, repair.tally.resynced());
                }
            }
        }
        if self.repair.is_none() {
            for event in self.parked.take() {
                self.give_up(event.at, scan);
            }
        }
    }
}

impl View<'_> {
    fn own(&self) -> impl Iterator<Item = &ScannedProcess> {
        self.processes.iter().copied().filter(|process| !may_be_helper(process, self.began))
    }

    /// The oldest process that did not come from one in its own mount namespace.
    fn main(&self) -> Option<Main> {
        self.own()
            .filter(|process| leaves_parents_namespace(&process.task))
            .min_by_key(|process| process.task.key.start)
            .map(|process| Main {
                process: with_role(process.task.clone(), Role::Main),
                program: process.program.clone(),
                mnt_ns: process.task.mnt_ns,
            })
    }

    /// The state of the container, of which that is known; none if the scan could not determine it.
    fn found(&self, container: &Container) -> Option<Found> {
        // One that is filled, but none of whose processes lasted until it was read, may be either.
        let is_filled = !self.processes.is_empty() || self.populated == Some(true);
        let is_own =
            || self.own().next().is_some() || !container.may_be_preparing(&self.processes, self.began);
        match is_filled {
            true if is_own() => Some(Found::Running(self.main())),
            true => Some(Found::Preparing),
            false => (self.populated == Some(false)).then_some(Found::Empty),
        }
    }
}

impl Before {
    /// The state in which the first parked record found the container that the scan met later, or earlier.
    fn state(self, view: &View<'_>, container: &Container) -> Found {
        match (self.started_by, view.found(container)) {
            // The start will be replayed, unless an older process shows that it was none.
            (Some(starter), Some(Found::Running(Some(main)))) if main.process.key.is_older_than(starter) => {
                Found::Running(Some(main))
            }
            (Some(_), _) => Found::Empty,
            (None, _) if self.filled => Found::Empty,
            // Something ran, and was gone before the scan came by.
            (None, Some(Found::Empty) | None) if self.emptied => Found::Running(None),
            (None, found) => found.unwrap_or(Found::Empty),
        }
    }
}

/// What is remembered of a process that a scan found: assumed to have executed a program, unless it may be the runtime's helper.
fn remembered(process: &ScannedProcess, main: Option<&Main>, since: KernelTime) -> Known {
    if main.is_some_and(|main| main.process.key == process.task.key) {
        return Known { role: Role::Main, executed: Executed::Yes, since };
    }
    let is_with_main = main.is_some_and(|main| main.mnt_ns == process.task.mnt_ns);
    if may_be_helper(process, since) && !is_with_main {
        return Known { role: Role::Entered, executed: Executed::NotSeen, since };
    }
    let is_entered = is_with_main && leaves_parents_namespace(&process.task);
    let role = if is_entered { Role::Entered } else { Role::Child };
    Known { role, executed: Executed::Yes, since }
}
