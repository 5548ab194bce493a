//! The cgroups of a node on this machine's kernel: everything that its tests make lies below one cgroup of its own, which is
//! removed when the node ends.
//!
//! Never touches a cgroup that this node did not make. Another kubelet, container runtime or test run on this machine keeps
//! all of its own, by whatever name.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

/// How the name of a node's cgroup begins; its process id follows.
const PREFIX: &str = "kwitness-test-";
/// Where containerd puts containers whose pod names no parent cgroup, as critest's do.
const WITHOUT_PARENT: &str = "k8s.io";
/// How long a killed process may keep its cgroup busy.
const PATIENCE: Duration = Duration::from_secs(5);

pub struct Cgroups {
    name: String,
    /// Those of [`WITHOUT_PARENT`] that were missing, and that we made: only these go again, and only if they are empty.
    shared: Vec<PathBuf>,
}

impl Cgroups {
    /// Makes them, and removes what earlier nodes left that were killed before they could.
    pub fn make() -> Result<Self> {
        let name = format!("{PREFIX}{}", std::process::id());
        let mut shared = Vec::new();
        for hierarchy in hierarchies()? {
            remove_stale(&hierarchy)?;
            let own = hierarchy.join(&name);
            fs::create_dir(&own).with_context(|| format!("make {}", own.display()))?;
            let other = hierarchy.join(WITHOUT_PARENT);
            match fs::create_dir(&other) {
                Ok(()) => shared.push(other),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).with_context(|| format!("make {}", other.display())),
            }
        }
        Ok(Self { name, shared })
    }

    /// The path from a hierarchy's root of the cgroup for everything that the node makes.
    pub fn path(&self) -> String {
        format!("/{}", self.name)
    }

    /// Removes what this node made; returns what stays, because it is still in use.
    pub fn remove(self) -> Result<Vec<PathBuf>> {
        let own = hierarchies()?.into_iter().map(|hierarchy| hierarchy.join(&self.name));
        let mut left: Vec<_> = own.collect();
        let deadline = Instant::now() + PATIENCE;
        loop {
            left.iter().try_for_each(|cgroup| remove_tree(cgroup))?;
            left.retain(|cgroup| cgroup.exists());
            if left.is_empty() || Instant::now() >= deadline {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        // Whoever has put something in there since relies on it.
        left.extend(self.shared.into_iter().filter(
            |cgroup| matches!(fs::remove_dir(cgroup), Err(error) if error.kind() != ErrorKind::NotFound),
        ));
        Ok(left)
    }
}

/// Removes the cgroups in a hierarchy of nodes whose process is gone.
fn remove_stale(hierarchy: &Path) -> Result<()> {
    for entry in fs::read_dir(hierarchy).with_context(|| format!("list {}", hierarchy.display()))? {
        let entry = entry.with_context(|| format!("list {}", hierarchy.display()))?;
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse().ok());
        if owner.is_some_and(|pid| kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH)) {
            remove_tree(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes a cgroup from its leaves up, as far as they have no processes.
fn remove_tree(cgroup: &Path) -> Result<()> {
    let entries = match fs::read_dir(cgroup) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("list {}", cgroup.display())),
    };
    for entry in entries {
        let entry = entry.with_context(|| format!("list {}", cgroup.display()))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    // A busy one stays; the caller tries again or reports it.
    _ = fs::remove_dir(cgroup);
    Ok(())
}

fn hierarchies() -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    Ok(cgroup_mounts(&mounts).map(PathBuf::from).collect())
}

fn cgroup_mounts(mounts: &str) -> impl Iterator<Item = &str> {
    mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (target, kind) = (fields.next()?, fields.next()?);
        matches!(kind, "cgroup" | "cgroup2").then_some(target)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_hierarchy_count() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(
            cgroup_mounts(mounts).collect::<Vec<_>>(),
            ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/unified"]
        );
    }

    /// On a directory tree that looks like a hierarchy: what is removed is decided by names and by process ids.
    #[test]
    fn only_cgroups_of_dead_nodes_are_stale() {
        let hierarchy = tempfile::tempdir().unwrap();
        let mut ended = std::process::Command::new("true").spawn().unwrap();
        let dead = format!("{PREFIX}{}", ended.id());
        ended.wait().unwrap();
        let alive = format!("{PREFIX}{}", std::process::id());
        let kept = ["kubepods", "kubepods.slice", "k8s.io", "kwitness-agent", "kwitness-test-x", &alive];
        for name in kept.into_iter().chain([dead.as_str()]) {
            fs::create_dir_all(hierarchy.path().join(name).join("inner")).unwrap();
        }
        remove_stale(hierarchy.path()).unwrap();
        for name in kept {
            assert!(hierarchy.path().join(name).join("inner").exists(), "{name} was removed");
        }
        assert!(!hierarchy.path().join(&dead).exists());
    }
}
