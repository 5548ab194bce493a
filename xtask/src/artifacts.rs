//! What a job carries: the programs and test executables, built statically so that they run in any root and guest,
//! with the probes built from the sources as they are.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::architecture::Architecture;
use crate::workspace::{Cache, Workspace};
use crate::{ebpf, run};

/// The package with the integration tests, the demo and the bench.
pub const TESTS_PACKAGE: &str = "kwitness-tests";

pub const PLUGIN: &str = "kubectl-kwitness";

/// The profile of the program under test: a release with less optimization, which no test looks at.
const UNDER_TEST: &str = "under-test";

/// The profile of the program in images, packages and archives.
pub const RELEASED: &str = "dist";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executable {
    pub name: String,
    pub path: PathBuf,
}

/// A cargo for the user side, with the probes built for it.
pub struct Builder<'a> {
    workspace: &'a Workspace,
    architecture: Architecture,
    /// What names the objects to its build scripts.
    objects: Vec<(&'static str, PathBuf)>,
}

impl<'a> Builder<'a> {
    /// Builds the BPF programs; the user side is for this machine.
    pub fn new(workspace: &'a Workspace, cache: &Cache) -> Result<Self> {
        let objects = ebpf::OBJECTS.iter().map(|object| {
            let built = ebpf::build(workspace, cache, object)?;
            Ok((object.variable, built))
        });
        let architecture = Architecture::HOST;
        Ok(Self { workspace, architecture, objects: objects.collect::<Result<_>>()? })
    }

    /// The same for another architecture's user side: the BPF programs are the same.
    pub fn for_architecture(&self, architecture: Architecture) -> Result<Self> {
        if architecture != Architecture::HOST {
            let mut add = Command::new("rustup");
            run::output(
                add.args(["target", "add", architecture.target()]).current_dir(&self.workspace.root),
            )?;
        }
        Ok(Self { workspace: self.workspace, architecture, objects: self.objects.clone() })
    }

    pub fn cargo(&self, subcommand: &str) -> Command {
        // The target is always named, so that build scripts and macros are not built statically too.
        let target = self.architecture.target();
        let mut command = run::cargo();
        command
            .args([subcommand, "--locked", "--target", target])
            .current_dir(&self.workspace.root)
            .envs(
                (self.architecture != Architecture::HOST)
                    .then(|| (linker_variable(target), self.architecture.linker())),
            )
            .env("RUSTFLAGS", "-Ctarget-feature=+crt-static")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .envs(self.objects.iter().map(|(variable, object)| (variable, object)))
            .envs(packed_relocations(target));
        command
    }

    pub fn kwitness(&self) -> Result<PathBuf> {
        self.built_as(UNDER_TEST, "kwitness", "kwitness")
    }

    pub fn plugin(&self) -> Result<PathBuf> {
        let mut command = self.cargo("build");
        command.args(["--profile", UNDER_TEST, "--package", "kwitness", "--bin", PLUGIN]);
        command.args(["--no-default-features", "--features", "kubectl"]);
        self::program(&mut command, PLUGIN)
    }

    /// The program as it is released: of another size, it would have other pages in memory.
    pub fn released(&self) -> Result<PathBuf> {
        self.built_as(RELEASED, "kwitness", "kwitness")
    }

    /// A program of the tests' package that measures or shows that one.
    pub fn beside_released(&self, name: &str) -> Result<PathBuf> {
        self.built_as("release", TESTS_PACKAGE, name)
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

    /// The executables of those integration tests, `*` for all.
    pub fn tests<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> Result<Vec<Executable>> {
        let mut command = self.cargo("test");
        command.args(["--no-run", "--package", TESTS_PACKAGE]);
        command.args(names.into_iter().flat_map(|name| ["--test", name]));
        let tests = executables(&mut command, "test")?;
        if tests.is_empty() {
            bail!("package {TESTS_PACKAGE} has no integration tests");
        }
        Ok(tests)
    }
}

/// The variable by which cargo learns what links for a target.
pub fn linker_variable(target: &str) -> String {
    format!("CARGO_TARGET_{}_LINKER", target.to_uppercase().replace('-', "_"))
}

/// Asks for packed relocations where the linker and the C library of Debian 12 have them (binutils 2.40, glibc 2.36): on this machine's
/// architecture. The linkers for others cannot pack them.
pub fn packed_relocations(target: &str) -> Option<(&'static str, &'static str)> {
    (target == Architecture::HOST.target()).then_some(("KWITNESS_PACK_RELOCATIONS", "1"))
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
