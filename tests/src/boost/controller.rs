//! Who decides: whether a container's limit is to be raised now, from what the daemon reports of it.
//!
//! ```text
//!            a program of the work executes
//!  original ───────────────────────────────▶ raised
//!           ◀───────────────────────────────
//!            its last process has exited, or it is ready
//! ```
//!
//! One move at a time: what changes meanwhile is decided again when the move is in force. Pure: knows neither the API nor a clock.

use std::collections::HashSet;

use kwitness_api::proto::event::Kind;
use kwitness_api::proto::{Exec, Exited, Process};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Original,
    Raised,
}

#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// The file names of its programs.
    pub programs: &'static [&'static str],
    pub until: Until,
}

/// Until when work needs a raise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    LastExit,
    /// It says that it is ready; or it has ended before.
    Ready,
}

#[derive(Clone, Debug)]
pub struct Controller {
    work: Work,
    /// Its processes, by pid and start time; no more than the container has.
    running: HashSet<(u32, u64)>,
    is_ready: bool,
    in_force: Level,
    moving: Option<Level>,
    recognized: Option<String>,
    seen: usize,
}

impl Controller {
    /// No work is seen yet, and the limit is the original one.
    pub fn new(work: Work) -> Self {
        Self {
            work,
            running: HashSet::new(),
            is_ready: false,
            in_force: Level::Original,
            moving: None,
            recognized: None,
            seen: 0,
        }
    }

    /// An event of the container. The answer is the move to make now, if there is one.
    #[must_use = "the move is expected to be made"]
    pub fn observe(&mut self, event: &Kind) -> Option<Level> {
        match event {
            Kind::Exec(Exec { process: Some(process), program }) if self.is_of_work(program) => {
                self.recognized.get_or_insert_with(|| program.clone());
                // It may execute one program after the other.
                self.seen += usize::from(self.running.insert(key(process)));
            }
            Kind::Exited(Exited { process: Some(process), .. }) => {
                self.running.remove(&key(process));
            }
            // No process is left, whatever was missed.
            Kind::Stopped(_) => self.running.clear(),
            _ => return None,
        }
        self.decide()
    }

    /// The work says that it is ready. The answer is the move to make now, if there is one.
    #[must_use = "the move is expected to be made"]
    pub fn ready(&mut self) -> Option<Level> {
        self.is_ready = true;
        self.decide()
    }

    /// The move under way is in force. The answer is the next one, if there is one.
    #[must_use = "the move is expected to be made"]
    pub fn moved(&mut self) -> Option<Level> {
        self.in_force = self.moving.take()?;
        self.decide()
    }

    pub fn is_busy(&self) -> bool {
        let is_ready = self.work.until == Until::Ready && self.is_ready;
        !self.running.is_empty() && !is_ready
    }

    pub fn in_force(&self) -> Level {
        self.in_force
    }

    /// Whether there was work, it is over, and the limit is the original one.
    pub fn is_settled(&self) -> bool {
        self.recognized.is_some()
            && !self.is_busy()
            && self.moving.is_none()
            && self.in_force == Level::Original
    }

    pub fn recognized(&self) -> Option<&str> {
        self.recognized.as_deref()
    }

    pub fn processes(&self) -> usize {
        self.seen
    }

    fn decide(&mut self) -> Option<Level> {
        let wanted = if self.is_busy() { Level::Raised } else { Level::Original };
        if self.moving.is_some() || wanted == self.in_force {
            return None;
        }
        self.moving = Some(wanted);
        self.moving
    }

    fn is_of_work(&self, program: &str) -> bool {
        program.rsplit('/').next().is_some_and(|name| self.work.programs.contains(&name))
    }
}

/// A pid alone may be used again.
fn key(process: &Process) -> (u32, u64) {
    (process.pid, process.start_time)
}

#[cfg(test)]
mod tests {
    use kwitness_api::proto::Stopped;

    use super::*;

    const BUILD: Work = Work { programs: &["make", "cc1"], until: Until::LastExit };
    const START: Work = Work { programs: &["java"], until: Until::Ready };

