//! Memory: how much this thread has allocated, and giving back what the allocator would keep. The kernel's type information alone fills
//! some 15 MB during the daemon's start-up. What walks the allocator's arenas, behind each one's lock, runs where nothing waits for it.
//!
//! ```text
//!  an arena of glibc:  │ used │ free │ used │ top: free │
//!                                │             └─ of a thread's arena: `give_back_of_thread`, or when more than TOP_MAX is free
//!                                └─ `give_back`
//! ```

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

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

/// Bytes that may be free at the top of a thread's arena: no less than what the largest answers take again and again.
#[cfg(target_env = "gnu")]
const TOP_MAX: i32 = 32 << 20;
/// A free block of so many bytes has the allocator look at the top of the arena that it was in.
#[cfg(target_env = "gnu")]
const LOOKED_AT: usize = 128 << 10;

/// Gives back what is free at the top of this thread's arena: for a thread that has used much and ends, as its arena is used on by another,
/// if by any.
pub fn give_back_of_thread() {
    #[cfg(target_env = "gnu")]
    {
        let bound = |parameter, bytes| {
            // SAFETY: it has no precondition, and takes the allocator's own lock.
            unsafe { nix::libc::mallopt(parameter, bytes) }
        };
        bound(nix::libc::M_TRIM_THRESHOLD, 0);
        // Allocated at the top, and freed there.
        drop(std::hint::black_box(vec![1_u8; LOOKED_AT]));
        // Once one of the two is set, the allocator adapts neither.
        bound(nix::libc::M_TRIM_THRESHOLD, TOP_MAX);
        bound(nix::libc::M_MMAP_THRESHOLD, TOP_MAX);
    }
}

/// How much more the allocator must hold free than after the last time before it is worth giving back, in bytes.
const WORTHWHILE: usize = 16 << 20;
/// Between two looks.
const PERIOD: Duration = Duration::from_secs(10);

/// Gives back what the allocator holds free after a peak: what a burst of events or a few large answers took once, the process would
/// otherwise keep. Never ends.
pub async fn give_back_after_peaks() {
    look_after(held_free, trim).await;
}

async fn look_after(
    held_free: impl Fn() -> usize + Copy + Send + 'static,
    trim: impl Fn() + Copy + Send + 'static,
) {
    let mut peaks = Peaks::default();
    let mut looks = tokio::time::interval(PERIOD);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let look = move || {
            if peaks.is_past(held_free()) {
                trim();
                peaks.gave_back(held_free());
            }
            peaks
        };
        // What it panics with is nothing.
        if let Ok(looked) = tokio::task::spawn_blocking(look).await {
            peaks = looked;
        }
    }
}

/// What the allocator has been seen to hold free.
#[derive(Clone, Copy, Debug, Default)]
struct Peaks {
    /// The least since it was given back last. What was given back counts as held free all the same.
    least: usize,
}

impl Peaks {
    fn is_past(&mut self, free: usize) -> bool {
        self.least = self.least.min(free);
        free - self.least >= WORTHWHILE
    }

    fn gave_back(&mut self, free: usize) {
        self.least = free;
    }
}

/// Bytes that the allocator holds free, or has held and given back; zero where that is not known.
fn held_free() -> usize {
    #[cfg(target_env = "gnu")]
    // SAFETY: it has no precondition, and takes the allocator's own locks.
    return unsafe { nix::libc::mallinfo2() }.fordblks;
    #[cfg(not(target_env = "gnu"))]
    0
}

/// Gives back to the kernel what the allocator holds free, soon. Within a tokio runtime.
pub fn give_back() {
    drop(tokio::task::spawn_blocking(trim));
}

fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it has no precondition, and takes the allocator's own locks.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_given_back_once_after_each_peak() {
        let mut peaks = Peaks::default();
        let megabytes = |count: usize| count << 20;
        assert!(!peaks.is_past(megabytes(15)), "not worthwhile");
        assert!(peaks.is_past(megabytes(40)));
        peaks.gave_back(megabytes(38));
        assert!(!peaks.is_past(megabytes(50)));
        assert!(!peaks.is_past(megabytes(2)), "in use again");
        assert!(peaks.is_past(megabytes(18)), "and free again");
    }

    #[tokio::test(start_paused = true)]
    async fn what_walks_the_arenas_runs_on_no_thread_of_the_runtime() {
        let (send, mut looks) = tokio::sync::mpsc::unbounded_channel();
        let send: &'static tokio::sync::mpsc::UnboundedSender<_> = Box::leak(Box::new(send));
        let on = |what: &'static str| send.send((what, std::thread::current().id())).unwrap();
        let looking = look_after(
            move || {
                on("look");
                2 * WORTHWHILE
            },
            move || on("trim"),
        );
        let seen = async {
            for expected in ["look", "trim", "look"] {
                let (what, thread) = looks.recv().await.unwrap();
                assert_eq!(what, expected);
                assert_ne!(thread, std::thread::current().id());
            }
        };
        tokio::select! {
            () = looking => {}
            () = seen => {}
        }
    }

    /// Set in the process that a test starts, and not in the one that starts it.
    #[cfg(target_env = "gnu")]
    const CHILD: &str = "KWITNESS_TEST_MEMORY";

    /// Kilobytes of memory that this process has.
    #[cfg(target_env = "gnu")]
    fn resident() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[cfg(target_env = "gnu")]
    #[test]
    fn what_is_free_at_the_top_of_a_threads_arena_is_given_back() {
        const PIECES: usize = 6 << 10;
        const NAME: &str = "memory::tests::what_is_free_at_the_top_of_a_threads_arena_is_given_back";
        if std::env::var_os(CHILD).is_none() {
            // In a process of its own: what other tests take meanwhile would count.
            let mut child = std::process::Command::new(std::env::current_exe().unwrap());
            let output = child.args(["--exact", NAME]).env(CHILD, "1").output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && said.contains("1 passed"), "{said}");
            return;
        }
        // As the kernel's type information does: from then on, a free leaves more than all of the pieces at the top.
        drop(std::hint::black_box(vec![1_u8; 16 << 20]));
        let turn = std::sync::Arc::new(std::sync::Barrier::new(2));
        let of_thread = std::sync::Arc::clone(&turn);
        let thread = std::thread::spawn(move || {
            let mut pieces: Vec<Box<[u8; 4096]>> = Vec::with_capacity(PIECES);
            pieces.extend((0..PIECES).map(|_| Box::new([1; 4096])));
            of_thread.wait();
            drop(std::hint::black_box(pieces));
            trim();
            of_thread.wait();
            of_thread.wait();
            give_back_of_thread();
            of_thread.wait();
        });
        turn.wait();
        turn.wait();
        let trimmed = resident();
        turn.wait();
        turn.wait();
        let left = resident();
        thread.join().unwrap();
        // Of 24 MiB.
        assert!(left + (20 << 10) <= trimmed, "{trimmed} kB before, {left} after");
    }

    /// Many small pieces, with one that stays above them: by itself, the allocator keeps what lies below that.
    #[cfg(target_env = "gnu")]
    #[test]
    fn what_was_freed_after_a_peak_is_given_back() {
        const PIECES: usize = 64 << 10;
        let before = held_free();
        let mut pieces: Vec<Box<[u8; 1024]>> = (0..PIECES).map(|_| Box::new([1; 1024])).collect();
        let last = pieces.pop();
        drop(pieces);
        let (peak, free) = (resident(), held_free());
        assert!(free >= before + WORTHWHILE, "{before} bytes were free before, {free} after");
        trim();
        let left = resident();
        // Of 64 MiB, half at least, whatever other tests do meanwhile.
        assert!(left + (32 << 10) <= peak, "{peak} kB before, {left} after");
        drop(last);
    }
}
