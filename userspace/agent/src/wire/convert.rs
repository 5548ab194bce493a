//! The domain's types in the API's shape. What the domain does not know stays absent. Never the other way: the
//! API is read-only.

use kwitness_core::cgroup_path::shortened;
use kwitness_core::model as core;
use nix::sys::signal::Signal;

use super::subject::{process, qos_class};
use super::{guard, limits, verdicts};
use crate::clock::Clock;
use kwitness_api::{EventKind, Timestamp, proto};

/// An event without its position and its container, which the journal adds; and its kind.
pub fn event(event: &core::Event, clock: Clock) -> (EventKind, proto::Event) {
    let content = content(&event.kind, clock);
    let kind = EventKind::from(&content);
    let event = proto::Event {
        position: None,
        time: Some(clock.wall(event.at)),
        kernel_time: event.at.0,
        container: None,
        basis: basis(event.basis).into(),
        r#type: kind.name().to_owned(),
        kind: Some(content),
    };
    (kind, event)
}

fn content(kind: &core::Kind, clock: Clock) -> proto::event::Kind {
    use proto::event::Kind;
    match kind {
        core::Kind::Created { actor } => {
            Kind::Created(proto::Created { actor: actor.as_ref().map(self::actor) })
        }
        core::Kind::Started { process, program } => Kind::Started(proto::Started {
            process: process.as_ref().map(self::process),
            program: program.as_deref().map(str::to_owned),
        }),
        core::Kind::Exec { process, program } => {
            Kind::Exec(proto::Exec { process: Some(self::process(process)), program: program.to_string() })
        }
        core::Kind::Exited { process, status, before_exec } => Kind::Exited(proto::Exited {
            process: Some(self::process(process)),
            status: Some(exit_status(*status)),
            before_exec: *before_exec,
        }),
        core::Kind::Stopped { main_status, never_started, main_oom_killed } => {
            Kind::Stopped(proto::Stopped {
                main_status: main_status.map(exit_status),
                never_started: *never_started,
                main_oom_killed: *main_oom_killed,
            })
        }
        core::Kind::OomKill(kill) => Kind::OomKill(Box::new(limits::oom_kill(kill))),
        core::Kind::Deleted { actor } => {
            Kind::Deleted(proto::Deleted { actor: actor.as_ref().map(self::actor) })
        }
        core::Kind::Updated { fields } => Kind::Updated(proto::Updated { fields: fields.clone() }),
        core::Kind::LimitChanged(changed) => Kind::LimitChanged(Box::new(limits::changed(changed))),
        core::Kind::Verdict(judged) => Kind::Verdict(Box::new(verdicts::verdict(judged, clock))),
        core::Kind::Pressure(pressure) => Kind::Pressure(Box::new(limits::pressure(pressure))),
        core::Kind::Gap(gap) => Kind::Gap(proto::Gap {
            cause: gap_cause(gap.cause).into(),
            lost: gap.lost.clone(),
            from: Some(clock.wall(gap.from)),
            to: Some(clock.wall(gap.to)),
            first_seq: None,
            last_seq: None,
            cgroup_path: gap.path.as_deref().map(|path| shortened(path).into_owned()),
            capabilities: gap.capabilities.clone(),
        }),
        core::Kind::Resynced { found, gone, corrected } => {
            Kind::Resynced(proto::Resynced { found: *found, gone: *gone, corrected: *corrected })
        }
        core::Kind::AgentRestarted { from, to, records } => Kind::AgentRestarted(proto::AgentRestarted {
            from: Some(clock.wall(*from)),
            to: Some(clock.wall(*to)),
            records: *records,
        }),
        core::Kind::Guard(act) => guard::content(act),
    }
}

/// The subject of an event.
pub fn container(subject: &core::Subject) -> proto::Container {
    let facts = subject.facts.as_deref();
    let text = |text: &std::sync::Arc<str>| text.to_string();
    let uid = subject.pod.as_ref().map(|pod| &pod.uid).or(facts.and_then(|facts| facts.pod_uid.as_ref()));
    proto::Container {
        id: subject.container_id.to_string(),
        cgroup_id: subject.cgroup_id.0,
        cgroup_path: subject.cgroup_path.to_string(),
        runtime: subject
            .runtime
            .or(facts.and_then(|facts| facts.runtime))
            .map_or(proto::Runtime::Unspecified, runtime)
            .into(),
        pod: uid.map(|uid| proto::Pod {
            uid: uid.to_string(),
            namespace: facts.and_then(|facts| facts.pod_namespace.as_ref()).map(text),
            name: facts.and_then(|facts| facts.pod_name.as_ref()).map(text),
            qos_class: subject
                .pod
                .as_ref()
                .map_or(proto::QosClass::Unspecified, |pod| qos_class(pod.qos))
                .into(),
        }),
        name: facts.and_then(|facts| facts.name.as_ref()).map(text),
        image: facts.and_then(|facts| facts.image.as_ref()).map(text),
        labels: facts.map(|facts| facts.labels.clone()).unwrap_or_default(),
        r#type: facts
            .map_or(proto::ContainerType::Unspecified, |facts| match facts.container_type {
                core::ContainerType::Sandbox => proto::ContainerType::Sandbox,
                core::ContainerType::App => proto::ContainerType::App,
            })
            .into(),
    }
}

