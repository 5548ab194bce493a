//! A job: a directory that a node, in a guest or on this machine, sees read-only at `/run/job`, with what to run there.
//!
//! Owns the layout of that directory; a node only mounts it and runs `run`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Where a node sees a job.
pub const MOUNT: &str = "/run/job";

pub struct Job {
    dir: PathBuf,
    environment: Vec<(String, String)>,
}

impl Job {
    /// An empty job in `dir`; what was there before is removed.
    pub fn new(dir: PathBuf) -> Result<Self> {
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
        }
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let environment = vec![("KWITNESS_JOB".to_owned(), MOUNT.to_owned())];
        Ok(Self { dir, environment })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn env(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Adds a file, or a directory with all that is in it, under a name relative to the job.
    pub fn add(&self, from: &Path, name: &Path) -> Result<()> {
        let to = self.dir.join(name);
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
        }
        copy(from, &to)
    }

    /// Sets what is run: a program with its arguments, no shell in between.
    pub fn command(&self, words: &[String]) -> Result<()> {
        let words: Vec<_> = words.iter().map(|word| quoted(word)).collect();
        self.script(&format!("exec {}", words.join(" ")))
    }

    /// Sets what is run: a shell script.
    pub fn script(&self, script: &str) -> Result<()> {
        self.write("run", &format!("{}{script}\n", self.exports()))
    }

    pub fn interactive(&self) -> Result<()> {
        self.write("environment", &self.exports())?;
        self.write("interactive", "")
    }

    fn exports(&self) -> String {
        self.environment.iter().map(|(name, value)| format!("export {name}={}\n", quoted(value))).collect()
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.dir.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if from.is_dir() {
        fs::create_dir_all(to).with_context(|| format!("create {}", to.display()))?;
        for entry in fs::read_dir(from).with_context(|| format!("list {}", from.display()))? {
            let entry = entry.with_context(|| format!("list {}", from.display()))?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    // A link costs nothing; across file systems it has to be a copy.
    if fs::hard_link(from, to).is_err() {
        fs::copy(from, to).with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
    }
    Ok(())
}

/// A word as the shell takes it literally.
pub fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_program_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let mut job = Job::new(dir.path().join("job")).unwrap();
        job.env("GREETING", "it's $HOME");
        let words = ["printf", "%s|", "a b", "$x", "don't", ""].map(str::to_owned);
        job.command(&words).unwrap();
        let run = job.dir().join("run");
        let output = std::process::Command::new("sh").arg(&run).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "a b|$x|don't||");

        job.script("echo \"$GREETING, $KWITNESS_JOB\"; exit 7").unwrap();
        let output = std::process::Command::new("sh").arg(&run).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "it's $HOME, /run/job\n");
        assert_eq!(output.status.code(), Some(7));
    }

    #[test]
    fn a_new_job_has_nothing_of_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("job");
        let job = Job::new(at.clone()).unwrap();
        job.add(Path::new("/etc/hostname"), Path::new("etc/name")).unwrap();
        assert!(at.join("etc/name").is_file());
        Job::new(at.clone()).unwrap();
        assert!(!at.join("etc").exists());
    }
}
