//! Builds the BPF programs and keeps the prebuilt object in step with their sources.
//!
//! The programs are compiled by Debian's second compiler, which has a ready-made `core` for the BPF machine, under
//! the cargo of this workspace. The manifest beside the prebuilt object names the hash of the sources that it was
//! built from; [`check`] compares the two without building.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::run;
use crate::setup::tools::BPF_RUSTC;
use crate::step::hex;
use crate::versions::LLVM_MAJOR;
use crate::workspace::{Cache, Workspace};

/// What the object is built from, relative to the root of the source tree.
const SOURCES: &[&str] = &[
    "ebpf/abi/Cargo.toml",
    "ebpf/abi/src",
    "ebpf/probes/.cargo",
    "ebpf/probes/Cargo.lock",
    "ebpf/probes/Cargo.toml",
    "ebpf/probes/src",
];
const CRATE: &str = "ebpf/probes";
const OBJECT: &str = "ebpf/prebuilt/kwitness-probes.o";
const MANIFEST: &str = "ebpf/prebuilt/manifest.toml";
const TARGET: &str = "bpfel-unknown-none";
const BINARY: &str = "kwitness-probes";

/// Which sources and which tools the prebuilt object came from.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    sources_sha256: String,
    object_sha256: String,
    rustc: String,
    linker: String,
}

/// Builds the programs; returns where the object is.
pub fn build(workspace: &Workspace, cache: &Cache) -> Result<PathBuf> {
    let mut command = bpf_cargo(workspace, cache)?;
    run::shown(command.arg("build").args(run::cargo_progress()).args([
        "--locked",
        "--release",
        "--target",
        TARGET,
    ]))
    .with_context(|| {
        format!(
            "build {CRATE}; if only its Cargo.lock is out of date, run `cargo update --workspace` in {CRATE}"
        )
    })?;
    let linked = target_dir(workspace).join(TARGET).join("release").join(BINARY);
    ensure!(linked.is_file(), "cargo built no {}: does {CRATE} have a binary {BINARY}?", linked.display());
    // Five sixths of it are DWARF, which nothing reads: the kernel and the loader go by BTF.
    let object = linked.with_extension("o");
    let stripped = linked.with_extension("stripped");
    let strip = format!("/usr/lib/llvm-{LLVM_MAJOR}/bin/llvm-strip");
    run::output(Command::new(strip).arg("--strip-debug").arg("-o").arg(&stripped).arg(&linked))?;
    // An object as it was keeps its time: cargo builds the user side again for a newer one.
    let bytes = fs::read(&stripped).with_context(|| format!("read {}", stripped.display()))?;
    if fs::read(&object).ok().as_ref() != Some(&bytes) {
        fs::write(&object, &bytes).with_context(|| format!("write {}", object.display()))?;
    }
    Ok(object)
}

/// Clippy over the programs, as the BPF machine sees them; a warning is an error.
pub fn clippy(workspace: &Workspace, cache: &Cache) -> Result<()> {
    let mut command = bpf_cargo(workspace, cache)?;
    // What `cargo clippy` does, with the clippy that belongs to Debian's compiler.
    command
        .env("RUSTC_WORKSPACE_WRAPPER", "/usr/bin/clippy-driver")
        .env("CLIPPY_ARGS", "-Dwarnings__CLIPPY_HACKERY__")
        .env("CARGO_TARGET_DIR", workspace.target.join("ebpf-clippy"));
    run::shown(command.arg("check").args(run::cargo_progress()).args([
        "--locked",
        "--release",
        "--target",
        TARGET,
    ]))
    .with_context(|| format!("clippy over {CRATE}"))
}

/// Builds the programs and, when they differ from the prebuilt object, replaces that and its manifest.
pub fn update(workspace: &Workspace, cache: &Cache) -> Result<()> {
    let built = build(workspace, cache)?;
    let bytes = fs::read(&built).with_context(|| format!("read {}", built.display()))?;
    let manifest = Manifest {
        sources_sha256: hash_sources(&workspace.root)?,
        object_sha256: hex(&Sha256::digest(&bytes)),
        rustc: first_line(Command::new(BPF_RUSTC).arg("--version"))?,
        linker: first_line(Command::new(cache.tool("bpf-linker")).arg("--version"))?,
    };
    let text = format!(
        "# Written by `cargo xtask ebpf`: what kwitness-probes.o was built from, and with what.\n{}",
        toml::to_string(&manifest).context("write the manifest")?
    );
    let path = workspace.root.join(MANIFEST);
    if fs::read_to_string(&path).is_ok_and(|old| old == text) && check(workspace).is_ok() {
        println!("{OBJECT} is up to date ({} bytes)", bytes.len());
        return Ok(());
    }
    let object = workspace.root.join(OBJECT);
    let dir = object.parent().context("the prebuilt object has a directory")?;
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    fs::write(&object, &bytes).with_context(|| format!("write {}", object.display()))?;
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    println!("{OBJECT} is new ({} bytes): commit it together with {MANIFEST}", bytes.len());
    Ok(())
}

