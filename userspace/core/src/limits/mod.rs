//! Limits: what the knobs of each cgroup say, and every change of it.
//!
//! ```text
//!  KnobWrite ──▶ pending ──ReadKnobs──▶ KnobsRead ──▶ LimitChanged, seen: old, new, writer, errno, times
//!  scan, start, untold writes ─ReadKnobs─▶ KnobsRead ─differs─▶ LimitChanged, found: old, new
//!  Rmdir ──▶ what is pending goes out with "gone"
//! ```
//!
//! **The event is a hint, the file is the proof.** A write says that something changed, when, and by whom; what the limit is
//! now is read back. Of several writes to one file between two readings each is told, the last one with what was read, those
//! before with what was written.
//!
//! A change that no write explains is told as found: in-kernel setters, a controller that was enabled so that the file
//! appears, writes that were lost or came too fast. A write of what was there already is no change and not told; one that
//! the kernel refused is, with its errno.
//!
//! Bounded: [`Knobs::CGROUPS`] cgroups, [`Knobs::PENDING`] writes a file. Never reads a clock or a file.

mod change;
mod knobs;
mod place;
mod value;

pub use change::{Answer, Changed, SeenWrite};
pub use knobs::{Knobs, KnobsCounters};
pub use place::{LevelRole, Place, Places};
pub use value::{Bound, CpuMax, Format, FormatError, Reading, Value};

use crate::knob::Knob;

/// How a knob's file is written.
pub const fn format(knob: Knob) -> Format {
    match knob {
        Knob::MemoryMax
        | Knob::MemoryHigh
        | Knob::MemoryLow
        | Knob::MemoryMin
        | Knob::MemorySwapMax
        | Knob::MemorySwapHigh
        | Knob::PidsMax
        | Knob::HugetlbMax(_)
        | Knob::HugetlbReservedMax(_) => Format::Bound,
        Knob::CpuMax => Format::Cpu,
        Knob::CpuMaxBurst | Knob::CpuWeight | Knob::CpuIdle | Knob::MemoryOomGroup | Knob::CgroupFreeze => {
            Format::Number
        }
        Knob::CpuWeightNice
        | Knob::CpuUclampMin
        | Knob::CpuUclampMax
        | Knob::CpusetCpus
        | Knob::CpusetMems
        | Knob::CpusetCpusExclusive
        | Knob::CpusetCpusPartition
        | Knob::IoMax
        | Knob::IoWeight
        | Knob::CgroupSubtreeControl => Format::Text,
    }
}

/// What the file of a new cgroup says, if the kernel's `cgroup-v2.rst` tells.
pub fn initial(knob: Knob) -> Option<Value> {
    Some(match knob {
        Knob::MemoryMax
        | Knob::MemoryHigh
        | Knob::MemorySwapMax
        | Knob::MemorySwapHigh
        | Knob::PidsMax
        | Knob::HugetlbMax(_)
        | Knob::HugetlbReservedMax(_) => Value::Bound(Bound::Unlimited),
        Knob::MemoryLow | Knob::MemoryMin => Value::Bound(Bound::At(0)),
        Knob::CpuMax => Value::Cpu(CpuMax { quota: Bound::Unlimited, period: CpuMax::DEFAULT_PERIOD }),
        Knob::CpuWeight => Value::Number(100),
        Knob::CpuMaxBurst | Knob::CpuIdle | Knob::MemoryOomGroup | Knob::CgroupFreeze => Value::Number(0),
        Knob::CpuWeightNice => Value::Text("0".into()),
        Knob::CpusetCpus
        | Knob::CpusetMems
        | Knob::CpusetCpusExclusive
        | Knob::IoMax
        | Knob::CgroupSubtreeControl => Value::Text("".into()),
        Knob::CpusetCpusPartition => Value::Text("member".into()),
        Knob::CpuUclampMin => Value::Text("0.00".into()),
        Knob::CpuUclampMax => Value::Text("max".into()),
        // Its default depends on the scheduler of each device.
        Knob::IoWeight => return None,
    })
}

/// Whether a change of it that no write explains is worth telling. `cpu.weight.nice` and `cpu.weight` are two views of one
/// number: a write to one changes the other.
pub fn is_reconciled(knob: Knob) -> bool {
    !matches!(knob, Knob::CpuWeightNice)
}
