//! Where the cgroup v2 hierarchy is mounted, and which part of it is watched; and v1 hierarchies beside it.
//!
//! The mount point is `/sys/fs/cgroup` (unified), `/sys/fs/cgroup/unified` (hybrid), or elsewhere. Only a mount of the whole
//! hierarchy serves: paths and ids must be the kernel's own. The watched part is a [`Subtree`] of it.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use kwitness_abi::HIERARCHY_ROOT;
use kwitness_core::model::CgroupId;
use procfs::process::{MountInfo, Process};

use super::directory::Directory;

/// A mount of the whole cgroup v2 hierarchy, and the subtree that is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupFs {
    mount_point: PathBuf,
    subtree: Subtree,
    subtree_id: CgroupId,
}

/// The part of the cgroup hierarchy that is watched, by the path of its top cgroup from the root of the hierarchy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subtree(String);

/// Why a text names no subtree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an absolute path of a cgroup, without \".\" and \"..\"")]
pub struct SubtreeError;

impl Subtree {
    /// The path as [`classify`](kwitness_core::cgroup_path::classify) has it: no slash at the end, empty for the whole hierarchy.
    pub fn path(&self) -> &str {
        &self.0
    }
}

impl FromStr for Subtree {
    type Err = SubtreeError;

    fn from_str(text: &str) -> Result<Self, SubtreeError> {
        let names: Vec<&str> = text.split('/').filter(|name| !name.is_empty()).collect();
        let is_name = |name: &&str| *name != "." && *name != ".." && !name.contains('\0');
        if !text.starts_with('/') || !names.iter().all(is_name) {
            return Err(SubtreeError);
        }
        Ok(Self(names.iter().map(|name| format!("/{name}")).collect()))
    }
}

impl fmt::Display for Subtree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "/" } else { &self.0 })
    }
}

