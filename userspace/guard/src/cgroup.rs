//! A container's cgroup and those above it, as their files say at this moment: the limit, the usage, what is free above.
//!
//! Owns every path below the root of the hierarchy. Of the files there it writes `memory.high` alone, and it remembers nothing.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};

use kwitness_core::cgroup_path::{self, Placement};
use nix::errno::Errno;
use procfs::process::Process;

use crate::plan::Level;
use crate::policy::Bytes;

/// Where the cgroup v2 hierarchy is, on a node that has its controllers there.
const ROOT: &str = "/sys/fs/cgroup";

/// Cgroups of a container in which processes are counted: each takes as long to list as some fifty files.
const NESTED: usize = 32;

/// The path of this process' cgroup; none: it is not in the v2 hierarchy, or cannot be looked at.
pub(crate) fn own_path() -> Option<String> {
    path_of(&Process::myself().ok()?)
}

/// Whether what this process takes is charged to its cgroup: the root's is not, and has no such file.
pub(crate) fn is_charged() -> bool {
    own_path().is_some_and(|path| {
        Path::new(ROOT).join(path.trim_start_matches('/')).join("memory.current").exists()
    })
}

/// The path of a process' cgroup, likewise.
pub(crate) fn path_of(process: &Process) -> Option<String> {
    process.cgroups().ok()?.into_iter().find(|cgroup| cgroup.hierarchy == 0).map(|cgroup| cgroup.pathname)
}

/// A cgroup that exists.
#[derive(Debug)]
pub struct Cgroup {
    /// Its directories, itself first, the root of the hierarchy not among them.
    levels: Vec<PathBuf>,
    /// Which of these is its pod's.
    pod: Option<usize>,
}

impl Cgroup {
    /// The cgroup of that path, if it has that id; none: it is gone.
    ///
    /// # Errors
    /// Why it cannot be looked at.
    pub fn find(path: &str, id: u64) -> io::Result<Option<Self>> {
        Self::below(Path::new(ROOT), path, id)
    }

