//! crictl and critest of the cri-tools, built from their Go modules: the kubelet's client library as a command, and the suite that judges
//! container runtimes.

use anyhow::Result;

use super::go;
use crate::step::Step;
use crate::versions::CRI_TOOLS;
use crate::workspace::Cache;

const MODULE: go::Module = go::module!("critools");

/// Their names, in the cache's tools and in a job.
pub const NAMES: [&str; 2] = ["crictl", "critest"];

pub fn ensure(cache: &Cache) -> Result<()> {
    let [crictl, critest] = NAMES.map(|name| cache.tool(name));
    let mut inputs = vec![CRI_TOOLS];
    inputs.extend(MODULE.texts());
    let name = format!("cri-tools {CRI_TOOLS}");
    Step { name: &name, inputs: &inputs, outputs: &[&crictl, &critest] }.run(cache, || {
        let flags = format!("-s -w -X sigs.k8s.io/cri-tools/pkg/version.Version={CRI_TOOLS}");
        // The suite is a test program.
        let programs: [(&[&str], &str, &str); 2] = [
            (&["build"], "sigs.k8s.io/cri-tools/cmd/crictl", &flags),
            (&["test", "-c"], "sigs.k8s.io/cri-tools/cmd/critest", &flags),
        ];
        MODULE.build(cache, &programs)
    })
}
