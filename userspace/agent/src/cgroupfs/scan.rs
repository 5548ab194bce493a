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

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::io;
use std::sync::Arc;

use kwitness_core::cgroup_path::{ContainerPath, Placement, classify, shortened};
use kwitness_core::model::{
    CgroupId, ContainerId, Scan, ScanReason, ScannedCgroup, ScannedProcess, Unreadable, UnreadableCgroup,
};
use kwitness_core::shares::Shares;

use super::directory::{Directory, text_of};
use super::{CgroupFs, Roots, process, roots::is_in_pods};
use crate::clock::Clock;

#[cfg(test)]
mod tests;
mod track;

pub use track::Track;
use track::{Missing, TrackNothing};

/// Bytes of the longest path that is kept of a tracked cgroup: the paths of a deep nest take memory by the square of its depth.
const PATH_LIMIT: usize = 8 << 10;

/// The top of what is watched cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the cgroup {path}")]
pub struct ScanError {
    path: String,
    source: io::Error,
}

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
    // Twice: keys that go away meanwhile may be listed again.
    let track = &Missing::of(track, capacity.saturating_mul(2));
    Walk::new(cgroups, roots, track, capacity, false).run()?;
    let mut walk = Walk::new(cgroups, roots, track, capacity, true);
    walk.run()?;
    let Walk { found, untracked, unreadable, .. } = walk;
    Ok(Scan { reason, began, ended: Clock::read().now(), untracked, unreadable, cgroups: found })
}

/// Which of these containers have a cgroup in no tracked root, and its path; by the cgroup's name. Tracks nothing.
///
/// # Errors
/// The top of what is watched cannot be read.
pub fn outside_roots(
    cgroups: &CgroupFs,
    roots: &Roots,
    containers: &BTreeSet<ContainerId>,
) -> Result<BTreeMap<ContainerId, Arc<str>>, ScanError> {
    let mut walk = Walk::new(cgroups, roots, &TrackNothing, usize::MAX, false);
    walk.sought = Some(containers);
    walk.run()?;
    Ok(walk.outside)
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
    /// The containers whose cgroups are looked for outside of all roots, if any are.
    sought: Option<&'a BTreeSet<ContainerId>>,
    /// Of these, what was found.
    outside: BTreeMap<ContainerId, Arc<str>>,
}

/// A directory that is being walked.
struct Level {
    id: CgroupId,
    name: CString,
    is_tracked: bool,
    ancestry: Ancestry,
    /// How long the path is up to here.
    path_len: usize,
    /// What stands for the paths below, if they are too long to be kept.
    long_path: Option<Arc<str>>,
    /// How many tracked cgroups had been met before.
    met: usize,
    children: std::vec::IntoIter<CString>,
}

/// Where a cgroup lies: the kernel side goes by it for what is made below, and counts the cgroup in its container's share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ancestry {
    /// Whether it, or one above it, is named as the kubelet's cgroup of pods.
    in_pods: bool,
    within: Within,
}

impl Ancestry {
    /// Where a cgroup lies that lies in one of which that is known.
    fn of(self, id: CgroupId, path: &str) -> Self {
        let within = self.within.of(id, path);
        // As for `within`, a path that is too long to be kept says nothing any more.
        let in_pods = self.in_pods || path.len() <= PATH_LIMIT && is_in_pods(path);
        Self { in_pods, within }
    }
}

/// The container that a cgroup is, or lies in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Within {
    #[default]
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

    /// What lies in a cgroup that lies in this. A path that is too long to be kept is no container's: looking at each of a deep nest
    /// would take time by the square of its depth.
    fn of(self, id: CgroupId, path: &str) -> Self {
        if matches!(self, Self::Pod(_)) || path.len() > PATH_LIMIT {
            return self;
        }
        match classify(path) {
            Placement::Container(ContainerPath { pod: Some(_), .. }) => Self::Pod(id),
            Placement::Container(_) => Self::Plain(id),
            _ => self,
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
            sought: None,
            outside: BTreeMap::new(),
        }
    }

    fn run(&mut self) -> Result<(), ScanError> {
        let failed = |source| ScanError { path: self.cgroups.subtree().to_string(), source };
        let (above, top) = self.above().and_then(|above| Ok((above, self.top()?))).map_err(failed)?;
        self.cgroups.subtree().path().clone_into(&mut self.path);
        let parent = above.last().map_or(ROOT, |(id, _)| *id);
        let is_root = above.iter().any(|(_, is_root)| *is_root) || self.is_root(&top);
        let ancestry = match top.id() {
            Ok(id) if is_root => Ancestry::default().of(id, &self.path),
            _ => Ancestry::default(),
        };
        let entered = self.enter(&top, c"".to_owned(), is_root.then_some(parent), ancestry);
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
        let mut ancestry = self.levels.last().map_or(Ancestry::default(), |level| level.ancestry);
        if tracked.is_some() {
            let id = directory.id()?;
            ancestry = ancestry.of(id, &self.path);
            match self.take_up(&here.directory, name, id, ancestry) {
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
        if tracked.is_none() {
            self.look_for_container();
        }
        self.enter(&directory, name.clone(), tracked, ancestry)?;
        Ok(Some(directory))
    }

    /// Notes the cgroup of [`Walk::path`], which is not tracked, if it is a container's that is sought.
    fn look_for_container(&mut self) {
        if let Some(sought) = self.sought.filter(|_| self.path.len() <= PATH_LIMIT)
            && let Placement::Container(ContainerPath { id, .. }) = classify(&self.path)
            && sought.contains(&id)
        {
            self.outside.entry(id).or_insert_with(|| Arc::from(&*self.path));
        }
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
    fn take_up(&mut self, parent: &Directory, name: &CString, id: CgroupId, ancestry: Ancestry) -> Tracked {
        let container = self.levels.last().and_then(|level| level.ancestry.within.container());
        // When the whole set is full, the kernel refuses it.
        if !self.shares.take(container) && container.is_some() {
            if !self.track.is_tracked(id) {
                return Tracked::BeyondShare;
            }
            self.shares.hold(container);
        }
        match self.track.track(id, ancestry) {
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

    /// Makes a directory the innermost level, of that ancestry. `tracked`: it is a tracked cgroup, with that parent.
    fn enter(
        &mut self,
        directory: &Directory,
        name: CString,
        tracked: Option<CgroupId>,
        ancestry: Ancestry,
    ) -> io::Result<()> {
        let id = directory.id()?;
        let met = self.met;
        if self.levels.is_empty() && tracked.is_some() {
            // The top has no directory to look it up in; that it is there was just seen.
            if let Err(error) = self.track.track(id, ancestry) {
                tracing::warn!(path = self.path, %error, "cannot track a cgroup");
                self.untracked += 1;
            }
        }
        let long_path = self.long_path();
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
        self.levels.push(Level { id, name, is_tracked, ancestry, path_len, long_path, met, children });
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
pub(crate) fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::errno::Errno::ENODEV as i32)
}
