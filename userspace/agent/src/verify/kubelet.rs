//! The kubelet's checkpoints of what it has admitted (`allocated_pods_state`) and of what it has actuated with the runtime
//! (`actuated_pods_state`), in its root directory.
//!
//! The format is the kubelet's own and may change: `pkg/kubelet/allocation/state`. `{"data": TEXT, "checksum": N}`, with a
//! `version` since it is "v2"; the text is JSON again, and `entries` in it maps a pod's UID to the resources of its containers.
//! An unknown version is refused by name, never guessed; an entry that is not understood is named, and the others are used.
//! The kubelet replaces the file by renaming another over it (`pkg/kubelet/util/store`, `FileStore`), so that a reader has the
//! old one or the new one, never half of it.

mod file;

use std::collections::HashMap;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use kwitness_core::model::{Bound, CpuMax, DesiredLimit, KernelTime, Resource, Source, Wanted};
use kwitness_core::verdicts::convert;
use kwitness_core::verdicts::quantity;
use kwitness_core::verdicts::quantity::QuantityError;
use serde::Deserialize;

pub(super) use file::CheckpointFile;

use crate::clock::Clock;
use crate::reported::desired::Desired;
use kwitness_api::Timestamp;

/// The largest checkpoint that is read: a pod takes some hundred bytes.
const LARGEST: u64 = 16 << 20;

/// Why a checkpoint says nothing.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// It cannot be read.
    #[error("cannot read the kubelet's checkpoint {}", path.display())]
    Unreadable {
        /// Where it is.
        path: PathBuf,
        /// The I/O error.
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("the kubelet's checkpoint {} is not as expected", path.display())]
    Malformed {
        /// Where it is.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// It is of a version that is not known.
    #[error(
        "the kubelet's checkpoint {} is of version \"{version}\", which this release of kwitness does not know: it knows \
         those without a version and \"v2\"",
        path.display()
    )]
    Version {
        /// Where it is.
        path: PathBuf,
        /// Its version.
        version: String,
    },
    /// It does not come.
    #[error("the kubelet's checkpoint {} could not be read within {} s", path.display(), file::DEADLINE.as_secs())]
    Slow {
        /// Where it is.
        path: PathBuf,
    },
    /// It has no entries.
    #[error("the kubelet's checkpoint {} of version \"v2\" has no `entries` any more", path.display())]
    NoEntries {
        /// Where it is.
        path: PathBuf,
    },
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    version: String,
    data: String,
}

#[derive(Deserialize)]
struct Data {
    entries: Option<HashMap<String, serde_json::Value>>,
    #[serde(rename = "podList")]
    pod_list: Option<serde::de::IgnoredAny>,
}

/// A pod's entry.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Pod {
    container_resources: Option<HashMap<String, Option<Requirements>>>,
    /// None where the pod has none, and with every pod of a kubelet that does not record them: one before 1.35 has no such key, one
    /// of 1.35 has `null` unless its feature gate `InPlacePodLevelResourcesVerticalScaling` is on, as it is from 1.36 on.
    pod_level_resources: Option<Requirements>,
}

#[derive(Debug, Default, Deserialize)]
struct Requirements {
    limits: Option<Quantities>,
    requests: Option<Quantities>,
}

#[derive(Debug, Deserialize)]
struct Quantities {
    cpu: Option<String>,
    memory: Option<String>,
}

/// What is required of a container, or of a pod as a whole; none: the entry does not have it.
#[derive(Clone, Copy, Debug, Default)]
struct Amounts {
    /// Thousandths of a CPU.
    cpu_limit: Option<u64>,
    cpu_request: Option<u64>,
    /// Bytes.
    memory_limit: Option<u64>,
}

/// A pod's entry, understood.
#[derive(Debug, Default)]
struct Entry {
    containers: HashMap<String, Amounts>,
    pod: Option<Amounts>,
}

/// A checkpoint, read.
#[derive(Debug)]
pub(super) struct Checkpoint {
    /// When it was written.
    at: KernelTime,
    /// By UID; why an entry is not understood.
    pods: HashMap<String, Result<Entry, String>>,
    /// Some pod has resources as a whole: this kubelet records them, and an entry without has none.
    records_pods: bool,
}

/// Of a node without that file.
impl Default for Checkpoint {
    fn default() -> Self {
        Self { at: KernelTime(0), pods: HashMap::new(), records_pods: false }
    }
}

