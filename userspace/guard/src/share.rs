//! From what share of its limit on a container is held: the policy's threshold, or less where that would be too late. Pure.
//!
//! # Headroom
//!
//! A signal stops a thread when it returns to user space. So of all threads of the container, each may charge the page that it is at
//! after another one has crossed the threshold. The kernel charges in batches of 64 pages (`MEMCG_CHARGE_BATCH`) of which the rest
//! stays on the CPU for the next charges there, and charges single pages where a batch finds no room: of batches there is one for
//! each CPU that the threads can run on. What must be left between threshold and limit is
//!
//! ```text
//! threads × 1 page + min(threads, CPUs) × 64 pages
//! ```
//!
//! A kernel that charges each page by itself needs less. Huge pages are not counted: where one finds no room, the kernel takes small
//! ones, and kills no process. What a long system call charges is the second brake's.
//!
//! # `memory.high`
//!
//! Where the kubelet or another process has set it, the kernel slows the container down from there on, for minutes before it reaches
//! a threshold above. It is held from there on.

use crate::policy::{Bytes, Threshold};

/// `MEMCG_CHARGE_BATCH`: pages that the kernel charges at a time.
const BATCH: u64 = 64;
/// The least share, in thousandths, as for a policy's threshold: from less on, a container would be held in the middle of its work.
const LEAST: u32 = 500;

/// What the share depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// `memory.max`; none: never held.
    pub limit: Option<Bytes>,
    /// `memory.high` by another process than the guard.
    pub high: Option<Bytes>,
    /// Threads of all its processes.
    pub threads: u64,
    /// CPUs of the node.
    pub cpus: u64,
    /// Bytes of a page.
    pub page: u64,
}

/// Why a container is not armed: it would be held at less than half of its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoShare {
    /// So many threads may charge between the threshold and their stop.
    #[error("its threads may charge more than half of its limit before they stop")]
    NoHeadroom,
    /// It never gets near its limit.
    #[error("memory.high, which another process has set, slows it down from less than half of its limit on")]
    Throttled,
}

impl NoShare {
    /// Its name in the log and in the status.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoHeadroom => "noHeadroom",
            Self::Throttled => "throttled",
        }
    }
}

/// In thousandths of the limit.
pub(crate) fn share(threshold: Threshold, sizes: Sizes) -> Result<u32, NoShare> {
    let Sizes { limit, high, threads, cpus, page } = sizes;
    let Some(limit) = limit.filter(|limit| limit.0 > 0) else { return Ok(threshold.per_mille()) };
    let pages = threads.saturating_add(threads.min(cpus).saturating_mul(BATCH));
    let of_limit = |bytes: u64| {
        let share = u128::from(bytes) * 1000 / u128::from(limit.0);
        u32::try_from(share).unwrap_or(u32::MAX)
    };
    let by_threads = of_limit(limit.0.saturating_sub(pages.saturating_mul(page)));
    let by_high = high.map_or(u32::MAX, |high| of_limit(high.0));
    if by_threads < LEAST {
        Err(NoShare::NoHeadroom)
    } else if by_high < LEAST {
        Err(NoShare::Throttled)
    } else {
        Ok(threshold.per_mille().min(by_threads).min(by_high))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Of a limit of 64 MiB, on four CPUs.
    fn with(threads: u64, high: Option<u64>) -> Result<u32, NoShare> {
        let (limit, high) = (Some(Bytes(64 * MIB)), high.map(|mib| Bytes(mib * MIB)));
        share(Threshold::default(), Sizes { limit, high, threads, cpus: 4, page: 4096 })
    }

    #[test]
    fn threads_leave_room_for_what_each_may_still_charge() {
        // A batch is a quarter of a MiB, a page a 256th.
        assert_eq!(with(1, None), Ok(900));
        assert_eq!(with(1000, None), Ok(900), "4.9 MiB of the 6.4 that are left");
        assert_eq!(with(2048, None), Ok(859), "9 MiB");
        assert_eq!(with(7936, None), Ok(500), "32 MiB");
        assert_eq!(with(7937, None), Err(NoShare::NoHeadroom));
        assert_eq!(with(u64::MAX, None), Err(NoShare::NoHeadroom));
        let small = Sizes { limit: Some(Bytes(MIB)), high: None, threads: 2, cpus: 1, page: 4096 };
        assert_eq!(share(Threshold::default(), small), Ok(742), "a batch for the one CPU");
    }

    #[test]
    fn what_another_process_slows_down_is_held_from_there_on() {
        assert_eq!(with(1, Some(64)), Ok(900));
        assert_eq!(with(1, Some(48)), Ok(750));
        assert_eq!(with(1, Some(32)), Ok(500));
        assert_eq!(with(1, Some(31)), Err(NoShare::Throttled));
    }

    #[test]
    fn without_a_limit_there_is_nothing_to_leave_room_for() {
        let none = Sizes { limit: None, high: Some(Bytes(1)), threads: 9000, cpus: 4, page: 4096 };
        assert_eq!(share(Threshold::default(), none), Ok(900));
        assert_eq!(share(Threshold::default(), Sizes { limit: Some(Bytes(0)), ..none }), Ok(900));
    }
}
