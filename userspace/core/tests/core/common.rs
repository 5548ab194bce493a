//! A node in a few words: observations made tersely, events read tersely.

use std::collections::BTreeMap;
use std::sync::Arc;

use kwitness_core::lifecycle::{Bounds, Lifecycle};
use kwitness_core::model::{
    Action, Actor, Basis, Caller, CgroupId, ContainerId, ContainerState, ContainerType, Event, ExitStatus,
    Fact, GapCause, KernelEvent, KernelTime, Kind, Loss, Observation, OomExhausted, OomKill, OomScope,
    Output, PathText, ProcKey, Process, Role, RuntimeFacts, Scan, ScanReason, ScannedCgroup, ScannedProcess,
    State, TaskInfo,
};

/// To what a scan knows start times.
pub const TICK: u64 = 10_000_000;
/// The mount namespace of the node.
pub const NODE_NS: u32 = 1;
/// The cgroup of the one pod of these tests.
pub const POD: u64 = 1;
/// Its path.
pub const POD_PATH: &str = "/kubepods/burstable/pod1b4f2a3c-0d5e-4f6a-8b7c-9d0e1f2a3b4c";

/// The id of the container in that cgroup.
pub fn container_id(cgroup: u64) -> ContainerId {
    ContainerId(format!("{cgroup:064x}").into())
}

/// The path of the container in that cgroup.
pub fn container_path(cgroup: u64) -> String {
    format!("{POD_PATH}/{}", container_id(cgroup))
}

/// A process of the node, which shares its parent's mount namespace.
pub fn task(pid: u32) -> TaskInfo {
    TaskInfo {
        key: ProcKey { pid, start: KernelTime(u64::from(pid) * TICK + 1_234_567) },
        ppid: 2,
        mnt_ns: Some(NODE_NS),
        parent_mnt_ns: Some(NODE_NS),
        comm: "runc:[2:INIT]".into(),
    }
}

/// A process in the container's mount namespace (its number is the cgroup's plus 1000), with such a parent.
pub fn child(pid: u32, cgroup: u64) -> TaskInfo {
    let ns = Some(1000 + u32::try_from(cgroup).unwrap_or(0));
    TaskInfo { mnt_ns: ns, parent_mnt_ns: ns, comm: "sh".into(), ..task(pid) }
}

/// A process in the container's mount namespace whose parent is in the node's.
pub fn entering(pid: u32, cgroup: u64) -> TaskInfo {
    TaskInfo { parent_mnt_ns: Some(NODE_NS), ..child(pid, cgroup) }
}

/// Facts as a runtime would report them.
pub fn facts(name: &str) -> Arc<RuntimeFacts> {
    Arc::new(RuntimeFacts {
        runtime: None,
        created_at: None,
        container_type: ContainerType::App,
        name: Some(name.into()),
        pod_name: Some("web-0".into()),
        pod_namespace: Some("default".into()),
        pod_uid: None,
        image: None,
        labels: BTreeMap::new(),
    })
}

/// A machine, a clock, and what came out since one looked last.
pub struct Node {
    pub machine: Lifecycle,
    pub output: Output,
    pub now: u64,
}

impl Node {
    /// A machine that waits for its initial scan.
    pub fn starting(limits: Bounds) -> Self {
        Self { machine: Lifecycle::new(limits), output: Output::default(), now: 100 }
    }

    /// A machine that has seen the pod's cgroup, and nothing else.
    pub fn new() -> Self {
        Self::with(Bounds::default())
    }

    pub fn with(limits: Bounds) -> Self {
        let mut node = Self::starting(limits);
        node.scan(ScanReason::Initial, node.now, vec![pod()]);
        assert!(node.events().is_empty() && node.actions().is_empty());
        node
    }

    pub fn observe(&mut self, observation: Observation) {
        self.machine.observe(observation, &mut self.output);
    }

    /// A record at the next tick of the clock.
    pub fn kernel(&mut self, cgroup: u64, fact: Fact) {
        self.now += 1;
        self.kernel_at(self.now, cgroup, fact);
    }

    pub fn kernel_at(&mut self, at: u64, cgroup: u64, fact: Fact) {
        self.observe(Observation::Kernel(KernelEvent { at: KernelTime(at), cgroup: CgroupId(cgroup), fact }));
    }

    pub fn mkdir(&mut self, cgroup: u64) {
        self.mkdir_at(cgroup, POD, &container_path(cgroup));
    }

    pub fn mkdir_at(&mut self, cgroup: u64, parent: u64, path: &str) {
        self.kernel(cgroup, mkdir(parent, path));
    }

    pub fn populated(&mut self, cgroup: u64, populated: bool) {
        self.kernel(cgroup, Fact::Populated(populated));
    }

