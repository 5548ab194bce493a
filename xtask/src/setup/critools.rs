//! crictl and critest of the cri-tools, built from their Go modules: the kubelet's client library as a command, and the suite that judges
//! container runtimes.

use anyhow::Result;

use super::go;
use crate::versions::CRI_TOOLS;
use crate::workspace::Cache;

const MODULE: go::Module = go::module!("critools");

/// Their names, in the cache's tools and in a job.
pub const NAMES: [&str; 2] = ["crictl", "critest"];

pub fn ensure(cache: &Cache) -> Result<()> {
    let inputs: Vec<_> = [CRI_TOOLS].into_iter().chain(MODULE.texts()).collect();
    let flags = format!("-s -w -X sigs.k8s.io/cri-tools/pkg/version.Version={CRI_TOOLS}");
    // The suite is a test program.
    let programs: [go::Program<'_>; 2] = [
        (go::BUILD, "sigs.k8s.io/cri-tools/cmd/crictl", &flags),
        (&["test", "-c"], "sigs.k8s.io/cri-tools/cmd/critest", &flags),
    ];
    MODULE.ensure(cache, &format!("cri-tools {CRI_TOOLS}"), &inputs, &programs)
}
