//! The kubelet's checkpoints of what it has admitted (`allocated_pods_state`) and of what it has told the runtime
//! (`actuated_pods_state`), in its root directory.
//!
//! The format is the kubelet's own and may change: `pkg/kubelet/allocation/state`. `{"data": TEXT, "checksum": N}`, with a
//! `version` since it is "v2"; the text is JSON again, and `entries` in it maps a pod's UID to the resources of its containers.
//! An unknown version is refused by name, never guessed. The kubelet replaces the file by renaming another over it
//! (`pkg/kubelet/util/store`, `FileStore`), so that a reader has the old one or the new one, never half of it.
//!
//! A file system that does not answer costs one thread a file and no more: reads are made on a thread of their own, by one for
//! all who want to know, and nobody waits longer than [`DEADLINE`].

use std::collections::HashMap;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kwitness_core::model::{Bound, CpuMax, DesiredLimit, KernelTime, Resource, Source, Wanted};
use kwitness_core::verdicts::convert;
use kwitness_core::verdicts::quantity;
use kwitness_core::verdicts::quantity::QuantityError;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::Instant;

use super::desired::Desired;

/// The largest checkpoint that is read: a pod takes some hundred bytes.
const LARGEST: u64 = 16 << 20;
/// How long a read may take.
const DEADLINE: Duration = Duration::from_secs(1);

/// Why a checkpoint says nothing.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// It cannot be read.
    #[error("cannot read the kubelet's checkpoint {}", path.display())]
    Unreadable {
        /// Where it is.
        path: PathBuf,
        /// Why.
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
    #[error("the kubelet's checkpoint {} could not be read within {DEADLINE:?}", path.display())]
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
    entries: Option<HashMap<String, Pod>>,
    #[serde(rename = "podList")]
    pod_list: Option<serde::de::IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Pod {
    container_resources: Option<HashMap<String, Requirements>>,
    pod_level_resources: Option<Requirements>,
}

#[derive(Debug, Default, Deserialize)]
struct Requirements {
    #[serde(default)]
    limits: Quantities,
    #[serde(default)]
    requests: Quantities,
}

#[derive(Debug, Default, Deserialize)]
struct Quantities {
    cpu: Option<String>,
    memory: Option<String>,
}

/// A checkpoint, read.
#[derive(Debug, Default)]
pub(super) struct Checkpoint {
    pods: HashMap<String, Pod>,
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
        if !file.metadata().map_err(unreadable)?.is_file() {
            return Err(unreadable(io::Error::other("not a regular file")));
        }
        let mut text = String::new();
        if file.take(LARGEST + 1).read_to_string(&mut text).map_err(unreadable)? as u64 > LARGEST {
            return Err(unreadable(io::Error::other("larger than 16 MiB")));
        }
        Self::parse(path, &text).map(Some)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, CheckpointError> {
        let malformed = |source| CheckpointError::Malformed { path: path.to_owned(), source };
        let file: File = serde_json::from_str(text).map_err(malformed)?;
        if !matches!(file.version.as_str(), "" | "v2") {
            return Err(CheckpointError::Version { path: path.to_owned(), version: file.version });
        }
        let data: Data = serde_json::from_str(&file.data).map_err(malformed)?;
        match data.entries {
            // Of v2, entries are a second copy for older kubelets.
            None if data.pod_list.is_some() => Err(CheckpointError::NoEntries { path: path.to_owned() }),
            entries => Ok(Self { pods: entries.unwrap_or_default() }),
        }
    }

    /// What a container should have; empty: the checkpoint does not know it.
    pub(super) fn container(&self, uid: &str, name: &str, source: Source, at: KernelTime) -> Vec<Desired> {
        // What cannot be understood is not desired.
        let of = |pod: &Pod| {
            let found = pod.container_resources.as_ref()?.get(name)?;
            limits(found, pod.pod_level_resources.as_ref(), source, at).ok()
        };
        self.pods.get(uid).and_then(of).unwrap_or_default()
    }

    /// What a pod should have, where its spec says that of the pod as a whole.
    pub(super) fn pod(&self, uid: &str, source: Source, at: KernelTime) -> Vec<Desired> {
        let found = self.pods.get(uid).and_then(|pod| pod.pod_level_resources.as_ref());
        let limits = found.and_then(|found| limits(found, None, source, at).ok()).unwrap_or_default();
        // The overhead of the pod's RuntimeClass comes on top, and raises its weight. What the pod as a whole does not limit, its
        // containers may.
        let at_least = |(resource, limit): Desired| {
            let period = CpuMax::DEFAULT_PERIOD;
            let wanted = match limit.wanted {
                Wanted::MilliCpu(milli) if milli > 0 => {
                    Wanted::QuotaAtLeast(CpuMax { quota: convert::quota(milli, period), period })
                }
                Wanted::Memory(bound @ Bound::At(_)) => Wanted::MemoryAtLeast(bound),
                _ => return None,
            };
            Some((resource, DesiredLimit { wanted, ..limit }))
        };
        limits.into_iter().filter_map(at_least).collect()
    }
}

/// What a read gave.
type Read = Result<Arc<Checkpoint>, Arc<CheckpointError>>;

/// A read that is under way, and when it began.
type UnderWay = (Instant, watch::Receiver<Option<Read>>);

/// Reads one checkpoint for all who want to know. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct CheckpointFile {
    path: Arc<Path>,
    /// The read that is under way; it is over when its sender is gone.
    reading: Arc<Mutex<Option<UnderWay>>>,
}

