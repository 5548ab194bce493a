//! Events for tests.

use kwitness_api::Timestamp;
use kwitness_api::proto::event::Kind;
use kwitness_api::proto::exit_status::Status;
use kwitness_api::proto::oom_kill::Exhausted;
use kwitness_api::proto::reading::Reading;
use kwitness_api::proto::{self, VerdictKind};

pub fn position(seq: u64) -> proto::Position {
    proto::Position { epoch: "e".to_owned(), seq }
}

fn pod(is_named: bool) -> proto::Pod {
    proto::Pod {
        uid: "1d4e5f60-aaaa-bbbb-cccc-123456789abc".to_owned(),
        namespace: is_named.then(|| "prod".to_owned()),
        name: is_named.then(|| "web-0".to_owned()),
        qos_class: proto::QosClass::Burstable.into(),
    }
}

fn event(seq: u64, kind: Option<Kind>, is_named: bool) -> proto::Event {
    let container = proto::Container {
        id: "c1".to_owned(),
        cgroup_id: 42,
        cgroup_path: "/kubepods/x".to_owned(),
        runtime: proto::Runtime::Containerd.into(),
        pod: Some(pod(is_named)),
        name: is_named.then(|| "app".to_owned()),
        image: is_named.then(|| "registry:5000/team/app:1.29@sha256:ab".to_owned()),
        labels: Default::default(),
        r#type: proto::ContainerType::App.into(),
    };
    proto::Event {
        position: Some(position(seq)),
        time: Some(Timestamp { seconds: 1_700_000_000, nanos: 5 }),
        kernel_time: 77,
        container: Some(container),
        basis: proto::Basis::TaskExec.into(),
        r#type: "t".to_owned(),
        kind,
    }
}

/// Of a container whose names are known.
pub fn named(seq: u64, kind: Kind) -> proto::Event {
    event(seq, Some(kind), true)
}

/// Of a container whose names are not.
pub fn unnamed(seq: u64, kind: Kind) -> proto::Event {
    event(seq, Some(kind), false)
}

fn process() -> Option<proto::Process> {
    Some(proto::Process {
        pid: 812,
        start_time: 5,
        parent_pid: 1,
        comm: "java".to_owned(),
        role: proto::ProcessRole::Main.into(),
    })
}

fn guarded_process() -> Option<proto::GuardedProcess> {
    Some(proto::GuardedProcess { pid: 812, start_time: 5, comm: "java".to_owned() })
}

fn writer() -> Option<proto::Writer> {
    Some(proto::Writer { pid: Some(77), comm: Some("runc".to_owned()), ..Default::default() })
}

fn cgroup(role: proto::CgroupRole) -> Option<proto::Cgroup> {
    Some(proto::Cgroup {
        id: 42,
        path: Some("/kubepods/x".to_owned()),
        role: role.into(),
        pod: Some(pod(true)),
    })
}

fn reading(value: &str) -> Option<proto::Reading> {
    Some(proto::Reading { reading: Some(Reading::Value(value.to_owned())) })
}

pub fn oom_kill() -> Kind {
    Kind::OomKill(Box::new(proto::OomKill {
        process: process(),
        choice: proto::OomChoice::Chosen.into(),
        exhausted: cgroup(proto::CgroupRole::Pod).map(Exhausted::LimitOf),
        usage_bytes: Some(64 << 20),
        limit_bytes: Some(64 << 20),
        trigger: writer(),
    }))
}

pub fn verdict(kind: VerdictKind) -> Kind {
    let desired = |source: proto::Source, value: &str| proto::DesiredLimit {
        source: source.into(),
        value: value.to_owned(),
        time: None,
    };
    Kind::Verdict(Box::new(proto::Verdict {
        cgroup: cgroup(proto::CgroupRole::Container),
        file: "memory.max".to_owned(),
        verdict: kind.into(),
        desired: vec![
            desired(proto::Source::KubeletAllocated, "67108864"),
            desired(proto::Source::Runtime, "1"),
        ],
        compared_with: proto::Source::KubeletAllocated.into(),
        in_force: reading("33554432"),
        effective: Some(proto::Effective { value: "33554432".to_owned(), cgroup_path: "/".to_owned() }),
        ..Default::default()
    }))
}

