//! Where things are: the source tree, the build directory and the cache.
//!
//! Owns the layout of the cache. Nothing is written outside of the cache and cargo's target directory, except
//! the prebuilt object.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::run;

/// The chart, below the root.
pub const CHART: &str = "deploy/helm/kwitness";

/// The source tree and its build directory.
pub struct Workspace {
    /// The root of the source tree.
    pub root: PathBuf,
    /// Cargo's target directory.
    pub target: PathBuf,
}

impl Workspace {
    pub fn find() -> Result<Self> {
        #[derive(Deserialize)]
        struct Metadata {
            workspace_root: PathBuf,
            target_directory: PathBuf,
        }
        let text =
            run::output(run::cargo().args(["metadata", "--no-deps", "--format-version", "1", "--quiet"]))?;
        let metadata: Metadata = serde_json::from_str(&text).context("read `cargo metadata`")?;
        Ok(Self { root: metadata.workspace_root, target: metadata.target_directory })
    }

    /// A directory of the target directory, made if needed, for `name`'s own files.
    pub fn scratch(&self, name: &str) -> Result<PathBuf> {
        make_dir(self.target.join("xtask").join(name))
    }
}

/// What setup made and keeps between runs and source trees.
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// `$KWITNESS_CACHE`, else `kwitness` in the user's cache directory.
    pub fn open() -> Result<Self> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let root = set("KWITNESS_CACHE")
            .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("kwitness")))
            .or_else(|| set("HOME").map(|dir| dir.join(".cache/kwitness")))
            .context("cannot locate the cache: set KWITNESS_CACHE to a directory with 11 GB free")?;
        let root = std::path::absolute(&root).with_context(|| format!("find {}", root.display()))?;
        Ok(Self { root: make_dir(root)? })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A directory in the cache, made if needed.
    pub fn dir(&self, name: &str) -> Result<PathBuf> {
        make_dir(self.root.join(name))
    }

    /// A log for the step of this name.
    pub fn log(&self, step: &str) -> Result<PathBuf> {
        Ok(self.dir("logs")?.join(format!("{}.log", step.replace([' ', '/'], "-"))))
    }

    /// The programs that cargo installed into the cache.
    pub fn tool(&self, name: &str) -> PathBuf {
        self.root.join("tools/bin").join(name)
    }

    /// Waits for its turn at what only one process at a time may do, which lasts until the file is closed.
    pub fn lock(&self, turn: Turn) -> Result<File> {
        let (name, what) = match turn {
            Turn::Setup => ("setup.lock", "setup"),
            Turn::HostNode => ("host-node.lock", "node"),
        };
        let path = self.root.join(name);
        let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        if file.try_lock().is_err() {
            eprintln!("  .. waiting for another {what} on this machine to end");
            file.lock().with_context(|| format!("lock {}", path.display()))?;
        }
        Ok(file)
    }
}

/// What only one process at a time may do.
#[derive(Clone, Copy, Debug)]
pub enum Turn {
    /// Change the cache.
    Setup,
    /// Run a node on this machine's kernel, whose cgroups are the machine's; or change the tree that it runs on.
    HostNode,
}

fn make_dir(path: PathBuf) -> Result<PathBuf> {
    fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
    Ok(path)
}
