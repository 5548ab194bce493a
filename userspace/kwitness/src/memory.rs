//! Memory that starting took for a moment and nobody needs any more: the kernel's type information alone fills some 15 MB, which
//! the allocator would keep; and the code that has run once stays mapped.

use std::ptr::NonNull;

use nix::libc::c_void;
use nix::sys::mman::{MmapAdvise, madvise};
use procfs::process::{MMPermissions, MMapPath, Process};

/// Gives back to the kernel what the allocator holds free.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it has no precondition, and takes the allocator's own locks.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

/// Unmaps the program's own code and constants; what is needed of them comes back from the page cache, page by page, when it is next
/// used. For a process that serves with a small part of what it started with.
///
/// # Errors
/// The process's mappings cannot be read, or the kernel refuses: nothing is lost by that.
pub fn give_back_code() -> anyhow::Result<()> {
    let own = std::env::current_exe()?;
    for map in Process::myself()?.smaps()? {
        let is_own = matches!(&map.pathname, MMapPath::Path(path) if *path == own);
        let is_written = map.perms.contains(MMPermissions::WRITE)
            || map.extension.map.get("Anonymous").is_none_or(|bytes| *bytes > 0);
        let (from, to) = map.address;
        let start = NonNull::new(std::ptr::with_exposed_provenance_mut::<c_void>(from as usize));
        let Some(start) = start.filter(|_| is_own && !is_written) else { continue };
        let length = (to - from) as usize;
        // Two MiB at once, where the page cache has them so, would bring back what nobody needs. A kernel without is as well.
        // SAFETY: it changes only how the range's pages are mapped.
        let _ = unsafe { madvise(start, length, MmapAdvise::MADV_NOHUGEPAGE) };
        // SAFETY: the range is a mapping of our own program's file that nobody can write to, and that has no page but the file's:
        // relocated data, which has, is left out. So each page is the same again when it is next used.
        unsafe { madvise(start, length, MmapAdvise::MADV_DONTNEED)? };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_that_is_given_back_is_there_when_it_is_needed() {
        let mapped = || Process::myself().unwrap().status().unwrap().rssfile.unwrap();
        let before = mapped();
        give_back_code().unwrap();
        let after = mapped();
        assert!(after < before, "{before} kB, then {after} kB");
    }
}
