//! Events and containers in words, for tables. What is unknown is shown as such: no cell is ever empty.

use anstyle::{AnsiColor, Style};

pub mod guard;
pub mod kubernetes;
pub mod limits;
mod pressure;

use crate::table::Cell;
use crate::text::{UNKNOWN, short_id, short_uid};
use crate::time::Times;
use kwitness_api::proto::event::Kind;
use kwitness_api::proto::exit_status::Status;
use kwitness_api::{EventKind, proto};

const GOOD: Style = AnsiColor::Green.on_default();
/// What is wrong, or urgent.
pub const BAD: Style = AnsiColor::Red.on_default();
/// What may become so.
pub const NOTICE: Style = AnsiColor::Yellow.on_default();
/// What matters less.
pub const FAINT: Style = Style::new().dimmed();

/// The kind's name, as the JSON has it.
pub fn kind(event: &proto::Event) -> Cell {
    let style = event.kind.as_ref().map_or(NOTICE, kind_style);
    Cell::styled(EventKind::of(event).map_or("unknown", EventKind::name), style)
}

fn kind_style(kind: &Kind) -> Style {
    match kind {
        Kind::Created(_) | Kind::Deleted(_) => Style::new(),
        Kind::Started(_) | Kind::GuardRaised(_) => GOOD,
        Kind::Exec(_) | Kind::Updated(_) | Kind::GuardContinued(_) => FAINT,
        Kind::Exited(exited) if is_bad(exited.status.as_ref()) => BAD,
        Kind::Exited(_) => FAINT,
        Kind::Stopped(stopped) if is_bad(stopped.main_status.as_ref()) => BAD,
        Kind::Stopped(_) => NOTICE,
        Kind::OomKill(_) | Kind::Gap(_) => BAD.bold(),
        Kind::LimitChanged(changed) if refused(changed) => BAD,
        Kind::LimitChanged(_) | Kind::GuardHeld(_) | Kind::GuardReturned(_) => NOTICE,
        Kind::Verdict(verdict) => verdict_style(verdict.verdict()),
        Kind::Pressure(pressure) => pressure::style(pressure),
        Kind::Resynced(_) | Kind::AgentRestarted(_) => NOTICE.bold(),
        Kind::GuardRefused(_) => BAD,
    }
}

/// Whether a status is that of a failure.
fn is_bad(status: Option<&proto::ExitStatus>) -> bool {
    !matches!(status.and_then(|status| status.status), None | Some(Status::Code(0)))
}

/// How a verdict looks.
pub fn verdict_style(verdict: proto::VerdictKind) -> Style {
    match verdict {
        proto::VerdictKind::InForce => GOOD,
        proto::VerdictKind::Pending | proto::VerdictKind::Unknown | proto::VerdictKind::Unspecified => NOTICE,
        _ => BAD,
    }
}

/// What is certain and wrong weighs more than what may still become right.
pub fn severity(kind: proto::VerdictKind) -> u8 {
    match kind {
        proto::VerdictKind::InForce => 0,
        proto::VerdictKind::Pending => 1,
        proto::VerdictKind::Unknown | proto::VerdictKind::Unspecified => 2,
        proto::VerdictKind::OverLimit => 3,
        proto::VerdictKind::Shadowed => 4,
        proto::VerdictKind::Diverged => 5,
        proto::VerdictKind::Rejected => 6,
        proto::VerdictKind::Reverted => 7,
        proto::VerdictKind::Killed => 8,
    }
}

fn refused(changed: &proto::LimitChanged) -> bool {
    changed.write.as_ref().is_some_and(|write| write.errno.is_some())
}

/// The names of whom an event concerns; a pod's cgroup has no container.
pub fn names_of(event: &proto::Event, full: bool) -> Names {
    match (&event.container, &event.kind) {
        (None, Some(Kind::LimitChanged(changed))) => limits::names(changed.cgroup.as_ref(), full),
        (None, Some(Kind::Verdict(verdict))) => limits::names(verdict.cgroup.as_ref(), full),
        (None, Some(Kind::Pressure(pressure))) => limits::names(pressure.cgroup.as_ref(), full),
        (container, _) => names(container.as_ref(), full),
    }
}

