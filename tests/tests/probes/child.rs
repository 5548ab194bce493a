//! Child processes made where a test wants them: straight in a cgroup, in namespaces of their own, with one thing to do.
//!
//! Owns the only unsafe code of these tests: clone3(2), which no safe interface offers, and thread exits that leave
//! the process alive.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use anyhow::{Context, Result};
use kwitness_core::model::ExitStatus;
use nix::libc;
use nix::sched::CloneFlags;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// `CLONE_INTO_CGROUP` of `include/uapi/linux/sched.h`; libc's own is too narrow a type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

#[derive(Clone, Copy, Debug)]
pub enum Action<'a> {
    Exit(u8),
    /// Waits to be killed.
    Pause,
    /// Becomes a program: its path and further arguments.
    Exec(&'a [&'a str]),
}

/// A child process; killed and waited for when dropped.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    waited: bool,
}

impl Child {
    /// Makes a child in the cgroup of that directory, or in our own.
    pub fn spawn(cgroup: Option<&Path>, namespaces: CloneFlags, action: Action<'_>) -> Result<Self> {
        let directory = cgroup
            .map(|path| File::open(path).with_context(|| format!("open {}", path.display())))
            .transpose()?;
        let words = match action {
            Action::Exec(words) => {
                words.iter().map(|word| CString::new(*word)).collect::<Result<Vec<_>, _>>()?
            }
            Action::Exit(_) | Action::Pause => Vec::new(),
        };
        let mut pointers: Vec<_> = words.iter().map(|word| word.as_ptr()).collect();
        pointers.push(std::ptr::null());
        let into_cgroup = if directory.is_some() { CLONE_INTO_CGROUP } else { 0 };
        let arguments = libc::clone_args {
            flags: into_cgroup | namespaces.bits() as u64,
            exit_signal: libc::SIGCHLD as u64,
            cgroup: directory.as_ref().map_or(0, |directory| directory.as_raw_fd() as u64),
            // SAFETY: integers only.
            ..unsafe { std::mem::zeroed() }
        };
        // SAFETY: without CLONE_VM the child has a copy of this process's memory; until it ends or becomes another
        // program it calls nothing but system calls, whatever the other threads held at that moment.
        let pid = unsafe { libc::syscall(libc::SYS_clone3, &arguments, size_of_val(&arguments)) };
        match pid {
            -1 => Err(std::io::Error::last_os_error()).context("clone3"),
            0 => match action {
                // SAFETY: a system call.
                Action::Exit(code) => unsafe { libc::_exit(code.into()) },
                Action::Pause => loop {
                    // SAFETY: a system call.
                    unsafe { libc::pause() };
                },
                // SAFETY: `pointers` is a list of C strings that ends with a null pointer.
                Action::Exec(_) => unsafe {
                    libc::execv(pointers[0], pointers.as_ptr());
                    libc::_exit(127)
                },
            },
            pid => Ok(Self { pid: Pid::from_raw(pid as i32), waited: false }),
        }
    }

    pub fn pid(&self) -> u32 {
        self.pid.as_raw() as u32
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.pid, signal).with_context(|| format!("send {signal} to {}", self.pid))
    }

    pub fn wait_stopped(&self) -> Result<()> {
        match waitpid(self.pid, Some(WaitPidFlag::WUNTRACED)).context("waitpid")? {
            WaitStatus::Stopped(..) => Ok(()),
            other => anyhow::bail!("it is not stopped: {other:?}"),
        }
    }

    /// Waits for its end; what wait(2) says of it.
    pub fn wait(mut self) -> Result<ExitStatus> {
        self.waited = true;
        match waitpid(self.pid, None).context("waitpid")? {
            WaitStatus::Exited(_, code) => Ok(ExitStatus::Code(code as u8)),
            WaitStatus::Signaled(_, signal, core_dumped) => {
                Ok(ExitStatus::Signal { signal: signal as u8, core_dumped })
            }
            other => anyhow::bail!("{other:?}"),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.waited {
            // Both fail only if it is gone.
            let _ = kill(self.pid, Signal::SIGKILL);
            let _ = waitpid(self.pid, None);
        }
    }
}

/// Ends the calling thread with that status, and not the process.
pub fn exit_thread(status: u8) -> ! {
    loop {
        // SAFETY: exit(2) ends the calling thread; nothing of it is used afterwards, its stack stays allocated.
        unsafe { libc::syscall(libc::SYS_exit, libc::c_long::from(status)) };
    }
}

/// Becomes another program.
pub fn exec(words: &[&str]) -> Result<Infallible> {
    let words = words.iter().map(|word| CString::new(*word)).collect::<Result<Vec<_>, _>>()?;
    nix::unistd::execv(&words[0], &words).context("execv")
}
