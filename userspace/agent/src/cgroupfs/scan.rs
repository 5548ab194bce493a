//! The walk of the cgroup tree: every cgroup below a tracked root, with its processes.
//!
//! What exists before the probes is not tracked. The walk adds each cgroup to the tracked set *before* it lists what is
//! below: a child is then either listed, or made later and tracked by the kernel side. One is neither: a child whose
//! mkdir(2) was past the probe, but not yet visible, when its parent was added. A second walk finds it; that one also reads.
//!
//! Any user with a delegated cgroup decides how deep the tree is, how long its paths are, and when parts of it vanish. So
//! the walk holds one descriptor, however deep it is: it goes down by name and up by `..`, with the way back on a stack of
//! its own, and it opens no path but that of the top. What cannot be read is left out and named in [`Unreadable`]; nothing
//! but a top that cannot be read fails the walk.

use std::ffi::CString;
use std::io;
use std::sync::Arc;

use kwitness_core::cgroup_path::{ContainerPath, Placement, classify, shortened};
use kwitness_core::model::{
    CgroupId, Scan, ScanReason, ScannedCgroup, ScannedProcess, Unreadable, UnreadableCgroup,
};

use kwitness_core::shares::Shares;

use super::directory::{Directory, text_of};
use super::{CgroupFs, Roots, process};
use crate::clock::Clock;
use crate::probe::{Life, Tracker};

/// Where the walk adds the cgroups that are to be tracked.
pub trait Track {
    /// Adds a cgroup; whether it was not there before.
    fn track(&self, id: CgroupId) -> io::Result<bool>;
    /// Whether a cgroup is there.
    fn is_tracked(&self, id: CgroupId) -> bool;
    /// Takes out one that was added and is gone.
    fn untrack(&self, id: CgroupId) -> io::Result<()>;
    /// Adds one that is above a tracked root: its limits hold below.
    fn track_above(&self, id: CgroupId) -> io::Result<()>;
}

impl Track for Tracker {
    fn track(&self, id: CgroupId) -> io::Result<bool> {
        // Whether it has been started, the core infers from its processes: nothing rests on the kernel side's mark.
        Tracker::track(self, id.0, Life::Unstarted)
    }

    fn is_tracked(&self, id: CgroupId) -> bool {
        Tracker::is_tracked(self, id.0)
    }

    fn untrack(&self, id: CgroupId) -> io::Result<()> {
        Tracker::untrack(self, id.0)
    }

    fn track_above(&self, id: CgroupId) -> io::Result<()> {
        Tracker::track_above(self, id.0)
    }
}

/// The top of what is watched cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the cgroup {path}")]
pub struct ScanError {
    path: String,
    source: io::Error,
}

/// Bytes of the longest path that is kept of a tracked cgroup: the paths of a deep nest take memory by the square of its depth.
const PATH_LIMIT: usize = 8 << 10;

#[cfg(test)]
impl ScanError {
    pub(crate) fn test() -> Self {
        Self { path: "/".to_owned(), source: io::Error::other("test") }
    }
}

/// Walks the tree. The tracked set has room for `capacity` cgroups; a container may have its share of it.
///
/// # Errors
/// The top of what is watched cannot be read. Below, what goes away meanwhile is left out, and what cannot be read is
/// named in the result.
pub fn scan(
    cgroups: &CgroupFs,
    roots: &Roots,
    track: &impl Track,
    capacity: usize,
    reason: ScanReason,
) -> Result<Scan, ScanError> {
    let began = Clock::read().now();
    Walk::new(cgroups, roots, track, capacity, false).run()?;
    let mut walk = Walk::new(cgroups, roots, track, capacity, true);
    walk.run()?;
    let Walk { found, untracked, unreadable, .. } = walk;
    Ok(Scan { reason, began, ended: Clock::read().now(), untracked, unreadable, cgroups: found })
}