/// A verdict, in a line.
fn sentence(verdict: &proto::Verdict) -> String {
    format!("{}: {}", verdict_kind(verdict.verdict()), verdict.reason)
}

/// A verdict's name as people write it: "in force".
pub fn verdict_kind(verdict: proto::VerdictKind) -> String {
    word(verdict.as_str_name(), "VERDICT_KIND_").replace('_', " ")
}

/// Names for a table's columns; ids where no name is known.
#[derive(Clone, Debug)]
pub struct Names {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name, or its UID.
    pub pod: String,
    /// The container's name, or its ID.
    pub container: String,
}

impl Names {
    /// The pod with its namespace, as the command line takes it: `prod/web-0`.
    pub fn qualified(&self) -> String {
        if self.namespace == UNKNOWN { self.pod.clone() } else { format!("{}/{}", self.namespace, self.pod) }
    }
}

/// The names of a container; in full, or shortened where ids stand for them.
pub fn names(container: Option<&proto::Container>, full: bool) -> Names {
    let unknown = || UNKNOWN.to_owned();
    let Some(container) = container else {
        return Names { namespace: unknown(), pod: unknown(), container: unknown() };
    };
    let id = short_id(&container.id);
    let pod = container.pod.as_ref();
    Names {
        namespace: pod.and_then(|pod| pod.namespace.clone()).unwrap_or_else(unknown),
        pod: pod.map_or_else(unknown, |pod| {
            pod.name.clone().unwrap_or_else(|| if full { &pod.uid } else { short_uid(&pod.uid) }.to_owned())
        }),
        container: match (&container.name, container.r#type()) {
            (Some(name), _) => name.clone(),
            (None, proto::ContainerType::Sandbox) => "(sandbox)".to_owned(),
            (None, _) => id.to_owned(),
        },
    }
}

/// What an event says, in a line.
pub fn detail(event: &proto::Event, times: Times) -> String {
    let Some(kind) = &event.kind else { return "an event kind that this release does not know".to_owned() };
    let mut text = match kind {
        Kind::Created(proto::Created { actor }) | Kind::Deleted(proto::Deleted { actor }) => {
            actor.as_ref().map_or_else(String::new, |actor| format!("by {} ({})", actor.comm, actor.pid))
        }
        Kind::Started(proto::Started { process, program }) => run(program.as_deref(), process.as_ref()),
        Kind::Exec(proto::Exec { process, program }) => run(Some(program), process.as_ref()),
        Kind::Exited(exited) => {
            let process = exited.process.as_ref().map_or_else(String::new, describe_process);
            // Of a child this says nothing: most forks never execute anything.
            let entered = exited.process.as_ref().is_some_and(|of| of.role() == proto::ProcessRole::Entered);
            let early = if exited.before_exec && entered { ", before exec" } else { "" };
            format!("{process}: {}{early}", exit_status(exited.status.as_ref()))
        }
        Kind::Stopped(proto::Stopped { never_started: true, .. }) => "never started".to_owned(),
        Kind::Stopped(proto::Stopped { main_status, main_oom_killed: true, .. }) => {
            let status = main_status.as_ref();
            let signal = status.filter(|status| matches!(status.status, Some(Status::Signal(_))));
            signal.map_or_else(|| "OOMKilled".to_owned(), |of| format!("OOMKilled ({})", of.signal_name))
        }
        Kind::Stopped(proto::Stopped { main_status, .. }) => exit_status(main_status.as_ref()),
        Kind::OomKill(kill) => limits::oom_kill(kill),
        Kind::Updated(proto::Updated { fields }) => fields.join(", "),
        Kind::LimitChanged(changed) => limits::change(changed),
        Kind::Verdict(verdict) => sentence(verdict),
        Kind::Pressure(pressure) => pressure::sentence(pressure),
        Kind::Gap(gap) => describe_gap(gap, times),
        Kind::Resynced(proto::Resynced { found, gone, corrected }) => {
            format!("state repaired: {found} found, {gone} gone, {corrected} corrected")
        }
        Kind::AgentRestarted(proto::AgentRestarted { records, .. }) => {
            format!("the daemon was restarted: {records} records of the time without it were read")
        }
        Kind::GuardHeld(held) => guard::held(held),
        Kind::GuardRaised(raised) => guard::raised(raised),
        Kind::GuardContinued(continued) => guard::continued(continued),
        Kind::GuardRefused(refused) => guard::refused(refused),
        Kind::GuardReturned(returned) => guard::returned(returned),
    };
    let found = match event.basis() {
        proto::Basis::InitialScan => "found at startup",
        proto::Basis::RepairScan => "found after the gap",
        _ => return if text.is_empty() { UNKNOWN.to_owned() } else { text },
    };
    if !text.is_empty() {
        text.push_str(", ");
    }
    text + found
}

