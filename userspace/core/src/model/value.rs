//! What a limit file says, as a type: each file's format, parsed and printed. Unlimited, absent and unknown are three
//! different things, and none of them is a number.
//!
//! Formats are those of the kernel's `Documentation/admin-guide/cgroup-v2.rst`. A field or a line that a later kernel adds
//! is left alone: what is known is read, and two texts that differ only in what is not known are still two texts.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::limit_file::LimitFile;

/// An amount with no upper end: `max`, or a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// So much at most.
    At(u64),
    /// `max`: above every number.
    Unlimited,
}

/// `cpu.max`: so many microseconds of CPU time in each period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CpuMax {
    /// Microseconds.
    pub quota: Bound,
    /// Microseconds; never 0.
    pub period: u64,
}

impl CpuMax {
    /// The kernel's own period (`default_cfs_period` in `kernel/sched/core.c`), which is the kubelet's, too.
    pub const DEFAULT_PERIOD: u64 = 100_000;

    /// Whether it allows less CPU time than another, whatever their periods.
    pub fn allows_less(self, other: Self) -> bool {
        self.order(other) == Ordering::Less
    }

    /// By the share of time that it allows.
    pub fn order(self, other: Self) -> Ordering {
        match (self.quota, other.quota) {
            (Bound::At(own), Bound::At(others)) => {
                let own = u128::from(own) * u128::from(other.period);
                own.cmp(&(u128::from(others) * u128::from(self.period)))
            }
            (own, others) => own.cmp(&others),
        }
    }
}

/// A file's contents.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Value {
    /// One amount: `memory.max`, `memory.low`, `pids.max`, `hugetlb.2MB.max` and their like.
    Bound(Bound),
    /// `cpu.max`.
    Cpu(CpuMax),
    /// One number: `cpu.weight`, `cpu.max.burst`.
    Number(u64),
    /// Anything else, as it stands there, without the last newline.
    Text(Arc<str>),
}

/// How a limit file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// [`Value::Bound`].
    Bound,
    /// [`Value::Cpu`].
    Cpu,
    /// [`Value::Number`].
    Number,
    /// [`Value::Text`].
    Text,
}

impl LimitFile {
    /// How this file is written.
    pub const fn format(self) -> Format {
        match self {
            LimitFile::MemoryMax
            | LimitFile::MemoryHigh
            | LimitFile::MemoryLow
            | LimitFile::MemoryMin
            | LimitFile::MemorySwapMax
            | LimitFile::MemorySwapHigh
            | LimitFile::PidsMax
            | LimitFile::HugetlbMax(_)
            | LimitFile::HugetlbReservedMax(_) => Format::Bound,
            LimitFile::CpuMax => Format::Cpu,
            LimitFile::CpuMaxBurst
            | LimitFile::CpuWeight
            | LimitFile::CpuIdle
            | LimitFile::MemoryOomGroup
            | LimitFile::CgroupFreeze => Format::Number,
            LimitFile::CpuWeightNice
            | LimitFile::CpuUclampMin
            | LimitFile::CpuUclampMax
            | LimitFile::CpusetCpus
            | LimitFile::CpusetMems
            | LimitFile::CpusetCpusExclusive
            | LimitFile::CpusetCpusPartition
            | LimitFile::IoMax
            | LimitFile::IoWeight
            | LimitFile::CgroupSubtreeControl => Format::Text,
        }
    }
}

/// A file that is not written the way it should be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("\"{text}\" is not {expected}")]
pub struct FormatError {
    text: String,
    expected: &'static str,
}

impl Value {
    /// Reads a file's contents.
    ///
    /// # Errors
    /// The known fields are not what the kernel's documentation says they are.
    pub fn parse(format: Format, text: &str) -> Result<Self, FormatError> {
        let wrong = |expected| FormatError { text: text.trim_end().to_owned(), expected };
        // Of one line; what a later kernel appends to it is another field.
        let mut fields = text.lines().next().unwrap_or_default().split_ascii_whitespace();
        let first = fields.next();
        Ok(match format {
            Format::Bound => Self::Bound(first.and_then(bound).ok_or_else(|| wrong("a number or `max`"))?),
            Format::Number => Self::Number(first.and_then(number).ok_or_else(|| wrong("a number"))?),
            Format::Cpu => {
                let quota = first.and_then(bound);
                let period = fields.next().and_then(number).filter(|period| *period > 0);
                let both = quota.zip(period).map(|(quota, period)| CpuMax { quota, period });
                Self::Cpu(both.ok_or_else(|| wrong("a quota or `max`, and a period"))?)
            }
            Format::Text => Self::Text(Arc::from(text.trim_end_matches('\n'))),
        })
    }
}

