//! Limits: what the limit files of each cgroup say, and every change of it.
//!
//! ```text
//!  LimitWrite ──▶ pending ──ReadLimits──▶ LimitsRead ──▶ LimitChanged, seen: old, new, writer, errno, times
//!  scan, start, suppressed writes ─ReadLimits─▶ LimitsRead ─differs─▶ LimitChanged, found: old, new
//!  Rmdir ──▶ what is pending goes out with "gone"
//! ```
//!
//! **The event is a hint, the file is the proof.** A write says that something changed, when, and by whom; what the limit is
//! now is read back. Of several writes to one file between two readings each is reported, the last one with what was read, those
//! before with what was written.
//!
//! A change that no write explains is reported as found: in-kernel setters, a controller that was enabled so that the file
//! appears, writes that were lost or came too fast. A write of what was there already is no change and not reported; one that
//! the kernel refused is, with its errno.
//!
//! Bounded: as many cgroups as the lifecycle follows, [`LimitTracker::PENDING`] writes a file. Never reads a clock or a file.

mod change;
mod counters;
mod known;
mod tracker;

pub use counters::LimitCounters;
pub use tracker::LimitTracker;

use crate::model::{Bound, CpuMax, LimitFile, Value};

/// What the file of a new cgroup says, if the kernel's `cgroup-v2.rst` defines it.
pub fn initial(limit_file: LimitFile) -> Option<Value> {
    Some(match limit_file {
        LimitFile::MemoryMax
        | LimitFile::MemoryHigh
        | LimitFile::MemorySwapMax
        | LimitFile::MemorySwapHigh
        | LimitFile::PidsMax
        | LimitFile::HugetlbMax(_)
        | LimitFile::HugetlbReservedMax(_) => Value::Bound(Bound::Unlimited),
        LimitFile::MemoryLow | LimitFile::MemoryMin => Value::Bound(Bound::At(0)),
        LimitFile::CpuMax => Value::Cpu(CpuMax { quota: Bound::Unlimited, period: CpuMax::DEFAULT_PERIOD }),
        LimitFile::CpuWeight => Value::Number(100),
        LimitFile::CpuMaxBurst | LimitFile::CpuIdle | LimitFile::MemoryOomGroup | LimitFile::CgroupFreeze => {
            Value::Number(0)
        }
        LimitFile::CpuWeightNice => Value::Text("0".into()),
        LimitFile::CpusetCpus
        | LimitFile::CpusetMems
        | LimitFile::CpusetCpusExclusive
        | LimitFile::IoMax
        | LimitFile::CgroupSubtreeControl => Value::Text("".into()),
        LimitFile::CpusetCpusPartition => Value::Text("member".into()),
        LimitFile::CpuUclampMin => Value::Text("0.00".into()),
        LimitFile::CpuUclampMax => Value::Text("max".into()),
        // Its default depends on the scheduler of each device.
        LimitFile::IoWeight => return None,
    })
}

/// Whether a change of it that no write explains is worth reporting. `cpu.weight.nice` and `cpu.weight` are two views of one
/// number: a write to one changes the other.
pub fn is_reconciled(limit_file: LimitFile) -> bool {
    !matches!(limit_file, LimitFile::CpuWeightNice)
}
