//! The guard's end of its watchdog: starts it, listens for its signs of life, and replaces one that gives none.
//!
//! ```text
//!              first sign                      no sign for SILENCE_MAX, or it has ended
//!   starting ─────────────▶ looking on ──────────────────────────────────────────────────▶ lost: killed
//!      ▲  │ no sign for START_MAX, or it has ended ─────────────────────────────────────▶   │
//!      └────────────────────── it is gone, and RESTART has passed since the last start ◀────┘
//! ```
//!
//! Only while it looks on may anything be held: the guard does not renew its lease otherwise. One that has been killed and is not
//! gone, in a kernel that does not let go of it, is not replaced. Decides nothing about a hold.

use std::io::Read as _;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout};
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::time::Instant;

use super::signs::{Ending, LINE_MAX};
use super::spawn;

/// How long a watchdog may give no sign before it is lost. Twice the lease: a machine that is too busy for a heartbeat in time
/// continues what is held, and does not lose its watchdog as well.
pub const SILENCE_MAX: Duration = Duration::from_secs(2);
/// How long one that is started may take until its first sign.
const START_MAX: Duration = Duration::from_secs(30);
/// Between two starts, at least.
const RESTART: Duration = Duration::from_secs(1);
/// Between two looks while it is waited for.
const LOOK: Duration = Duration::from_millis(10);
/// What is read at a time, and how often in one go: more than a pipe holds.
const CHUNK: usize = 4096;
const CHUNKS: usize = 32;

type Spawn = Box<dyn Fn() -> anyhow::Result<Child> + Send + Sync>;

/// The watchdog, as the guard has it.
pub(crate) struct Link {
    spawn: Spawn,
    /// None: it is to be started.
    process: Option<Process>,
    started: Instant,
    restarts: u64,
    /// For the log: a line when that changes.
    is_failing: bool,
}

struct Process {
    child: Child,
    /// Ends when this process does, whatever becomes of it.
    stdin: Option<ChildStdin>,
    output: ChildStdout,
    /// When it gave its last sign; none: it has given none.
    heard: Option<Instant>,
    /// It has been killed.
    is_lost: bool,
    /// What has come of a line.
    line: Vec<u8>,
}

impl Link {
    /// Starts one for the guard that pinned its records in that directory, and waits until it looks on.
    ///
    /// # Errors
    /// It does not.
    pub async fn start(directory: &Path) -> anyhow::Result<Self> {
        let directory = directory.to_owned();
        Self::start_by(Box::new(move || spawn(&directory))).await
    }