    pub(crate) fn below(root: &Path, path: &str, id: u64) -> io::Result<Option<Self>> {
        let names: Option<PathBuf> = Path::new(path.trim_start_matches('/'))
            .components()
            .map(|component| match component {
                Component::Normal(name) => Some(name),
                _ => None,
            })
            .collect();
        let names = names.ok_or_else(|| io::Error::other(format!("\"{path}\" is no cgroup's path")))?;
        let levels = || names.ancestors().filter(|names| !names.as_os_str().is_empty());
        // A node may run in a pod of another one: the nearest is the container's.
        let pod = levels()
            .position(|names| matches!(cgroup_path::classify(&names.to_string_lossy()), Placement::Pod(_)));
        let levels: Vec<_> = levels().map(|names| root.join(names)).collect();
        let Some(directory) = levels.first() else { return Ok(None) };
        match fs::metadata(directory) {
            Ok(metadata) => Ok((metadata.ino() == id).then_some(Self { levels, pod })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(of(directory, error)),
        }
    }

    /// That of its pod, if it is the one directly above.
    pub fn pod(&self) -> Option<Self> {
        let levels = self.levels.get(1..).filter(|_| self.pod == Some(1))?;
        Some(Self { levels: levels.to_vec(), pod: Some(0) })
    }

    /// Its cgroup v2 id.
    pub fn id(&self) -> io::Result<u64> {
        let Some(directory) = self.levels.first() else { return Ok(0) };
        fs::metadata(directory).map(|metadata| metadata.ino()).map_err(|error| of(directory, error))
    }

    /// `memory.max`; none: it has no limit of its own, or is gone.
    pub fn limit(&self) -> io::Result<Option<Bytes>> {
        self.levels.first().map_or(Ok(None), |directory| limit(directory, "memory.max"))
    }

    /// Whether its limit is that one, rounded down to a page, and none above is lower.
    pub fn has_limit(&self, limit: Bytes, page: u64) -> io::Result<bool> {
        let Some(own) = self.limit()? else { return Ok(false) };
        let is_it = limit.0.checked_sub(own.0).is_some_and(|rest| rest < page);
        Ok(is_it && self.above(Bytes(0))?.iter().all(|level| level.limit >= own))
    }

    /// `memory.high`; none: it slows nothing down.
    pub fn high(&self) -> io::Result<Option<Bytes>> {
        self.levels.first().map_or(Ok(None), |directory| limit(directory, "memory.high"))
    }

    /// Sets it. Before Linux 6.16, which heeds `O_NONBLOCK`, the kernel reclaims what is used above it before this returns, unless a
    /// signal interrupts it.
    pub fn set_high(&self, high: Option<Bytes>) -> io::Result<()> {
        let Some(directory) = self.levels.first() else { return Ok(()) };
        let path = directory.join("memory.high");
        let text = high.map_or_else(|| "max".to_owned(), |high| high.0.to_string());
        let flags = nix::libc::O_NONBLOCK;
        let file = File::options().write(true).truncate(true).custom_flags(flags).open(&path);
        file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(|error| of(&path, error))
    }

    /// Threads of all processes in it and below; where that is not counted (`pids.current`), of those in it.
    pub fn threads(&self) -> io::Result<u64> {
        let Some(directory) = self.levels.first() else { return Ok(0) };
        match read(directory, "pids.current") {
            Ok(text) => text.trim().parse().map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound && directory.exists() => {
                Ok(read(directory, "cgroup.threads")?.lines().count() as u64)
            }
            Err(error) => Err(error),
        }
    }

    /// Processes in it and below, of which there are so many threads: no more than these. Where a cgroup cannot be looked at (a
    /// threaded one has no list), or there are more than [`NESTED`], each thread counts as a process.
    pub fn processes(&self, threads: u64) -> u64 {
        let mut all: Vec<_> = self.levels.first().cloned().into_iter().collect();
        let (mut at, mut count) = (0, 0_u64);
        while let Some(directory) = all.get(at) {
            match listed(directory) {
                Ok((processes, below)) => {
                    count = count.saturating_add(processes);
                    all.extend(below);
                }
                // One that is removed meanwhile has no processes.
                Err(error) if at > 0 && is_gone(&error) => {}
                Err(_) => return threads,
            }
            at += 1;
            if all.len() > NESTED {
                return threads;
            }
        }
        count.min(threads)
    }

    /// `memory.current`.
    pub fn usage(&self) -> io::Result<Bytes> {
        self.levels.first().map_or(Ok(Bytes(0)), |directory| usage(directory))
    }

    /// The cgroups above that have a limit, the nearest first. What is free there is exact unless it is at least `wanted`.
    pub fn above(&self, wanted: Bytes) -> io::Result<Vec<Level>> {
        let mut above = Vec::new();
        for (index, directory) in self.levels.iter().enumerate().skip(1) {
            let Some(limit) = limit(directory, "memory.max")? else { continue };
            let mut free = Bytes(limit.0.saturating_sub(usage(directory)?.0));
            // The kernel reclaims file cache before it kills. Reading it is not cheap on a large node.
            if free < wanted {
                free =
                    Bytes(free.0.saturating_add(file_cache(&read(directory, "memory.stat")?)).min(limit.0));
            }
            let name = directory.file_name().map(|name| name.to_string_lossy().into_owned());
            let is_pod = self.pod == Some(index);
            above.push(Level { name: name.unwrap_or_default(), is_pod, limit, free });
        }
        Ok(above)
    }
}

/// Whether an error says that the cgroup is gone: its directory is, or its files act no more.
pub fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ENODEV as i32)
}

/// How many cgroups are below.
fn descendants(directory: &Path) -> io::Result<usize> {
    let stat = read(directory, "cgroup.stat")?;
    let count = stat.lines().find_map(|line| line.strip_prefix("nr_descendants ")?.parse().ok());
    count.ok_or_else(|| io::Error::other("cgroup.stat has no nr_descendants"))
}

/// Processes in a cgroup, and the cgroups directly below. A directory is listed, which is the costly part, only if it is worth it.
fn listed(directory: &Path) -> io::Result<(u64, Vec<PathBuf>)> {
    let nested = descendants(directory)?;
    if nested >= NESTED {
        return Err(io::Error::other("too many cgroups to look at"));
    }
    let processes = read(directory, "cgroup.procs")?.lines().count() as u64;
    let mut below = Vec::new();
    if nested > 0 {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                below.push(entry.path());
            }
        }
    }
    Ok((processes, below))
}

fn limit(directory: &Path, name: &str) -> io::Result<Option<Bytes>> {
    let text = match read(directory, name) {
        Ok(text) => text,
        // The controller is off at that level: nothing is limited there.
        Err(error) if error.kind() == io::ErrorKind::NotFound && directory.exists() => return Ok(None),
        Err(error) => return Err(error),
    };
    match text.trim() {
        "max" => Ok(None),
        number => number.parse().map(|limit| Some(Bytes(limit))).map_err(io::Error::other),
    }
}