    pub fn attach(&mut self, cgroup: u64, process: TaskInfo) {
        self.kernel(cgroup, Fact::Attach { process, actor: runc() });
    }

    pub fn fork(&mut self, cgroup: u64, child: TaskInfo) {
        self.kernel(cgroup, Fact::Fork { child, entered: false });
    }

    pub fn exec(&mut self, cgroup: u64, process: TaskInfo, program: &str) {
        self.kernel(cgroup, Fact::Exec { process, program: program.into(), first: false });
    }

    pub fn first_exec(&mut self, cgroup: u64, process: TaskInfo, program: &str) {
        self.kernel(cgroup, Fact::Exec { process, program: program.into(), first: true });
    }

    pub fn exit(&mut self, cgroup: u64, process: TaskInfo, code: u8) {
        self.kernel(cgroup, Fact::Exit { process, status: ExitStatus::Code(code), first: false });
    }

    pub fn rmdir(&mut self, cgroup: u64) {
        self.kernel(cgroup, Fact::Rmdir { actor: runc() });
    }

    pub fn release(&mut self, cgroup: u64) {
        self.kernel(cgroup, Fact::Release);
    }

    /// What runc does up to the start: the helper enters, and executes the container's program as the process `pid`.
    pub fn start(&mut self, cgroup: u64, pid: u32) {
        self.mkdir(cgroup);
        self.populated(cgroup, true);
        self.attach(cgroup, task(pid));
        self.first_exec(cgroup, entering(pid, cgroup), "/bin/app");
        self.events();
        self.actions();
    }

    /// The kernel OOM-kills a process of the cgroup.
    pub fn oom_kill(&mut self, cgroup: u64, victim: TaskInfo, scope: Option<OomScope>) {
        let kill = OomKill { victim, choice: None, scope, usage: None, trigger: Caller::default() };
        self.kernel(cgroup, Fact::OomKill(Box::new(kill)));
    }

    /// Records of the given time span were lost.
    pub fn lose(&mut self, from: u64, to: u64) {
        self.observe(Observation::Lost(Loss {
            from: KernelTime(from),
            to: KernelTime(to),
            cause: GapCause::RingFull,
            lost: BTreeMap::from([("task_exec".to_owned(), 3)]),
            by_container: BTreeMap::new(),
            capabilities: Vec::new(),
        }));
    }

    /// So many `task_exec` were lost at a time, of these so many in each of the given containers.
    pub fn lose_of(&mut self, at: u64, count: u64, containers: &[(u64, u64)]) {
        let lost = |count| BTreeMap::from([("task_exec".to_owned(), count)]);
        self.observe(Observation::Lost(Loss {
            from: KernelTime(at),
            to: KernelTime(at),
            cause: GapCause::RingFull,
            lost: lost(count),
            by_container: containers
                .iter()
                .map(|(cgroup, of)| (kwitness_abi::container_number(*cgroup), lost(*of)))
                .collect(),
            capabilities: Vec::new(),
        }));
    }

    /// A scan that began at a time and ends now.
    pub fn scan(&mut self, reason: ScanReason, began: u64, cgroups: Vec<ScannedCgroup>) {
        self.now += 1;
        let (began, ended) = (KernelTime(began), KernelTime(self.now));
        self.observe(Observation::Scan(Scan { ended, cgroups, ..Scan::empty(reason, began) }));
    }

    pub fn resolve(&mut self, cgroup: u64, facts: Option<Arc<RuntimeFacts>>) {
        self.now += 1;
        let (at, container) = (KernelTime(self.now), container_id(cgroup));
        self.observe(Observation::Runtime { at, container, facts });
    }

    /// The events since one looked last, one line each.
    pub fn events(&mut self) -> Vec<String> {
        self.output.events.drain(..).map(|event| line(&event)).collect()
    }

    pub fn actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.output.actions)
    }

    pub fn state(&self, cgroup: u64) -> Option<ContainerState> {
        self.machine.containers().find(|container| container.subject.cgroup_id == CgroupId(cgroup))
    }

    pub fn phase(&self, cgroup: u64) -> Option<State> {
        self.state(cgroup).map(|container| container.state)
    }
}

pub fn runc() -> Actor {
    Actor { pid: 9, comm: "runc".into() }
}

pub fn mkdir(parent: u64, path: &str) -> Fact {
    let path = match path.starts_with('/') {
        true => PathText::Full(path.into()),
        false => PathText::Name(path.into()),
    };
    Fact::Mkdir { parent: CgroupId(parent), path, root: false, beyond_share: false, actor: runc() }
}