struct Walk<'a, T> {
    cgroups: &'a CgroupFs,
    roots: &'a Roots,
    track: &'a T,
    /// Whether the cgroups' files are read, too.
    reads: bool,
    /// The path of the innermost level, from the root of the hierarchy.
    path: String,
    levels: Vec<Level>,
    found: Vec<ScannedCgroup>,
    /// How many tracked cgroups were met, read or not.
    met: usize,
    /// Of the tracked set.
    shares: Shares<CgroupId>,
    untracked: u64,
    unreadable: Unreadable,
}

/// A directory that is being walked.
struct Level {
    id: CgroupId,
    name: CString,
    is_tracked: bool,
    within: Within,
    /// How long the path is up to here.
    path_len: usize,
    /// What stands for the paths below, if they are too long to be kept.
    long_path: Option<Arc<str>>,
    /// How many tracked cgroups had been met before.
    met: usize,
    children: std::vec::IntoIter<CString>,
}

/// The container that a cgroup lies in.
#[derive(Clone, Copy)]
enum Within {
    None,
    /// One outside of pods: another may lie in it.
    Plain(CgroupId),
    Pod(CgroupId),
}

impl Within {
    fn container(self) -> Option<CgroupId> {
        match self {
            Self::None => None,
            Self::Plain(container) | Self::Pod(container) => Some(container),
        }
    }

    /// What lies in a cgroup that lies in this.
    fn of(self, id: CgroupId, path: &str) -> Self {
        match (self, classify(path)) {
            (Self::Pod(container), _) => Self::Pod(container),
            (_, Placement::Container(ContainerPath { pod: Some(_), .. })) => Self::Pod(id),
            (_, Placement::Container(_)) => Self::Plain(id),
            (within, _) => within,
        }
    }
}

/// What has become of a cgroup that is to be tracked.
enum Tracked {
    Yes,
    Gone,
    /// Its container has more than its share.
    BeyondShare,
}

/// An open directory, and which level's it is.
struct Here {
    directory: Directory,
    depth: usize,
}

impl<'a, T: Track> Walk<'a, T> {
    fn new(cgroups: &'a CgroupFs, roots: &'a Roots, track: &'a T, capacity: usize, reads: bool) -> Self {
        Self {
            cgroups,
            roots,
            track,
            reads,
            path: String::new(),
            levels: Vec::new(),
            found: Vec::new(),
            met: 0,
            shares: Shares::new(capacity),
            untracked: 0,
            unreadable: Unreadable::default(),
        }
    }

    fn run(&mut self) -> Result<(), ScanError> {
        let failed = |source| ScanError { path: self.cgroups.subtree().to_string(), source };
        let (above, top) = self.above().and_then(|above| Ok((above, self.top()?))).map_err(failed)?;
        self.cgroups.subtree().path().clone_into(&mut self.path);
        let parent = above.last().map_or(ROOT, |(id, _)| *id);
        let is_root = above.iter().any(|(_, is_root)| *is_root) || self.is_root(&top);
        let entered = self.enter(&top, c"".to_owned(), is_root.then_some(parent));
        entered.map_err(|source| ScanError { path: self.cgroups.subtree().to_string(), source })?;
        self.descend(Here { directory: top, depth: 0 });
        if self.met > 0 {
            // What limits the subtree from above; its own top is tracked, or was done when it was left.
            for (id, _) in above {
                self.track_above(id);
            }
        }
        Ok(())
    }

    /// The cgroups above the subtree from the root on, and whether each is a root of the tracked set.
    fn above(&self) -> io::Result<Vec<(CgroupId, bool)>> {
        let subtree = self.cgroups.subtree().path();
        let ends = subtree.match_indices('/').map(|(slash, _)| slash);
        ends.map(|end| {
            let path = &subtree[..end];
            let (id, owner) = self.cgroups.open(path)?.id_and_owner()?;
            Ok((id, self.roots.contain(path, owner)))
        })
        .collect()
    }

    fn top(&self) -> io::Result<Directory> {
        self.cgroups.open(self.cgroups.subtree().path())
    }

