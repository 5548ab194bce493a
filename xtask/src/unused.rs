//! The `unused` task: every dependency has a user.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use toml::{Table, Value};

use crate::run;
use crate::workspace::{Cache, Workspace};

/// Where a manifest lists dependencies.
const TABLES: &[&str] = &["dependencies", "dev-dependencies", "build-dependencies"];

/// Fails if a package declares a dependency that it does not use, or the workspace one that no package declares.
pub fn task(workspace: &Workspace, cache: &Cache) -> Result<()> {
    let mut machete = Command::new(cache.tool("cargo-machete"));
    run::shown(machete.current_dir(&workspace.root).arg("--skip-target-dir"))?;
    let root = read(&workspace.root.join("Cargo.toml"))?;
    let members = members(workspace)?.iter().map(|path| read(path)).collect::<Result<Vec<_>>>()?;
    let unused = undeclared(&root, &members);
    ensure!(
        unused.is_empty(),
        "no package declares these entries of [workspace.dependencies]; remove them from Cargo.toml: {}",
        unused.join(", ")
    );
    println!("every entry of [workspace.dependencies] has a user");
    Ok(())
}

fn members(workspace: &Workspace) -> Result<Vec<std::path::PathBuf>> {
    let mut command = run::cargo();
    command.current_dir(&workspace.root).args(["metadata", "--no-deps", "--format-version", "1"]);
    let metadata: serde_json::Value =
        serde_json::from_str(&run::output(&mut command)?).context("parse cargo's metadata")?;
    let packages = metadata["packages"].as_array().context("cargo's metadata has no packages")?;
    let paths = packages.iter().filter_map(|package| package["manifest_path"].as_str());
    Ok(paths.map(Into::into).collect())
}

fn read(path: &Path) -> Result<Table> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    text.parse().with_context(|| format!("parse {}", path.display()))
}

/// The entries of the workspace's table that no member's manifest names.
fn undeclared(root: &Table, members: &[Table]) -> Vec<String> {
    let mut named = BTreeSet::new();
    for member in members {
        let targets = member.get("target").and_then(Value::as_table).into_iter().flat_map(Table::values);
        for table in targets.filter_map(Value::as_table).chain([member]) {
            let lists = TABLES.iter().filter_map(|name| table.get(*name)?.as_table());
            named.extend(lists.flat_map(Table::keys));
        }
    }
    let entries = root.get("workspace").and_then(|workspace| workspace.get("dependencies")?.as_table());
    let entries = entries.into_iter().flat_map(Table::keys);
    entries.filter(|name| !named.contains(name)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_without_a_user_is_found() {
        let parse = |text: &str| text.parse::<Table>().unwrap();
        let root = parse("[workspace.dependencies]\na = '1'\nb = '1'\nc = '1'\nd = '1'\n");
        let member = parse(
            "[dependencies]\na.workspace = true\n[target.'cfg(unix)'.dev-dependencies]\nb.workspace = true\n",
        );
        let other = parse("[build-dependencies]\nd = { workspace = true }\n");
        assert_eq!(undeclared(&root, &[member, other]), ["c"]);
    }
}
