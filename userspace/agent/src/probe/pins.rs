//! The kernel side's life beyond the daemon's: maps, programs and links, pinned in a BPF file system.
//!
//! ```text
//!            make            complete           the daemon ends
//!  nothing ──────▶ half made ────────▶ in use ─────────────────▶ left ──▶ uninstalled: nothing
//!                   │     │              ▲                        │  │
//!        the daemon │     │              └── a daemon starts ─────┘  │ another layout, damaged, foreign
//!              ends │     └── found at a start ──▶ removed, reported ◀───┘
//!                   ▼
//!                nothing
//! ```
//!
//! The daemon holds the links besides: pins that are removed while it runs cost what happens after its end, nothing before.
//!
//! A set is complete once the ledger says what was not recorded before it: whoever adopts it finds that there. Adopted, it stays as
//! it is.
//!
//! A set is a directory, named after its layout: whatever makes maps or programs of two daemons different. Their directory has
//! nothing else in it, and is the daemon's user's alone, for a BPF file system lets every user make directories.
//!
//! ```text
//!  DIRECTORY/                     locked by the daemon that uses it
//!    LAYOUT/maps/TRACKED …        every map that programs share
//!           programs/NAME         an attached program, for its statistics
//!           links/NAME            keeps that program attached
//!           complete              made last, removed first
//! ```
//!
//! Owns these paths, and when a set may be adopted. Never reads a map, and never chooses a hook.

use std::{
    collections::hash_map::DefaultHasher,
    ffi::{CString, OsStr},
    fs::{self, DirBuilder, File},
    hash::{Hash as _, Hasher as _},
    io,
    os::{
        fd::{FromRawFd as _, OwnedFd, RawFd},
        unix::{ffi::OsStrExt as _, fs::DirBuilderExt as _},
    },
    path::{Path, PathBuf},
};

use kwitness_core::model::LimitFile;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    libc,
    sys::statfs,
};

use super::{
    capability::{Capability, Hook, Tracepoints},
    counters,
    environment::BPF_FS_MAGIC,
    object::OBJECT,
    settings::{MAX_ROOTS, ProbeLog, Settings},
};
use crate::private::{self, Foreign};

/// Changes whenever what is pinned changes its meaning in another way than the layout shows.
const FORMAT: u32 = 1;
/// Every map that programs share. Those of aya (`.rodata`, the log's ring) belong to one load.
pub(super) const MAPS: [&str; 16] = [
    "ANCESTORS",
    "BUDGETS",
    "COUNTERS",
    "EXITED",
    "FIRST_PROCESSES",
    "FORKS",
    "IN_FLIGHT",
    "LIFECYCLE",
    "LIMIT_FILES",
    "OOM_CONTEXTS",
    "OWN_WRITES",
    "READER_WAITS",
    "ROOTS",
    "SCRATCH",
    "TASKS",
    "TRACKED",
];
/// The directories of a set, in the order in which they are removed: programs are detached before their maps go.
const PARTS: [&str; 3] = ["links", "programs", "maps"];
const COMPLETE: &str = "complete";
const MODE: u32 = 0o700;
/// Hexadecimal digits in the name of a layout.
const LAYOUT_DIGITS: usize = 16;

/// Why nothing is pinned: the kernel side ends with the daemon.
#[derive(Debug, thiserror::Error)]
pub enum Unpinned {
    /// Configured so.
    #[error("kernel.pin is \"off\"")]
    Off,
    /// Programs that log are loaded for diagnostics, and end with the daemon that reads the log.
    #[error("kernel.log is on")]
    Logging,
    /// There is no BPF file system.
    #[error("{} is in no BPF file system. Remedy: mount -t bpf bpf /sys/fs/bpf", directory.display())]
    NoBpffs {
        /// Where sets were to be pinned.
        directory: PathBuf,
    },
    /// Another user owns the directory, or may do something with it.
    #[error("{} is not to be trusted: {foreign}. Remedy: remove it, or set another kernel.pin_directory", directory.display())]
    Foreign {
        /// Where sets were to be pinned.
        directory: PathBuf,
        /// Whose it is.
        foreign: Foreign,
    },
    /// The directory has something in it that is no set.
    #[error("{} is none of kwitness's. Remedy: set kernel.pin_directory to a directory of its own", path.display())]
    NotOurs {
        /// What is there.
        path: PathBuf,
    },
    /// Another daemon's pins are there.
    #[error("another daemon uses {}. Remedy: give each its own kernel.pin_directory", directory.display())]
    InUse {
        /// Where sets were to be pinned.
        directory: PathBuf,
    },
    /// The file system refused something.
    #[error("cannot use {}", path.display())]
    Io {
        /// What was to be made, read or removed.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
}

/// Why a set cannot be adopted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// It is not the daemon's user's alone: its content is not to be trusted.
    #[error(transparent)]
    Foreign(Foreign),
    /// A daemon was killed while it made or removed it.
    #[error("it is half made")]
    HalfMade,
    /// A pin is missing.
    #[error("its map {0} is missing")]
    MissingMap(&'static str),
    /// Another release's, or one with other settings.
    #[error("it has another layout")]
    OtherLayout,
}

/// Where the kernel side is pinned, locked for this process.
#[derive(Debug)]
pub struct Pins {
    directory: PathBuf,
    lock: Flock<File>,
}

/// The set that this process uses. One that is not complete at its end is removed.
#[derive(Debug)]
pub struct Set {
    path: PathBuf,
    origin: Origin,
    is_complete: bool,
    _lock: Flock<File>,
}

/// Where a set comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This process makes it. Instead of these, by name and flaw.
    Made {
        /// What was found and removed.
        replaced: Vec<(String, Flaw)>,
    },
    /// An earlier daemon left it.
    Adopted,
}

