//! The static C programs: `pause`, which every pod runs, `qexit`, by which a guest ends, and `nnp`, of an image that critest asks for.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::run;
use crate::step::Step;
use crate::workspace::Cache;

/// The source of `qexit`.
pub const QEXIT_SOURCE: &str = include_str!("../../guest/qexit.c");
const PAUSE_SOURCE: &str = include_str!("../../guest/pause.c");
const NNP_SOURCE: &str = include_str!("../../guest/nnp.c");

/// Compiles them, unless they are there.
pub fn ensure(cache: &Cache) -> Result<()> {
    for (name, source) in [("qexit", QEXIT_SOURCE), ("pause", PAUSE_SOURCE), ("nnp", NNP_SOURCE)] {
        let program = path(cache, name)?;
        Step { name: &format!("program {name}"), inputs: &[source], outputs: &[&program] }.run(
            cache,
            || {
                let file = program.with_extension("c");
                fs::write(&file, source).with_context(|| format!("write {}", file.display()))?;
                let mut command = Command::new("cc");
                command.args(["-static", "-Os", "-s", "-Wall", "-o"]).arg(&program).arg(&file);
                run::logged(&mut command, &cache.log(name)?)
                    .context("compile it with the C library's static archive")
            },
        )?;
    }
    Ok(())
}

/// Where a program is.
pub fn path(cache: &Cache, name: &str) -> Result<PathBuf> {
    Ok(cache.dir("programs")?.join(name))
}

/// A program's bytes.
pub fn read(cache: &Cache, name: &str) -> Result<Vec<u8>> {
    let path = path(cache, name)?;
    fs::read(&path).with_context(|| format!("read {}", path.display()))
}
