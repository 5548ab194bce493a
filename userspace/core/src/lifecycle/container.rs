//! One container: its phase, and what each record does to it.
//!
//! ```text
//!   made ──▶ Empty ──populated──▶ Preparing ──start──▶ Running
//!              │                   │     ▲                │
//!              │           emptied │     │ populated      │ emptied
//!              │                   ▼     │                ▼
//!              │                  Stopped ◀───────────────┘
//!              ▼                     │
//!            removed ◀───────────────┘     (removed while Preparing or Running: emptied first)
//! ```
//!
//! `populated` and `emptied` are the kernel's `cgroup.events` of the container's own cgroup, which count the whole
//! subtree: processes that live in inner groups alone keep a container running. A cgroup that is emptied and filled
//! again begins another life in `Preparing`.
//!
//! **The start** distinguishes a container's own first program from the runtime's helper (`runc init`), which is
//! in the same cgroup before it. The kernel side marks it `first`: since the cgroup was made or emptied, the first
//! exec by a process whose mount namespace is not its parent's. A mark can be missed: it was given before the probes
//! were there, or its record was lost. So it is waited for ([`Start::Marked`]) only from the making on, as long as
//! nothing was lost. In any other case ([`Start::ByNamespace`]) every exec by such a process will do. A container without mounts
//! of its own has no start; that a program was executed in it is known all the same, so that it is not said to have never started.
//!
//! Owns the container's processes; never knows of other containers, scans or the runtime.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::{
    CgroupId, ContainerState, ExitStatus, KernelTime, Kind, ProcKey, Process, Role, ScannedProcess, State,
    Subject, TaskInfo,
};

use super::helper;
use super::processes::{Budget, Executed, Known, Processes};

/// A container whose cgroup exists, or did until a while ago.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Container {
    pub(super) subject: Arc<Subject>,
    created_at: Option<KernelTime>,
    /// The cgroup in it that its own program was started in, if it was not started in its own: what the runtime made for it.
    #[serde(default)]
    pub(super) home: Option<CgroupId>,
    phase: Phase,
    /// Since the first process came, a program was executed that is neither the start nor the runtime's helper.
    has_executed: bool,
    /// When the last record came that `phase` rests on: a scan that began later knows better.
    phase_at: KernelTime,
    /// When a process was last seen to come or to do something: a scan that began before may have met none.
    alive_at: Option<KernelTime>,
    /// When the first process came, or was found, of those that are there without a start.
    #[serde(default)]
    filled_at: Option<KernelTime>,
    /// The last scan was [`Weight::Unclear`].
    #[serde(default)]
    unclear: bool,
    processes: Processes,
    forks: u64,
    execs: u64,
    exits: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Phase {
    /// No process yet.
    Empty(Start),
    /// Processes, but none that runs a program of the container's own.
    Preparing(Start),
    /// The container's own program was started, and a process is left.
    Running(Life),
    /// No process is left.
    Stopped {
        at: Option<KernelTime>,
        /// None: it was never started.
        life: Option<Life>,
    },
}

/// How the start will be recognized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Start {
    /// By the kernel side's mark.
    Marked,
    /// By the process's mount namespace, for the mark may have been spent.
    ByNamespace,
}

/// From a start on.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Life {
    started_at: Option<KernelTime>,
    main: Option<Main>,
    main_status: Option<ExitStatus>,
    /// OOM-killed processes whose exit is still to come.
    oom_victims: Vec<ProcKey>,
    main_oom_killed: bool,
}

impl Life {
    /// Of a start that was not seen: when the main process was made. It executed its program a little later.
    fn started_at(&self) -> Option<KernelTime> {
        self.started_at.or_else(|| Some(self.main.as_ref()?.process.key.start_tick()))
    }
}

/// Most [`Life::oom_victims`]: a kill and the victim's exit are some milliseconds apart. With more, `stopped` may not say that the
/// main process was one of them.
const OOM_VICTIMS: usize = 64;

/// The process of the container's own first program.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Main {
    pub(super) process: Process,
    pub(super) program: Option<Arc<str>>,
    pub(super) mnt_ns: Option<u32>,
}

/// What a scan makes of a container.
#[derive(Clone, Debug)]
pub(super) enum Found {
    /// No process.
    Empty,
    /// Nothing but the runtime's helper.
    Preparing,
    /// Processes of its own, and which is the first, if known.
    Running(Option<Main>),
}

/// What a scan is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weight {
    Holds,
    /// A record that the phase rests on is younger.
    Outweighed,
    /// A process was there later, and which phase that makes was lost: another scan shows it.
    Unclear {
        since: KernelTime,
    },
}

