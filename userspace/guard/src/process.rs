//! A process that was held: finding it again, seeing whether it is stopped, continuing it.
//!
//! It is found by pid and start time, so that a later process with its pid is never continued. A SIGSTOP that another
//! process sent is not ours to end: only what is recorded as held gets here.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use kwitness_abi::{Hold, ProcessKey};
use nix::errno::Errno;
use procfs::process::{ProcState, Process, Stat};
use procfs::{ProcError, ProcResult};
use rustix::process::Signal;

use crate::program::{self, nanos};

/// What a held process does. One that a debugger has stopped counts as running: it is the debugger's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// At least one thread is stopped.
    Stopped,
    /// No thread is.
    Running,
    /// It has ended.
    Gone,
}

/// The signal of a hold that is younger may still be on its way: from a charge with interrupts disabled, the kernel sends it
/// as soon as they are enabled again. A SIGCONT before that is lost.
const SETTLED: Duration = Duration::from_millis(20);

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
    let is_settled = program::now() >= hold.since.saturating_add(nanos(SETTLED));
    Ok(match held.resume()? {
        State::Running if !is_settled => State::Stopped,
        state => state,
    })
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
        let Some((stat, process)) = alive(found)? else { return Ok(None) };
        Ok((stat.starttime == ticks(key.start_boottime)).then_some(Self { pidfd, process }))
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
                State::Gone => {}
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

    /// A child that waits for its input, and what the program would have recorded.
    fn child() -> (Child, ProcessKey) {
        let child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let stat = Process::new(child.id() as i32).unwrap().stat().unwrap();
        let start_boottime = stat.starttime * (1_000_000_000 / procfs::ticks_per_second()) + 5;
        let key = ProcessKey { start_boottime, pid: child.id(), pad: 0 };
        (child, key)
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
        stop(&child);
        assert_eq!(held.state().unwrap(), State::Stopped);
        assert_eq!(held.resume().unwrap(), State::Running);
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(held.state().unwrap(), State::Gone);
        assert_eq!(held.resume().unwrap(), State::Gone);
        assert!(Held::find(key).unwrap().is_none());
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
