//! A process that was held: finding it again, seeing whether it is stopped, continuing it.
//!
//! It is found by pid and start time, so that a later process with its pid is never continued. A SIGSTOP that another
//! process sent is not ours to end: only what is recorded as held gets here.
//!
//! Owns the rule of what a process needs for that ([`check`]): without it nothing may be held.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::Duration;

use kwitness_abi::{Hold, ProcessKey};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use procfs::process::{ProcState, Process, Stat, Task};
use procfs::{ProcError, ProcResult};
use rustix::process::Signal;

use crate::program::{self, nanos};

/// Bits of `CapEff` (`include/uapi/linux/capability.h`).
const CAP_KILL: u64 = 1 << 5;
const CAP_SYS_PTRACE: u64 = 1 << 19;

/// SIGSTOP in a mask of pending signals.
const SIGSTOP_PENDING: u64 = 1 << (Signal::STOP.as_raw() - 1);

/// Why this process could not continue what is held.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unable {
    /// It may signal its own user's processes only.
    #[error(
        "CAP_KILL is missing: the processes of containers could not be continued. Run as root with it, or grant it"
    )]
    Signal,
    /// It may not see processes of other users.
    #[error(
        "/proc is mounted with hidepid and CAP_SYS_PTRACE is missing: held processes could not be found again. Grant it, or \
         mount /proc without hidepid"
    )]
    Find,
    /// It would take every held process for another one, and every lease for one of another time.
    #[error(
        "the boot-time clock is off by {0}: held processes could not be found again. Run outside a time namespace"
    )]
    Clock(String),
}

/// Whether this process can continue whatever is held.
///
/// # Errors
/// It cannot, or that cannot be found out.
pub fn check() -> anyhow::Result<()> {
    if let Some(offset) = kwitness_service::boot_time_offset() {
        return Err(Unable::Clock(offset).into());
    }
    let this = Process::myself()?;
    let mounts = this.mountinfo()?;
    let proc = mounts.iter().rfind(|mount| mount.mount_point == Path::new("/proc"));
    let hidepid = proc.and_then(|mount| mount.super_options.get("hidepid")?.as_deref());
    match unable(this.status()?.capeff, hidepid) {
        Some(unable) => Err(unable.into()),
        None => Ok(()),
    }
}

/// By the effective capabilities and the mount option of `/proc`. The kernel shows the option only if it is set: by number before
/// 5.8, then by name.
fn unable(effective: u64, hidepid: Option<&str>) -> Option<Unable> {
    let is_hidden = hidepid.is_some_and(|hidepid| !["0", "off"].contains(&hidepid));
    if effective & CAP_KILL == 0 {
        Some(Unable::Signal)
    } else if is_hidden && effective & CAP_SYS_PTRACE == 0 {
        Some(Unable::Find)
    } else {
        None
    }
}

/// What a held process does. One that a debugger has stopped counts as running: it is the debugger's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// At least one thread is stopped.
    Stopped,
    /// No thread is.
    Running,
    /// It has ended.
    Gone,
    /// It was continued, and another process stops it again each time.
    StoppedAgain,
}

impl State {
    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stopped | Self::StoppedAgain => "stopped",
            Self::Running => "running",
            Self::Gone => "gone",
        }
    }

    /// The same in a report.
    pub fn report(self) -> kwitness_api::proto::GuardedState {
        use kwitness_api::proto::GuardedState;
        match self {
            Self::Stopped | Self::StoppedAgain => GuardedState::Stopped,
            Self::Running => GuardedState::Running,
            Self::Gone => GuardedState::Gone,
        }
    }
}

/// The signal of a hold that is younger may still be on its way, unless it was seen to have arrived: from a charge with interrupts
/// disabled, the kernel sends it as soon as they are enabled again. A SIGCONT before that is lost. A hypervisor may take the
/// processor away in between.
const SETTLED: Duration = Duration::from_secs(1);

/// How long a hold's signal may take to reach all threads that do not run: each stops when it gets a CPU.
const SPREAD: Duration = Duration::from_millis(25);

