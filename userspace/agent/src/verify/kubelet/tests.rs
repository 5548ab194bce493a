use super::*;

const AT: KernelTime = KernelTime(1);
const ENTRIES: &str = r#"{"entries":{"u":{"ContainerResources":{"app":{"limits":{"cpu":"500m","memory":"64Mi"},"requests":{"cpu":"250m","memory":"64Mi"}},"free":{}},"PodLevelResources":{"limits":{"cpu":"1"}},"EmptyDirVolumeLimits":{"x":"1Gi"}}}}"#;

fn file(version: Option<&str>, data: &str) -> String {
    let mut file = serde_json::json!({ "data": data, "checksum": 1_234_567 });
    if let Some(version) = version {
        file["version"] = version.into();
    }
    file.to_string()
}

fn parse(text: &str) -> Result<Checkpoint, CheckpointError> {
    Checkpoint::parse(Path::new("/var/lib/kubelet/allocated_pods_state"), text, AT)
}

fn wanted(limits: &[Desired]) -> Vec<Wanted> {
    limits.iter().map(|(_, limit)| limit.wanted).collect()
}

#[test]
fn both_versions_are_read() {
    let v2 = ENTRIES.replacen('{', r#"{"podList":"CgA=","#, 1);
    for text in [file(None, ENTRIES), file(Some("v2"), &v2)] {
        let checkpoint = parse(&text).unwrap();
        let of = |name| wanted(&checkpoint.container("u", name, Source::KubeletAllocated, &[]));
        assert_eq!(
            of("app"),
            [Wanted::MilliCpu(500), Wanted::Shares(256), Wanted::Memory(Bound::At(64 << 20))]
        );
        assert_eq!(
            of("free"),
            [Wanted::MilliCpu(1000), Wanted::Memory(Bound::Unlimited)],
            "the pod's own CPU limit"
        );
        assert_eq!(of("unknown"), []);
        let pod = checkpoint.pod("u", Source::KubeletAllocated);
        assert_eq!(wanted(&pod), [Wanted::MilliCpuAtLeast(1000)]);
    }
    assert!(parse(&file(None, "{}")).unwrap().pods.is_empty(), "no pod yet");
}

fn entry(entry: &str) -> Checkpoint {
    parse(&file(None, &format!(r#"{{"entries":{{"u":{entry},"other":{{}}}}}}"#))).unwrap()
}

fn container(checkpoint: &Checkpoint, name: &str) -> Vec<Wanted> {
    wanted(&checkpoint.container("u", name, Source::KubeletAllocated, &[]))
}

/// The kubelet gives a container without limits its pod's (`getCPULimit`, `getMemoryLimit`). Its shares are by that at first, and the
/// fewest after a resize: the checkpoint does not say which.
#[test]
fn a_container_without_limits_has_its_pods() {
    let checkpoint = entry(
        r#"{"ContainerResources":{
            "c1":{"limits":{"cpu":"500m","memory":"100Mi"},"requests":{"cpu":"500m","memory":"50Mi"}},
            "c2":{},"c3":{"limits":{"cpu":"0"},"requests":{"cpu":"100m"}},"c4":null},
           "PodLevelResources":{"limits":{"cpu":"1","memory":"200Mi"},"requests":{"cpu":"1","memory":"100Mi"}}}"#,
    );
    let memory = |mebibytes: u64| Wanted::Memory(Bound::At(mebibytes << 20));
    assert_eq!(container(&checkpoint, "c1"), [Wanted::MilliCpu(500), Wanted::Shares(512), memory(100)]);
    assert_eq!(container(&checkpoint, "c2"), [Wanted::MilliCpu(1000), memory(200)]);
    assert_eq!(container(&checkpoint, "c3"), [Wanted::MilliCpu(1000), Wanted::Shares(102), memory(200)]);
    assert_eq!(container(&checkpoint, "c4"), container(&checkpoint, "c2"));
    // Overhead may be added to all of them.
    assert_eq!(
        wanted(&checkpoint.pod("u", Source::KubeletAllocated)),
        [
            Wanted::MilliCpuAtLeast(1000),
            Wanted::SharesAtLeast(1024),
            Wanted::MemoryAtLeast(Bound::At(200 << 20)),
        ]
    );
}

/// A kubelet 1.35 writes `null` for every pod, and sends a container its pod's limits and shares by them all the same.
#[test]
fn a_pod_without_resources_has_none_only_where_another_has_some() {
    let of = |other: &str| {
        let entries = format!(
            r#"{{"entries":{{"u":{{"ContainerResources":{{"c":{{}}}},"PodLevelResources":null}},"other":{other}}}}}"#
        );
        parse(&file(None, &entries)).unwrap()
    };
    let none = [Wanted::MilliCpu(0), Wanted::Shares(2), Wanted::Memory(Bound::Unlimited)];
    let recorded = of(r#"{"PodLevelResources":{"limits":{"cpu":"1"}}}"#);
    assert!(recorded.records_pod("u") && !recorded.records_pod("unknown"));
    assert_eq!(
        (container(&recorded, "c"), recorded.pod("u", Source::KubeletAllocated)),
        (none.into(), vec![])
    );
    for other in [r#"{"PodLevelResources":null}"#, "{}"] {
        let unrecorded = of(other);
        assert!(!unrecorded.records_pod("u"), "{other}");
        assert_eq!(container(&unrecorded, "c"), [none[0], none[2]], "its shares may be by its pod's limit");
    }
}

/// A kubelet 1.35 writes the pod's limit down as the container's once it is actuated, and in the other checkpoint never.
#[test]
fn what_is_not_recorded_of_a_pod_is_no_word_against_what_was_sent() {
    let of =
        |pod: &str| entry(&format!(r#"{{"ContainerResources":{{"c":{{}}}},"PodLevelResources":{pod}}}"#));
    let sent = |source, resource, wanted| (resource, DesiredLimit { source, at: AT, wanted });
    let limit = sent(Source::Runtime, Resource::Memory, Wanted::Memory(Bound::At(64 << 20)));
    let none = sent(Source::CriRequest, Resource::Memory, Wanted::Memory(Bound::Unlimited));
    let guards = sent(Source::Guard, Resource::Memory, limit.1.wanted);
    let (cpu, unlimited) = (Wanted::MilliCpu(0), Wanted::Memory(Bound::Unlimited));
    let words = |pod: &str, others: &[Desired]| {
        wanted(&of(pod).container("u", "c", Source::KubeletAllocated, others))
    };
    assert_eq!(words("null", &[none, limit]), [cpu], "of memory it has none");
    assert_eq!(words("null", &[none, guards]), [cpu, unlimited]);
    // Where pods' limits are recorded, that there is none is one.
    let recorded = words(r#"{"limits":{"cpu":"1"}}"#, &[limit]);
    assert_eq!(recorded, [Wanted::MilliCpu(1000), unlimited]);
}

#[test]
fn quantities_of_all_spellings_are_read() {
    for (limits, requests, expected) in [
        (
            r#"{"cpu":"0","memory":"0"}"#,
            r#"{"cpu":"100m","memory":"0"}"#,
            [Wanted::MilliCpu(0), Wanted::Shares(102), Wanted::Memory(Bound::Unlimited)],
        ),
        (
            r#"{"cpu":"1k","memory":"1e3"}"#,
            "null",
            [Wanted::MilliCpu(1_000_000), Wanted::Shares(262_144), Wanted::Memory(Bound::At(1000))],
        ),
        (
            r#"{"cpu":"100u","memory":"0.5Gi"}"#,
            "{}",
            [Wanted::MilliCpu(1), Wanted::Shares(2), Wanted::Memory(Bound::At(512 << 20))],
        ),
        (
            r#"{"cpu":"1024Ki","memory":"128974848"}"#,
            r#"{"cpu":"1"}"#,
            [Wanted::MilliCpu(1_048_576_000), Wanted::Shares(1024), Wanted::Memory(Bound::At(128_974_848))],
        ),
        (
            r#"{"memory":"10E"}"#,
            r#"{"cpu":"0"}"#,
            [Wanted::MilliCpu(0), Wanted::Shares(2), Wanted::Memory(Bound::At(i64::MAX.unsigned_abs()))],
        ),
        (
            r#"{"cpu":"1m","memory":"128m"}"#,
            "{}",
            [Wanted::MilliCpu(1), Wanted::Shares(2), Wanted::Memory(Bound::At(1))],
        ),
    ] {
        let text = format!(r#"{{"ContainerResources":{{"c":{{"limits":{limits},"requests":{requests}}}}}}}"#);
        assert_eq!(container(&entry(&text), "c"), expected, "{limits}");
    }
}

/// One pod's entry says nothing of another's.
#[test]
fn what_is_not_understood_of_a_pod_is_said_of_that_pod() {
    for (broken, why) in [
        (r#"{"ContainerResources":{"c":{"limits":{"cpu":"many"}}}}"#, "container c: \"many\""),
        (r#"{"PodLevelResources":{"limits":{"memory":"-1"}}}"#, "pod-level resources: \"-1\""),
        (r#"{"ContainerResources":[]}"#, "invalid type"),
        (r#"{"ContainerResources":{"c":{"limits":{"cpu":{"exact":1}}}}}"#, "invalid type"),
    ] {
        let checkpoint = entry(broken);
        assert_eq!(container(&checkpoint, "c"), []);
        let said = checkpoint.unread("u").unwrap();
        assert!(said.contains("pod u") && said.contains(why), "{said}");
        assert_eq!((checkpoint.unread("other"), checkpoint.unread("unknown")), (None, None));
    }
}

/// A static pod's entry has the UID that its cgroup has: a hash, not the mirror pod's UID.
#[test]
fn a_static_pod_is_found_by_its_hash() {
    let hash = "9c1d2e3f4a5b6c7d8e9f0a1b2c3d4e5f";
    let data = format!(r#"{{"entries":{{"{hash}":{{"ContainerResources":{{"c":{{}}}}}}}}}}"#);
    let checkpoint = parse(&file(None, &data)).unwrap();
    assert_eq!(checkpoint.container(hash, "c", Source::KubeletActuated, &[]).len(), 2);
}

/// A request that came before it was written is older, one that comes after it is younger.
#[test]
fn a_checkpoint_is_as_old_as_its_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("allocated_pods_state");
    let before = Clock::read().now();
    std::fs::write(&path, file(None, ENTRIES)).unwrap();
    let at = Checkpoint::read(&path).unwrap().unwrap().at;
    assert!(before <= at && at <= Clock::read().now(), "{before:?} {at:?}");
    let hour_ago = SystemTime::now() - std::time::Duration::from_secs(3600);
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(hour_ago).unwrap();
    assert!(Checkpoint::read(&path).unwrap().unwrap().at < before);
}

#[test]
fn an_unknown_version_is_refused_by_name() {
    let error = parse(&file(Some("v3"), ENTRIES)).unwrap_err().to_string();
    assert!(error.contains("\"v3\"") && error.contains("allocated_pods_state"), "{error}");
    let error = parse(&file(Some("v2"), r#"{"podList":"CgA="}"#)).unwrap_err();
    assert!(matches!(error, CheckpointError::NoEntries { .. }), "{error}");
    let torn = r#"{"data":"{}","checksum":1}"}"#;
    let no_data = r#"{"data":"","checksum":0}"#;
    for text in ["", "{", "[]", r#"{"data":7}"#, &file(None, "nonsense"), torn, no_data, "\0\0\0\0"] {
        assert!(matches!(parse(text), Err(CheckpointError::Malformed { .. })), "{text}");
    }
}

#[test]
fn what_is_not_there_is_none() {
    assert!(Checkpoint::read(Path::new("/does/not/exist")).unwrap().is_none());
    let directory = tempfile::tempdir().unwrap();
    assert!(matches!(Checkpoint::read(directory.path()), Err(CheckpointError::Unreadable { .. })));
}