impl Pins {
    /// Makes the directory if it is missing, and locks it.
    pub fn open(directory: &Path) -> Result<Self, Unpinned> {
        check_file_system(directory)?;
        make_directory(directory)?;
        if let Some(foreign) = private::foreign(directory).map_err(|source| failed(directory, source))? {
            return Err(Unpinned::Foreign { directory: directory.to_owned(), foreign });
        }
        let file = File::open(directory).map_err(|source| failed(directory, source))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self { directory: directory.to_owned(), lock }),
            Err((_, Errno::EWOULDBLOCK)) => Err(Unpinned::InUse { directory: directory.to_owned() }),
            Err((_, errno)) => Err(failed(directory, errno.into())),
        }
    }

    /// The set of that layout: as it was left, or with nothing in it. Every other one is removed.
    pub fn take(self, layout: &str) -> Result<Set, Unpinned> {
        let path = self.directory.join(layout);
        let mut replaced = Vec::new();
        let mut origin = None;
        for found in sets(&self.directory)? {
            let flaw = if found != path { Some(Flaw::OtherLayout) } else { flaw(&found)? };
            match flaw {
                None => origin = Some(Origin::Adopted),
                Some(flaw) => {
                    remove(&found)?;
                    replaced.push((name(&found), flaw));
                }
            }
        }
        let is_complete = origin.is_some();
        let origin = match origin {
            Some(origin) => origin,
            None => {
                make_directory(&path)?;
                PARTS.iter().try_for_each(|part| make_directory(&path.join(part)))?;
                Origin::Made { replaced }
            }
        };
        Ok(Set { path, origin, is_complete, _lock: self.lock })
    }

    /// Removes every set, and the directory; the names of what was removed.
    pub fn uninstall(self) -> Result<Vec<String>, Unpinned> {
        let found = sets(&self.directory)?;
        found.iter().try_for_each(|set| remove(set))?;
        fs::remove_dir(&self.directory).map_err(|source| failed(&self.directory, source))?;
        Ok(found.iter().map(|set| name(set)).collect())
    }
}

/// Removes whatever an earlier daemon left in `directory`, and the directory; the names of the sets. Nothing, if it is not there.
pub fn uninstall(directory: &Path) -> Result<Vec<String>, Unpinned> {
    if is_there(directory)? { Pins::open(directory)?.uninstall() } else { Ok(Vec::new()) }
}

/// The sets in `directory`, each with why it cannot be adopted, if so. Changes nothing.
pub fn found(directory: &Path) -> Result<Vec<(String, Option<Flaw>)>, Unpinned> {
    if !is_there(directory)? {
        return Ok(Vec::new());
    }
    sets(directory)?.iter().map(|set| Ok((name(set), flaw(set)?))).collect()
}

/// Whether something can be pinned in that directory, by its file system.
pub fn check_file_system(directory: &Path) -> Result<(), Unpinned> {
    let existing = directory.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    match statfs::statfs(existing).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC) {
        true => Ok(()),
        false => Err(Unpinned::NoBpffs { directory: directory.to_owned() }),
    }
}

