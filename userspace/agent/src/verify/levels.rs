//! What the files say at every level, from the innermost cgroup of a container to the root. Reads, and never judges.

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::Arc;

use kwitness_core::cgroup_path::{Placement, classify};
use kwitness_core::model::{CgroupId, Level, LevelRole, LimitFile, Reading, Resource};

use crate::cgroupfs::limit_files::read_limit_file_of;
use crate::cgroupfs::usage_files::Amount;
use crate::cgroupfs::{CgroupFs, Directory};

/// What systemd makes inside a container's cgroup when it runs there.
const UNITS: [&str; 3] = [".slice", ".scope", ".service"];

/// Of more cgroups in a container's, none is the runtime's: it makes one, and a workload any number.
const LOOKED_AT: usize = 64;

/// What was read for one limit.
#[derive(Debug)]
pub(super) struct Levels {
    /// The id of the requested one.
    pub(super) cgroup: CgroupId,
    /// From the innermost to the root.
    pub(super) levels: Vec<Level>,
    /// Which of them is the requested one.
    pub(super) own: usize,
    /// The id of the one within that the runtime made.
    pub(super) inner: Option<CgroupId>,
    /// What is used there, in the file's unit, if that is known.
    pub(super) usage: Option<u64>,
}

/// What was read for one set of verdicts: containers share the levels above them, and each file is read once.
#[derive(Debug, Default)]
pub(super) struct Files(HashMap<(String, LimitFile), Reading>);

impl Files {
    fn reading(&mut self, cgroups: &CgroupFs, path: &str, file: LimitFile) -> Reading {
        let read = || read_limit_file_of(cgroups, path, file);
        self.0.entry((path.to_owned(), file)).or_insert_with(read).clone()
    }
}

/// The levels of the cgroup of that path and id, or of whichever is there; none: none is.
pub(super) fn read(
    cgroups: &CgroupFs,
    files: &mut Files,
    path: &str,
    id: Option<CgroupId>,
    resource: Resource,
) -> Option<Levels> {
    let directory = cgroups.open(path).ok();
    let found = directory.as_ref().and_then(|directory| directory.id().ok());
    let cgroup = id.or(found)?;
    let mut level = |path: &str, role| Level {
        path: Arc::from(if path.is_empty() { "/" } else { path }),
        role,
        reading: files.reading(cgroups, path, resource.file()),
    };
    let mut levels = Vec::new();
    let mut inner_id = None;
    if role(path) == LevelRole::Container
        && let Some(container) = &directory
        && let Some(inner) = inner(container)
    {
        levels.push(level(&format!("{path}/{}", inner.to_string_lossy()), LevelRole::Inner));
        inner_id = container.child(&inner).and_then(|inner| inner.id()).ok();
    }
    let own = levels.len();
    levels.extend(upwards(path).map(|path| level(path, role(path))));
    // Another cgroup by that name is not the requested one.
    let directory = directory.filter(|_| found == Some(cgroup));
    if directory.is_none() {
        levels[own].reading = Reading::Gone;
    }
    let number = |name| directory.as_ref().and_then(|directory| Amount::read(directory, name).number());
    let usage = match resource {
        Resource::Memory => number("memory.current"),
        Resource::Swap => number("memory.swap.current"),
        // More than `memory.high` is how that limit works: whoever takes it is slowed down.
        Resource::Cpu | Resource::CpuWeight | Resource::MemoryHigh => None,
    };
    Some(Levels { cgroup, levels, own, inner: inner_id, usage })
}

/// The name of the cgroup that crun makes inside a container's, for systemd to keep out of, and puts all of its processes into:
/// `container`, unless the annotation `run.oci.systemd.subgroup` says otherwise. What a workload makes for itself is none.
pub(crate) fn inner(container: &Directory) -> Option<CString> {
    // However many processes the workload has: the first is enough.
    let is_empty = |directory: &Directory| {
        directory.text_within("cgroup.procs", 1).is_ok_and(|members| members.trim().is_empty())
    };
    // A process here, and none of the cgroups below is the runtime's: the kernel would not have it give controllers to both.
    if !is_empty(container) {
        return None;
    }
    let is_unit = |name: &CString| UNITS.iter().any(|suffix| name.to_bytes().ends_with(suffix.as_bytes()));
    let below = container.entries().ok()?.into_iter().filter(|entry| entry.is_directory);
    let has_members = |name: &CString| container.child(name).is_ok_and(|directory| !is_empty(&directory));
    let names: Vec<_> = below.map(|entry| entry.name).filter(|name| !is_unit(name)).collect();
    if names.len() > LOOKED_AT {
        return None;
    }
    let mut names = names.into_iter().filter(has_members);
    match (names.next(), names.next()) {
        (Some(only), None) => Some(only),
        _ => None,
    }
}