/// One of each kind, and one of a newer daemon's.
pub fn every_kind() -> Vec<proto::Event> {
    let status = |status| {
        Some(proto::ExitStatus {
            status: Some(status),
            core_dumped: false,
            signal_name: "SIGKILL".to_owned(),
        })
    };
    let actor = || Some(proto::Actor { pid: 77, comm: "runc".to_owned() });
    let node = |kind| proto::Event { container: None, ..named(0, kind) };
    let mut events = vec![
        unnamed(0, Kind::Created(proto::Created { actor: actor() })),
        named(0, Kind::Started(proto::Started { process: process(), program: Some("/bin/java".to_owned()) })),
        named(0, Kind::Exec(proto::Exec { process: process(), program: "/bin/sh".to_owned() })),
        named(
            0,
            Kind::Exited(proto::Exited {
                process: process(),
                status: status(Status::Code(3)),
                before_exec: true,
            }),
        ),
        named(
            0,
            Kind::Stopped(proto::Stopped {
                main_status: status(Status::Signal(9)),
                never_started: false,
                main_oom_killed: true,
            }),
        ),
        named(0, Kind::Deleted(proto::Deleted { actor: None })),
        named(0, Kind::Updated(proto::Updated { fields: vec!["pod.name".to_owned()] })),
        named(0, oom_kill()),
        node(Kind::LimitChanged(Box::new(proto::LimitChanged {
            cgroup: cgroup(proto::CgroupRole::Pod),
            file: "memory.max".to_owned(),
            old: reading("max"),
            new: reading("67108864"),
            read_back: true,
            write: Some(proto::LimitWrite {
                value: Some("1".to_owned()),
                writer: writer(),
                errno: Some(22),
                errno_name: Some("EINVAL".to_owned()),
                outcome: proto::WriteOutcome::Refused.into(),
                ..Default::default()
            }),
            coalesced: 2,
        }))),
        named(0, verdict(VerdictKind::Diverged)),
        node(Kind::Pressure(Box::new(proto::Pressure {
            cgroup: cgroup(proto::CgroupRole::Pod),
            threshold_percent: 90,
            direction: proto::PressureDirection::Up.into(),
            usage_bytes: 60 << 20,
            limit_bytes: Some(64 << 20),
            fill_rate: Some(1 << 20),
            time_to_limit_ms: Some(4000),
            suppressed: 1,
            charged_by: writer(),
        }))),
        node(Kind::Gap(proto::Gap {
            cause: proto::GapCause::WatcherLagged.into(),
            lost: [("event".to_owned(), 4)].into(),
            first_seq: Some(2),
            last_seq: Some(5),
            ..Default::default()
        })),
        node(Kind::Resynced(proto::Resynced { found: 1, gone: 2, corrected: 3 })),
        node(Kind::AgentRestarted(proto::AgentRestarted { from: None, to: None, records: 9 })),
        named(
            0,
            Kind::GuardHeld(Box::new(proto::GuardHeld {
                process: guarded_process(),
                level: proto::CgroupRole::Container.into(),
                usage_bytes: 60 << 20,
                limit_bytes: 64 << 20,
            })),
        ),
        named(
            0,
            Kind::GuardRaised(proto::GuardRaised {
                level: proto::CgroupRole::Container.into(),
                limit_before: 64 << 20,
                limit_after: 128 << 20,
                held_ns: 5,
            }),
        ),
        named(
            0,
            Kind::GuardContinued(Box::new(proto::GuardContinued {
                process: guarded_process(),
                held_ns: 6,
                state: proto::GuardedState::Running.into(),
                reason: String::new(),
            })),
        ),
        named(
            0,
            Kind::GuardRefused(Box::new(proto::GuardRefused {
                attempt: proto::GuardAttempt::Raise.into(),
                reason: "limitAbove".to_owned(),
                detail: "no room".to_owned(),
                level: proto::CgroupRole::Pod.into(),
                limit_bytes: Some(64 << 20),
                held_ns: Some(7),
            })),
        ),
        named(
            0,
            Kind::GuardReturned(proto::GuardReturned {
                level: proto::CgroupRole::Container.into(),
                limit_before: 128 << 20,
                limit_after: 64 << 20,
                original_limit: 64 << 20,
            }),
        ),
        event(0, None, true),
    ];
    for (event, seq) in events.iter_mut().zip(1..) {
        event.position = Some(position(seq));
    }
    events
}
