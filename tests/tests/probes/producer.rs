//! The test program in the role of a workload: run again with a variant's name, it does what the variant says.

use std::path::Path;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kwitness_core::event::ExitStatus;
use nix::sched::CloneFlags;

use crate::child::{Action, Child, exec, exit_thread};

/// The first argument that makes the test program a workload.
pub const ROLE: &str = "--produce";

/// Ends of processes with more than one thread, and what wait(2) may say of each.
pub const EXITS: &[(&str, &[ExitStatus])] = &[
    ("group-exit-from-main", &[ExitStatus::Code(5)]),
    ("group-exit-from-thread", &[ExitStatus::Code(6)]),
    // The first thread's code, or since 5.18 that of the last.
    ("main-ends-first", &[ExitStatus::Code(3), ExitStatus::Code(9)]),
    ("main-ends-first-then-group-exit", &[ExitStatus::Code(7)]),
    ("killed-with-threads", &[ExitStatus::Signal { signal: 9, core_dumped: false }]),
];

/// Starts a variant in a cgroup.
pub fn spawn(cgroup: &Path, variant: &str) -> Result<Child> {
    let own = std::env::current_exe().context("find this program")?;
    let own = own.to_str().context("a path that is not UTF-8")?;
    Child::spawn(Some(cgroup), CloneFlags::empty(), Action::Exec(&[own, ROLE, variant]))
}

/// What a variant does.
pub fn run(role: &[&str]) -> Result<()> {
    let long = Duration::from_secs(1000);
    let [variant, arguments @ ..] = role else { bail!("a variant is missing") };
    match *variant {
        "group-exit-from-main" => {
            for _ in 0..3 {
                std::thread::spawn(move || std::thread::sleep(long));
            }
            std::process::exit(5);
        }
        "group-exit-from-thread" => {
            std::thread::spawn(|| std::process::exit(6));
            std::thread::sleep(long);
        }
        "main-ends-first" => {
            std::thread::spawn(|| {
                std::thread::sleep(Duration::from_millis(50));
                exit_thread(9)
            });
            exit_thread(3)
        }
        "main-ends-first-then-group-exit" => {
            std::thread::spawn(|| {
                std::thread::sleep(Duration::from_millis(50));
                std::process::exit(7)
            });
            exit_thread(3)
        }
        "killed-with-threads" => {
            for _ in 0..3 {
                std::thread::spawn(move || std::thread::sleep(long));
            }
            nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL).context("kill this process")?;
        }
        "threads-end-together" => {
            let barrier = Arc::new(Barrier::new(8));
            for _ in 1..8 {
                let barrier = Arc::clone(&barrier);
                std::thread::spawn(move || {
                    barrier.wait();
                    exit_thread(0)
                });
            }
            barrier.wait();
            exit_thread(0)
        }
        "storm" => return crate::storm::produce(arguments),
        "exec-from-thread" => {
            std::thread::spawn(|| exec(&["/bin/true"]));
            std::thread::sleep(long);
        }
        other => bail!("no variant `{other}`"),
    }
    Ok(())
}