impl Checkpoint {
    /// Reads it; none: there is no such file, as on a node without a kubelet or before 1.33.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, CheckpointError> {
        let unreadable = |source| CheckpointError::Unreadable { path: path.to_owned(), source };
        // A FIFO or a device in its place would keep a reader for ever.
        let mut options = std::fs::File::options();
        let opened = options.read(true).custom_flags(nix::libc::O_NONBLOCK).open(path);
        let file = match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(unreadable)?,
        };
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(unreadable(io::Error::other("not a regular file")));
        }
        let at = metadata.modified().map_err(unreadable)?;
        let mut text = String::new();
        if file.take(LARGEST + 1).read_to_string(&mut text).map_err(unreadable)? as u64 > LARGEST {
            return Err(unreadable(io::Error::other("larger than 16 MiB")));
        }
        Self::parse(path, &text, written(at)).map(Some)
    }

    fn parse(path: &Path, text: &str, at: KernelTime) -> Result<Self, CheckpointError> {
        let malformed = |source| CheckpointError::Malformed { path: path.to_owned(), source };
        let file: File = serde_json::from_str(text).map_err(malformed)?;
        if !matches!(file.version.as_str(), "" | "v2") {
            return Err(CheckpointError::Version { path: path.to_owned(), version: file.version });
        }
        let data: Data = serde_json::from_str(&file.data).map_err(malformed)?;
        let entries = match data.entries {
            // Of v2, entries are a second copy for older kubelets.
            None if data.pod_list.is_some() => {
                return Err(CheckpointError::NoEntries { path: path.to_owned() });
            }
            entries => entries.unwrap_or_default(),
        };
        let pods: HashMap<_, _> = entries.into_iter().map(|(uid, entry)| (uid, understand(entry))).collect();
        let records_pods = pods.values().flatten().any(|entry| entry.pod.is_some());
        Ok(Self { at, pods, records_pods })
    }

    /// Why nothing is known of a pod that has an entry.
    pub(super) fn unread(&self, uid: &str) -> Option<String> {
        let why = self.pods.get(uid)?.as_ref().err()?;
        Some(format!("the entry of pod {uid} is not understood: {why}"))
    }

    /// What a container should have; empty: the checkpoint does not know it. What it does not limit itself, its pod may: where that is
    /// not recorded, the checkpoint has no word on what other sources, `others`, have a limit of.
    pub(super) fn container(
        &self,
        uid: &str,
        name: &str,
        source: Source,
        others: &[Desired],
    ) -> Vec<Desired> {
        let Some(Ok(Entry { containers, pod })) = self.pods.get(uid) else { return Vec::new() };
        let Some(own) = containers.get(name) else { return Vec::new() };
        let pod = pod.unwrap_or_default();
        let cpu = positive(own.cpu_limit).or(positive(pod.cpu_limit)).unwrap_or(0);
        let memory = positive(own.memory_limit).or(positive(pod.memory_limit));
        // The kubelet gives a container that has nothing but its pod's limit shares by that when it creates it, and the fewest
        // when it resizes it (`calculateLinuxResources`, `updatePodContainerResources`): what it has done, other sources know. They
        // also know whether there is such a limit that is not recorded.
        let none = (cpu == 0 && self.records_pods).then_some(0);
        let shares = own.cpu_request.or(positive(own.cpu_limit)).or(none);
        let limits = [
            Some((Resource::Cpu, Wanted::MilliCpu(cpu))),
            shares.map(|milli| (Resource::CpuWeight, Wanted::Shares(convert::shares(milli)))),
            Some((Resource::Memory, Wanted::Memory(memory.map_or(Bound::Unlimited, Bound::At)))),
        ];
        let is_word = |(resource, wanted): &(Resource, Wanted)| {
            self.records_pods
                || is_limit(*wanted)
                || !others.iter().any(|(of, other)| {
                    of == resource && other.source != Source::Guard && is_limit(other.wanted)
                })
        };
        let limits = limits.into_iter().flatten().filter(is_word);
        limits.map(|(resource, wanted)| (resource, DesiredLimit { source, at: self.at, wanted })).collect()
    }

    /// Whether it says of this pod if it has resources as a whole.
    pub(super) fn records_pod(&self, uid: &str) -> bool {
        self.records_pods && matches!(self.pods.get(uid), Some(Ok(_)))
    }

    /// What a pod should have at least, where its spec says that of the pod as a whole.
    pub(super) fn pod(&self, uid: &str, source: Source) -> Vec<Desired> {
        let Some(Ok(Entry { pod: Some(pod), .. })) = self.pods.get(uid) else { return Vec::new() };
        // What the pod as a whole does not limit, its containers may.
        let cpu = positive(pod.cpu_limit).map(|milli| (Resource::Cpu, Wanted::MilliCpuAtLeast(milli)));
        let weight = pod.cpu_request.map(convert::shares).map(Wanted::SharesAtLeast);
        let memory = positive(pod.memory_limit).map(|bytes| Wanted::MemoryAtLeast(Bound::At(bytes)));
        let weight = weight.map(|wanted| (Resource::CpuWeight, wanted));
        let memory = memory.map(|wanted| (Resource::Memory, wanted));
        let all = [cpu, weight, memory].into_iter().flatten();
        all.map(|(resource, wanted)| (resource, DesiredLimit { source, at: self.at, wanted })).collect()
    }
}

