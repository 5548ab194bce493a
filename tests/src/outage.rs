//! A daemon that comes and goes while containers do: what it pins, a client that resumes, and a storm that knows what it did.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::agent::{Agent, Watcher, after};
use crate::environment::Environment;
use crate::events::Seen;
use crate::handmade::{Kubepods, Running};
use crate::process::{self, wait_for};

const LIMIT: Duration = Duration::from_secs(120);

/// A BPF file system of its owner's; what is pinned in it ends with it.
#[derive(Debug)]
pub struct Bpffs(tempfile::TempDir);

impl Bpffs {
    pub fn mount() -> Result<Self> {
        let directory = process::directory("bpffs")?;
        mount(Some("bpf"), directory.path(), Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mount a BPF file system at {}", directory.path().display()))?;
        Ok(Self(directory))
    }

    pub fn pins(&self) -> PathBuf {
        self.0.path().join("kwitness")
    }

    pub fn sets(&self) -> Result<Vec<PathBuf>> {
        let pins = self.pins();
        let entries = fs::read_dir(&pins).with_context(|| format!("list {}", pins.display()))?;
        Ok(entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?)
    }

    pub async fn agent(&self, environment: &Environment) -> Result<Agent> {
        self.agent_with(environment, &[]).await
    }

    pub async fn agent_with(&self, environment: &Environment, settings: &[&str]) -> Result<Agent> {
        let directory = format!("kernel.pin_directory={}", self.pins().display());
        let mut all = vec!["kernel.pin=auto", directory.as_str()];
        all.extend(settings);
        Agent::start(environment, &all).await
    }
}

impl Bpffs {
    /// Unmounts it, with all that is pinned in it, and mounts another one in its place.
    pub fn remount(&self) -> Result<()> {
        let path = self.0.path();
        umount2(path, MntFlags::MNT_DETACH).with_context(|| format!("unmount {}", path.display()))?;
        mount(Some("bpf"), path, Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mount a BPF file system at {}", path.display()))
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        if let Err(error) = umount2(self.0.path(), MntFlags::MNT_DETACH) {
            eprintln!("cannot unmount {}: {error}", self.0.path().display());
        }
    }
}

/// The directory of a daemon's socket and ledger, on a small file system of its own. Dropped after the daemon's end.
#[derive(Debug)]
pub struct StateDirectory(PathBuf);

impl StateDirectory {
    /// Room for a whole ledger, and hardly more.
    const SIZE: &str = "size=96m,mode=750";

    /// Mounts it where that socket will be.
    pub fn mount(socket: &Path) -> Result<Self> {
        let directory = socket.parent().context("a socket in a directory")?;
        mount(Some("tmpfs"), directory, Some("tmpfs"), MsFlags::empty(), Some(Self::SIZE))
            .with_context(|| format!("mount a tmpfs at {}", directory.display()))?;
        Ok(Self(directory.to_owned()))
    }

    /// Leaves no room in it, until the file is dropped.
    pub fn fill(&self) -> Result<tempfile::NamedTempFile> {
        let mut file = tempfile::NamedTempFile::new_in(&self.0).context("make a file")?;
        let error = io::copy(&mut io::repeat(0), &mut file).err().context("there is no end of room")?;
        ensure!(error.kind() == io::ErrorKind::StorageFull, "cannot fill {}: {error}", self.0.display());
        Ok(file)
    }

    /// Keeps everything from being written in it, until the guard is dropped. No file in it may be open for writing.
    pub fn make_read_only(&self) -> Result<ReadOnly<'_>> {
        self.remount(MsFlags::MS_RDONLY)?;
        Ok(ReadOnly(self))
    }

    fn remount(&self, flags: MsFlags) -> Result<()> {
        let none = None::<&str>;
        mount(none, &self.0, none, MsFlags::MS_REMOUNT | flags, none)
            .with_context(|| format!("remount {}", self.0.display()))
    }
}

impl Drop for StateDirectory {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.0, MntFlags::MNT_DETACH) {
            eprintln!("cannot unmount {}: {error}", self.0.display());
        }
    }
}

