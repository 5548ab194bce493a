//! Charges of memory that change how full a level is: a container, a pod, a QoS class or all pods.
//!
//! ```text
//!  user space ──▶ CHARGES   the thresholds; a global, constant to the verifier
//!  program    ──▶ LEVELS    what it remembers of each level near its thresholds
//!             ──▶ a MemoryCharge, when a level is above more or fewer thresholds than the last record said
//! ```
//!
//! The rule is the core's (`kwitness_core::pressure`), which decides what is reported; the program applies it to leave out
//! charges that change nothing: [`ChargeSettings::standing`].

use crate::{Caller, Header};

/// [`Header::flags`] of a [`MemoryCharge`]: the current process made the charge that crossed a threshold upwards. Never after
/// suppressed crossings, which may have been another's.
pub const FLAG_CHARGER: u16 = 1 << 12;

/// Thresholds at most.
pub const THRESHOLDS_MAX: usize = 8;
/// Levels that are remembered; the least recently charged gives way, and begins anew when it comes back.
pub const LEVELS_CAP: u32 = 4_096;

/// Within each window of so many nanoseconds, a level makes [`CHARGE_RECORDS`] records at most: whoever fills and frees memory as
/// fast as it can costs the reader what one that does so now and then does.
pub const CHARGE_WINDOW: u64 = 1_000_000_000;
/// See [`CHARGE_WINDOW`]: all thresholds, twice up and down.
pub const CHARGE_RECORDS: u32 = 32;
/// The time between two usages that a level remembers, at least, in nanoseconds.
pub const USAGE_AGE: u64 = 500_000_000;

/// The thresholds, in percent of the limit; user space fills them in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ChargeSettings {
    /// In ascending order, as many as `count` says; the rest is above all of them.
    pub percent: [u8; THRESHOLDS_MAX],
    /// How many there are.
    pub count: u8,
    /// How far usage falls below a threshold before it counts as crossed downwards.
    pub hysteresis: u8,
    /// A charge that ends below this is not looked at. The band between it and the lowest threshold less the hysteresis is what a
    /// level passes on its way up after a fall, so that the fall is noticed even if charges run at the same moment on several CPUs.
    pub floor: u8,
    /// The binary logarithm of the page size.
    pub page_shift: u8,
    /// Zero.
    pub pad: u32,
}

impl ChargeSettings {
    /// No thresholds, and next to no charge that is looked at.
    pub const NONE: Self = Self {
        percent: [u8::MAX; THRESHOLDS_MAX],
        count: 0,
        hysteresis: 0,
        floor: u8::MAX,
        page_shift: 0,
        pad: 0,
    };
}

/// A charge of memory in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge {
    /// Usage before it.
    pub before: u64,
    /// Usage with it.
    pub after: u64,
    /// Pages allowed.
    pub limit: u64,
}

/// What a charge makes of a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChargeStanding {
    /// How many thresholds it counts as above.
    pub above: u32,
    /// Pages that it was, or is, charged with, by which that is so: of a fall, before the charge.
    pub usage: u64,
}

impl ChargeSettings {
    /// Whether a charge is to be looked at.
    #[inline(always)]
    pub const fn is_near(&self, charge: Charge) -> bool {
        charge.after * 100 >= charge.limit * self.floor as u64
    }

    /// What a charge makes of a level that was above so many thresholds at the charge before. If it has fallen since, that comes
    /// first: how far this charge takes it up again is seen by the next one.
    #[inline(always)]
    pub fn standing(&self, above: u32, charge: Charge) -> ChargeStanding {
        let Charge { before, after, limit } = charge;
        let kept = self.count_at(before, limit, self.hysteresis);
        if kept < above {
            return ChargeStanding { above: kept, usage: before };
        }
        let reached = self.count_at(after, limit, 0);
        ChargeStanding { above: if reached > above { reached } else { above }, usage: after }
    }

    /// Whether the charge itself, and nothing before it, takes usage past a threshold.
    #[inline(always)]
    pub fn is_crossing(&self, charge: Charge) -> bool {
        let Charge { before, after, limit } = charge;
        self.count_at(before, limit, 0) < self.count_at(after, limit, 0)
    }

    /// How many thresholds, each less so many percent, usage is at or above. Without a branch at each, all of whose ways the
    /// verifier would go. Even the largest limit there is, `PAGE_COUNTER_MAX`, can be multiplied so far.
    #[inline(always)]
    fn count_at(&self, usage: u64, limit: u64, less: u8) -> u32 {
        let mut below = 0;
        for percent in self.percent {
            let percent = u64::from(percent.wrapping_sub(less));
            // The sign of the difference.
            below += (usage * 100).wrapping_sub(limit * percent) >> 63;
        }
        let count = THRESHOLDS_MAX as u32 - below as u32;
        if count < self.count as u32 { count } else { self.count as u32 }
    }
}

/// A level is above more or fewer thresholds than the last record said, as seen at a charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct MemoryCharge {
    /// The level's id; with [`FLAG_CHARGER`] where it holds.
    pub header: Header,
    /// Bytes charged: of a rise, with those that are about to be charged; of a fall, without.
    pub usage: u64,
    /// Bytes allowed.
    pub limit: u64,
    /// When usage was remembered before, in nanoseconds of `CLOCK_BOOTTIME`; the time of the record itself: it was not.
    pub earlier_at: u64,
    /// Usage then, in bytes.
    pub earlier_usage: u64,
    /// Crossings since the last record that no record shows.
    pub suppressed: u64,
    /// How many thresholds the level counts as above. After suppressed crossings, the usages of the records alone do not show it: a
    /// level that fell and rose again unrecorded may be within the hysteresis.
    pub above: u32,
    /// Zero.
    pub pad: u32,
    /// Who charges, with [`FLAG_CHARGER`]; otherwise zero.
    pub charger: Caller,
}

/// Usage at a charge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ChargedUsage {
    /// `CLOCK_BOOTTIME` in nanoseconds.
    pub at: u64,
    /// Pages, before the charge.
    pub pages: u64,
}

/// The value of the map `LEVELS`; its key is the address of the kernel's `mem_cgroup`.
///
/// Two charges at the same moment may both read what one of them wrote: then there are two records of one crossing, of which the
/// second says nothing new.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ChargedLevel {
    /// `cgroup_subsys_state.serial_nr`: another one's is at the same address.
    pub serial: u64,
    /// The cgroup v2 id.
    pub cgroup_id: u64,
    /// Pages allowed at the last charge; 0: there was none.
    pub limit: u64,
    /// The younger of the two usages that are remembered.
    pub later: ChargedUsage,
    /// The older.
    pub earlier: ChargedUsage,
    /// When the window of [`CHARGE_WINDOW`] began, in nanoseconds of `CLOCK_BOOTTIME`.
    pub window: u64,
    /// Crossings since the last record.
    pub crossed: u64,
    /// Records in this window.
    pub records: u32,
    /// Thresholds that usage counts as above.
    pub above: u32,
    /// That by the last record.
    pub reported: u32,
    /// Zero.
    pub pad: u32,
}

const _: () = {
    assert!(size_of::<ChargeSettings>() == 16);
    assert!(size_of::<MemoryCharge>() == 24 + 40 + 8 + 40);
    assert!(size_of::<ChargedLevel>() == 24 + 32 + 16 + 16);
};
