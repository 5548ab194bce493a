//! Why a ledger is not continued. Decides nothing: the caller does.

use std::io;
use std::path::PathBuf;

use kwitness_service::private::Foreign;

/// Why the ledger of an earlier daemon is not used. A new epoch begins.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("{} cannot be read", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} has unsafe ownership or mode: {foreign}", path.display())]
    Foreign { path: PathBuf, foreign: Foreign },
    #[error("{} is not a ledger of this release", path.display())]
    OtherFormat { path: PathBuf },
    #[error("{} is truncated, or from another release: {what}", path.display())]
    Torn { path: PathBuf, what: String },
    #[error("{} was written before the last reboot", path.display())]
    OtherBoot { path: PathBuf },
    #[error("{} was written with another kernel.tracked_capacity", path.display())]
    OtherBounds { path: PathBuf },
    #[error("{} does not belong to the pinned programs: another daemon may have read their records meanwhile", path.display())]
    OtherSet { path: PathBuf },
    #[error("{} replays to event {replayed}, expected {written}", path.display())]
    Differs { path: PathBuf, replayed: u64, written: u64 },
    #[error("{} panics on replay; report it as a bug", path.display())]
    Panicked { path: PathBuf },
}
