//! Puts the compiled program where the guard embeds it from: that of the repository, or what `KWITNESS_GUARD_OBJECT` names.

use std::path::PathBuf;
use std::{env, fs};

use anyhow::Context as _;

fn main() -> anyhow::Result<()> {
    const OVERRIDE: &str = "KWITNESS_GUARD_OBJECT";
    println!("cargo::rerun-if-env-changed={OVERRIDE}");
    let manifest_dir = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let object = env::var_os(OVERRIDE)
        .map_or_else(|| manifest_dir.join("../../ebpf/prebuilt/kwitness-guard.o"), PathBuf::from);
    println!("cargo::rerun-if-changed={}", object.display());
    let target = PathBuf::from(env::var("OUT_DIR")?).join("kwitness-guard.o");
    fs::copy(&object, &target).with_context(|| {
        format!("copying the compiled program from {} (`cargo xtask ebpf` builds it)", object.display())
    })?;
    Ok(())
}
