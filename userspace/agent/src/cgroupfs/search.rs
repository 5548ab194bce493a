//! Finds cgroups by their ids: where their path says, below that, or anywhere.
//!
//! A search remembers what its last walk met: the ten thousand cgroups that a container may have are found in one walk, where a
//! walk for each would take time by the square of their number. What is remembered is a hint only; what is opened is checked. No
//! cgroup of the v2 hierarchy moves, so one that a walk since the request did not meet is gone; unless there were more than a walk
//! meets at most.
//!
//! How many there are, and how deep, the container decides. So a walk goes down by name and up by `..`: it takes time by the number
//! of the cgroups, however deep they lie.

use std::collections::HashMap;
use std::ffi::CString;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Instant;

use kwitness_core::model::{CgroupId, ReadLimits};

use super::directory::part_of_path;
use super::{CgroupFs, Directory};

/// Searches for cgroups by id.
#[derive(Debug)]
pub(super) struct Search {
    cgroups: CgroupFs,
    /// Directories that a walk meets at most.
    most: usize,
    last: Option<Walked>,
}

/// Why a cgroup was not found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotFound {
    /// It is no more.
    Gone,
    /// It may lie beyond what a walk meets: so many.
    Beyond(usize),
}

/// What a walk met.
#[derive(Debug)]
struct Walked {
    /// The directory that it began at.
    start: PathBuf,
    began: Instant,
    /// Each with its parent's place in here: whole paths would take too much memory. The first stands for the start.
    met: Vec<(usize, CString)>,
    places: HashMap<CgroupId, usize>,
    /// There are more.
    is_cut_off: bool,
}

/// A directory whose children are being met.
struct Level {
    place: usize,
    id: CgroupId,
    /// The places of those that are still to be entered.
    children: Range<usize>,
}

/// An open directory, and which level's it is.
struct Here {
    directory: Directory,
    depth: usize,
}

impl Search {
    pub(super) fn new(cgroups: CgroupFs, most: usize) -> Self {
        Self { cgroups, most, last: None }
    }

    /// The directory of the cgroup that a request made at `asked` is about, and its path from the root of the hierarchy.
    pub(super) fn find(
        &mut self,
        request: &ReadLimits,
        asked: Instant,
    ) -> Result<(Directory, PathBuf), NotFound> {
        let start = Path::new(request.path.as_deref().unwrap_or("/"));
        let top = self.open(start).map_err(|_| NotFound::Gone)?;
        if top.id().map_err(|_| NotFound::Gone)? == request.cgroup {
            return Ok((top, start.to_owned()));
        }
        let is_direct = request.path.is_some() && !request.inner;
        if is_direct {
            return Err(NotFound::Gone);
        }
        if let Some(last) = self.last.as_ref().filter(|last| last.start == start) {
            let found = self.where_met(last, request.cgroup);
            if found.is_ok() || last.began >= asked {
                return found;
            }
        }
        let walked = self.walk(start);
        let found = self.where_met(&walked, request.cgroup);
        self.last = Some(walked);
        found
    }

    /// Gives the memory back.
    pub(super) fn forget(&mut self) {
        self.last = None;
    }

    fn open(&self, path: &Path) -> io::Result<Directory> {
        Directory::open(&self.cgroups.mount_point().join(path.strip_prefix("/").unwrap_or(path)))
    }

    /// A cgroup, if it is where that walk met it.
    fn where_met(&self, walked: &Walked, cgroup: CgroupId) -> Result<(Directory, PathBuf), NotFound> {
        let not_met = if walked.is_cut_off { NotFound::Beyond(self.most) } else { NotFound::Gone };
        let path = walked.path(*walked.places.get(&cgroup).ok_or(not_met)?);
        let directory = self.open(&path).ok().filter(|it| it.id().is_ok_and(|id| id == cgroup));
        Ok((directory.ok_or(NotFound::Gone)?, path))
    }

