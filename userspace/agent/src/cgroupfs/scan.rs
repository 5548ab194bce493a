//! The walk of the cgroup tree: every cgroup below a tracked root, with its processes.
//!
//! What exists before the probes is not tracked. The walk adds each cgroup to the tracked set *before* it lists what is
//! below: a child is then either listed, or made later and taken up by the kernel side. One is neither: a child whose
//! mkdir(2) was past the probe, but not yet visible, when its parent was added. A second walk, which only adds, finds it.

use std::fs::{self, DirEntry};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kwitness_core::model::{CgroupId, Scan, ScanReason, ScannedCgroup};

use super::{CgroupFs, Roots, process};
use crate::clock::Clock;
use crate::probe::{Life, Tracker};

/// Where the walk tells which cgroups are to be tracked.
pub trait Track {
    /// Adds a cgroup; whether it was not there before.
    fn track(&self, id: CgroupId) -> io::Result<bool>;
    /// Takes out one that was added and is gone.
    fn untrack(&self, id: CgroupId) -> io::Result<()>;
    /// Adds one that is above a tracked root: its limits hold below.
    fn track_above(&self, id: CgroupId) -> io::Result<()>;
}

impl Track for Tracker {
    fn track(&self, id: CgroupId) -> io::Result<bool> {
        // Whether it has been started, the core tells by its processes: nothing rests on the kernel side's mark.
        Tracker::track(self, id.0, Life::Unstarted)
    }

    fn untrack(&self, id: CgroupId) -> io::Result<()> {
        Tracker::untrack(self, id.0)
    }

    fn track_above(&self, id: CgroupId) -> io::Result<()> {
        Tracker::track_above(self, id.0)
    }
}

/// A directory of the tree cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the cgroup {}", path.display())]
pub struct ScanError {
    path: PathBuf,
    source: io::Error,
}

/// What a walk gives.
#[derive(Debug)]
pub struct Scanned {
    /// What was found.
    pub scan: Scan,
    /// Cgroups that were found and cannot be tracked, for the set is full: what happens to them is not seen.
    pub untracked: usize,
}

/// Walks the tree.
///
/// # Errors
/// A directory cannot be read. A cgroup that goes away meanwhile is left out.
pub fn scan(
    cgroups: &CgroupFs,
    roots: &Roots,
    track: &impl Track,
    reason: ScanReason,
) -> Result<Scanned, ScanError> {
    let began = Clock::read().now();
    let mut walk = Walk { cgroups, roots, track, found: Vec::new(), untracked: 0 };
    for _ in 0..2 {
        walk.found.clear();
        walk.untracked = 0;
        walk.subtree()?;
    }
    let cgroups = walk.found.into_iter().filter_map(Found::read).collect();
    let scan = Scan { reason, began, ended: Clock::read().now(), untracked: 0, cgroups };
    Ok(Scanned { scan, untracked: walk.untracked })
}

struct Walk<'a, T> {
    cgroups: &'a CgroupFs,
    roots: &'a Roots,
    track: &'a T,
    found: Vec<Found>,
    untracked: usize,
}

/// A cgroup whose files are still to be read.
struct Found {
    id: CgroupId,
    parent: CgroupId,
    path: Arc<str>,
    directory: PathBuf,
}

