//! Events and containers in words, for tables. What is not known is said to be so; no cell is ever empty.

use anstyle::{AnsiColor, Style};

use super::table::Cell;
use super::text::{UNKNOWN, short_id, short_uid, time_of_day};
use crate::proto::v1;
use crate::proto::v1::event::Kind;
use crate::proto::v1::exit_status::Status;

const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default();
const NOTICE: Style = AnsiColor::Yellow.on_default();
const FAINT: Style = Style::new().dimmed();

/// The kind's name, as the JSON has it.
pub fn kind(event: &v1::Event) -> Cell {
    let (name, style) = match &event.kind {
        Some(Kind::Created(_)) => ("created", Style::new()),
        Some(Kind::Started(_)) => ("started", GOOD),
        Some(Kind::Exec(_)) => ("exec", FAINT),
        Some(Kind::Exited(exited)) => ("exited", if is_bad(exited.status.as_ref()) { BAD } else { FAINT }),
        Some(Kind::Stopped(stopped)) => {
            ("stopped", if is_bad(stopped.main_status.as_ref()) { BAD } else { NOTICE })
        }
        Some(Kind::Deleted(_)) => ("deleted", Style::new()),
        Some(Kind::Updated(_)) => ("updated", FAINT),
        Some(Kind::OomKill(_)) => ("oomKill", BAD.bold()),
        Some(Kind::LimitChanged(changed)) => ("limitChanged", if refused(changed) { BAD } else { NOTICE }),
        Some(Kind::Verdict(verdict)) => ("verdict", verdict_style(verdict.verdict())),
        Some(Kind::Gap(_)) => ("gap", BAD.bold()),
        Some(Kind::Resynced(_)) => ("resynced", NOTICE.bold()),
        None => ("unknown", NOTICE),
    };
    Cell::styled(name, style)
}

/// Whether a status is that of a failure.
fn is_bad(status: Option<&v1::ExitStatus>) -> bool {
    !matches!(status.and_then(|status| status.status), None | Some(Status::Code(0)))
}

/// How a verdict looks.
pub fn verdict_style(verdict: v1::VerdictKind) -> Style {
    match verdict {
        v1::VerdictKind::InForce => GOOD,
        v1::VerdictKind::Pending | v1::VerdictKind::Unknown | v1::VerdictKind::Unspecified => NOTICE,
        _ => BAD,
    }
}

fn refused(changed: &v1::LimitChanged) -> bool {
    changed.write.as_ref().is_some_and(|write| write.errno.is_some())
}

/// The names of whom an event concerns; a pod's cgroup has no container.
pub fn names_of(event: &v1::Event, full: bool) -> Names {
    match (&event.container, &event.kind) {
        (None, Some(Kind::LimitChanged(changed))) => super::limits::names(changed.cgroup.as_ref(), full),
        (None, Some(Kind::Verdict(verdict))) => super::limits::names(verdict.cgroup.as_ref(), full),
        (container, _) => names(container.as_ref(), full),
    }
}

/// Names for a table's columns; ids where no name is known.
pub struct Names {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name, or its UID.
    pub pod: String,
    /// The container's name, or its id.
    pub container: String,
}

/// The names of a container; in full, or shortened where ids stand for them.
pub fn names(container: Option<&v1::Container>, full: bool) -> Names {
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
            (None, v1::ContainerType::Sandbox) => "(sandbox)".to_owned(),
            (None, _) => id.to_owned(),
        },
    }
}

/// What an event says, in a line.
pub fn detail(event: &v1::Event) -> String {
    let Some(kind) = &event.kind else { return "a kind of event that this release does not know".to_owned() };
    let mut text = match kind {
        Kind::Created(v1::Created { actor }) | Kind::Deleted(v1::Deleted { actor }) => {
            actor.as_ref().map_or_else(String::new, |actor| format!("by {} ({})", actor.comm, actor.pid))
        }
        Kind::Started(v1::Started { process, program }) => run(program.as_deref(), process.as_ref()),
        Kind::Exec(v1::Exec { process, program }) => run(Some(program), process.as_ref()),
        Kind::Exited(exited) => {
            let process = exited.process.as_ref().map_or_else(String::new, describe_process);
            // Of a child this says nothing: most forks never execute anything.
            let entered = exited.process.as_ref().is_some_and(|of| of.role() == v1::ProcessRole::Entered);
            let early = if exited.before_exec && entered { ", before it executed anything" } else { "" };
            format!("{process}: {}{early}", exit_status(exited.status.as_ref()))
        }
        Kind::Stopped(v1::Stopped { never_started: true, .. }) => "never started".to_owned(),
        Kind::Stopped(v1::Stopped { main_status, main_oom_killed, .. }) => {
            let oom = if *main_oom_killed { ", for want of memory" } else { "" };
            exit_status(main_status.as_ref()) + oom
        }
        Kind::OomKill(kill) => super::limits::oom_kill(kill),
        Kind::Updated(v1::Updated { fields }) => fields.join(", "),
        Kind::LimitChanged(changed) => super::limits::change(changed),
        Kind::Verdict(verdict) => super::verify::sentence(verdict),
        Kind::Gap(gap) => describe_gap(gap),
        Kind::Resynced(v1::Resynced { found, gone, corrected }) => {
            format!("the state is right again: {found} found, {gone} gone, {corrected} corrected")
        }
    };
    let found = match event.basis() {
        v1::Basis::InitialScan => "found at the start",
        v1::Basis::RepairScan => "found after the gap",
        _ => return if text.is_empty() { UNKNOWN.to_owned() } else { text },
    };
    if !text.is_empty() {
        text.push_str(", ");
    }
    text + found
}

