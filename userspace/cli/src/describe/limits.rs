//! Limits and OOM kills in words, with units as people write them.

use super::{Names, describe_process};
use crate::text::{UNKNOWN, short_uid};
use kwitness_api::proto;
use kwitness_api::proto::oom_kill::Exhausted;
use kwitness_api::proto::reading::Reading;
use kwitness_core::units;

/// The names of a cgroup that is no container's.
pub fn names(cgroup: Option<&proto::Cgroup>, full: bool) -> Names {
    let unknown = || UNKNOWN.to_owned();
    let pod = cgroup.and_then(|cgroup| cgroup.pod.as_ref());
    Names {
        namespace: pod.and_then(|pod| pod.namespace.clone()).unwrap_or_else(unknown),
        pod: pod.map_or_else(unknown, |pod| {
            pod.name.clone().unwrap_or_else(|| if full { &pod.uid } else { short_uid(&pod.uid) }.to_owned())
        }),
        container: match cgroup.map(proto::Cgroup::role) {
            Some(proto::CgroupRole::Pod) => "(pod)".to_owned(),
            Some(proto::CgroupRole::Qos) => "(QoS class)".to_owned(),
            Some(proto::CgroupRole::Kubepods) => "(all pods)".to_owned(),
            _ => unknown(),
        },
    }
}

/// A change, in a line.
pub fn change(changed: &proto::LimitChanged) -> String {
    let file = &changed.file;
    let (old, new) = (reading(file, changed.old.as_ref()), reading(file, changed.new.as_ref()));
    let Some(write) = &changed.write else {
        return format!("{file} {old} → {new}, found{}{}", more(changed), at(changed));
    };
    let by = write.writer.as_ref().map_or_else(|| "an unknown writer".to_owned(), writer);
    let probably = if write.outcome() == proto::WriteOutcome::Unknown { "probably " } else { "" };
    let took = match (write.began, write.returned) {
        (Some(began), Some(returned)) => format!(" in {}", duration(returned.saturating_sub(began))),
        _ => String::new(),
    };
    if let Some(errno) = &write.errno_name {
        let value =
            write.value.as_deref().map_or_else(|| UNKNOWN.to_owned(), |value| units::value(file, value));
        return format!("{file} stays {old}: {value} rejected with {errno}, by {by}{took}{}", at(changed));
    }
    if changed.old == changed.new {
        // Writes that the hook reports without their values: the last one restored what was there.
        let writes = changed.coalesced + 1;
        let times = if writes == 1 { "once".to_owned() } else { format!("{writes} times") };
        return format!("{file} is {new} as before, written {times}, {probably}by {by}{took}{}", at(changed));
    }
    let written = if changed.read_back { "" } else { " (as written)" };
    format!("{file} {old} → {new}{written}, {probably}by {by}{took}{}{}", more(changed), at(changed))
}

/// Where, if that is not the container's or the pod's own cgroup.
fn at(changed: &proto::LimitChanged) -> String {
    match changed.cgroup.as_ref().map(|cgroup| (cgroup.role(), cgroup.path.as_deref())) {
        Some((proto::CgroupRole::Container | proto::CgroupRole::Pod, _)) => String::new(),
        Some((_, Some(path))) => format!(", of {path}"),
        Some((_, None)) | None => ", of a cgroup that is gone".to_owned(),
    }
}

fn more(changed: &proto::LimitChanged) -> String {
    match changed.coalesced {
        0 => String::new(),
        1 => " (+1 similar write)".to_owned(),
        more => format!(" (+{more} similar writes)"),
    }
}

/// A process that wrote or triggered: "runc (77)".
pub fn writer(writer: &proto::Writer) -> String {
    let pid = writer.pid.map_or_else(|| UNKNOWN.to_owned(), |pid| pid.to_string());
    format!("{} ({pid})", writer.comm.as_deref().unwrap_or("an unknown process"))
}

/// What a limit file says, in words.
pub fn reading(file: &str, reading: Option<&proto::Reading>) -> String {
    match reading.and_then(|reading| reading.reading.as_ref()) {
        Some(Reading::Value(value)) if value.is_empty() => "\"\"".to_owned(),
        Some(Reading::Value(value)) => units::value(file, value),
        Some(Reading::Absent(_)) => "absent".to_owned(),
        Some(Reading::Gone(_)) => "gone".to_owned(),
        Some(Reading::Unknown(_)) => "unknown".to_owned(),
        None => UNKNOWN.to_owned(),
    }
}