impl Container {
    pub(super) fn new(subject: Arc<Subject>, made: KernelTime, created_at: Option<KernelTime>) -> Self {
        let start = if created_at.is_some() { Start::Marked } else { Start::ByNamespace };
        Self {
            subject,
            created_at,
            home: None,
            phase: Phase::Empty(start),
            has_executed: false,
            phase_at: made,
            alive_at: None,
            filled_at: None,
            unclear: false,
            processes: Processes::default(),
            forks: 0,
            execs: 0,
            exits: 0,
        }
    }

    /// A process was moved in, or from one of the container's groups to another.
    pub(super) fn attach(&mut self, at: KernelTime, process: &TaskInfo, budget: &mut Budget) {
        self.fill(at);
        let known = Known { role: Role::Entered, executed: Executed::NotSeen, since: at };
        self.processes.insert_new(process.key, known, budget);
    }

    pub(super) fn fork(&mut self, at: KernelTime, child: &TaskInfo, entered: bool, budget: &mut Budget) {
        self.fill(at);
        self.forks += 1;
        let role = if entered { Role::Entered } else { Role::Child };
        let known = Known { role, executed: Executed::NotSeen, since: at };
        self.processes.insert_new(child.key, known, budget);
    }

    /// The first process came. The kernel reports changes only, so a container thought to run was emptied before.
    pub(super) fn populated(&mut self, at: KernelTime) -> Option<Kind> {
        let stopped = match &mut self.phase {
            Phase::Running(_) if self.phase_at < at => self.stop(None),
            Phase::Preparing(start) if self.phase_at < at => {
                *start = Start::ByNamespace;
                self.has_executed = false;
                self.filled_at = Some(at);
                None
            }
            Phase::Empty(_) | Phase::Preparing(_) | Phase::Running(_) | Phase::Stopped { .. } => None,
        };
        self.fill(at);
        self.phase_at = self.phase_at.max(at);
        stopped
    }

    /// There is a process. Reported by `populated`, or, if that is late or lost, by what the process does; a late record of
    /// what happened before the cgroup was emptied means nothing.
    fn fill(&mut self, at: KernelTime) {
        self.alive_at = self.alive_at.max(Some(at));
        self.phase = match self.phase {
            Phase::Empty(start) => Phase::Preparing(start),
            Phase::Stopped { .. } if self.phase_at < at => Phase::Preparing(Start::ByNamespace),
            Phase::Preparing(_) | Phase::Running(_) | Phase::Stopped { .. } => return,
        };
        self.has_executed = false;
        self.filled_at = Some(at);
    }

    /// The last process went. Stops the container at once, with what is known then: its main process's exit is
    /// older, and has come before.
    pub(super) fn emptied(&mut self, at: KernelTime) -> Option<Kind> {
        self.phase_at = self.phase_at.max(at);
        self.stop(Some(at))
    }

    /// The cgroup was removed, so no process is left in it.
    pub(super) fn removed(&mut self, at: KernelTime) -> Option<Kind> {
        self.phase_at = self.phase_at.max(at);
        match self.phase {
            Phase::Empty(_) => None,
            Phase::Preparing(_) | Phase::Running(_) | Phase::Stopped { .. } => self.stop(Some(at)),
        }
    }

    fn stop(&mut self, at: Option<KernelTime>) -> Option<Kind> {
        let life = match std::mem::replace(&mut self.phase, Phase::Stopped { at, life: None }) {
            Phase::Empty(_) | Phase::Preparing(_) => None,
            Phase::Running(life) => Some(life),
            stopped @ Phase::Stopped { .. } => {
                self.phase = stopped;
                return None;
            }
        };
        let kind = Kind::Stopped {
            main_status: life.as_ref().and_then(|life| life.main_status),
            never_started: life.is_none() && !self.has_executed,
            main_oom_killed: life.as_ref().is_some_and(|life| life.main_oom_killed),
        };
        self.phase = Phase::Stopped { at, life };
        Some(kind)
    }

    pub(super) fn exec(
        &mut self,
        at: KernelTime,
        process: TaskInfo,
        program: Arc<str>,
        first: bool,
        budget: &mut Budget,
    ) -> Kind {
        self.execs += 1;
        self.fill(at);
        let starts = match self.phase {
            // A late record: the life that it started is over.
            _ if at < self.phase_at => false,
            Phase::Preparing(Start::Marked) => first,
            Phase::Preparing(Start::ByNamespace) => first || leaves_parents_namespace(&process),
            Phase::Empty(_) | Phase::Running(_) | Phase::Stopped { .. } => false,
        };
        let role = if starts { Role::Main } else { self.role_of_executing(&process) };
        match self.processes.get_mut(process.key) {
            Some(known) => (known.role, known.executed) = (role, Executed::Yes),
            None => {
                let known = Known { role, executed: Executed::Yes, since: at };
                self.processes.insert_new(process.key, known, budget);
            }
        }
        let mnt_ns = process.mnt_ns;
        let process = with_role(process, role);
        if !starts {
            self.has_executed |= at >= self.phase_at && !is_by_descriptor(&program);
            return Kind::Exec { process, program };
        }
        self.phase_at = at;
        self.start(Some(at), Some(Main { process, program: Some(program), mnt_ns }))
    }

