//! The `client` task: the client side builds without anything that only Linux has.
//!
//! The client side is the command line without its feature `node`, the API crate and the core. The kubectl plugin is the same with
//! the feature `kubectl`; its cryptography is compiled by a C compiler, so it is checked here for this machine's system only.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::run;
use crate::workspace::Workspace;

/// The packages of the client side.
const PACKAGES: &[&str] = &["kwitness", "kwitness-api", "kwitness-core"];
/// The crates of this workspace that they may consist of.
const OURS: &[&str] = &["kwitness", "kwitness-abi", "kwitness-api", "kwitness-core"];
/// Crates that need Linux, or wrap what only Linux has.
const LINUX_ONLY: &[&str] = &[
    "aya",
    "aya-obj",
    "caps",
    "inotify",
    "libbpf-sys",
    "listenfd",
    "netlink-sys",
    "nix",
    "procfs",
    "procfs-core",
    "sd-notify",
    "tracing-journald",
];
/// Other operating systems that it is checked for, as far as their standard library can be installed.
const ELSEWHERE: &[&str] = &["x86_64-pc-windows-gnu", "x86_64-apple-darwin"];

/// Checks what the client depends on, and that it compiles elsewhere.
pub fn task(workspace: &Workspace) -> Result<()> {
    // The plugin's tree has the client's in it.
    let refused: Vec<_> =
        crates(plugin(workspace, "tree"))?.into_iter().filter(|name| is_refused(name)).collect();
    ensure!(
        refused.is_empty(),
        "the client depends on {}; `cargo tree -p kwitness --no-default-features --features kubectl -i NAME` shows why",
        refused.join(", ")
    );
    println!("the client depends on nothing that needs Linux, and neither does the kubectl plugin");
    run::shown(plugin(workspace, "check").args(["--quiet", "--locked", "--bins"]))?;
    println!("the kubectl plugin compiles without the node");
    for target in ELSEWHERE {
        let mut add = Command::new("rustup");
        if let Err(error) = run::output(add.args(["target", "add", target]).current_dir(&workspace.root)) {
            println!(
                "NOT CHECKED: the client on {target}, whose standard library cannot be installed: {error:#}"
            );
            continue;
        }
        let mut check = cargo(workspace, "check");
        run::shown(check.args(["--quiet", "--locked", "--target", target]))?;
        println!("the client compiles for {target}");
    }
    Ok(())
}

/// The names of all crates in a dependency tree on Linux, where nothing is left out for the sake of another system.
fn crates(mut tree: Command) -> Result<BTreeSet<String>> {
    tree.args(["--locked", "--edges", "normal", "--prefix", "none", "--format", "{p}"]);
    tree.args(["--target", "x86_64-unknown-linux-gnu"]);
    let text = run::output(&mut tree)?;
    Ok(text
        .lines()
        .filter_map(|line| line.split(' ').next())
        .map(str::to_owned)
        .filter(|name| !name.is_empty())
        .collect())
}

fn cargo(workspace: &Workspace, subcommand: &str) -> Command {
    let mut command = run::cargo();
    command.current_dir(&workspace.root).arg(subcommand).arg("--no-default-features");
    command.args(PACKAGES.iter().flat_map(|package| ["--package", package]));
    command
}

fn plugin(workspace: &Workspace, subcommand: &str) -> Command {
    let mut command = cargo(workspace, subcommand);
    command.args(["--features", "kwitness/kubectl"]);
    command
}

fn is_refused(name: &str) -> bool {
    let is_ours = name.starts_with("kwitness");
    (is_ours && !OURS.contains(&name)) || LINUX_ONLY.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_daemon_is_made_of_is_refused() {
        let of = |names: &[&'static str]| {
            names.iter().copied().filter(|name| is_refused(name)).collect::<Vec<_>>()
        };
        assert_eq!(
            of(&["kwitness", "kwitness-core", "kwitness-agent", "nix", "tonic"]),
            ["kwitness-agent", "nix"]
        );
        // The list is of use only if it has what the node side does use.
        let workspace = Workspace::find().unwrap();
        let mut tree = run::cargo();
        tree.current_dir(&workspace.root).args(["tree", "--package", "kwitness"]);
        let node = crates(tree).unwrap();
        for name in ["aya", "nix", "kwitness-agent"] {
            assert!(node.contains(name) && is_refused(name), "{name} of {node:?}");
        }
        assert!(!crates(plugin(&workspace, "tree")).unwrap().is_empty());
    }
}
