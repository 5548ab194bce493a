//! Why a ledger is not gone on with. Decides nothing: whoever reads it does.

use std::io;
use std::path::PathBuf;

use crate::private::Foreign;

/// Why the ledger of an earlier daemon is not used. A new epoch begins.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("{} cannot be read", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} is not to be trusted: {foreign}", path.display())]
    Foreign { path: PathBuf, foreign: Foreign },
    #[error("{} is not a ledger of this release", path.display())]
    OtherFormat { path: PathBuf },
    #[error("{} is torn, or another release's: {what}", path.display())]
    Torn { path: PathBuf, what: String },
    #[error("{} is of another boot of the machine", path.display())]
    OtherBoot { path: PathBuf },
    #[error("{} was written with another kernel.tracked_capacity", path.display())]
    OtherBounds { path: PathBuf },
    #[error("{} is not of the pinned programs: another daemon may have read what they recorded meanwhile", path.display())]
    OtherSet { path: PathBuf },
    #[error("{} leads to event {replayed}, and the earlier daemon had come to {written}", path.display())]
    Differs { path: PathBuf, replayed: u64, written: u64 },
    #[error("what {} has cannot be observed again without a panic", path.display())]
    Panicked { path: PathBuf },
}
