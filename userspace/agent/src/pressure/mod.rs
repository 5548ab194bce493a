//! Memory pressure: usage of the levels that have a limit, sampled; and whether the probes record charges besides.
//!
//! ```text
//!  engine ── levels, once a second ──▶ sampler ── Observation::MemorySampled ──▶ engine ◀── records of charges
//!                                        │ read: usage, limit
//!                                   MemoryFiles: memory.current, memory.max, or their names in cgroup v1
//! ```
//!
//! How often each level is sampled follows from how full it is and how fast it fills
//! ([`kwitness_core::pressure::sampling`]); which samples make an event is decided by the core. What happens between two samples
//! is not seen, unless the kernel records it: the probes' capability [`MEMORY_CHARGES`] sees usage rise at each charge. A fall, or a
//! changed limit, is found by the next sample also then. Never waits for anything in the engine's task, and never reads more files
//! than `sampler` allows itself.

mod files;
mod sampler;

use crate::cgroupfs::CgroupFs;
use crate::config::Config;
use crate::probe::capability::MEMORY_CHARGES;
use crate::probe::{Capabilities, Charges};

pub use files::{FindError, MemoryFiles};
pub(crate) use sampler::{Sampling, start};

/// Which charges of memory the probes are to record.
pub fn charges(config: &Config, cgroups: &CgroupFs) -> Charges {
    match MemoryFiles::find(cgroups) {
        _ if !config.pressure => Charges::Off,
        Ok(MemoryFiles::V1(_)) => Charges::Untracked,
        Ok(MemoryFiles::V2(_)) | Err(_) => Charges::Across(config.thresholds.clone()),
    }
}

/// Names sampling as the fallback where the probes do not record charges.
pub fn note_sampling(capabilities: &mut Capabilities, config: &Config, cgroups: &CgroupFs) {
    let mut reports = capabilities.reports.iter_mut();
    if let Some(report) = reports.find(|report| report.capability.name == MEMORY_CHARGES)
        && report.chosen.is_none()
        && config.pressure
        && let Ok(files) = MemoryFiles::find(cgroups)
    {
        report.substitute = Some(format!("sampling:{}", files.mount_point().display()));
    }
}
