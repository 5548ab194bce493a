//! Where the cgroup v2 hierarchy is mounted: on `/sys/fs/cgroup` (unified), on `/sys/fs/cgroup/unified` (hybrid), or
//! elsewhere. Only a mount of the whole hierarchy serves: paths and ids must be the kernel's own.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use procfs::process::Process;

/// The inode number of the root of the hierarchy, on every kernel: its first node.
const ROOT_INODE: u64 = 1;

/// A mount of the whole cgroup v2 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupFs {
    mount_point: PathBuf,
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
    /// Finds it.
    ///
    /// # Errors
    /// See [`MountError`].
    pub fn find() -> Result<Self, MountError> {
        let mounts =
            Process::myself().and_then(|myself| myself.mountinfo()).map_err(MountError::MountInfo)?;
        let mount_points =
            mounts.0.into_iter().filter(|mount| mount.fs_type == "cgroup2").map(|mount| mount.mount_point);
        Self::choose(mount_points, |path| fs::metadata(path).map(|metadata| metadata.ino()))
    }

    /// The first that shows the root of the hierarchy; what speaks against the last, if none does.
    fn choose(
        mount_points: impl Iterator<Item = PathBuf>,
        inode: impl Fn(&Path) -> std::io::Result<u64>,
    ) -> Result<Self, MountError> {
        let mut refused = MountError::NotMounted;
        for mount_point in mount_points {
            match inode(&mount_point) {
                Ok(ROOT_INODE) => return Ok(Self { mount_point }),
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

    #[cfg(test)]
    pub(crate) fn at(mount_point: &Path) -> Self {
        Self { mount_point: mount_point.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(found: &[(&str, Option<u64>)]) -> Result<CgroupFs, MountError> {
        CgroupFs::choose(found.iter().map(|(path, _)| PathBuf::from(path)), |path| {
            let inode = found.iter().find(|(of, _)| Path::new(of) == path).and_then(|(_, inode)| *inode);
            inode.ok_or_else(|| std::io::ErrorKind::PermissionDenied.into())
        })
    }

    #[test]
    fn the_whole_hierarchy_is_taken_wherever_it_is() {
        let found = choose(&[("/run/part", Some(77)), ("/sys/fs/cgroup/unified", Some(1))]).unwrap();
        assert_eq!(found.mount_point(), Path::new("/sys/fs/cgroup/unified"));
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
