//! The cgroup v2 file system: where it is mounted, and what is in it below the tracked roots.
//!
//! Owns the reading of cgroupfs and of the processes in it. Only reads: what is to be tracked is added to the probes' set
//! by [`scan::scan`], what was found is for the core to judge.

mod attempts;
mod directory;
pub mod limit_files;
mod mount;
mod process;
mod roots;
mod scan;
mod search;
mod turns;
pub mod usage_files;
mod watch;

pub use attempts::WatchState;
pub use directory::Directory;
pub use limit_files::LimitReader;
pub(crate) use mount::v1_mount;
pub use mount::{CgroupFs, MountError, Subtree, SubtreeError};
pub use roots::Roots;
pub(crate) use scan::gone;
pub use scan::{ScanError, Track, outside_roots, scan};
pub use watch::{Watch, WatchError};