fn usage(directory: &Path) -> io::Result<Bytes> {
    read(directory, "memory.current")?.trim().parse().map(Bytes).map_err(io::Error::other)
}

/// Bytes of file cache in a `memory.stat`. Memory of tmpfs and locked memory are not among them.
fn file_cache(stat: &str) -> u64 {
    let values = stat.lines().filter_map(|line| {
        let (name, value) = line.split_once(' ')?;
        ["inactive_file", "active_file"].contains(&name).then(|| value.parse().unwrap_or(0))
    });
    values.fold(0, u64::saturating_add)
}

fn read(directory: &Path, name: &str) -> io::Result<String> {
    let file = directory.join(name);
    fs::read_to_string(&file).map_err(|error| of(&file, error))
}

/// The error with its file, and of the same kind.
fn of(file: &Path, error: io::Error) -> io::Error {
    match is_gone(&error) {
        true => error,
        false => io::Error::new(error.kind(), format!("{}: {error}", file.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree of directories that stands for cgroups: each with limit, usage and file cache.
    fn tree(levels: &[(&str, &str, u64, u64)]) -> (tempfile::TempDir, u64) {
        let root = tempfile::tempdir().unwrap();
        let mut id = 0;
        for (path, limit, usage, cache) in levels {
            let directory = root.path().join(path);
            fs::create_dir_all(&directory).unwrap();
            for (name, text) in [
                ("memory.max", (*limit).to_owned()),
                ("memory.current", usage.to_string()),
                ("memory.stat", format!("anon 7\nactive_file {cache}\nactive_file_x 9\ninactive_file 1\n")),
            ] {
                fs::write(directory.join(name), text + "\n").unwrap();
            }
            id = fs::metadata(&directory).unwrap().ino();
        }
        (root, id)
    }

    #[test]
    fn limits_above_are_the_nearest_first_and_cache_counts_as_free_where_it_matters() {
        let (root, id) = tree(&[
            ("k", "1000", 500, 400),
            ("k/pod", "100", 90, 4),
            ("k/q", "max", 0, 0),
            ("k/pod/c", "60", 50, 0),
        ]);
        let cgroup = Cgroup::below(root.path(), "/k/pod/c", id).unwrap().unwrap();
        assert_eq!((cgroup.limit().unwrap(), cgroup.usage().unwrap()), (Some(Bytes(60)), Bytes(50)));
        let level = |name: &str, limit, free| {
            let (limit, free) = (Bytes(limit), Bytes(free));
            Level { name: name.to_owned(), is_pod: false, limit, free }
        };
        let above = cgroup.above(Bytes(20)).unwrap();
        assert_eq!(above, [level("pod", 100, 10 + 4 + 1), level("k", 1000, 500)]);
        let (root, id) = tree(&[("k", "max", 0, 0), ("k/c", "max", 5, 0)]);
        let cgroup = Cgroup::below(root.path(), "k/c", id).unwrap().unwrap();
        assert_eq!((cgroup.limit().unwrap(), cgroup.above(Bytes(1)).unwrap()), (None, Vec::new()));
    }

    #[test]
    fn the_pods_level_is_known_by_its_name_and_only_the_nearest_is_the_containers() {
        let pods = |levels: &[&str]| {
            let levels: Vec<_> = levels.iter().map(|path| (*path, "60", 50, 0)).collect();
            let (root, id) = tree(&levels);
            let (path, ..) = levels[levels.len() - 1];
            let cgroup = Cgroup::below(root.path(), path, id).unwrap().unwrap();
            let is_pod: Vec<_> = cgroup.above(Bytes(1)).unwrap().iter().map(|level| level.is_pod).collect();
            let pod = cgroup.pod();
            assert_eq!(pod.is_some(), is_pod.first() == Some(&true));
            if let Some(pod) = pod {
                let of_path = fs::metadata(root.path().join(path)).unwrap();
                assert_ne!(pod.id().unwrap(), of_path.ino());
                assert_eq!(pod.above(Bytes(1)).unwrap().len(), is_pod.len() - 1);
                assert!(pod.pod().is_none());
            }
            is_pod
        };
        let uid = "0a1b2c3d_0000_1111_2222_333344445555";
        let qos = "kubepods.slice/kubepods-burstable.slice";
        let pod = format!("{qos}/kubepods-burstable-pod{uid}.slice");
        let container = format!("{pod}/cri-containerd-c.scope");
        assert_eq!(pods(&["kubepods.slice", qos, &pod, &container]), [true, false, false]);
        let nested = ["kubepods", "kubepods/podA", "kubepods/podA/n", "kubepods/podA/n/kubepods"];
        let inner = ["kubepods/podA/n/kubepods/podB", "kubepods/podA/n/kubepods/podB/c"];
        let of_inner = pods(&[&nested[..], &inner].concat());
        assert_eq!(of_inner, [true, false, false, false, false]);
        assert_eq!(pods(&["pods", "pods/podA", "pods/podA/c"]), [false, false], "not a kubelet's");
    }

    #[test]
    fn threads_are_counted_with_and_without_their_controller() {
        let (root, id) = tree(&[("c", "60", 50, 0)]);
        let cgroup = Cgroup::below(root.path(), "/c", id).unwrap().unwrap();
        fs::write(root.path().join("c/cgroup.threads"), "7\n8\n9\n").unwrap();
        assert_eq!(cgroup.threads().unwrap(), 3);
        fs::write(root.path().join("c/pids.current"), "600\n").unwrap();
        assert_eq!(cgroup.threads().unwrap(), 600);
        fs::remove_dir_all(root.path().join("c")).unwrap();
        assert!(is_gone(&cgroup.threads().unwrap_err()));
    }

    #[test]
    fn processes_are_counted_in_all_cgroups_below_or_else_each_thread_is_one() {
        let (root, id) = tree(&[("c", "60", 50, 0)]);
        let cgroup = Cgroup::below(root.path(), "/c", id).unwrap().unwrap();
        let place = |path: &str, pids: &str, nested: usize| {
            let directory = root.path().join(path);
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("cgroup.procs"), pids).unwrap();
            let stat = format!("nr_descendants {nested}\nnr_dying_descendants 70\n");
            fs::write(directory.join("cgroup.stat"), stat).unwrap();
        };
        assert_eq!(cgroup.processes(9), 9, "no files");
        place("c", "6\n", 2);
        place("c/app", "7\n", 1);
        place("c/app/worker", "8\n9\n", 0);
        assert_eq!((cgroup.processes(9), cgroup.processes(2)), (4, 2));
        let list = root.path().join("c/app/worker/cgroup.procs");
        fs::remove_file(&list).unwrap();
        assert_eq!(cgroup.processes(9), 2, "one that is being removed");
        fs::create_dir(&list).unwrap();
        assert_eq!(cgroup.processes(9), 9, "a threaded one cannot be read");
        place("c/app", "7\n", 0);
        assert_eq!(cgroup.processes(9), 2, "nothing is looked for below");
        place("c", "6\n", NESTED);
        assert_eq!(cgroup.processes(9), 9, "too many");
        (0..NESTED).for_each(|index| place(&format!("c/{index}"), "7\n", 0));
        place("c", "6\n", NESTED - 1);
        assert_eq!(cgroup.processes(99), 99, "there are more by now");
        fs::remove_dir_all(root.path().join("c")).unwrap();
        assert_eq!(cgroup.processes(9), 9, "gone");
    }

    #[test]
    fn another_cgroup_of_the_path_is_not_the_one() {
        let (root, id) = tree(&[("c", "60", 50, 0)]);
        assert!(Cgroup::below(root.path(), "/c", id).unwrap().is_some());
        assert!(Cgroup::below(root.path(), "/c", id + 1).unwrap().is_none());
        assert!(Cgroup::below(root.path(), "/gone", id).unwrap().is_none());
        assert!(Cgroup::below(root.path(), "/", id).unwrap().is_none());
        Cgroup::below(root.path(), "/../c", id).unwrap_err();
    }

    #[test]
    fn a_level_without_the_controller_limits_nothing_and_a_cgroup_that_goes_is_gone() {
        let (root, id) = tree(&[("k", "10", 1, 0), ("k/c", "60", 50, 0)]);
        let cgroup = Cgroup::below(root.path(), "/k/c", id).unwrap().unwrap();
        fs::remove_file(root.path().join("k/memory.max")).unwrap();
        assert_eq!(cgroup.above(Bytes(1)).unwrap(), Vec::new());
        fs::remove_dir_all(root.path().join("k")).unwrap();
        assert!(is_gone(&cgroup.limit().unwrap_err()) && is_gone(&cgroup.usage().unwrap_err()));
    }
}
