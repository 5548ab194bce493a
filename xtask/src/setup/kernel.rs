//! Guest kernels: fetched from Debian, unpacked to an ELF that boots without an initrd, and a disk of its modules.

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::apt::{Mirrors, Suites};
use super::{disk, vmlinux};
use crate::architecture::Architecture;
use crate::step::Step;
use crate::versions::{KERNELS, KernelSeries};
use crate::workspace::Cache;
use crate::{run, step};

pub struct Kernel {
    /// The uncompressed kernel: QEMU starts it at once, where a bzImage first unpacks itself for a second. On arm64, the `Image`.
    pub elf: PathBuf,
    /// A disk whose root is `/usr/lib/modules`.
    pub modules: PathBuf,
}

impl KernelSeries {
    pub fn find(name: &str) -> Result<&'static Self> {
        KERNELS.iter().find(|kernel| kernel.name == name).with_context(|| {
            let names: Vec<_> = KERNELS.iter().map(|kernel| kernel.name).collect();
            format!("no guest kernel {name}: there are {}", names.join(", "))
        })
    }

    pub fn architecture(&self) -> Architecture {
        Architecture::of(self.name)
    }

    pub fn files(&self, cache: &Cache) -> Result<Kernel> {
        let dir = cache.dir(&format!("kernels/{}", self.name))?;
        Ok(Kernel { elf: dir.join("vmlinux"), modules: dir.join("modules.img") })
    }

    pub fn ensure(&self, cache: &Cache) -> Result<()> {
        let files = self.files(cache)?;
        let inputs = [&[self.name, "1"], self.suites, self.packages].concat();
        Step {
            name: &format!("guest kernel {}", self.name),
            inputs: &inputs,
            outputs: &[&files.elf, &files.modules],
        }
        .run(cache, || self.make(cache, &files))
    }

    fn make(&self, cache: &Cache, files: &Kernel) -> Result<()> {
        let architecture = self.architecture();
        let suites = Suites::open(cache, &Mirrors::find()?, self.suites, architecture)?;
        let series = self.name.split('-').next().unwrap_or(self.name).replace('.', r"\.");
        let regex = format!(r"^linux-image-{series}[.+-].*cloud-{}$", architecture.name());
        let build = newest(suites.search(&regex)?)
            .with_context(|| format!("no cloud kernel {} in {}", self.name, self.suites.join(", ")))?;
        step::say("  ..", "the newest build", &build);
        let dir = tempfile::tempdir_in(cache.dir("kernels")?).context("make a temporary directory")?;
        let packages: Vec<_> = self.packages.iter().map(|package| package.replace('@', &build)).collect();
        suites.unpack(&packages, dir.path())?;

        let image = find(dir.path(), &["boot", "usr/lib/modules", "lib/modules"], "vmlinuz")?;
        let bytes = fs::read(&image).with_context(|| format!("read {}", image.display()))?;
        let elf = match architecture {
            Architecture::Amd64 => {
                vmlinux::extract(&bytes).with_context(|| format!("unpack {}", image.display()))?
            }
            // Debian does not compress it.
            Architecture::Arm64 => bytes,
        };
        fs::write(&files.elf, elf).with_context(|| format!("write {}", files.elf.display()))?;
        fs::remove_file(&image).with_context(|| format!("remove {}", image.display()))?;

        // depmod and the disk want one place, whichever of the two the package uses.
        let modules = ["usr/lib/modules", "lib/modules"]
            .map(|sub| dir.path().join(sub))
            .into_iter()
            .find(|path| path.is_dir())
            .with_context(|| format!("{} has no modules", packages.join(" ")))?;
        let base = dir.path().join("base");
        fs::create_dir_all(base.join("lib")).context("make a directory")?;
        fs::rename(&modules, base.join("lib/modules")).context("move the modules")?;
        let log = cache.log(&format!("depmod {}", self.name))?;
        run::logged(Command::new("/sbin/depmod").arg("--basedir").arg(&base).arg(&build), &log)?;
        disk::plain(&base.join("lib/modules"), &files.modules, &log)
    }
}

/// The file below one of `dirs` whose name begins with `prefix`.
fn find(root: &Path, dirs: &[&str], prefix: &str) -> Result<PathBuf> {
    let mut pending: Vec<_> = dirs.iter().map(|dir| root.join(dir)).filter(|dir| dir.is_dir()).collect();
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))? {
            let entry = entry.with_context(|| format!("list {}", dir.display()))?;
            let kind = entry.file_type().with_context(|| format!("stat {}", entry.path().display()))?;
            if kind.is_dir() {
                pending.push(entry.path());
            } else if kind.is_file() && entry.file_name().to_string_lossy().starts_with(prefix) {
                return Ok(entry.path());
            }
        }
    }
    anyhow::bail!("the package has no {prefix}")
}

/// The newest build among package names `linux-image-BUILD`.
fn newest(names: Vec<String>) -> Option<String> {
    let builds = names.iter().filter_map(|name| name.strip_prefix("linux-image-"));
    let wanted = builds.filter(|build| !build.contains("unsigned") && !build.contains("dbg"));
    wanted.max_by(|a, b| by_version(a, b)).map(str::to_owned)
}

/// Numbers by value, the rest by character.
fn by_version(a: &str, b: &str) -> Ordering {
    let parts = |text: &str| -> Vec<(u64, String)> {
        let mut parts = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            let (number, tail) = rest.split_at(digits);
            let letters = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
            let (word, tail) = tail.split_at(letters);
            parts.push((number.parse().unwrap_or(0), word.to_owned()));
            rest = tail;
        }
        parts
    };
    parts(a).cmp(&parts(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_build_is_taken_by_number() {
        let names = [
            "linux-image-6.12.9+deb13-cloud-amd64",
            "linux-image-6.12.107+deb13-cloud-amd64",
            "linux-image-6.12.107+deb13-cloud-amd64-dbg",
            "linux-image-6.12.200+deb13-cloud-amd64-unsigned",
            "linux-image-6.12.57+deb13-cloud-amd64",
        ];
        let names = names.map(str::to_owned).to_vec();
        assert_eq!(newest(names).as_deref(), Some("6.12.107+deb13-cloud-amd64"));
        assert_eq!(newest(Vec::new()), None);
    }
}