/// A state directory that cannot be written to until this is dropped.
#[derive(Debug)]
pub struct ReadOnly<'a>(&'a StateDirectory);

impl Drop for ReadOnly<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.remount(MsFlags::empty()) {
            eprintln!("{error:#}");
        }
    }
}

pub fn ledger_of(agent: &Agent) -> PathBuf {
    let mut ledger = agent.socket().as_os_str().to_owned();
    ledger.push(".ledger");
    ledger.into()
}

/// What a client has that resumes whenever its stream ends.
#[derive(Debug)]
pub struct Client {
    watcher: Watcher,
    before: Seen,
}

impl Client {
    pub fn new(watcher: Watcher) -> Self {
        Self { watcher, before: Seen(Vec::new()) }
    }

    pub async fn resume(self, agent: &Agent) -> Result<Self> {
        let mut before = self.before;
        before.0.extend(self.watcher.seen().0);
        let last = before.0.last().and_then(|received| received.event.position.clone());
        let watcher = agent.watch(after(&last.context("nothing was received")?)).await?;
        Ok(Self { watcher, before })
    }

    /// Everything, once a container's end has come.
    pub async fn until_deleted(mut self, id: &str) -> Result<Seen> {
        let mut all = self.before;
        let ended = |seen: &Seen| seen.milestones(id).contains(&"deleted");
        if !ended(&all) {
            self.watcher.wait_until("the last container's end", ended).await?;
        }
        all.0.extend(self.watcher.seen().0);
        Ok(all)
    }
}

/// Starts a container that goes on until its process is killed, and waits until its start is reported.
pub async fn lasting(kubepods: &Kubepods, watcher: &mut Watcher) -> Result<Running> {
    let running = kubepods.run()?;
    let started = |seen: &Seen| seen.milestones(running.id()).contains(&"started");
    watcher.wait_until("the lasting container", started).await?;
    Ok(running)
}

#[derive(Clone, Debug)]
pub struct Lived {
    pub id: String,
    /// Before its cgroup was made.
    pub began: SystemTime,
    /// After its cgroup was removed.
    pub ended: SystemTime,
}

/// Containers that come and go, one after the other, until it is ended or dropped.
#[derive(Debug)]
pub struct Storm {
    stop: StopOnDrop,
    lived: Arc<AtomicUsize>,
    thread: JoinHandle<Result<(Kubepods, Vec<Lived>)>>,
}

#[derive(Debug)]
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Storm {
    pub fn begin(kubepods: Kubepods) -> Self {
        Self::paced(kubepods, Duration::ZERO)
    }

    /// Begins one with that time between two lives, for others that need the processor.
    pub fn paced(kubepods: Kubepods, between: Duration) -> Self {
        let (stop, lived) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&lived));
        let thread = std::thread::spawn(move || -> Result<(Kubepods, Vec<Lived>)> {
            let mut all = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let began = SystemTime::now();
                let id = kubepods.container()?.live(&["true"], 0)?;
                all.push(Lived { id, began, ended: SystemTime::now() });
                count.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(between);
            }
            Ok((kubepods, all))
        });
        Self { stop: StopOnDrop(stop), lived, thread }
    }

    pub async fn more(&self, lives: usize) -> Result<()> {
        let until = self.lived.load(Ordering::Relaxed) + lives;
        let enough = async || {
            Ok((self.lived.load(Ordering::Relaxed) >= until || self.thread.is_finished()).then_some(()))
        };
        wait_for("the storm", LIMIT, enough).await
    }

    pub fn end(self) -> Result<(Kubepods, Vec<Lived>)> {
        drop(self.stop);
        self.thread.join().map_err(|_| anyhow!("the storm panicked"))?
    }
}
