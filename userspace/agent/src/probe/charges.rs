//! The program at charges of memory: its thresholds, and how often the kernel calls it, measured by touching memory of our own. Unless
//! [`charge_calls`] knows what speaks against it, the program stays.

use std::{num::NonZeroUsize, os::fd::AsFd as _};

use aya::{
    Ebpf,
    maps::{Map, MapData},
};
use kwitness_abi::ChargeSettings;
use kwitness_core::model::Thresholds;
use kwitness_service::charge_calls::{self, ATTEMPTS, CHARGED};
use nix::{
    libc::c_void,
    sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap},
};

use super::{counters::CountersView, report::Reason, settings::Charges};

/// What is touched at a time.
const TOUCHED: NonZeroUsize = NonZeroUsize::new(CHARGED as usize).expect("not zero");

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
    charge_calls::flaw(&calls(ebpf)?, procfs::page_size(), is_charged).map(Reason::Calls)
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
    let page = usize::try_from(procfs::page_size()).unwrap_or(TOUCHED.get());
    // SAFETY: advice on the mapping made above, which changes nothing in it. A kernel without huge pages refuses it.
    let _ = unsafe { madvise(memory, TOUCHED.get(), MmapAdvise::MADV_NOHUGEPAGE) };
    for offset in (0..TOUCHED.get()).step_by(page) {
        // SAFETY: within the mapping, which nothing else refers to.
        unsafe { memory.cast::<u8>().add(offset).write_volatile(1) };
    }
    // SAFETY: the mapping made above, which is not used any more.
    unsafe { munmap(memory.cast::<c_void>(), TOUCHED.get()) }.ok()
}
