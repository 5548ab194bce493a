//! The machine against a small model of the kernel: containers made, filled, started, entered, ended and removed in any
//! order. Without loss, exactly the expected events come out. With records dropped at random, and scans that take
//! time while life goes on, the state is right again at the end, and no event is doubled or out of order.

use std::collections::{BTreeMap, BTreeSet};

use crate::common::*;
use kwitness_core::lifecycle::Bounds;
use kwitness_core::model::{
    Action, Basis, CgroupId, Event, ExitStatus, Fact, KernelTime, Kind, ScanReason, ScannedCgroup, State,
    TaskInfo,
};
use proptest::prelude::*;

/// What can happen; the numbers choose among what there is.
#[derive(Clone, Copy, Debug)]
enum Op {
    Make,
    MakeInner(u8),
    Fill(u8),
    Start(u8),
    Fork(u8, u8),
    Exec(u8, u8),
    Enter(u8),
    Exit(u8, u8),
    Remove(u8),
}

fn op() -> impl Strategy<Value = Op> {
    let (a, b) = (any::<u8>(), any::<u8>());
    prop_oneof![
        2 => Just(Op::Make),
        1 => any::<u8>().prop_map(Op::MakeInner),
        4 => any::<u8>().prop_map(Op::Fill),
        4 => any::<u8>().prop_map(Op::Start),
        3 => (a, b).prop_map(|(a, b)| Op::Fork(a, b)),
        3 => (a, b).prop_map(|(a, b)| Op::Exec(a, b)),
        2 => any::<u8>().prop_map(Op::Enter),
        4 => (a, b).prop_map(|(a, b)| Op::Exit(a, b)),
        2 => any::<u8>().prop_map(Op::Remove),
    ]
}

/// A record on its way.
struct Record {
    at: u64,
    cgroup: u64,
    fact: Fact,
}

#[derive(Clone)]
struct Proc {
    cgroup: u64,
    task: TaskInfo,
    role: &'static str,
    program: String,
    executed: bool,
}

#[derive(Clone, Default)]
struct Container {
    inner: Vec<u64>,
    procs: BTreeMap<u32, Proc>,
    main: Option<u32>,
    started_at: u64,
    /// How often it was filled.
    fillings: u32,
}

impl Container {
    fn runs(&self) -> bool {
        self.main.is_some()
    }
}

/// The kernel, and the events that are expected of it.
#[derive(Default)]
struct Kernel {
    now: u64,
    last_id: u64,
    last_pid: u32,
    containers: BTreeMap<u64, Container>,
    /// Cgroups whose first exec was marked, or that were made in such a one; until they are emptied.
    marked: BTreeSet<u64>,
    records: Vec<Record>,
    expected: Vec<String>,
}

impl Kernel {
    fn new() -> Self {
        Self { now: 1000, last_id: POD, last_pid: 10, ..Self::default() }
    }

    fn record(&mut self, cgroup: u64, fact: Fact) -> u64 {
        self.now += 1;
        self.records.push(Record { at: self.now, cgroup, fact });
        self.now
    }

    fn expect(&mut self, at: u64, what: &str, cgroup: u64) {
        self.expected.push(format!("{at} {what} {cgroup}"));
    }

    fn pick(&self, choice: u8) -> Option<u64> {
        self.containers.keys().nth(usize::from(choice) % self.containers.len().max(1)).copied()
    }

    fn pick_process(&self, container: u64, choice: u8) -> Option<u32> {
        let procs = &self.containers[&container].procs;
        procs.keys().nth(usize::from(choice) % procs.len().max(1)).copied()
    }

