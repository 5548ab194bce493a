//! Nothing stays stopped: the raise never answers, and the guard is lost meanwhile.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use kwitness_api::proto::Event;
use kwitness_api::proto::event::Kind;
use kwitness_tests::cgroup::TestCgroup;
use kwitness_tests::guard::{is_stopped, wait_continued, wait_ended, wait_stopped};
use kwitness_tests::hog::{self, POD};
use kwitness_tests::prelude::*;
use kwitness_tests::process::{cgroup_path, signal};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// How long a container may take to be ready.
const READY_LIMIT: Duration = Duration::from_secs(120);
const LONG: &str = "10s";
/// The longest time that a process is stopped, whatever happens: the longest hold, and a second.
const PROMISED: Duration = Duration::from_secs(11);
const SHORT: &str = "1s";
/// A container with a bystander and a hog, which begins when it is let.
const LINE: &str = "sleep 1000 & until [ -e /out/go ]; do sleep 0.1; done; tail </dev/zero; exec sleep 1000";

/// The hold ends by its own deadline.
pub(crate) async fn overdue(ctx: &Testbed<'_>) -> Result<()> {
    scene(ctx, SHORT, async |guard, _| {
        let ended = guard.wait("the end of the hold", |status| status.history.last().cloned()).await?;
        ensure!(ended.refused.as_deref() == Some("tooLate"), "{ended:?}");
        ensure!(ended.decided_ms >= 1000, "{ended:?}");
        for pid in ended.held {
            wait_continued(pid).await?;
        }
        guard.stop()
    })
    .await
}

/// The watchdog ends it, and continues nothing that another process stopped.
pub(crate) async fn killed(ctx: &Testbed<'_>) -> Result<()> {
    scene(ctx, LONG, async |mut guard, Processes { bystander, watchdog, .. }| {
        let held = held(&guard).await?;
        guard.kill()?;
        held.wait_continued().await?;
        guard.wait_log("guardDead").await?;
        wait_ended("the watchdog's end", watchdog).await?;
        ensure!(is_stopped(bystander) == Some(true), "a process that another one stopped was continued");
        Ok(())
    })
    .await
}

/// The lease ends.
pub(crate) async fn paused(ctx: &Testbed<'_>) -> Result<()> {
    scene(ctx, LONG, async |guard, Processes { bystander, agent, id, .. }| {
        let held = held(&guard).await?;
        let paused = guard.pause()?;
        held.wait_continued().await?;
        guard.wait_log("leaseEnded").await?;
        ensure!(is_stopped(bystander) == Some(true), "a process that another one stopped was continued");
        drop(paused);
        reported(agent, &id, "leaseEnded").await.with_context(|| guard.log_tail())?;
        guard.stop()
    })
    .await
}

/// Without a watchdog nothing may be held: the guard ends everything, and starts another one.
pub(crate) async fn alone(ctx: &Testbed<'_>) -> Result<()> {
    without_watchdog(ctx, Signal::SIGKILL).await
}

/// Nor with one that hangs.
pub(crate) async fn unwatched(ctx: &Testbed<'_>) -> Result<()> {
    without_watchdog(ctx, Signal::SIGSTOP).await
}

async fn without_watchdog(ctx: &Testbed<'_>, how: Signal) -> Result<()> {
    scene(ctx, LONG, async |guard, Processes { bystander, watchdog, .. }| {
        let held = held(&guard).await?;
        signal(watchdog, how)?;
        held.wait_continued().await?;
        let ended = guard.wait("the end of the hold", |status| status.history.last().cloned()).await?;
        ensure!(ended.refused.as_deref() == Some("watchdogLost"), "{ended:?}");
        wait_ended("the watchdog's end", watchdog).await?;
        let another = guard.wait("another watchdog", |status| status.watchdog_pid).await?;
        ensure!(another != watchdog, "the watchdog was not replaced");
        ensure!(is_stopped(bystander) == Some(true), "a process that another one stopped was continued");
        guard.stop()
    })
    .await
}

/// The kernel kills the guard for its own memory. Its watchdog, in another cgroup, continues what is held, and the next guard
/// reports it.
pub(crate) async fn oom_killed(ctx: &Testbed<'_>) -> Result<()> {
    hold(ctx, LONG, LINE, async |mut guard, Processes { watchdog, agent, id, .. }| {
        let root = Path::new("/sys/fs/cgroup");
        cgroup::write(root, "cgroup.subtree_control", "+memory")?;
        let own = TestCgroup::make(root, &format!("kwitness-test-guard-{}", std::process::id()))?;
        own.enter(guard.pid())?;
        let held = held(&guard).await?;
        // While anything is held, it looks at it forty times a second, and each look takes memory of the kernel's.
        cgroup::write(own.directory(), "memory.max", 0)?;
        let killed = async || Ok((memory_event(own.directory(), "oom_kill")? > 0).then_some(()));
        wait_for("the guard's OOM kill", READY_LIMIT, killed).await.with_context(|| guard.log_tail())?;
        ensure!(!guard.wait_ended()?.success(), "an OOM-killed guard ended well");
        held.wait_continued().await?;
        guard.wait_log("guardDead").await?;
        wait_ended("the watchdog's end", watchdog).await?;
        let guard = guard.start_again().await?;
        reported(agent, &id, "guardDead").await.with_context(|| guard.log_tail())?;
        guard.stop()
    })
    .await
}

