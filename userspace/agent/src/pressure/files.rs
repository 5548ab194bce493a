//! Where a cgroup's memory usage and limit stand: in cgroup v2, or in a v1 hierarchy beside it.
//!
//! In a v1 hierarchy a cgroup is found by its path: the container runtimes and the kubelet give a cgroup the same path in all
//! of them. Never writes.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use kwitness_core::model::{Bound, CgroupId};
use procfs::process::Process;

use crate::cgroupfs::usage_files::V1_UNLIMITED;
use crate::cgroupfs::{CgroupFs, Directory, v1_mount};
use crate::probe::Capabilities;
use crate::probe::capability::LIMIT_WRITES;

/// No file of these is longer.
const LONGEST: u64 = 64;

/// Where memory is accounted.
#[derive(Clone, Debug)]
pub enum MemoryFiles {
    /// In cgroup v2.
    V2(CgroupFs),
    /// In the v1 hierarchy that is mounted there.
    V1(PathBuf),
}

/// Why there is no such place.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// The table of mounts cannot be read.
    #[error("cannot read /proc/self/mountinfo")]
    Mounts(#[source] procfs::ProcError),
    /// Neither hierarchy has the controller.
    #[error("no cgroup hierarchy has a memory controller")]
    NoController,
}

/// A cgroup's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Memory {
    /// Bytes charged; none: there is no limit, and it was not read.
    pub(super) usage: Option<u64>,
    /// Bytes allowed.
    pub(super) limit: Bound,
}

impl MemoryFiles {
    /// Finds where memory is accounted.
    ///
    /// # Errors
    /// See [`FindError`].
    pub fn find(cgroups: &CgroupFs) -> Result<Self, FindError> {
        let controllers = cgroups.open("/").and_then(|root| root.text("cgroup.controllers"));
        if controllers.is_ok_and(|names| names.split_ascii_whitespace().any(|name| name == "memory")) {
            return Ok(Self::V2(cgroups.clone()));
        }
        let mounts = Process::myself().and_then(|myself| myself.mountinfo()).map_err(FindError::Mounts)?;
        let memory = v1_mount(&mounts.0, "memory").map(|mount_point| Self::V1(mount_point.to_owned()));
        memory.ok_or(FindError::NoController)
    }

    /// The usage of one cgroup, if it has a limit.
    ///
    /// # Errors
    /// The kernel's; the cgroup is gone, or another has its path; a file says something else than a number.
    pub(super) fn read(&self, cgroup: CgroupId, path: &str) -> io::Result<Memory> {
        let directory = match self {
            Self::V2(cgroups) => cgroups.open(path)?,
            Self::V1(mount_point) => Directory::open(&mount_point.join(path.trim_start_matches('/')))?,
        };
        if matches!(self, Self::V2(_)) && directory.id()? != cgroup {
            return Err(io::ErrorKind::NotFound.into());
        }
        let (usage, limit) = self.names();
        let limit = bound(&directory.text_within(limit, LONGEST)?)?;
        let usage = match limit {
            Bound::At(_) => Some(number(&directory.text_within(usage, LONGEST)?)?),
            Bound::Unlimited => None,
        };
        Ok(Memory { usage, limit })
    }

    /// The file that changes when a cgroup reaches its limit; none: in cgroup v1, asking for such a notice takes a write.
    pub(super) fn limit_events(&self, path: &str) -> Option<PathBuf> {
        match self {
            Self::V2(cgroups) => {
                let directory = cgroups.mount_point().join(path.trim_start_matches('/'));
                Some(directory.join("memory.events.local"))
            }
            Self::V1(_) => None,
        }
    }

    /// Whether it is seen when a limit is set: neither in cgroup v1, nor without a hook or its substitute.
    pub fn has_limits_watched(&self, capabilities: &Capabilities) -> bool {
        let report = capabilities.reports.iter().find(|report| report.capability.name == LIMIT_WRITES);
        let is_seen = report.is_some_and(|report| report.chosen.is_some() || report.substitute.is_some());
        matches!(self, Self::V2(_)) && is_seen
    }

    /// Where the hierarchy is mounted.
    pub fn mount_point(&self) -> &Path {
        match self {
            Self::V2(cgroups) => cgroups.mount_point(),
            Self::V1(mount_point) => mount_point,
        }
    }

    fn names(&self) -> (&'static str, &'static str) {
        match self {
            Self::V2(_) => ("memory.current", "memory.max"),
            Self::V1(_) => ("memory.usage_in_bytes", "memory.limit_in_bytes"),
        }
    }
}

impl fmt::Display for MemoryFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (usage, _) = self.names();
        let version = if matches!(self, Self::V2(_)) { "v2" } else { "v1" };
        write!(f, "{usage} in {} (cgroup {version})", self.mount_point().display())
    }
}

fn number(text: &str) -> io::Result<u64> {
    text.trim_end().parse().map_err(io::Error::other)
}

fn bound(text: &str) -> io::Result<Bound> {
    match text.trim_end() {
        "max" => Ok(Bound::Unlimited),
        text => {
            number(text).map(|limit| if limit >= V1_UNLIMITED { Bound::Unlimited } else { Bound::At(limit) })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn write(directory: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(directory).unwrap();
        files.iter().for_each(|(name, text)| fs::write(directory.join(name), text).unwrap());
    }

    fn id(directory: &Path) -> CgroupId {
        CgroupId(fs::metadata(directory).unwrap().ino())
    }

    #[test]
    fn both_versions_are_read() {
        let root = tempfile::tempdir().unwrap();
        let pod = root.path().join("kubepods/pod1");
        write(&pod, &[("memory.current", "4096\n"), ("memory.max", "8192\n")]);
        write(&pod, &[("memory.usage_in_bytes", "1\n"), ("memory.limit_in_bytes", "9223372036854771712\n")]);
        let v2 = MemoryFiles::V2(CgroupFs::at(root.path()));
        let memory = v2.read(id(&pod), "/kubepods/pod1").unwrap();
        assert_eq!(memory, Memory { usage: Some(4096), limit: Bound::At(8192) });
        let v1 = MemoryFiles::V1(root.path().to_owned());
        let unlimited = Memory { usage: None, limit: Bound::Unlimited };
        assert_eq!(v1.read(id(&pod), "/kubepods/pod1").unwrap(), unlimited);
        write(&pod, &[("memory.max", "max\n"), ("memory.limit_in_bytes", "2\n")]);
        assert_eq!(v2.read(id(&pod), "/kubepods/pod1").unwrap(), unlimited);
        let memory = v1.read(id(&pod), "/kubepods/pod1").unwrap();
        assert_eq!(memory, Memory { usage: Some(1), limit: Bound::At(2) });
    }

    #[test]
    fn another_cgroup_in_its_place_and_nonsense_are_errors() {
        let root = tempfile::tempdir().unwrap();
        let v2 = MemoryFiles::V2(CgroupFs::at(root.path()));
        write(root.path(), &[("memory.current", "x\n"), ("memory.max", "1\n")]);
        let own = id(root.path());
        assert_eq!(v2.read(CgroupId(own.0 + 1), "/").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(v2.read(own, "/").unwrap_err().kind(), io::ErrorKind::Other);
        assert_eq!(v2.read(own, "/gone").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn the_hierarchy_with_the_controller_is_found() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), &[("cgroup.controllers", "cpu memory pids\n")]);
        let found = MemoryFiles::find(&CgroupFs::at(root.path())).unwrap();
        assert!(matches!(found, MemoryFiles::V2(_)));
        assert_eq!(found.to_string(), format!("memory.current in {} (cgroup v2)", root.path().display()));
    }
}