    fn walk(&self, start: &Path) -> Walked {
        let mut walked = Walked {
            start: start.to_owned(),
            began: Instant::now(),
            met: vec![(0, CString::default())],
            places: HashMap::new(),
            is_cut_off: false,
        };
        let Ok(top) = self.open(start) else { return walked };
        let mut levels: Vec<Level> = walked.meet(0, &top, self.most).into_iter().collect();
        let mut here = Here { directory: top, depth: 0 };
        while let Some(level) = levels.last_mut()
            && !walked.is_cut_off
        {
            let Some(place) = level.children.next() else {
                levels.pop();
                continue;
            };
            let depth = levels.len() - 1;
            if self.return_to(&mut here, &levels, &walked).is_err() {
                // It has been removed, with all that is in it.
                levels.truncate(depth);
                continue;
            }
            // What went away meanwhile is not there.
            let Ok(directory) = here.directory.child(&walked.met[place].1) else { continue };
            if let Some(level) = walked.meet(place, &directory, self.most) {
                levels.push(level);
                here = Here { directory, depth: depth + 1 };
            }
        }
        walked
    }

    /// Opens the directory of the innermost level again, if it is not the one that is open.
    fn return_to(&self, here: &mut Here, levels: &[Level], walked: &Walked) -> io::Result<()> {
        let depth = levels.len() - 1;
        while here.depth > depth {
            here.directory = here.directory.child(c"..")?;
            here.depth -= 1;
        }
        if here.depth == depth && here.directory.id()? == levels[depth].id {
            return Ok(());
        }
        let mut directory = self.open(&walked.start)?;
        for level in &levels[1..] {
            directory = directory.child(&walked.met[level.place].1)?;
        }
        if directory.id()? != levels[depth].id {
            return Err(nix::errno::Errno::ENODEV.into());
        }
        *here = Here { directory, depth };
        Ok(())
    }
}

impl Walked {
    /// Meets what is in the directory at that place, up to that number in all; none: it cannot be read, or there is nothing.
    fn meet(&mut self, place: usize, directory: &Directory, most: usize) -> Option<Level> {
        let (id, entries) = (directory.id().ok()?, directory.entries().ok()?);
        let first = self.met.len();
        for entry in entries.into_iter().filter(|entry| entry.is_directory) {
            // The first stands for the start.
            if self.met.len() > most {
                self.is_cut_off = true;
                break;
            }
            self.places.insert(entry.id, self.met.len());
            self.met.push((place, entry.name));
        }
        let children = first..self.met.len();
        (!children.is_empty()).then_some(Level { place, id, children })
    }

