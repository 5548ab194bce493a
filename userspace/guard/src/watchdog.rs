//! The process that ends holds when the guard does not: it reads what the program recorded, and sends SIGCONT.
//!
//! ```text
//!  the pipe from the guard has ended ──▶ the guard is dead: end the lease, continue everything, exit after LINGER
//!  the lease has ended ────────────────▶ the guard hangs or is stopped: continue everything
//!  a hold is OVERRUN past its deadline ▶ the guard is too slow: continue that process
//!  each look ─────────────────────────▶ a sign of life on its standard output
//! ```
//!
//! Whatever it continues, it releases the second brake of its container, too. What it is about to continue it announces to the guard;
//! without a guard, it puts down what it has continued, for the next one.
//!
//! Started by the guard before anything is armed; finds lease and records where they are pinned. It writes neither while the
//! guard lives. It knows no policy, no container and no daemon. A signal to a service is the guard's to act on: the
//! watchdog ends after it. It is in a process group of its own, so that a key of a terminal (^C, ^Z, ^\) reaches the guard
//! alone.

pub(crate) mod link;
mod signs;

use std::collections::{HashMap, HashSet};
use std::io::{Stdin, stdin};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use kwitness_abi::{Hold, Lease};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};

use crate::brake;
use crate::continued::{self, Reason};
use crate::orphans;
use crate::process::{self, HoldId, State, hold_id};
use crate::program::{self, Records, nanos};
use crate::{BRAKES_FILE, CONTINUED_FILE};
pub use link::SILENCE_MAX;
pub(crate) use signs::Ending;
use signs::Signs;

/// How long the guard has, after a hold's deadline, to end it itself.
const OVERRUN: Duration = Duration::from_millis(250);
/// How long the watchdog looks on after the guard's end: a program that was running on another CPU then may still record a hold.
const LINGER: Duration = Duration::from_millis(500);
/// Between two looks while nothing is held, and while something is.
const IDLE: Duration = Duration::from_millis(200);
const BUSY: Duration = Duration::from_millis(25);

/// The hidden arguments of the program that runs [`run`]; the directory of the records follows.
pub const COMMAND: [&str; 2] = ["guard", "watchdog"];

/// Starts this program again as the watchdog of the guard that pinned its records in that directory. It ends when its standard
/// input does.
///
/// # Errors
/// It cannot be started.
fn spawn(directory: &Path) -> anyhow::Result<Child> {
    Command::new("/proc/self/exe")
        .args(COMMAND)
        .arg(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .context("cannot start the watchdog")
}

/// Watches until the guard has ended and nothing is held any more.
///
/// # Errors
/// It could not continue anything; the records cannot be read while the guard lives. The guard then continues everything itself.
pub fn run(directory: &Path) -> anyhow::Result<()> {
    // A capability of the guard may not have been inherited.
    process::check()?;
    let mut records = Records::pinned(directory)?.context("no guard has pinned its records there")?;
    leave_signals_to_the_guard()?;
    let (stdin, mut signs) = (stdin(), Signs::to_guard()?);
    let (mut announced, mut ended) = (HashSet::new(), HashMap::new());
    let mut wait = IDLE;
    while !has_ended(&stdin, wait)? {
        let held = records.held()?;
        signs.beat();
        wait = if held.is_empty() { IDLE } else { BUSY };
        if held.is_empty() {
            announced.clear();
            ended.clear();
        }
        let (now, lease) = (program::now(), records.lease()?);
        for (key, hold) in held {
            let Some(reason) = must_end(now, lease.until, &hold) else { continue };
            let id = hold_id(key, &hold);
            if ended.contains_key(&id) {
                continue;
            }
            // Before SIGCONT: what the guard sees running is then not taken for its own doing.
            if announced.insert(id) {
                signs.announce(&Ending::new(id, now, reason));
            }
            match process::end_hold(key, &hold) {
                Ok(State::Stopped) => {}
                Ok(state) => {
                    ended.insert(id, (now, reason));
                    brake::recover(Path::new(BRAKES_FILE), Some(hold.cgroup_id));
                    let (reason, held_ms) = (reason.name(), now.saturating_sub(hold.since) / 1_000_000);
                    tracing::warn!(pid = key.pid, reason, held_ms, ?state, "watchdog: hold ended");
                }
                Err(error) => {
                    tracing::error!(pid = key.pid, %error, "watchdog: cannot continue a process; trying again");
                }
            }
        }
    }
    outlive(&mut records, &mut signs, &ended);
    Ok(())
}

/// What a signal to all processes of this name asks for, the guard does: stop, or log its counters.
fn leave_signals_to_the_guard() -> anyhow::Result<()> {
    let ignored = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT, SIGHUP, SIGUSR1] {
        signal_hook::flag::register(signal, Arc::clone(&ignored)).context("cannot handle signals")?;
    }
    Ok(())
}