fn run(program: Option<&str>, process: Option<&proto::Process>) -> String {
    let program = program.unwrap_or("program unknown");
    match process {
        Some(process) => format!("{program} ({}{})", process.pid, role(process)),
        None => program.to_owned(),
    }
}

pub(super) fn describe_process(process: &proto::Process) -> String {
    format!("{} ({}{})", process.comm, process.pid, role(process))
}

fn role(process: &proto::Process) -> &'static str {
    match process.role() {
        proto::ProcessRole::Main => ", main",
        proto::ProcessRole::Entered => ", entered",
        proto::ProcessRole::Child | proto::ProcessRole::Unspecified => "",
    }
}

/// How something ended, in words.
pub fn exit_status(status: Option<&proto::ExitStatus>) -> String {
    let Some(status) = status else { return "exit status unknown".to_owned() };
    match status.status {
        Some(Status::Code(code)) => format!("exit code {code}"),
        Some(Status::Signal(signal)) => {
            let core = if status.core_dumped { ", core dumped" } else { "" };
            format!("killed by {} ({signal}){core}", status.signal_name)
        }
        None => "exit status unknown".to_owned(),
    }
}

fn describe_gap(gap: &proto::Gap, times: Times) -> String {
    let cause = match gap.cause() {
        proto::GapCause::RingFull => "a kernel ring was full",
        proto::GapCause::TrackedSetFull => "the set of tracked cgroups was full",
        proto::GapCause::MalformedRecord => "records could not be decoded",
        proto::GapCause::WatchOverflow => "fanotify did not report all limit writes; the number is unknown",
        proto::GapCause::CapacityExceeded => "a bound of the daemon was reached",
        proto::GapCause::CgroupUnreadable => "a cgroup cannot be read: it and those below are left out",
        proto::GapCause::ProgramSkipped => "the kernel skipped probes (upper bounds)",
        proto::GapCause::AgentDown => "not recorded while no daemon ran",
        proto::GapCause::GuardReportsDropped => "the guard could not report to the daemon",
        proto::GapCause::CriRequestsMissed => "the CRI proxy missed requests for limits",
        proto::GapCause::WatcherLagged => "this client was too slow",
        proto::GapCause::ReplayExpired if gap.first_seq.is_none() && gap.last_seq.is_none() => {
            "the daemon was restarted; events in between were not seen"
        }
        proto::GapCause::ReplayExpired => "earlier events are no longer kept",
        proto::GapCause::Unspecified => "unknown cause",
    };
    let mut text = cause.to_owned();
    if let Some(path) = &gap.cgroup_path {
        text += &format!(" ({path})");
    }
    if !gap.capabilities.is_empty() {
        text += &format!(": {}", gap.capabilities.join(", "));
    }
    let lost: Vec<String> = gap.lost.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    if !lost.is_empty() {
        text += &format!(": lost {}", lost.join(", "));
    }
    if let (Some(from), Some(to)) = (gap.from, gap.to) {
        text += &format!(", between {} and {}", times.show(Some(from)), times.show(Some(to)));
    }
    text
}