/// Digits and nothing else: no sign, no space.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

fn bound(text: &str) -> Option<Bound> {
    if text == "max" { Some(Bound::Unlimited) } else { number(text).map(Bound::At) }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(amount) => amount.fmt(f),
            Self::Unlimited => f.write_str("max"),
        }
    }
}

impl fmt::Display for CpuMax {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.quota, self.period)
    }
}

/// As the file has it.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bound(bound) => bound.fmt(f),
            Self::Cpu(cpu) => cpu.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// What reading a limit file gave.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reading {
    /// The value of the file.
    Is(Value),
    /// There is no such file: the controller is not enabled for this cgroup, it is the root, or the kernel is too old.
    Absent,
    /// The cgroup is gone.
    Gone,
    /// It is there, and could not be read or understood; why.
    Unknown(Arc<str>),
}

impl Reading {
    /// What it is, if that is known.
    pub fn value(&self) -> Option<&Value> {
        match self {
            Self::Is(value) => Some(value),
            Self::Absent | Self::Gone | Self::Unknown(_) => None,
        }
    }
}

impl fmt::Display for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Is(value) => value.fmt(f),
            Self::Absent => f.write_str("absent"),
            Self::Gone => f.write_str("cgroup gone"),
            Self::Unknown(why) => write!(f, "unknown ({why})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cpu(quota: Bound, period: u64) -> Value {
        Value::Cpu(CpuMax { quota, period })
    }

    #[test]
    fn what_the_kernel_writes_is_read() {
        for (format, text, value) in [
            (Format::Bound, "max\n", Value::Bound(Bound::Unlimited)),
            (Format::Bound, "0\n", Value::Bound(Bound::At(0))),
            (Format::Bound, "9223372036854771712\n", Value::Bound(Bound::At(9_223_372_036_854_771_712))),
            (Format::Cpu, "max 100000\n", cpu(Bound::Unlimited, 100_000)),
            (Format::Cpu, "1000 100000\n", cpu(Bound::At(1000), 100_000)),
            (Format::Number, "100\n", Value::Number(100)),
            (
                Format::Text,
                "8:16 rbps=1 wbps=max\n8:0 rbps=2\n",
                Value::Text("8:16 rbps=1 wbps=max\n8:0 rbps=2".into()),
            ),
            (Format::Text, "\n", Value::Text("".into())),
        ] {
            assert_eq!(Value::parse(format, text), Ok(value.clone()), "{text:?}");
            assert_eq!(value.to_string(), text.trim_end());
        }
    }

    #[test]
    fn a_file_that_grows_survives() {
        assert_eq!(Value::parse(Format::Cpu, "max 100000 burst=5\n"), Ok(cpu(Bound::Unlimited, 100_000)));
        assert_eq!(Value::parse(Format::Bound, "5 soft\nnew line\n"), Ok(Value::Bound(Bound::At(5))));
    }

    #[test]
    fn what_is_wrong_is_said_and_never_guessed() {
        for (format, text) in [
            (Format::Bound, ""),
            (Format::Bound, "-1\n"),
            (Format::Bound, "+1"),
            (Format::Bound, "18446744073709551616\n"),
            (Format::Cpu, "max\n"),
            (Format::Cpu, "1000 0\n"),
            (Format::Number, "max\n"),
        ] {
            let error = Value::parse(format, text).unwrap_err().to_string();
            assert!(error.contains(text.trim_end()), "{error}");
        }
    }

    #[test]
    fn quotas_compare_by_share_of_time() {
        let half = CpuMax { quota: Bound::At(50_000), period: 100_000 };
        let also_half = CpuMax { quota: Bound::At(5_000), period: 10_000 };
        let none = CpuMax { quota: Bound::Unlimited, period: 1 };
        assert_eq!(half.order(also_half), Ordering::Equal);
        assert!(half.allows_less(none) && !none.allows_less(half));
    }

    proptest! {
        #[test]
        fn reading_is_total_and_printing_is_its_inverse(text in "\\PC{0,40}", number in any::<u64>(), period in 1..u64::MAX) {
            for format in [Format::Bound, Format::Cpu, Format::Number, Format::Text] {
                if let Ok(value) = Value::parse(format, &text) {
                    prop_assert_eq!(Value::parse(format, &value.to_string()), Ok(value));
                }
            }
            for value in [Value::Bound(Bound::At(number)), cpu(Bound::At(number), period)] {
                let format = if matches!(value, Value::Cpu(_)) { Format::Cpu } else { Format::Bound };
                prop_assert_eq!(Value::parse(format, &value.to_string()), Ok(value));
            }
        }
    }
}