    fn path(&self, mut place: usize) -> PathBuf {
        let mut names = Vec::new();
        while place > 0 {
            let (parent, name) = &self.met[place];
            names.push(part_of_path(name));
            place = *parent;
        }
        names.iter().rev().fold(self.start.clone(), |path, name| path.join(name))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::cgroupfs::directory::testing::{Nest, opened};

    /// A container's directory with cgroups of these names in it, and a search.
    fn container(names: &[&str]) -> (tempfile::TempDir, PathBuf, Search) {
        let root = tempfile::tempdir().unwrap();
        let container = root.path().join("kubepods/podu/c");
        names.iter().for_each(|name| fs::create_dir_all(container.join(name)).unwrap());
        let search = Search::new(CgroupFs::at(root.path()), 1000);
        (root, container, search)
    }

    fn request(cgroup: CgroupId) -> ReadLimits {
        ReadLimits { cgroup, path: Some("/kubepods/podu/c".into()), inner: true, limit_file: None }
    }

    fn id(directory: &Path) -> CgroupId {
        CgroupId(fs::metadata(directory).unwrap().ino())
    }

    fn found(search: &mut Search, cgroup: CgroupId, asked: Instant) -> Option<String> {
        let (directory, path) = search.find(&request(cgroup), asked).ok()?;
        assert_eq!(directory.id().unwrap(), cgroup);
        path.to_str().map(str::to_owned)
    }

    fn last_walk(search: &Search) -> Option<Instant> {
        search.last.as_ref().map(|last| last.began)
    }

    #[test]
    fn the_cgroups_of_a_container_are_found_in_one_walk() {
        let names = ["init.scope", "system.slice/a.service", "system.slice/b.service"];
        let (_root, container, mut search) = container(&names);
        let asked = Instant::now();
        let mut walks = Vec::new();
        for name in names {
            let at = found(&mut search, id(&container.join(name)), asked);
            assert_eq!(at, Some(format!("/kubepods/podu/c/{name}")));
            walks.push(last_walk(&search));
        }
        assert!(walks[0].is_some() && walks.iter().all(|walk| *walk == walks[0]), "{walks:?}");
        search.forget();
        assert!(found(&mut search, id(&container.join(names[2])), asked).is_some());
    }

    #[test]
    fn a_nest_is_walked_in_time_by_its_depth_and_what_lies_beside_it_is_found() {
        const DEPTH: u64 = 200;
        let (_root, container, mut search) = container(&["a/beside/in", "z"]);
        let top = container.join("a");
        let nest = Nest::make(&top, &"x".repeat(250), DEPTH as usize);
        let innermost = nest.innermost().id().unwrap();
        let asked = Instant::now();
        let before = opened();
        for (name, depth) in [("z", 1), ("a/beside/in", 3)] {
            let path = found(&mut search, id(&container.join(name)), asked).unwrap();
            assert_eq!(path.matches('/').count(), 3 + depth, "{path}");
        }
        assert!(found(&mut search, innermost, asked).is_some());
        // Down, the list of what is there, and up; then the innermost itself, by its names.
        assert!(opened() - before < 6 * DEPTH, "{} directories opened", opened() - before);
    }

    #[test]
    fn what_lies_beyond_the_bound_of_a_walk_is_not_said_to_be_gone() {
        let (_root, container, mut search) = container(&["a/1", "b", "c"]);
        let all = ["a", "a/1", "b", "c"].map(|name| id(&container.join(name)));
        let mut not_found = |most, cgroup, asked| {
            search.most = most;
            search.find(&request(cgroup), asked).err()
        };
        let missing = CgroupId(u64::MAX);
        assert!(all.iter().all(|cgroup| not_found(4, *cgroup, Instant::now()).is_none()), "as many as fit");
        assert_eq!(not_found(4, missing, Instant::now()), Some(NotFound::Gone));
        let asked = Instant::now();
        let beyond = all.iter().filter(|cgroup| not_found(3, **cgroup, asked).is_some()).count();
        assert_eq!(beyond, 0, "what the last walk met is found without another");
        assert_eq!(not_found(3, missing, Instant::now()), Some(NotFound::Beyond(3)));
        let beyond = all.map(|cgroup| not_found(3, cgroup, asked));
        let of = |why| beyond.iter().filter(|found| **found == why).count();
        assert_eq!((of(None), of(Some(NotFound::Beyond(3)))), (3, 1), "{beyond:?}");
    }

    #[test]
    fn what_was_made_since_a_walk_is_found_in_another() {
        let (_root, container, mut search) = container(&["a"]);
        assert!(found(&mut search, id(&container.join("a")), Instant::now()).is_some());
        let before = last_walk(&search);
        fs::create_dir(container.join("b")).unwrap();
        let at = found(&mut search, id(&container.join("b")), Instant::now());
        assert_eq!(at.as_deref(), Some("/kubepods/podu/c/b"));
        assert_ne!(last_walk(&search), before);
    }

    #[test]
    fn what_a_walk_since_the_request_did_not_meet_is_gone() {
        let (_root, container, mut search) = container(&["a", "b"]);
        let (a, b) = (id(&container.join("a")), id(&container.join("b")));
        let asked = Instant::now();
        fs::remove_dir(container.join("b")).unwrap();
        assert!(found(&mut search, a, asked).is_some());
        let walk = last_walk(&search);
        assert_eq!(found(&mut search, b, asked), None);
        assert_eq!(last_walk(&search), walk, "no other walk is made for it");
        fs::remove_dir(container.join("a")).unwrap();
        assert_eq!(found(&mut search, a, Instant::now()), None, "what is remembered is checked");
    }
}
