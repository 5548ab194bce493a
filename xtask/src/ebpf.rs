//! Builds the BPF programs and keeps the prebuilt objects in step with their sources.
//!
//! The programs are compiled by Debian's second compiler, which has a ready-made `core` for the BPF machine, under
//! the cargo of this workspace. The manifest beside the prebuilt objects names the hash of the sources that each was
//! built from; [`check`] compares the two without building.

use std::collections::BTreeMap;
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

/// An object: the programs of one crate, linked.
#[derive(Debug)]
pub struct Object {
    /// Its crate's directory, relative to the root of the source tree.
    directory: &'static str,
    /// The binary of that crate; the prebuilt object has its name.
    binary: &'static str,
    /// The environment variable by which the user side is built with another object than the prebuilt one.
    pub variable: &'static str,
}

pub const OBJECTS: [Object; 2] = [
    Object { directory: "ebpf/probes", binary: "kwitness-probes", variable: "KWITNESS_PROBES_OBJECT" },
    Object { directory: "ebpf/guard", binary: "kwitness-guard", variable: "KWITNESS_GUARD_OBJECT" },
];

/// The crate that both sides share.
const ABI: &str = "ebpf/abi";
const PREBUILT: &str = "ebpf/prebuilt";
const MANIFEST: &str = "ebpf/prebuilt/manifest.toml";
const TARGET: &str = "bpfel-unknown-none";

/// By binary.
type Manifest = BTreeMap<String, Built>;

/// Which sources and which tools a prebuilt object came from.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Built {
    sources_sha256: String,
    object_sha256: String,
    rustc: String,
    linker: String,
}

impl Object {
    /// What it is built from, relative to the root of the source tree.
    fn sources(&self) -> Vec<String> {
        let own =
            [".cargo", "Cargo.lock", "Cargo.toml", "src"].map(|name| format!("{}/{name}", self.directory));
        ["Cargo.toml", "src"].map(|name| format!("{ABI}/{name}")).into_iter().chain(own).collect()
    }

    fn prebuilt(&self) -> String {
        format!("{PREBUILT}/{}.o", self.binary)
    }
}

pub fn build(workspace: &Workspace, cache: &Cache, object: &Object) -> Result<PathBuf> {
    let Object { directory, binary, .. } = object;
    run::shown(&mut bpf_cargo(workspace, cache, object, "build")).with_context(|| {
        format!(
            "build {directory}; if only its Cargo.lock is out of date, run `cargo update --workspace` in {directory}"
        )
    })?;
    let linked = target_dir(workspace).join(TARGET).join("release").join(binary);
    ensure!(
        linked.is_file(),
        "cargo built no {}: does {directory} have a binary {binary}?",
        linked.display()
    );
    // Five sixths of it are DWARF, which nothing reads: the kernel and the loader go by BTF.
    let built = linked.with_extension("o");
    let stripped = linked.with_extension("stripped");
    let strip = format!("/usr/lib/llvm-{LLVM_MAJOR}/bin/llvm-strip");
    run::output(Command::new(strip).arg("--strip-debug").arg("-o").arg(&stripped).arg(&linked))?;
    // An object as it was keeps its time: cargo builds the user side again for a newer one.
    let bytes = fs::read(&stripped).with_context(|| format!("read {}", stripped.display()))?;
    if fs::read(&built).ok().as_ref() != Some(&bytes) {
        fs::write(&built, &bytes).with_context(|| format!("write {}", built.display()))?;
    }
    Ok(built)
}

/// Clippy over the programs, as the BPF machine sees them; a warning is an error.
pub fn clippy(workspace: &Workspace, cache: &Cache) -> Result<()> {
    for object in &OBJECTS {
        let mut command = bpf_cargo(workspace, cache, object, "check");
        // What `cargo clippy` does, with the clippy that belongs to Debian's compiler.
        command
            .env("RUSTC_WORKSPACE_WRAPPER", "/usr/bin/clippy-driver")
            .env("CLIPPY_ARGS", "-Dwarnings__CLIPPY_HACKERY__")
            .env("CARGO_TARGET_DIR", workspace.target.join("ebpf-clippy"));
        run::shown(&mut command).with_context(|| format!("clippy over {}", object.directory))?;
    }
    Ok(())
}

