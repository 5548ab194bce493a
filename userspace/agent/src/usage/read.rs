//! The usage files of containers, read on a thread of their own within a deadline, in whichever hierarchy their controller is.
//!
//! A file that does not answer costs one thread and the rest of that sample, until it answers; nothing waits for it longer than
//! [`DEADLINE`]. Never writes.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use kwitness_core::model::{KernelTime, Subject};
use procfs::process::Process;
use tokio::sync::mpsc;

use crate::cgroupfs::usage_files::{Amount, FlatKeyed};
use crate::cgroupfs::{CgroupFs, Directory, gone, v1_mount};
use crate::clock::Clock;
use crate::verify::inner_cgroup;

/// How long a sample's readings may take. What is not read by then is unknown in that sample.
const DEADLINE: Duration = Duration::from_secs(1);
const LATE: &str = "not read within 1 s";

/// What a container's files say; see `ContainerUsage` in the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Files {
    pub(super) memory_usage: Amount,
    pub(super) memory_limit: Amount,
    pub(super) memory_high: Amount,
    pub(super) inactive_file: Amount,
    pub(super) oom_kills: Amount,
    pub(super) cpu_periods: Amount,
    pub(super) cpu_throttled: Amount,
}

impl Files {
    /// None of them, for that reason.
    pub(super) fn unknown(reason: &str) -> Self {
        let unknown = || Amount::Unknown(reason.to_owned());
        Self {
            memory_usage: unknown(),
            memory_limit: unknown(),
            memory_high: unknown(),
            inactive_file: unknown(),
            oom_kills: unknown(),
            cpu_periods: unknown(),
            cpu_throttled: unknown(),
        }
    }
}

/// What became of a container's reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Its files say so, begun at that time.
    Read(KernelTime, Box<Files>),
    /// Its cgroup does not exist any more.
    Gone,
    /// There was no time.
    Late,
}

impl Outcome {
    pub(super) const fn is_gone(&self) -> bool {
        matches!(self, Self::Gone)
    }

    /// What is known, and since when; none: the container is gone.
    pub(super) fn files(self, now: KernelTime) -> Option<(KernelTime, Files)> {
        match self {
            Self::Read(at, files) => Some((at, *files)),
            Self::Gone => None,
            Self::Late => Some((now, Files::unknown(LATE))),
        }
    }
}

/// Where each controller is.
#[derive(Clone, Debug)]
pub(super) struct Hierarchies {
    cgroups: CgroupFs,
    /// Where the v1 hierarchy of memory is mounted; none: the controller is in the v2 hierarchy.
    memory_v1: Option<PathBuf>,
    /// Likewise of the CPU.
    cpu_v1: Option<PathBuf>,
}

impl Hierarchies {
    /// Looks for v1 hierarchies beside the v2 one. A table of mounts that cannot be read has none: the files are then missed in
    /// the v2 hierarchy, and said to be absent.
    pub(super) fn find(cgroups: CgroupFs) -> Self {
        let mounts = Process::myself().and_then(|myself| myself.mountinfo());
        let mounts = mounts.map(|mounts| mounts.0).unwrap_or_default();
        let v1 = |controller| v1_mount(&mounts, controller).map(Path::to_owned);
        Self { memory_v1: v1("memory"), cpu_v1: v1("cpu"), cgroups }
    }

    #[cfg(test)]
    pub(super) fn v2(root: &Path) -> Self {
        Self { cgroups: CgroupFs::at(root), memory_v1: None, cpu_v1: None }
    }

    /// What the files of a container's cgroup say; none: it is gone.
    fn read(&self, subject: &Subject) -> Option<Files> {
        let path = &*subject.cgroup_path;
        let own = match self.cgroups.open(path) {
            Ok(own) => own,
            Err(error) if gone(&error) => return None,
            Err(error) => return Some(Files::unknown(&error.to_string())),
        };
        if !own.id().is_ok_and(|id| id == subject.cgroup_id) {
            return None;
        }
        let mut files = match self.memory_v1.as_ref().map(|mount| in_v1(mount, path)) {
            None => memory(&own),
            Some(Ok(directory)) => memory_v1(&directory),
            Some(Err(reason)) => Files::unknown(&reason),
        };
        let cpu = match self.cpu_v1.as_ref().map(|mount| in_v1(mount, path)) {
            None => cpu(&own),
            Some(Ok(directory)) => throttling(&directory),
            Some(Err(reason)) => (Amount::Unknown(reason.clone()), Amount::Unknown(reason)),
        };
        (files.cpu_periods, files.cpu_throttled) = cpu;
        // What was read of a cgroup that is gone by now may be half of it.
        own.exists().then_some(files)
    }
}

