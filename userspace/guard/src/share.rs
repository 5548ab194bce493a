//! From what share of its limit on a container is held: the policy's threshold, or less where that would be too late. Pure.
//!
//! # Headroom
//!
//! A signal stops a thread when it returns to user space, and it is sent when a process has the kernel charge pages to the cgroup.
//! After the first process has crossed the threshold, these charge before they stop, as `mm/memcontrol.c` of Linux 6.18 has it:
//!
//! - **Each other process, a batch.** `try_charge_memcg` charges 64 pages at a time (`MEMCG_CHARGE_BATCH`), takes what it needs, and
//!   leaves the rest in the CPU's stock (`refill_stock`). `consume_stock` then serves the next process there, and no program sees it:
//!   all of its pages are used before that process charges a batch of its own, and is stopped.
//! - **Each thread, what it is at.** The others of a process stop when the one that charged has returned to user space
//!   (`do_signal_stop`). A page fault charges a page, and one for each level of page tables that is not there yet (`__GFP_ACCOUNT`).
//! - **Each CPU that these run on, a batch:** the stock that no thread uses. `drain_all_stock` does not wait for other CPUs, and leaves
//!   out isolated ones.
//!
//! ```text
//! threads × 5 pages + (processes + min(threads, CPUs)) × 64 pages
//! ```
//!
//! A kernel that charges each page by itself needs less. Huge pages are not counted: where one finds no room, the kernel takes small
//! ones, and kills no process (`mem_cgroup_oom`: no order above `PAGE_ALLOC_COSTLY_ORDER`). But one that finds room takes eight
//! batches. What a long system call charges is the second brake's.
//!
//! # `memory.high`
//!
//! Where the kubelet or another process has set it, the kernel slows the container down from there on, for minutes before it reaches
//! a threshold above. It is held from there on.

use crate::policy::{Bytes, Threshold};

/// `MEMCG_CHARGE_BATCH`: pages that the kernel charges at a time.
const BATCH: u64 = 64;
/// Pages that a page fault charges at most: one, and the tables of the four levels below the top of five (`__handle_mm_fault`).
const FAULT: u64 = 5;
/// The least share, in thousandths, as for a policy's threshold: from less on, a container would be held in the middle of its work.
const LEAST: u32 = 500;

/// What the share depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// `memory.max`; none: never held.
    pub limit: Option<Bytes>,
    /// `memory.high` by another process than the guard.
    pub high: Option<Bytes>,
    /// Its processes.
    pub processes: u64,
    /// Threads of all of them.
    pub threads: u64,
    /// CPUs of the node.
    pub cpus: u64,
    /// Bytes of a page.
    pub page: u64,
}

/// Why a container is not armed: it would be held at less than half of its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoShare {
    /// So many threads may charge between the threshold and their stop.
    #[error("its processes and threads may charge more than half of its limit before they stop")]
    NoHeadroom,
    /// It never gets near its limit.
    #[error("memory.high, which another process has set, slows it down from less than half of its limit on")]
    Throttled,
}

impl NoShare {
    /// Its name in the log and in the status.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::NoHeadroom => "noHeadroom",
            Self::Throttled => "throttled",
        }
    }
}