/// A container's state.
pub fn state(state: &proto::ContainerState) -> Cell {
    match state.state() {
        proto::State::Created => Cell::from("Created"),
        proto::State::Running => Cell::styled("Running", GOOD),
        proto::State::Stopped => {
            Cell::styled("Stopped", if is_bad(state.main_status.as_ref()) { BAD } else { NOTICE })
        }
        proto::State::Unspecified => Cell::from(UNKNOWN),
    }
}

/// The QoS class as Kubernetes writes it.
pub fn qos_class(class: proto::QosClass) -> &'static str {
    match class {
        proto::QosClass::Guaranteed => "Guaranteed",
        proto::QosClass::Burstable => "Burstable",
        proto::QosClass::BestEffort => "BestEffort",
        proto::QosClass::Unspecified => UNKNOWN,
    }
}

/// The name of an enum's value, without its prefix and in lower case: "containerd".
pub fn word(name: &str, prefix: &str) -> String {
    match name.strip_prefix(prefix) {
        Some("UNSPECIFIED") | None => UNKNOWN.to_owned(),
        Some(word) => word.to_lowercase(),
    }
}

#[cfg(test)]
pub(super) mod testing {
    //! One of each, with all and with little known.

    use super::*;
    use kwitness_api::{EventKind, Timestamp};

    pub fn container(known: bool) -> proto::Container {
        proto::Container {
            id: "0123456789abcdef".repeat(4),
            cgroup_id: 4242,
            cgroup_path: "/kubepods.slice/x".into(),
            runtime: proto::Runtime::Containerd.into(),
            pod: Some(proto::Pod {
                uid: "1d4e5f60-aaaa-bbbb-cccc-123456789abc".into(),
                namespace: known.then(|| "prod".into()),
                name: known.then(|| "web-5d9c7b8f6d-x2x7p".into()),
                qos_class: proto::QosClass::Burstable.into(),
            }),
            name: known.then(|| "nginx".into()),
            image: known.then(|| "docker.io/library/nginx:1.29".into()),
            labels: Default::default(),
            r#type: if known { proto::ContainerType::App } else { proto::ContainerType::Unspecified }.into(),
        }
    }

    fn process(role: proto::ProcessRole) -> Option<proto::Process> {
        Some(proto::Process {
            pid: 1234,
            start_time: 1,
            parent_pid: 1,
            comm: "nginx".into(),
            role: role.into(),
        })
    }

    fn signal() -> Option<proto::ExitStatus> {
        Some(proto::ExitStatus {
            status: Some(Status::Signal(9)),
            core_dumped: true,
            signal_name: "SIGKILL".into(),
        })
    }

