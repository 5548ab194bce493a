//! The `metrics` task: writes the tables of `docs/metrics.md`. The tests that compare them with the definitions write them, too.

use std::process::Command;

use anyhow::Result;

use crate::run;
use crate::workspace::Workspace;

/// The packages that define metrics.
const PACKAGES: &[&str] = &["kwitness-agent"];

/// Writes the tables.
pub fn task(workspace: &Workspace) -> Result<()> {
    let mut test = Command::new("cargo");
    test.args(["test", "--locked", "--quiet", "--lib"]).current_dir(&workspace.root);
    test.args(PACKAGES.iter().flat_map(|package| ["-p", package]));
    run::shown(test.arg("the_reference_page_has_every_metric").env("KWITNESS_BLESS", "1"))
}