impl Set {
    /// Where it comes from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.path.join("maps").join(name)
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.path.join("programs").join(name)
    }

    pub(super) fn link(&self, program: &str) -> PathBuf {
        self.path.join("links").join(program)
    }

    /// The hook that serves a capability by pinned links already.
    pub(super) fn hook(&self, capability: &Capability, tracepoints: Tracepoints) -> Option<Hook> {
        let is_pinned = |name: &str| self.link(name).exists() && self.program(name).exists();
        capability.hooks_in_order(tracepoints).into_iter().find(|hook| hook.programs().all(is_pinned))
    }

    /// Removes what is pinned of a program: it is detached, unless this process holds it.
    pub(super) fn forget(&self, program: &str) {
        for path in [self.link(program), self.program(program)] {
            // One that was not pinned needs no removing.
            let _ = fs::remove_file(path);
        }
    }

    /// From now on it may be adopted.
    pub(super) fn complete(&mut self) -> Result<(), Unpinned> {
        make_directory(&self.path.join(COMPLETE))?;
        self.is_complete = true;
        Ok(())
    }
}

impl Drop for Set {
    fn drop(&mut self) {
        if !self.is_complete
            && let Err(error) = remove(&self.path)
        {
            tracing::warn!(set = %self.path.display(), %error, "cannot remove what is pinned");
        }
    }
}

/// The name of the layout of these settings.
///
/// The hash need not be the same in every release: another name costs a set, never an event that is read wrongly.
pub(super) fn layout(settings: &Settings) -> io::Result<String> {
    let Settings {
        lifecycle_ring,
        tasks_ring,
        forks_ring,
        tracked_capacity,
        subtree,
        roots,
        exclude,
        syscalls,
        log: _,
        lock_file,
        pins: _,
    } = settings;
    let mut hasher = DefaultHasher::new();
    (FORMAT, OBJECT, counters::elements()?, MAX_ROOTS).hash(&mut hasher);
    (lifecycle_ring, tasks_ring, forks_ring, tracked_capacity, subtree).hash(&mut hasher);
    // What the daemon of another socket has read is in that one's ledger alone.
    (roots, exclude, syscalls, lock_file).hash(&mut hasher);
    LimitFile::all().for_each(|file| (file.number(), file.to_string()).hash(&mut hasher));
    Ok(format!("{:0LAYOUT_DIGITS$x}", hasher.finish()))
}

/// Takes the set of these settings.
pub(super) fn take(settings: &Settings) -> Result<Set, Unpinned> {
    let directory = settings.pins.as_deref().ok_or(Unpinned::Off)?;
    if settings.log != ProbeLog::Off {
        return Err(Unpinned::Logging);
    }
    let layout = layout(settings).map_err(|source| failed(directory, source))?;
    Pins::open(directory)?.take(&layout)
}