/// Whether it takes anything away.
fn is_limit(wanted: Wanted) -> bool {
    !matches!(
        wanted,
        Wanted::MilliCpu(0)
            | Wanted::NoQuotaSent
            | Wanted::Quota(CpuMax { quota: Bound::Unlimited, .. })
            | Wanted::Memory(Bound::Unlimited)
    )
}

/// A limit of 0 is none.
fn positive(limit: Option<u64>) -> Option<u64> {
    limit.filter(|amount| *amount > 0)
}

/// When a file with this modification time was written. The kernel notes the time of its last tick; of the slowest ticks there are a
/// hundred a second.
fn written(modified: SystemTime) -> KernelTime {
    const TICK: u64 = 10_000_000;
    let clock = Clock::read();
    let since_epoch = modified.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let nanos = i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX);
    let at = clock.kernel(Timestamp::from_unix_nanos(nanos)).0.saturating_add(TICK);
    KernelTime(at.min(clock.now().0))
}

fn understand(entry: serde_json::Value) -> Result<Entry, String> {
    let pod: Pod = serde_json::from_value(entry).map_err(|error| error.to_string())?;
    let of = |whose: String, required: &Requirements| {
        amounts(required).map_err(|error| format!("{whose}: {error}"))
    };
    let whole = pod.pod_level_resources.map(|whole| of("pod-level resources".to_owned(), &whole));
    let mut understood = Entry { pod: whole.transpose()?, ..Entry::default() };
    for (name, required) in pod.container_resources.unwrap_or_default() {
        let amounts = of(format!("container {name}"), &required.unwrap_or_default())?;
        understood.containers.insert(name, amounts);
    }
    Ok(understood)
}

fn amounts(required: &Requirements) -> Result<Amounts, QuantityError> {
    let (limits, requests) = (required.limits.as_ref(), required.requests.as_ref());
    let cpu = |quantities: &Quantities| quantities.cpu.as_deref().map(|text| capped(quantity::milli(text)));
    let memory = |quantities: &Quantities| {
        let memory = quantities.memory.as_deref();
        memory.map(|text| capped(quantity::whole(text)))
    };
    Ok(Amounts {
        cpu_limit: limits.and_then(cpu).transpose()?,
        cpu_request: requests.and_then(cpu).transpose()?,
        memory_limit: limits.and_then(memory).transpose()?,
    })
}

/// apimachinery's quantities end at 2^63 - 1.
fn capped(amount: Result<u64, QuantityError>) -> Result<u64, QuantityError> {
    match amount {
        Err(QuantityError::TooLarge(_)) => Ok(i64::MAX.unsigned_abs()),
        amount => amount,
    }
}

#[cfg(test)]
mod tests {
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
            assert_eq!(
                container(&unrecorded, "c"),
                [none[0], none[2]],
                "its shares may be by its pod's limit"
            );
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
                [
                    Wanted::MilliCpu(1_048_576_000),
                    Wanted::Shares(1024),
                    Wanted::Memory(Bound::At(128_974_848)),
                ],
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
            let text =
                format!(r#"{{"ContainerResources":{{"c":{{"limits":{limits},"requests":{requests}}}}}}}"#);
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
}
