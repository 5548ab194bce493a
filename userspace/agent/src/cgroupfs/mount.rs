//! Where the cgroup v2 hierarchy is mounted, and which part of it is watched; and v1 hierarchies beside it.
//!
//! The mount point is `/sys/fs/cgroup` (unified), `/sys/fs/cgroup/unified` (hybrid), or elsewhere. What is mounted there is the
//! whole hierarchy, or the part of a node that is itself a container (kind, k3d), made in the node's cgroup namespace: paths begin
//! at the node's cgroup then. A container's own part, which has nothing but the daemon in it, is refused. What counts is the mount,
//! not the daemon's own cgroup namespace: a pod has one of its own, and the node's `/sys/fs/cgroup`. The watched part is a
//! [`Subtree`] of what is mounted.
//!
//! `/proc` shows paths relative to the reader's cgroup namespace, with `/..` for what is above: those of the processes' cgroups,
//! and that of what is mounted, alike. So the one relative to the other is known, wherever the reader is.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use kwitness_abi::HIERARCHY_ROOT;
use kwitness_core::model::CgroupId;
use procfs::process::{MountInfo, Process};

use super::directory::Directory;

/// A mount of the cgroup v2 hierarchy, and the subtree that is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupFs {
    mount: Mount,
    top_id: CgroupId,
    subtree: Subtree,
    subtree_id: CgroupId,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    point: PathBuf,
    /// What is mounted there, as `/proc` shows paths to this process.
    root: String,
}

/// The part of the cgroup hierarchy that is watched, by the path of its top cgroup from the top of what is mounted.
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
    /// Only the cgroup that this process is in is visible.
    #[error(
        "{} shows only this container's own cgroup: this is a private cgroup namespace; give the container the \
         node's /sys/fs/cgroup (hostPath volume, or --cgroupns=host)",
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
        /// The I/O error.
        source: std::io::Error,
    },
    /// The mount point cannot be looked at.
    #[error("cannot look at the cgroup2 mount {}", mount_point.display())]
    Unreadable {
        /// Where it is mounted.
        mount_point: PathBuf,
        /// The I/O error.
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
        let mounts = mounts.0.into_iter().filter(|mount| mount.fs_type == "cgroup2");
        let mounts = mounts.map(|mount| Mount { point: mount.mount_point, root: mount.root });
        let inode = |path: &Path| fs::metadata(path).map(|metadata| metadata.ino());
        let (mount, top_id) = Self::choose(mounts, shown_path("self").as_deref(), inode)?;
        Self::within(mount, top_id, subtree)
    }

    fn within(mount: Mount, top_id: CgroupId, subtree: &Subtree) -> Result<Self, MountError> {
        let top = mount.point.join(subtree.path().trim_start_matches('/'));
        let is_directory = |found: fs::Metadata| {
            if found.is_dir() { Ok(found.ino()) } else { Err(std::io::ErrorKind::NotADirectory.into()) }
        };
        match fs::symlink_metadata(top).and_then(is_directory) {
            Ok(id) => Ok(Self { mount, top_id, subtree: subtree.clone(), subtree_id: CgroupId(id) }),
            Err(source) => {
                let (mount_point, subtree) = (mount.point, subtree.clone());
                Err(MountError::NoSubtree { mount_point, subtree, source })
            }
        }
    }

    /// The first that shows the root of the hierarchy, or else a part that is not `own`, the cgroup that this process is in; what
    /// speaks against the last, if there is none. With it, the id of the topmost cgroup.
    ///
    /// No process is in the topmost cgroup of a node: the kubelet gives controllers to those below.
    fn choose(
        mounts: impl Iterator<Item = Mount>,
        own: Option<&str>,
        inode: impl Fn(&Path) -> std::io::Result<u64>,
    ) -> Result<(Mount, CgroupId), MountError> {
        // A later mount at the same point hides an earlier one.
        let mut visible = Vec::<Mount>::new();
        for mount in mounts {
            visible.retain(|earlier| earlier.point != mount.point);
            visible.push(mount);
        }
        let mut refused = MountError::NotMounted;
        let mut part = None;
        for mount in visible {
            match inode(&mount.point) {
                Ok(HIERARCHY_ROOT) => return Ok((mount, CgroupId(HIERARCHY_ROOT))),
                Ok(id) if own.is_some_and(|own| own != mount.root) => {
                    part = part.or(Some((mount, CgroupId(id))));
                }
                Ok(_) => refused = MountError::Partial { mount_point: mount.point },
                Err(source) => refused = MountError::Unreadable { mount_point: mount.point, source },
            }
        }
        part.ok_or(refused)
    }

    /// Where it is mounted.
    pub fn mount_point(&self) -> &Path {
        &self.mount.point
    }

    /// Whether the whole hierarchy is mounted there, not only the part of a node that is a container.
    pub fn is_whole(&self) -> bool {
        self.top_id.0 == HIERARCHY_ROOT
    }

    /// The id of the topmost cgroup, at which paths begin.
    pub fn top_id(&self) -> CgroupId {
        self.top_id
    }

    /// Opens the directory of the cgroup of that path from the top of what is mounted.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(&self, path: &str) -> std::io::Result<Directory> {
        Directory::open(&self.mount.point.join(path.trim_start_matches('/')))
    }

    /// The path of the cgroup that a process is in; none, if that is gone, or not in what is mounted.
    pub fn path_of(&self, pid: i32) -> Option<String> {
        let shown = shown_path(&pid.to_string())?;
        relative(&self.mount.root, &shown).map(str::to_owned)
    }

    /// The same from the top of the subtree; none, also if it is not in that.
    pub fn path_in_subtree(&self, pid: i32) -> Option<String> {
        relative(self.subtree.path(), &self.path_of(pid)?).map(str::to_owned)
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
        let (subtree, id) = (Subtree::default(), CgroupId(HIERARCHY_ROOT));
        Self { mount: Mount::test(mount_point, "/"), top_id: id, subtree, subtree_id: id }
    }

    #[cfg(test)]
    pub(crate) fn below(mount_point: &Path, subtree: &str) -> Result<Self, MountError> {
        let mount = Mount::test(mount_point, "/");
        Self::within(mount, CgroupId(HIERARCHY_ROOT), &subtree.parse().expect("a subtree"))
    }
}