fn run(program: Option<&str>, process: Option<&v1::Process>) -> String {
    let program = program.unwrap_or("program unknown");
    match process {
        Some(process) => format!("{program} ({}{})", process.pid, role(process)),
        None => program.to_owned(),
    }
}

pub(super) fn describe_process(process: &v1::Process) -> String {
    format!("{} ({}{})", process.comm, process.pid, role(process))
}

fn role(process: &v1::Process) -> &'static str {
    match process.role() {
        v1::ProcessRole::Main => ", main",
        v1::ProcessRole::Entered => ", entered",
        v1::ProcessRole::Child | v1::ProcessRole::Unspecified => "",
    }
}

/// How something ended, in words.
pub fn exit_status(status: Option<&v1::ExitStatus>) -> String {
    let Some(status) = status else { return "exit status not seen".to_owned() };
    match status.status {
        Some(Status::Code(code)) => format!("exit code {code}"),
        Some(Status::Signal(signal)) => {
            let core = if status.core_dumped { ", core dumped" } else { "" };
            format!("killed by {} ({signal}){core}", status.signal_name)
        }
        None => "exit status not seen".to_owned(),
    }
}

fn describe_gap(gap: &v1::Gap) -> String {
    let cause = match gap.cause() {
        v1::GapCause::RingFull => "a kernel ring was full",
        v1::GapCause::TrackedSetFull => "the set of tracked cgroups was full",
        v1::GapCause::MalformedRecord => "records could not be decoded",
        v1::GapCause::WatchOverflow => {
            "limits were written to faster than fanotify tells, how often is not known"
        }
        v1::GapCause::ProgramSkipped => "the kernel skipped programs, at most as many records",
        v1::GapCause::WatcherLagged => "this client was too slow",
        v1::GapCause::ReplayExpired if gap.first_seq.is_none() && gap.last_seq.is_none() => {
            "the daemon was restarted; what happened meanwhile was not seen"
        }
        v1::GapCause::ReplayExpired => "earlier events are no longer kept",
        v1::GapCause::Unspecified => "unknown cause",
    };
    let mut text = cause.to_owned();
    let lost: Vec<String> = gap.lost.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    if !lost.is_empty() {
        text += &format!(": lost {}", lost.join(", "));
    }
    if let (Some(from), Some(to)) = (gap.from, gap.to) {
        text += &format!(", between {} and {}", time_of_day(Some(from)), time_of_day(Some(to)));
    }
    text
}

