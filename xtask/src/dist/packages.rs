//! The deb and the rpm: both by nfpm, from one description, and read again by dpkg and rpm.
//!
//! Owns what a package has beside the files of its [tree](super::tree): `/etc/kwitness`, and the scripts in `deploy/packages`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::tree::{Tree, ZSH};
use super::{VERSION, sha256};
use crate::architecture::Architecture;
use crate::release::Source;
use crate::run;
use crate::setup::packages::NAME as NFPM;
use crate::workspace::{Cache, Workspace};

/// Where Debian's zsh looks for those of packages.
const ZSH_OF_DEBIAN: &str = "share/zsh/vendor-completions/_kwitness";
/// Of the packages, not of what is in them.
const RELEASE: &str = "1";
const SUMMARY: &str = "Reports what the kernel really did to a node's containers";
const DESCRIPTION: &str = "A read-only eBPF agent for Kubernetes nodes: container lifecycle events, OOM kills and\n\
                           whose limit was hit, and whether CPU and memory limits are in effect. Nothing is\n\
                           started by the installation: systemctl enable --now kwitness.service";
const CONFIGURATION: &str = "/etc/kwitness";

#[derive(Clone, Copy)]
pub enum Compressor {
    /// For a release; every dpkg and rpm of the last ten years can read it.
    Small,
    /// For a test.
    Fast,
}

pub fn make(
    workspace: &Workspace,
    cache: &Cache,
    tree: &Tree,
    architecture: Architecture,
    source: &Source,
    compressor: Compressor,
    to: &Path,
) -> Result<[PathBuf; 2]> {
    let directory = tempfile::tempdir().context("make a temporary directory")?;
    for (path, file) in tree.files() {
        let path = directory.path().join(path);
        fs::create_dir_all(path.parent().unwrap_or(&path)).context("make a directory")?;
        fs::write(&path, &file.bytes).with_context(|| format!("write {}", path.display()))?;
    }
    let scripts = workspace.root.join("deploy/packages");
    // What is JSON is YAML, too.
    let config = directory.path().join("nfpm.yaml");
    fs::write(&config, description(tree, &scripts, architecture, source, compressor).to_string())
        .with_context(|| format!("write {}", config.display()))?;
    let package = |packager: &str, name: String| -> Result<PathBuf> {
        let package = to.join(name);
        let mut nfpm = Command::new(cache.tool(NFPM));
        nfpm.args(["package", "--packager", packager, "--config"]).arg(&config);
        nfpm.arg("--target").arg(&package).current_dir(directory.path());
        run::output(&mut nfpm)?;
        Ok(package)
    };
    let deb = package("deb", format!("kwitness_{VERSION}-{RELEASE}_{}.deb", architecture.name()))?;
    check_deb(&deb, tree, architecture)?;
    let rpm = package("rpm", format!("kwitness-{VERSION}-{RELEASE}.{}.rpm", architecture.machine()))?;
    check_rpm(&rpm, tree, architecture)?;
    Ok([deb, rpm])
}

fn description(
    tree: &Tree,
    scripts: &Path,
    architecture: Architecture,
    source: &Source,
    compressor: Compressor,
) -> Value {
    let mut contents = vec![json!({ "type": "dir", "dst": CONFIGURATION })];
    for (path, file) in tree.files() {
        let content = |packager: Option<&str>, to: &str| {
            let mut content =
                json!({ "src": path, "dst": format!("/usr/{to}"), "file_info": { "mode": file.mode } });
            if let Some(packager) = packager {
                content["packager"] = json!(packager);
            }
            content
        };
        if path == ZSH {
            contents.extend([content(Some("rpm"), path), content(Some("deb"), ZSH_OF_DEBIAN)]);
        } else {
            contents.push(content(None, path));
        }
    }
    let compression = match compressor {
        Compressor::Small => "xz",
        Compressor::Fast => "gzip",
    };
    json!({
        "name": "kwitness",
        "arch": architecture.name(),
        "version": VERSION,
        "release": RELEASE,
        "section": "admin",
        "priority": "optional",
        "maintainer": "The maintainers of kwitness",
        "description": format!("{SUMMARY}\n{DESCRIPTION}"),
        "license": "MIT OR Apache-2.0",
        "mtime": source.created,
        "disable_globbing": true,
        "contents": contents,
        "scripts": {
            "postinstall": scripts.join("postinstall.sh"),
            "preremove": scripts.join("preremove.sh"),
            "postremove": scripts.join("postremove.sh"),
        },
        "deb": { "compression": compression },
        // Its default is this machine's name.
        "rpm": { "compression": compression, "buildhost": "localhost", "summary": SUMMARY },
    })
}

/// Of each file its permissions and its hash.
type Listing = BTreeMap<String, (u32, String)>;