/// A directory to be listed.
#[derive(Clone, Copy)]
enum Level<'a> {
    /// Above all tracked roots.
    Outside { id: Option<CgroupId>, path: &'a str },
    /// A tracked cgroup.
    Inside { id: CgroupId, path: &'a str },
}

impl<T: Track> Walk<'_, T> {
    /// Walks what is watched. Its top is itself a root, or in one, if it or a cgroup above it is called like one.
    fn subtree(&mut self) -> Result<(), ScanError> {
        let (path, id) = (self.cgroups.subtree().path(), self.cgroups.subtree_id());
        let ends = path.match_indices('/').map(|(slash, _)| slash).skip(1).chain([path.len()]);
        let above: Vec<&str> = ends.filter(|end| *end > 0).map(|end| &path[..end]).collect();
        if above.iter().any(|path| self.is_root(path)) {
            let parent = above.len().checked_sub(2).map_or(Ok(ROOT), |index| self.id(above[index]))?;
            self.found(parent, id, path)?;
        } else {
            self.directory(Level::Outside { id: Some(id), path })?;
        }
        if !self.found.is_empty() {
            self.above(ROOT, "");
            for path in &above {
                self.above(self.id(path)?, path);
            }
        }
        Ok(())
    }

    fn is_root(&self, path: &str) -> bool {
        use std::os::unix::fs::MetadataExt as _;
        let owner = || fs::symlink_metadata(self.on_disk(path)).map(|metadata| metadata.uid());
        self.roots.may_contain(path) && owner().is_ok_and(|owner| self.roots.contain(path, owner))
    }

    fn id(&self, path: &str) -> Result<CgroupId, ScanError> {
        use std::os::unix::fs::MetadataExt as _;
        let directory = self.on_disk(path);
        match fs::symlink_metadata(&directory) {
            Ok(metadata) => Ok(CgroupId(metadata.ino())),
            Err(source) => Err(ScanError { path: directory, source }),
        }
    }

    /// The limits of the cgroup hold for what was found below it.
    fn above(&self, id: CgroupId, path: &str) {
        if let Err(error) = self.track.track_above(id) {
            tracing::warn!(path, %error, "cannot track a cgroup above containers: changes of its limits are not seen");
        }
    }

    fn directory(&mut self, level: Level<'_>) -> Result<(), ScanError> {
        let found = self.found.len();
        self.list(level)?;
        if let Level::Outside { id, path } = level
            && self.found.len() > found
        {
            self.above(id.unwrap_or(ROOT), path);
        }
        Ok(())
    }

    fn list(&mut self, level: Level<'_>) -> Result<(), ScanError> {
        let (Level::Outside { path, .. } | Level::Inside { path, .. }) = level;
        let directory = self.on_disk(path);
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if gone(&error) && path != self.cgroups.subtree().path() => return Ok(()),
            Err(source) => return Err(ScanError { path: directory, source }),
        };
        // A cgroup that is removed while it is listed ends the list.
        for entry in entries.map_while(Result::ok) {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.child(level, &entry)?;
            }
        }
        Ok(())
    }

    fn child(&mut self, parent: Level<'_>, entry: &DirEntry) -> Result<(), ScanError> {
        use std::os::unix::fs::DirEntryExt as _;
        let (Level::Outside { path, .. } | Level::Inside { path, .. }) = parent;
        let path = format!("{path}/{}", entry.file_name().to_string_lossy());
        let id = CgroupId(entry.ino());
        let parent = match parent {
            Level::Inside { id, .. } => id,
            Level::Outside { id: above, .. } if self.is_root(&path) => above.unwrap_or(ROOT),
            Level::Outside { .. } => return self.directory(Level::Outside { id: Some(id), path: &path }),
        };
        self.found(parent, id, &path)
    }

    /// Takes up a cgroup of the tracked set, and all below.
    fn found(&mut self, parent: CgroupId, id: CgroupId, path: &str) -> Result<(), ScanError> {
        let directory = self.on_disk(path);
        match self.track.track(id) {
            // The kernel may have told of its end before it was added: nobody else would ever take it out.
            Ok(true) if fs::symlink_metadata(&directory).is_err_and(|error| gone(&error)) => {
                if let Err(error) = self.track.untrack(id) {
                    tracing::warn!(path, %error, "cannot take a removed cgroup out of the tracked set");
                }
                return Ok(());
            }
            Ok(_) => {}
            Err(error) => {
                if self.untracked == 0 {
                    tracing::warn!(path, %error, "cannot track a cgroup; if the set is full, raise kernel.tracked_capacity");
                }
                self.untracked += 1;
            }
        }
        self.found.push(Found { id, parent, path: path.into(), directory });
        self.directory(Level::Inside { id, path })
    }

    fn on_disk(&self, path: &str) -> PathBuf {
        self.cgroups.mount_point().join(path.trim_start_matches('/'))
    }
}

/// The hierarchy's root.
const ROOT: CgroupId = CgroupId(1);

impl Found {
    /// None if the cgroup is gone.
    fn read(self) -> Option<ScannedCgroup> {
        let Self { id, parent, path, directory } = self;
        let populated = match fs::read_to_string(directory.join("cgroup.events")) {
            Ok(text) => {
                text.lines().find_map(|line| line.strip_prefix("populated ")).map(|value| value.trim() != "0")
            }
            Err(error) if gone(&error) => return None,
            Err(_) => None,
        };
        Some(ScannedCgroup { id, parent, path, populated, processes: processes(&directory) })
    }
}