/// An OOM kill, in a line: whose limit comes first, for a narrow terminal shows no more.
pub fn oom_kill(kill: &proto::OomKill) -> String {
    let victim = kill.process.as_ref().map_or_else(|| UNKNOWN.to_owned(), describe_process);
    let group = match kill.choice() {
        proto::OomChoice::GroupMember => ", with its group",
        proto::OomChoice::Chosen | proto::OomChoice::Unspecified => "",
    };
    let limit = match &kill.exhausted {
        Some(Exhausted::Machine(_)) => ", the node is out of memory".to_owned(),
        Some(Exhausted::LimitOf(cgroup)) => format!(" by the {} limit", whose(cgroup)),
        None => " by an unknown limit".to_owned(),
    };
    let usage = match (kill.usage_bytes, kill.limit_bytes) {
        (Some(usage), Some(limit)) => format!(" ({} of {})", units::amount(usage), units::bytes(limit)),
        _ => String::new(),
    };
    let trigger = kill.trigger.as_ref().filter(|trigger| {
        trigger.pid.is_some() && trigger.pid != kill.process.as_ref().map(|process| process.pid)
    });
    let trigger =
        trigger.map_or_else(String::new, |trigger| format!(", while {} was allocating", writer(trigger)));
    format!("OOMKilled{limit}{usage}: {victim}{group}{trigger}")
}

/// Whose limit a cgroup's is: "pod".
pub fn whose(cgroup: &proto::Cgroup) -> &str {
    whose_level(cgroup.role()).unwrap_or_else(|| cgroup.path.as_deref().unwrap_or("ancestor"))
}

/// Whose limit a level's is; none: it has no name.
pub(super) fn whose_level(level: proto::CgroupRole) -> Option<&'static str> {
    match level {
        proto::CgroupRole::Container => Some("container"),
        proto::CgroupRole::Pod => Some("pod"),
        proto::CgroupRole::Qos => Some("QoS class"),
        proto::CgroupRole::Kubepods => Some("kubepods"),
        proto::CgroupRole::Inner => Some("inner cgroup"),
        proto::CgroupRole::Other | proto::CgroupRole::Unspecified => None,
    }
}

