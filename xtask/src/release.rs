//! The programs as they are shipped: static, without symbols, with the prebuilt probes. They have no path of this machine in them: the
//! same sources, toolchain and C library give the same bytes.
//!
//! Never decides what they are packed into.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::architecture::Architecture;
use crate::artifacts::PLUGIN;
use crate::workspace::Workspace;
use crate::{artifacts, run, step};

/// Which sources a release is made of.
pub struct Source {
    /// The commit, with a mark if files differ from it.
    pub revision: String,
    /// When it was committed, in RFC 3339.
    pub created: String,
    /// The same in seconds since 1970: the time of every file.
    pub seconds: u64,
}

/// What a program runs on, and how it is built for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Platform {
    /// As Go and krew name it.
    pub system: &'static str,
    pub architecture: &'static str,
    /// As Rust names it.
    pub target: &'static str,
    /// What links for it on this machine.
    pub linker: &'static str,
}

/// The only one beyond Linux: a linker for macOS needs Apple's SDK, and there is none here.
pub const WINDOWS: Platform = Platform {
    system: "windows",
    architecture: "amd64",
    target: "x86_64-pc-windows-gnu",
    linker: "x86_64-w64-mingw32-gcc",
};

impl Platform {
    pub fn linux(architecture: Architecture) -> Self {
        Self {
            system: "linux",
            architecture: architecture.name(),
            target: architecture.target(),
            linker: architecture.linker(),
        }
    }

    pub fn executable(self, name: &str) -> String {
        if self.system == "windows" { format!("{name}.exe") } else { name.to_owned() }
    }
}

impl Source {
    /// What tests make: of an exported tree as well, which has no commit.
    pub fn of_no_commit() -> Self {
        Self { revision: "none".to_owned(), created: "1970-01-01T00:00:00Z".to_owned(), seconds: 0 }
    }

    pub fn find(workspace: &Workspace) -> Result<Self> {
        let git = |arguments: &[&str]| {
            run::output(Command::new("git").args(arguments).env("TZ", "UTC").current_dir(&workspace.root))
                .map(|text| text.trim().to_owned())
        };
        let mut revision = git(&["rev-parse", "HEAD"])?;
        if !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty() {
            revision += "-dirty";
        }
        let created =
            git(&["show", "--no-patch", "--format=%cd", "--date=format-local:%Y-%m-%dT%H:%M:%SZ", "HEAD"])?;
        let seconds = git(&["show", "--no-patch", "--format=%ct", "HEAD"])?;
        let seconds = seconds.parse().with_context(|| format!("git printed the time {seconds}"))?;
        Ok(Self { revision, created, seconds })
    }
}

pub fn kwitness(workspace: &Workspace, architecture: Architecture, source: &Source) -> Result<PathBuf> {
    build(workspace, Platform::linux(architecture), source, "kwitness", &[])
}

pub fn plugin(workspace: &Workspace, platform: Platform, source: &Source) -> Result<PathBuf> {
    build(workspace, platform, source, PLUGIN, &["--no-default-features", "--features", "kubectl"])
}

fn build(
    workspace: &Workspace,
    platform: Platform,
    source: &Source,
    name: &str,
    features: &[&str],
) -> Result<PathBuf> {
    let Platform { system, architecture, target, linker } = platform;
    run::output(Command::new("rustup").args(["target", "add", target]).current_dir(&workspace.root))?;
    let mut command = run::cargo();
    command.args(["build", "--locked", "--profile", artifacts::RELEASED]);
    command.args(["--package", "kwitness", "--bin", name]);
    command.args(features).args(["--target", target]).current_dir(&workspace.root);
    command.env("CARGO_ENCODED_RUSTFLAGS", rust_flags(workspace)?).env_remove("RUSTFLAGS");
    // For kwitness_build_info.
    command.env("KWITNESS_REVISION", &source.revision);
    command.env(artifacts::linker_variable(target), linker).envs(artifacts::packed_relocations(target));
    let what = format!("build {name} for {system} {architecture}");
    step::expected(&what, step::BUILD, || artifacts::program(&mut command, name))
}

/// As cargo separates flags: with the C library in the program, and sources named by where they belong instead of where they are.
fn rust_flags(workspace: &Workspace) -> Result<OsString> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let home = home.context("cannot locate cargo's directory: set CARGO_HOME")?;
    let mut flags = OsString::from("-Ctarget-feature=+crt-static");
    // The last one that fits counts: the build directory may be in the source tree.
    for (from, to) in
        [(&home, "/cargo"), (&workspace.root, "/kwitness"), (&workspace.target, "/kwitness/target")]
    {
        flags.push("\x1f--remap-path-prefix=");
        flags.push(from);
        flags.push("=");
        flags.push(to);
    }
    Ok(flags)
}
