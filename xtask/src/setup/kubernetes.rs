//! The parts of a Kubernetes cluster that tests run: kubelet, API server and kubectl, built from Kubernetes' Go modules, and Debian's etcd.
//!
//! The build takes minutes of both processors and three gigabytes; where it fails, what needs these programs fails by name, and the
//! rest is none the worse ([`crate::test`]).

use std::fs;

use anyhow::{Context as _, Result};

use super::apt::{Mirrors, Suites};
use super::go;
use crate::step::Step;
use crate::versions::{ETCD_SUITE, KUBERNETES};
use crate::workspace::Cache;

const MODULE: go::Module = go::module!("kubernetes");

/// The programs' names, in the cache's tools and in a job.
pub const NAMES: [&str; 4] = [KUBELET, "kube-apiserver", "kubectl", ETCD];
/// See [`NAMES`].
pub const KUBELET: &str = "kubelet";
/// Those that are built.
const BUILT: [&str; 3] = [KUBELET, "kube-apiserver", "kubectl"];
const ETCD: &str = "etcd";
/// Debian's package of it.
const ETCD_PACKAGE: &str = "etcd-server";

/// Makes all, unless they are there.
pub fn ensure(cache: &Cache) -> Result<()> {
    etcd(cache)?;
    let flags = linker_flags();
    let inputs: Vec<&str> = MODULE.files.iter().map(|(_, text)| *text).chain([flags.as_str()]).collect();
    let programs = BUILT.map(|name| cache.tool(name));
    let outputs = [programs[0].as_path(), programs[1].as_path(), programs[2].as_path()];
    Step { name: &format!("Kubernetes {KUBERNETES}"), inputs: &inputs, outputs: &outputs }.run(cache, || {
        let packages = BUILT.map(|name| format!("k8s.io/kubernetes/cmd/{name}"));
        let how: &[&str] = &["build"];
        let programs = packages.each_ref().map(|package| (how, package.as_str(), flags.as_str()));
        MODULE.build(cache, &programs)?;
        Ok(String::new())
    })
}

/// The program out of Debian's package; it needs no more than the C library of the roots.
fn etcd(cache: &Cache) -> Result<()> {
    let program = cache.tool(ETCD);
    let inputs = [ETCD_SUITE, ETCD_PACKAGE];
    Step { name: &format!("{ETCD} of {ETCD_SUITE}"), inputs: &inputs, outputs: &[&program] }.run(
        cache,
        || {
            let suites = Suites::open(cache, &Mirrors::find()?, &[ETCD_SUITE])?;
            cache.dir("tools/bin")?;
            let unpacked =
                tempfile::tempdir_in(cache.root()).context("make a temporary directory in the cache")?;
            let tree = unpacked.path().join("tree");
            fs::create_dir(&tree).with_context(|| format!("create {}", tree.display()))?;
            suites.unpack(&[ETCD_PACKAGE.to_owned()], &tree)?;
            let packed = tree.join("usr/bin").join(ETCD);
            fs::copy(&packed, &program)
                .with_context(|| format!("{ETCD_PACKAGE} of {ETCD_SUITE} has no /usr/bin/{ETCD}"))?;
            Ok(String::new())
        },
    )
}

/// The version, which the programs of a release have from their build.
fn linker_flags() -> String {
    let mut numbers = KUBERNETES.split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let package = "k8s.io/component-base/version";
    format!(
        "-s -w -X {package}.gitVersion=v{KUBERNETES} -X {package}.gitMajor={major} -X {package}.gitMinor={minor} \
         -X {package}.gitTreeState=clean"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_say_the_version_that_is_pinned() {
        let pinned = format!("k8s.io/kubernetes v{KUBERNETES}\n");
        assert!(MODULE.texts().any(|text| text.contains(&pinned)), "{pinned}");
        assert!(linker_flags().contains(&format!("gitVersion=v{KUBERNETES} ")));
    }

    #[test]
    fn what_is_built_is_named_in_the_module() {
        for name in BUILT {
            let import = format!("\"k8s.io/kubernetes/cmd/{name}\"");
            assert!(MODULE.texts().any(|text| text.contains(&import)), "{import}");
            assert!(NAMES.contains(&name));
        }
    }
}
