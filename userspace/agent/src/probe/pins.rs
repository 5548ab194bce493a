//! The kernel side's life beyond the daemon's: maps, programs and links, pinned in a BPF file system.
//!
//! ```text
//!            make            complete           the daemon ends
//!  nothing ──────▶ incomplete ───────▶ in use ─────────────────▶ left ──▶ uninstalled: nothing
//!                   │     │              ▲                        │  │
//!        the daemon │     │              └── a daemon starts ─────┘  │ other records, damaged, foreign
//!              ends │     └── found at a start ──▶ removed, reported ◀───┤
//!                   ▼                                    ▲            │ another layout of the same records
//!                nothing                                 └── old ◀────┘
//! ```
//!
//! Of a set with another layout, the daemon can read the records if they are the same, and the same facts about processes are in its
//! maps. Such a set is old: it is read on until the new one, which is attached beside it, has taken over (module `handover`). Until
//! then the new one is not complete: after a crash, the old one is read on by the next daemon.
//!
//! The daemon holds the links besides: pins that are removed while it runs cost what happens after its end, nothing before.
//!
//! A set is complete once the ledger says what was not recorded before it: whoever adopts it finds that there. Adopted, it stays as
//! it is.
//!
//! A set is a directory, named after its records and its layout: whatever makes maps or programs of two daemons different. Their
//! directory has nothing else in it, and is the daemon's user's alone, for a BPF file system lets every user make directories. What
//! no daemon can use stays attached, and is found (module `unread`).
//!
//! ```text
//!  DIRECTORY/                     locked by the daemon that uses it
//!    LAYOUT/maps/TRACKED …        every map that programs share
//!           programs/NAME         an attached program, for its statistics
//!           links/NAME            keeps that program attached
//!           complete              made last, removed first
//! ```
//!
//! Owns these paths, and when a set may be adopted or read on. Never reads a map, and never chooses a hook.

mod error;
mod layout;
#[cfg(test)]
mod tests;
mod unread;