impl CheckpointFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path: path.into(), reading: Arc::default() }
    }

    /// What it says, by a read that began after this call; empty: there is no such file.
    pub(super) async fn read(&self) -> Read {
        let slow = || Arc::new(CheckpointError::Slow { path: self.path.to_path_buf() });
        tokio::time::timeout(DEADLINE, self.next_read()).await.unwrap_or_else(|_| Err(slow()))
    }

    async fn next_read(&self) -> Read {
        let called = Instant::now();
        loop {
            let (began, mut reading) = self.join_or_start();
            // An error says that the thread has ended: what it had to say is there.
            let _ = reading.wait_for(Option::is_some).await;
            let read = reading.borrow().clone();
            if let Some(read) = read
                && began >= called
            {
                return read;
            }
        }
    }

    /// The read that is under way, or a new one.
    fn join_or_start(&self) -> (Instant, watch::Receiver<Option<Read>>) {
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((began, under_way)) = &*reading
            && under_way.borrow().is_none()
            && under_way.has_changed().is_ok()
        {
            return (*began, under_way.clone());
        }
        let began = Instant::now();
        let (sender, receiver) = watch::channel(None);
        let path = self.path.clone();
        let read = move || {
            let read = Checkpoint::read(&path).map(Option::unwrap_or_default);
            sender.send_replace(Some(read.map(Arc::new).map_err(Arc::new)));
        };
        // Not one of the runtime's blocking threads: for those, the end of the process waits.
        if let Err(source) = std::thread::Builder::new().name("checkpoint-reader".to_owned()).spawn(read) {
            let error = CheckpointError::Unreadable { path: self.path.to_path_buf(), source };
            let (_, failed) = watch::channel(Some(Err(Arc::new(error))));
            return (began, failed);
        }
        *reading = Some((began, receiver.clone()));
        (began, receiver)
    }
}

