//! The parts of a Kubernetes cluster that tests run: kubelet, API server, kubectl, controllers and scheduler, built from Kubernetes' Go
//! modules, and Debian's etcd.
//!
//! The build takes minutes of both processors and three gigabytes; where it fails, what needs these programs fails by name, and the
//! rest is none the worse ([`crate::test`]).

use anyhow::Result;

use super::{apt, go};
use crate::versions::{ETCD_SUITE, KUBERNETES, NEXT_KUBELET, OLDER_KUBELETS};
use crate::workspace::Cache;

const MODULE: go::Module = go::module!("kubernetes");
const NEXT: go::Module = go::Module { suffix: "-1.37", ..go::module!("kubelet-1.37") };
const OLDER: [go::Module; 2] = [
    go::Module { suffix: "-1.34", ..go::module!("kubelet-1.34") },
    go::Module { suffix: "-1.35", ..go::module!("kubelet-1.35") },
];

/// The programs' names, in the cache's tools and in a job.
pub const NAMES: [&str; 4] = [KUBELET, "kube-apiserver", "kubectl", ETCD];
pub const KUBELET: &str = "kubelet";
/// What makes pods of workloads, and gives them nodes.
pub const CONTROLLERS: [&str; 2] = ["kube-controller-manager", "kube-scheduler"];
/// The kubelet of the next release in the cache's tools.
pub const NEXT_KUBELET_NAME: &str = "kubelet-1.37";
/// The kubelets of other releases in the cache's tools.
pub const OTHER_KUBELETS: [&str; 3] = ["kubelet-1.34", "kubelet-1.35", NEXT_KUBELET_NAME];
const BUILT: [&str; 3] = [KUBELET, "kube-apiserver", "kubectl"];
const ETCD: &str = "etcd";
const ETCD_PACKAGE: &str = "etcd-server";

pub fn ensure(cache: &Cache) -> Result<()> {
    // It needs no more than the C library of the roots.
    apt::programs(cache, ETCD_SUITE, ETCD_PACKAGE, &[ETCD])?;
    build(cache, &MODULE, &format!("Kubernetes {KUBERNETES}"), KUBERNETES, &BUILT)
}

/// Makes [`CONTROLLERS`], unless they are there. They are of the same module, whose checksums cover them, but few tests need them.
pub fn ensure_controllers(cache: &Cache) -> Result<()> {
    build(cache, &MODULE, &format!("controllers of Kubernetes {KUBERNETES}"), KUBERNETES, &CONTROLLERS)
}

/// Makes the kubelet of the next release, unless it is there.
pub fn ensure_next(cache: &Cache) -> Result<()> {
    ensure_kubelet(cache, &NEXT, NEXT_KUBELET)
}

/// Makes the kubelets of other releases, unless they are there.
pub fn ensure_others(cache: &Cache) -> Result<()> {
    let mut older = OLDER.iter().zip(OLDER_KUBELETS);
    older.try_for_each(|(module, version)| ensure_kubelet(cache, module, version))?;
    ensure_next(cache)
}

fn ensure_kubelet(cache: &Cache, module: &go::Module, version: &str) -> Result<()> {
    build(cache, module, &format!("kubelet {version}"), version, &[KUBELET])
}

/// Builds programs of Kubernetes, unless they are there.
fn build(cache: &Cache, module: &go::Module, step: &str, version: &str, programs: &[&str]) -> Result<()> {
    let flags = linker_flags(version);
    let inputs: Vec<&str> = module.texts().chain([flags.as_str()]).collect();
    let packages: Vec<_> = programs.iter().map(|name| format!("k8s.io/kubernetes/cmd/{name}")).collect();
    let programs: Vec<go::Program<'_>> =
        packages.iter().map(|package| (go::BUILD, package.as_str(), flags.as_str())).collect();
    module.ensure(cache, step, &inputs, &programs)
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
        let older = OLDER.iter().zip(OLDER_KUBELETS);
        for (module, version) in older.chain([(&MODULE, KUBERNETES), (&NEXT, NEXT_KUBELET)]) {
            let pinned = format!("k8s.io/kubernetes v{version}\n");
            assert!(module.texts().any(|text| text.contains(&pinned)), "{pinned}");
            assert!(linker_flags(version).contains(&format!("gitVersion=v{version} ")));
        }
        let names = OLDER.iter().chain([&NEXT]).map(|module| format!("{KUBELET}{}", module.suffix));
        assert!(names.eq(OTHER_KUBELETS));
    }
}
