//! Memory usage against its limit: what was sampled or recorded, and what is reported of it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::container::{LevelRole, PodNames};
use super::ids::{CgroupId, KernelTime};
use super::kernel::Caller;
use super::value::Bound;

/// Shares of a limit, in percent, whose crossing is reported.
///
/// A threshold counts as crossed downwards once usage is [`hysteresis`](Self::hysteresis) percent of the limit below it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Thresholds {
    percent: Vec<u8>,
    hysteresis: u8,
}

#[derive(Deserialize)]
struct Unchecked {
    percent: Vec<u8>,
    hysteresis: u8,
}

/// Why these are no thresholds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ThresholdsError {
    /// Too few or too many.
    #[error("these are {0} thresholds, not 1 to {max}", max = Thresholds::MAX)]
    Count(usize),
    /// Not in order, or twice the same.
    #[error("they are not in ascending order")]
    Order,
    /// Out of range.
    #[error("{0} is not a percentage from {lowest} to 100", lowest = Thresholds::LOWEST)]
    Range(u8),
    /// The hysteresis is out of range.
    #[error("{0} is not a hysteresis from 1 to {max} percent", max = Thresholds::HYSTERESIS_MAX)]
    Hysteresis(u8),
}

impl Thresholds {
    /// How many there are at most: each is an event of its own.
    pub const MAX: usize = 8;
    /// The lowest that is allowed.
    pub const LOWEST: u8 = 20;
    /// The largest hysteresis: below the lowest threshold, so that each can be crossed downwards.
    pub const HYSTERESIS_MAX: u8 = 15;

    /// Thresholds in ascending order.
    ///
    /// # Errors
    /// See [`ThresholdsError`].
    pub fn new(percent: Vec<u8>, hysteresis: u8) -> Result<Self, ThresholdsError> {
        if percent.is_empty() || percent.len() > Self::MAX {
            return Err(ThresholdsError::Count(percent.len()));
        }
        if let Some(wrong) = percent.iter().find(|percent| !(Self::LOWEST..=100).contains(*percent)) {
            return Err(ThresholdsError::Range(*wrong));
        }
        if !percent.is_sorted_by(|lower, higher| lower < higher) {
            return Err(ThresholdsError::Order);
        }
        if !(1..=Self::HYSTERESIS_MAX).contains(&hysteresis) {
            return Err(ThresholdsError::Hysteresis(hysteresis));
        }
        Ok(Self { percent, hysteresis })
    }

    /// In ascending order, at least one.
    pub fn percent(&self) -> &[u8] {
        &self.percent
    }

    /// In percent of the limit.
    pub fn hysteresis(&self) -> u8 {
        self.hysteresis
    }
}

impl TryFrom<Unchecked> for Thresholds {
    type Error = ThresholdsError;

    fn try_from(Unchecked { percent, hysteresis }: Unchecked) -> Result<Self, ThresholdsError> {
        Self::new(percent, hysteresis)
    }
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { percent: vec![80, 90, 95], hysteresis: 5 }
    }
}

/// Memory usage as it was sampled of some cgroups, with the thresholds in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemorySamples {
    /// What crossings are reported.
    pub thresholds: Arc<Thresholds>,
    /// In the order in which they were made.
    pub samples: Vec<MemorySample>,
}

/// A cgroup's memory usage at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemorySample {
    /// The time.
    pub at: KernelTime,
    /// The cgroup.
    pub cgroup: CgroupId,
    /// Bytes charged.
    pub usage: u64,
    /// Bytes allowed.
    pub limit: Bound,
    /// Bytes per second that usage grew by during the second before, or since the last sample if that is older; none: it is
    /// the first.
    pub fill_rate: Option<i64>,
}

/// A cgroup whose memory usage is to be sampled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryLevel {
    /// The cgroup.
    pub cgroup: CgroupId,
    /// Its path.
    pub path: Arc<str>,
    /// How many thresholds its usage counts as above.
    pub above: usize,
    /// Its limit as it was last read; none: that is not known.
    pub limit: Option<Bound>,
}

/// Which cgroups those are by now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemoryLevels {
    /// These, and no others.
    All(Vec<MemoryLevel>),
    /// These have changed; none: that is no level, or not any more.
    Changed(Vec<(CgroupId, Option<MemoryLevel>)>),
}

impl MemoryLevels {
    /// Each level that is named.
    pub fn for_each(&mut self, each: impl FnMut(&mut MemoryLevel)) {
        match self {
            Self::All(levels) => levels.iter_mut().for_each(each),
            Self::Changed(levels) => levels.iter_mut().filter_map(|(_, level)| level.as_mut()).for_each(each),
        }
    }
}

/// The process whose charge crossed a threshold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Charger {
    /// The process.
    pub process: Caller,
    /// The path of the cgroup that it was in.
    pub cgroup_path: Option<Arc<str>>,
}

/// Usage of a level crossed a threshold of its limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pressure {
    /// Whose usage and limit.
    pub cgroup: CgroupId,
    /// Its path.
    pub path: Arc<str>,
    /// What it is.
    pub role: LevelRole,
    /// The pod that it is, or is in.
    pub pod: Option<PodNames>,
    /// Bytes charged.
    pub usage: u64,
    /// Bytes allowed.
    pub limit: Bound,
    /// In percent of the limit.
    pub threshold: u8,
    /// Whether usage rose above the threshold or fell below it.
    pub direction: Direction,
    /// See [`MemorySample::fill_rate`].
    pub fill_rate: Option<i64>,
    /// Whose charge crossed it; none: that is not known, or usage fell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub charger: Option<Charger>,
    /// Earlier crossings of this level's that were only counted, because they came too fast.
    pub suppressed: u64,
}

/// Which way a threshold was crossed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Usage reached it.
    Up,
    /// Usage fell below it.
    Down,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_ascend_within_their_range() {
        for (percent, hysteresis, error) in [
            (vec![], 5, ThresholdsError::Count(0)),
            ((20..29).collect(), 5, ThresholdsError::Count(9)),
            (vec![90, 80], 5, ThresholdsError::Order),
            (vec![80, 80], 5, ThresholdsError::Order),
            (vec![19, 80], 5, ThresholdsError::Range(19)),
            (vec![101], 5, ThresholdsError::Range(101)),
            (vec![80], 0, ThresholdsError::Hysteresis(0)),
            (vec![80], 16, ThresholdsError::Hysteresis(16)),
        ] {
            assert_eq!(Thresholds::new(percent, hysteresis), Err(error));
        }
        let default = Thresholds::default();
        assert_eq!(Thresholds::new(default.percent.clone(), default.hysteresis), Ok(default));
    }

    #[test]
    fn what_was_written_by_another_is_checked() {
        let text = r#"{"percent":[90,80],"hysteresis":5}"#;
        assert!(serde_json::from_str::<Thresholds>(text).unwrap_err().to_string().contains("ascending"));
    }
}