    /// Walks everything below the level that is `here`.
    fn descend(&mut self, mut here: Here) {
        while let Some(level) = self.levels.last_mut() {
            let Some(name) = level.children.next() else {
                self.leave();
                continue;
            };
            self.path.truncate(level.path_len);
            let (parent, is_tracked) = (level.id, level.is_tracked);
            match self.step(&mut here, &name, parent, is_tracked) {
                Ok(Some(directory)) => here = Here { directory, depth: here.depth + 1 },
                Ok(None) => {}
                Err(error) if gone(&error) => {}
                Err(error) => self.leave_out(parent, &error),
            }
        }
    }

    /// Goes into a child of the innermost level, whose id is `parent`; none: the child is left out.
    fn step(
        &mut self,
        here: &mut Here,
        name: &CString,
        parent: CgroupId,
        is_parent_tracked: bool,
    ) -> io::Result<Option<Directory>> {
        self.path.push('/');
        self.path.push_str(&text_of(name));
        self.return_to(here, self.levels.len() - 1)?;
        let directory = here.directory.child(name)?;
        let tracked = (is_parent_tracked || self.is_root(&directory)).then_some(parent);
        if tracked.is_some() {
            let id = directory.id()?;
            match self.take_up(&here.directory, name, id) {
                Tracked::Yes => {}
                Tracked::Gone => return Ok(None),
                Tracked::BeyondShare => {
                    let path = self.kept_path();
                    let (populated, processes) = (None, Vec::new());
                    let cgroup = ScannedCgroup { id, parent, path, beyond_share: true, populated, processes };
                    self.found.extend(self.reads.then_some(cgroup));
                    return Ok(None);
                }
            }
        }
        self.enter(&directory, name.clone(), tracked)?;
        Ok(Some(directory))
    }

    /// Opens the directory of the level of that depth again, if it is not the one that is open.
    fn return_to(&self, here: &mut Here, depth: usize) -> io::Result<()> {
        while here.depth > depth {
            here.directory = here.directory.child(c"..")?;
            here.depth -= 1;
        }
        if here.directory.id()? == self.levels[depth].id {
            return Ok(());
        }
        // What was open has been removed, or moved: from the top, then.
        let mut directory = self.top()?;
        for level in &self.levels[1..=depth] {
            directory = directory.child(&level.name)?;
        }
        if directory.id()? != self.levels[depth].id {
            return Err(nix::errno::Errno::ENODEV.into());
        }
        here.directory = directory;
        Ok(())
    }

    /// Whether a directory, whose path is [`Walk::path`], is a root of the tracked set.
    fn is_root(&self, directory: &Directory) -> bool {
        self.roots.may_contain(&self.path)
            && directory.id_and_owner().is_ok_and(|(_, owner)| self.roots.contain(&self.path, owner))
    }

    /// Has a cgroup tracked.
    fn take_up(&mut self, parent: &Directory, name: &CString, id: CgroupId) -> Tracked {
        let container = self.levels.last().and_then(|level| level.within.container());
        // When the whole set is full, the kernel refuses it.
        if !self.shares.take(container) && container.is_some() {
            if !self.track.is_tracked(id) {
                return Tracked::BeyondShare;
            }
            self.shares.hold(container);
        }
        match self.track.track(id) {
            // Its end may have been reported before it was added: nothing else would ever take it out.
            Ok(true) if !parent.id_of(name).is_ok_and(|found| found == id) => {
                if let Err(error) = self.track.untrack(id) {
                    let path = shortened(&self.path);
                    tracing::warn!(%path, %error, "cannot take a removed cgroup out of the tracked set");
                }
                return Tracked::Gone;
            }
            Ok(_) => {}
            Err(error) => {
                if self.untracked == 0 {
                    let path = shortened(&self.path);
                    tracing::warn!(%path, %error, "cannot track a cgroup; if the set is full, raise kernel.tracked_capacity");
                }
                self.untracked += 1;
            }
        }
        Tracked::Yes
    }