    async fn start_by(spawn: Spawn) -> anyhow::Result<Self> {
        let started = Instant::now();
        let mut this = Self { spawn, process: None, started, restarts: 0, is_failing: false };
        this.process = Some(Process::start(&this.spawn)?);
        while !this.looks_on() {
            this.hear();
            if !this.check(Instant::now()) {
                if this.process.as_ref().is_none_or(|process| process.is_lost) {
                    bail!("the watchdog does not look on: without it nothing may be held");
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(this)
    }

    /// Reads what it has written: the holds that it ends.
    pub fn hear(&mut self) -> Vec<Ending> {
        let read = |process: &mut Process| process.read();
        self.process.as_mut().filter(|process| !process.is_lost).map(read).unwrap_or_default()
    }

    /// Whether it looks on at that time, as far as it was heard. One that does not is killed, and another one is started in time.
    pub fn check(&mut self, now: Instant) -> bool {
        let Some(process) = &mut self.process else {
            if now.saturating_duration_since(self.started) >= RESTART {
                self.start_again(now);
            }
            return false;
        };
        let ended = process.child.try_wait();
        if process.is_lost {
            if !matches!(ended, Ok(None)) {
                self.process = None;
            }
            return false;
        }
        let (since, max) = process.heard.map_or((self.started, START_MAX), |heard| (heard, SILENCE_MAX));
        let why = match ended {
            Ok(None) if now.saturating_duration_since(since) <= max => return process.heard.is_some(),
            Ok(None) => format!("no sign of life for {} s", max.as_secs()),
            Ok(Some(status)) => format!("it ended: {status}"),
            Err(error) => format!("cannot wait for it: {error}"),
        };
        let pid = process.child.id();
        tracing::error!(pid, why, "watchdog lost: nothing is held until another one looks on");
        process.is_lost = true;
        // One that has ended cannot be.
        let _ = process.child.kill();
        false
    }

    fn start_again(&mut self, now: Instant) {
        self.started = now;
        match Process::start(&self.spawn) {
            Ok(process) => {
                self.restarts += 1;
                self.is_failing = false;
                tracing::info!(pid = process.child.id(), "watchdog started again");
                self.process = Some(process);
            }
            Err(error) if !std::mem::replace(&mut self.is_failing, true) => {
                tracing::error!(%error, "cannot start a watchdog; trying again");
            }
            Err(_) => {}
        }
    }

    fn looking_on(&self) -> Option<&Process> {
        self.process.as_ref().filter(|process| process.heard.is_some() && !process.is_lost)
    }

    /// Whether it did when it was last checked.
    pub fn looks_on(&self) -> bool {
        self.looking_on().is_some()
    }

    /// Its process id, while it looks on.
    pub fn pid(&self) -> Option<u32> {
        self.looking_on().map(|process| process.child.id())
    }

    /// How often another one was started.
    pub fn restarts(&self) -> u64 {
        self.restarts
    }

    /// Has it continue what is left, and waits until it has ended. Whether it ended well: one that hangs is killed.
    pub async fn end(mut self) -> bool {
        let began = Instant::now();
        loop {
            self.hear();
            let Some(process) = &mut self.process else { return false };
            drop(process.stdin.take());
            let heard = process.heard.map_or(began, |heard| heard.max(began));
            match process.child.try_wait() {
                Ok(Some(status)) => return !process.is_lost && status.success(),
                Ok(None) if !process.is_lost && heard.elapsed() <= SILENCE_MAX => {}
                Ok(None) | Err(_) => {
                    // The next guard continues what is left.
                    let _ = process.child.kill();
                    return false;
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Process {
    fn start(spawn: &Spawn) -> anyhow::Result<Self> {
        let mut child = spawn()?;
        let (stdin, output) = (child.stdin.take(), child.stdout.take());
        let output = output.context("the watchdog has no pipe to the guard")?;
        let flags = fcntl(&output, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
        let flags = flags.context("cannot read the flags of the watchdog's pipe")? | OFlag::O_NONBLOCK;
        fcntl(&output, FcntlArg::F_SETFL(flags)).context("cannot change the flags of the watchdog's pipe")?;
        Ok(Self { child, stdin, output, heard: None, is_lost: false, line: Vec::new() })
    }

    /// What has come since the last time.
    fn read(&mut self) -> Vec<Ending> {
        let (mut endings, mut chunk) = (Vec::new(), [0; CHUNK]);
        for _ in 0..CHUNKS {
            let read = match self.output.read(&mut chunk) {
                Ok(read) if read > 0 => read,
                // It has ended, or has written nothing: it is waited for elsewhere.
                _ => break,
            };
            self.heard = Some(Instant::now());
            for byte in &chunk[..read] {
                match byte {
                    b'\n' => {
                        endings.extend(serde_json::from_slice::<Ending>(&self.line).ok());
                        self.line.clear();
                    }
                    byte if self.line.len() < LINE_MAX => self.line.push(*byte),
                    _ => {}
                }
            }
        }
        endings
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::{Command, Stdio};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use super::*;
    use crate::continued::Reason;

    const LATER: Duration = SILENCE_MAX.saturating_add(Duration::from_millis(1));

    /// Shells that each run one of these lines, in turn, and the last one from then on.
    fn shells(lines: &'static [&'static str]) -> Spawn {
        let started = Arc::new(AtomicUsize::new(0));
        Box::new(move || {
            let turn = started.fetch_add(1, Ordering::Relaxed).min(lines.len() - 1);
            let mut shell = Command::new("sh");
            shell.args(["-c", lines[turn]]).stdin(Stdio::piped()).stdout(Stdio::piped());
            shell.spawn().context("sh")
        })
    }

    const LOOKS_ON: &str = "echo; exec cat";
    /// At the end of its input.
    const FAILS: &str = "echo; cat; exit 1";

    /// Checks it at that time until that is so.
    async fn wait(link: &mut Link, now: impl Fn() -> Instant, is_so: impl Fn(&Link) -> bool) {
        let waited = async {
            while !is_so(link) {
                link.hear();
                link.check(now());
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::time::timeout(START_MAX, waited).await.unwrap();
    }

    #[tokio::test]
    async fn a_watchdog_that_gives_no_sign_is_killed_and_replaced() {
        let mut link = Link::start_by(shells(&[LOOKS_ON])).await.unwrap();
        let first = link.pid().unwrap();
        kill(Pid::from_raw(first.cast_signed()), Signal::SIGSTOP).unwrap();
        assert!(link.check(Instant::now()), "not yet");
        assert!(!link.check(Instant::now() + LATER));
        assert_eq!((link.looks_on(), link.pid()), (false, None));
        wait(&mut link, || Instant::now() + RESTART, Link::looks_on).await;
        assert_ne!(link.pid(), Some(first));
        assert_eq!(link.restarts(), 1);
    }

    /// A machine on which neither had a CPU.
    #[tokio::test]
    async fn a_sign_that_came_while_the_guard_did_not_look_keeps_the_watchdog() {
        const MOMENT: Duration = Duration::from_millis(1);
        let mut link = Link::start_by(shells(&["echo; while read line; do echo; done"])).await.unwrap();
        let (pid, first) = (link.pid(), link.process.as_ref().unwrap().heard.unwrap());
        while first.elapsed() < MOMENT {
            tokio::time::sleep(MOMENT).await;
        }
        let stdin = link.process.as_mut().unwrap().stdin.as_mut().unwrap();
        stdin.write_all(b"\n").unwrap();
        let heard = |link: &Link| link.process.as_ref().unwrap().heard;
        wait(&mut link, || first, |link| heard(link) != Some(first)).await;
        assert!(link.check(first + LATER) && link.pid() == pid);
    }

    #[tokio::test]
    async fn a_watchdog_that_ends_is_replaced_and_not_more_often_than_it_may_be() {
        let mut link = Link::start_by(shells(&[LOOKS_ON, "exit 1", LOOKS_ON])).await.unwrap();
        kill(Pid::from_raw(link.pid().unwrap().cast_signed()), Signal::SIGKILL).unwrap();
        let at = Instant::now();
        wait(&mut link, || at, |link| !link.looks_on() && link.process.is_none()).await;
        let started = link.started;
        for _ in 0..3 {
            assert!(!link.check(started));
            assert!(link.process.is_none(), "too soon");
        }
        wait(&mut link, || Instant::now() + RESTART, Link::looks_on).await;
        assert_eq!(link.restarts(), 2);
    }

    #[tokio::test]
    async fn one_that_never_looks_on_is_no_watchdog() {
        assert!(Link::start_by(shells(&["exit 0"])).await.is_err());
    }

    #[tokio::test]
    async fn what_it_announces_is_heard_and_what_else_it_writes_is_a_sign_of_life_only() {
        let ending = Ending::new((7, 1, 2), 3, Reason::Overrun);
        let line = format!(
            "echo; echo nonsense; printf '%0{CHUNK}d\n' 0; echo '{}'; exec cat",
            serde_json::to_string(&ending).unwrap()
        );
        let lines: &'static [&'static str] = Box::leak(Box::new([&*Box::leak(line.into_boxed_str())]));
        let spawn = shells(lines);
        let mut process = Process::start(&spawn).unwrap();
        let heard = async {
            let mut heard = Vec::new();
            while heard.is_empty() {
                heard = process.read();
                tokio::time::sleep(LOOK).await;
            }
            heard
        };
        assert_eq!(tokio::time::timeout(START_MAX, heard).await.unwrap(), [ending]);
        assert!(process.heard.is_some());
        drop(process.stdin.take());
        assert_eq!(process.child.wait().unwrap().signal(), None);
    }

    #[tokio::test]
    async fn at_the_end_one_that_hangs_is_not_waited_for() {
        assert!(!Link::start_by(shells(&[FAILS])).await.unwrap().end().await);
        assert!(Link::start_by(shells(&[LOOKS_ON])).await.unwrap().end().await);
        let link = Link::start_by(shells(&[LOOKS_ON])).await.unwrap();
        let pid = Pid::from_raw(link.pid().unwrap().cast_signed());
        kill(pid, Signal::SIGSTOP).unwrap();
        assert!(!link.end().await);
    }
}