use std::{
    ffi::CString,
    fmt,
    fs::{self, DirBuilder, File},
    io,
    os::{
        fd::{FromRawFd as _, OwnedFd, RawFd},
        unix::{ffi::OsStrExt as _, fs::DirBuilderExt as _},
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use aya::programs::{
    links::{FdLink, PinnedLink},
    loaded_links,
};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    libc,
    sys::statfs,
};

use super::{
    capability::{Capability, Hook, Tracepoints},
    environment::BPF_FS_MAGIC,
    settings::{ProbeLog, Settings},
};
use error::failed;
pub use error::{Flaw, Unpinned};
use kwitness_service::private;
use layout::{is_layout, layout};
pub use unread::{is_unread, unread};

/// Every map that programs share. Those of aya (`.rodata`, the log's ring) belong to one load.
pub(super) const MAPS: [&str; 20] = [
    "ANCESTORS",
    "BUDGETS",
    "COUNTERS",
    "EXITED",
    "FIRST_PROCESSES",
    "FORKS",
    "IN_FLIGHT",
    "LEVELS",
    "LIFECYCLE",
    "LIMIT_FILES",
    "LOST",
    "OOM_CONTEXTS",
    "OWN_WRITES",
    "READER_WAITS",
    "RING_SHARES",
    "ROOTS",
    "SCRATCH",
    "SHARES",
    "TASKS",
    "TRACKED",
];
/// The maps that are read of a set that is read on.
const READ_ON: [&str; 11] = [
    "ANCESTORS",
    "BUDGETS",
    "COUNTERS",
    "FIRST_PROCESSES",
    "FORKS",
    "LIFECYCLE",
    "LOST",
    "OWN_WRITES",
    "READER_WAITS",
    "TASKS",
    "TRACKED",
];
/// The directories of a set, in the order in which they are removed: programs are detached before their maps go.
const PARTS: [&str; 3] = ["links", "programs", "maps"];
const COMPLETE: &str = "complete";
const MODE: u32 = 0o700;
/// How long the kernel may take to detach a program: a grace period, and a turn of a work queue.
const DETACHED: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(1);
/// How long another process may have the lock that only looks whether a daemon has it.
const LOOKED_AT: Duration = Duration::from_millis(200);

/// Where the kernel side is pinned, locked for this process.
#[derive(Debug)]
pub struct Pins {
    directory: PathBuf,
    lock: Flock<File>,
}

/// The set that this process uses. One that is not complete at its end is removed.
#[derive(Debug)]
pub struct Set {
    paths: Paths,
    origin: Origin,
    is_complete: bool,
    old: Option<Old>,
    _lock: Flock<File>,
}

/// A set of another layout that an earlier daemon left, and that can be read on.
#[derive(Clone, Debug)]
pub(super) struct Old(Paths);

/// Where the parts of a set are.
#[derive(Clone, Debug)]
pub(super) struct Paths(PathBuf);

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
        let mut file = File::open(directory).map_err(|source| failed(directory, source))?;
        let deadline = Instant::now() + LOOKED_AT;
        loop {
            file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(Self { directory: directory.to_owned(), lock }),
                Err((file, Errno::EWOULDBLOCK)) if Instant::now() < deadline => file,
                Err((_, Errno::EWOULDBLOCK)) => {
                    return Err(Unpinned::InUse { directory: directory.to_owned() });
                }
                Err((_, errno)) => return Err(failed(directory, errno.into())),
            };
            thread::sleep(LOOK);
        }
    }

    /// The set of that layout: as it was left, or with nothing in it. Every other one is removed, but for one that can be read on.
    pub fn take(self, layout: &str) -> Result<Set, Unpinned> {
        let path = self.directory.join(layout);
        let mut found = Vec::new();
        for set in sets(&self.directory)? {
            let flaw = if set == path { flaw(&set, &MAPS)? } else { Some(flaw_of_other(&set, layout)?) };
            found.push((set, flaw));
        }
        let is_adopted = found.iter().any(|(_, flaw)| flaw.is_none());
        let mut readable = found.iter().filter(|(_, flaw)| *flaw == Some(Flaw::OtherLayout));
        // Which of two is the newer, nothing says; what an adopted set has taken over is done with.
        let old = match (is_adopted, readable.next(), readable.next()) {
            (false, Some((set, _)), None) => Some(Old(Paths(set.clone()))),
            _ => None,
        };
        let is_old = |set: &PathBuf| old.as_ref().is_some_and(|Old(paths)| paths.0 == *set);
        let mut replaced = Vec::new();
        for (set, flaw) in found {
            if let Some(flaw) = flaw.filter(|_| !is_old(&set)) {
                remove(&set)?;
                replaced.push((name(&set), flaw));
            }
        }
        let origin = if is_adopted {
            Origin::Adopted
        } else {
            make_directory(&path)?;
            PARTS.iter().try_for_each(|part| make_directory(&path.join(part)))?;
            Origin::Made { replaced }
        };
        Ok(Set { paths: Paths(path), origin, is_complete: is_adopted, old, _lock: self.lock })
    }

    /// Removes every set, and the directory if there is nothing else in it; the names of what was removed.
    pub fn uninstall(self) -> Result<Vec<String>, Unpinned> {
        let (found, others) = entries(&self.directory)?;
        found.iter().try_for_each(|set| remove(set))?;
        if others.is_empty() {
            fs::remove_dir(&self.directory).map_err(|source| failed(&self.directory, source))?;
        }
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
    sets(directory)?.iter().map(|set| Ok((name(set), flaw(set, &MAPS)?))).collect()
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
        &self.paths.0
    }

    pub(super) fn paths(&self) -> &Paths {
        &self.paths
    }

    /// The set that is to be read on until this one has taken over.
    pub(super) fn take_old(&mut self) -> Option<Old> {
        self.old.take()
    }

    /// From now on it may be adopted.
    pub(super) fn complete(&mut self) -> Result<(), Unpinned> {
        make_directory(&self.path().join(COMPLETE))?;
        self.is_complete = true;
        Ok(())
    }
}