/// The descriptor of what is pinned there.
pub(super) fn object(path: &Path) -> io::Result<OwnedFd> {
    /// `BPF_OBJ_GET` of `enum bpf_cmd` in `include/uapi/linux/bpf.h`.
    const BPF_OBJ_GET: libc::c_int = 7;
    /// The part of `union bpf_attr` for that command.
    #[repr(C)]
    struct Attributes {
        pathname: u64,
        bpf_fd: u32,
        file_flags: u32,
    }
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attributes = Attributes { pathname: path.as_ptr().addr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: the attributes are of the size that is given, and the path in them ends with a NUL; both outlive the call.
    let fd =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw const attributes, size_of::<Attributes>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just opened it, for this call alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The sets in `directory`, sorted; an error if anything else is there.
fn sets(directory: &Path) -> Result<Vec<PathBuf>, Unpinned> {
    let read = || -> io::Result<Vec<PathBuf>> {
        let mut found =
            fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        found.sort();
        Ok(found)
    };
    let found = read().map_err(|source| failed(directory, source))?;
    match found.iter().find(|path| !path.file_name().is_some_and(is_layout)) {
        Some(other) => Err(Unpinned::NotOurs { path: other.clone() }),
        None => Ok(found),
    }
}

/// Whether it may be the name of a [`layout`].
fn is_layout(name: &OsStr) -> bool {
    name.len() == LAYOUT_DIGITS && name.as_bytes().iter().all(u8::is_ascii_hexdigit)
}

fn is_there(directory: &Path) -> Result<bool, Unpinned> {
    directory.try_exists().map_err(|source| failed(directory, source))
}

fn flaw(set: &Path) -> Result<Option<Flaw>, Unpinned> {
    let foreign = private::foreign(set).map_err(|source| failed(set, source))?;
    Ok(if let Some(foreign) = foreign {
        Some(Flaw::Foreign(foreign))
    } else if !set.join(COMPLETE).exists() {
        Some(Flaw::HalfMade)
    } else {
        MAPS.into_iter().find(|map| !set.join("maps").join(map).exists()).map(Flaw::MissingMap)
    })
}

/// Takes a set away. That it is complete no longer holds from the first step on.
fn remove(set: &Path) -> Result<(), Unpinned> {
    if !fs::symlink_metadata(set).map_err(|source| failed(set, source))?.is_dir() {
        return fs::remove_file(set).map_err(|source| failed(set, source));
    }
    let parts = [COMPLETE].into_iter().chain(PARTS).map(|part| set.join(part));
    for part in parts.filter(|part| part.exists()) {
        fs::remove_dir_all(&part).map_err(|source| failed(&part, source))?;
    }
    fs::remove_dir_all(set).map_err(|source| failed(set, source))
}

fn make_directory(path: &Path) -> Result<(), Unpinned> {
    match DirBuilder::new().mode(MODE).create(path) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => Err(failed(path, source)),
        _ => Ok(()),
    }
}

fn failed(path: &Path, source: io::Error) -> Unpinned {
    Unpinned::Io { path: path.to_owned(), source }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn set(directory: &Path, name: &str) -> PathBuf {
        let set = directory.join(name);
        DirBuilder::new().mode(MODE).create(&set).unwrap();
        for part in PARTS.into_iter().chain([COMPLETE]) {
            fs::create_dir(set.join(part)).unwrap();
        }
        MAPS.iter().for_each(|map| fs::write(set.join("maps").join(map), "").unwrap());
        set
    }

    #[test]
    fn what_makes_maps_different_makes_another_layout() {
        let settings = Settings::default();
        let name = layout(&settings).unwrap();
        assert_eq!(layout(&settings).unwrap(), name);
        let size = NonZeroU32::new(1 << 16).unwrap();
        for other in [
            Settings { tasks_ring: size, ..settings.clone() },
            Settings { roots: vec!["docker-".parse().unwrap()], ..settings.clone() },
            Settings { subtree: 7, ..settings.clone() },
            Settings { exclude: vec!["raw_tp".parse().unwrap()], ..settings.clone() },
            Settings { lock_file: Some("/y".into()), ..settings.clone() },
        ] {
            assert_ne!(layout(&other).unwrap(), name, "{other:?}");
        }
        let elsewhere = Settings { pins: Some("/x".into()), ..settings };
        assert_eq!(layout(&elsewhere).unwrap(), name);
    }

    #[test]
    fn a_set_is_adopted_only_if_it_is_whole_and_ours_alone() {
        let directory = tempfile::tempdir().unwrap();
        let set = set(directory.path(), "0123456789abcdef");
        assert_eq!(flaw(&set).unwrap(), None);
        fs::set_permissions(&set, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(flaw(&set).unwrap(), Some(Flaw::Foreign(Foreign { mode: 0o755, .. }))));
        fs::set_permissions(&set, fs::Permissions::from_mode(MODE)).unwrap();
        fs::remove_file(set.join("maps/TASKS")).unwrap();
        assert_eq!(flaw(&set).unwrap(), Some(Flaw::MissingMap("TASKS")));
        fs::remove_dir(set.join(COMPLETE)).unwrap();
        assert_eq!(flaw(&set).unwrap(), Some(Flaw::HalfMade));
        remove(&set).unwrap();
        assert!(sets(directory.path()).unwrap().is_empty());
    }

    #[test]
    fn every_map_that_programs_share_is_pinned() {
        let object = aya_obj::Object::parse(OBJECT).unwrap();
        let is_of_one_load = |name: &&str| name.starts_with('.') || *name == "AYA_LOGS";
        let shared = object.maps.keys().map(String::as_str).filter(|name| !is_of_one_load(name));
        let mut shared: Vec<_> = shared.collect();
        shared.sort_unstable();
        assert_eq!(shared, MAPS);
    }

    #[test]
    fn what_is_no_set_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        set(directory.path(), "0123456789abcdef");
        assert_eq!(sets(directory.path()).unwrap().len(), 1);
        let other = directory.path().join("cilium");
        fs::create_dir(&other).unwrap();
        let refused = sets(directory.path()).unwrap_err();
        assert!(matches!(&refused, Unpinned::NotOurs { path } if *path == other), "{refused}");
    }

    #[test]
    fn pins_need_a_bpf_file_system() {
        let directory = tempfile::tempdir().unwrap();
        let refused = Pins::open(&directory.path().join("kwitness")).unwrap_err();
        assert!(matches!(refused, Unpinned::NoBpffs { .. }), "{refused}");
    }
}