    fn start(&mut self, started_at: Option<KernelTime>, main: Option<Main>) -> Kind {
        let kind = Kind::Started {
            process: main.as_ref().map(|main| main.process.clone()),
            program: main.as_ref().and_then(|main| main.program.clone()),
        };
        self.phase = Phase::Running(Life { started_at, main, ..Life::default() });
        kind
    }

    /// A process that executes a program in the container's mount namespace, and whose parent is in another one, was
    /// put there. (Its parent in the same one: a child. Itself in a third one: it made that itself.)
    fn role_of_executing(&mut self, process: &TaskInfo) -> Role {
        if self.is_main(process.key) {
            return Role::Main;
        }
        let own_namespace = self.main().and_then(|main| main.mnt_ns);
        if own_namespace.is_some() && own_namespace == process.mnt_ns && leaves_parents_namespace(process) {
            return Role::Entered;
        }
        self.processes.get_mut(process.key).map_or(Role::Child, |known| known.role)
    }

    /// Whether this is the main process; if a scan found that, its key is known to the nanosecond from now on.
    fn is_main(&mut self, key: ProcKey) -> bool {
        let (Phase::Running(life) | Phase::Stopped { life: Some(life), .. }) = &mut self.phase else {
            return false;
        };
        let Some(main) = &mut life.main else { return false };
        let same = main.process.key == key;
        if same {
            main.process.key = key;
        }
        same
    }

    /// A process is OOM-killed: its exit follows.
    pub(super) fn oom_kill(&mut self, victim: TaskInfo) -> Process {
        let known = self.processes.get_mut(victim.key).map_or(Role::Child, |known| known.role);
        let role = if self.is_main(victim.key) { Role::Main } else { known };
        if let Phase::Running(life) = &mut self.phase
            && life.oom_victims.len() < OOM_VICTIMS
        {
            life.oom_victims.push(victim.key);
        }
        with_role(victim, role)
    }

    /// `unbroken_since`: no record was lost after that time.
    pub(super) fn exit(
        &mut self,
        process: TaskInfo,
        status: ExitStatus,
        first: bool,
        unbroken_since: KernelTime,
        budget: &mut Budget,
    ) -> Kind {
        self.exits += 1;
        let known = self.processes.remove(process.key, budget);
        let mut role = known.map_or(Role::Child, |known| known.role);
        let is_main = self.is_main(process.key);
        if let Phase::Running(life) | Phase::Stopped { life: Some(life), .. } = &mut self.phase {
            // The mark shows where a scan found the container running, but not which process is its first.
            let victims = life.oom_victims.len();
            life.oom_victims.retain(|victim| *victim != process.key);
            let is_unknown_main = first && life.main.is_none() && life.main_status.is_none();
            if is_main || is_unknown_main {
                role = Role::Main;
                life.main_status = Some(status);
                life.main_oom_killed = life.oom_victims.len() < victims;
            }
        }
        let before_exec =
            known.is_some_and(|known| known.executed == Executed::NotSeen && known.since > unbroken_since);
        Kind::Exited { process: with_role(process, role), status, before_exec }
    }

    /// Whether these processes, which a scan that began at that time found and which look like it, may be the runtime's helper.
    pub(super) fn may_be_preparing(&self, found: &[&ScannedProcess], began: KernelTime) -> bool {
        match &self.phase {
            Phase::Empty(_) | Phase::Stopped { .. } => true,
            Phase::Preparing(_) => self.filled_at.is_none_or(|since| !helper::is_over(since, began)),
            // Only if all of the life that is known is gone, and that was lost.
            Phase::Running(Life { main: Some(main), .. }) if main.mnt_ns.is_some() && !found.is_empty() => {
                found
                    .iter()
                    .all(|process| process.task.key != main.process.key && process.task.mnt_ns != main.mnt_ns)
            }
            Phase::Running(_) => false,
        }
    }

    /// Since when it holds processes without a start.
    pub(super) fn preparing_since(&self) -> Option<KernelTime> {
        self.filled_at.filter(|_| matches!(self.phase, Phase::Preparing(_)))
    }