impl Drop for Set {
    fn drop(&mut self) {
        if !self.is_complete
            && let Err(error) = remove(self.path())
        {
            tracing::warn!(set = %self.path().display(), %error, "cannot remove what is pinned");
        }
    }
}

impl Old {
    pub(super) fn paths(&self) -> &Paths {
        &self.0
    }

    /// Removes it: it has been read.
    pub(super) fn remove(self) -> Result<(), Unpinned> {
        remove(&self.0.0)
    }
}

impl Paths {
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.0.join("maps").join(name)
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.0.join("programs").join(name)
    }

    pub(super) fn link(&self, program: &str) -> PathBuf {
        self.0.join("links").join(program)
    }

    /// The hook that serves a capability by pinned links already.
    pub(super) fn hook(&self, capability: &Capability, tracepoints: Tracepoints) -> Option<Hook> {
        let is_pinned =
            |name: &str| [self.link(name), self.program(name)].iter().all(|pin| object(pin).is_ok());
        capability.hooks_in_order(tracepoints).into_iter().find(|hook| hook.programs().all(is_pinned))
    }

    /// Removes what is pinned of a program: it is detached, unless this process holds it.
    pub(super) fn forget(&self, program: &str) {
        for path in [self.link(program), self.program(program)] {
            // One that was not pinned needs no removing.
            let _ = fs::remove_file(path);
        }
    }

    /// The same, and waits until the kernel has detached it, which it does some time after the pin is gone: beside the program that
    /// takes its place, it would record everything a second time.
    pub(super) fn detach(&self, program: &str) {
        let link = PinnedLink::from_pin(self.link(program)).and_then(|link| FdLink::from(link).info());
        self.forget(program);
        let Ok(link) = link else { return };
        let is_attached = || loaded_links().any(|other| other.is_ok_and(|other| other.id() == link.id()));
        let deadline = Instant::now() + DETACHED;
        while is_attached() {
            if Instant::now() > deadline {
                tracing::warn!(program, "an earlier program is still attached: what it records comes twice");
                return;
            }
            thread::sleep(LOOK);
        }
    }
}

impl fmt::Display for Paths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.display())
    }
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
    let (sets, others) = entries(directory)?;
    match others.into_iter().next() {
        Some(path) => Err(Unpinned::NotOurs { path }),
        None => Ok(sets),
    }
}

/// The sets in `directory`, and what else is there; sorted.
fn entries(directory: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), Unpinned> {
    let read = || -> io::Result<Vec<PathBuf>> {
        let mut found =
            fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        found.sort();
        Ok(found)
    };
    let found = read().map_err(|source| failed(directory, source))?;
    Ok(found.into_iter().partition(|path| path.file_name().is_some_and(is_layout)))
}

fn is_there(directory: &Path) -> Result<bool, Unpinned> {
    directory.try_exists().map_err(|source| failed(directory, source))
}

/// Why a set cannot be used, which has to have these maps.
fn flaw(set: &Path, maps: &[&'static str]) -> Result<Option<Flaw>, Unpinned> {
    let foreign = private::foreign(set).map_err(|source| failed(set, source))?;
    Ok(if let Some(foreign) = foreign {
        Some(Flaw::Foreign(foreign))
    } else if !set.join(COMPLETE).exists() {
        Some(Flaw::HalfMade)
    } else {
        let is_missing = |map: &&str| !set.join("maps").join(map).is_file();
        maps.iter().copied().find(is_missing).map(Flaw::MissingMap)
    })
}

/// Why a set of another layout than that one is not adopted.
fn flaw_of_other(set: &Path, layout: &str) -> Result<Flaw, Unpinned> {
    let other =
        if layout::has_same_records(&name(set), layout) { Flaw::OtherLayout } else { Flaw::OtherRecords };
    Ok(flaw(set, &READ_ON)?.unwrap_or(other))
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

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