/// The path of the pod's cgroup around a container's.
pub(super) fn pod_around(path: &str) -> Option<&str> {
    upwards(path).find(|path| matches!(classify(path), Placement::Pod(_)))
}

/// The path, its parent's, and so on to the root's, which is empty.
fn upwards(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path.trim_end_matches('/')), |path| {
        path.rfind('/').map(|slash| &path[..slash])
    })
}

fn role(path: &str) -> LevelRole {
    match classify(path) {
        Placement::Container(_) => LevelRole::Container,
        Placement::Inner { .. } => LevelRole::Inner,
        Placement::Pod(_) => LevelRole::Pod,
        Placement::Qos(_) => LevelRole::Qos,
        Placement::Kubepods => LevelRole::Kubepods,
        Placement::Other => LevelRole::Other,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use kwitness_core::model::{Bound, Value};

    use super::*;

    fn id_of(directory: &Path) -> CgroupId {
        Directory::open(directory).unwrap().id().unwrap()
    }

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn every_level_from_the_innermost_to_the_root_is_read() {
        let root = tempfile::tempdir().unwrap();
        let pod = "/kubepods/burstable/podu";
        let container = format!("{pod}/{ID}");
        // By whatever name crun was configured with.
        let inner = root.path().join(&format!("{container}/app")[1..]);
        fs::create_dir_all(&inner).unwrap();
        fs::write(inner.join("cgroup.procs"), "7\n").unwrap();
        fs::write(inner.parent().unwrap().join("cgroup.procs"), "").unwrap();
        fs::write(inner.join("memory.max"), "max\n").unwrap();
        let own = inner.parent().unwrap();
        fs::write(own.join("memory.max"), "4096\n").unwrap();
        fs::write(own.join("memory.current"), "100\n").unwrap();
        fs::write(root.path().join("kubepods/memory.max"), "8192\n").unwrap();
        let cgroups = CgroupFs::at(root.path());
        let id = id_of(own);

        let read = |path, id| super::read(&cgroups, &mut Files::default(), path, id, Resource::Memory);
        let read_all = read(&container, Some(id)).unwrap();
        let found: Vec<_> =
            read_all.levels.iter().map(|level| (level.role, level.reading.to_string())).collect();
        assert_eq!(
            found,
            [
                (LevelRole::Inner, "max".to_owned()),
                (LevelRole::Container, "4096".to_owned()),
                (LevelRole::Pod, "absent".to_owned()),
                (LevelRole::Qos, "absent".to_owned()),
                (LevelRole::Kubepods, "8192".to_owned()),
                (LevelRole::Other, "absent".to_owned()),
            ]
        );
        assert_eq!((read_all.own, read_all.usage), (1, Some(100)));
        assert_eq!(read_all.inner, Some(id_of(&inner)));
        assert_eq!(read_all.levels[1].reading, Reading::Is(Value::Bound(Bound::At(4096))));
        assert_eq!(&*read_all.levels[5].path, "/");

        let another = read(&container, Some(CgroupId(id.0 + 1_000_000))).unwrap();
        assert_eq!(another.levels[1].reading, Reading::Gone);
        let path = pod_around(&container).unwrap();
        assert_eq!((path, read(path, None).unwrap().cgroup), (pod, id_of(own.parent().unwrap())));
        assert!(read("/kubepods/burstable/podv", None).is_none());
    }

    #[test]
    fn only_the_runtimes_cgroup_within_a_containers_counts_as_its() {
        let root = tempfile::tempdir().unwrap();
        let container = root.path().join("scope");
        let make = |name: &str, members: &str| {
            let directory = if name.is_empty() { container.clone() } else { container.join(name) };
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("cgroup.procs"), members).unwrap();
        };
        make("", "");
        let inner = || {
            let found = super::inner(&Directory::open(&container).unwrap());
            found.map(|name| name.into_string().unwrap())
        };
        assert_eq!(inner(), None);
        make("init.scope", "1\n");
        make("system.slice", "9\n");
        assert_eq!(inner(), None, "a systemd in the container");
        make("exec", "");
        make("container", "7\n");
        assert_eq!(inner().as_deref(), Some("container"));
        make("another", "8\n");
        assert_eq!(inner(), None, "the workload's own");
        fs::remove_dir_all(container.join("another")).unwrap();
        let mut groups = (0..LOOKED_AT).map(|number| format!("group{number}"));
        groups.clone().for_each(|group| make(&group, ""));
        assert_eq!(inner(), None, "one of very many is the workload's");
        groups.try_for_each(|group| fs::remove_dir_all(container.join(group))).unwrap();
        assert_eq!(inner().as_deref(), Some("container"));
        make("", "6\n");
        assert_eq!(inner(), None, "the processes are here");
    }
}
