//! Containers with more than one hog: several processes, several threads; and a hog that is being traced.

use anyhow::{Context as _, Result, ensure};
use kwitness_tests::context::TestContext;
use kwitness_tests::environment::Combination;
use kwitness_tests::hog::{self, POLICY, Piped, SIZE};
use nix::sched::{CloneFlags, clone};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::scene::{Scene, with_guard};

/// Set in a container whose first process is this program: how many threads fill memory.
const THREADS: &str = "KWITNESS_TEST_HOG_THREADS";
/// Set in one whose first process is this program, too: a child that shares its memory fills it, while the parent waits in vfork.
const VFORK: &str = "KWITNESS_TEST_HOG_VFORK";
/// Where such a container sees this program.
const PROGRAM_DIRECTORY: &str = "/program";

/// If this process is to be the hog of [`threads`] or [`vfork`]: fills the memory, and returns true.
pub(crate) fn run_as_hog() -> bool {
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

/// Two children that together need more than the limit.
pub(crate) async fn processes(ctx: &TestContext, combination: Combination) -> Result<()> {
    let half = SIZE / 2;
    let one = format!("head -c {half} /dev/zero | tail >/dev/null");
    let line = format!("({one}) & first=$!; ({one}) & wait $! && wait $first");
    finishes(ctx, combination, &line, Vec::new()).await
}

/// One process with four threads.
pub(crate) async fn threads(ctx: &TestContext, combination: Combination) -> Result<()> {
    program_finishes(ctx, combination, &format!("{THREADS}=4")).await
}

/// A child that is held while its parent cannot run.
pub(crate) async fn vfork(ctx: &TestContext, combination: Combination) -> Result<()> {
    program_finishes(ctx, combination, &format!("{VFORK}=1")).await
}

/// The first process of the container is this program, with that variable.
async fn program_finishes(ctx: &TestContext, combination: Combination, variable: &str) -> Result<()> {
    let program = std::env::current_exe().context("find this program")?;
    let directory = program.parent().context("this program has a directory")?.display().to_string();
    let name = program.file_name().context("this program has a name")?.display().to_string();
    let line = format!("{variable} exec {PROGRAM_DIRECTORY}/{name}");
    finishes(ctx, combination, &line, vec![(directory, PROGRAM_DIRECTORY.to_owned())]).await
}

/// A container whose work needs more than the limit ends well, and something of it was held.
async fn finishes(
    ctx: &TestContext,
    combination: Combination,
    line: &str,
    mounts: Vec<(String, String)>,
) -> Result<()> {
    with_guard(ctx, combination, POLICY, async |&Scene { node, guard, pod, .. }| {
        let directory = tempfile::tempdir_in("/run").context("make a directory")?;
        let line = format!("until [ -e /out/go ]; do sleep 0.1; done; {line}");
        let mut spec = hog::limited("several", &line, directory.path());
        spec.mounts.extend(mounts);
        let id = node.run(pod, &spec).await?;
        guard.wait_armed(1).await?;
        std::fs::write(directory.path().join("go"), "").context("start the hogs")?;
        let ended = node.wait_exited(&id).await?;
        ensure!(ended.exit_code == 0, "{ended:?}");
        let status = guard.status().await?;
        ensure!(!status.history.is_empty(), "nothing was held: {status:?}");
        Ok(())
    })
    .await
}

/// A debugger must see the process as it left it: this test traces the hog, which therefore is OOM-killed.
pub(crate) async fn traced(ctx: &TestContext, combination: Combination) -> Result<()> {
    with_guard(ctx, combination, POLICY, async |&Scene { node, guard, pod, .. }| {
        let piped = Piped::start(node, pod, "traced", guard).await?;
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
