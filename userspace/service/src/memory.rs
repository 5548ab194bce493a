//! Memory that was needed for a moment and that the allocator would keep: the kernel's type information alone fills some 15 MB
//! during start-up.

/// Gives back to the kernel what the allocator holds free.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it has no precondition, and takes the allocator's own locks.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