    fn process(pid: u32) -> Option<Process> {
        Some(Process { pid, start_time: u64::from(pid) * 10, ..Process::default() })
    }

    fn exec(pid: u32, program: &str) -> Kind {
        Kind::Exec(Exec { process: process(pid), program: program.to_owned() })
    }

    fn exited(pid: u32) -> Kind {
        Kind::Exited(Exited { process: process(pid), ..Exited::default() })
    }

    #[test]
    fn a_build_is_raised_once_and_returned_after_its_last_process() {
        let mut controller = Controller::new(BUILD);
        assert_eq!(controller.observe(&exec(1, "/bin/sleep")), None, "no program of a build");
        assert!(!controller.is_settled(), "no build was seen yet");
        assert_eq!(controller.observe(&exec(2, "/usr/bin/make")), Some(Level::Raised));
        assert_eq!(controller.observe(&exec(3, "/usr/libexec/gcc/x86_64-linux-gnu/14/cc1")), None);
        assert_eq!(controller.moved(), None);
        assert_eq!(controller.in_force(), Level::Raised);
        assert_eq!(controller.observe(&exited(2)), None, "one is left");
        assert_eq!(controller.observe(&exited(1)), None, "not of the build");
        assert_eq!(controller.observe(&exited(3)), Some(Level::Original));
        assert!(!controller.is_settled(), "it is not in force yet");
        assert_eq!(controller.moved(), None);
        assert!(controller.is_settled());
        assert_eq!((controller.recognized(), controller.processes()), (Some("/usr/bin/make"), 2));
    }

    #[test]
    fn a_build_that_ends_before_the_raise_is_in_force_is_returned_after_it() {
        let mut controller = Controller::new(BUILD);
        assert_eq!(controller.observe(&exec(2, "make")), Some(Level::Raised));
        assert_eq!(controller.observe(&exited(2)), None, "one move at a time");
        assert_eq!(controller.moved(), Some(Level::Original));
        assert_eq!(controller.observe(&exec(4, "make")), None, "the next build waits for the return");
        assert_eq!(controller.moved(), Some(Level::Raised));
        assert_eq!(controller.moved(), None);
        assert_eq!(controller.observe(&exited(4)), Some(Level::Original));
    }

    #[test]
    fn one_process_counts_once_and_a_pid_that_is_used_again_is_another() {
        let mut controller = Controller::new(BUILD);
        assert_eq!(controller.observe(&exec(2, "make")), Some(Level::Raised));
        assert_eq!(controller.observe(&exec(2, "cc1")), None);
        assert_eq!(controller.processes(), 1);
        let later = Some(Process { pid: 2, start_time: 99, ..Process::default() });
        let later = Kind::Exited(Exited { process: later, ..Exited::default() });
        assert_eq!(controller.observe(&later), None);
        assert!(controller.is_busy());
        assert_eq!(controller.moved(), None);
        assert_eq!(controller.observe(&exited(2)), Some(Level::Original));
    }

    #[test]
    fn a_container_that_stopped_needs_no_raise() {
        let mut controller = Controller::new(BUILD);
        assert_eq!(controller.observe(&exec(2, "make")), Some(Level::Raised));
        assert_eq!(controller.moved(), None);
        assert_eq!(controller.observe(&Kind::Stopped(Stopped::default())), Some(Level::Original));
    }

    #[test]
    fn a_start_is_returned_when_it_is_ready_though_it_runs_on() {
        let mut controller = Controller::new(START);
        assert_eq!(controller.observe(&exec(2, "/usr/lib/jvm/bin/java")), Some(Level::Raised));
        assert_eq!(controller.moved(), None);
        assert_eq!(controller.ready(), Some(Level::Original));
        assert_eq!(controller.moved(), None);
        assert!(controller.is_settled());
        assert_eq!(controller.observe(&exited(2)), None);
    }

    #[test]
    fn a_start_that_failed_is_returned() {
        let mut controller = Controller::new(START);
        assert_eq!(controller.observe(&exec(2, "java")), Some(Level::Raised));
        assert_eq!(controller.moved(), None);
        assert_eq!(controller.observe(&exited(2)), Some(Level::Original));
    }
}
