//! The files of a cgroup that set a limit: the one table of their names and numbers.
//!
//! User space fills the kernel side's map `LIMIT_FILES` from it, so that writes to other files (`cgroup.procs`, `cgroup.kill`,
//! `memory.reclaim`) are not recorded. Says nothing of what the files' texts mean.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Declares the files with a fixed name.
macro_rules! limit_files {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $file:literal;)*) => {
        /// A file of a cgroup (v2) that sets a limit, a weight or a placement.
        ///
        /// Displayed, parsed and serialized as the file's name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(into = "String", try_from = "String")]
        pub enum LimitFile {
            $($(#[$doc])* #[doc = concat!("`", $file, "`")] $variant,)*
            /// `hugetlb.<size>.max`
            HugetlbMax(HugePageSize),
            /// `hugetlb.<size>.rsvd.max`
            HugetlbReservedMax(HugePageSize),
        }

        impl LimitFile {
            /// Those with a fixed name.
            const FIXED: &[Self] = &[$(Self::$variant),*];

            /// The file's number between user space and the kernel side.
            pub const fn number(self) -> u32 {
                match self {
                    $(Self::$variant => $number,)*
                    Self::HugetlbMax(size) => HUGETLB_MAX + size.0 as u32,
                    Self::HugetlbReservedMax(size) => HUGETLB_RESERVED_MAX + size.0 as u32,
                }
            }
        }

        impl fmt::Display for LimitFile {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$variant => f.write_str($file),)*
                    Self::HugetlbMax(size) => write!(f, "hugetlb.{size}.max"),
                    Self::HugetlbReservedMax(size) => write!(f, "hugetlb.{size}.rsvd.max"),
                }
            }
        }
    };
}

/// Numbers from here on are [`LimitFile::HugetlbMax`], each with its size's shift added.
const HUGETLB_MAX: u32 = 0x100;
/// Numbers from here on are [`LimitFile::HugetlbReservedMax`], each with its size's shift added.
const HUGETLB_RESERVED_MAX: u32 = 0x200;

limit_files! {
    MemoryMax = 1, "memory.max";
    MemoryHigh = 2, "memory.high";
    MemoryLow = 3, "memory.low";
    MemoryMin = 4, "memory.min";
    MemorySwapMax = 5, "memory.swap.max";
    MemorySwapHigh = 6, "memory.swap.high";
    MemoryOomGroup = 7, "memory.oom.group";
    CpuMax = 16, "cpu.max";
    CpuMaxBurst = 17, "cpu.max.burst";
    CpuWeight = 18, "cpu.weight";
    CpuWeightNice = 19, "cpu.weight.nice";
    CpuIdle = 20, "cpu.idle";
    CpuUclampMin = 21, "cpu.uclamp.min";
    CpuUclampMax = 22, "cpu.uclamp.max";
    CpusetCpus = 32, "cpuset.cpus";
    CpusetMems = 33, "cpuset.mems";
    CpusetCpusExclusive = 34, "cpuset.cpus.exclusive";
    CpusetCpusPartition = 35, "cpuset.cpus.partition";
    PidsMax = 48, "pids.max";
    IoMax = 49, "io.max";
    IoWeight = 50, "io.weight";
    CgroupFreeze = 64, "cgroup.freeze";
    CgroupSubtreeControl = 65, "cgroup.subtree_control";
}

impl LimitFile {
    /// Every file there can be.
    pub fn all() -> impl Iterator<Item = Self> {
        let sizes = || (HugePageSize::SMALLEST..=HugePageSize::LARGEST).map(HugePageSize);
        Self::FIXED
            .iter()
            .copied()
            .chain(sizes().map(Self::HugetlbMax))
            .chain(sizes().map(Self::HugetlbReservedMax))
    }

    /// The file of that number, if there is one.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::all().find(|limit_file| limit_file.number() == number)
    }
}

/// A huge page's size: a power of two from 64 KiB to 16 GiB, which is what the architectures of Linux have
/// (`Documentation/admin-guide/mm/hugetlbpage.rst`).
///
/// Displayed as the hugetlb controller does (`mem_fmt` in the kernel's `mm/hugetlb_cgroup.c`): `64KB`, `2MB`, `1GB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HugePageSize(u8);

impl HugePageSize {
    const SMALLEST: u8 = 16;
    const LARGEST: u8 = 34;

    /// Bytes.
    pub const fn bytes(self) -> u64 {
        1 << self.0
    }
}

impl fmt::Display for HugePageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bytes() {
            bytes if bytes >= 1 << 30 => write!(f, "{}GB", bytes >> 30),
            bytes if bytes >= 1 << 20 => write!(f, "{}MB", bytes >> 20),
            bytes => write!(f, "{}KB", bytes >> 10),
        }
    }
}

/// Not the name of a limit file.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is not a limit file of a cgroup")]
pub struct UnknownLimitFile(String);

impl FromStr for LimitFile {
    type Err = UnknownLimitFile;

    fn from_str(file: &str) -> Result<Self, UnknownLimitFile> {
        Self::all()
            .find(|limit_file| limit_file.to_string() == file)
            .ok_or_else(|| UnknownLimitFile(file.to_owned()))
    }
}

impl TryFrom<String> for LimitFile {
    type Error = UnknownLimitFile;

    fn try_from(file: String) -> Result<Self, UnknownLimitFile> {
        file.parse()
    }
}

impl From<LimitFile> for String {
    fn from(limit_file: LimitFile) -> Self {
        limit_file.to_string()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_file_has_a_name_and_a_number_of_its_own_that_lead_back_to_it() {
        let numbers: BTreeSet<_> = LimitFile::all().map(LimitFile::number).collect();
        assert_eq!(numbers.len(), LimitFile::all().count());
        for limit_file in LimitFile::all() {
            let name = limit_file.to_string();
            assert_eq!(name.parse(), Ok(limit_file));
            assert_eq!(LimitFile::from_number(limit_file.number()), Some(limit_file));
            assert!(name.len() < kwitness_abi::LIMIT_FILE_NAME_CAP, "{name}");
            let json = serde_json::to_string(&limit_file).unwrap();
            assert_eq!(json, format!("\"{name}\""));
            assert_eq!(serde_json::from_str::<LimitFile>(&json).unwrap(), limit_file);
        }
    }

    #[test]
    fn names_are_the_kernels() {
        for name in
            ["memory.max", "cpu.max.burst", "hugetlb.64KB.max", "hugetlb.2MB.rsvd.max", "hugetlb.16GB.max"]
        {
            assert_eq!(name.parse::<LimitFile>().unwrap().to_string(), name);
        }
        for name in [
            "cgroup.procs",
            "memory.current",
            "hugetlb.3MB.max",
            "hugetlb.1024KB.max",
            "hugetlb.2MB.current",
            "",
        ] {
            assert_eq!(name.parse::<LimitFile>(), Err(UnknownLimitFile(name.to_owned())));
        }
        assert_eq!(LimitFile::from_number(0), None);
        assert_eq!(LimitFile::from_number(HUGETLB_MAX), None);
    }
}
