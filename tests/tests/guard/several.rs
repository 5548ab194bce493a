//! Containers with more than one hog: several processes, several threads; and a hog that is being traced.

use std::fs;
use std::num::NonZeroUsize;

use kwitness_tests::hog::{self, POLICY, Piped, SIZE};
use kwitness_tests::pod::this_program;
use kwitness_tests::prelude::*;
use nix::sched::{CloneFlags, clone};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::scene::{Scene, with_guard};

/// Set in a container whose first process is this program: how many threads fill memory.
const THREADS: &str = "KWITNESS_TEST_HOG_THREADS";
/// Set in one whose first process is this program, too: a child that shares its memory fills it, while the parent waits in vfork.
const VFORK: &str = "KWITNESS_TEST_HOG_VFORK";
/// Set in one whose first process is this program, too: it fills the memory with transparent huge pages.
const HUGE_PAGES: &str = "KWITNESS_TEST_HOG_HUGE_PAGES";
/// Whether the kernel makes such pages.
const HUGE_PAGES_SETTING: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
/// More threads than the guard looks at to see whether a process has stopped.
const MANY: usize = 600;

/// If this process is to be the hog of [`threads`], [`vfork`] or [`huge_pages`]: fills the memory, and returns true.
pub(crate) fn run_as_hog() -> bool {
    if std::env::var_os(HUGE_PAGES).is_some() {
        if fill_huge_pages().is_none_or(|huge| huge == 0) {
            std::process::exit(1);
        }
        return true;
    }
    if std::env::var_os(VFORK).is_some() {
        fill_by_vfork();
        return true;
    }
    let Some(threads) = std::env::var(THREADS).ok().and_then(|threads| threads.parse::<usize>().ok()) else {
        return false;
    };
    let size = usize::try_from(SIZE).unwrap_or(usize::MAX) / threads;
    let hogs: Vec<_> = (0..threads).map(|_| std::thread::spawn(move || vec![1_u8; size])).collect();
    // What a thread has filled stays until all have.
    let filled: Vec<_> = hogs.into_iter().map(std::thread::JoinHandle::join).collect();
    if filled.iter().any(std::result::Result::is_err) {
        std::process::exit(1);
    }
    true
}

/// Ends this process unless the child fills the memory and ends well.
#[expect(unsafe_code, reason = "a bare vfork")]
fn fill_by_vfork() {
    let mut stack = vec![0; 1 << 20];
    let fill = || {
        let filled = vec![1_u8; usize::try_from(SIZE).unwrap_or(usize::MAX)];
        isize::from(filled.iter().any(|byte| *byte != 1))
    };
    let flags = CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK;
    // SAFETY: this process has one thread, which the kernel stops until the child has ended: what both share has one user at a time.
    let child = unsafe { clone(Box::new(fill), &mut stack, flags, Some(Signal::SIGCHLD as i32)) };
    let ended = child.and_then(|child| waitpid(child, None));
    if !matches!(ended, Ok(WaitStatus::Exited(_, 0))) {
        std::process::exit(1);
    }
}

/// Fills the memory; how many kilobytes of it are huge pages then.
#[expect(unsafe_code, reason = "a bare mmap(2) and madvise(2)")]
fn fill_huge_pages() -> Option<u64> {
    let size = NonZeroUsize::new(usize::try_from(SIZE).ok()?)?;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: at no address of the caller's choice, so that it replaces no other mapping.
    let memory = unsafe { mmap_anonymous(None, size, protection, MapFlags::MAP_PRIVATE) }.ok()?;
    // SAFETY: the whole mapping, whose contents stay.
    unsafe { madvise(memory, size.get(), MmapAdvise::MADV_HUGEPAGE) }.ok()?;
    // SAFETY: the whole mapping, which nothing else uses.
    unsafe { memory.cast::<u8>().write_bytes(1, size.get()) };
    let rollup = fs::read_to_string("/proc/self/smaps_rollup").ok()?;
    let huge = rollup.lines().find_map(|line| line.strip_prefix("AnonHugePages:"))?;
    huge.trim().strip_suffix(" kB")?.parse().ok()
}

