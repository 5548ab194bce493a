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

/// Rests, and writes one of two texts to a file, in turn, `count` times.
pub(crate) fn resizes(file: &Path, texts: [&str; 2], count: u32) -> Result<()> {
    for text in texts.into_iter().cycle().take(count as usize) {
        std::thread::sleep(TICK);
        write(file, text)?;
    }
    Ok(())
}

/// Writes, and does not truncate before: of a limit, that would be a notice of its own.
pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
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