/// A scanned cgroup, with processes and what they run.
pub fn scanned(id: u64, parent: u64, path: &str, processes: Vec<(TaskInfo, &str)>) -> ScannedCgroup {
    let populated = Some(!processes.is_empty());
    let processes = processes
        .into_iter()
        .map(|(mut task, program)| {
            task.key.start.0 -= task.key.start.0 % TICK;
            ScannedProcess { task, program: Some(program.into()) }
        })
        .collect();
    let (id, parent, path) = (CgroupId(id), CgroupId(parent), path.into());
    ScannedCgroup { id, parent, path, beyond_share: false, populated, processes }
}

/// The scanned pod.
pub fn pod() -> ScannedCgroup {
    scanned(POD, 0, POD_PATH, vec![])
}

/// A scanned container.
pub fn container(cgroup: u64, processes: Vec<(TaskInfo, &str)>) -> ScannedCgroup {
    scanned(cgroup, POD, &container_path(cgroup), processes)
}

/// `TIME KIND DETAIL (BASIS) CGROUP`
pub fn line(event: &Event) -> String {
    let status = |status: &ExitStatus| match status {
        ExitStatus::Code(code) => format!("code {code}"),
        ExitStatus::Signal { signal, .. } => format!("signal {signal}"),
    };
    let process = |process: &Process| {
        let role = match process.role {
            Role::Main => "main",
            Role::Entered => "entered",
            Role::Child => "child",
        };
        format!("{role} {}", process.key.pid)
    };
    let what = match &event.kind {
        Kind::Created { actor: Some(actor) } => format!("created by {}", actor.comm),
        Kind::Created { actor: None } => "created".to_owned(),
        Kind::Started { process: Some(main), program } => {
            format!("started {} {}", process(main), program.as_deref().unwrap_or("?"))
        }
        Kind::Started { process: None, .. } => "started ?".to_owned(),
        Kind::Exec { process: who, program } => format!("exec {} {program}", process(who)),
        Kind::Exited { process: who, status: how, before_exec } => {
            format!(
                "exited {} {}{}",
                process(who),
                status(how),
                if *before_exec { " before_exec" } else { "" }
            )
        }
        Kind::Stopped { main_status, never_started, main_oom_killed } => format!(
            "stopped {}{}{}",
            main_status.as_ref().map_or("?".to_owned(), status),
            if *never_started { " never_started" } else { "" },
            if *main_oom_killed { " oom" } else { "" }
        ),
        Kind::OomKill(kill) => {
            let scope = match &kill.scope {
                None => "?".to_owned(),
                Some(OomExhausted::Machine) => "machine".to_owned(),
                Some(OomExhausted::Limit { role, .. }) => {
                    role.map_or("?".to_owned(), |role| format!("{role:?}"))
                }
            };
            format!("oom kill {} {scope}", process(&kill.process))
        }
        Kind::Deleted { actor: Some(actor) } => format!("deleted by {}", actor.comm),
        Kind::Deleted { actor: None } => "deleted".to_owned(),
        Kind::Updated { fields } => format!("updated {}", fields.join(",")),
        Kind::LimitChanged(changed) => {
            format!("limit {} {} -> {}", changed.limit_file, changed.old, changed.new)
        }
        Kind::Verdict(judged) => format!("verdict {}", judged.judgement.verdict.name()),
        Kind::Pressure(pressure) => format!("pressure {:?} {}", pressure.direction, pressure.threshold),
        Kind::Gap(gap) => format!("gap {:?} {:?}", gap.cause, gap.lost),
        Kind::Resynced { found, gone, corrected } => {
            format!("resynced found {found} gone {gone} corrected {corrected}")
        }
        Kind::AgentRestarted { records, .. } => format!("agentRestarted {records} records"),
        Kind::Guard(act) => format!("guard {act:?}"),
    };
    let basis = match event.basis {
        Basis::CgroupMkdir => "mkdir",
        Basis::CgroupRmdir => "rmdir",
        Basis::CgroupRelease => "release",
        Basis::CgroupPopulated => "populated",
        Basis::TaskExec => "exec",
        Basis::TaskExit => "exit",
        Basis::LimitWrite => "limit write",
        Basis::LimitRead => "limit read",
        Basis::OomKill => "oom kill",
        Basis::MemorySample => "memory sample",
        Basis::MemoryCharge => "memory charge",
        Basis::InitialScan => "initial scan",
        Basis::RepairScan => "repair scan",
        Basis::Runtime => "runtime",
        Basis::Daemon => "daemon",
        Basis::Guard => "guard",
    };
    let subject = event.subject.as_ref().map_or(String::new(), |subject| format!(" {}", subject.cgroup_id));
    format!("{} {what} ({basis}){subject}", event.at.0)
}