/// A container's state.
pub fn state(state: &v1::ContainerState) -> Cell {
    match state.state() {
        v1::State::Created => Cell::from("Created"),
        v1::State::Running => Cell::styled("Running", GOOD),
        v1::State::Stopped => {
            Cell::styled("Stopped", if is_bad(state.main_status.as_ref()) { BAD } else { NOTICE })
        }
        v1::State::Unspecified => Cell::from(UNKNOWN),
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
    use crate::proto::Timestamp;

    pub fn container(known: bool) -> v1::Container {
        v1::Container {
            id: "0123456789abcdef".repeat(4),
            cgroup_id: 4242,
            cgroup_path: "/kubepods.slice/x".into(),
            runtime: v1::Runtime::Containerd.into(),
            pod: Some(v1::Pod {
                uid: "1d4e5f60-aaaa-bbbb-cccc-123456789abc".into(),
                namespace: known.then(|| "prod".into()),
                name: known.then(|| "web-5d9c7b8f6d-x2x7p".into()),
                qos_class: v1::QosClass::Burstable.into(),
            }),
            name: known.then(|| "nginx".into()),
            image: known.then(|| "docker.io/library/nginx:1.29".into()),
            labels: Default::default(),
            r#type: if known { v1::ContainerType::App } else { v1::ContainerType::Unspecified }.into(),
        }
    }

    fn process(role: v1::ProcessRole) -> Option<v1::Process> {
        Some(v1::Process { pid: 1234, start_time: 1, parent_pid: 1, comm: "nginx".into(), role: role.into() })
    }

    fn signal() -> Option<v1::ExitStatus> {
        Some(v1::ExitStatus {
            status: Some(Status::Signal(9)),
            core_dumped: true,
            signal_name: "SIGKILL".into(),
        })
    }

    pub fn events() -> Vec<v1::Event> {
        let actor = || Some(v1::Actor { pid: 77, comm: "runc".into() });
        let kinds = [
            (false, v1::Basis::CgroupMkdir, Kind::Created(v1::Created { actor: actor() })),
            (false, v1::Basis::InitialScan, Kind::Created(v1::Created { actor: None })),
            (
                true,
                v1::Basis::TaskExec,
                Kind::Started(v1::Started {
                    process: process(v1::ProcessRole::Main),
                    program: Some("/usr/sbin/nginx".into()),
                }),
            ),
            (
                true,
                v1::Basis::TaskExec,
                Kind::Exec(v1::Exec {
                    process: process(v1::ProcessRole::Entered),
                    program: "/bin/sh".into(),
                }),
            ),
            (
                true,
                v1::Basis::TaskExit,
                Kind::Exited(v1::Exited {
                    process: process(v1::ProcessRole::Entered),
                    status: signal(),
                    before_exec: true,
                }),
            ),
            (
                true,
                v1::Basis::CgroupPopulated,
                Kind::Stopped(v1::Stopped {
                    main_status: Some(v1::ExitStatus { status: Some(Status::Code(0)), ..Default::default() }),
                    never_started: false,
                    main_oom_killed: false,
                }),
            ),
            (
                true,
                v1::Basis::CgroupPopulated,
                Kind::Stopped(v1::Stopped { main_status: None, never_started: true, main_oom_killed: false }),
            ),
            (
                true,
                v1::Basis::CgroupPopulated,
                Kind::Stopped(v1::Stopped {
                    main_status: signal(),
                    never_started: false,
                    main_oom_killed: true,
                }),
            ),
            (
                true,
                v1::Basis::OomKill,
                Kind::OomKill(Box::new(super::super::limits::testing::oom_kill(process(
                    v1::ProcessRole::Child,
                )))),
            ),
            (true, v1::Basis::CgroupRmdir, Kind::Deleted(v1::Deleted { actor: None })),
            (
                true,
                v1::Basis::KnobWrite,
                Kind::LimitChanged(Box::new(super::super::limits::testing::refused())),
            ),
            (
                true,
                v1::Basis::Runtime,
                Kind::Updated(v1::Updated { fields: vec!["name".into(), "pod.name".into()] }),
            ),
        ];
        let about_node = [
            Kind::Gap(v1::Gap {
                cause: v1::GapCause::RingFull.into(),
                lost: [("task_exec".to_owned(), 3), ("task_exit".to_owned(), 5)].into(),
                ..Default::default()
            }),
            Kind::Resynced(v1::Resynced { found: 1, gone: 2, corrected: 3 }),
        ];
        let of_pod = [
            (v1::Basis::KnobWrite, Kind::LimitChanged(Box::new(super::super::limits::testing::accepted()))),
            (v1::Basis::KnobRead, Kind::LimitChanged(Box::new(super::super::limits::testing::found()))),
            (v1::Basis::KnobRead, Kind::Verdict(Box::new(super::super::verify::testing::shadowed()))),
        ];
        let event = |container, basis: v1::Basis, kind| v1::Event {
            position: Some(v1::Position { epoch: "e".into(), seq: 7 }),
            time: Some(Timestamp::default()),
            kernel_time: 1,
            container,
            basis: basis.into(),
            kind: Some(kind),
        };
        let of_containers =
            kinds.into_iter().map(|(known, basis, kind)| event(Some(container(known)), basis, kind));
        let of_pod = of_pod.into_iter().map(|(basis, kind)| event(None, basis, kind));
        let about_node = about_node.map(|kind| event(None, v1::Basis::Daemon, kind));
        of_containers.chain(of_pod).chain(about_node).collect()
    }

    pub fn containers() -> Vec<v1::ContainerState> {
        let at = |seconds| Some(Timestamp { seconds, nanos: 0 });
        vec![
            v1::ContainerState {
                container: Some(container(true)),
                state: v1::State::Running.into(),
                created_at: at(1_767_350_000),
                started_at: at(1_767_357_500),
                main: process(v1::ProcessRole::Main),
                program: Some("/usr/sbin/nginx".into()),
                execs: 3,
                exits: 2,
                ..Default::default()
            },
            v1::ContainerState {
                container: Some(v1::Container {
                    name: None,
                    r#type: v1::ContainerType::Sandbox.into(),
                    ..container(true)
                }),
                state: v1::State::Created.into(),
                ..Default::default()
            },
            v1::ContainerState {
                container: Some(container(false)),
                state: v1::State::Stopped.into(),
                main_status: signal(),
                ..Default::default()
            },
        ]
    }
}