    fn new_pid(&mut self) -> u32 {
        self.last_pid += 1;
        self.last_pid
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Make => {
                self.last_id += 1;
                let id = self.last_id;
                self.containers.insert(id, Container::default());
                let at = self.record(id, mkdir(POD, &container_path(id)));
                self.expect(at, "created by runc (mkdir)", id);
            }
            Op::MakeInner(c) => {
                let Some(c) = self.pick(c) else { return };
                self.last_id += 1;
                let id = self.last_id;
                self.containers.entry(c).or_default().inner.push(id);
                if self.marked.contains(&c) {
                    self.marked.insert(id);
                }
                // A long path every other time.
                let path =
                    if id.is_multiple_of(2) { format!("{}/{id}", container_path(c)) } else { id.to_string() };
                self.record(id, mkdir(c, &path));
            }
            Op::Fill(c) => {
                if let Some(c) = self.pick(c).filter(|c| self.containers[c].procs.is_empty()) {
                    self.come_in(c);
                }
            }
            Op::Enter(c) => {
                if let Some(c) = self.pick(c).filter(|c| self.containers[c].runs()) {
                    self.come_in(c);
                }
            }
            Op::Start(c) => {
                let Some(c) = self.pick(c) else { return };
                if !self.containers[&c].runs()
                    && let Some(&helper) = self.containers[&c].procs.keys().next()
                {
                    self.exec(c, helper);
                }
            }
            Op::Fork(c, p) => {
                let Some(c) = self.pick(c) else { return };
                let Some(parent) = self.pick_process(c, p) else { return };
                let parent = self.containers[&c].procs[&parent].clone();
                if parent.executed {
                    let pid = self.new_pid();
                    let task = child(pid, c);
                    self.insert(
                        c,
                        pid,
                        Proc { task: task.clone(), role: "child", executed: false, ..parent.clone() },
                    );
                    self.record(parent.cgroup, Fact::Fork { child: task, entered: false });
                }
            }
            Op::Exec(c, p) => {
                let Some(c) = self.pick(c).filter(|c| self.containers[c].runs()) else { return };
                if let Some(pid) = self.pick_process(c, p) {
                    self.exec(c, pid);
                }
            }
            Op::Exit(c, p) => {
                let Some(c) = self.pick(c) else { return };
                if let Some(pid) = self.pick_process(c, p) {
                    self.exit(c, pid);
                }
            }
            Op::Remove(c) => {
                let Some(c) = self.pick(c).filter(|c| self.containers[c].procs.is_empty()) else { return };
                let container = self.containers.remove(&c).unwrap_or_default();
                for inner in container.inner {
                    self.record(inner, Fact::Rmdir { actor: runc() });
                }
                let at = self.record(c, Fact::Rmdir { actor: runc() });
                self.expect(at, "deleted by runc (rmdir)", c);
                self.record(c, Fact::Release);
            }
        }
    }

    fn insert(&mut self, c: u64, pid: u32, process: Proc) {
        self.containers.entry(c).or_default().procs.insert(pid, process);
    }

    fn population(&self, c: u64, group: u64) -> usize {
        self.containers[&c].procs.values().filter(|process| process.cgroup == group).count()
    }

    /// The runtime's helper enters: into the newest inner group, if there is one.
    fn come_in(&mut self, c: u64) {
        let group = self.containers[&c].inner.last().copied().unwrap_or(c);
        let pid = self.new_pid();
        let was_empty = self.containers[&c].procs.is_empty();
        if group != c && self.population(c, group) == 0 {
            self.record(group, Fact::Populated(true));
        }
        if was_empty {
            self.record(c, Fact::Populated(true));
            self.containers.entry(c).or_default().fillings += 1;
        }
        self.record(group, Fact::Attach { process: task(pid), actor: runc() });
        let program = "/usr/bin/runc".to_owned();
        self.insert(
            c,
            pid,
            Proc { cgroup: group, task: task(pid), role: "entered", program, executed: false },
        );
    }

    fn exec(&mut self, c: u64, pid: u32) {
        let Some(process) = self.containers[&c].procs.get(&pid).cloned() else { return };
        let starts = !self.containers[&c].runs();
        let role = if starts { "main" } else { process.role };
        let task = if role == "child" { child(pid, c) } else { entering(pid, c) };
        let first = role != "child" && self.marked.insert(process.cgroup);
        let program = format!("/bin/{}", self.now);
        let at = self.record(
            process.cgroup,
            Fact::Exec { process: task.clone(), program: program.as_str().into(), first },
        );
        let what = if starts { "started" } else { "exec" };
        self.expect(at, &format!("{what} {role} {pid} {program} (exec)"), c);
        self.insert(c, pid, Proc { task, role, program, executed: true, ..process });
        if starts {
            let container = self.containers.entry(c).or_default();
            (container.main, container.started_at) = (Some(pid), at);
        }
    }

    /// The main process takes the others with it, as the first of a pid namespace does.
    fn exit(&mut self, c: u64, pid: u32) {
        let main = self.containers[&c].main == Some(pid);
        let others: Vec<u32> =
            self.containers[&c].procs.keys().copied().filter(|&other| other != pid).collect();
        let code = (self.now % 200) as u8;
        self.exit_one(c, pid, code);
        if main {
            for other in others {
                self.exit_one(c, other, 137);
            }
        }
        if self.containers[&c].procs.is_empty() {
            let at = self.record(c, Fact::Populated(false));
            self.marked.remove(&c);
            let started = self.containers.entry(c).or_default().main.take().is_some();
            let what =
                if started { format!("stopped code {code}") } else { "stopped ? never_started".to_owned() };
            self.expect(at, &format!("{what} (populated)"), c);
        }
    }

    fn exit_one(&mut self, c: u64, pid: u32, code: u8) {
        let Some(process) = self.containers.entry(c).or_default().procs.remove(&pid) else { return };
        let status = ExitStatus::Code(code);
        let at = self.record(process.cgroup, Fact::Exit { process: process.task, status, first: false });
        let before = if process.executed { "" } else { " before_exec" };
        self.expect(at, &format!("exited {} {pid} code {code}{before} (exit)", process.role), c);
        if process.cgroup != c && self.population(c, process.cgroup) == 0 {
            self.record(process.cgroup, Fact::Populated(false));
            if !self.marked.contains(&c) {
                self.marked.remove(&process.cgroup);
            }
        }
    }

    /// What a scan meets that looks now.
    fn look(&self) -> BTreeMap<u64, Vec<ScannedCgroup>> {
        let view = |(&c, container): (&u64, &Container)| {
            let in_group = |group: u64| -> Vec<(TaskInfo, &str)> {
                let here = container.procs.values().filter(|process| process.cgroup == group);
                here.map(|process| (process.task.clone(), process.program.as_str())).collect()
            };
            let mut own = crate::common::container(c, in_group(c));
            own.populated = Some(!container.procs.is_empty());
            let inner = container
                .inner
                .iter()
                .map(|&group| scanned(group, c, &format!("{}/{group}", container_path(c)), in_group(group)));
            (c, std::iter::once(own).chain(inner).collect())
        };
        self.containers.iter().map(view).collect()
    }
}

