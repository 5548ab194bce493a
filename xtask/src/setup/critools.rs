//! crictl and critest of the cri-tools, built from their Go modules: the kubelet's client library as a command, and the suite that judges
//! container runtimes.
//!
//! What they are made of is pinned by the module in `xtask/go/critools`, whose `go.sum` the checksum database vouched for.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::place::Cache;
use crate::run;
use crate::step::Step;
use crate::versions::CRI_TOOLS;

const MODULE: &[(&str, &str)] = &[
    ("go.mod", include_str!("../../go/critools/go.mod")),
    ("go.sum", include_str!("../../go/critools/go.sum")),
    ("tools.go", include_str!("../../go/critools/tools.go")),
];

/// Their names, in the cache's tools and in a job.
pub const NAMES: [&str; 2] = ["crictl", "critest"];

/// Builds both, unless they are there.
pub fn ensure(cache: &Cache) -> Result<()> {
    let [crictl, critest] = NAMES.map(|name| cache.tool(name));
    let mut inputs = vec![CRI_TOOLS];
    inputs.extend(MODULE.iter().map(|(_, text)| *text));
    let name = format!("cri-tools {CRI_TOOLS}");
    Step { name: &name, inputs: &inputs, outputs: &[&crictl, &critest] }.run(cache, || {
        let module = cache.dir("build/critools")?;
        for (name, text) in MODULE {
            fs::write(module.join(name), text).with_context(|| format!("write {name}"))?;
        }
        cache.dir("tools/bin")?;
        build(cache, &module, &["build"], &crictl)?;
        // The suite is a test program.
        build(cache, &module, &["test", "-c"], &critest)?;
        fs::remove_dir_all(&module).with_context(|| format!("remove {}", module.display()))?;
        Ok(String::new())
    })
}

fn build(cache: &Cache, module: &Path, how: &[&str], program: &Path) -> Result<()> {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let flags = format!("-s -w -X sigs.k8s.io/cri-tools/pkg/version.Version={CRI_TOOLS}");
    let mut go = Command::new("go");
    go.args(how).args(["-mod=readonly", "-buildvcs=false", "-trimpath", "-ldflags", &flags, "-o"]);
    go.arg(program).arg(format!("sigs.k8s.io/cri-tools/cmd/{name}"));
    go.current_dir(module).env("CGO_ENABLED", "0");
    run::logged(&mut go, &cache.log(&name)?).with_context(|| {
        format!("go cannot build {name} {CRI_TOOLS}: it needs Go 1.26.2 or later, and the network")
    })
}