    /// Makes a directory the innermost level. `tracked`: it is a tracked cgroup, with that parent.
    fn enter(&mut self, directory: &Directory, name: CString, tracked: Option<CgroupId>) -> io::Result<()> {
        let id = directory.id()?;
        let met = self.met;
        if self.levels.is_empty() && tracked.is_some() {
            // The top has no directory to look it up in; that it is there was just seen.
            if let Err(error) = self.track.track(id) {
                tracing::warn!(path = self.path, %error, "cannot track a cgroup");
                self.untracked += 1;
            }
        }
        let long_path = self.long_path();
        let within = self.levels.last().map_or(Within::None, |level| level.within);
        let within = tracked.map_or(Within::None, |_| within.of(id, &self.path));
        if let Some(parent) = tracked {
            self.met += 1;
            if self.reads {
                let path = self.kept_path();
                self.found.push(read(directory, id, parent, path)?);
            }
        }
        let children = directory.entries()?.into_iter().filter(|entry| entry.is_directory);
        let children: Vec<CString> = children.map(|entry| entry.name).collect();
        let (path_len, is_tracked) = (self.path.len(), tracked.is_some());
        let children = children.into_iter();
        self.levels.push(Level { id, name, is_tracked, within, path_len, long_path, met, children });
        Ok(())
    }

    /// [`Walk::path`], or what stands for it.
    fn kept_path(&self) -> Arc<str> {
        self.long_path().unwrap_or_else(|| Arc::from(&*self.path))
    }

    /// What stands for [`Walk::path`], if that is too long to be kept.
    fn long_path(&self) -> Option<Arc<str>> {
        let above = self.levels.last();
        let made = || format!("{}/...", &self.path[..above.map_or(0, |level| level.path_len)]).into();
        let kept = above.and_then(|level| level.long_path.clone());
        kept.or_else(|| (self.path.len() > PATH_LIMIT).then(made))
    }

    /// Names a cgroup that cannot be read, whose path is [`Walk::path`].
    fn leave_out(&mut self, parent: CgroupId, error: &io::Error) {
        let is_kept = |level: &&Level| level.path_len <= PATH_LIMIT;
        let above = self.levels.iter().rev().find(is_kept).map_or(0, |level| level.path_len);
        let path = if self.path.len() > PATH_LIMIT { &self.path[..above] } else { &*self.path };
        self.unreadable.push(UnreadableCgroup { path: path.into(), parent, error: error.to_string().into() });
    }

    /// Ends the innermost level.
    fn leave(&mut self) {
        let Some(Level { id, is_tracked, met, path_len, .. }) = self.levels.pop() else { return };
        self.path.truncate(path_len);
        if !is_tracked && self.met > met {
            self.track_above(id);
        }
    }

    /// The limits of the cgroup hold for what was found below it.
    fn track_above(&self, id: CgroupId) {
        if let Err(error) = self.track.track_above(id) {
            let path = shortened(&self.path);
            tracing::warn!(%path, %error, "cannot track a cgroup above containers: changes of its limits are not seen");
        }
    }
}

/// The hierarchy's root.
const ROOT: CgroupId = CgroupId(kwitness_abi::HIERARCHY_ROOT);

/// Reads a cgroup's files. An error if it is gone.
fn read(directory: &Directory, id: CgroupId, parent: CgroupId, path: Arc<str>) -> io::Result<ScannedCgroup> {
    let populated = match directory.text("cgroup.events") {
        Ok(text) => {
            text.lines().find_map(|line| line.strip_prefix("populated ")).map(|value| value.trim() != "0")
        }
        Err(error) if gone(&error) => return Err(error),
        Err(_) => None,
    };
    Ok(ScannedCgroup { id, parent, path, beyond_share: false, populated, processes: processes(directory) })
}