    pub fn events() -> Vec<proto::Event> {
        let actor = || Some(proto::Actor { pid: 77, comm: "runc".into() });
        let kinds = [
            (false, proto::Basis::CgroupMkdir, Kind::Created(proto::Created { actor: actor() })),
            (false, proto::Basis::InitialScan, Kind::Created(proto::Created { actor: None })),
            (
                true,
                proto::Basis::TaskExec,
                Kind::Started(proto::Started {
                    process: process(proto::ProcessRole::Main),
                    program: Some("/usr/sbin/nginx".into()),
                }),
            ),
            (
                true,
                proto::Basis::TaskExec,
                Kind::Exec(proto::Exec {
                    process: process(proto::ProcessRole::Entered),
                    program: "/bin/sh".into(),
                }),
            ),
            (
                true,
                proto::Basis::TaskExit,
                Kind::Exited(proto::Exited {
                    process: process(proto::ProcessRole::Entered),
                    status: signal(),
                    before_exec: true,
                }),
            ),
            (
                true,
                proto::Basis::CgroupPopulated,
                Kind::Stopped(proto::Stopped {
                    main_status: Some(proto::ExitStatus {
                        status: Some(Status::Code(0)),
                        ..Default::default()
                    }),
                    never_started: false,
                    main_oom_killed: false,
                }),
            ),
            (
                true,
                proto::Basis::CgroupPopulated,
                Kind::Stopped(proto::Stopped {
                    main_status: None,
                    never_started: true,
                    main_oom_killed: false,
                }),
            ),
            (
                true,
                proto::Basis::CgroupPopulated,
                Kind::Stopped(proto::Stopped {
                    main_status: signal(),
                    never_started: false,
                    main_oom_killed: true,
                }),
            ),
            (
                true,
                proto::Basis::OomKill,
                Kind::OomKill(Box::new(limits::testing::oom_kill(process(proto::ProcessRole::Child)))),
            ),
            (true, proto::Basis::CgroupRmdir, Kind::Deleted(proto::Deleted { actor: None })),
            (true, proto::Basis::LimitWrite, Kind::LimitChanged(Box::new(limits::testing::refused()))),
            (
                true,
                proto::Basis::Runtime,
                Kind::Updated(proto::Updated { fields: vec!["name".into(), "pod.name".into()] }),
            ),
        ];
        let about_node = [
            Kind::Gap(proto::Gap {
                cause: proto::GapCause::RingFull.into(),
                lost: [("task_exec".to_owned(), 3), ("task_exit".to_owned(), 5)].into(),
                ..Default::default()
            }),
            Kind::Resynced(proto::Resynced { found: 1, gone: 2, corrected: 3 }),
            Kind::AgentRestarted(proto::AgentRestarted { records: 7, ..Default::default() }),
        ];
        let of_pod = [
            (proto::Basis::LimitWrite, Kind::LimitChanged(Box::new(limits::testing::accepted()))),
            (proto::Basis::LimitRead, Kind::LimitChanged(Box::new(limits::testing::found()))),
            (proto::Basis::LimitRead, Kind::Verdict(Box::new(super::limits::testing::shadowed()))),
            (proto::Basis::MemorySample, Kind::Pressure(Box::new(super::pressure::testing::rising()))),
        ];
        let event = |container, basis: proto::Basis, kind| proto::Event {
            position: Some(proto::Position { epoch: "e".into(), seq: 7 }),
            time: Some(Timestamp::default()),
            kernel_time: 1,
            container,
            basis: basis.into(),
            r#type: EventKind::from(&kind).name().to_owned(),
            kind: Some(kind),
        };
        let of_guard = guard::testing::kinds().into_iter().map(|kind| (true, proto::Basis::Guard, kind));
        let of_containers = kinds
            .into_iter()
            .chain(of_guard)
            .map(|(known, basis, kind)| event(Some(container(known)), basis, kind));
        let of_pod = of_pod.into_iter().map(|(basis, kind)| event(None, basis, kind));
        let about_node = about_node.map(|kind| event(None, proto::Basis::Daemon, kind));
        of_containers.chain(of_pod).chain(about_node).collect()
    }

    pub fn containers() -> Vec<proto::ContainerState> {
        let at = |seconds| Some(Timestamp { seconds, nanos: 0 });
        vec![
            proto::ContainerState {
                container: Some(container(true)),
                state: proto::State::Running.into(),
                created_at: at(1_767_350_000),
                started_at: at(1_767_357_500),
                main: process(proto::ProcessRole::Main),
                program: Some("/usr/sbin/nginx".into()),
                execs: 3,
                exits: 2,
                ..Default::default()
            },
            proto::ContainerState {
                container: Some(proto::Container {
                    name: None,
                    r#type: proto::ContainerType::Sandbox.into(),
                    ..container(true)
                }),
                state: proto::State::Created.into(),
                ..Default::default()
            },
            proto::ContainerState {
                container: Some(container(false)),
                state: proto::State::Stopped.into(),
                main_status: signal(),
                ..Default::default()
            },
        ]
    }
}
