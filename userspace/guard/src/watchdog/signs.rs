//! What the watchdog has the guard know, on a pipe that is never waited for: lines, of which an empty one is a sign of life.
//!
//! A guard that hangs does not read, and must not keep the watchdog from its work. What finds no room is lost: a sign of life for
//! nothing, and of an announced hold the reason in its event, which is logged.

use std::fs::File;
use std::io::{self, Write as _, stdout};
use std::os::fd::AsFd as _;

use anyhow::Context as _;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde::{Deserialize, Serialize};

use crate::continued::Reason;
use crate::process::HoldId;

/// A line is no longer: the kernel then writes all of it, or none (`PIPE_BUF`).
pub(super) const LINE_MAX: usize = 512;

/// A hold that the watchdog ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Ending {
    pid: u32,
    start_boottime: u64,
    since: u64,
    /// When: `CLOCK_BOOTTIME` in nanoseconds.
    pub at: u64,
    pub reason: Reason,
}

impl Ending {
    pub(super) fn new(id: HoldId, at: u64, reason: Reason) -> Self {
        let (pid, start_boottime, since) = id;
        Self { pid, start_boottime, since, at, reason }
    }

    /// Of which hold.
    pub fn id(&self) -> HoldId {
        (self.pid, self.start_boottime, self.since)
    }
}

/// The watchdog's end.
#[derive(Debug)]
pub(super) struct Signs(File);

impl Signs {
    /// On standard output.
    pub fn to_guard() -> anyhow::Result<Self> {
        let output = stdout().as_fd().try_clone_to_owned().context("cannot use standard output")?;
        let flags = fcntl(&output, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
        let flags = flags.context("cannot read the flags of standard output")? | OFlag::O_NONBLOCK;
        fcntl(&output, FcntlArg::F_SETFL(flags)).context("cannot change the flags of standard output")?;
        Ok(Self(output.into()))
    }

    /// A sign of life.
    pub fn beat(&mut self) {
        // A guard that does not hear it acts; one that has ended needs none.
        let _ = self.0.write_all(b"\n");
    }

    /// A hold is about to be ended.
    pub fn announce(&mut self, ending: &Ending) {
        let mut line = serde_json::to_vec(ending).unwrap_or_default();
        line.push(b'\n');
        match self.0.write_all(&line) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                let pid = ending.pid;
                tracing::warn!(pid, %error, "watchdog: cannot report to the guard that this hold is ended here");
            }
            _ => {}
        }
    }
}
