//! Cgroup trees: made, entered and removed, in every mounted hierarchy that a runtime puts containers into.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::fcntl::{OFlag, openat};
use nix::libc;
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::process::{kill_pid, mounts, wait_for};

/// How long a cgroup may take to become empty once its processes are killed.
const EMPTY_LIMIT: Duration = Duration::from_secs(10);

/// Bytes of each name in a nest; a file's name may have 255.
const NEST_NAME: usize = 250;

/// A cgroup that a test made in the v2 hierarchy; removed, with all below it, when dropped.
#[derive(Debug)]
pub struct TestCgroup {
    directory: PathBuf,
}

impl TestCgroup {
    /// Makes the cgroup `path` (from the root of the hierarchy mounted at `mount`), and its missing ancestors.
    pub fn make(mount: &Path, path: &str) -> Result<Self> {
        let directory = mount.join(path.trim_start_matches('/'));
        fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
        Ok(Self { directory })
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn id(&self) -> Result<u64> {
        id(&self.directory)
    }

    pub fn enter(&self, pid: u32) -> Result<()> {
        enter(&self.directory, pid)
    }
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        // A test that has failed already must not fail a second time for what it left behind.
        if let Err(error) = remove_tree(&self.directory) {
            eprintln!("leaving {} behind: {error:#}", self.directory.display());
        }
    }
}

/// Cgroups with long names in each other, as deep as no path reaches (`PATH_MAX`); removed when dropped.
#[derive(Debug)]
pub struct Nest {
    /// The outermost, which was there before, and each one in it.
    directories: Vec<OwnedFd>,
    name: String,
}

impl Nest {
    pub fn make(directory: &Path) -> Result<Self> {
        let top = File::open(directory).with_context(|| format!("open {}", directory.display()))?;
        let mut nest = Self { directories: vec![top.into()], name: "x".repeat(NEST_NAME) };
        for level in 0..=libc::PATH_MAX as usize / NEST_NAME {
            nest.deepen().with_context(|| format!("make level {level} of a nest"))?;
        }
        Ok(nest)
    }

    fn deepen(&mut self) -> Result<()> {
        let innermost = self.directories.last().context("there is no outermost directory")?;
        mkdirat(innermost, self.name.as_str(), Mode::S_IRWXU)?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let deeper = openat(innermost, self.name.as_str(), flags, Mode::empty())?;
        self.directories.push(deeper);
        Ok(())
    }
}

impl Drop for Nest {
    fn drop(&mut self) {
        self.directories.pop();
        while let Some(directory) = self.directories.pop() {
            // A test that has failed already must not fail a second time for what it left behind.
            if let Err(error) = unlinkat(directory, self.name.as_str(), UnlinkatFlags::RemoveDir) {
                eprintln!("leaving a nest behind: {error}");
                return;
            }
        }
    }
}

/// The cgroup v2 id of a cgroup's directory: its inode number.
pub fn id(directory: &Path) -> Result<u64> {
    Ok(fs::metadata(directory).with_context(|| format!("stat {}", directory.display()))?.ino())
}

/// What one of a cgroup's files holds, without the end of its last line.
pub fn text(directory: &Path, file: &str) -> Result<String> {
    let path = directory.join(file);
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(text.trim_end().to_owned())
}

/// The number that one of a cgroup's files holds, such as `memory.current`.
pub fn number(directory: &Path, file: &str) -> Result<u64> {
    let text = text(directory, file)?;
    text.parse().with_context(|| format!("{} holds `{text}`", directory.join(file).display()))
}

/// Waits until one of a cgroup's files holds a number that passes.
pub async fn wait_number(
    directory: &Path,
    file: &str,
    within: Duration,
    accept: impl Fn(u64) -> bool,
) -> Result<u64> {
    let what = directory.join(file).display().to_string();
    wait_for(&what, within, async || Ok(Some(number(directory, file)?).filter(|now| accept(*now)))).await
}

/// Writes to one of a cgroup's files, and does not truncate before: of a limit, that would be a notice of its own.
pub fn write(directory: &Path, file: &str, text: impl Display) -> Result<()> {
    let path = directory.join(file);
    let opened = File::options().write(true).open(&path);
    let written = opened.and_then(|mut opened| opened.write_all(text.to_string().as_bytes()));
    written.with_context(|| format!("write {text} to {}", path.display()))
}

/// The processes that are in a cgroup itself.
pub fn pids(directory: &Path) -> Result<Vec<u32>> {
    let text = text(directory, "cgroup.procs")?;
    text.lines().map(|line| line.parse().with_context(|| format!("the pid `{line}`"))).collect()
}

/// A number in one of a cgroup's files of lines `NAME NUMBER`, such as `memory.events`.
pub fn entry(directory: &Path, file: &str, name: &str) -> Result<u64> {
    let text = text(directory, file)?;
    let path = directory.join(file);
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = value.with_context(|| format!("{} has no {name}", path.display()))?;
    value.parse().with_context(|| format!("{name} in {}", path.display()))
}

pub fn enter(directory: &Path, pid: u32) -> Result<()> {
    write(directory, "cgroup.procs", pid)
}

pub fn hierarchies() -> Result<Vec<PathBuf>> {
    let mounts = mounts()?.into_iter();
    Ok(mounts.filter(|(_, kind)| kind == "cgroup" || kind == "cgroup2").map(|(target, _)| target).collect())
}

/// The path of a cgroup's directory from the root of its hierarchy ("/kubepods/x").
pub fn path_of(directory: &Path) -> Result<String> {
    let mounts = hierarchies()?.into_iter().filter_map(|mount| directory.strip_prefix(mount).ok());
    let path = mounts.min_by_key(|path| path.as_os_str().len());
    let path = path.with_context(|| format!("{} is in no cgroup hierarchy", directory.display()))?;
    Ok(format!("/{}", path.display()))
}

/// Removes the cgroup `path` with all below it from every hierarchy; kills what still runs there.
pub fn remove_everywhere(path: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        remove_tree(&hierarchy.join(path.trim_start_matches('/')))?;
    }
    Ok(())
}

/// Removes a cgroup's directory with all below it; kills what still runs there.
pub fn remove_tree(directory: &Path) -> Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("read {}", directory.display()))?,
    };
    for entry in entries {
        let entry = entry.with_context(|| format!("read {}", directory.display()))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    let deadline = Instant::now() + EMPTY_LIMIT;
    loop {
        kill_members(directory)?;
        match fs::remove_dir(directory) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(error).with_context(|| format!("remove {}", directory.display())),
        }
    }
}

fn kill_members(directory: &Path) -> Result<()> {
    // Gone meanwhile: nothing to kill.
    let Ok(members) = pids(directory) else { return Ok(()) };
    members.into_iter().filter(|pid| *pid != std::process::id()).try_for_each(kill_pid)
}
