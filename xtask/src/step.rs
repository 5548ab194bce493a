//! Steps of setup: each is done once for its inputs, with a line of progress when it is not done already.
//!
//! A step's stamp is the hash of all that went into it. A stamp that matches, with every output still there,
//! means that there is nothing to do; it is written last, so an interrupted step is done again.

use std::fs;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

use crate::workspace::Cache;

/// One thing that setup makes.
pub struct Step<'a> {
    /// What a person reads, unique in the cache.
    pub name: &'a str,
    /// Everything that decides what comes out.
    pub inputs: &'a [&'a str],
    /// What must exist for the stamp to count.
    pub outputs: &'a [&'a Path],
}

impl Step<'_> {
    /// Does `work` unless it was done for the same inputs.
    pub fn run(&self, cache: &Cache, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let stamp = self.stamp(cache)?;
        let key = key(self.inputs);
        if fs::read_to_string(&stamp).is_ok_and(|found| found == key)
            && self.outputs.iter().all(|o| o.exists())
        {
            return Ok(());
        }
        timed(self.name, work)?;
        fs::write(&stamp, key).with_context(|| format!("write {}", stamp.display()))
    }

    fn stamp(&self, cache: &Cache) -> Result<PathBuf> {
        Ok(cache.dir("stamps")?.join(self.name.replace([' ', '/'], "-")))
    }
}

pub fn timed<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    expected(name, "", work)
}

/// What a build with cargo takes.
pub const BUILD: &str = "minutes from nothing, seconds after that";

/// The same for what takes long: a person reads at its start how long.
pub fn expected<T>(name: &str, takes: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    say("  ..", name, takes);
    let start = Instant::now();
    let result = work();
    say(if result.is_ok() { "  ok" } else { "FAIL" }, name, &seconds(start.elapsed()));
    result.with_context(|| name.to_owned())
}

/// A line of progress, on standard error: standard output belongs to what is run.
pub fn say(mark: &str, name: &str, rest: &str) {
    let mut err = std::io::stderr().lock();
    let (on, off) = match (err.is_terminal() && std::env::var_os("NO_COLOR").is_none(), mark.trim()) {
        (true, "ok") => ("\x1b[32m", "\x1b[0m"),
        (true, "FAIL") => ("\x1b[31m", "\x1b[0m"),
        (true, _) => ("\x1b[2m", "\x1b[0m"),
        (false, _) => ("", ""),
    };
    // When standard error is closed there is nowhere to report.
    _ = writeln!(err, "{}", format!("{on}{mark}{off} {name:<36} {rest}").trim_end());
}

pub fn seconds(time: Duration) -> String {
    format!("{:>6.1} s", time.as_secs_f64())
}

/// The hash of a list of strings; `["ab"]` and `["a", "b"]` differ.
pub fn key(inputs: &[&str]) -> String {
    let mut hash = Sha256::new();
    for input in inputs {
        hash.update((input.len() as u64).to_le_bytes());
        hash.update(input);
    }
    hex(&hash.finalize())
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_depends_on_where_inputs_begin() {
        assert_ne!(key(&["ab"]), key(&["a", "b"]));
    }
}
