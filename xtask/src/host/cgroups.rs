//! The cgroups that a node leaves in this machine's hierarchies, found and removed.
//!
//! Touches only top-level cgroups by names that container runtimes and our tests use, and of the runtimes' only those
//! that were not there before the node: whatever else happens on this machine meanwhile is not ours.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// How the names of the top-level cgroups begin that container runtimes make for a node.
const RUNTIMES: &[&str] = &["k8s.io", "kubepods"];
/// How the names of those begin that nobody but our tests makes.
const TESTS: &[&str] = &["kwitness-"];
/// How long a killed process may keep its cgroup busy.
const PATIENCE: Duration = Duration::from_secs(5);

/// Removes what a node left that was killed before it could clean up; only while no other node runs.
pub fn remove_stale() -> Result<()> {
    named(TESTS)?.iter().try_for_each(|cgroup| remove(cgroup))
}

/// The top-level cgroups of such names that are there now, in all hierarchies.
pub fn present() -> Result<BTreeSet<PathBuf>> {
    let mut found = named(RUNTIMES)?;
    found.extend(named(TESTS)?);
    Ok(found)
}

fn named(starts: &[&str]) -> Result<BTreeSet<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    let mut found = BTreeSet::new();
    for hierarchy in hierarchies(&mounts) {
        for entry in fs::read_dir(hierarchy).with_context(|| format!("list {hierarchy}"))? {
            let entry = entry.with_context(|| format!("list {hierarchy}"))?;
            let name = entry.file_name();
            if starts.iter().any(|start| name.to_string_lossy().starts_with(start)) && entry.path().is_dir() {
                found.insert(entry.path());
            }
        }
    }
    Ok(found)
}

/// Removes those that are there now and were not `before`, with all below them; returns those that stay.
pub fn remove_new(before: &BTreeSet<PathBuf>) -> Result<Vec<PathBuf>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let new: Vec<PathBuf> = present()?.difference(before).cloned().collect();
        if new.is_empty() || Instant::now() >= deadline {
            return Ok(new);
        }
        for cgroup in &new {
            remove(cgroup)?;
        }
        if new.iter().any(|cgroup| cgroup.exists()) {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Removes a cgroup from its leaves up, as far as they are empty.
fn remove(cgroup: &Path) -> Result<()> {
    let entries = match fs::read_dir(cgroup) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("list {}", cgroup.display())),
    };
    for entry in entries {
        let entry = entry.with_context(|| format!("list {}", cgroup.display()))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path())?;
        }
    }
    // A busy one is tried again, and told of if it stays.
    _ = fs::remove_dir(cgroup);
    Ok(())
}

fn hierarchies(mounts: &str) -> impl Iterator<Item = &str> {
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
        assert_eq!(hierarchies(mounts).collect::<Vec<_>>(), ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/unified"]);
    }
}
