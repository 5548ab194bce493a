//! The tools that are built from crates.io into the cache: bpf-linker, cargo-deny and cargo-machete.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::versions::{BPF_LINKER, CARGO_DENY, CARGO_MACHETE, LLVM_MAJOR};
use crate::workspace::Cache;
use crate::{run, step};

/// Debian's compiler, the one with a `core` for the BPF machine.
pub const BPF_RUSTC: &str = "/usr/bin/rustc";

/// Installs bpf-linker, built on the LLVM that Debian's compiler has.
pub fn bpf_linker(cache: &Cache) -> Result<()> {
    let version = run::output(Command::new(BPF_RUSTC).arg("-vV"))?;
    let found = llvm_major(&version).with_context(|| format!("{BPF_RUSTC} -vV names no LLVM:\n{version}"))?;
    ensure!(
        found == LLVM_MAJOR,
        "{BPF_RUSTC} uses LLVM {found}, bpf-linker is built for LLVM {LLVM_MAJOR}: one cannot read the other's \
         bitcode. Set LLVM_MAJOR and the llvm-*-dev package in xtask/src/versions.rs to {found}, and BPF_LINKER to a \
         release that knows it"
    );
    let bin = PathBuf::from(format!("/usr/lib/llvm-{LLVM_MAJOR}/bin"));
    let feature = format!("llvm-{LLVM_MAJOR}");
    install(cache, "bpf-linker", BPF_LINKER, &["--no-default-features", "--features", &feature], Some(bin))
}

/// Installs what checks dependencies.
pub fn lint(cache: &Cache) -> Result<()> {
    install(cache, "cargo-deny", CARGO_DENY, &[], None)?;
    install(cache, "cargo-machete", CARGO_MACHETE, &[], None)
}

fn install(cache: &Cache, name: &str, version: &str, options: &[&str], path: Option<PathBuf>) -> Result<()> {
    let want = format!("{name} {version}");
    let found = run::output(Command::new(cache.tool(name)).arg("--version")).unwrap_or_default();
    // Some tools print their name before the version.
    if found.split_whitespace().last() == Some(version) {
        return Ok(());
    }
    step::expected(&want, "a few minutes", || {
        let build = cache.dir(&format!("build/{name}"))?;
        let mut command = run::cargo();
        command
            .args(["install", name, "--version", version, "--locked", "--force", "--root"])
            .arg(cache.root().join("tools"))
            .args(options)
            .current_dir(&build)
            .env("CARGO_TARGET_DIR", &build);
        // They run for seconds: what they cost is being built.
        for (setting, value) in [("CODEGEN_UNITS", "16"), ("DEBUG", "0"), ("LTO", "off"), ("OPT_LEVEL", "1")]
        {
            command.env(format!("CARGO_PROFILE_RELEASE_{setting}"), value);
        }
        if let Some(first) = path {
            let paths = std::env::var_os("PATH").unwrap_or_default();
            let all = std::iter::once(first).chain(std::env::split_paths(&paths));
            command.env("PATH", std::env::join_paths(all).context("put LLVM into PATH")?);
        }
        run::watched(&mut command, &cache.log(name)?)
            .with_context(|| format!("cargo cannot install {want}: check the network and the log"))?;
        std::fs::remove_dir_all(&build).with_context(|| format!("remove {}", build.display()))
    })
}

fn llvm_major(version: &str) -> Option<u32> {
    let line = version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    line.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llvm_is_read_from_the_compilers_version() {
        assert_eq!(llvm_major("rustc 1.96.0\nhost: x86_64\nLLVM version: 22.1.8\n"), Some(22));
        assert_eq!(llvm_major("rustc 1.96.0\n"), None);
    }
}
