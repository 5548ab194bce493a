//! The `deny` task: licences, sources and advisories of what we depend on.

use std::process::Command;

use anyhow::{Result, bail};

use crate::run;
use crate::workspace::{Cache, Workspace};

/// The workspaces, each with its own lock file.
const MANIFESTS: &[&str] = &["Cargo.toml", "ebpf/guard/Cargo.toml", "ebpf/probes/Cargo.toml"];

/// Checks all workspaces; where the advisories cannot be fetched, all but them.
pub fn task(workspace: &Workspace, cache: &Cache) -> Result<()> {
    let deny = |manifest: &str| {
        let mut command = Command::new(cache.tool("cargo-deny"));
        command.current_dir(&workspace.root).args(["--config", "deny.toml", "--manifest-path", manifest]);
        command
    };
    let mut checks = vec!["licenses", "bans", "sources"];
    match run::output(deny(MANIFESTS[0]).args(["fetch", "db"])) {
        Ok(_) => checks.push("advisories"),
        Err(_) => println!("NOT CHECKED: advisories, for their database cannot be fetched from here"),
    }
    let mut failed = Vec::new();
    for manifest in MANIFESTS {
        println!("{manifest}:");
        if run::shown(deny(manifest).arg("check").args(&checks)).is_err() {
            failed.push(*manifest);
        }
    }
    if !failed.is_empty() {
        bail!("cargo-deny refuses what is used by {}", failed.join(", "));
    }
    Ok(())
}
