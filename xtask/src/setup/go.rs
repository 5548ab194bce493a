//! Programs that are built from pinned Go modules. A module of our own below `xtask/go/` names them; its `go.mod` pins every version, its
//! `go.sum` every checksum, which the checksum database vouched for.
//!
//! Never decides which; that is its callers'.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::step::Step;
use crate::workspace::Cache;
use crate::{run, step};

pub struct Module {
    pub name: &'static str,
    /// Its files, with what is in them.
    pub files: [(&'static str, &'static str); 3],
    /// Whether what is compiled stays in Go's own cache, for another build to use: for no more than some hundred megabytes.
    pub keeps: bool,
    /// What the names of its programs end with in the cache: another module builds programs of the same names.
    pub suffix: &'static str,
}

/// A `go` command ([`BUILD`], `test -c`), a package, and flags for the linker.
pub type Program<'a> = (&'a [&'a str], &'a str, &'a str);
pub const BUILD: &[&str] = &["build"];

/// The module in that directory below `xtask/go/`.
macro_rules! module {
    ($name:literal) => {
        $crate::setup::go::module!($name, "tools.go")
    };
    ($name:literal, $source:literal) => {
        $crate::setup::go::Module {
            name: $name,
            keeps: false,
            suffix: "",
            files: [
                ("go.mod", include_str!(concat!("../../go/", $name, "/go.mod"))),
                ("go.sum", include_str!(concat!("../../go/", $name, "/go.sum"))),
                ($source, include_str!(concat!("../../go/", $name, "/", $source))),
            ],
        }
    };
}
pub(super) use module;

impl Module {
    /// What is in its files: what decides what comes out.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(|(_, text)| *text)
    }

    /// Builds programs of it into the cache's tools, unless they are there, made of the same inputs.
    pub fn ensure(&self, cache: &Cache, step: &str, inputs: &[&str], programs: &[Program<'_>]) -> Result<()> {
        let outputs: Vec<_> =
            programs.iter().map(|(_, package, _)| cache.tool(&self.tool(package))).collect();
        let outputs: Vec<_> = outputs.iter().map(PathBuf::as_path).collect();
        Step { name: step, inputs, outputs: &outputs }.run(cache, || self.build(cache, programs))
    }

    fn tool(&self, package: &str) -> String {
        format!("{}{}", package.rsplit('/').next().unwrap_or(package), self.suffix)
    }

    fn build(&self, cache: &Cache, programs: &[Program<'_>]) -> Result<()> {
        let directory = cache.dir(&format!("build/{}", self.name))?;
        for (name, text) in self.files {
            fs::write(directory.join(name), text).with_context(|| format!("write {name}"))?;
        }
        cache.dir("tools/bin")?;
        for (how, package, flags) in programs {
            self.build_one(cache, &directory, how, package, flags)?;
        }
        // Gigabytes, and of no use to the next version.
        fs::remove_dir_all(&directory).with_context(|| format!("remove {}", directory.display()))
    }

    fn build_one(
        &self,
        cache: &Cache,
        directory: &Path,
        how: &[&str],
        package: &str,
        flags: &str,
    ) -> Result<()> {
        let name = self.tool(package);
        let mut go = Command::new("go");
        go.args(how).args(["-mod=readonly", "-buildvcs=false", "-trimpath", "-ldflags", flags, "-o"]);
        go.arg(cache.tool(&name)).arg(package);
        go.current_dir(directory).env("CGO_ENABLED", "0");
        if !self.keeps {
            go.env("GOCACHE", directory.join("cache"));
        }
        step::expected(&format!("go build {name}"), "minutes, and go shows no progress", || {
            run::logged(&mut go, &cache.log(&name)?).with_context(|| {
                format!(
                    "go cannot build {package}: it needs the network, and the Go that xtask/go/{}/go.mod names",
                    self.name
                )
            })
        })
    }
}