/// A machine that observes the kernel.
struct Observed {
    kernel: Kernel,
    node: Node,
    events: Vec<Event>,
    /// Times of the exec and exit records that were delivered.
    delivered: BTreeSet<u64>,
    dropped: BTreeSet<u64>,
}

impl Observed {
    /// Delivers the records but for those that are dropped, which are reported as a loss.
    fn deliver(&mut self, drops: &[bool]) {
        let mut drops = drops.iter().copied().chain(std::iter::repeat(false));
        let mut lost: Option<(u64, u64)> = None;
        for Record { at, cgroup, fact } in self.kernel.records.drain(..) {
            if drops.next() == Some(true) {
                self.dropped.insert(at);
                lost = Some((lost.map_or(at, |(from, _)| from), at));
                continue;
            }
            if matches!(fact, Fact::Exec { .. } | Fact::Exit { .. }) {
                self.delivered.insert(at);
            }
            self.node.kernel_at(at, cgroup, fact);
        }
        if let Some((from, to)) = lost {
            self.node.lose(from, to);
        }
        self.events.append(&mut self.node.output.events);
    }

    /// Walks the tree while `ops` happen: meets half of the containers before, half after.
    fn scan(&mut self, reason: ScanReason, ops: &[Op], drops: &[bool]) {
        self.kernel.now += 1;
        let began = self.kernel.now;
        let early = self.kernel.look();
        ops.iter().for_each(|&op| self.kernel.apply(op));
        let late = self.kernel.look();
        self.deliver(drops);
        self.kernel.now += 1;
        let mut cgroups = vec![pod()];
        cgroups.extend(early.into_iter().filter(|(id, _)| id.is_multiple_of(2)).flat_map(|(_, view)| view));
        cgroups.extend(late.into_iter().filter(|(id, _)| !id.is_multiple_of(2)).flat_map(|(_, view)| view));
        self.node.now = self.kernel.now - 1;
        self.node.scan(reason, began, cgroups);
        self.events.append(&mut self.node.output.events);
    }

    fn requests_a_rescan(&mut self) -> bool {
        let requested = self.node.actions().into_iter().filter(|action| *action == Action::Rescan).count();
        assert!(requested <= 1, "one scan at a time");
        requested == 1
    }