/// Ends every hold of a dead guard. Whatever fails is tried again: there is no one else to do it.
fn outlive(records: &mut Records, signs: &mut Signs, earlier: &HashMap<HoldId, (u64, Reason)>) {
    let dead_since = Instant::now();
    // The next guard may put its own on soon.
    brake::recover(Path::new(BRAKES_FILE), None);
    loop {
        // The guard may be waiting for this process to end.
        signs.beat();
        let mut ended = Vec::new();
        let done = records.set_lease(Lease::default());
        let done = done.and_then(|()| orphans::end_all(records, Reason::GuardDead, earlier, &mut ended));
        continued::add(Path::new(CONTINUED_FILE), ended);
        match done {
            Ok(0) if dead_since.elapsed() >= LINGER => return,
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "watchdog: cannot use the records; trying again"),
        }
        std::thread::sleep(BUSY);
    }
}

/// Whether the guard has: nothing is ever written to the pipe from it, it can only end. Waits for that, for so long.
fn has_ended(pipe: &Stdin, wait: Duration) -> anyhow::Result<bool> {
    let mut input = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
    match poll(&mut input, PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)) {
        Ok(ready) => Ok(ready > 0),
        Err(nix::errno::Errno::EINTR) => Ok(false),
        Err(errno) => Err(errno).context("cannot wait for the guard"),
    }
}

/// Why a hold must end now although the guard lives, if it must.
fn must_end(now: u64, lease_until: u64, hold: &Hold) -> Option<Reason> {
    if now >= lease_until {
        Some(Reason::LeaseEnded)
    } else if now >= hold.until.saturating_add(nanos(OVERRUN)) {
        Some(Reason::Overrun)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use super::*;

    const CHILD: &str = "KWITNESS_TEST_WATCHDOG";

    /// In a process of its own: this test starts itself again.
    #[test]
    fn no_signal_that_is_the_guards_to_act_on_ends_the_watchdog() {
        if std::env::var_os(CHILD).is_some() {
            leave_signals_to_the_guard().unwrap();
            println!("\nready");
            while !has_ended(&stdin(), IDLE).unwrap() {}
            return;
        }
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture"])
            .arg("watchdog::tests::no_signal_that_is_the_guards_to_act_on_ends_the_watchdog")
            .env(CHILD, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(child.id().try_into().unwrap());
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        assert!(lines.any(|line| line == "ready"));
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1] {
            kill(pid, signal).unwrap();
        }
        drop(child.stdin.take());
        lines.for_each(drop);
        assert!(child.wait().unwrap().success(), "it ends with the guard");
    }

    #[test]
    fn a_hold_ends_with_the_lease_or_its_own_deadline() {
        let hold = Hold {
            cgroup_id: 1,
            since: 1_000_000_000,
            until: 4_000_000_000,
            usage: 1,
            limit: 1,
            tid: 1,
            signalled: 1,
            comm: [0; 16],
        };
        let end = |now, lease| must_end(now, lease, &hold);
        assert_eq!(end(2_000_000_000, 2_500_000_000), None);
        assert_eq!(end(2_500_000_000, 2_500_000_000), Some(Reason::LeaseEnded));
        assert_eq!(end(4_200_000_000, 5_000_000_000), None, "the guard's own time");
        assert_eq!(end(4_250_000_000, 5_000_000_000), Some(Reason::Overrun));
    }
}
