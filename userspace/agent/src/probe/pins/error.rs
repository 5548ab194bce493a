//! Why nothing is pinned, and why what is pinned is not used, each with what to do next.

use std::io;
use std::path::{Path, PathBuf};

use kwitness_service::private::Foreign;

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
    #[error("{} is in no BPF file system", directory.display())]
    NoBpffs {
        /// Where sets were to be pinned.
        directory: PathBuf,
    },
    /// Another user owns the directory, or may do something with it.
    #[error("{} has unsafe ownership or mode: {foreign}", directory.display())]
    Foreign {
        /// Where sets were to be pinned.
        directory: PathBuf,
        /// Whose it is.
        foreign: Foreign,
    },
    /// The directory has something in it that is no set.
    #[error("{} was not created by kwitness", path.display())]
    NotOurs {
        /// What is there.
        path: PathBuf,
    },
    /// Another daemon's pins are there.
    #[error("another daemon uses {}", directory.display())]
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

impl Unpinned {
    /// What to do next; none: it is as configured, or nothing is known to help.
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::NoBpffs { .. } => Some("mount -t bpf bpf /sys/fs/bpf"),
            Self::Foreign { .. } => Some("remove it, or set another kernel.pin_directory"),
            Self::NotOurs { .. } => Some("remove it, or set kernel.pin_directory to a directory of its own"),
            Self::InUse { .. } => Some("stop that daemon first, or give each its own kernel.pin_directory"),
            Self::Off | Self::Logging | Self::Io { .. } => None,
        }
    }
}

/// Why a set cannot be adopted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// It is not the daemon's user's alone: its content is not to be trusted.
    #[error(transparent)]
    Foreign(Foreign),
    /// A daemon was killed while it made or removed it.
    #[error("it is incomplete")]
    HalfMade,
    /// A pin is missing.
    #[error("its map {0} is missing")]
    MissingMap(&'static str),
    /// Another release's, or one with other settings.
    #[error("it has another layout")]
    OtherLayout,
    /// Another release's, whose records mean something else.
    #[error("its record format is from another release")]
    OtherRecords,
}

/// The file system refused something there.
pub(super) fn failed(path: &Path, source: io::Error) -> Unpinned {
    Unpinned::Io { path: path.to_owned(), source }
}
