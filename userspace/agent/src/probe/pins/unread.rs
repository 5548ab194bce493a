//! Pinned programs that no daemon reads: of another `kernel.pin_directory`, or of one that cannot be used any more. They are attached
//! as long as they are pinned, so that the kernel runs them beside those of the daemon that reads its own.
//!
//! A directory of sets is locked by the daemon that uses it: one that can be locked has no reader. Never changes anything.

use std::collections::BTreeSet;
use std::fs::{self, DirEntry, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use super::{check_file_system, layout::is_layout};
use crate::probe::capability::{CAPABILITIES, Hook};
use kwitness_service::private;

/// Where systemd mounts a BPF file system.
const BPF_FS: &str = "/sys/fs/bpf";
/// Levels of directories that are looked at, and entries of all of them: others pin things there, too. What is beyond is not found.
const LEVELS: usize = 4;
const ENTRIES: usize = 16_384;

/// The directories of sets with attached programs that no daemon reads: in the BPF file system of `directory`, and in the usual one.
pub fn unread(directory: &Path) -> Vec<PathBuf> {
    let roots: BTreeSet<_> = [directory, Path::new(BPF_FS)].into_iter().filter_map(root).collect();
    roots.iter().flat_map(|root| unread_below(root)).collect()
}

/// Where the BPF file system of a directory is mounted, if it is in one.
fn root(directory: &Path) -> Option<PathBuf> {
    check_file_system(directory).ok()?;
    let existing = directory.ancestors().find(|path| path.exists())?;
    let device = |path: &Path| fs::metadata(path).ok().map(|found| found.dev());
    let is_within = |path: &&Path| device(path).is_some() && device(path) == device(existing);
    existing.ancestors().take_while(is_within).last().map(Path::to_owned)
}

pub(super) fn unread_below(root: &Path) -> Vec<PathBuf> {
    let (mut found, mut left) = (BTreeSet::new(), ENTRIES);
    let mut waiting = vec![(root.to_owned(), 1)];
    while let Some((directory, level)) = waiting.pop() {
        for path in directories(&directory, &mut left) {
            if is_attached_set(&path) {
                found.insert(directory.clone());
            } else if level < LEVELS {
                waiting.push((path, level + 1));
            }
        }
    }
    found.into_iter().filter(|directory| !is_locked(directory)).collect()
}

/// Whether there are such sets in that directory.
pub fn is_unread(directory: &Path) -> bool {
    let mut left = ENTRIES;
    directories(directory, &mut left).iter().any(|path| is_attached_set(path)) && !is_locked(directory)
}

/// The directories in one, as long as entries are left. One that cannot be read has none that matter: sets are the daemon's user's.
fn directories(directory: &Path, left: &mut usize) -> Vec<PathBuf> {
    let mut directories = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().map_while(io::Result::ok) {
        let Some(less) = left.checked_sub(1) else { break };
        *left = less;
        directories.extend(entry.file_type().is_ok_and(|of| of.is_dir()).then(|| entry.path()));
    }
    directories
}

/// Whether it is a set of which a program is attached. A link is pinned as long as it is listed.
fn is_attached_set(set: &Path) -> bool {
    let is_ours = |link: &DirEntry| {
        let mut programs =
            CAPABILITIES.iter().flat_map(|capability| capability.hooks).flat_map(Hook::programs);
        programs.any(|program| link.file_name() == *program)
    };
    // What another user has put there is nothing that a daemon has left.
    set.file_name().is_some_and(is_layout)
        && matches!(private::foreign(set), Ok(None))
        && fs::read_dir(set.join("links")).is_ok_and(|links| links.flatten().any(|link| is_ours(&link)))
}

/// Whether a daemon uses the sets in it; or may, if the directory cannot be opened. For that moment, it is locked here: whoever locks it
/// tries more than once.
fn is_locked(directory: &Path) -> bool {
    File::open(directory).map_or(true, |file| Flock::lock(file, FlockArg::LockSharedNonblock).is_err())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_locked_has_no_reader() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        assert!(!is_locked(path));
        let _lock = Flock::lock(File::open(path).unwrap(), FlockArg::LockExclusiveNonblock).unwrap();
        assert!(is_locked(path));
        assert!(is_locked(&path.join("removed")), "it cannot be opened");
    }
}
