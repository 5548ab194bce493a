//! What is installed below a prefix: the program, its units, manual pages and completions. One list for archives and packages.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::{compressed, read};
use crate::image::LICENCES;
use crate::{ebpf, run};

/// The units in the source tree, and what makes the group and the directory that they name.
const UNITS: &str = "deploy/systemd";
/// The completion of zsh below a prefix.
pub const ZSH: &str = "share/zsh/site-functions/_kwitness";
/// Where the completions of each shell are below a prefix. Debian's zsh looks elsewhere below `/usr`, see `packages`.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "share/bash-completion/completions/kwitness"),
    ("fish", "share/fish/vendor_completions.d/kwitness.fish"),
    ("zsh", ZSH),
];

/// Files by their paths below the prefix.
pub struct Tree(BTreeMap<String, File>);

pub struct File {
    pub mode: u32,
    pub bytes: Vec<u8>,
}

impl Tree {
    /// All of it. `native` is the program for this machine, which prints its own pages.
    pub fn of(root: &Path, program: &Path, native: &Path) -> Result<Self> {
        let mut tree = Self(BTreeMap::new());
        tree.add("bin/kwitness", 0o755, read(program)?);
        tree.add_units(&root.join(UNITS))?;
        tree.add_pages(native)?;
        for (shell, path) in COMPLETIONS {
            let script = run::output(Command::new(native).args(["completion", shell]))?;
            tree.add(path, 0o644, script.into_bytes());
        }
        for name in LICENCES.iter().copied().chain(["CHANGELOG.md"]) {
            tree.add(&format!("share/doc/kwitness/{name}"), 0o644, read(&root.join(name))?);
        }
        Ok(tree)
    }

    pub fn files(&self) -> impl Iterator<Item = (&str, &File)> {
        self.0.iter().map(|(path, file)| (path.as_str(), file))
    }

    fn add(&mut self, path: &str, mode: u32, bytes: Vec<u8>) {
        self.0.insert(path.to_owned(), File { mode, bytes });
    }

    /// Units themselves, and below directories that are named as systemd's what is for these.
    fn add_units(&mut self, from: &Path) -> Result<()> {
        for file in files(from)? {
            let name = file.strip_prefix(from).unwrap_or(&file).to_string_lossy().into_owned();
            let path =
                if name.contains('/') { format!("lib/{name}") } else { format!("lib/systemd/system/{name}") };
            self.add(&path, 0o644, read(&file)?);
        }
        Ok(())
    }

    fn add_pages(&mut self, native: &Path) -> Result<()> {
        let directory = tempfile::tempdir().context("make a temporary directory")?;
        run::output(Command::new(native).args(["man", "--dir"]).arg(directory.path()))?;
        let pages = files(directory.path())?;
        ensure!(!pages.is_empty(), "{} prints no manual pages", native.display());
        for page in pages {
            let name = page.strip_prefix(directory.path()).unwrap_or(&page).to_string_lossy().into_owned();
            self.add(&format!("share/man/{name}.gz"), 0o644, compressed(&read(&page)?)?);
        }
        Ok(())
    }
}

fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    ensure!(fs::exists(directory)?, "there is no {}", directory.display());
    let mut files = Vec::new();
    ebpf::list_files(directory, &mut files)?;
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The units name a group, which is made by a file that is installed with them.
    #[test]
    fn the_group_of_the_units_is_installed_with_them() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut tree = Tree(BTreeMap::new());
        tree.add_units(&root.join(UNITS)).unwrap();
        let text = |path: &str| String::from_utf8(tree.0[path].bytes.clone()).unwrap();
        let words: Vec<_> = tree
            .files()
            .filter(|(path, _)| path.starts_with("lib/systemd/system/"))
            .flat_map(|(path, _)| text(path).lines().map(str::to_owned).collect::<Vec<_>>())
            .collect();
        assert!(words.iter().any(|line| line == "Group=kwitness"));
        assert!(text("lib/sysusers.d/kwitness.conf").lines().any(|line| line.starts_with("g kwitness ")));
        let directory = text("lib/tmpfiles.d/kwitness.conf");
        assert!(directory.lines().any(|line| line == "d /run/kwitness 0750 root kwitness -"), "{directory}");
    }
}
