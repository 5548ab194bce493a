//! How far the kernel has written into a ring, and how far it has been read.
//!
//! The kernel maps both positions to user space, the consumer's in the first page and the producer's in the second
//! (`kernel/bpf/ringbuf.c`, `struct bpf_ringbuf`). Only reads them; reading the records is [`super::ring`]'s.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use nix::libc;

/// The positions of one ring.
pub(super) struct Positions {
    pages: NonNull<libc::c_void>,
    page: usize,
}

// SAFETY: the mapping is not bound to a thread, and is only read, by atomic loads.
unsafe impl Send for Positions {}
// SAFETY: likewise.
unsafe impl Sync for Positions {}

impl Positions {
    pub(super) fn map(ring: BorrowedFd<'_>) -> io::Result<Self> {
        let page = usize::try_from(procfs::page_size()).map_err(io::Error::other)?;
        // SAFETY: a new mapping, of two pages that every ring has before its data.
        let pages = unsafe {
            libc::mmap(std::ptr::null_mut(), 2 * page, libc::PROT_READ, libc::MAP_SHARED, ring.as_raw_fd(), 0)
        };
        if pages == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let pages = NonNull::new(pages).ok_or_else(|| io::Error::other("a mapping at address 0"))?;
        Ok(Self { pages, page })
    }

    /// How many bytes have been reserved since the ring was made, those of records that are still written included.
    pub(super) fn produced(&self) -> u64 {
        self.load(self.page)
    }

    /// How many of them have been read.
    pub(super) fn consumed(&self) -> u64 {
        self.load(0)
    }

    fn load(&self, offset: usize) -> u64 {
        // SAFETY: an aligned word within the mapping, which lives as long as `self`; a long of the kernel's, which has 64 bits on
        // every architecture that the probes are built for.
        let word = unsafe { self.pages.byte_add(offset).cast::<AtomicU64>().as_ref() };
        word.load(Ordering::Acquire)
    }
}

impl Drop for Positions {
    fn drop(&mut self) {
        // SAFETY: the mapping that `map` made, which nothing borrows any more.
        unsafe { libc::munmap(self.pages.as_ptr(), 2 * self.page) };
    }
}