fn processes(directory: &Directory) -> Vec<ScannedProcess> {
    // A threaded cgroup does not list its processes; they are those of the domain above.
    let pids = directory.text("cgroup.procs").unwrap_or_default();
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
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;
    use std::path::Path;
    use std::sync::Mutex;

    use super::*;
    use crate::cgroupfs::directory::testing::Nest;

    /// More than any test makes.
    const CAPACITY: usize = 65_536;

    #[derive(Default)]
    struct Set(Mutex<BTreeSet<u64>>, Mutex<BTreeSet<u64>>);

    impl Track for Set {
        fn track(&self, id: CgroupId) -> io::Result<bool> {
            Ok(self.0.lock().unwrap().insert(id.0))
        }

        fn is_tracked(&self, id: CgroupId) -> bool {
            self.0.lock().unwrap().contains(&id.0)
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

    fn ino(path: &Path) -> u64 {
        fs::metadata(path).unwrap().ino()
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
            let scan = scan(&CgroupFs::at(root.path()), roots, &set, CAPACITY, ScanReason::Initial).unwrap();
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
        let scan = scan(&CgroupFs::at(root.path()), &roots, &set, CAPACITY, ScanReason::Initial).unwrap();
        assert_eq!((scan.untracked, scan.unreadable.count), (0, 0));
        let above = ["machine.slice", "system.slice", "system.slice/docker-abc.scope"]
            .into_iter()
            .chain(["system.slice/docker-abc.scope/kubelet.slice"])
            .map(|path| fs::metadata(root.path().join(path)).unwrap().ino());
        assert_eq!(*set.1.lock().unwrap(), above.chain([ino(root.path())]).collect());
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
            fn is_tracked(&self, id: CgroupId) -> bool {
                self.0.is_tracked(id)
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
        let scan = scan(
            &CgroupFs::at(root.path()),
            &Roots::trusting(&[], own_uid()),
            &track,
            CAPACITY,
            ScanReason::Repair,
        )
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
            let scan = scan(&cgroups, &Roots::trusting(&[], own_uid()), &set, CAPACITY, ScanReason::Initial)
                .unwrap();
            let paths: Vec<String> = scan.cgroups.iter().map(|cgroup| cgroup.path.to_string()).collect();
            let above = set.1.into_inner().unwrap();
            assert_eq!(set.0.lock().unwrap().len(), paths.len());
            (paths, above)
        };
        let ids = |paths: &[&str]| -> BTreeSet<u64> {
            let ids = paths.iter().map(|path| fs::metadata(root.path().join(path)).unwrap().ino());
            ids.chain([ino(root.path())]).collect()
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

    #[test]
    fn one_containers_groups_leave_room_in_the_tracked_set() {
        let id = "7c1e0d5b9a3f48627c1e0d5b9a3f48627c1e0d5b9a3f48627c1e0d5b9a3f4862";
        let other = id.replace('7', "6");
        let groups: Vec<String> = (0..40).map(|group| format!("kubepods/poda/{id}/{group}")).collect();
        let late = format!("kubepods/podz/{other}");
        let mut all: Vec<(&str, &str)> = groups.iter().map(|path| (&**path, "")).collect();
        all.push((&late, ""));
        let root = tree(&all);
        let set = Set::default();
        let cgroups = CgroupFs::at(root.path());
        let roots = Roots::trusting(&[], own_uid());
        let scanned = || scan(&cgroups, &roots, &set, 25, ScanReason::Initial).unwrap();
        let first = scanned();
        let beyond = |scan: &Scan| scan.cgroups.iter().filter(|cgroup| cgroup.beyond_share).count();
        // kubepods, a pod and the container are three, the other pod and its container two: of what is left, half at most.
        let followed = 40 - beyond(&first);
        assert!((9..=11).contains(&followed), "{followed}");
        assert!(first.cgroups.iter().any(|cgroup| cgroup.path.ends_with(&other) && !cgroup.beyond_share));
        assert_eq!((first.untracked, set.0.lock().unwrap().len()), (0, followed + 5));
        assert_eq!(beyond(&scanned()), 40 - followed, "what is tracked stays so");
    }

    /// As a user without privileges, on a thread of its own: the kernel keeps that user for each thread.
    #[test]
    fn what_cannot_be_read_is_left_out_and_named_and_the_rest_is_right() {
        use std::os::unix::fs::PermissionsExt as _;
        let root = tree(&[("kubepods/pod1/c/locked/inner", ""), ("kubepods/pod2", ""), ("locked", "")]);
        let locked = ["kubepods/pod1/c/locked", "locked"].map(|path| root.path().join(path));
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        locked.iter().for_each(|path| mode(path, 0));
        mode(root.path(), 0o755);
        let set = Set::default();
        let cgroups = CgroupFs::at(root.path());
        let roots = Roots::trusting(&[], own_uid());
        let walk = || {
            nix::unistd::setfsuid(nix::unistd::Uid::from_raw(65_534));
            scan(&cgroups, &roots, &set, CAPACITY, ScanReason::Initial)
        };
        let scan = std::thread::scope(|scope| scope.spawn(walk).join()).unwrap().unwrap();
        locked.iter().for_each(|path| mode(path, 0o755));
        let mut unreadable: Vec<&str> = scan.unreadable.cgroups.iter().map(|cgroup| &*cgroup.path).collect();
        unreadable.sort_unstable();
        assert_eq!(unreadable, ["/kubepods/pod1/c/locked", "/locked"]);
        assert!(scan.unreadable.cgroups.iter().all(|cgroup| cgroup.error.contains("ermission denied")));
        let mut paths: Vec<&str> = scan.cgroups.iter().map(|cgroup| &*cgroup.path).collect();
        paths.sort_unstable();
        assert_eq!(paths, ["/kubepods", "/kubepods/pod1", "/kubepods/pod1/c", "/kubepods/pod2"]);
    }

    #[test]
    fn a_nest_that_no_path_reaches_is_walked_with_one_descriptor() {
        let open = || fs::read_dir("/proc/self/fd").unwrap().count();
        for (name, depth) in [("x".repeat(250), 18), ("y".repeat(250), 40), ("x".to_owned(), 1500)] {
            let root = tree(&[("user.slice", ""), ("kubepods/pod1", ""), ("zzz/kubepods", "")]);
            let outside_top = root.path().join("user.slice");
            let _outside = Nest::make(&outside_top, &name, depth);
            let inside_top = root.path().join("kubepods/pod1");
            let inside = Nest::make(&inside_top, &name, depth);
            struct Watching(Set, Mutex<usize>);
            impl Track for Watching {
                fn track(&self, id: CgroupId) -> io::Result<bool> {
                    let now = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
                    let mut most = self.1.lock().unwrap();
                    *most = now.max(*most);
                    self.0.track(id)
                }
                fn is_tracked(&self, id: CgroupId) -> bool {
                    self.0.is_tracked(id)
                }
                fn untrack(&self, id: CgroupId) -> io::Result<()> {
                    self.0.untrack(id)
                }
                fn track_above(&self, id: CgroupId) -> io::Result<()> {
                    self.0.track_above(id)
                }
            }
            let watching = Watching(Set::default(), Mutex::default());
            let before = open();
            let roots = Roots::trusting(&[], own_uid());
            let scan =
                scan(&CgroupFs::at(root.path()), &roots, &watching, CAPACITY, ScanReason::Initial).unwrap();
            // Other tests run beside this one and open files, too; a descriptor a level would show all the same.
            assert!(*watching.1.lock().unwrap() < before + 100, "a descriptor a level");
            assert!(scan.unreadable.is_empty(), "{:?}", scan.unreadable);
            let paths: Vec<&str> = scan.cgroups.iter().map(|cgroup| &*cgroup.path).collect();
            assert!(paths.contains(&"/zzz/kubepods") && paths.contains(&"/kubepods/pod1"));
            assert_eq!((scan.cgroups.len(), watching.0.0.lock().unwrap().len()), (3 + depth, 3 + depth));
            assert!(paths.iter().all(|path| path.len() <= PATH_LIMIT + 4), "paths take memory");
            let innermost = scan.cgroups.iter().find(|cgroup| cgroup.id == inside.innermost().id().unwrap());
            assert!(innermost.is_some_and(|cgroup| cgroup.path.starts_with("/kubepods/pod1/")));
        }
    }
}