/// For how long after a hold's end a process that is seen stopped is continued again. To go on would leave its place in the records
/// taken, and keep the next guard from starting.
///
/// Time alone does not show that another process stops it: the machine may have slept for most of it. A hold has one signal, and
/// no thread is stopped any more when SIGCONT has been sent. So what is stopped after a SIGCONT that came after that signal was
/// stopped by another process.
const PATIENCE: Duration = Duration::from_secs(2);

/// Sends SIGCONT to a process that is recorded as held. Anything but [`State::Stopped`] means that the hold is over for good.
/// A process whose signal has not arrived yet counts as stopped: it is about to be.
///
/// # Errors
/// Why it cannot be continued.
pub fn end_hold(key: ProcessKey, hold: &Hold) -> io::Result<State> {
    let Some(held) = Held::find(key)? else { return Ok(State::Gone) };
    if hold.signalled == 0 {
        return Ok(State::Stopped);
    }
    // Before SIGCONT, which is final only then.
    let has_arrived = held.has_arrived(hold);
    Ok(after_continued(held.resume()?, has_arrived, program::now(), hold))
}

/// Whether a held process can charge memory. A thread inside a system call stops when that returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Motion {
    /// It can: a thread has not stopped.
    Moving,
    /// The thread whose charge it was has stopped. The others may be on their way.
    Stopping,
    /// All have stopped, or ended.
    Still,
}

/// Whether a held process can still charge memory.
///
/// # Errors
/// Why it cannot be looked at.
pub fn motion(key: ProcessKey, hold: &Hold) -> io::Result<Motion> {
    let Some(held) = Held::find(key)? else { return Ok(Motion::Still) };
    let is_early = program::now() < hold.since.saturating_add(nanos(SPREAD));
    Ok(match (held.is_still(is_early.then_some(hold.tid))?, is_early) {
        (false, _) => Motion::Moving,
        (true, true) => Motion::Stopping,
        (true, false) => Motion::Still,
    })
}

/// What the state that a process is seen in after SIGCONT means for its hold; `has_arrived`: the hold's signal had, before that.
fn after_continued(seen: State, has_arrived: bool, now: u64, hold: &Hold) -> State {
    match seen {
        State::Running if !has_arrived && now < hold.since.saturating_add(nanos(SETTLED)) => State::Stopped,
        State::Stopped if has_arrived && now >= hold.until.saturating_add(nanos(PATIENCE)) => {
            State::StoppedAgain
        }
        seen => seen,
    }
}

/// A handle on one process, whatever becomes of its pid.
#[derive(Debug)]
struct Held {
    pidfd: OwnedFd,
    process: Process,
}

impl Held {
    /// The process, unless it is gone.
    ///
    /// # Errors
    /// Why it cannot be looked at.
    fn find(key: ProcessKey) -> io::Result<Option<Self>> {
        let pid = i32::try_from(key.pid).ok();
        let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) else { return Ok(None) };
        let pidfd = match rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Read after the handle was opened: it is then the same process, or the start time is another.
        let found =
            Process::new(pid.as_raw_nonzero().get()).and_then(|process| Ok((process.stat()?, process)));
        let Some((stat, process)) = alive(found)? else {
            return match has_ended(&pidfd)? {
                true => Ok(None),
                false => {
                    Err(io::Error::other(format!("/proc does not show process {pid}, which has not ended")))
                }
            };
        };
        Ok((stat.starttime == ticks(key.start_boottime)).then_some(Self { pidfd, process }))
    }

    /// Whether the hold's signal is known to have arrived: it is pending, or the thread whose charge it was does not run any more.
    /// A thread enables interrupts before it stops or sleeps, and the kernel then sends what it has put off.
    fn has_arrived(&self, hold: &Hold) -> bool {
        let thread = self.process.task_from_tid(hold.tid.cast_signed());
        let runs = match alive(thread.and_then(|thread| thread.stat())) {
            Ok(stat) => stat.is_some_and(|stat| stat.state().is_ok_and(|state| state == ProcState::Running)),
            Err(_) => true,
        };
        let is_pending = || self.process.status().is_ok_and(|status| status.shdpnd & SIGSTOP_PENDING != 0);
        !runs || is_pending()
    }

    /// Whether that thread, or none at all, can charge memory.
    ///
    /// # Errors
    /// Why it cannot be looked at.
    fn is_still(&self, only: Option<u32>) -> io::Result<bool> {
        if let Some(tid) = only {
            return Ok(!can_charge(self.process.task_from_tid(tid.cast_signed()))?);
        }
        // One at a time: each has a file descriptor, and what gets none is passed over.
        for task in alive(self.process.tasks())?.into_iter().flatten() {
            if can_charge(task)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether it is stopped.
    ///
    /// # Errors
    /// Why it cannot be looked at.
    fn state(&self) -> io::Result<State> {
        let Some(tasks) = alive(self.process.tasks())? else { return Ok(State::Gone) };
        let mut found = State::Gone;
        for task in tasks {
            let Some(stat) = alive(task.and_then(|task| task.stat()))? else { continue };
            match of(&stat)? {
                State::Stopped => return Ok(State::Stopped),
                State::Running => found = State::Running,
                State::Gone | State::StoppedAgain => {}
            }
        }
        Ok(found)
    }

    /// Sends SIGCONT, which also discards a SIGSTOP that it has not acted on yet, and looks at it. It may be stopped again at
    /// once, by another process.
    ///
    /// # Errors
    /// Why it cannot be continued.
    fn resume(&self) -> io::Result<State> {
        match rustix::process::pidfd_send_signal(self.pidfd.as_fd(), Signal::CONT) {
            Ok(()) => self.state(),
            Err(rustix::io::Errno::SRCH) => Ok(State::Gone),
            Err(error) => Err(error.into()),
        }
    }
}

/// Whether a process has ended, by its handle and not by `/proc`, which may hide it.
fn has_ended(pidfd: &OwnedFd) -> io::Result<bool> {
    Ok(poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO)? > 0)
}

