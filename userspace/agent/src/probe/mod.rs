//! The probes' user side: what this kernel offers, loading and attaching the best of it, and reading what comes.
//!
//! ```text
//!  capability ─────── what must be seen, by which hooks, at what cost if not
//!  layout ───── where the running kernel has the fields that the programs read
//!  loader ───── Settings → Loaded → Attached → ring::Running
//!  choice ───── which hook serves a capability: tried in order, loaded, attached, or refused
//!  pins ─────── what of it outlives the process
//!  handover ─── from an earlier daemon's programs of another layout to new ones
//!  pace ─────── when the reader looks at the rings
//!  capability, environment, error ── what was found, and what it means, in words
//! ```
//!
//! Hands out records as bytes, in the layout of `kwitness_abi`; decoding them is `kwitness_core::decode`. Knows no
//! container, scans no file system. All `unsafe` of this crate is here.

pub mod capability;
mod charges;
mod choice;
mod counters;
pub mod environment;
mod error;
mod handover;
mod layout;
mod loader;
mod log;
pub mod mapped;
mod object;
mod pace;
pub mod pins;
mod positions;
pub mod report;
mod ring;
mod settings;
mod stats;
mod tracker;

pub use self::{
    error::{Advised, ProbeError, Result, error_chain},
    handover::Overlap,
    loader::{Attached, Loaded, check_loads, check_process, kernel_layout, survey},
    object::OBJECT,
    pace::{Drained, ReaderWaits},
    pins::Unpinned,
    report::{Capabilities, CapabilityReport, Reason, Refusal},
    ring::{Produced, RingState, Running, SetId},
    settings::{Charges, MAX_ROOTS, ProbeLog, RootPattern, RootPatternError, Settings},
    stats::ProgramStats,
    tracker::{Listed, TrackedCgroup, TrackedLife, Tracker},
};