fn expected(tree: &Tree, packager: &str) -> Listing {
    let files = tree.files().map(|(path, file)| {
        let to = if path == ZSH && packager == "deb" { ZSH_OF_DEBIAN } else { path };
        (format!("/usr/{to}"), (file.mode, sha256(&file.bytes)))
    });
    files.collect()
}

/// What dpkg finds in it is the tree, and belongs to root.
fn check_deb(deb: &Path, tree: &Tree, architecture: Architecture) -> Result<()> {
    let output =
        Command::new("dpkg-deb").arg("--fsys-tarfile").arg(deb).output().context("start dpkg-deb")?;
    ensure!(output.status.success(), "dpkg-deb cannot read {}", deb.display());
    let (mut found, mut directories) = (Listing::new(), Vec::new());
    for entry in tar::Archive::new(&*output.stdout).entries().context("read the deb")? {
        let mut entry = entry.context("read the deb")?;
        let path = entry.path().context("read the deb")?.to_string_lossy().into_owned();
        let path = format!("/{}", path.trim_start_matches("./").trim_end_matches('/'));
        let header = entry.header();
        ensure!((header.uid()?, header.gid()?) == (0, 0), "{path} of the deb is not root's");
        let mode = header.mode()? & 0o7777;
        if header.entry_type().is_dir() {
            directories.push(path);
            continue;
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).context("read the deb")?;
        found.insert(path, (mode, sha256(&bytes)));
    }
    ensure!(directories.iter().any(|path| path == CONFIGURATION), "the deb has no {CONFIGURATION}");
    compare(deb, found, expected(tree, "deb"))?;
    let fields =
        run::output(Command::new("dpkg-deb").arg("--field").arg(deb).args(["Version", "Architecture"]))?;
    let wanted = format!("Version: {VERSION}-{RELEASE}\nArchitecture: {}\n", architecture.name());
    ensure!(fields == wanted, "{} has {fields}, not {wanted}", deb.display());
    Ok(())
}

/// What rpm finds in it is the tree, and belongs to root; of directories it has its own only.
fn check_rpm(rpm: &Path, tree: &Tree, architecture: Architecture) -> Result<()> {
    let query = |format: &str| {
        let directory = tempfile::tempdir().context("make a temporary directory")?;
        let mut rpm_query = Command::new("rpm");
        // No database is needed, and none is to be made.
        rpm_query.arg("--dbpath").arg(directory.path()).args([
            "--query",
            "--package",
            "--queryformat",
            format,
        ]);
        run::output(rpm_query.arg(rpm))
    };
    let named = query("%{VERSION}-%{RELEASE} %{ARCH}")?;
    let wanted = format!("{VERSION}-{RELEASE} {}", architecture.machine());
    ensure!(named == wanted, "{} is {named}, not {wanted}", rpm.display());
    let mut found = Listing::new();
    for line in
        query("[%{FILEMODES:octal} %{FILEUSERNAME}:%{FILEGROUPNAME} %{FILENAMES} %{FILEDIGESTS}\n]")?.lines()
    {
        let mut words = line.split(' ');
        let mut word = || words.next().with_context(|| format!("rpm prints {line}"));
        let mode = u32::from_str_radix(word()?, 8).with_context(|| format!("rpm prints {line}"))?;
        ensure!(word()? == "root:root", "not root's: {line}");
        let (path, digest) = (word()?.to_owned(), word()?.to_owned());
        if mode & 0o170_000 == 0o040_000 {
            ensure!(path == CONFIGURATION, "{path} is a directory of others");
            continue;
        }
        found.insert(path, (mode & 0o7777, digest));
    }
    compare(rpm, found, expected(tree, "rpm"))
}

fn compare(package: &Path, found: Listing, expected: Listing) -> Result<()> {
    let differing: Vec<_> = found
        .iter()
        .filter(|(path, file)| expected.get(*path) != Some(file))
        .chain(expected.iter().filter(|(path, _)| !found.contains_key(*path)))
        .map(|(path, (mode, _))| format!("{path} ({mode:o})"))
        .collect();
    ensure!(
        differing.is_empty(),
        "{} differs from what went into it: {}",
        package.display(),
        differing.join(", ")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_missing_added_or_changed_is_named() {
        let listing = |files: &[(&str, u32)]| -> Listing {
            files.iter().map(|(path, mode)| ((*path).to_owned(), (*mode, String::new()))).collect()
        };
        let one = || listing(&[("/a", 0o644), ("/b", 0o755)]);
        compare(Path::new("p"), one(), one()).unwrap();
        for (found, named) in [
            (listing(&[("/a", 0o644)]), "/b (755)"),
            (listing(&[("/a", 0o644), ("/b", 0o755), ("/c", 0o644)]), "/c (644)"),
            (listing(&[("/a", 0o600), ("/b", 0o755)]), "/a (600)"),
        ] {
            let error = compare(Path::new("p"), found, one()).unwrap_err().to_string();
            assert!(error.ends_with(named), "{error}");
        }
    }
}
