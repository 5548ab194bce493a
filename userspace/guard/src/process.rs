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
use serde::{Deserialize, Serialize};

use crate::program::{self, nanos};

/// Bits of `CapEff` (`include/uapi/linux/capability.h`).
const CAP_KILL: u64 = 1 << 5;
const CAP_SYS_PTRACE: u64 = 1 << 19;

/// SIGSTOP in a mask of pending signals.
const SIGSTOP_PENDING: u64 = 1 << (Signal::STOP.as_raw() - 1);

/// One hold of one process: its pid, its start, the hold's.
pub(crate) type HoldId = (u32, u64, u64);

/// What names a hold.
pub(crate) fn hold_id(key: ProcessKey, hold: &Hold) -> HoldId {
    (key.pid, key.start_boottime, hold.since)
}

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

impl Unable {
    /// Whether this process has insufficient privileges.
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Signal | Self::Find)
    }
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
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

/// Threads of a process that are looked at to see whether it has stopped: each takes some twenty microseconds, in which the guard does
/// nothing for other containers.
const THREADS_MAX: usize = 512;
/// Threads that may be looked at before the guard does something else.
pub const LOOKS: usize = 1024;
/// Processes that have stopped and are looked at again, to see whether another process has continued them. More are not slowed down then.
pub const REPEATED_LOOKS: usize = 32;
/// Threads that are looked at after SIGCONT. It continues all of them before it returns, and another SIGSTOP stops all again.
const THREADS_CONTINUED: usize = 16;

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

/// Whether a held process can still charge memory. `mover` is a thread that could when it was last looked at, `looks` how many threads
/// may be looked at now: one that has more counts as moving, until its hold ends.
///
/// # Errors
/// Why it cannot be looked at.
pub fn motion(
    key: ProcessKey,
    hold: &Hold,
    mover: &mut Option<u32>,
    looks: &mut usize,
) -> io::Result<Motion> {
    let Some(held) = Held::find(key)? else { return Ok(Motion::Still) };
    let is_early = program::now() < hold.since.saturating_add(nanos(SPREAD));
    let is_moving = if is_early { held.can_charge(hold.tid)? } else { held.is_moving(mover, looks)? };
    Ok(match (is_moving, is_early) {
        (true, _) => Motion::Moving,
        (false, true) => Motion::Stopping,
        (false, false) => Motion::Still,
    })
}

/// Whether a process that had stopped is continued, during its hold and so by another process: as the thread shows that charged.
///
/// # Errors
/// Why it cannot be looked at.
pub fn is_continued(key: ProcessKey, hold: &Hold) -> io::Result<bool> {
    Held::find(key)?.map_or(Ok(false), |held| held.can_charge(hold.tid))
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
    /// How many threads it has.
    threads: usize,
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
        let threads = usize::try_from(stat.num_threads).unwrap_or(usize::MAX);
        Ok((stat.starttime == ticks(key.start_boottime)).then_some(Self { pidfd, process, threads }))
    }

    /// Whether a SIGSTOP waits for one of its threads.
    fn is_stop_pending(&self) -> bool {
        self.process.status().is_ok_and(|status| status.shdpnd & SIGSTOP_PENDING != 0)
    }

    /// Whether a SIGSTOP is pending, or a thread has stopped. One that has more threads than are looked at may have such a thread. So may
    /// one that a debugger has attached to during the hold: what it has stopped stops again by the hold's signal when it detaches.
    ///
    /// # Errors
    /// Why it cannot be looked at.
    fn may_be_stopped(&self) -> io::Result<bool> {
        // In this order: the thread that has taken the signal has stopped when it is not pending any more.
        if self.is_stop_pending() || self.threads > THREADS_MAX {
            return Ok(true);
        }
        for (seen, task) in alive(self.process.tasks())?.into_iter().flatten().enumerate() {
            if seen >= THREADS_MAX {
                return Ok(true);
            }
            let Some(stat) = alive(task.and_then(|task| task.stat()))? else { continue };
            if matches!(stat.state().map_err(io::Error::other)?, ProcState::Stopped | ProcState::Tracing) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether the hold's signal is known to have arrived: it is pending, or the thread whose charge it was does not run any more.
    /// A thread enables interrupts before it stops or sleeps, and the kernel then sends what it has put off.
    fn has_arrived(&self, hold: &Hold) -> bool {
        let thread = self.process.task_from_tid(hold.tid.cast_signed());
        let runs = match alive(thread.and_then(|thread| thread.stat())) {
            Ok(stat) => stat.is_some_and(|stat| stat.state().is_ok_and(|state| state == ProcState::Running)),
            Err(_) => true,
        };
        !runs || self.is_stop_pending()
    }

    /// Whether that thread can charge memory.
    fn can_charge(&self, tid: u32) -> io::Result<bool> {
        can_charge(self.process.task_from_tid(tid.cast_signed()))
    }

    /// Whether any thread can charge memory, as far as that many may be looked at: see [`motion`].
    ///
    /// # Errors
    /// Why it cannot be looked at.
    fn is_moving(&self, mover: &mut Option<u32>, looks: &mut usize) -> io::Result<bool> {
        // As long as that one does not stop, no other need be found.
        if let Some(tid) = mover.take()
            && self.can_charge(tid)?
        {
            *mover = Some(tid);
            return Ok(true);
        }
        if self.threads > THREADS_MAX.min(*looks) {
            return Ok(true);
        }
        // One at a time: each has a file descriptor, and what gets none is passed over.
        for (seen, task) in alive(self.process.tasks())?.into_iter().flatten().enumerate() {
            // There are more by now.
            if seen >= THREADS_MAX {
                return Ok(true);
            }
            *looks = looks.saturating_sub(1);
            let tid = task.as_ref().map(|task| task.tid.cast_unsigned()).ok();
            if can_charge(task)? {
                *mover = tid;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether it is stopped, by the first of its threads that have not ended.
    ///
    /// # Errors
    /// Why it cannot be looked at.
    fn state(&self) -> io::Result<State> {
        let Some(tasks) = alive(self.process.tasks())? else { return Ok(State::Gone) };
        let mut running = 0;
        for task in tasks {
            let Some(stat) = alive(task.and_then(|task| task.stat()))? else { continue };
            match of(&stat)? {
                State::Stopped => return Ok(State::Stopped),
                State::Running => running += 1,
                State::Gone | State::StoppedAgain => {}
            }
            if running == THREADS_CONTINUED {
                break;
            }
        }
        Ok(if running > 0 { State::Running } else { State::Gone })
    }

    /// Sends SIGCONT, which also discards a SIGSTOP that it has not acted on yet, and looks at it. It may be stopped again at
    /// once, by another process. What is not stopped, and is not about to be, gets no signal: it may catch SIGCONT, and another
    /// process' SIGSTOP may come just then.
    ///
    /// # Errors
    /// Why it cannot be continued.
    fn resume(&self) -> io::Result<State> {
        if !self.may_be_stopped()? {
            return self.state();
        }
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
mod tests;
