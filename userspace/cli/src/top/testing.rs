//! Containers in all states that a row can show.

use kwitness_api::Timestamp;
use kwitness_api::proto::{self, VerdictKind, amount};

pub(super) const NOW: &str = "2026-01-02T12:40:00Z";

/// 2026-01-02T12:40:00Z
const NOW_SECONDS: i64 = 1_767_357_600;
const MIB: u64 = 1 << 20;

pub(super) fn value(number: u64) -> Option<proto::Amount> {
    Some(proto::Amount { amount: Some(amount::Amount::Value(number)) })
}

fn unlimited() -> Option<proto::Amount> {
    Some(proto::Amount { amount: Some(amount::Amount::Unlimited(true)) })
}

pub(super) fn container(id: u64, namespace: &str, pod: &str, name: &str) -> proto::ContainerUsage {
    let pod = proto::Pod {
        uid: format!("uid-{id}"),
        namespace: Some(namespace.to_owned()),
        name: Some(pod.to_owned()),
        qos_class: proto::QosClass::Burstable.into(),
    };
    let container = proto::Container {
        id: format!("{id:064}"),
        cgroup_id: id,
        pod: Some(pod),
        name: Some(name.to_owned()),
        r#type: proto::ContainerType::App.into(),
        ..Default::default()
    };
    let verdict = |file: &str, verdict: VerdictKind| proto::LimitVerdict {
        file: file.to_owned(),
        verdict: verdict.into(),
    };
    proto::ContainerUsage {
        container: Some(container),
        memory_usage: value(32 * MIB),
        memory_limit: value(64 * MIB),
        memory_high: unlimited(),
        inactive_file: value(0),
        oom_kills: value(0),
        fill_rate: Some(0),
        verdicts: vec![verdict("memory.max", VerdictKind::InForce), verdict("cpu.max", VerdictKind::InForce)],
        ..Default::default()
    }
}

/// One of each, in no order.
pub(super) fn sample() -> proto::UsageSample {
    let idle = container(1, "prod", "web-5d9c7b8f6d-x2x7p", "nginx");
    let mut leaking = container(2, "prod", "job-importer-29391840-k7q2m", "importer");
    leaking.memory_usage = value(63_123_456);
    leaking.inactive_file = value(3 * MIB);
    leaking.fill_rate = Some(1_234_567);
    leaking.time_to_limit_ms = Some(3_229);
    leaking.last_oom_kill = Some(Timestamp { seconds: NOW_SECONDS - 599, nanos: 0 });
    leaking.oom_kills = value(3);
    let mut slow = container(3, "prod", "cache-0", "redis");
    slow.memory_usage = value(900 * MIB);
    slow.memory_limit = value(1024 * MIB);
    slow.memory_high = value(1000 * MIB);
    slow.fill_rate = Some(40_960);
    slow.time_to_limit_ms = Some(3_174_000);
    slow.throttled_share = Some(0.42);
    slow.verdicts[1].verdict = VerdictKind::OverLimit.into();
    let mut unlimited_one = container(4, "kube-system", "node-agent-8fz2w", "agent");
    unlimited_one.memory_limit = unlimited();
    unlimited_one.fill_rate = Some(-2_048);
    unlimited_one.verdicts.clear();
    let mut unread = container(5, "dev", "db-0", "postgres");
    let late =
        || Some(proto::Amount { amount: Some(amount::Amount::Unknown("not read within 1 s".to_owned())) });
    (unread.memory_usage, unread.memory_limit, unread.memory_high) = (late(), late(), late());
    (unread.inactive_file, unread.oom_kills, unread.fill_rate) = (late(), late(), None);
    let mut sandbox = container(6, "prod", "web-5d9c7b8f6d-x2x7p", "pause");
    if let Some(container) = &mut sandbox.container {
        container.r#type = proto::ContainerType::Sandbox.into();
    }
    proto::UsageSample {
        time: Some(Timestamp { seconds: NOW_SECONDS, nanos: 0 }),
        containers: vec![idle, unread, sandbox, unlimited_one, slow, leaking],
        ..Default::default()
    }
}

/// A container whose names are meant for the terminal.
pub(super) fn hostile() -> proto::UsageSample {
    let evil = "evil\x1b]0;owned\x07\n\u{202e}";
    let mut usage = container(7, evil, evil, evil);
    usage.memory_limit = Some(proto::Amount { amount: Some(amount::Amount::Unknown(evil.to_owned())) });
    proto::UsageSample { time: Some(Timestamp::default()), containers: vec![usage], ..Default::default() }
}
