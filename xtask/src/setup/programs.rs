//! The static C programs, for each architecture: `pause`, which every pod runs, `qexit`, by which a guest ends, and `nnp`, of an image
//! that critest asks for.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::architecture::Architecture;
use crate::run;
use crate::step::Step;
use crate::workspace::Cache;

/// The host's static busybox, of Debian's package `busybox-static`.
pub const BUSYBOX: &str = "/bin/busybox";

const PAUSE_SOURCE: &str = include_str!("../../guest/pause.c");
const NNP_SOURCE: &str = include_str!("../../guest/nnp.c");

/// The source of `qexit`: machines end in different ways.
pub fn qexit_source(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::Amd64 => include_str!("../../guest/qexit.c"),
        Architecture::Arm64 => include_str!("../../guest/qexit-arm64.c"),
    }
}

pub fn ensure(cache: &Cache, architecture: Architecture) -> Result<()> {
    let sources = [("qexit", qexit_source(architecture)), ("pause", PAUSE_SOURCE), ("nnp", NNP_SOURCE)];
    for (name, source) in sources {
        let program = path(cache, architecture, name)?;
        let step = match architecture {
            Architecture::HOST => format!("program {name}"),
            other => format!("program {name} for {}", other.name()),
        };
        Step { name: &step, inputs: &[source], outputs: &[&program] }.run(cache, || {
            let file = program.with_extension("c");
            fs::write(&file, source).with_context(|| format!("write {}", file.display()))?;
            let mut command = Command::new(architecture.linker());
            command.args(["-static", "-Os", "-s", "-Wall", "-o"]).arg(&program).arg(&file);
            run::logged(&mut command, &cache.log(name)?)
                .context("compile it with the C library's static archive")
        })?;
    }
    Ok(())
}

pub fn path(cache: &Cache, architecture: Architecture, name: &str) -> Result<PathBuf> {
    let directory = match architecture {
        Architecture::HOST => "programs".to_owned(),
        other => format!("programs/{}", other.name()),
    };
    Ok(cache.dir(&directory)?.join(name))
}

pub fn read(cache: &Cache, architecture: Architecture, name: &str) -> Result<Vec<u8>> {
    let path = path(cache, architecture, name)?;
    fs::read(&path).with_context(|| format!("read {}", path.display()))
}
