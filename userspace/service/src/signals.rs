//! Signals, for all programs.
//!
//! | Signal | What happens |
//! |---|---|
//! | SIGTERM, SIGINT | the program stops; it is ended after [`STOP`] if it has not |
//! | SIGUSR1 | the program's counters go to the log |
//! | SIGHUP | the program reads its configuration again, if it can apply any of it; the end of a login session must not end it |
//!
//! A thread of its own waits for them, so that the end comes even while every worker of the runtime is stuck.

use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use tokio::sync::mpsc;

/// How long a program may take to stop.
pub const STOP: Duration = Duration::from_secs(2);

/// What a program has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Stop.
    Stop,
    /// Log its counters.
    LogCounters,
    /// Read the configuration again.
    Reload,
}

/// The signals that come from now on.
#[derive(Debug)]
pub struct Signals(mpsc::UnboundedReceiver<Signal>);

impl Signals {
    /// Handles them from now on, once in a process.
    ///
    /// # Errors
    /// The handlers cannot be set, or the thread not started.
    pub fn handle() -> anyhow::Result<Self> {
        let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGUSR1, SIGHUP])
            .context("cannot handle signals")?;
        let (to, from) = mpsc::unbounded_channel();
        let wait = move || {
            for signal in &mut signals {
                match signal {
                    SIGHUP => drop(to.send(Signal::Reload)),
                    SIGUSR1 => drop(to.send(Signal::LogCounters)),
                    _ => {
                        // It has no receiver when the program is ending already.
                        let _ = to.send(Signal::Stop);
                        thread::sleep(STOP);
                        tracing::warn!("not stopped in time: exiting now");
                        // Without the handlers of exit(3), which may wait for what hangs.
                        signal_hook::low_level::exit(0);
                    }
                }
            }
        };
        thread::Builder::new().name("signals".to_owned()).spawn(wait).context("cannot handle signals")?;
        Ok(Self(from))
    }

    /// The next one.
    pub async fn next(&mut self) -> Signal {
        match self.0.recv().await {
            Some(signal) => signal,
            // The thread never ends.
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::process::{Command, Stdio};

    use nix::sys::signal::{Signal as Unix, kill};
    use nix::unistd::Pid;

    use super::*;

    const CHILD: &str = "KWITNESS_TEST_SIGNALS";

    /// In a process of its own: this test starts itself again. Its only worker is stuck, as by a file that never answers.
    #[test]
    fn a_stuck_program_ends_and_only_after_a_signal_to_stop() {
        if std::env::var_os(CHILD).is_some() {
            let mut signals = Signals::handle().unwrap();
            println!("\nready");
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            assert_eq!(runtime.block_on(signals.next()), Signal::Reload);
            assert_eq!(runtime.block_on(signals.next()), Signal::LogCounters);
            println!("\ncounters");
            loop {
                thread::park();
            }
        }
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture"])
            .arg("signals::tests::a_stuck_program_ends_and_only_after_a_signal_to_stop")
            .env(CHILD, "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(child.id().try_into().unwrap());
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        assert!(lines.any(|line| line == "ready"));
        kill(pid, Unix::SIGHUP).unwrap();
        kill(pid, Unix::SIGUSR1).unwrap();
        assert!(lines.any(|line| line == "counters"), "neither ends it");
        kill(pid, Unix::SIGTERM).unwrap();
        // Waits forever unless the signals' thread ends it.
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
}
