//! What containers and their neighbours do while kwitness is measured. Each is this executable, started again.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// The rest between two ticks: long enough for everything to fall asleep.
const TICK: Duration = Duration::from_millis(10);

/// The smallest program there is on every node of ours.
const TINY: &str = "/usr/bin/busybox";

/// Rests, then has a small program executed that only sleeps, `count` times: one exec record a tick, from a machine that is
/// otherwise idle. A program as large as this one would take a CPU for most of the time that is measured, to start itself.
pub(crate) fn tick(count: u32) -> Result<()> {
    // Killed with the container.
    let mut sleepers = Vec::new();
    for _ in 0..count {
        std::thread::sleep(TICK);
        let mut sleeper = Command::new(TINY);
        sleeper.args(["sleep", "100000"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        sleepers.push(sleeper.spawn().with_context(|| format!("run {TINY}"))?);
    }
    Ok(())
}

/// Forks, executes and waits `count` times; prints the nanoseconds that all took.
pub(crate) fn forks(count: u32) -> Result<()> {
    let began = Instant::now();
    for _ in 0..count {
        let mut child = Command::new(TINY);
        child.arg("true").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let status = child.status().with_context(|| format!("run {TINY}"))?;
        ensure!(status.success(), "{TINY} true: {status}");
    }
    println!("{}", began.elapsed().as_nanos());
    Ok(())
}

/// Forks and exits `count` times, one after the other, and executes nothing.
const SUBSHELLS: &str = "n=$0; while [ $n -gt 0 ]; do (:); n=$((n-1)); done";
/// Executes itself `$1` times, in one process.
const EXECS: &str = r#"[ "$1" -eq 0 ] || exec /usr/bin/busybox sh -c "$0" "$0" $(($1-1))"#;

/// Forks and exits `count` times without an exec; prints the nanoseconds that all took.
pub(crate) fn subshells(count: u32) -> Result<()> {
    shell(&[SUBSHELLS, &count.to_string()])
}

/// Executes `count` times without a fork; prints the nanoseconds that all took.
pub(crate) fn execs(count: u32) -> Result<()> {
    shell(&[EXECS, EXECS, &count.to_string()])
}

fn shell(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(TINY);
    command.args(["sh", "-c"]).args(arguments).stdin(Stdio::null());
    let began = Instant::now();
    let status = command.status().with_context(|| format!("run {TINY}"))?;
    ensure!(status.success(), "{TINY} sh: {status}");
    println!("{}", began.elapsed().as_nanos());
    Ok(())
}

/// Rests, and writes one of two texts to a file, in turn, `count` times.
pub(crate) fn resizes(file: &Path, texts: [&str; 2], count: u32) -> Result<()> {
    for text in texts.into_iter().cycle().take(count as usize) {
        std::thread::sleep(TICK);
        write(file, text)?;
    }
    Ok(())
}

/// Writes, and does not truncate before: of a limit, that would be a notice of its own.
fn write(path: &Path, text: &str) -> Result<()> {
    let mut file =
        File::options().write(true).open(path).with_context(|| format!("open {}", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("write {text} to {}", path.display()))
}

/// Writes `count` times to one place of a file; prints the nanoseconds that all took.
pub(crate) fn writes(count: u32) -> Result<()> {
    use std::os::unix::fs::FileExt as _;
    let file = tempfile::tempfile().context("make a file")?;
    let began = Instant::now();
    for _ in 0..count {
        file.write_all_at(b"67108864", 0).context("write to a file")?;
    }
    println!("{}", began.elapsed().as_nanos());
    Ok(())
}
