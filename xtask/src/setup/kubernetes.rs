//! The parts of a Kubernetes cluster that tests run: kubelet, API server and kubectl, built from Kubernetes' Go modules, and Debian's etcd.
//!
//! The build takes minutes of both processors and three gigabytes; where it fails, what needs these programs fails by name, and the
//! rest is none the worse ([`crate::test`]).

use anyhow::Result;

use super::{apt, go};
use crate::step::Step;
use crate::versions::{ETCD_SUITE, KUBERNETES, NEXT_KUBELET};
use crate::workspace::Cache;

const MODULE: go::Module = go::module!("kubernetes");
const NEXT: go::Module = go::Module { suffix: "-1.37", ..go::module!("kubelet-1.37") };

/// The programs' names, in the cache's tools and in a job.
pub const NAMES: [&str; 4] = [KUBELET, "kube-apiserver", "kubectl", ETCD];
/// See [`NAMES`].
pub const KUBELET: &str = "kubelet";
/// The kubelet of the next release in the cache's tools.
pub const NEXT_KUBELET_NAME: &str = "kubelet-1.37";
/// Those that are built.
const BUILT: [&str; 3] = [KUBELET, "kube-apiserver", "kubectl"];
const ETCD: &str = "etcd";
/// Debian's package of it.
const ETCD_PACKAGE: &str = "etcd-server";

/// Makes all, unless they are there.
pub fn ensure(cache: &Cache) -> Result<()> {
    // It needs no more than the C library of the roots.
    apt::programs(cache, ETCD_SUITE, ETCD_PACKAGE, &[ETCD])?;
    let flags = linker_flags(KUBERNETES);
    let inputs: Vec<&str> = MODULE.files.iter().map(|(_, text)| *text).chain([flags.as_str()]).collect();
    let programs = BUILT.map(|name| cache.tool(name));
    let outputs = [programs[0].as_path(), programs[1].as_path(), programs[2].as_path()];
    Step { name: &format!("Kubernetes {KUBERNETES}"), inputs: &inputs, outputs: &outputs }.run(cache, || {
        let packages = BUILT.map(|name| format!("k8s.io/kubernetes/cmd/{name}"));
        let how: &[&str] = &["build"];
        let programs = packages.each_ref().map(|package| (how, package.as_str(), flags.as_str()));
        MODULE.build(cache, &programs)
    })
}

/// Makes the kubelet of the next release, unless it is there.
pub fn ensure_next(cache: &Cache) -> Result<()> {
    let flags = linker_flags(NEXT_KUBELET);
    let inputs: Vec<&str> = NEXT.files.iter().map(|(_, text)| *text).chain([flags.as_str()]).collect();
    let program = cache.tool(NEXT_KUBELET_NAME);
    Step { name: &format!("kubelet {NEXT_KUBELET}"), inputs: &inputs, outputs: &[&program] }.run(
        cache,
        || {
            NEXT.build(cache, &[(&["build"], "k8s.io/kubernetes/cmd/kubelet", &flags)])?;
            Ok(())
        },
    )
}

/// The version, which the programs of a release have from their build.
fn linker_flags(version: &str) -> String {
    let mut numbers = version.split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let package = "k8s.io/component-base/version";
    format!(
        "-s -w -X {package}.gitVersion=v{version} -X {package}.gitMajor={major} -X {package}.gitMinor={minor} \
         -X {package}.gitTreeState=clean"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_say_the_version_that_is_pinned() {
        for (module, version) in [(&MODULE, KUBERNETES), (&NEXT, NEXT_KUBELET)] {
            let pinned = format!("k8s.io/kubernetes v{version}\n");
            assert!(module.texts().any(|text| text.contains(&pinned)), "{pinned}");
            assert!(linker_flags(version).contains(&format!("gitVersion=v{version} ")));
        }
        assert_eq!(NEXT_KUBELET_NAME, format!("{KUBELET}{}", NEXT.suffix));
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