/// Waits until the daemon has the event of a hold of that container which ended for that reason.
async fn reported(agent: &Agent, id: &str, reason: &str) -> Result<()> {
    let is_it = |event: &Event| match &event.kind {
        Some(Kind::GuardContinued(continued)) => continued.reason == reason,
        _ => false,
    };
    let reported = async || Ok(agent.replay().await?.of(id).any(is_it).then_some(()));
    wait_for(&format!("guardContinued with `{reason}`"), READY_LIMIT, reported).await
}

/// While one process is held, another one of its container reaches the threshold: it is held, too, and both are continued at the end
/// of the hold of the first.
pub(crate) async fn joined(ctx: &Testbed<'_>) -> Result<()> {
    let line = "sleep 1000 & mkfifo /out/more; exec 3<>/out/more; until [ -e /out/go ]; do sleep 0.1; done; \
                tail </dev/zero & read line <&3; tail </dev/zero & exec sleep 1000";
    hold(ctx, LONG, line, async |guard, Processes { out, .. }| {
        let first = held(&guard).await?;
        // The shell has waited for that; it makes another process, or is held itself as it does.
        out.place("more", "\n")?;
        let second = guard.wait("a second held process", |status| {
            status.armed.iter().flat_map(|armed| &armed.held).copied().find(|pid| *pid != first.pid)
        });
        let second = Stopped { pid: second.await?, seen: Instant::now() };
        let ended = guard.wait("the end of the hold", |status| status.history.last().cloned()).await?;
        let both = [first.pid, second.pid];
        ensure!(both.iter().all(|pid| ended.held.contains(pid)), "{both:?} are not those of {ended:?}");
        first.wait_continued().await?;
        second.wait_continued().await?;
        guard.stop()
    })
    .await
}

/// A held process that another one kills ends at once, and its hold when it is time.
pub(crate) async fn killed_meanwhile(ctx: &Testbed<'_>) -> Result<()> {
    scene(ctx, LONG, async |guard, _| {
        let held = held(&guard).await?;
        signal(held.pid, Signal::SIGKILL)?;
        wait_ended("the held process' end", held.pid).await?;
        guard.wait_log(&format!("pid={} state=Gone", held.pid)).await?;
        guard.stop()
    })
    .await
}

/// A debugger attaches to what is held. The hold ends nevertheless, and when the debugger detaches the process runs: until its memory is
/// used up, for the guard has ended, too.
pub(crate) async fn debugged(ctx: &Testbed<'_>) -> Result<()> {
    scene(ctx, LONG, async |guard, _| {
        let held = held(&guard).await?;
        let pid = Pid::from_raw(held.pid.cast_signed());
        // The tracer is this thread.
        ptrace::seize(pid, ptrace::Options::empty()).context("attach to the held process")?;
        // Had it been continued before that, there were no such report.
        let seen = waitpid(pid, Some(WaitPidFlag::WNOHANG)).context("see it stopped")?;
        ensure!(matches!(seen, WaitStatus::PtraceEvent(_, Signal::SIGSTOP, _)), "not held: {seen:?}");
        guard.stop()?;
        ptrace::detach(pid, None).context("detach from the process")?;
        wait_ended("the end of a process that was held", held.pid).await
    })
    .await
}

/// The container is frozen meanwhile: what is thawed is not stopped any more.
pub(crate) async fn frozen(ctx: &Testbed<'_>) -> Result<()> {
    scene(ctx, SHORT, async |guard, _| {
        let held = held(&guard).await?;
        let directory = PathBuf::from(format!("/sys/fs/cgroup{}", cgroup_path(held.pid)?));
        cgroup::write(&directory, "cgroup.freeze", 1)?;
        let is_over = guard.wait("the end of the hold", |status| {
            let is_held = status.armed.iter().any(|armed| armed.held.contains(&held.pid));
            (!is_held && !status.history.is_empty()).then_some(())
        });
        let is_over = is_over.await;
        cgroup::write(&directory, "cgroup.freeze", 0)?;
        is_over?;
        held.wait_continued().await?;
        guard.stop()
    })
    .await
}

