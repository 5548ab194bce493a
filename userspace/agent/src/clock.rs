//! The two clocks: `CLOCK_BOOTTIME`, which the kernel stamps records with, and the wall clock, which people read.
//!
//! Owns the reading of both and the conversion. A step of the wall clock moves what is converted later, never what
//! was.

use kwitness_core::model::KernelTime;
use nix::time::{ClockId, clock_gettime};

use kwitness_api::Timestamp;

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    now: KernelTime,
    /// Wall clock minus boot time, in nanoseconds.
    offset: i64,
}

impl Clock {
    /// Reads both.
    pub fn read() -> Self {
        let boot = nanos(ClockId::CLOCK_BOOTTIME);
        let offset = nanos(ClockId::CLOCK_REALTIME) - boot;
        Self { now: KernelTime(boot.unsigned_abs()), offset }
    }

    /// The moment of the reading.
    pub fn now(self) -> KernelTime {
        self.now
    }

    /// The wall clock's time of a kernel time.
    pub fn wall(self, at: KernelTime) -> Timestamp {
        let at = i64::try_from(at.0).unwrap_or(i64::MAX);
        Timestamp::from_unix_nanos(at.saturating_add(self.offset))
    }

    /// The kernel time of a wall clock's time; 0 for what was before the boot.
    pub fn kernel(self, time: Timestamp) -> KernelTime {
        KernelTime(u64::try_from(time.to_unix_nanos().saturating_sub(self.offset)).unwrap_or(0))
    }
}

/// Both clocks exist on every kernel that runs the probes, and reading one fails for no other reason.
fn nanos(id: ClockId) -> i64 {
    clock_gettime(id).map_or(0, |time| time.tv_sec() * 1_000_000_000 + time.tv_nsec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_convert_both_ways() {
        let clock = Clock::read();
        assert_eq!(clock.kernel(clock.wall(clock.now())), clock.now());
        assert_eq!(clock.kernel(Timestamp::default()), KernelTime(0));
        let wall = clock.wall(clock.now()).to_unix_nanos();
        let system = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
        assert!((system as i64 - wall).abs() < 1_000_000_000, "{wall} {system}");
    }
}
