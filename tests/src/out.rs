//! A directory of the node that a container has at `/out`: by files in it, a test and the container's shell wait for each other.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::process::{self, wait_for};

/// Of a shell's line, the end: it leaves the exit code of what it has run, whole, and stays.
pub const LEAVE_CODE: &str = "echo $? >/out/code.new; mv /out/code.new /out/code; exec sleep 1000";
/// A shell's line that keeps in memory what is written to the pipe `gate`, for `tail` looks for the end of a line.
pub const KEEP: &str = "mkfifo /out/gate; exec tail </out/gate >/dev/null";

/// Of a shell's line: it waits for a file.
pub fn until(file: &str) -> String {
    format!("until [ -e /out/{file} ]; do sleep 0.1; done")
}

#[derive(Debug)]
pub struct Out(TempDir);

impl Out {
    pub fn make() -> Result<Self> {
        process::directory("out").map(Self)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn at(&self, file: &str) -> PathBuf {
        self.path().join(file)
    }

    pub fn place(&self, file: &str, text: &str) -> Result<()> {
        fs::write(self.at(file), text).with_context(|| format!("write {file} for a container"))
    }

    /// Makes a file for which the shell waits.
    pub fn signal(&self, file: &str) -> Result<()> {
        self.place(file, "")
    }

    pub fn has(&self, file: &str) -> bool {
        self.at(file).exists()
    }

    /// A file that the container has left; none: not yet.
    pub fn left(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.at(file)).ok()
    }

    pub async fn wait(&self, file: &str, within: Duration) -> Result<()> {
        let there = async || Ok(self.has(file).then_some(()));
        wait_for(&format!("{file} of the container"), within, there).await
    }

    /// Waits for the exit code that a shell leaves by [`LEAVE_CODE`].
    pub async fn code(&self, within: Duration) -> Result<i32> {
        self.wait("code", within).await?;
        let code = self.left("code").context("read the exit code")?;
        code.trim().parse().with_context(|| format!("the exit code `{code}`"))
    }
}