#[cfg(test)]
impl Mount {
    fn test(point: &Path, root: &str) -> Self {
        Self { point: point.to_owned(), root: root.to_owned() }
    }
}

/// The path of a process's cgroup of the v2 hierarchy, as `/proc` shows it to this process.
fn shown_path(pid: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

/// A path from `root` on, both being from the same place: empty for the root itself; none, if it does not lie below.
fn relative<'a>(root: &str, path: &'a str) -> Option<&'a str> {
    let rest = path.strip_prefix(root.trim_end_matches('/'))?.trim_end_matches('/');
    let is_below = rest.is_empty() || (rest.starts_with('/') && rest != "/.." && !rest.starts_with("/../"));
    is_below.then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By a process in that cgroup, of mounts with these points, roots and inodes.
    fn choose(own: &str, found: &[(&str, &str, Option<u64>)]) -> Result<(Mount, CgroupId), MountError> {
        let mounts = found.iter().map(|(point, root, _)| Mount::test(Path::new(point), root));
        CgroupFs::choose(mounts, Some(own), |path| {
            let inode = found.iter().rfind(|(point, ..)| Path::new(point) == path);
            inode.and_then(|(.., inode)| *inode).ok_or_else(|| std::io::ErrorKind::PermissionDenied.into())
        })
    }

    #[test]
    fn the_whole_hierarchy_is_taken_wherever_it_is() {
        let part = ("/run/part", "/..", Some(77));
        let (found, id) = choose("/", &[part, ("/sys/fs/cgroup/unified", "/../..", Some(1))]).unwrap();
        assert_eq!((&*found.point, id.0), (Path::new("/sys/fs/cgroup/unified"), 1));
    }

    #[test]
    fn of_parts_of_the_hierarchy_the_nodes_is_taken() {
        let node = |own, root| choose(own, &[("/sys/fs/cgroup", root, Some(77))]);
        // The daemon as a service of the node, and in a pod with a cgroup namespace of its own.
        for (own, root) in [("/system.slice/kwitness.service", "/"), ("/", "/../../..")] {
            let (found, id) = node(own, root).unwrap();
            assert_eq!((&*found.root, id.0), (root, 77));
        }
        let error = node("/", "/").unwrap_err();
        assert!(error.to_string().contains("private cgroup namespace"), "{error}");
        // Beside its own, a pod has the node's elsewhere.
        let both = [("/sys/fs/cgroup", "/", Some(78)), ("/host/cgroup", "/../..", Some(77))];
        assert_eq!(choose("/", &both).unwrap().1.0, 77);
        // The last one at a mount point is what is there.
        let hidden = [("/sys/fs/cgroup", "/../..", Some(1)), ("/sys/fs/cgroup", "/", Some(77))];
        assert_eq!(&*choose("/init", &hidden).unwrap().0.root, "/");
    }

    #[test]
    fn a_path_of_proc_is_one_from_the_mounts_top() {
        for (root, path, expected) in [
            ("/", "/", Some("")),
            ("/", "/init.scope", Some("/init.scope")),
            ("/", "/..", None),
            ("/", "/../other", None),
            ("/", "/..data", Some("/..data")),
            ("/../..", "/../../init.scope", Some("/init.scope")),
            ("/../..", "/../..", Some("")),
            ("/../..", "/../../..", None),
            // Of `kubepods` alone, by a pod, the node's first process.
            ("/../..", "/../../../init.scope", None),
            // Between the mount's top and the reader's namespace, whose names the reader is not shown.
            ("/../..", "/../pause", None),
            ("/../..", "/", None),
            ("/a", "/a/b", Some("/b")),
            ("/a", "/ab", None),
        ] {
            assert_eq!(relative(root, path), expected, "{path} in {root}");
        }
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
        assert!(matches!(choose("/", &[]), Err(MountError::NotMounted)));
        let error = choose("/", &[("/sys/fs/cgroup", "/", None)]).unwrap_err();
        assert!(matches!(error, MountError::Unreadable { .. }), "{error}");
    }
}
