//! The program at charges of memory: its thresholds, and how often the kernel calls it.
//!
//! It is to be called once per 64 pages: where a CPU's stock of charged pages is filled. A kernel that calls it for each page would
//! make each page fault of the node pay for it; one whose compiler has made the function a part of its caller would never call it.
//! Measured by touching memory of our own. Where this process is accounted in the root cgroup, which is not charged, nothing is
//! counted; unless it is known to be elsewhere, nothing is known then, and the program stays.

use std::{num::NonZeroUsize, os::fd::AsFd as _};

use aya::{
    Ebpf,
    maps::{Map, MapData},
};
use kwitness_abi::ChargeSettings;
use kwitness_core::model::Thresholds;
use nix::{
    libc::c_void,
    sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap},
};

use super::{counters::CountersView, report::Reason, settings::Charges};

/// Calls for each mebibyte that are too many; 64 pages of 4 KiB at a time make 4, one at a time 256.
const TOO_MANY: u64 = 64;
/// Pages that are charged at a time: `MEMCG_CHARGE_BATCH` of `include/linux/memcontrol.h`.
const BATCH: u64 = 64;
const MIB: usize = 1 << 20;
/// What is touched at a time.
const TOUCHED: NonZeroUsize = NonZeroUsize::new(4 * MIB).expect("not zero");
/// What others charge meanwhile is counted, too: the least of so many attempts counts, and none is nothing only if all are.
const ATTEMPTS: usize = 5;

/// [`ChargeSettings`] as the value of a global.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct ChargesGlobal(ChargeSettings);

// SAFETY: `repr(C)`, integers only, without padding (asserted in the abi crate).
unsafe impl aya::Pod for ChargesGlobal {}

/// The value of the programs' global `CHARGES`.
pub(super) fn global(charges: &Charges) -> impl aya::Pod + use<> {
    ChargesGlobal(match charges {
        Charges::Across(thresholds) => as_taken(thresholds),
        Charges::Off | Charges::Untracked => ChargeSettings::NONE,
    })
}

/// Thresholds as the programs take them.
fn as_taken(thresholds: &Thresholds) -> ChargeSettings {
    const { assert!(Thresholds::MAX == kwitness_abi::THRESHOLDS_MAX) };
    let (percent, hysteresis) = (thresholds.percent(), thresholds.hysteresis());
    let mut settings = ChargeSettings {
        count: percent.len() as u8,
        hysteresis,
        // The band that a level has to pass on its way up is as wide as the hysteresis. Never 0, for then levels without a limit
        // would be looked at, too.
        floor: percent.first().map_or(u8::MAX, |lowest| lowest.saturating_sub(2 * hysteresis).max(1)),
        page_shift: procfs::page_size().trailing_zeros() as u8,
        ..ChargeSettings::NONE
    };
    settings.percent[..percent.len()].copy_from_slice(percent);
    settings
}

/// What speaks against the program, by how often the kernel calls it; none: nothing does, or nothing is known. With `is_charged`, this
/// process is known to be charged for what it touches.
pub(super) fn flaw(ebpf: &Ebpf, is_charged: bool) -> Option<Reason> {
    judge(&calls(ebpf)?, procfs::page_size(), is_charged)
}

/// The same by the calls that each attempt took, with pages of so many bytes.
fn judge(calls: &[u64], page_size: u64, is_charged: bool) -> Option<Reason> {
    let (least, most) = (calls.iter().min()?, calls.iter().max()?);
    // With large pages, an attempt may be served from the stock.
    let takes_calls = TOUCHED.get() as u64 / page_size >= 4 * BATCH;
    if *most == 0 && is_charged && takes_calls {
        return Some(Reason::NeverCalled);
    }
    let per_mebibyte = least / (TOUCHED.get() / MIB) as u64;
    (per_mebibyte >= TOO_MANY).then_some(Reason::CalledTooOften(per_mebibyte))
}

/// Calls during each attempt; none: the counters or memory cannot be had.
fn calls(ebpf: &Ebpf) -> Option<Vec<u64>> {
    let Map::Array(map) = ebpf.map("COUNTERS")? else { return None };
    let map = MapData::from_fd(map.fd().as_fd().try_clone_to_owned().ok()?).ok()?;
    let counters = CountersView::new(Map::from_map_data(map).ok()?).ok()?;
    let measured = (0..ATTEMPTS).map(|_| {
        let before = counters.sum().charges;
        touch()?;
        Some(counters.sum().charges - before)
    });
    measured.collect()
}

/// Has new memory charged, page by page.
fn touch() -> Option<()> {
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping, at an address that the kernel chooses.
    let memory = unsafe { mmap_anonymous(None, TOUCHED, access, MapFlags::MAP_PRIVATE) }.ok()?;
    let page = usize::try_from(procfs::page_size()).unwrap_or(MIB);
    // SAFETY: advice on the mapping made above, which changes nothing in it. A kernel without huge pages refuses it.
    let _ = unsafe { madvise(memory, TOUCHED.get(), MmapAdvise::MADV_NOHUGEPAGE) };
    for offset in (0..TOUCHED.get()).step_by(page) {
        // SAFETY: within the mapping, which nothing else refers to.
        unsafe { memory.cast::<u8>().add(offset).write_volatile(1) };
    }
    // SAFETY: the mapping made above, which is not used any more.
    unsafe { munmap(memory.cast::<c_void>(), TOUCHED.get()) }.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_that_is_called_for_each_page_or_never_is_refused() {
        let page = 4096;
        for (calls, is_charged, expected) in [
            (&[16, 17, 40][..], true, None),
            (&[0, 0, 0], false, None),
            (&[0, 1, 0], true, None),
            (&[0, 0, 0], true, Some("the kernel charges memory without calling it")),
            (
                &[1030, 1024, 2000],
                false,
                Some("the kernel calls it 256 times for each MiB charged: too dear for page faults"),
            ),
            // Each of the others' charges.
            (&[16, 5000], true, None),
            (&[], true, None),
        ] {
            let flaw = judge(calls, page, is_charged).map(|reason| reason.to_string());
            assert_eq!(flaw.as_deref(), expected, "{calls:?}");
        }
        assert!(judge(&[0, 0], 64 << 10, true).is_none(), "the stock may have been enough");
    }
}
