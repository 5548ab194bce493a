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
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use kwitness_core::model::{Bound, DesiredLimit, KernelTime, Resource, Source, Wanted};
use kwitness_core::verdicts::convert;
use kwitness_core::verdicts::quantity;
use kwitness_core::verdicts::quantity::QuantityError;
use kwitness_service::text_file;
use serde::Deserialize;

pub(super) use file::CheckpointFile;

use crate::clock::Clock;
use crate::reported::desired::Desired;
use kwitness_api::Timestamp;

/// The largest checkpoint that is read: a pod takes some hundred bytes.
const LARGEST_MIB: u64 = 16;

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
        let file = match text_file::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(unreadable)?,
        };
        let at = file.metadata().and_then(|metadata| metadata.modified()).map_err(unreadable)?;
        let text = text_file::text(file, LARGEST_MIB).map_err(unreadable)?;
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
        let page = procfs::page_size();
        let is_limit = |wanted: Wanted| wanted != Wanted::NoQuotaSent && !wanted.is_unlimited(page);
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
mod tests;
