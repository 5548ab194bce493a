//! Clients of other languages, for what is promised of the API: grpcurl and the Go example of the docs, built from Go modules, and the
//! gRPC library of Python, which is C-core's.
//!
//! Where they cannot be built, what needs them fails by name, and the rest is none the worse ([`crate::test`]).

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::go;
use crate::run;
use crate::step::Step;
use crate::versions::{CLIENT_PACKAGES, CLIENT_PYTHON};
use crate::workspace::Cache;

/// The example needs much of what these need.
const MODULE: go::Module = go::Module { keeps: true, ..go::module!("clients") };
const PACKAGES: [&str; 3] = [
    "github.com/fullstorydev/grpcurl/cmd/grpcurl",
    "google.golang.org/grpc/cmd/protoc-gen-go-grpc",
    "google.golang.org/protobuf/cmd/protoc-gen-go",
];
/// The programs' names, in the cache's tools and in a job.
pub const NAMES: [&str; 2] = ["grpcurl", GO_EXAMPLE];
const GO_EXAMPLE: &str = "go-example";

/// The files of the Go example and the protocol whose code it generates, by their names in the source tree.
const EXAMPLE: [(&str, &str); 4] = [
    ("docs/examples/go/go.mod", include_str!("../../../docs/examples/go/go.mod")),
    ("docs/examples/go/go.sum", include_str!("../../../docs/examples/go/go.sum")),
    ("docs/examples/go/main.go", MAIN),
    (
        "proto/kwitness/v1alpha1/kwitness.proto",
        include_str!("../../../proto/kwitness/v1alpha1/kwitness.proto"),
    ),
];
const MAIN: &str = include_str!("../../../docs/examples/go/main.go");
/// Every Python package, with its version and checksum.
const REQUIREMENTS: &str = include_str!("../../python/requirements.txt");

pub fn ensure(cache: &Cache) -> Result<()> {
    super::apt::install(cache, "packages for clients", CLIENT_PACKAGES)?;
    generators(cache)?;
    go_example(cache)?;
    python_packages(cache)
}

pub fn python(cache: &Cache) -> PathBuf {
    cache.root().join("tools/python")
}

fn generators(cache: &Cache) -> Result<()> {
    let inputs: Vec<&str> = MODULE.texts().collect();
    let programs = PACKAGES.map(|package| (go::BUILD, package, "-s -w"));
    MODULE.ensure(cache, "grpcurl and generators", &inputs, &programs)
}

/// Builds the example as its own comment says.
fn go_example(cache: &Cache) -> Result<()> {
    let program = cache.tool(GO_EXAMPLE);
    let inputs = EXAMPLE.map(|(_, text)| text);
    Step { name: "Go example", inputs: &inputs, outputs: &[&program] }.run(cache, || {
        let tree = cache.dir("build/go-example")?;
        for (name, text) in EXAMPLE {
            let file = tree.join(name);
            let parent = file.parent().context("a file in no directory")?;
            fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
            fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        }
        let directory = tree.join("docs/examples/go");
        let paths = std::env::var_os("PATH").unwrap_or_default();
        let tools = cache.root().join("tools/bin");
        let paths = std::env::join_paths(std::iter::once(tools).chain(std::env::split_paths(&paths)))
            .context("put the generators into PATH")?;
        let mut generate = Command::new("sh");
        generate.arg("-ec").arg(generation(MAIN)).env("PATH", paths).current_dir(&directory);
        run::logged(&mut generate, &cache.log("go-example-protoc")?)
            .context("the commands in docs/examples/go/main.go do not generate its code")?;
        let mut go = Command::new("go");
        go.args(["build", "-mod=readonly", "-buildvcs=false", "-trimpath", "-ldflags", "-s -w", "-o"]);
        go.arg(&program).arg(".").current_dir(&directory).env("CGO_ENABLED", "0");
        run::logged(&mut go, &cache.log(GO_EXAMPLE)?)
            .context("go cannot build docs/examples/go: it needs the network")?;
        fs::remove_dir_all(&tree).with_context(|| format!("remove {}", tree.display()))
    })
}

/// The commands in the comment of an example that come before it is run.
fn generation(source: &str) -> String {
    let commands = source.lines().filter_map(|line| line.strip_prefix("//\t"));
    commands.take_while(|line| !line.starts_with("go run ")).flat_map(|line| [line, "\n"]).collect()
}

/// For the Python of the root, not for this machine's.
fn python_packages(cache: &Cache) -> Result<()> {
    let directory = python(cache);
    let inputs = [REQUIREMENTS, CLIENT_PYTHON];
    Step { name: "Python packages", inputs: &inputs, outputs: &[&directory] }.run(cache, || {
        if directory.exists() {
            fs::remove_dir_all(&directory).with_context(|| format!("remove {}", directory.display()))?;
        }
        let file = tempfile::NamedTempFile::new().context("make a temporary file")?;
        fs::write(file.path(), REQUIREMENTS).context("write the list of Python packages")?;
        let mut pip = Command::new("/usr/bin/python3");
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:"]);
        let abi = format!("cp{}", CLIENT_PYTHON.replace('.', ""));
        pip.args(["--python-version", CLIENT_PYTHON, "--implementation", "cp", "--abi", &abi]);
        pip.args(["--platform", "manylinux2014_x86_64", "--platform", "any", "--target"]).arg(&directory);
        pip.arg("--requirement").arg(file.path());
        let done = run::logged(&mut pip, &cache.log("pip")?)
            .context("pip cannot install xtask/python/requirements.txt: check the network and the log");
        if done.is_err() {
            // Half of it would count as all.
            _ = fs::remove_dir_all(&directory);
        }
        done
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_says_how_its_code_is_generated() {
        let commands = generation(MAIN);
        assert!(commands.starts_with("protoc "), "{commands}");
        assert!(commands.trim_end().ends_with("kwitness/v1alpha1/kwitness.proto"), "{commands}");
    }
}