    fn check_state(&self) {
        let known: BTreeMap<u64, _> = self
            .node
            .machine
            .containers()
            .map(|container| (container.subject.cgroup_id.0, container))
            .collect();
        let truth = &self.kernel.containers;
        assert!(known.keys().eq(truth.keys()), "{:?} instead of {:?}", known.keys(), truth.keys());
        for (id, container) in truth {
            let state = &known[id];
            if container.runs() {
                assert_eq!(state.state, State::Running, "{id}");
                // If the start was lost, whatever enters before the scan is done may be mistaken for it.
                if container.fillings == 1 && !self.dropped.contains(&container.started_at) {
                    assert_eq!(state.main.as_ref().map(|main| main.key.pid), container.main, "{id}");
                }
            } else if container.procs.is_empty() {
                // Whether an empty one was ever filled may be lost.
                assert_ne!(state.state, State::Running, "{id}");
            } else {
                assert_eq!(state.state, State::Created, "{id}");
            }
        }
    }

    fn check_events(&self) {
        let mut phases: BTreeMap<CgroupId, &str> = BTreeMap::new();
        let mut reported: BTreeSet<KernelTime> = BTreeSet::new();
        for event in &self.events {
            let Some(subject) = &event.subject else { continue };
            let before = phases.get(&subject.cgroup_id).copied();
            let after = match (before, &event.kind) {
                (None, Kind::Created { .. }) => "created",
                (Some("created" | "stopped"), Kind::Started { .. }) => "started",
                (Some("created" | "started" | "stopped"), Kind::Stopped { .. }) => "stopped",
                (Some("created" | "stopped"), Kind::Deleted { .. }) => "deleted",
                (Some(same), Kind::Exec { .. } | Kind::Exited { .. }) => same,
                _ => panic!("{} after {before:?}", line(event)),
            };
            phases.insert(subject.cgroup_id, after);
            if matches!(event.basis, Basis::TaskExec | Basis::TaskExit) {
                assert!(reported.insert(event.at), "doubled: {}", line(event));
            }
        }
        if self.node.machine.counters().unknown_dropped == 0 {
            let delivered: BTreeSet<_> = self.delivered.iter().copied().map(KernelTime).collect();
            assert_eq!(reported, delivered, "each record delivered is an event");
        }
    }
}

fn ops(max: usize) -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(op(), 0..max)
}

fn drops() -> impl Strategy<Value = Vec<bool>> {
    prop_oneof![
        2 => Just(vec![]),
        3 => prop::collection::vec(prop::bool::weighted(0.15), 0..80),
        1 => prop::collection::vec(prop::bool::weighted(0.7), 0..80),
    ]
}

proptest! {
    #[test]
    fn without_loss_every_event_is_exactly_right(ops in ops(200)) {
        let mut kernel = Kernel::new();
        let mut node = Node::new();
        ops.into_iter().for_each(|op| kernel.apply(op));
        for Record { at, cgroup, fact } in std::mem::take(&mut kernel.records) {
            node.kernel_at(at, cgroup, fact);
        }
        let seen = Observed { kernel, node, events: vec![], delivered: BTreeSet::new(), dropped: BTreeSet::new() };
        seen.check_state();
        let Observed { kernel, mut node, .. } = seen;
        prop_assert_eq!(node.events(), kernel.expected);
        prop_assert_eq!(node.machine.counters(), Default::default());
    }

    #[test]
    fn with_loss_the_state_is_right_again_after_the_repair(
        before in ops(60),
        marks_are_seeded in any::<bool>(),
        while_starting in ops(30),
        rounds in prop::collection::vec((ops(40), drops(), ops(15), drops()), 0..4),
    ) {
        let mut kernel = Kernel::new();
        before.into_iter().for_each(|op| kernel.apply(op));
        // The probes are attached here; what was before is unknown to them.
        kernel.records.clear();
        if !marks_are_seeded {
            kernel.marked.clear();
        }
        let mut seen = Observed {
            kernel,
            node: Node::starting(Bounds::default()),
            events: vec![],
            delivered: BTreeSet::new(),
            dropped: BTreeSet::new(),
        };
        seen.scan(ScanReason::Initial, &while_starting, &[]);
        prop_assert!(!seen.requests_a_rescan());
        seen.check_state();
        seen.check_events();
        for (ops, drops, during, drops_during) in rounds {
            ops.into_iter().for_each(|op| seen.kernel.apply(op));
            seen.deliver(&drops);
            let mut meanwhile = (during, drops_during);
            while seen.requests_a_rescan() {
                let (ops, drops) = std::mem::take(&mut meanwhile);
                seen.scan(ScanReason::Repair, &ops, &drops);
            }
            seen.check_state();
            seen.check_events();
        }
    }
}
