use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};

use nix::sys::ptrace;
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
    assert!(is_moving(&held) && held.can_charge(child.id()).unwrap());
    assert!(!has_ended(&held.pidfd).unwrap());
    stop(&child);
    assert_eq!(held.state().unwrap(), State::Stopped);
    assert!(!is_moving(&held) && !held.can_charge(child.id()).unwrap());
    assert_eq!(held.resume().unwrap(), State::Running);
    drop(child.stdin.take());
    child.wait().unwrap();
    assert_eq!(held.state().unwrap(), State::Gone);
    let ended = motion(key, &hold(child.id()), &mut None, &mut 0).unwrap();
    assert!(!is_moving(&held) && ended == Motion::Still);
    assert_eq!(held.resume().unwrap(), State::Gone);
    assert!(has_ended(&held.pidfd).unwrap());
    assert!(Held::find(key).unwrap().is_none());
}

#[test]
fn what_is_not_stopped_gets_no_sigcont() {
    let line = "trap 'echo continued' CONT; echo ready; read line; read line";
    let mut shell = Command::new("sh");
    shell.args(["-c", line]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = Killed(shell.spawn().unwrap());
    let mut output = BufReader::new(child.0.stdout.take().unwrap());
    let mut next = || {
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        line
    };
    assert_eq!(next(), "ready\n");
    let held = Held::find(key(&child.0)).unwrap().unwrap();
    assert!(!held.may_be_stopped().unwrap());
    assert_eq!(held.resume().unwrap(), State::Running);
    drop(child.0.stdin.take());
    assert_eq!(next(), "", "it has caught a SIGCONT");
    child.0.wait().unwrap();
}

#[test]
fn what_another_process_continues_during_its_hold_is_seen_to_run() {
    let (mut child, key) = child();
    let (own, pid) = (hold(child.id()), Pid::from_raw(child.id() as i32));
    stop(&child);
    assert!(!is_continued(key, &own).unwrap());
    kill(pid, Unix::SIGCONT).unwrap();
    waitpid(pid, Some(WaitPidFlag::WCONTINUED)).unwrap();
    assert!(is_continued(key, &own).unwrap());
    drop(child.stdin.take());
    child.wait().unwrap();
    assert!(!is_continued(key, &own).unwrap(), "it has ended");
}

/// It holds the process itself, and what it leaves is to run.
#[test]
fn what_a_debugger_attaches_to_meanwhile_runs_when_it_detaches() {
    let mut cat = Command::new("cat");
    let mut child = Killed(cat.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
    let pid = Pid::from_raw(child.0.id() as i32);
    stop(&child.0);
    ptrace::seize(pid, ptrace::Options::empty()).unwrap();
    waitpid(pid, None).unwrap();
    let held = Held::find(key(&child.0)).unwrap().unwrap();
    assert_eq!(held.process.stat().unwrap().state().unwrap(), ProcState::Tracing);
    assert_eq!(held.resume().unwrap(), State::Running, "it is the debugger's");
    ptrace::detach(pid, None).unwrap();
    child.0.stdin.take().unwrap().write_all(b"\n").unwrap();
    let output = child.0.stdout.take().unwrap();
    let mut answer = [PollFd::new(output.as_fd(), PollFlags::POLLIN)];
    let wait = PollTimeout::try_from(WAIT).unwrap();
    assert_eq!(poll(&mut answer, wait).unwrap(), 1, "it was left stopped");
}

fn is_moving(held: &Held) -> bool {
    held.is_moving(&mut None, &mut { LOOKS }).unwrap()
}

#[test]
fn so_many_threads_are_looked_at_and_the_one_that_moved_is_looked_at_first() {
    let (mut child, key) = child();
    let held = Held::find(key).unwrap().unwrap();
    assert_eq!(held.threads, 1);
    let (mut mover, mut looks) = (None, 2);
    assert!(held.is_moving(&mut mover, &mut looks).unwrap());
    assert_eq!((mover, looks), (Some(child.id()), 1));
    assert!(held.is_moving(&mut mover, &mut looks).unwrap());
    assert_eq!((mover, looks), (Some(child.id()), 1), "it moves still");
    stop(&child);
    assert!(!held.is_moving(&mut mover, &mut looks).unwrap());
    assert_eq!((mover, looks), (None, 0));
    assert!(held.is_moving(&mut mover, &mut looks).unwrap(), "it may not be looked at now");
    let many = Held { threads: THREADS_MAX + 1, ..held };
    assert!(many.may_be_stopped().unwrap());
    assert!(is_moving(&many), "it has too many threads");
    assert_eq!(many.resume().unwrap(), State::Running);
    drop(child.stdin.take());
    child.wait().unwrap();
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