/// A container without a limit is given its pod's, if the pod as a whole has one (kubelet `getCPULimit`, `getMemoryLimit` in
/// `kuberuntime_container_linux.go`), and else none: the kubelet sends no quota and no memory limit.
fn limits(
    found: &Requirements,
    pod: Option<&Requirements>,
    source: Source,
    at: KernelTime,
) -> Result<Vec<Desired>, QuantityError> {
    let of_pod = pod.map(|pod| &pod.limits);
    let or_pods = |own: &Option<String>, pods: fn(&Quantities) -> &Option<String>| {
        own.clone().or_else(|| of_pod.and_then(|of| pods(of).clone()))
    };
    let cpu = or_pods(&found.limits.cpu, |of| &of.cpu);
    let memory = or_pods(&found.limits.memory, |of| &of.memory);
    let desired = |resource, wanted| (resource, DesiredLimit { source, at, wanted });
    let limit = cpu.as_deref().map(quantity::milli).transpose()?;
    let request = found.requests.cpu.as_deref().map(quantity::milli).transpose()?.or(limit);
    let memory = memory.as_deref().map(quantity::whole).transpose()?;
    Ok(vec![
        desired(Resource::Cpu, Wanted::MilliCpu(limit.unwrap_or(0))),
        desired(Resource::CpuWeight, Wanted::Shares(convert::shares(request.unwrap_or(0)))),
        desired(
            Resource::Memory,
            Wanted::Memory(memory.filter(|bytes| *bytes > 0).map_or(Bound::Unlimited, Bound::At)),
        ),
    ])
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
        Checkpoint::parse(Path::new("/var/lib/kubelet/allocated_pods_state"), text)
    }

    fn wanted(limits: &[Desired]) -> Vec<Wanted> {
        limits.iter().map(|(_, limit)| limit.wanted).collect()
    }

    #[test]
    fn both_versions_are_read() {
        let v2 = ENTRIES.replacen('{', r#"{"podList":"CgA=","#, 1);
        for text in [file(None, ENTRIES), file(Some("v2"), &v2)] {
            let checkpoint = parse(&text).unwrap();
            let of = |name| wanted(&checkpoint.container("u", name, Source::KubeletAllocated, AT));
            assert_eq!(
                of("app"),
                [Wanted::MilliCpu(500), Wanted::Shares(256), Wanted::Memory(Bound::At(64 << 20))]
            );
            assert_eq!(
                of("free"),
                [Wanted::MilliCpu(1000), Wanted::Shares(1024), Wanted::Memory(Bound::Unlimited)],
                "the pod has a CPU limit as a whole, and no memory limit"
            );
            assert_eq!(of("unknown"), []);
            let pod = checkpoint.pod("u", Source::KubeletAllocated, AT);
            let period = CpuMax::DEFAULT_PERIOD;
            let quota = CpuMax { quota: Bound::At(100_000), period };
            assert_eq!(wanted(&pod), [Wanted::QuotaAtLeast(quota)], "a RuntimeClass's overhead comes on top");
        }
        assert!(parse(&file(None, "{}")).unwrap().pods.is_empty(), "no pod yet");
    }

    #[test]
    fn an_unknown_version_is_refused_by_name() {
        let error = parse(&file(Some("v3"), ENTRIES)).unwrap_err().to_string();
        assert!(error.contains("\"v3\"") && error.contains("allocated_pods_state"), "{error}");
        let error = parse(&file(Some("v2"), r#"{"podList":"CgA="}"#)).unwrap_err();
        assert!(matches!(error, CheckpointError::NoEntries { .. }), "{error}");
        for text in ["", "{", "[]", r#"{"data":7}"#, &file(None, "nonsense")] {
            assert!(matches!(parse(text), Err(CheckpointError::Malformed { .. })), "{text}");
        }
    }

    #[test]
    fn what_is_not_there_is_none() {
        assert!(Checkpoint::read(Path::new("/does/not/exist")).unwrap().is_none());
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(Checkpoint::read(directory.path()), Err(CheckpointError::Unreadable { .. })));
    }

    #[test]
    fn a_reader_never_has_half_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("allocated_pods_state");
        let next = directory.path().join("next");
        std::fs::write(&path, file(None, ENTRIES)).unwrap();
        let writer = std::thread::spawn({
            let path = path.clone();
            move || {
                for _ in 0..200 {
                    std::fs::write(&next, file(None, ENTRIES)).unwrap();
                    std::fs::rename(&next, &path).unwrap();
                }
            }
        });
        while !writer.is_finished() {
            assert_eq!(Checkpoint::read(&path).unwrap().unwrap().pods.len(), 1);
        }
        writer.join().unwrap();
    }

    #[tokio::test]
    async fn a_file_that_does_not_answer_costs_one_bounded_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("allocated_pods_state");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let checkpoint = CheckpointFile::new(path.clone());
        let error = tokio::time::timeout(DEADLINE / 2, checkpoint.read()).await.unwrap().unwrap_err();
        assert!(
            matches!(&*error, CheckpointError::Unreadable { source, .. } if source.to_string().contains("regular"))
        );

        // A read that hangs: nobody starts another, nobody waits for ever, and when it is over, all is well again.
        let (stuck, receiver) = watch::channel(None);
        *checkpoint.reading.lock().unwrap() = Some((Instant::now(), receiver));
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, file(None, ENTRIES)).unwrap();
        tokio::time::pause();
        for _ in 0..2 {
            assert!(matches!(*checkpoint.read().await.unwrap_err(), CheckpointError::Slow { .. }));
        }
        tokio::time::resume();
        drop(stuck);
        assert_eq!(checkpoint.read().await.unwrap().pods.len(), 1);
    }
}