/// In thousandths of the limit.
pub(crate) fn share(threshold: Threshold, sizes: Sizes) -> Result<u32, NoShare> {
    let Sizes { limit, high, processes, threads, cpus, page } = sizes;
    let Some(limit) = limit.filter(|limit| limit.0 > 0) else { return Ok(threshold.per_mille()) };
    let batches = processes.saturating_add(threads.min(cpus));
    let pages = threads.saturating_mul(FAULT).saturating_add(batches.saturating_mul(BATCH));
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
    const PAGE: u64 = 4096;

    fn sizes(mib: u64, processes: u64, threads: u64) -> Sizes {
        Sizes { limit: Some(Bytes(mib * MIB)), high: None, processes, threads, cpus: 4, page: PAGE }
    }

    fn of(sizes: Sizes) -> Result<u32, NoShare> {
        share(Threshold::default(), sizes)
    }

    #[test]
    fn processes_and_threads_leave_room_for_what_each_may_still_charge() {
        // 64 MiB are 16384 pages.
        let with = |processes, threads| of(sizes(64, processes, threads));
        assert_eq!(with(1, 1), Ok(900));
        assert_eq!(with(1, 260), Ok(900), "1620 pages of the 1638 that are left");
        assert_eq!(with(1, 1000), Ok(675), "5320");
        assert_eq!(with(20, 20), Ok(900), "1636");
        assert_eq!(with(60, 60), Ok(731), "4396");
        assert_eq!(with(1, 1574), Ok(500), "8190");
        assert_eq!(with(1, 1575), Err(NoShare::NoHeadroom));
        assert_eq!(with(u64::MAX, u64::MAX), Err(NoShare::NoHeadroom));
        assert_eq!(of(Sizes { cpus: 1, ..sizes(2, 1, 2) }), Ok(730), "one CPU: 138 of 512");
    }

    #[test]
    fn what_another_process_slows_down_is_held_from_there_on() {
        let with = |high| of(Sizes { high: Some(Bytes(high * MIB)), ..sizes(64, 1, 1) });
        assert_eq!(with(64), Ok(900));
        assert_eq!(with(48), Ok(750));
        assert_eq!(with(32), Ok(500));
        assert_eq!(with(31), Err(NoShare::Throttled));
    }

    #[test]
    fn without_a_limit_there_is_nothing_to_leave_room_for() {
        let none = Sizes { limit: None, high: Some(Bytes(1)), ..sizes(0, 9000, 9000) };
        assert_eq!(of(none), Ok(900));
        assert_eq!(of(Sizes { limit: Some(Bytes(0)), ..none }), Ok(900));
    }

    /// `try_charge_memcg` for pages that nothing can be reclaimed for.
    struct Kernel {
        limit: u64,
        usage: u64,
        stock: Vec<u64>,
    }

    impl Kernel {
        /// Charges a page on a CPU; what the usage would have been with the batch, if a program has seen one.
        fn charge(&mut self, cpu: usize) -> Option<u64> {
            if self.stock[cpu] > 0 {
                self.stock[cpu] -= 1;
                return None;
            }
            let seen = self.usage + BATCH;
            let is_batch = seen <= self.limit;
            self.usage += if is_batch { BATCH } else { 1 };
            self.stock[cpu] = if is_batch { BATCH - 1 } else { 0 };
            assert!(self.usage <= self.limit, "OOM kill: {} of {} pages", self.usage, self.limit);
            Some(seen)
        }
    }

    /// Each process charges until it is held; then each of its threads is at a page fault. Stocks that are left over are not drained.
    #[test]
    fn no_process_is_killed_before_all_are_held() {
        for (mib, processes, threads_of_each, cpus) in [
            (64, 1, 1, 1),
            (64, 1, 1500, 1),
            (64, 1, 1500, 8),
            (64, 100, 1, 1),
            (64, 100, 1, 8),
            (64, 40, 10, 2),
            (2, 1, 1, 1),
            (1024, 1500, 1, 4),
        ] {
            let threads = processes * threads_of_each;
            let sizes = Sizes { cpus, ..sizes(mib, processes, threads) };
            let Ok(share) = of(sizes) else { panic!("{sizes:?} is not held") };
            let limit = mib * MIB / PAGE;
            let threshold = limit * u64::from(share);
            let usage = threshold / 1000 - 1;
            let mut kernel = Kernel { limit, usage, stock: vec![0; usize::try_from(cpus).unwrap()] };
            let mut cpu = (0..kernel.stock.len()).cycle();
            for _ in 0..processes {
                let first = cpu.next().unwrap();
                while kernel.charge(first).is_none_or(|seen| seen * 1000 < threshold) {}
                for _ in 0..threads_of_each * FAULT {
                    kernel.charge(cpu.next().unwrap());
                }
            }
        }
    }
}