/// Whether a thread can charge memory: it has neither stopped nor ended.
fn can_charge(task: ProcResult<Task>) -> io::Result<bool> {
    let Some(stat) = alive(task.and_then(|task| task.stat()))? else { return Ok(false) };
    let state = stat.state().map_err(io::Error::other)?;
    Ok(!matches!(state, ProcState::Stopped | ProcState::Tracing | ProcState::Zombie | ProcState::Dead))
}

fn of(stat: &Stat) -> io::Result<State> {
    Ok(match stat.state().map_err(io::Error::other)? {
        ProcState::Stopped => State::Stopped,
        ProcState::Zombie | ProcState::Dead => State::Gone,
        _ => State::Running,
    })
}

/// Nothing if the process ended meanwhile.
fn alive<T>(found: ProcResult<T>) -> io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(ProcError::NotFound(_)) => Ok(None),
        Err(ProcError::Io(error, _)) if error.raw_os_error() == Some(Errno::ESRCH as i32) => Ok(None),
        Err(error) => Err(io::Error::other(error)),
    }
}

/// The start time as `/proc` gives it (`nsec_to_clock_t`).
fn ticks(start_boottime: u64) -> u64 {
    start_boottime / (1_000_000_000 / procfs::ticks_per_second())
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use nix::sys::signal::{Signal as Unix, kill};
    use nix::sys::wait::{WaitPidFlag, waitpid};
    use nix::unistd::Pid;

    use super::*;

    /// How long a busy machine may take to let a process run.
    const WAIT: Duration = Duration::from_secs(60);

    /// A child that does not end by itself, not even when its test fails.
    struct Killed(Child);

    impl Drop for Killed {
        fn drop(&mut self) {
            // It may have ended.
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// A child that waits for its input, and what the program would have recorded.
    fn child() -> (Child, ProcessKey) {
        let child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let key = key(&child);
        (child, key)
    }

    fn key(child: &Child) -> ProcessKey {
        let stat = Process::new(child.id() as i32).unwrap().stat().unwrap();
        let start_boottime = stat.starttime * (1_000_000_000 / procfs::ticks_per_second()) + 5;
        ProcessKey { start_boottime, pid: child.id(), pad: 0 }
    }

    fn stop(child: &Child) {
        let pid = Pid::from_raw(child.id() as i32);
        kill(pid, Unix::SIGSTOP).unwrap();
        waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
    }

    #[test]
    fn a_stopped_process_is_continued_and_an_ended_one_is_gone() {
        let (mut child, key) = child();
        let held = Held::find(key).unwrap().unwrap();
        assert_eq!(held.state().unwrap(), State::Running);
        assert!(!held.is_still(None).unwrap() && !held.is_still(Some(child.id())).unwrap());
        assert!(!has_ended(&held.pidfd).unwrap());
        stop(&child);
        assert_eq!(held.state().unwrap(), State::Stopped);
        assert!(held.is_still(None).unwrap() && held.is_still(Some(child.id())).unwrap());
        assert_eq!(held.resume().unwrap(), State::Running);
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(held.state().unwrap(), State::Gone);
        assert!(held.is_still(None).unwrap() && motion(key, &hold(child.id())).unwrap() == Motion::Still);
        assert_eq!(held.resume().unwrap(), State::Gone);
        assert!(has_ended(&held.pidfd).unwrap());
        assert!(Held::find(key).unwrap().is_none());
    }

    fn hold(tid: u32) -> Hold {
        Hold {
            cgroup_id: 1,
            since: 1_000_000_000,
            until: 4_000_000_000,
            usage: 1,
            limit: 1,
            tid,
            signalled: 1,
            comm: [0; 16],
        }
    }

    #[test]
    fn a_signal_may_still_come_and_another_process_may_stop_it_for_ever() {
        let seen = |state, has_arrived, now| after_continued(state, has_arrived, now, &hold(1));
        assert_eq!(seen(State::Running, false, 1_999_000_000), State::Stopped, "its signal may still come");
        assert_eq!(seen(State::Running, false, 2_000_000_000), State::Running);
        assert_eq!(seen(State::Running, true, 1_000_000_000), State::Running);
        assert_eq!(seen(State::Stopped, true, 5_999_000_000), State::Stopped);
        assert_eq!(seen(State::Stopped, true, 6_000_000_000), State::StoppedAgain);
        for now in [6_000_000_000, u64::MAX] {
            assert_eq!(seen(State::Stopped, false, now), State::Stopped, "its own signal may have come now");
        }
        for (has_arrived, now) in [(false, 1_000_000_000), (true, 9_000_000_000)] {
            assert_eq!(seen(State::Gone, has_arrived, now), State::Gone);
        }
    }

    #[test]
    fn a_signal_has_arrived_where_the_thread_stopped_or_ended_and_not_while_it_runs() {
        let mut busy = Killed(Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap());
        let held = Held::find(key(&busy.0)).unwrap().unwrap();
        let own = hold(busy.0.id());
        let wait_running = |what: &str| {
            let began = std::time::Instant::now();
            while held.has_arrived(&own) {
                let state = held.process.stat().map(|stat| stat.state);
                assert!(began.elapsed() < WAIT, "not seen running {what} after {WAIT:?}: {state:?}");
                std::thread::yield_now();
            }
        };
        wait_running("before it is stopped, for it reads its program first");
        stop(&busy.0);
        assert!(held.has_arrived(&own), "it has stopped");
        assert_eq!(held.resume().unwrap(), State::Running);
        wait_running("after SIGCONT, for it has to get a CPU first");
        assert!(held.has_arrived(&hold(std::process::id())), "no thread of it: it has ended");
        busy.0.kill().unwrap();
        busy.0.wait().unwrap();
        assert!(held.has_arrived(&own), "all have ended");
    }

    #[test]
    fn nothing_is_held_that_could_not_be_found_and_signalled() {
        let all = CAP_KILL | CAP_SYS_PTRACE;
        for hidepid in [None, Some("0"), Some("off")] {
            assert_eq!(unable(CAP_KILL, hidepid), None, "{hidepid:?}");
        }
        for hidepid in ["1", "2", "noaccess", "invisible", "ptraceable"] {
            assert_eq!(unable(CAP_KILL, Some(hidepid)), Some(Unable::Find));
            assert_eq!(unable(all, Some(hidepid)), None);
        }
        assert_eq!(unable(CAP_SYS_PTRACE, None), Some(Unable::Signal));
    }

    #[test]
    fn another_process_with_the_pid_is_not_the_one() {
        let (mut child, key) = child();
        let earlier = ProcessKey { start_boottime: key.start_boottime.saturating_sub(1_000_000_000), ..key };
        assert!(Held::find(earlier).unwrap().is_none());
        assert!(Held::find(key).unwrap().is_some());
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}