fn processes(directory: &Path) -> Vec<kwitness_core::model::ScannedProcess> {
    // A threaded cgroup does not list its processes; they are those of the domain above.
    let pids = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    let mut found: Vec<_> =
        pids.lines().filter_map(|pid| pid.trim().parse().ok()).filter_map(process::read).collect();
    found.sort_by_key(|process| (process.task.key.start, process.task.key.pid));
    found
}

/// What reading a removed cgroup gives.
pub(super) fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::errno::Errno::ENODEV as i32)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::unix::fs::MetadataExt as _;
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Set(Mutex<BTreeSet<u64>>, Mutex<BTreeSet<u64>>);

    impl Track for Set {
        fn track(&self, id: CgroupId) -> io::Result<bool> {
            Ok(self.0.lock().unwrap().insert(id.0))
        }

        fn untrack(&self, id: CgroupId) -> io::Result<()> {
            self.0.lock().unwrap().remove(&id.0);
            Ok(())
        }

        fn track_above(&self, id: CgroupId) -> io::Result<()> {
            self.1.lock().unwrap().insert(id.0);
            Ok(())
        }
    }

    /// Who owns what the tests make.
    fn own_uid() -> u32 {
        nix::unistd::geteuid().as_raw()
    }

    #[test]
    fn a_root_that_another_user_made_is_none() {
        let root = tree(&[("user.slice/x-kubepods/kubepods/podfake", ""), ("kubepods", "")]);
        let set = Set::default();
        let scanned = |roots: &Roots| {
            let scan = scan(&CgroupFs::at(root.path()), roots, &set, ScanReason::Initial).unwrap().scan;
            scan.cgroups.iter().map(|cgroup| cgroup.path.to_string()).collect::<Vec<_>>()
        };
        assert!(scanned(&Roots::trusting(&[], own_uid() + 1)).is_empty());
        let configured = Roots::trusting(&["/user.slice/x-kubepods"], own_uid() + 1);
        assert_eq!(scanned(&configured).len(), 3);
    }

    /// A directory tree that looks like cgroupfs.
    fn tree(paths: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, pids) in paths {
            let directory = root.path().join(path);
            fs::create_dir_all(&directory).unwrap();
            for above in directory.ancestors().take_while(|above| *above != root.path()) {
                if !above.join("cgroup.events").exists() {
                    fs::write(above.join("cgroup.events"), "populated 0\nfrozen 0\n").unwrap();
                }
            }
            let populated = u8::from(!pids.is_empty());
            fs::write(directory.join("cgroup.events"), format!("populated {populated}\nfrozen 0\n")).unwrap();
            fs::write(directory.join("cgroup.procs"), pids).unwrap();
        }
        root
    }

    #[test]
    fn all_below_the_roots_is_found_parents_first_and_tracked() {
        let me = format!("{}\n", std::process::id());
        let root = tree(&[
            ("system.slice", ""),
            ("system.slice/sshd.service", &me),
            ("system.slice/docker-abc.scope/kubelet.slice/kubelet-kubepods.slice", ""),
            ("kubepods.slice", ""),
            ("kubepods.slice/kubepods-pod1.slice", ""),
            ("kubepods.slice/kubepods-pod1.slice/cri-containerd-x.scope", &me),
            ("kubepods.slice/kubepods-pod1.slice/cri-containerd-x.scope/container", ""),
            ("machine.slice/libpod-1.scope", ""),
        ]);
        let set = Set::default();
        let roots = Roots::trusting(&["/machine.slice/libpod-"], own_uid());
        let Scanned { scan, untracked } =
            scan(&CgroupFs::at(root.path()), &roots, &set, ScanReason::Initial).unwrap();
        assert_eq!(untracked, 0);
        let above = ["machine.slice", "system.slice", "system.slice/docker-abc.scope"]
            .into_iter()
            .chain(["system.slice/docker-abc.scope/kubelet.slice"])
            .map(|path| fs::metadata(root.path().join(path)).unwrap().ino());
        assert_eq!(*set.1.lock().unwrap(), above.chain([ROOT.0]).collect());
        let mut paths: Vec<&str> = scan.cgroups.iter().map(|cgroup| &*cgroup.path).collect();
        for (index, cgroup) in scan.cgroups.iter().enumerate() {
            let on_disk = root.path().join(&cgroup.path[1..]);
            assert_eq!(cgroup.id.0, fs::metadata(&on_disk).unwrap().ino());
            if let Some(parent) = scan.cgroups.iter().position(|other| other.id == cgroup.parent) {
                assert!(parent < index, "{} before its parent", cgroup.path);
            } else if on_disk.parent() != Some(root.path()) {
                assert_eq!(cgroup.parent.0, fs::metadata(on_disk.parent().unwrap()).unwrap().ino());
            }
        }
        paths.sort_unstable();
        assert_eq!(
            paths,
            [
                "/kubepods.slice",
                "/kubepods.slice/kubepods-pod1.slice",
                "/kubepods.slice/kubepods-pod1.slice/cri-containerd-x.scope",
                "/kubepods.slice/kubepods-pod1.slice/cri-containerd-x.scope/container",
                "/machine.slice/libpod-1.scope",
                "/system.slice/docker-abc.scope/kubelet.slice/kubelet-kubepods.slice",
            ]
        );
        assert_eq!(set.0.lock().unwrap().len(), paths.len());
        let container = scan.cgroups.iter().find(|cgroup| cgroup.path.ends_with("x.scope")).unwrap();
        assert_eq!(container.populated, Some(true));
        assert_eq!(container.processes[0].task.key.pid, std::process::id());
        assert!(scan.began <= scan.ended);
    }

    #[test]
    fn a_cgroup_that_goes_away_is_left_out_and_taken_out() {
        struct Racing<'a>(Set, &'a Path);
        impl Track for Racing<'_> {
            fn track(&self, id: CgroupId) -> io::Result<bool> {
                if self.1.exists() && fs::metadata(self.1).unwrap().ino() == id.0 {
                    fs::remove_dir_all(self.1).unwrap();
                }
                self.0.track(id)
            }
            fn untrack(&self, id: CgroupId) -> io::Result<()> {
                self.0.untrack(id)
            }
            fn track_above(&self, id: CgroupId) -> io::Result<()> {
                self.0.track_above(id)
            }
        }
        let root = tree(&[("kubepods", ""), ("kubepods/a", ""), ("kubepods/b", "")]);
        let going = root.path().join("kubepods/a");
        let track = Racing(Set::default(), &going);
        let Scanned { scan, .. } =
            scan(&CgroupFs::at(root.path()), &Roots::trusting(&[], own_uid()), &track, ScanReason::Repair)
                .unwrap();
        let paths: Vec<&str> = scan.cgroups.iter().map(|cgroup| &*cgroup.path).collect();
        assert_eq!(paths, ["/kubepods", "/kubepods/b"]);
        assert_eq!(track.0.0.lock().unwrap().len(), 2);
    }

    #[test]
    fn nothing_beside_the_subtree_is_found() {
        let root =
            tree(&[("kubepods/pod1", ""), ("node/kubelet/kubepods/pod2", ""), ("node2/kubepods/pod3", "")]);
        let scanned = |subtree: &str| {
            let cgroups = CgroupFs::below(root.path(), subtree).unwrap();
            let set = Set::default();
            let scan =
                scan(&cgroups, &Roots::trusting(&[], own_uid()), &set, ScanReason::Initial).unwrap().scan;
            let paths: Vec<String> = scan.cgroups.iter().map(|cgroup| cgroup.path.to_string()).collect();
            let above = set.1.into_inner().unwrap();
            assert_eq!(set.0.lock().unwrap().len(), paths.len());
            (paths, above)
        };
        let ids = |paths: &[&str]| -> BTreeSet<u64> {
            let ids = paths.iter().map(|path| fs::metadata(root.path().join(path)).unwrap().ino());
            ids.chain([ROOT.0]).collect()
        };
        let (paths, above) = scanned("/node");
        assert_eq!(paths, ["/node/kubelet/kubepods", "/node/kubelet/kubepods/pod2"]);
        assert_eq!(above, ids(&["node", "node/kubelet"]));
        // What is above the subtree limits it, too; and it may lie within a root.
        let (paths, above) = scanned("/node/kubelet");
        assert_eq!(paths, ["/node/kubelet/kubepods", "/node/kubelet/kubepods/pod2"]);
        assert_eq!(above, ids(&["node", "node/kubelet"]));
        let (paths, above) = scanned("/node2/kubepods/pod3");
        assert_eq!(paths, ["/node2/kubepods/pod3"]);
        assert!(above.is_superset(&ids(&["node2", "node2/kubepods"])));
    }
}