/// The same cgroup in a v1 hierarchy. Its id is another one there; the container's id is in its path.
fn in_v1(mount: &Path, path: &str) -> Result<Directory, String> {
    Directory::open(&mount.join(path.trim_start_matches('/')))
        .map_err(|error| format!("the cgroup below {}: {error}", mount.display()))
}

fn memory(own: &Directory) -> Files {
    Files {
        memory_usage: Amount::read(own, "memory.current"),
        memory_limit: Amount::read(own, "memory.max"),
        memory_high: Amount::read(own, "memory.high"),
        inactive_file: FlatKeyed::read(own, "memory.stat").get("inactive_file"),
        oom_kills: FlatKeyed::read(own, "memory.events").get("oom_kill"),
        cpu_periods: Amount::Absent,
        cpu_throttled: Amount::Absent,
    }
}

fn memory_v1(own: &Directory) -> Files {
    Files {
        memory_usage: Amount::read(own, "memory.usage_in_bytes"),
        memory_limit: Amount::read_v1_limit(own, "memory.limit_in_bytes"),
        memory_high: Amount::Absent,
        inactive_file: FlatKeyed::read(own, "memory.stat").get("total_inactive_file"),
        oom_kills: FlatKeyed::read(own, "memory.oom_control").get("oom_kill"),
        cpu_periods: Amount::Absent,
        cpu_throttled: Amount::Absent,
    }
}

/// Of crun's inner cgroup, if there is one with a quota: it has the exact one, and is held back first.
fn cpu(own: &Directory) -> (Amount, Amount) {
    let child = |name: CString| own.child(&name).ok();
    let inner = inner_cgroup(own).and_then(child).map(|inner| throttling(&inner));
    inner
        .filter(|(periods, _)| periods.number().is_some_and(|periods| periods > 0))
        .unwrap_or_else(|| throttling(own))
}

fn throttling(directory: &Directory) -> (Amount, Amount) {
    let counters = FlatKeyed::read(directory, "cpu.stat");
    (counters.get("nr_periods"), counters.get("nr_throttled"))
}

/// Reads for one sample after the other.
#[derive(Debug)]
pub(super) struct FileReader {
    hierarchies: Hierarchies,
    /// The thread whose time was over before it had ended.
    late: Option<JoinHandle<()>>,
    /// Which container is read first: the one that the last sample did not come to.
    first: usize,
}

impl FileReader {
    pub(super) fn new(hierarchies: Hierarchies) -> Self {
        Self { hierarchies, late: None, first: 0 }
    }

