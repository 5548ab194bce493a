//! The parts of a Kubernetes cluster that tests run: kubelet, API server, kubectl, controllers and scheduler, built from Kubernetes' Go
//! modules, and Debian's etcd.
//!
//! The build takes minutes of both processors and three gigabytes; where it fails, what needs these programs fails by name, and the
//! rest is none the worse ([`crate::test`]).

use anyhow::Result;

use super::{apt, go};
use crate::step::Step;
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
/// See [`NAMES`].
pub const KUBELET: &str = "kubelet";
/// What makes pods of workloads, and gives them nodes.
pub const CONTROLLERS: [&str; 2] = ["kube-controller-manager", "kube-scheduler"];
/// The kubelet of the next release in the cache's tools.
pub const NEXT_KUBELET_NAME: &str = "kubelet-1.37";
/// The kubelets of other releases in the cache's tools.
pub const OTHER_KUBELETS: [&str; 3] = ["kubelet-1.34", "kubelet-1.35", NEXT_KUBELET_NAME];
/// Those that are built.
const BUILT: [&str; 3] = [KUBELET, "kube-apiserver", "kubectl"];
const ETCD: &str = "etcd";
/// Debian's package of it.
const ETCD_PACKAGE: &str = "etcd-server";

pub fn ensure(cache: &Cache) -> Result<()> {
    // It needs no more than the C library of the roots.
    apt::programs(cache, ETCD_SUITE, ETCD_PACKAGE, &[ETCD])?;
    let flags = linker_flags(KUBERNETES);
    let inputs: Vec<&str> = MODULE.texts().chain([flags.as_str()]).collect();
    let programs = BUILT.map(|name| cache.tool(name));
    let outputs = [programs[0].as_path(), programs[1].as_path(), programs[2].as_path()];
    Step { name: &format!("Kubernetes {KUBERNETES}"), inputs: &inputs, outputs: &outputs }.run(cache, || {
        let packages = BUILT.map(|name| format!("k8s.io/kubernetes/cmd/{name}"));
        let how: &[&str] = &["build"];
        let programs = packages.each_ref().map(|package| (how, package.as_str(), flags.as_str()));
        MODULE.build(cache, &programs)
    })
}

/// Makes [`CONTROLLERS`], unless they are there. They are of the same module, whose checksums cover them, but few tests need them.
pub fn ensure_controllers(cache: &Cache) -> Result<()> {
    let flags = linker_flags(KUBERNETES);
    let inputs: Vec<&str> = MODULE.texts().chain([flags.as_str()]).collect();
    let [manager, scheduler] = CONTROLLERS.map(|name| cache.tool(name));
    let name = format!("controllers of Kubernetes {KUBERNETES}");
    Step { name: &name, inputs: &inputs, outputs: &[&manager, &scheduler] }.run(cache, || {
        let packages = CONTROLLERS.map(|name| format!("k8s.io/kubernetes/cmd/{name}"));
        let how: &[&str] = &["build"];
        let programs = packages.each_ref().map(|package| (how, package.as_str(), flags.as_str()));
        MODULE.build(cache, &programs)
    })
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
    let flags = linker_flags(version);
    let texts = module.files.iter().map(|(_, text)| *text);
    let inputs: Vec<&str> = texts.chain([flags.as_str()]).collect();
    let program = cache.tool(&format!("{KUBELET}{}", module.suffix));
    Step { name: &format!("kubelet {version}"), inputs: &inputs, outputs: &[&program] }
        .run(cache, || module.build(cache, &[(&["build"], "k8s.io/kubernetes/cmd/kubelet", &flags)]))
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

    #[test]
    fn what_is_built_is_named_in_the_module() {
        for name in BUILT {
            let import = format!("\"k8s.io/kubernetes/cmd/{name}\"");
            assert!(MODULE.texts().any(|text| text.contains(&import)), "{import}");
            assert!(NAMES.contains(&name));
        }
    }
}