/// Where the whole v1 hierarchy of a controller is mounted; none: nowhere.
pub(crate) fn v1_mount<'a>(mounts: &'a [MountInfo], controller: &str) -> Option<&'a Path> {
    let is_it = |mount: &&MountInfo| {
        mount.fs_type == "cgroup" && mount.root == "/" && mount.super_options.contains_key(controller)
    };
    mounts.iter().find(is_it).map(|mount| mount.mount_point.as_path())
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The table of mounts cannot be read.
    #[error("cannot read /proc/self/mountinfo; mount procfs on /proc")]
    MountInfo(#[source] procfs::ProcError),
    /// No cgroup2 file system at all.
    #[error(
        "no cgroup2 file system is mounted; mount it with `mount -t cgroup2 none /sys/fs/cgroup`, or give the container \
         the host's /sys/fs/cgroup"
    )]
    NotMounted,
    /// Only a part of the hierarchy is visible.
    #[error(
        "{} shows only a part of the cgroup hierarchy: this is a private cgroup namespace; give the container the \
         host's /sys/fs/cgroup (hostPath volume, or --cgroupns=host)",
        mount_point.display()
    )]
    Partial {
        /// Where it is mounted.
        mount_point: PathBuf,
    },
    /// The configured subtree is not there.
    #[error(
        "cannot watch the cgroup {subtree} (kernel.subtree) of {}; create it before the daemon starts, or correct the setting",
        mount_point.display()
    )]
    NoSubtree {
        /// Where the hierarchy is mounted.
        mount_point: PathBuf,
        /// Its top, as configured.
        subtree: Subtree,
        /// Why.
        source: std::io::Error,
    },
    /// The mount point cannot be looked at.
    #[error("cannot look at the cgroup2 mount {}", mount_point.display())]
    Unreadable {
        /// Where it is mounted.
        mount_point: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl CgroupFs {
    /// Finds the mount point, and `subtree` in it.
    ///
    /// # Errors
    /// See [`MountError`].
    pub fn find(subtree: &Subtree) -> Result<Self, MountError> {
        let mounts =
            Process::myself().and_then(|myself| myself.mountinfo()).map_err(MountError::MountInfo)?;
        let mount_points =
            mounts.0.into_iter().filter(|mount| mount.fs_type == "cgroup2").map(|mount| mount.mount_point);
        let inode = |path: &Path| fs::metadata(path).map(|metadata| metadata.ino());
        Self::within(Self::choose(mount_points, inode)?, subtree)
    }

    fn within(mount_point: PathBuf, subtree: &Subtree) -> Result<Self, MountError> {
        let top = mount_point.join(subtree.path().trim_start_matches('/'));
        let is_directory = |found: fs::Metadata| {
            if found.is_dir() { Ok(found.ino()) } else { Err(std::io::ErrorKind::NotADirectory.into()) }
        };
        match fs::symlink_metadata(top).and_then(is_directory) {
            Ok(id) => Ok(Self { mount_point, subtree: subtree.clone(), subtree_id: CgroupId(id) }),
            Err(source) => Err(MountError::NoSubtree { mount_point, subtree: subtree.clone(), source }),
        }
    }

    /// The first that shows the root of the hierarchy; what speaks against the last, if none does.
    fn choose(
        mount_points: impl Iterator<Item = PathBuf>,
        inode: impl Fn(&Path) -> std::io::Result<u64>,
    ) -> Result<PathBuf, MountError> {
        let mut refused = MountError::NotMounted;
        for mount_point in mount_points {
            match inode(&mount_point) {
                Ok(HIERARCHY_ROOT) => return Ok(mount_point),
                Ok(_) => refused = MountError::Partial { mount_point },
                Err(source) => refused = MountError::Unreadable { mount_point, source },
            }
        }
        Err(refused)
    }

    /// Where it is mounted.
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// Opens the directory of the cgroup of that path from the root of the hierarchy.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(&self, path: &str) -> std::io::Result<Directory> {
        Directory::open(&self.mount_point.join(path.trim_start_matches('/')))
    }

    /// What is watched of it.
    pub fn subtree(&self) -> &Subtree {
        &self.subtree
    }

    /// The id of the subtree's top cgroup.
    pub fn subtree_id(&self) -> CgroupId {
        self.subtree_id
    }

    #[cfg(test)]
    pub(crate) fn at(mount_point: &Path) -> Self {
        let whole = Subtree::default();
        Self { mount_point: mount_point.to_owned(), subtree: whole, subtree_id: CgroupId(HIERARCHY_ROOT) }
    }

    #[cfg(test)]
    pub(crate) fn below(mount_point: &Path, subtree: &str) -> Result<Self, MountError> {
        Self::within(mount_point.to_owned(), &subtree.parse().expect("a subtree"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(found: &[(&str, Option<u64>)]) -> Result<PathBuf, MountError> {
        CgroupFs::choose(found.iter().map(|(path, _)| PathBuf::from(path)), |path| {
            let inode = found.iter().find(|(of, _)| Path::new(of) == path).and_then(|(_, inode)| *inode);
            inode.ok_or_else(|| std::io::ErrorKind::PermissionDenied.into())
        })
    }

    #[test]
    fn the_whole_hierarchy_is_taken_wherever_it_is() {
        let found = choose(&[("/run/part", Some(77)), ("/sys/fs/cgroup/unified", Some(1))]).unwrap();
        assert_eq!(found, Path::new("/sys/fs/cgroup/unified"));
    }

    #[test]
    fn a_subtree_is_an_absolute_path() {
        let path = |text: &str| text.parse::<Subtree>().map(|subtree| subtree.path().to_owned());
        assert_eq!(path("/"), Ok(String::new()));
        assert_eq!(path("/a//b/"), Ok("/a/b".to_owned()));
        for text in ["", "a", "/a/../b", "/.", "/a\0"] {
            assert_eq!(path(text), Err(SubtreeError), "{text:?}");
        }
        assert_eq!(Subtree::default().to_string(), "/");
    }

    #[test]
    fn a_subtree_that_is_not_there_is_refused_by_its_name() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a/b")).unwrap();
        fs::write(root.path().join("a/file"), "").unwrap();
        let found = CgroupFs::below(root.path(), "/a/b").unwrap();
        assert_eq!(found.subtree_id().0, fs::metadata(root.path().join("a/b")).unwrap().ino());
        for missing in ["/a/c", "/a/file"] {
            let error = CgroupFs::below(root.path(), missing).unwrap_err();
            assert!(error.to_string().contains(&format!("{missing} (kernel.subtree)")), "{error}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(matches!(choose(&[]), Err(MountError::NotMounted)));
        let error = choose(&[("/sys/fs/cgroup", Some(77))]).unwrap_err();
        assert!(error.to_string().contains("private cgroup namespace"), "{error}");
        let error = choose(&[("/sys/fs/cgroup", None)]).unwrap_err();
        assert!(matches!(error, MountError::Unreadable { .. }), "{error}");
    }
}