/// The records outlive both, and the next guard ends what it finds in them, also if it cannot guard then.
pub(crate) async fn both(ctx: &Testbed<'_>) -> Result<()> {
    scene(ctx, LONG, async |mut guard, Processes { bystander, watchdog, agent, id, .. }| {
        let held = held(&guard).await?;
        // While both are stopped, neither sees the other's end. The watchdog is killed first: the kernel continues a stopped process
        // whose group is orphaned by its parent's end.
        signal(watchdog, Signal::SIGSTOP)?;
        wait_stopped(watchdog).await?;
        let paused = guard.pause()?;
        signal(watchdog, Signal::SIGKILL)?;
        guard.kill()?;
        drop(paused);
        wait_ended("the watchdog's end", watchdog).await?;
        ensure!(is_stopped(held.pid) == Some(true), "process {} was continued by no one", held.pid);
        let said = guard.start_with_error()?;
        ensure!(said.contains(&format!("pid={} reason=\"guardRestarted\"", held.pid)), "{said}");
        wait_continued(held.pid).await?;
        let guard = guard.start_again().await?;
        reported(agent, &id, "guardRestarted").await.with_context(|| guard.log_tail())?;
        ensure!(is_stopped(bystander) == Some(true), "a process that another one stopped was continued");
        guard.stop()
    })
    .await
}

/// A process that does not run.
struct Stopped {
    pid: u32,
    seen: Instant,
}

impl Stopped {
    /// Waits until it runs, and fails if that took longer than is promised.
    async fn wait_continued(&self) -> Result<()> {
        wait_continued(self.pid).await?;
        let took = self.seen.elapsed();
        ensure!(took <= PROMISED, "process {} was stopped for {took:?}", self.pid);
        Ok(())
    }
}

/// Waits for a hold: a process that is recorded as held and does not run.
async fn held(guard: &Guard) -> Result<Stopped> {
    let pid = guard.wait_held().await?;
    // It is recorded before it is stopped.
    wait_stopped(pid).await?;
    Ok(Stopped { pid, seen: Instant::now() })
}

/// What a hold must find: looked up before it begins, for it lasts ten seconds at most.
struct Processes<'a> {
    /// Of the same container, and stopped from outside.
    bystander: u32,
    /// The guard's.
    watchdog: u32,
    out: &'a Out,
    agent: &'a Agent,
    /// The container's.
    id: String,
}

/// Brings a hold about whose raise never answers.
async fn scene(
    ctx: &Testbed<'_>,
    longest_hold: &str,
    body: impl AsyncFnOnce(Guard, Processes<'_>) -> Result<()>,
) -> Result<()> {
    hold(ctx, longest_hold, LINE, body).await
}

/// The same with a container that runs a line of shell. It has a child that sleeps for a thousand seconds, and starts its hog when
/// there is `/out/go`.
async fn hold(
    ctx: &Testbed<'_>,
    longest_hold: &str,
    line: &str,
    body: impl AsyncFnOnce(Guard, Processes<'_>) -> Result<()>,
) -> Result<()> {
    ctx.with_both(&[], async |node, agent| {
        let out = Out::make()?;
        let socket = out.at("runtime.sock");
        // A runtime that accepts connections and never answers.
        let _listener = UnixListener::bind(&socket).context("listen as a runtime")?;
        let policy = format!(
            "[[rule]]\npod = \"{POD}\"\nstep = \"192Mi\"\nceiling = \"512Mi\"\nlongest_hold = \"{longest_hold}\"\n"
        );
        let guard = Guard::start(&ctx.environment, agent, &policy, &socket).await?;
        let pod = node.run_pod(&PodSpec::new(POD, ctx.combination.handler)?).await?;
        let id = node.run(&pod, &hog::limited("main", line, &out)).await?;
        guard.wait_armed(1).await?;
        let bystander = child_of(node.pid(&id).await?, "sleep").await?;
        signal(bystander, Signal::SIGSTOP)?;
        let watchdog = guard.wait("the watchdog", |status| status.watchdog_pid).await?;
        out.signal("go")?;
        body(guard, Processes { bystander, watchdog, out: &out, agent, id }).await?;
        node.remove_pod(&pod).await
    })
    .await
}

/// The child of a process that runs a program of that name.
async fn child_of(parent: u32, name: &str) -> Result<u32> {
    let found = wait_for("the bystander", READY_LIMIT, async || {
        let children =
            fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
        let named = children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(|pid: &u32| {
            fs::read_to_string(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line.starts_with(&format!("{name}\0")) && line.contains("1000"))
        });
        Ok(named)
    });
    found.await
}