/// A container as it is now.
pub fn container_state(state: &core::ContainerState, clock: Clock) -> proto::ContainerState {
    // Of a container that is older than the daemon, only the runtime knows when it was created.
    let reported = state.subject.facts.as_ref().and_then(|facts| facts.created_at);
    proto::ContainerState {
        container: Some(container(&state.subject)),
        state: match state.state {
            core::State::Created => proto::State::Created,
            core::State::Running => proto::State::Running,
            core::State::Stopped => proto::State::Stopped,
        }
        .into(),
        created_at: state.created_at.map(|at| clock.wall(at)).or(reported.map(Timestamp::from_unix_nanos)),
        started_at: state.started_at.map(|at| clock.wall(at)),
        stopped_at: state.stopped_at.map(|at| clock.wall(at)),
        main: state.main.as_ref().map(process),
        program: state.program.as_deref().map(str::to_owned),
        main_status: state.main_status.map(exit_status),
        forks: state.forks,
        execs: state.execs,
        exits: state.exits,
    }
}

fn actor(actor: &core::Actor) -> proto::Actor {
    proto::Actor { pid: actor.pid, comm: actor.comm.to_string() }
}

fn exit_status(status: core::ExitStatus) -> proto::ExitStatus {
    use proto::exit_status::Status;
    match status {
        core::ExitStatus::Code(code) => {
            proto::ExitStatus { status: Some(Status::Code(code.into())), ..Default::default() }
        }
        core::ExitStatus::Signal { signal, core_dumped } => proto::ExitStatus {
            status: Some(Status::Signal(signal.into())),
            core_dumped,
            signal_name: signal_name(signal),
        },
    }
}

/// As signal(7) calls it.
fn signal_name(signal: u8) -> String {
    /// The C library keeps the two real-time signals below this to itself.
    const SIGRTMIN: u8 = 34;
    match Signal::try_from(i32::from(signal)) {
        Ok(signal) => signal.as_str().to_owned(),
        Err(_) if signal == SIGRTMIN => "SIGRTMIN".to_owned(),
        Err(_) if signal > SIGRTMIN => format!("SIGRTMIN+{}", signal - SIGRTMIN),
        Err(_) => format!("SIG{signal}"),
    }
}

fn basis(basis: core::Basis) -> proto::Basis {
    match basis {
        core::Basis::CgroupMkdir => proto::Basis::CgroupMkdir,
        core::Basis::CgroupRmdir => proto::Basis::CgroupRmdir,
        core::Basis::CgroupRelease => proto::Basis::CgroupRelease,
        core::Basis::CgroupPopulated => proto::Basis::CgroupPopulated,
        core::Basis::TaskExec => proto::Basis::TaskExec,
        core::Basis::TaskExit => proto::Basis::TaskExit,
        core::Basis::LimitWrite => proto::Basis::LimitWrite,
        core::Basis::LimitRead => proto::Basis::LimitRead,
        core::Basis::OomKill => proto::Basis::OomKill,
        core::Basis::MemorySample => proto::Basis::MemorySample,
        core::Basis::MemoryCharge => proto::Basis::MemoryCharge,
        core::Basis::InitialScan => proto::Basis::InitialScan,
        core::Basis::RepairScan => proto::Basis::RepairScan,
        core::Basis::Runtime => proto::Basis::Runtime,
        core::Basis::Daemon => proto::Basis::Daemon,
        core::Basis::Guard => proto::Basis::Guard,
    }
}

fn gap_cause(cause: core::GapCause) -> proto::GapCause {
    match cause {
        core::GapCause::RingFull => proto::GapCause::RingFull,
        core::GapCause::TrackedSetFull => proto::GapCause::TrackedSetFull,
        core::GapCause::MalformedRecord => proto::GapCause::MalformedRecord,
        core::GapCause::WatchOverflow => proto::GapCause::WatchOverflow,
        core::GapCause::ProgramSkipped => proto::GapCause::ProgramSkipped,
        core::GapCause::CapacityExceeded => proto::GapCause::CapacityExceeded,
        core::GapCause::CgroupUnreadable => proto::GapCause::CgroupUnreadable,
        core::GapCause::AgentDown => proto::GapCause::AgentDown,
        core::GapCause::GuardReportsDropped => proto::GapCause::GuardReportsDropped,
        core::GapCause::CriRequestsMissed => proto::GapCause::CriRequestsMissed,
    }
}

fn runtime(runtime: core::Runtime) -> proto::Runtime {
    match runtime {
        core::Runtime::Containerd => proto::Runtime::Containerd,
        core::Runtime::Crio => proto::Runtime::Crio,
        core::Runtime::Docker => proto::Runtime::Docker,
        core::Runtime::Podman => proto::Runtime::Podman,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_the_names_of_the_manual() {
        for (signal, name) in
            [(9, "SIGKILL"), (15, "SIGTERM"), (33, "SIG33"), (34, "SIGRTMIN"), (40, "SIGRTMIN+6")]
        {
            assert_eq!(signal_name(signal), name);
        }
    }
}
