//! A file mapped into memory for writing: what is stored there survives the process, at whatever instant it ends.
//!
//! Owns the mapping. Knows nothing of what is written. In the probes' module for its `unsafe`.
//!
//! A write beyond the end of the file would end the process (SIGBUS). The file has its whole memory from the beginning, and only
//! its owner, who may end the process anyhow, can shorten it.

use std::{
    fs::OpenOptions,
    io,
    num::NonZeroUsize,
    os::{fd::AsFd as _, unix::fs::OpenOptionsExt as _},
    path::Path,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use nix::{
    fcntl::{FallocateFlags, fallocate},
    libc::{self, c_void},
    sys::mman::{MapFlags, ProtFlags, mmap, munmap},
};

/// A new file of a fixed size, all of whose memory there is.
#[derive(Debug)]
pub struct MappedFile {
    address: NonNull<c_void>,
    bytes: NonZeroUsize,
}

// SAFETY: the mapping stays where it is until it is dropped, and is written to by whoever has `&mut` only.
unsafe impl Send for MappedFile {}
// SAFETY: as above; `&` gives no access to it.
unsafe impl Sync for MappedFile {}

impl MappedFile {
    /// Makes the file, which must not exist, for its owner alone. Its memory is allocated now: no write fails for it later.
    pub fn create(path: &Path, bytes: NonZeroUsize) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let file = options.open(path)?;
        let length = i64::try_from(bytes.get()).map_err(io::Error::other)?;
        fallocate(&file, FallocateFlags::empty(), 0, length)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, at an address that the kernel chooses, of a file that has so many bytes.
        let address = unsafe { mmap(None, bytes, access, MapFlags::MAP_SHARED, file.as_fd(), 0) }?;
        Ok(Self { address, bytes })
    }

    /// How many bytes there are.
    pub fn size(&self) -> usize {
        self.bytes.get()
    }

    /// Stores bytes at an offset.
    ///
    /// # Panics
    /// They do not fit.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset <= self.size() && bytes.len() <= self.size() - offset, "within the file");
        // SAFETY: the target lies within the mapping, as asserted, and nothing else refers to it.
        unsafe {
            let target = self.address.cast::<u8>().add(offset);
            target.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
    }

    /// Stores a number at an offset, after everything that was written before.
    ///
    /// # Panics
    /// It does not fit, or is not aligned.
    pub fn publish(&mut self, offset: usize, number: u64) {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.size(), "aligned, and within the file");
        // SAFETY: within the mapping and aligned, as asserted.
        let word = unsafe { self.address.byte_add(offset).cast::<AtomicU64>().as_ref() };
        word.store(number, Ordering::Release);
    }
}

impl Drop for MappedFile {
    fn drop(&mut self) {
        // SAFETY: the mapping made above, which is not used any more. It cannot fail with these arguments.
        let _ = unsafe { munmap(self.address, self.bytes.get()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_in_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let mut file = MappedFile::create(&path, NonZeroUsize::new(4096).unwrap()).unwrap();
        file.write(8, b"abc");
        file.publish(0, 3);
        let text = std::fs::read(&path).unwrap();
        assert_eq!((&text[..8], &text[8..11], text.len()), (&3_u64.to_ne_bytes()[..], &b"abc"[..], 4096));
        assert!(MappedFile::create(&path, NonZeroUsize::MIN).is_err(), "it exists");
    }
}