    /// What became of each.
    pub(super) async fn read(&mut self, subjects: &[Arc<Subject>]) -> Vec<Outcome> {
        let mut outcomes = vec![Outcome::Late; subjects.len()];
        if self.late.as_ref().is_some_and(|late| !late.is_finished()) || subjects.is_empty() {
            return outcomes;
        }
        let (hierarchies, all, first) =
            (self.hierarchies.clone(), subjects.to_vec(), self.first % subjects.len());
        // Room for all: the thread never waits.
        let (sender, mut receiver) = mpsc::channel(subjects.len());
        let read = move || {
            for index in (first..all.len()).chain(0..first) {
                let at = Clock::read().now();
                let files = hierarchies.read(&all[index]);
                let outcome = files.map_or(Outcome::Gone, |files| Outcome::Read(at, Box::new(files)));
                // The time is over.
                if sender.try_send((index, outcome)).is_err() {
                    return;
                }
            }
        };
        // Not one of the runtime's blocking threads: for those, the end of the process waits.
        let Ok(thread) = std::thread::Builder::new().name("usage-reader".to_owned()).spawn(read) else {
            return outcomes;
        };
        let mut count = 0;
        let reading = async {
            while let Some((index, outcome)) = receiver.recv().await {
                outcomes[index] = outcome;
                count += 1;
            }
        };
        let is_late = tokio::time::timeout(DEADLINE, reading).await.is_err();
        self.late = is_late.then_some(thread);
        self.first = (first + count) % subjects.len();
        outcomes
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use kwitness_core::model::{CgroupId, ContainerId};
    use nix::sys::stat::Mode;

    use super::*;

    fn container(root: &Path, files: &[(&str, &str)]) -> Arc<Subject> {
        let directory = root.join("kubepods/podu/c");
        fs::create_dir_all(&directory).unwrap();
        for (file, text) in files {
            fs::write(directory.join(file), text).unwrap();
        }
        Arc::new(Subject {
            cgroup_id: Directory::open(&directory).unwrap().id().unwrap(),
            cgroup_path: "/kubepods/podu/c".into(),
            container_id: ContainerId("0123".into()),
            runtime: None,
            pod: None,
            facts: None,
        })
    }

    const V2: [(&str, &str); 6] = [
        ("memory.current", "4096\n"),
        ("memory.max", "8192\n"),
        ("memory.high", "max\n"),
        ("memory.stat", "anon 1\ninactive_file 512\n"),
        ("memory.events", "max 3\noom_kill 1\n"),
        ("cpu.stat", "usage_usec 1\nnr_periods 10\nnr_throttled 4\n"),
    ];

    #[test]
    fn the_files_of_cgroup_v2() {
        let root = tempfile::tempdir().unwrap();
        let subject = container(root.path(), &V2);
        let files = Hierarchies::v2(root.path()).read(&subject).unwrap();
        assert_eq!(
            files,
            Files {
                memory_usage: Amount::Is(4096),
                memory_limit: Amount::Is(8192),
                memory_high: Amount::Unlimited,
                inactive_file: Amount::Is(512),
                oom_kills: Amount::Is(1),
                cpu_periods: Amount::Is(10),
                cpu_throttled: Amount::Is(4),
            }
        );
        let other = Subject { cgroup_id: CgroupId(subject.cgroup_id.0 + 1_000_000), ..(*subject).clone() };
        assert_eq!(
            Hierarchies::v2(root.path()).read(&other),
            None,
            "another cgroup by that name is not this container"
        );
        fs::remove_dir_all(root.path().join("kubepods")).unwrap();
        assert_eq!(Hierarchies::v2(root.path()).read(&subject), None);
    }

    #[test]
    fn cruns_inner_cgroup_has_the_throttling() {
        let root = tempfile::tempdir().unwrap();
        let subject = container(root.path(), &[V2[5], ("cgroup.procs", "")]);
        let inner = root.path().join("kubepods/podu/c/container");
        fs::create_dir(&inner).unwrap();
        fs::write(inner.join("cgroup.procs"), "7\n").unwrap();
        fs::write(inner.join("cpu.stat"), "nr_periods 20\nnr_throttled 19\n").unwrap();
        let files = Hierarchies::v2(root.path()).read(&subject).unwrap();
        assert_eq!((files.cpu_periods, files.cpu_throttled), (Amount::Is(20), Amount::Is(19)));
        assert_eq!(files.memory_usage, Amount::Absent, "no memory controller is no usage of 0");
    }

    #[test]
    fn controllers_in_v1_hierarchies_are_read_there() {
        let [root, memory, cpu] = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let subject = container(root.path(), &[]);
        container(
            memory.path(),
            &[
                ("memory.usage_in_bytes", "4096\n"),
                ("memory.limit_in_bytes", "9223372036854771712\n"),
                ("memory.stat", "inactive_file 1\ntotal_inactive_file 512\n"),
                ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
            ],
        );
        let mut hierarchies = Hierarchies::v2(root.path());
        hierarchies.memory_v1 = Some(memory.path().to_owned());
        hierarchies.cpu_v1 = Some(cpu.path().to_owned());
        let files = hierarchies.read(&subject).unwrap();
        assert_eq!((files.memory_usage, files.memory_limit), (Amount::Is(4096), Amount::Unlimited));
        assert_eq!((files.inactive_file, files.oom_kills), (Amount::Is(512), Amount::Is(2)));
        assert_eq!(files.memory_high, Amount::Absent);
        assert!(matches!(files.cpu_periods, Amount::Unknown(_)), "it has no cgroup in that hierarchy");
    }

    #[tokio::test]
    async fn a_file_that_does_not_answer_costs_one_thread_and_no_more() {
        let root = tempfile::tempdir().unwrap();
        let subject = container(root.path(), &[]);
        let file = root.path().join("kubepods/podu/c/memory.current");
        // Opening it waits for a writer.
        nix::unistd::mkfifo(&file, Mode::S_IRWXU).unwrap();
        let subjects = [subject];
        let mut reader = FileReader::new(Hierarchies::v2(root.path()));
        tokio::time::pause();
        assert_eq!(reader.read(&subjects).await, [Outcome::Late]);
        assert_eq!(reader.read(&subjects).await, [Outcome::Late], "no second thread is started");
        let (_, files) = Outcome::Late.files(KernelTime(1)).unwrap();
        assert_eq!(files.memory_usage, Amount::Unknown(LATE.to_owned()));
        // Once it answers, reading succeeds again.
        drop(fs::File::options().write(true).open(&file).unwrap());
        reader.late.take().unwrap().join().unwrap();
        fs::remove_file(&file).unwrap();
        fs::write(&file, "7\n").unwrap();
        tokio::time::resume();
        let reading = async {
            loop {
                let outcomes = reader.read(&subjects).await;
                // The thread may get no CPU within the deadline.
                if outcomes != [Outcome::Late] {
                    return outcomes;
                }
                tokio::task::yield_now().await;
            }
        };
        let outcomes = tokio::time::timeout(Duration::from_secs(60), reading).await.expect("it is read");
        assert!(
            matches!(&outcomes[..], [Outcome::Read(_, files)] if files.memory_usage == Amount::Is(7)),
            "{outcomes:?}"
        );
    }
}
