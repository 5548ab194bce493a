//! Memory pressure: usage of the levels that have a limit, sampled; and whether the probes record charges besides.
//!
//! ```text
//!  engine ── levels, once a second ──▶ sampler ── Observation::MemorySampled ──▶ engine ◀── records of charges
//!                                       │    ▲ a limit is reached: memory.events.local
//!                     read: usage, limit│    └── LimitNotices, where no charges are recorded
//!                                       ▼
//!                                  MemoryFiles: memory.current, memory.max, or their names in cgroup v1
//! ```
//!
//! How often each level is sampled follows from how full it is and how fast it fills
//! ([`kwitness_core::pressure::sampling`]); which samples make an event is decided by the core. What happens between two samples
//! is not seen, unless the kernel records it: the probes' capability [`MEMORY_CHARGES`] sees usage rise at each charge. A fall, or a
//! changed limit, is found by the next sample also then. Never waits for anything in the engine's task, and never reads more files
//! than `sampler` allows itself.

mod files;
mod notices;
mod sampler;

use crate::cgroupfs::CgroupFs;
use crate::config::Config;
use crate::probe::capability::MEMORY_CHARGES;
use crate::probe::{Capabilities, Charges, Settings};

pub use files::{FindError, MemoryFiles};
pub(crate) use notices::LimitNotices;
pub(crate) use sampler::{Sampling, start};

/// Has the probes record those charges of memory that are to be recorded.
pub fn configure(settings: &mut Settings, config: &Config, cgroups: &CgroupFs) {
    settings.charges = match MemoryFiles::find(cgroups) {
        _ if !config.pressure => Charges::Off,
        Ok(MemoryFiles::V1(_)) => Charges::Untracked,
        Ok(MemoryFiles::V2(_)) | Err(_) => Charges::Across(config.thresholds.clone()),
    };
    // The root cgroup is not charged, and has no such file.
    let own = i32::try_from(std::process::id()).ok().and_then(|pid| cgroups.path_of(pid));
    settings.is_charged = own
        .is_some_and(|own| cgroups.open(&own).and_then(|directory| directory.text("memory.current")).is_ok());
}

/// Notices of levels that reach their limits; none: the probes see more than that, or inotify is unavailable.
pub(crate) fn limit_notices(capabilities: &Capabilities) -> Option<LimitNotices> {
    let mut reports = capabilities.reports.iter();
    if reports.any(|report| report.capability.name == MEMORY_CHARGES && report.chosen.is_some()) {
        return None;
    }
    LimitNotices::new()
        .inspect_err(|error| {
            tracing::warn!(%error, "inotify is unavailable: limit hits are detected by sampling only");
        })
        .ok()
}

/// Names sampling as the fallback where the probes do not record charges. If pressure is not wanted, nothing of it is missing.
pub fn note_sampling(capabilities: &mut Capabilities, config: &Config, cgroups: &CgroupFs) {
    if !config.pressure {
        capabilities.reports.retain(|report| report.capability.name != MEMORY_CHARGES);
    }
    let mut reports = capabilities.reports.iter_mut();
    if let Some(report) = reports.find(|report| report.capability.name == MEMORY_CHARGES)
        && report.chosen.is_none()
        && let Ok(files) = MemoryFiles::find(cgroups)
    {
        report.substitute = Some(format!("sampling:{}", files.mount_point().display()));
    }
}