/// Two children that together need more than the limit.
pub(crate) async fn processes(ctx: &Testbed<'_>) -> Result<()> {
    let half = SIZE / 2;
    let one = format!("head -c {half} /dev/zero | tail >/dev/null");
    let line = format!("({one}) & first=$!; ({one}) & wait $! && wait $first");
    finishes(ctx, &line, Vec::new()).await
}

/// One process with four threads.
pub(crate) async fn threads(ctx: &Testbed<'_>) -> Result<()> {
    program_finishes(ctx, &format!("{THREADS}=4")).await
}

/// One process with hundreds.
pub(crate) async fn many_threads(ctx: &Testbed<'_>) -> Result<()> {
    program_finishes(ctx, &format!("{THREADS}={MANY}")).await
}

/// One charge is of two megabytes, not of a quarter.
pub(crate) async fn huge_pages(ctx: &Testbed<'_>) -> Result<()> {
    let setting = fs::read_to_string(HUGE_PAGES_SETTING).context("this kernel has no huge pages")?;
    let chosen = setting.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
    let chosen = chosen.with_context(|| format!("{HUGE_PAGES_SETTING} says {setting}"))?;
    fs::write(HUGE_PAGES_SETTING, "madvise").context("have the kernel make huge pages")?;
    let done = program_finishes(ctx, &format!("{HUGE_PAGES}=1")).await;
    fs::write(HUGE_PAGES_SETTING, chosen).context("restore the setting of huge pages")?;
    done
}

/// A child that is held while its parent cannot run.
pub(crate) async fn vfork(ctx: &Testbed<'_>) -> Result<()> {
    program_finishes(ctx, &format!("{VFORK}=1")).await
}

/// The first process of the container is this program, with that variable.
async fn program_finishes(ctx: &Testbed<'_>, variable: &str) -> Result<()> {
    let (mount, program) = this_program()?;
    finishes(ctx, &format!("{variable} exec {program}"), vec![mount]).await
}

/// A container whose work needs more than the limit ends well, and something of it was held.
async fn finishes(ctx: &Testbed<'_>, line: &str, mounts: Vec<(String, String)>) -> Result<()> {
    with_guard(ctx, POLICY, async |&Scene { node, guard, pod, .. }| {
        let out = Out::make()?;
        let line = format!("{}; {line}", until("go"));
        let mut spec = hog::limited("several", &line, &out);
        spec.mounts.extend(mounts);
        let id = node.run(pod, &spec).await?;
        guard.wait_armed(1).await?;
        out.signal("go")?;
        let ended = node.wait_exited(&id).await?;
        ensure!(ended.exit_code == 0, "{ended:?}");
        let status = guard.status().await?;
        ensure!(!status.history.is_empty(), "nothing was held: {status:?}");
        Ok(())
    })
    .await
}

/// A debugger must see the process as it left it: this test traces the hog, which therefore is OOM-killed.
pub(crate) async fn traced(ctx: &Testbed<'_>) -> Result<()> {
    with_guard(ctx, POLICY, async |&Scene { node, guard, pod, .. }| {
        let piped = Piped::start(node, pod, "traced").await?;
        guard.wait_armed(1).await?;
        let pid = Pid::from_raw(node.pid(&piped.id).await?.cast_signed());
        ptrace::seize(pid, ptrace::Options::empty()).context("trace the hog")?;
        let mut filler = piped.fill()?;
        // The tracer is this thread, and the kernel reports to it first.
        let ended = waitpid(pid, None).context("wait for the hog")?;
        filler.wait().context("wait for sh")?;
        ensure!(matches!(ended, WaitStatus::Signaled(_, Signal::SIGKILL, _)), "{ended:?}");
        let status = guard.status().await?;
        ensure!(status.history.is_empty(), "{status:?}");
        ensure!(status.not_held.get("traced").is_some_and(|count| *count > 0), "{status:?}");
        Ok(())
    })
    .await
}