/// Builds the programs and, where they differ from a prebuilt object, replaces that and the manifest.
pub fn update(workspace: &Workspace, cache: &Cache) -> Result<()> {
    let rustc = first_line(Command::new(BPF_RUSTC).arg("--version"))?;
    let linker = first_line(Command::new(cache.tool("bpf-linker")).arg("--version"))?;
    let mut manifest = Manifest::new();
    let mut objects = Vec::new();
    for object in &OBJECTS {
        let built = build(workspace, cache, object)?;
        let bytes = fs::read(&built).with_context(|| format!("read {}", built.display()))?;
        let built = Built {
            sources_sha256: hash_sources(&workspace.root, object)?,
            object_sha256: hex(&Sha256::digest(&bytes)),
            rustc: rustc.clone(),
            linker: linker.clone(),
        };
        manifest.insert(object.binary.to_owned(), built);
        objects.push((object.prebuilt(), bytes));
    }
    let text = format!(
        "# Written by `cargo xtask ebpf`: what the objects beside this file were built from, and with what.\n\n{}",
        toml::to_string(&manifest).context("write the manifest")?
    );
    let path = workspace.root.join(MANIFEST);
    if fs::read_to_string(&path).is_ok_and(|old| old == text) && check(workspace).is_ok() {
        println!("the objects in {PREBUILT} are up to date");
        return Ok(());
    }
    let directory = workspace.root.join(PREBUILT);
    fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    for (name, bytes) in objects {
        let path = workspace.root.join(&name);
        fs::write(&path, &bytes).with_context(|| format!("write {}", path.display()))?;
        println!("{name}: {} bytes", bytes.len());
    }
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    println!("{MANIFEST} is new: commit it together with the objects");
    Ok(())
}

/// Fails unless the prebuilt objects are those that the manifest names, built from the sources as they are.
pub fn check(workspace: &Workspace) -> Result<()> {
    let path = workspace.root.join(MANIFEST);
    let text = fs::read_to_string(&path)
        .with_context(|| format!("read {}: run `cargo xtask ebpf` to make it", path.display()))?;
    let manifest: Manifest = toml::from_str(&text).with_context(|| format!("read {}", path.display()))?;
    for object in &OBJECTS {
        let name = object.prebuilt();
        let path = workspace.root.join(&name);
        let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let built = manifest.get(object.binary);
        if built.is_none_or(|built| hex(&Sha256::digest(&bytes)) != built.object_sha256) {
            bail!("{name} is not the object that {MANIFEST} names: run `cargo xtask ebpf` and commit both");
        }
        let sources = hash_sources(&workspace.root, object)?;
        if built.is_none_or(|built| sources != built.sources_sha256) {
            bail!(
                "{name} was built from other sources than these: run `cargo xtask ebpf` and commit {name} and {MANIFEST}"
            );
        }
    }
    Ok(())
}

/// `cargo SUBCOMMAND`, set up to compile for the BPF machine.
fn bpf_cargo(workspace: &Workspace, cache: &Cache, object: &Object, subcommand: &str) -> Command {
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
        .current_dir(workspace.root.join(object.directory))
        .env("RUSTC", BPF_RUSTC)
        // These crates, and only for the BPF machine, switch on a feature of the nightly compiler.
        .env("RUSTC_BOOTSTRAP", "aya_ebpf,kwitness_probes")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env("CARGO_TARGET_DIR", target_dir(workspace))
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .arg(subcommand)
        .args(run::cargo_progress())
        .args(["--locked", "--release", "--target", TARGET]);
    command
}

fn target_dir(workspace: &Workspace) -> PathBuf {
    workspace.target.join("ebpf")
}

fn first_line(command: &mut Command) -> Result<String> {
    Ok(run::output(command)?.lines().next().unwrap_or_default().to_owned())
}

fn hash_sources(root: &Path, object: &Object) -> Result<String> {
    let mut files = Vec::new();
    for source in object.sources() {
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
        fs::create_dir_all(dir.path().join("ebpf/abi/src")).unwrap();
        fs::create_dir_all(dir.path().join(PREBUILT)).unwrap();
        let manifest: Manifest = OBJECTS
            .iter()
            .map(|object| {
                let sources = dir.path().join(object.directory).join("src");
                fs::create_dir_all(&sources).unwrap();
                fs::write(sources.join("main.rs"), "one").unwrap();
                fs::write(dir.path().join(object.prebuilt()), "object").unwrap();
                let built = Built {
                    sources_sha256: hash_sources(dir.path(), object).unwrap(),
                    object_sha256: hex(&Sha256::digest("object")),
                    rustc: "rustc 1".to_owned(),
                    linker: "bpf-linker 1".to_owned(),
                };
                (object.binary.to_owned(), built)
            })
            .collect();
        fs::write(dir.path().join(MANIFEST), toml::to_string(&manifest).unwrap()).unwrap();
        let workspace = Workspace { root: dir.path().to_owned(), target: dir.path().join("target") };
        (dir, workspace)
    }

    #[test]
    fn a_changed_added_or_renamed_source_is_found() {
        for (remove, file, content) in [
            (None, "ebpf/probes/src/main.rs", "two"),
            (None, "ebpf/abi/src/lib.rs", ""),
            (Some("ebpf/probes/src/main.rs"), "ebpf/probes/src/other.rs", "one"),
            (None, "ebpf/guard/src/main.rs", "two"),
        ] {
            let (dir, workspace) = tree();
            check(&workspace).unwrap();
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
        for object in &OBJECTS {
            let (dir, workspace) = tree();
            fs::write(dir.path().join(object.prebuilt()), "other").unwrap();
            assert!(check(&workspace).unwrap_err().to_string().contains("not the object"));
        }
    }
}
