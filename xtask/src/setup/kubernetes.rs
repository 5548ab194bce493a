//! The kubelet, built from Kubernetes' Go modules. What needs it says so where it could not be built; nothing else fails for that: a pinned
//! module may cease to be available, and the build takes minutes of both processors and two gigabytes.

use anyhow::Result;

use super::go;
use crate::place::Cache;
use crate::step::{self, Step};
use crate::versions::KUBERNETES;

const MODULE: go::Module = go::module!("kubernetes");

/// Its name, in the cache's tools and in a job.
pub const KUBELET: &str = "kubelet";

/// Builds it, unless it is there; tells why not, if that fails.
pub fn ensure(cache: &Cache) {
    if let Err(error) = kubelet(cache) {
        step::say("  ..", KUBELET, &format!("left out: {error:#}"));
    }
}

fn kubelet(cache: &Cache) -> Result<()> {
    let flags = linker_flags();
    let inputs: Vec<&str> = MODULE.files.iter().map(|(_, text)| *text).chain([flags.as_str()]).collect();
    let program = cache.tool(KUBELET);
    Step { name: &format!("kubelet {KUBERNETES}"), inputs: &inputs, outputs: &[&program] }.run(cache, || {
        MODULE.build(cache, &[(&["build"], "k8s.io/kubernetes/cmd/kubelet", &flags)])?;
        Ok(String::new())
    })
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
    fn the_kubelet_says_the_version_that_is_pinned() {
        let pinned = format!("require k8s.io/kubernetes v{KUBERNETES}\n");
        assert!(MODULE.texts().any(|text| text.contains(&pinned)), "{pinned}");
        assert!(linker_flags().contains(&format!("gitVersion=v{KUBERNETES} ")));
    }
}
