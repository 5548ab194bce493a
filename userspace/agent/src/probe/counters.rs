//! The kernel side's counters of what it could not deliver, read where it writes them: the map is mapped into memory.
//!
//! Owns the mapping. Never a system call after it is made, because a map operation by system call keeps the kernel from
//! running classic tracepoints' programs on that CPU until it returns.

use std::{
    io,
    num::NonZeroUsize,
    os::fd::AsFd as _,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use aya::{
    maps::{Array, IterableMap as _, Map, MapData, MapError},
    util::nr_cpus,
};
use kwitness_abi::Counters;
use nix::{
    libc::c_void,
    sys::mman::{MapFlags, ProtFlags, mmap, munmap},
};

/// Counters in a [`Counters`].
const WORDS: usize = size_of::<Counters>() / size_of::<u64>();

/// [`Counters`] as the value of a map.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct CountersValue(Counters);

// SAFETY: `repr(C)`, integers only, without padding.
unsafe impl aya::Pod for CountersValue {}

/// How many elements the map has: one for each CPU that there may ever be.
pub(super) fn elements() -> io::Result<u32> {
    let cpus = nr_cpus().map_err(|(_, error)| error)?;
    u32::try_from(cpus).map_err(io::Error::other)
}

/// The counters of all CPUs.
pub(super) struct CountersView {
    address: NonNull<c_void>,
    bytes: NonZeroUsize,
    cpus: usize,
}

// SAFETY: it is only read from, atomically, and stays where it is until it is dropped.
unsafe impl Send for CountersView {}
// SAFETY: as above.
unsafe impl Sync for CountersView {}

impl CountersView {
    pub(super) fn new(map: Map) -> Result<Self, MapError> {
        let array = Array::<MapData, CountersValue>::try_from(map)?;
        let cpus = array.len() as usize;
        let bytes = NonZeroUsize::new(cpus * size_of::<Counters>()).ok_or(MapError::ElementNotFound)?;
        // SAFETY: a new mapping, at an address that the kernel chooses, of a map that has at least so many bytes.
        let address = unsafe {
            mmap(None, bytes, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, array.map().fd().as_fd(), 0)
        };
        let address = address
            .map_err(|errno| MapError::IoError(io::Error::other(format!("mmap(2) of the map: {errno}"))))?;
        Ok(Self { address, bytes, cpus })
    }

    /// The sum over all CPUs.
    pub(super) fn sum(&self) -> Counters {
        let mut sum = [0; WORDS];
        for cpu in 0..self.cpus {
            for (word, total) in sum.iter_mut().enumerate() {
                // SAFETY: within the mapping, aligned, and written by the kernel in whole words.
                let counter = unsafe { self.address.cast::<AtomicU64>().add(cpu * WORDS + word).as_ref() };
                *total += counter.load(Ordering::Relaxed);
            }
        }
        // SAFETY: the same size, and any integers are counters.
        unsafe { std::mem::transmute::<[u64; WORDS], Counters>(sum) }
    }
}

impl Drop for CountersView {
    fn drop(&mut self) {
        // SAFETY: the mapping made above, which is not used any more. It cannot fail with these arguments.
        let _ = unsafe { munmap(self.address, self.bytes.get()) };
    }
}
