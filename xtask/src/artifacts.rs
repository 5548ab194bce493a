//! What a job carries: the programs and test executables, built statically so that they run in any root and guest,
//! with the probes built from the sources as they are.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::workspace::{Cache, Workspace};
use crate::{ebpf, run};

/// The user side's machine: the host's own, named so that build scripts and macros are not built statically too.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// The package with the integration tests, the demo and the bench.
pub const TESTS_PACKAGE: &str = "kwitness-tests";

/// The kubectl plugin's program.
pub const PLUGIN: &str = "kubectl-kwitness";

/// The profile of the program under test: a release with less optimization, which no test looks at.
const UNDER_TEST: &str = "under-test";

/// An executable that was built.
#[derive(Debug, PartialEq, Eq)]
pub struct Executable {
    /// The name of its target.
    pub name: String,
    /// The file.
    pub path: PathBuf,
}

/// A cargo for the user side, with the probes built for it.
pub struct Builder<'a> {
    workspace: &'a Workspace,
    /// What names the objects to its build scripts.
    objects: Vec<(&'static str, PathBuf)>,
}

impl<'a> Builder<'a> {
    /// Builds the BPF programs.
    pub fn new(workspace: &'a Workspace, cache: &Cache) -> Result<Self> {
        let objects = ebpf::OBJECTS.iter().map(|object| {
            let built = ebpf::build(workspace, cache, object)?;
            Ok((object.variable, built))
        });
        Ok(Self { workspace, objects: objects.collect::<Result<_>>()? })
    }

    /// `cargo SUBCOMMAND` for static executables.
    pub fn cargo(&self, subcommand: &str) -> Command {
        let mut command = run::cargo();
        command
            .args([subcommand, "--locked", "--target", TARGET])
            .current_dir(&self.workspace.root)
            .env("RUSTFLAGS", "-Ctarget-feature=+crt-static")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .envs(self.objects.iter().map(|(variable, object)| (variable, object)));
        command
    }

    /// The `kwitness` program for tests.
    pub fn kwitness(&self) -> Result<PathBuf> {
        self.built_as(UNDER_TEST, "kwitness", "kwitness")
    }

    /// The kubectl plugin for tests.
    pub fn plugin(&self) -> Result<PathBuf> {
        let mut command = self.cargo("build");
        command.args(["--profile", UNDER_TEST, "--package", "kwitness", "--bin", PLUGIN]);
        command.args(["--no-default-features", "--features", "kubectl"]);
        self::program(&mut command, PLUGIN)
    }

    /// A program of a package, as it is released.
    pub fn program(&self, package: &str, name: &str) -> Result<PathBuf> {
        self.built_as("release", package, name)
    }

    /// A program of the tests' package, as the integration tests are built.
    pub fn tool(&self, name: &str) -> Result<PathBuf> {
        self.built_as("dev", TESTS_PACKAGE, name)
    }

    fn built_as(&self, profile: &str, package: &str, name: &str) -> Result<PathBuf> {
        let mut command = self.cargo("build");
        command.args(["--profile", profile, "--package", package, "--bin", name]);
        self::program(&mut command, name)
    }

    /// The executables of the integration tests.
    pub fn tests(&self) -> Result<Vec<Executable>> {
        let mut command = self.cargo("test");
        command.args(["--no-run", "--package", TESTS_PACKAGE, "--test", "*"]);
        let tests = executables(&mut command, "test")?;
        if tests.is_empty() {
            bail!("package {TESTS_PACKAGE} has no integration tests");
        }
        Ok(tests)
    }
}

/// Runs a build; the program of that name that it makes.
pub fn program(build: &mut Command, name: &str) -> Result<PathBuf> {
    let program = executables(build, "bin")?.into_iter().find(|built| built.name == name);
    Ok(program.with_context(|| format!("cargo built no program {name}"))?.path)
}

/// Runs a build, whose diagnostics are shown, and returns the executables of that kind that it names.
fn executables(command: &mut Command, kind: &str) -> Result<Vec<Executable>> {
    command.args(run::cargo_progress()).args(["--message-format", "json-render-diagnostics"]);
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("start cargo")?;
    if !output.status.success() {
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        bail!("`cargo {}` ended with {}", words.join(" "), output.status);
    }
    parse(&String::from_utf8_lossy(&output.stdout), kind)
}

fn parse(messages: &str, kind: &str) -> Result<Vec<Executable>> {
    #[derive(Deserialize)]
    struct Message {
        reason: String,
        executable: Option<PathBuf>,
        target: Option<Target>,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
        kind: Vec<String>,
    }
    let mut found = Vec::new();
    for line in messages.lines().filter(|line| line.starts_with('{')) {
        let message: Message = serde_json::from_str(line).context("read a message of cargo")?;
        let (Some(path), Some(target)) = (message.executable, message.target) else { continue };
        // The package's programs are built with its tests, and named, too.
        if message.reason == "compiler-artifact" && target.kind.iter().any(|of| of == kind) {
            found.push(Executable { name: target.name, path });
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// The file's name under which a job has a program.
pub fn in_job(name: &str) -> PathBuf {
    Path::new("bin").join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_taken_from_cargos_messages() {
        let artifact = |kind: &str, name: &str, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"kind":["{kind}"],"name":"{name}"}},"executable":{executable}}}"#
            )
        };
        let messages = [
            artifact("lib", "core", "null"),
            artifact("custom-build", "build", r#""/b""#),
            artifact("test", "storm", r#""/t/storm-1""#),
            artifact("test", "node", r#""/t/node-2""#),
            artifact("bin", "demo", r#""/t/demo""#),
            r#"{"reason":"build-finished","success":true}"#.to_owned(),
        ];
        let built = |name: &str, path: &str| Executable { name: name.into(), path: path.into() };
        let found = parse(&messages.join("\n"), "test").unwrap();
        assert_eq!(found, [built("node", "/t/node-2"), built("storm", "/t/storm-1")]);
        assert!(parse("{broken", "test").is_err());
    }
}