    /// What a scan that began at that time, and found this, is worth against the records. Never unclear twice in a row: whoever fills
    /// a container anew all the time does not keep scans from being the last.
    pub(super) fn weigh(&mut self, found: &Found, began: KernelTime) -> Weight {
        let was_unclear = std::mem::take(&mut self.unclear);
        let contradicts_life = matches!(
            (&self.phase, found),
            (Phase::Preparing(_) | Phase::Running(_), Found::Empty) | (Phase::Running(_), Found::Preparing)
        );
        match self.alive_at {
            _ if self.phase_at >= began => Weight::Outweighed,
            Some(since) if contradicts_life && since >= began && !was_unclear => {
                self.unclear = true;
                Weight::Unclear { since }
            }
            Some(_) | None => Weight::Holds,
        }
    }

    /// Takes over what a scan found; what that changes is an event.
    pub(super) fn correct(&mut self, found: Found, at: KernelTime) -> Option<Kind> {
        self.phase_at = at;
        match (&mut self.phase, found) {
            (Phase::Empty(_) | Phase::Preparing(_) | Phase::Stopped { .. }, Found::Running(main)) => {
                if let Some(known) = main.as_ref().and_then(|main| self.processes.get_mut(main.process.key)) {
                    (known.role, known.executed) = (Role::Main, Executed::Yes);
                }
                Some(self.start(None, main))
            }
            (Phase::Preparing(_) | Phase::Running(_), Found::Empty) => self.stop(None),
            (Phase::Running(_), Found::Preparing) => {
                let stopped = self.stop(None);
                self.phase = Phase::Preparing(Start::ByNamespace);
                self.filled_at = Some(at);
                stopped
            }
            (Phase::Preparing(start), Found::Preparing) => {
                *start = Start::ByNamespace;
                self.filled_at.get_or_insert(at);
                None
            }
            (Phase::Empty(_) | Phase::Stopped { .. }, Found::Preparing) => {
                self.phase = Phase::Preparing(Start::ByNamespace);
                self.filled_at = Some(at);
                None
            }
            (Phase::Empty(_), Found::Empty) => {
                self.phase = Phase::Empty(Start::ByNamespace);
                None
            }
            // The start was not seen, and a later arrival was mistaken for it.
            (Phase::Running(life), Found::Running(Some(main)))
                if life
                    .main
                    .as_ref()
                    .is_none_or(|known| main.process.key.is_older_than(known.process.key)) =>
            {
                life.main = Some(main);
                None
            }
            (Phase::Running(_), Found::Running(_)) | (Phase::Stopped { .. }, Found::Empty) => None,
        }
    }

    /// Replaces what is remembered of the processes with those that a scan found, but for what is younger.
    pub(super) fn reconcile(&mut self, found: &[(ProcKey, Known)], began: KernelTime, budget: &mut Budget) {
        self.processes.reconcile(found, began, budget);
    }

    /// Forgets the processes: no record of one comes any more.
    pub(super) fn forget_processes(&mut self, budget: &mut Budget) {
        self.processes.clear(budget);
    }

    pub(super) fn main(&self) -> Option<&Main> {
        match &self.phase {
            Phase::Running(life) | Phase::Stopped { life: Some(life), .. } => life.main.as_ref(),
            Phase::Empty(_) | Phase::Preparing(_) | Phase::Stopped { life: None, .. } => None,
        }
    }

    pub(super) fn phase(&self) -> State {
        match self.phase {
            Phase::Empty(_) | Phase::Preparing(_) => State::Created,
            Phase::Running(_) => State::Running,
            Phase::Stopped { .. } => State::Stopped,
        }
    }

    pub(super) fn state(&self) -> ContainerState {
        let (life, stopped_at) = match &self.phase {
            Phase::Empty(_) | Phase::Preparing(_) => (None, None),
            Phase::Running(life) => (Some(life), None),
            Phase::Stopped { at, life } => (life.as_ref(), *at),
        };
        let main = life.and_then(|life| life.main.as_ref());
        ContainerState {
            subject: Arc::clone(&self.subject),
            state: self.phase(),
            created_at: self.created_at,
            started_at: life.and_then(Life::started_at),
            stopped_at,
            main: main.map(|main| main.process.clone()),
            program: main.and_then(|main| main.program.clone()),
            main_status: life.and_then(|life| life.main_status),
            forks: self.forks,
            execs: self.execs,
            exits: self.exits,
        }
    }
}

pub(super) fn with_role(task: TaskInfo, role: Role) -> Process {
    Process { key: task.key, ppid: task.ppid, comm: task.comm, role }
}

/// As `runc init` executes itself again, from a copy in memory. No image's entry point is one.
fn is_by_descriptor(program: &str) -> bool {
    program == "/proc/self/exe" || program.starts_with("/proc/self/fd/") || program.starts_with("/dev/fd/")
}

pub(super) fn leaves_parents_namespace(process: &TaskInfo) -> bool {
    matches!((process.mnt_ns, process.parent_mnt_ns), (Some(own), Some(parents)) if own != parents)
}
