//! The `dist` task: what a release has beside the image, for all architectures, from one machine.
//!
//! | In `target/xtask/dist` | What |
//! |---|---|
//! | `kwitness-VERSION-linux-ARCH.tar.gz` | program, units, manual pages and completions, for a prefix such as `/usr/local` |
//! | `kwitness_VERSION-1_ARCH.deb`, `kwitness-VERSION-1.ARCH.rpm` | the same below `/usr` |
//! | `kwitness-VERSION-linux-ARCH.spdx.json` | what the program consists of |
//! | `kubectl-kwitness-VERSION-SYSTEM-ARCH.tar.gz` | the kubectl plugin |
//! | `kwitness-VERSION.tgz` | the Helm chart |
//! | `kwitness.yaml` | the plugin's manifest for krew, if it is known where the archives will be |
//! | `SHA256SUMS` | checksums of all the others |
//!
//! Every file has the time of the commit: the same sources, toolchain and C library give the same bytes. Nothing is signed here, see
//! `docs/releases.md`.

mod krew;
pub mod packages;
mod tree;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};
use flate2::{Compression, GzBuilder};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType};

use crate::architecture::Architecture;
use crate::artifacts::PLUGIN;
use crate::image::LICENCES;
use crate::release::{self, Platform, Source, WINDOWS};
use crate::step::hex;
use crate::workspace::{CHART, Cache, Workspace};
use crate::{ebpf, oci, run, sbom};

use packages::Compressor;
use tree::Tree;

/// Of everything that is released together.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What to make.
#[derive(Args)]
pub struct Dist {
    /// Only these architectures, and the plugin for Linux only
    #[arg(long, value_enum, value_name = "ARCH")]
    arch: Vec<Architecture>,
    /// Where the archives will be downloaded from, for krew's manifest: https://HOST/PATH/v0.1.0
    #[arg(long, value_name = "URL")]
    url: Option<String>,
}

pub fn task(workspace: &Workspace, cache: &Cache, dist: &Dist) -> Result<()> {
    // What is shipped is what the manifest of the probes names.
    ebpf::check(workspace)?;
    let source = Source::find(workspace)?;
    let to = workspace.target.join("xtask/dist");
    if to.exists() {
        fs::remove_dir_all(&to).with_context(|| format!("remove {}", to.display()))?;
    }
    let to = workspace.scratch("dist")?;
    let all = Architecture::value_variants().iter().copied();
    let architectures: Vec<_> = all.filter(|one| dist.arch.is_empty() || dist.arch.contains(one)).collect();

    // It prints the pages and completions of every package.
    let native = release::kwitness(workspace, Architecture::HOST, &source)?;
    let mut platforms = Vec::new();
    for architecture in architectures {
        let program = release::kwitness(workspace, architecture, &source)?;
        node(workspace, cache, &source, architecture, &program, &native, &to)?;
        platforms.push(Platform::linux(architecture));
    }
    if dist.arch.is_empty() {
        platforms.push(WINDOWS);
    }
    write(&to.join(format!("kwitness-{VERSION}.tgz")), &chart(workspace, &source)?)?;
    let mut plugins = Vec::new();
    for platform in platforms {
        let program = release::plugin(workspace, platform, &source)?;
        let archive = plugin(&workspace.root, &source, platform, &program)?;
        let name = format!("{PLUGIN}-{VERSION}-{}-{}.tar.gz", platform.system, platform.architecture);
        plugins.push(krew::Archive { platform, sha256: sha256(&archive), name: name.clone() });
        write(&to.join(name), &archive)?;
    }
    if let Some(url) = &dist.url {
        write(&to.join("kwitness.yaml"), krew::manifest(VERSION, url, &plugins)?.as_bytes())?;
    }
    checksums(&to)
}

/// A deb with a program that is under test, whose sources need not be committed; what makes its packages is checked on the way.
pub fn of_program(workspace: &Workspace, cache: &Cache, program: &Path, deb: &Path) -> Result<()> {
    let directory = tempfile::tempdir().context("make a temporary directory")?;
    let stripped = directory.path().join("kwitness");
    run::output(Command::new("strip").arg("-o").arg(&stripped).arg(program))?;
    let tree = Tree::of(&workspace.root, &stripped, &stripped)?;
    let source = Source::of_no_commit();
    let make = |sub: &str| {
        let to = directory.path().join(sub);
        fs::create_dir(&to).context("make a directory")?;
        packages::make(workspace, cache, &tree, Architecture::HOST, &source, Compressor::Fast, &to)
    };
    let (first, second) = (make("first")?, make("second")?);
    for (one, other) in first.iter().zip(&second) {
        ensure!(fs::read(one)? == fs::read(other)?, "{} is another one each time", one.display());
    }
    let [made, _] = first;
    fs::copy(&made, deb).with_context(|| format!("copy {} to {}", made.display(), deb.display()))?;
    Ok(())
}

