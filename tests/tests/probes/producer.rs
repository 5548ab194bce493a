//! The test program in the role of a workload: run again with a variant's name, it does what the variant says.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Barrier};

use kwitness_core::model::ExitStatus;
use kwitness_tests::prelude::*;
use nix::sched::CloneFlags;

use crate::child::{Action, Child, exec, exit_thread};
use crate::session::rmdir;

/// The first argument that makes the test program a workload.
pub const ROLE: &str = "--produce";

/// How often the variant `forks` forks.
pub const FORKS: u32 = 200;

/// Of so many containers of the variant `storm`, one executes a program; the others end at once.
const EXEC_EVERY: u32 = 10;

/// How often the variant `write-often` writes, and in how many turns: it stops itself after each.
pub const WRITES: u64 = 10_000;
pub const TURNS: u64 = 40;

/// How much memory the variant `hog` takes, MiB.
pub const HOG: usize = 160;

/// How much memory the variant `reserve` may touch and does not, and `fill` at most, in bytes.
pub const RESERVED: usize = 64 << 20;

/// How much the variant `fill` touches at a time, in bytes: what the kernel charges at a time, with pages of 4 KiB.
const FILL_STEP: usize = 256 << 10;

/// No page is smaller.
const PAGE: usize = 4 << 10;

/// Ends of processes with more than one thread, and what wait(2) may say of each.
pub const EXITS: &[(&str, &[ExitStatus])] = &[
    ("group-exit-from-main", &[ExitStatus::Code(5)]),
    ("group-exit-from-thread", &[ExitStatus::Code(6)]),
    // The first thread's code, or since 5.18 that of the last.
    ("main-ends-first", &[ExitStatus::Code(3), ExitStatus::Code(9)]),
    ("main-ends-first-then-group-exit", &[ExitStatus::Code(7)]),
    ("killed-with-threads", &[ExitStatus::Signal { signal: 9, core_dumped: false }]),
];

/// This program's file: what a workload executes, for a guest need not have any other.
pub fn program() -> Result<String> {
    let path = std::env::current_exe().context("find this program")?;
    path.into_os_string().into_string().ok().context("a path that is not UTF-8")
}

/// Starts a variant in a cgroup, in our namespaces.
pub fn spawn(cgroup: &Path, variant: &str) -> Result<Child> {
    spawn_in(cgroup, CloneFlags::empty(), variant)
}

/// Starts a variant in a cgroup, in namespaces of its own.
pub fn spawn_in(cgroup: &Path, namespaces: CloneFlags, variant: &str) -> Result<Child> {
    Child::spawn(Some(cgroup), namespaces, Action::Exec(&[&program()?, ROLE, variant]))
}

/// What a variant does.
pub fn run(role: &[&str]) -> Result<()> {
    let long = Duration::from_secs(1000);
    let [variant, arguments @ ..] = role else { bail!("a variant is missing") };
    match *variant {
        "end" => {}
        "end-with-1" => std::process::exit(1),
        "pause" => std::thread::sleep(long),
        "become-pause" => {
            exec(&[&program()?, ROLE, "pause"])?;
        }
        "forks" => {
            for _ in 0..FORKS {
                Child::spawn(None, CloneFlags::empty(), Action::Exit(3))?.wait()?;
            }
        }
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
        "hog" => hog()?,
        "fill" => {
            let [usage, full, times] = arguments else { bail!("which usage, how much, how often?") };
            fill(Path::new(usage), full.parse()?, times.parse()?)?;
        }
        "reserve" => {
            without_huge_pages()?;
            let reserved = std::hint::black_box(Vec::<u8>::with_capacity(RESERVED));
            stop()?;
            drop(reserved);
        }
        "parent-of-hog" => {
            Child::spawn(None, CloneFlags::empty(), Action::Exec(&[&program()?, ROLE, "hog"]))?.wait()?;
        }
        "write-often" => {
            let [file] = arguments else { bail!("which file?") };
            for number in 1..=WRITES {
                std::fs::write(file, number.to_string()).with_context(|| format!("write {file}"))?;
                if number.is_multiple_of(WRITES / TURNS) {
                    stop()?;
                }
            }
        }
        "storm" => return storm(arguments),
        "exec-from-thread" => {
            let become_another = || exec(&[&program()?, ROLE, "end"]);
            match std::thread::spawn(become_another).join() {
                Ok(Err(error)) => return Err(error),
                _ => bail!("the thread ended"),
            }
        }
        other => bail!("no variant `{other}`"),
    }
    Ok(())
}

/// Takes memory until it is killed or has enough, and then stops itself.
fn hog() -> Result<()> {
    let allocated: Vec<Vec<u8>> = (0..HOG).map(|_| vec![1; 1 << 20]).collect();
    stop()?;
    drop(allocated);
    Ok(())
}

/// Takes memory until the file says that so much is charged, and gives it back; so often, and then once after each stop. It stops
/// while it has the memory.
///
/// Nothing else is charged but what it touches: it is more than the allocator keeps, so the kernel gets all of it back at once.
fn fill(usage: &Path, full: u64, mut times: u64) -> Result<()> {
    without_huge_pages()?;
    let charged = || -> Result<u64> {
        let text = std::fs::read_to_string(usage).with_context(|| format!("read {}", usage.display()))?;
        Ok(text.trim_end().parse()?)
    };
    let mut memory = Vec::<u8>::new();
    loop {
        for _ in 0..times {
            drop(std::mem::take(&mut memory));
            let kept = charged()?;
            ensure!(kept < full / 2, "{kept} bytes are still charged, of {full}");
            memory = std::hint::black_box(Vec::with_capacity(RESERVED));
            let mut steps = memory.spare_capacity_mut().chunks_mut(FILL_STEP);
            while charged()? < full {
                let step = steps.next().with_context(|| format!("{RESERVED} bytes are not enough"))?;
                step.iter_mut().step_by(PAGE).for_each(|byte| _ = byte.write(1));
            }
        }
        stop()?;
        times = 1;
    }
}

/// Has the kernel charge this process's memory in small pages, and to it: `khugepaged`, a thread of the kernel's, charges a huge page
/// in the name of no process, beside the pages that it replaces.
fn without_huge_pages() -> Result<()> {
    nix::sys::prctl::set_thp_disable(true).context("do without huge pages")
}

fn stop() -> Result<()> {
    nix::sys::signal::raise(nix::sys::signal::Signal::SIGSTOP).context("stop this process")
}

/// The variant `storm`: makes containers one after the other, and prints what it did when all are gone.
fn storm(arguments: &[&str]) -> Result<()> {
    let [prefix, count] = arguments else { bail!("the storm takes a prefix and a count") };
    let count: u32 = count.parse()?;
    let mut made = String::new();
    for index in 0..count {
        let pod = PathBuf::from(format!("{prefix}{index}"));
        let container = pod.join("ctr");
        for directory in [&pod, &container] {
            std::fs::create_dir(directory).with_context(|| format!("make {}", directory.display()))?;
        }
        let executed = index % EXEC_EVERY == 0;
        let (id, pod_id) = (cgroup::id(&container)?, cgroup::id(&pod)?);
        let child = if executed {
            spawn(&container, "end-with-1")?
        } else {
            Child::spawn(Some(&container), CloneFlags::empty(), Action::Exit((index % 256) as u8))?
        };
        let pid = child.pid();
        let ExitStatus::Code(code) = child.wait()? else { bail!("a container was killed") };
        rmdir(&container)?;
        rmdir(&pod)?;
        made += &format!("{id} {pod_id} {pid} {executed} {code}\n");
    }
    print!("{made}");
    Ok(())
}