/// Fails unless the prebuilt object is the one its manifest names, built from the sources as they are.
pub fn check(workspace: &Workspace) -> Result<()> {
    let path = workspace.root.join(MANIFEST);
    let text = fs::read_to_string(&path)
        .with_context(|| format!("read {}: run `cargo xtask ebpf` to make it", path.display()))?;
    let manifest: Manifest = toml::from_str(&text).with_context(|| format!("read {}", path.display()))?;
    let object = workspace.root.join(OBJECT);
    let bytes = fs::read(&object).with_context(|| format!("read {}", object.display()))?;
    if hex(&Sha256::digest(&bytes)) != manifest.object_sha256 {
        bail!("{OBJECT} is not the object that {MANIFEST} names: run `cargo xtask ebpf` and commit both");
    }
    if hash_sources(&workspace.root)? != manifest.sources_sha256 {
        bail!(
            "{OBJECT} was built from other sources than these: run `cargo xtask ebpf` and commit {OBJECT} and {MANIFEST}"
        );
    }
    Ok(())
}

/// Cargo, set up to compile for the BPF machine.
fn bpf_cargo(workspace: &Workspace, cache: &Cache) -> Result<Command> {
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| {
        let home = std::env::var_os("HOME")?;
        Some(Path::new(&home).join(".cargo"))
    });
    // One flag an entry. Paths of this machine stay out of the object, so that it does not depend on where it was built.
    let mut flags = vec![
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        format!("-Clinker={}", cache.tool("bpf-linker").display()),
        format!("--remap-path-prefix={}=kwitness", workspace.root.display()),
    ];
    flags.extend(cargo_home.map(|home| format!("--remap-path-prefix={}=cargo", home.display())));
    let mut command = run::cargo();
    command
        .current_dir(workspace.root.join(CRATE))
        .env("RUSTC", BPF_RUSTC)
        // That one crate, and only for the BPF machine, switches on a feature of the nightly compiler.
        .env("RUSTC_BOOTSTRAP", "aya_ebpf")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env("CARGO_TARGET_DIR", target_dir(workspace))
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER");
    Ok(command)
}

fn target_dir(workspace: &Workspace) -> PathBuf {
    workspace.target.join("ebpf")
}

fn first_line(command: &mut Command) -> Result<String> {
    Ok(run::output(command)?.lines().next().unwrap_or_default().to_owned())
}

fn hash_sources(root: &Path) -> Result<String> {
    let mut files = Vec::new();
    for source in SOURCES {
        list_files(&root.join(source), &mut files)?;
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let bytes = fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        let name = file.strip_prefix(root).unwrap_or(&file).to_string_lossy().into_owned();
        for part in [name.as_bytes(), &bytes] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    Ok(hex(&hash.finalize()))
}

/// Adds the files at and below `path`, if there are any.
pub(crate) fn list_files(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if path.is_file() {
        files.push(path.to_owned());
    } else if path.is_dir() {
        for entry in fs::read_dir(path).with_context(|| format!("list {}", path.display()))? {
            list_files(&entry.with_context(|| format!("list {}", path.display()))?.path(), files)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> (tempfile::TempDir, Workspace) {
        let dir = tempfile::tempdir().unwrap();
        for sub in ["ebpf/abi/src", "ebpf/probes/src", "ebpf/prebuilt"] {
            fs::create_dir_all(dir.path().join(sub)).unwrap();
        }
        fs::write(dir.path().join("ebpf/probes/src/main.rs"), "one").unwrap();
        fs::write(dir.path().join(OBJECT), "object").unwrap();
        let manifest = Manifest {
            sources_sha256: hash_sources(dir.path()).unwrap(),
            object_sha256: hex(&Sha256::digest("object")),
            rustc: "rustc 1".to_owned(),
            linker: "bpf-linker 1".to_owned(),
        };
        fs::write(dir.path().join(MANIFEST), toml::to_string(&manifest).unwrap()).unwrap();
        let workspace = Workspace { root: dir.path().to_owned(), target: dir.path().join("target") };
        (dir, workspace)
    }

    #[test]
    fn the_prebuilt_object_passes_while_nothing_changed() {
        let (_dir, workspace) = tree();
        check(&workspace).unwrap();
    }

    #[test]
    fn a_changed_added_or_renamed_source_is_found() {
        for (remove, file, content) in [
            (None, "ebpf/probes/src/main.rs", "two"),
            (None, "ebpf/abi/src/lib.rs", ""),
            (Some("ebpf/probes/src/main.rs"), "ebpf/probes/src/other.rs", "one"),
        ] {
            let (dir, workspace) = tree();
            if let Some(old) = remove {
                fs::remove_file(dir.path().join(old)).unwrap();
            }
            fs::write(dir.path().join(file), content).unwrap();
            let error = check(&workspace).unwrap_err().to_string();
            assert!(error.contains("other sources"), "{file}: {error}");
        }
    }

    #[test]
    fn an_exchanged_object_is_found() {
        let (dir, workspace) = tree();
        fs::write(dir.path().join(OBJECT), "other").unwrap();
        assert!(check(&workspace).unwrap_err().to_string().contains("not the object"));
    }
}
