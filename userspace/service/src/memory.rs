//! Memory: how much this thread has allocated, and giving back what the allocator would keep. The kernel's type information alone fills
//! some 15 MB during the daemon's start-up.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static ALLOCATED: Cell<i64> = const { Cell::new(0) };
}

/// The system's allocator, which counts the bytes that each thread allocates and frees. A program that asks for [`allocated()`] makes it
/// its `#[global_allocator]`.
#[derive(Clone, Copy, Debug)]
pub struct CountingAllocator;

fn count(bytes: i64) {
    // A thread that is ending has no counter any more, and it is not read.
    let _ = ALLOCATED.try_with(|allocated| allocated.set(allocated.get() + bytes));
}

// No size of an allocation is larger than `isize::MAX`.
fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

// SAFETY: every call is passed on to the system's allocator as it is; counting allocates nothing and does not panic.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise, passed on.
        let pointer = unsafe { System.alloc(layout) };
        if !pointer.is_null() {
            count(signed(layout.size()));
        }
        pointer
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise, passed on.
        let pointer = unsafe { System.alloc_zeroed(layout) };
        if !pointer.is_null() {
            count(signed(layout.size()));
        }
        pointer
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(pointer, layout) };
        count(-signed(layout.size()));
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise, passed on.
        let new = unsafe { System.realloc(pointer, layout, size) };
        if !new.is_null() {
            count(signed(size) - signed(layout.size()));
        }
        new
    }
}

/// Bytes that this thread has allocated less those that it has freed; below zero where it freed what others had allocated. Always zero
/// without the [`CountingAllocator`].
pub fn allocated() -> i64 {
    ALLOCATED.with(Cell::get)
}

/// Gives back to the kernel what the allocator holds free.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it has no precondition, and takes the allocator's own locks.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
