//! Every kind of event and what becomes of it.

use std::collections::{BTreeMap, BTreeSet};

use kwitness_api::EventKind;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};

use super::*;
use crate::queue::{Progress, Refused};
use crate::testing::{every_kind, named, oom_kill, position};

fn mapping() -> Mapping {
    let node = Node { name: "node-1".to_owned(), cluster: Some("blue".to_owned()) };
    Mapping { node, sentence: |event| format!("sentence\n{}", event.r#type) }
}

fn text(value: &AnyValue) -> String {
    match value.value.as_ref().unwrap() {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        Value::BoolValue(flag) => flag.to_string(),
        Value::ArrayValue(array) => array.values.iter().map(text).collect::<Vec<_>>().join(","),
        Value::KvlistValue(list) => format!("{:?}", of(&list.values)),
        other => panic!("{other:?}"),
    }
}

fn of(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let map: BTreeMap<_, _> =
        attributes.iter().map(|one| (one.key.clone(), text(one.value.as_ref().unwrap()))).collect();
    assert_eq!(map.len(), attributes.len(), "an attribute occurs twice: {attributes:?}");
    map
}

/// Name, severity, and the attributes that the kind has beyond all others.
type Row = (&'static str, SeverityNumber, &'static [(&'static str, &'static str)]);

const TABLE: &[Row] = &[
    (
        "kwitness.container.created",
        SeverityNumber::Info,
        &[("kwitness.actor.comm", "runc"), ("kwitness.actor.pid", "77")],
    ),
    (
        "kwitness.container.started",
        SeverityNumber::Info,
        &[
            ("kwitness.process.comm", "java"),
            ("kwitness.process.role", "main"),
            ("kwitness.process.start_time", "5"),
            ("process.executable.path", "/bin/java"),
            ("process.parent_pid", "1"),
            ("process.pid", "812"),
        ],
    ),
    (
        "kwitness.process.exec",
        SeverityNumber::Debug,
        &[
            ("kwitness.process.comm", "java"),
            ("kwitness.process.role", "main"),
            ("kwitness.process.start_time", "5"),
            ("process.executable.path", "/bin/sh"),
            ("process.parent_pid", "1"),
            ("process.pid", "812"),
        ],
    ),
    (
        "kwitness.process.exited",
        SeverityNumber::Debug,
        &[
            ("kwitness.process.before_exec", "true"),
            ("kwitness.process.comm", "java"),
            ("kwitness.process.role", "main"),
            ("kwitness.process.start_time", "5"),
            ("process.exit.code", "3"),
            ("process.parent_pid", "1"),
            ("process.pid", "812"),
        ],
    ),
    (
        "kwitness.container.stopped",
        SeverityNumber::Error,
        &[
            ("kwitness.container.oom_killed", "true"),
            ("kwitness.process.exit.signal", "9"),
            ("kwitness.process.exit.signal_name", "SIGKILL"),
        ],
    ),
    ("kwitness.container.deleted", SeverityNumber::Info, &[]),
    ("kwitness.container.updated", SeverityNumber::Debug, &[("kwitness.container.updated", "pod.name")]),
    (
        "kwitness.oom.kill",
        SeverityNumber::Error,
        &[
            ("kwitness.actor.comm", "runc"),
            ("kwitness.actor.pid", "77"),
            ("kwitness.cgroup.id", "42"),
            ("kwitness.cgroup.path", "/kubepods/x"),
            ("kwitness.cgroup.role", "pod"),
            ("kwitness.oom.choice", "chosen"),
            ("kwitness.oom.limit", "67108864"),
            ("kwitness.oom.scope", "pod"),
            ("kwitness.oom.usage", "67108864"),
            ("kwitness.process.comm", "java"),
            ("kwitness.process.role", "main"),
            ("kwitness.process.start_time", "5"),
            ("process.parent_pid", "1"),
            ("process.pid", "812"),
        ],
    ),
    (
        "kwitness.limit.changed",
        SeverityNumber::Warn,
        &[
            ("error.type", "EINVAL"),
            ("kwitness.actor.comm", "runc"),
            ("kwitness.actor.pid", "77"),
            ("kwitness.cgroup.id", "42"),
            ("kwitness.cgroup.path", "/kubepods/x"),
            ("kwitness.cgroup.role", "pod"),
            ("kwitness.limit.coalesced", "2"),
            ("kwitness.limit.file", "memory.max"),
            ("kwitness.limit.new", "67108864"),
            ("kwitness.limit.old", "max"),
            ("kwitness.limit.outcome", "refused"),
            ("kwitness.limit.written", "1"),
        ],
    ),
    (
        "kwitness.limit.verdict",
        SeverityNumber::Warn,
        &[
            ("kwitness.cgroup.id", "42"),
            ("kwitness.cgroup.path", "/kubepods/x"),
            ("kwitness.cgroup.role", "container"),
            ("kwitness.limit.desired", "67108864"),
            ("kwitness.limit.effective", "33554432"),
            ("kwitness.limit.file", "memory.max"),
            ("kwitness.limit.in_force", "33554432"),
            ("kwitness.limit.source", "kubelet_allocated"),
            ("kwitness.limit.verdict", "diverged"),
        ],
    ),
    (
        "kwitness.memory.pressure",
        SeverityNumber::Warn,
        &[
            ("kwitness.actor.comm", "runc"),
            ("kwitness.actor.pid", "77"),
            ("kwitness.cgroup.id", "42"),
            ("kwitness.cgroup.path", "/kubepods/x"),
            ("kwitness.cgroup.role", "pod"),
            ("kwitness.pressure.direction", "up"),
            ("kwitness.pressure.fill_rate", "1048576"),
            ("kwitness.pressure.limit", "67108864"),
            ("kwitness.pressure.suppressed", "1"),
            ("kwitness.pressure.threshold", "90"),
            ("kwitness.pressure.time_to_limit_ms", "4000"),
            ("kwitness.pressure.usage", "62914560"),
        ],
    ),
    (
        "kwitness.gap",
        SeverityNumber::Warn,
        &[
            ("kwitness.gap.cause", "watcher_lagged"),
            ("kwitness.gap.first_seq", "2"),
            ("kwitness.gap.last_seq", "5"),
            ("kwitness.gap.lost", "{\"event\": \"4\"}"),
        ],
    ),
    (
        "kwitness.resynced",
        SeverityNumber::Info,
        &[
            ("kwitness.resynced.corrected", "3"),
            ("kwitness.resynced.found", "1"),
            ("kwitness.resynced.gone", "2"),
        ],
    ),
    ("kwitness.agent.restarted", SeverityNumber::Info, &[("kwitness.agent.records", "9")]),
    (
        "kwitness.guard.held",
        SeverityNumber::Info,
        &[
            ("kwitness.guard.level", "container"),
            ("kwitness.guard.limit", "67108864"),
            ("kwitness.guard.usage", "62914560"),
            ("kwitness.process.comm", "java"),
            ("kwitness.process.start_time", "5"),
            ("process.pid", "812"),
        ],
    ),
    (
        "kwitness.guard.raised",
        SeverityNumber::Info,
        &[
            ("kwitness.guard.held_ns", "5"),
            ("kwitness.guard.level", "container"),
            ("kwitness.guard.limit", "134217728"),
            ("kwitness.guard.limit_before", "67108864"),
        ],
    ),
    (
        "kwitness.guard.continued",
        SeverityNumber::Info,
        &[
            ("kwitness.guard.held_ns", "6"),
            ("kwitness.guard.state", "running"),
            ("kwitness.process.comm", "java"),
            ("kwitness.process.start_time", "5"),
            ("process.pid", "812"),
        ],
    ),
    (
        "kwitness.guard.refused",
        SeverityNumber::Warn,
        &[
            ("error.type", "limitAbove"),
            ("kwitness.guard.attempt", "raise"),
            ("kwitness.guard.held_ns", "7"),
            ("kwitness.guard.level", "pod"),
            ("kwitness.guard.limit", "67108864"),
        ],
    ),
    (
        "kwitness.guard.returned",
        SeverityNumber::Info,
        &[
            ("kwitness.guard.level", "container"),
            ("kwitness.guard.limit", "67108864"),
            ("kwitness.guard.limit_before", "134217728"),
            ("kwitness.guard.original_limit", "67108864"),
        ],
    ),
    ("kwitness.unknown", SeverityNumber::Info, &[("kwitness.type", "t")]),
];

#[test]
fn every_kind_has_its_name_and_its_attributes() {
    let events = every_kind();
    let kinds: BTreeSet<_> = events.iter().filter_map(EventKind::of).map(i32::from).collect();
    assert_eq!(kinds, EventKind::ALL.iter().map(|kind| i32::from(*kind)).collect());
    assert_eq!(events.len(), TABLE.len());
    for (event, (name, severity, own)) in events.iter().zip(TABLE) {
        let record = mapping().record(event, 9);
        let log = &record.log;
        assert_eq!(log.event_name, *name);
        assert_eq!(log.severity_number(), *severity, "{name}");
        assert_eq!(
            (log.time_unix_nano, log.observed_time_unix_nano),
            (1_700_000_000_000_000_005, 9),
            "{name}"
        );
        assert_eq!(text(log.body.as_ref().unwrap()), "sentence\\nt", "{name}");
        assert_eq!(record.position, event.position);
        let mut found = of(&log.attributes);
        let seq = event.position.as_ref().unwrap().seq;
        let uid = if *name == "kwitness.gap" { format!("e/{seq}/gap") } else { format!("e/{seq}") };
        for (key, value) in [
            ("log.record.uid", uid.as_str()),
            ("kwitness.epoch", "e"),
            ("kwitness.seq", &seq.to_string()),
            ("kwitness.kernel_time", "77"),
            ("kwitness.basis", "task_exec"),
        ] {
            assert_eq!(found.remove(key).as_deref(), Some(value), "{name}: {key}");
        }
        let own = own.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        assert_eq!(found, own, "{name}");
    }
}

#[test]
fn the_resource_is_what_the_event_concerns() {
    let resource = |event: &proto::Event| of(&mapping().record(event, 9).resource.attributes);
    let expected = |attributes: &[(&str, &str)]| -> BTreeMap<String, String> {
        let node = [("k8s.node.name", "node-1"), ("k8s.cluster.name", "blue")];
        let all = node.iter().chain(attributes);
        all.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let event = named(1, oom_kill());
    assert_eq!(
        resource(&event),
        expected(&[
            ("k8s.namespace.name", "prod"),
            ("k8s.pod.uid", "1d4e5f60-aaaa-bbbb-cccc-123456789abc"),
            ("k8s.pod.name", "web-0"),
            ("k8s.container.name", "app"),
            ("container.id", "c1"),
            ("container.runtime.name", "containerd"),
            ("container.image.name", "registry:5000/team/app"),
            ("container.image.tags", "1.29"),
            ("container.image.repo_digests", "registry:5000/team/app@sha256:ab"),
            ("kwitness.container.type", "app"),
        ])
    );
    let of_kind = |name: &str| {
        let at = TABLE.iter().position(|(of, ..)| *of == name).unwrap();
        resource(&every_kind()[at])
    };
    let of_pod = of_kind("kwitness.limit.changed");
    assert_eq!(of_pod.get("k8s.pod.name").map(String::as_str), Some("web-0"));
    assert_eq!(of_pod.get("container.id"), None, "a pod's own limit");
    assert_eq!(of_kind("kwitness.gap"), expected(&[]));
    assert!(
        !of_kind("kwitness.container.created").contains_key("k8s.pod.name"),
        "what is unknown is left out"
    );
}

#[test]
fn images_are_taken_apart() {
    for (image, expected) in [
        ("nginx", "container.image.name=nginx"),
        ("registry:5000/nginx", "container.image.name=registry:5000/nginx"),
        ("sha256:abcd", "container.image.id=sha256:abcd"),
        ("nginx@sha256:1", "container.image.name=nginx container.image.repo_digests=nginx@sha256:1"),
    ] {
        let mut attributes = Attributes::default();
        super::image(image, &mut attributes);
        let found = of(&attributes.into_inner());
        let found: Vec<_> = found.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(found.join(" "), expected);
    }
}

#[test]
fn what_was_lost_behind_the_daemon_is_a_gap() {
    let refused = |epoch: &str, first, last| Refused {
        epoch: epoch.to_owned(),
        first,
        last,
        records: 4,
        reason: "too \x07 old".to_owned(),
    };
    let progress = Progress {
        position: Some(position(9)),
        refused: vec![refused("e", 3, 9), refused("f", 1, 5)],
        unaccounted: Some(position(2)),
        kubernetes_lost: 5,
        ..Progress::default()
    };
    let records = mapping().gaps(&progress, 9);
    let expected: [&[(&str, &str)]; 4] = [
        &[
            ("kwitness.epoch", "e"),
            ("kwitness.gap.cause", "collector_refused"),
            ("kwitness.gap.first_seq", "3"),
            ("kwitness.gap.last_seq", "9"),
            ("kwitness.gap.lost", "{\"event\": \"4\"}"),
            ("log.record.uid", "e/3-9/refused"),
        ],
        &[
            ("kwitness.epoch", "f"),
            ("kwitness.gap.first_seq", "1"),
            ("kwitness.gap.last_seq", "5"),
            ("log.record.uid", "f/1-5/refused"),
        ],
        &[
            ("kwitness.gap.cause", "state_missing"),
            ("kwitness.gap.first_seq", "1"),
            ("kwitness.gap.last_seq", "2"),
            ("log.record.uid", "e/1-2/state_missing"),
        ],
        &[
            ("kwitness.gap.cause", "kubernetes_events_lost"),
            ("kwitness.gap.lost", "{\"kubernetes_event\": \"5\"}"),
            ("log.record.uid", "e/9/kubernetes_events_lost/5"),
        ],
    ];
    assert_eq!(records.len(), expected.len());
    for (record, expected) in records.iter().zip(expected) {
        assert_eq!((record.log.event_name.as_str(), &record.position), ("kwitness.gap", &None));
        let found = of(&record.log.attributes);
        for (key, value) in expected {
            assert_eq!(found.get(*key).map(String::as_str), Some(*value), "{key}");
        }
    }
    let body = text(records[0].log.body.as_ref().unwrap());
    assert_eq!(body, "the collector refused 4 records: too \\x07 old");
    assert_eq!(mapping().gaps(&Progress::default(), 9), []);
}
