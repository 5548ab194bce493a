//! Loaded probes and what they have reported, decoded.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use kwitness_agent::probe::{Loaded, Running, Settings};
use kwitness_core::decode::Decoder;
use kwitness_core::model::{Fact, KernelEvent, PathText};
use kwitness_tests::cgroup::TestCgroup;
use kwitness_tests::prelude::*;
use tokio::runtime::Runtime;

/// How long anything may take that the kernel does by itself.
pub const LIMIT: Duration = Duration::from_secs(20);

/// Running probes, and their records so far.
pub struct Session {
    runtime: Runtime,
    running: Running,
    decoder: Decoder,
    events: Vec<KernelEvent>,
    /// Where the fences of [`Session::settle`] are made.
    parent: PathBuf,
}

impl Session {
    /// Loads, attaches and starts to read.
    pub fn start(parent: &Path, settings: &Settings) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let attached = Loaded::load(settings)?.attach()?;
        let running = {
            let _guard = runtime.enter();
            attached.run()?
        };
        Ok(Self {
            runtime,
            running,
            decoder: Decoder::default(),
            events: Vec::new(),
            parent: parent.to_owned(),
        })
    }

    pub fn running(&mut self) -> &mut Running {
        &mut self.running
    }

    /// Reads until all that was recorded before this call has been read.
    pub fn settle(&mut self) -> Result<()> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("kubepods-fence-{}-{number}", std::process::id());
        let directory = self.parent.join(&name);
        fs::create_dir(&directory).with_context(|| format!("make {}", directory.display()))?;
        let id = cgroup::id(&directory)?;
        fs::remove_dir(&directory).with_context(|| format!("remove {}", directory.display()))?;
        self.read_until(|event| event.cgroup.0 == id && matches!(event.fact, Fact::Mkdir { .. }))?;
        // The fence is in one ring; what is in the others was committed before it.
        while self.drain()? {}
        Ok(())
    }

    /// Reads until an event of that kind has come.
    pub fn read_until(&mut self, mut wanted: impl FnMut(&KernelEvent) -> bool) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        let mut seen = self.events.len();
        loop {
            if self.events[seen..].iter().any(&mut wanted) {
                return Ok(());
            }
            seen = self.events.len();
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "nothing of that came within {LIMIT:?}");
            let readable = async { tokio::time::timeout(left, self.running.readable()).await };
            self.runtime.block_on(readable).context("nothing to read")??;
            self.drain()?;
        }
    }

    /// Reads what is there, a batch of it; whether there is more.
    pub fn drain(&mut self) -> Result<bool> {
        let mut failure = None;
        let Self { running, decoder, events, .. } = self;
        let drained = running.drain(4096, |bytes| match decoder.decode(bytes) {
            Ok(event) => events.push(event),
            Err(error) => failure = Some(error),
        });
        failure.map_or(Ok(drained.more), |error| Err(error).context("a malformed record"))
    }

    /// Everything read so far, in the order of reading.
    pub fn events(&self) -> &[KernelEvent] {
        &self.events
    }

    /// What was reported of that cgroup, in the order of the kernel's times.
    pub fn facts(&self, id: u64) -> Vec<&Fact> {
        let mut events: Vec<_> = self.events.iter().filter(|event| event.cgroup.0 == id).collect();
        events.sort_by_key(|event| event.at);
        events.into_iter().map(|event| &event.fact).collect()
    }

    /// Reads until the last reference to each of these cgroups is gone: nothing more can come of them.
    pub fn await_release(&mut self, ids: &[u64]) -> Result<()> {
        let mut missing: HashSet<u64> = ids.iter().copied().collect();
        let mut looked = 0;
        let mut progress = Instant::now();
        loop {
            self.settle()?;
            let before = missing.len();
            for event in &self.events[looked..] {
                if matches!(event.fact, Fact::Release) {
                    missing.remove(&event.cgroup.0);
                }
            }
            looked = self.events.len();
            if missing.is_empty() {
                return Ok(());
            }
            // The kernel lets go of them one after the other, in a work queue.
            if missing.len() < before {
                progress = Instant::now();
            }
            ensure!(
                progress.elapsed() < LIMIT,
                "{} of {} cgroups were not released",
                missing.len(),
                ids.len()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Forgets what was read: a test looks at its own only, and a long one need not keep what came before.
    pub fn forget(&mut self) {
        self.events.clear();
    }
}

/// A cgroup of a test, removed with all below it when dropped. Its name begins with `kubepods`: a root of the tracked set.
pub struct Root {
    cgroup: TestCgroup,
    path: String,
}

impl Root {
    /// Makes `kubepods-<name>-<pid>` in the cgroup of that directory.
    pub fn make(parent: &Path, name: &str) -> Result<Self> {
        Self::make_named(parent, &format!("kubepods-{name}-{}", std::process::id()))
    }

    /// Makes a cgroup of that name in the cgroup of that directory.
    pub fn make_named(parent: &Path, name: &str) -> Result<Self> {
        let cgroup = TestCgroup::make(parent, name)?;
        Ok(Self { path: cgroup::path_of(cgroup.directory())?, cgroup })
    }

    pub fn id(&self) -> Result<u64> {
        self.cgroup.id()
    }

    /// Makes a cgroup below it; its directory.
    pub fn sub(&self, path: &str) -> Result<PathBuf> {
        let directory = self.directory().join(path);
        fs::create_dir(&directory).with_context(|| format!("make {}", directory.display()))?;
        Ok(directory)
    }

    /// Makes a container's cgroup below it; its directory and its id.
    pub fn container(&self) -> Result<(PathBuf, u64)> {
        let directory = self.sub("ctr")?;
        Ok((directory.clone(), cgroup::id(&directory)?))
    }

    /// The path from the hierarchy's root of what is below it.
    pub fn path_of(&self, path: &str) -> PathText {
        PathText::Full(format!("{}/{path}", self.path).into())
    }

    pub fn directory(&self) -> &Path {
        self.cgroup.directory()
    }
}

/// Removes a cgroup that has just lost its last process; some kernels take a moment to see that.
pub fn rmdir(directory: &Path) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    loop {
        match fs::remove_dir(directory) {
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::yield_now();
            }
            other => return other.with_context(|| format!("remove {}", directory.display())),
        }
    }
}