/// Nanoseconds, in the unit that fits.
pub(super) fn duration(nanos: u64) -> String {
    match nanos {
        0..1_000_000 => format!("{} µs", nanos / 1000),
        1_000_000..1_000_000_000 => format!("{} ms", nanos / 1_000_000),
        _ => format!("{:.1} s", nanos as f64 / 1e9),
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    fn value(text: &str) -> Option<proto::Reading> {
        Some(proto::Reading { reading: Some(Reading::Value(text.into())) })
    }

    fn cgroup(role: proto::CgroupRole) -> Option<proto::Cgroup> {
        Some(proto::Cgroup {
            id: 7,
            path: Some("/kubepods.slice/x".into()),
            role: role.into(),
            pod: Some(proto::Pod {
                uid: "1d4e5f60-aaaa-bbbb-cccc-123456789abc".into(),
                namespace: Some("prod".into()),
                name: Some("web-5d9c7b8f6d-x2x7p".into()),
                qos_class: proto::QosClass::Burstable.into(),
            }),
        })
    }

    fn write(value: &str, errno: Option<i32>) -> Option<proto::LimitWrite> {
        Some(proto::LimitWrite {
            value: Some(value.into()),
            writer: Some(proto::Writer { pid: Some(77), comm: Some("runc".into()), ..Default::default() }),
            errno,
            errno_name: errno.map(|_| "EINVAL".into()),
            began: Some(1_000),
            returned: Some(26_000_000),
            hook: proto::WriteHook::Fentry.into(),
            ..Default::default()
        })
    }

    /// A child of the container, killed because the pod was full.
    pub fn shadowed() -> proto::Verdict {
        let value =
            |text: &str| Some(proto::Reading { reading: Some(proto::reading::Reading::Value(text.into())) });
        let desired = |source: proto::Source, value: &str| proto::DesiredLimit {
            source: source.into(),
            value: value.into(),
            time: None,
        };
        proto::Verdict {
            cgroup: accepted().cgroup,
            file: "memory.max".into(),
            verdict: proto::VerdictKind::Shadowed.into(),
            reason: "memory.max is 96Mi, but the pod's cgroup /kubepods/podu allows only 64Mi".into(),
            desired: vec![
                desired(proto::Source::Client, "100663296"),
                desired(proto::Source::KubeletAllocated, "100663296"),
                desired(proto::Source::CriRequest, "100663296"),
                desired(proto::Source::Runtime, "100663296"),
            ],
            compared_with: proto::Source::Client.into(),
            in_force: value("100663296"),
            effective: Some(proto::Effective {
                value: "67108864".into(),
                cgroup_path: "/kubepods/podu".into(),
            }),
            written: refused().write,
            ..Default::default()
        }
    }

    pub fn oom_kill(process: Option<proto::Process>) -> proto::OomKill {
        proto::OomKill {
            process,
            choice: proto::OomChoice::Chosen.into(),
            exhausted: cgroup(proto::CgroupRole::Pod).map(Exhausted::LimitOf),
            usage_bytes: Some(64 << 20),
            limit_bytes: Some(64 << 20),
            trigger: Some(proto::Writer { pid: Some(99), comm: Some("stress".into()), ..Default::default() }),
        }
    }

    pub fn refused() -> proto::LimitChanged {
        proto::LimitChanged {
            cgroup: cgroup(proto::CgroupRole::Container),
            file: "cpu.max".into(),
            old: value("100000 100000"),
            new: value("100000 100000"),
            read_back: true,
            write: write("410000 100000", Some(22)),
            coalesced: 0,
        }
    }

    pub fn accepted() -> proto::LimitChanged {
        proto::LimitChanged {
            cgroup: cgroup(proto::CgroupRole::Pod),
            file: "memory.max".into(),
            old: value("max"),
            new: value("67108864"),
            read_back: true,
            write: write("67108864", None),
            coalesced: 2,
        }
    }

    pub fn found() -> proto::LimitChanged {
        proto::LimitChanged {
            cgroup: cgroup(proto::CgroupRole::Qos),
            file: "cpuset.cpus".into(),
            old: Some(proto::Reading { reading: Some(Reading::Absent(true)) }),
            new: value(""),
            read_back: true,
            write: None,
            coalesced: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oom_kills_say_which_limit() {
        let process = proto::Process {
            pid: 12,
            comm: "java".into(),
            role: proto::ProcessRole::Main.into(),
            ..Default::default()
        };
        let kill = testing::oom_kill(Some(process));
        assert_eq!(
            oom_kill(&kill),
            "OOMKilled by the pod limit (64Mi of 64Mi): java (12, main), while stress (99) was allocating"
        );
        let machine = proto::OomKill {
            exhausted: Some(Exhausted::Machine(true)),
            choice: proto::OomChoice::GroupMember.into(),
            usage_bytes: None,
            trigger: None,
            ..kill.clone()
        };
        assert_eq!(
            oom_kill(&machine),
            "OOMKilled, the node is out of memory: java (12, main), with its group"
        );
        let unknown = proto::OomKill { exhausted: None, usage_bytes: None, trigger: None, ..kill };
        assert_eq!(oom_kill(&unknown), "OOMKilled by an unknown limit: java (12, main)");
    }

    #[test]
    fn seconds_have_tenths() {
        let shown = [999_000, 54_900_000, 1_340_000_000, 14_800_000_000].map(duration);
        assert_eq!(shown, ["999 µs", "54 ms", "1.3 s", "14.8 s"]);
    }

    #[test]
    fn changes_say_who_and_how_long() {
        assert_eq!(
            change(&testing::refused()),
            "cpu.max stays 1: 4100m rejected with EINVAL, by runc (77) in 25 ms"
        );
        assert_eq!(
            change(&testing::accepted()),
            "memory.max max → 64Mi, by runc (77) in 25 ms (+2 similar writes)"
        );
        assert_eq!(change(&testing::found()), "cpuset.cpus absent → \"\", found, of /kubepods.slice/x");
        let mut unsure = testing::accepted();
        if let Some(write) = &mut unsure.write {
            write.outcome = proto::WriteOutcome::Unknown.into();
        }
        assert!(change(&unsure).contains("→ 64Mi, probably by runc"), "{}", change(&unsure));
        let restored = proto::LimitChanged { old: testing::accepted().new, ..unsure };
        assert_eq!(
            change(&restored),
            "memory.max is 64Mi as before, written 3 times, probably by runc (77) in 25 ms"
        );
        let unread = proto::LimitChanged { read_back: false, coalesced: 0, ..testing::accepted() };
        assert!(change(&unread).contains("→ 64Mi (as written), by"), "{}", change(&unread));
    }
}
