//! Signals, for all programs.
//!
//! | Signal | What happens |
//! |---|---|
//! | SIGTERM, SIGINT | the program stops; it is ended after [`STOP`] if it has not, unless it [has reason to take longer](Signals::suspend_deadline) |
//! | SIGUSR1 | the program's counters go to the log |
//! | SIGHUP | the program reads its configuration again, if it can apply any of it; the end of a login session must not end it |
//!
//! A thread of its own waits for them, so that the end comes even while every worker of the runtime is stuck.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
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
pub struct Signals {
    received: mpsc::UnboundedReceiver<Signal>,
    deadline: Arc<Deadline>,
}

/// Whether a program is ended that was signalled to stop.
#[derive(Debug, Default)]
struct Deadline {
    is_suspended: AtomicBool,
    /// How often it was resumed: each time the program has all of [`STOP`] again.
    resumed: AtomicU32,
}

impl Deadline {
    /// Returns when the time is over; whether the program is to be ended.
    fn pass(&self) -> bool {
        loop {
            let before = self.resumed.load(SeqCst);
            thread::sleep(STOP);
            if self.is_suspended.load(SeqCst) {
                return false;
            }
            if self.resumed.load(SeqCst) == before {
                return true;
            }
        }
    }
}

impl Signals {
    /// Handles them from now on, once in a process.
    ///
    /// # Errors
    /// The handlers cannot be set, or the thread not started.
    pub fn handle() -> anyhow::Result<Self> {
        let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGUSR1, SIGHUP])
            .context("cannot handle signals")?;
        let (to, received) = mpsc::unbounded_channel();
        let deadline = Arc::<Deadline>::default();
        let of_program = Arc::clone(&deadline);
        let wait = move || {
            for signal in &mut signals {
                match signal {
                    SIGHUP => drop(to.send(Signal::Reload)),
                    SIGUSR1 => drop(to.send(Signal::LogCounters)),
                    _ => {
                        // It has no receiver when the program is ending already.
                        let _ = to.send(Signal::Stop);
                        if !of_program.pass() {
                            continue;
                        }
                        tracing::warn!("not stopped in time: exiting now");
                        // Without the handlers of exit(3), which may wait for what hangs.
                        signal_hook::low_level::exit(0);
                    }
                }
            }
        };
        thread::Builder::new().name("signals".to_owned()).spawn(wait).context("cannot handle signals")?;
        Ok(Self { received, deadline })
    }

    /// From now on, a program that was signalled to stop is not ended for taking longer than two seconds: what it does must not be cut off.
    pub fn suspend_deadline(&self) {
        self.deadline.is_suspended.store(true, SeqCst);
    }

    /// From now on, it is again, but not before two seconds. A signal whose time has passed meanwhile has no deadline any more.
    pub fn resume_deadline(&self) {
        self.deadline.resumed.fetch_add(1, SeqCst);
        self.deadline.is_suspended.store(false, SeqCst);
    }

    /// The next one.
    pub async fn next(&mut self) -> Signal {
        match self.received.recv().await {
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

    fn is_child() -> bool {
        std::env::var_os(CHILD).is_some()
    }

    /// What the child says, and waits for.
    fn say(line: &str) {
        println!("\n{line}");
    }

    fn next(signals: &mut Signals) -> Signal {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(signals.next())
    }

    /// The same test in a process of its own, which takes the part of [`is_child`].
    struct Child(std::process::Child, Box<dyn Iterator<Item = String>>);

    impl Child {
        fn start(test: &str) -> Self {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "--nocapture"])
                .arg(format!("signals::tests::{test}"))
                .env(CHILD, "1")
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
            Self(child, Box::new(lines))
        }

        fn wait_for(&mut self, said: &str) {
            assert!(self.1.any(|line| line == said), "it never says {said}");
        }

        fn signal(&self, signal: Unix) {
            kill(Pid::from_raw(self.0.id().try_into().unwrap()), signal).unwrap();
        }

        fn wait_end(&mut self) {
            assert_eq!(self.0.wait().unwrap().code(), Some(0));
        }
    }

    /// Its only worker is stuck, as by a file that never answers.
    #[test]
    fn a_stuck_program_ends_and_only_after_a_signal_to_stop() {
        if is_child() {
            let mut signals = Signals::handle().unwrap();
            say("ready");
            assert_eq!(next(&mut signals), Signal::Reload);
            say("reload");
            assert_eq!(next(&mut signals), Signal::LogCounters);
            say("counters");
            loop {
                thread::park();
            }
        }
        let mut child = Child::start("a_stuck_program_ends_and_only_after_a_signal_to_stop");
        child.wait_for("ready");
        child.signal(Unix::SIGHUP);
        child.wait_for("reload");
        child.signal(Unix::SIGUSR1);
        // Neither ends it.
        child.wait_for("counters");
        child.signal(Unix::SIGTERM);
        // Waits forever unless the signals' thread ends it.
        child.wait_end();
    }

    #[test]
    fn what_must_not_be_cut_off_is_not() {
        if is_child() {
            let mut signals = Signals::handle().unwrap();
            signals.suspend_deadline();
            say("ready");
            assert_eq!(next(&mut signals), Signal::Stop);
            say("signalled to stop");
            // The signals' thread passes this one on when the other one's time is over.
            assert_eq!(next(&mut signals), Signal::LogCounters);
            signals.resume_deadline();
            say("resumed");
            loop {
                thread::park();
            }
        }
        let mut child = Child::start("what_must_not_be_cut_off_is_not");
        child.wait_for("ready");
        child.signal(Unix::SIGTERM);
        child.wait_for("signalled to stop");
        child.signal(Unix::SIGUSR1);
        child.wait_for("resumed");
        child.signal(Unix::SIGTERM);
        child.wait_end();
    }
}