/// What an architecture's nodes install.
fn node(
    workspace: &Workspace,
    cache: &Cache,
    source: &Source,
    architecture: Architecture,
    program: &Path,
    native: &Path,
    to: &Path,
) -> Result<()> {
    let tree = Tree::of(&workspace.root, program, native)?;
    let name = format!("kwitness-{VERSION}-linux-{}", architecture.name());
    let top = format!("kwitness-{VERSION}");
    let files = tree.files().map(|(path, file)| (format!("{top}/{path}"), file.mode, &*file.bytes));
    write(&to.join(format!("{name}.tar.gz")), &archive(source, files)?)?;
    for package in packages::make(workspace, cache, &tree, architecture, source, Compressor::Small, to)? {
        report(&package)?;
    }
    let bytes = fs::read(program).with_context(|| format!("read {}", program.display()))?;
    let document = sbom::document(workspace, architecture, &source.created, &bytes)?;
    write(&to.join(format!("{name}.spdx.json")), &document)
}

/// The plugin's archive: krew takes the files by their names.
fn plugin(root: &Path, source: &Source, platform: Platform, program: &Path) -> Result<Vec<u8>> {
    let mut files = vec![(platform.executable(PLUGIN), 0o755, read(program)?)];
    for name in LICENCES {
        files.push(((*name).to_owned(), 0o644, read(&root.join(name))?));
    }
    archive(source, files.iter().map(|(name, mode, bytes)| (name.clone(), *mode, &**bytes)))
}

/// The chart as `helm package` makes it, but the same bytes each time.
pub fn chart(workspace: &Workspace, source: &Source) -> Result<Vec<u8>> {
    let directory = workspace.root.join(CHART);
    let mut files = Vec::new();
    ebpf::list_files(&directory, &mut files)?;
    files.sort();
    let mut packed = Vec::new();
    for file in files {
        let path = file.strip_prefix(&directory).context("a file of the chart")?;
        // What .helmignore names.
        if !path.starts_with("ci") {
            packed.push((format!("kwitness/{}", path.display()), 0o644, read(&file)?));
        }
    }
    archive(source, packed.iter().map(|(path, mode, bytes)| (path.clone(), *mode, &**bytes)))
}

/// A compressed tar of files, without owners, as old as the commit.
fn archive<'a>(source: &Source, files: impl Iterator<Item = (String, u32, &'a [u8])>) -> Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    for (path, mode, bytes) in files {
        let mut header = oci::header(EntryType::Regular, mode, bytes.len() as u64);
        header.set_mtime(source.seconds);
        tar.append_data(&mut header, path, bytes).context("write the archive")?;
    }
    compressed(&tar.into_inner()?)
}

fn compressed(bytes: &[u8]) -> Result<Vec<u8>> {
    // Without a name and a time in its header.
    let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    gzip.write_all(bytes).and_then(|()| gzip.finish()).context("compress")
}

/// As `sha256sum --check` reads them.
fn checksums(to: &Path) -> Result<()> {
    let mut files: Vec<PathBuf> = Vec::new();
    ebpf::list_files(to, &mut files)?;
    files.sort();
    let mut sums = String::new();
    for file in files {
        let name = file.strip_prefix(to).unwrap_or(&file);
        sums += &format!("{}  {}\n", sha256(&read(&file)?), name.display());
    }
    write(&to.join("SHA256SUMS"), sums.as_bytes())
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("write {}", path.display()))?;
    report(path)
}

fn report(path: &Path) -> Result<()> {
    let size = fs::metadata(path).with_context(|| format!("stat {}", path.display()))?.len();
    println!("{}  {:.1} MB", path.display(), size as f64 / 1e6);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_the_same_each_time_and_as_old_as_the_commit() {
        let source = Source { seconds: 7, ..Source::of_no_commit() };
        let make = || archive(&source, [("a/b".to_owned(), 0o755, &b"text"[..])].into_iter()).unwrap();
        assert_eq!(make(), make());
        let bytes = make();
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(&*bytes));
        let entries: Vec<_> = tar.entries().unwrap().map(Result::unwrap).collect();
        let [entry] = &entries[..] else { panic!("{} entries", entries.len()) };
        let header = entry.header();
        assert_eq!((header.mtime().unwrap(), header.mode().unwrap()), (7, 0o755));
        assert_eq!((header.uid().unwrap(), header.path().unwrap().to_str()), (0, Some("a/b")));
    }

    #[test]
    fn checksums_name_every_other_file() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.deb", "a.tar.gz"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        checksums(dir.path()).unwrap();
        let sums = fs::read_to_string(dir.path().join("SHA256SUMS")).unwrap();
        let expected = ["a.tar.gz", "b.deb"].map(|name| format!("{}  {name}\n", sha256(name.as_bytes())));
        assert_eq!(sums, expected.concat());
    }
}
