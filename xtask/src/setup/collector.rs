//! An OpenTelemetry Collector of the components that tests need, built from the Collector's Go modules.

use anyhow::Result;

use super::go;
use crate::workspace::Cache;

/// Hundreds of megabytes in Go's cache, and of no use to another build.
const MODULE: go::Module = go::module!("collector", "main.go");

/// Its name, in the cache's tools and in a job.
pub const NAMES: [&str; 1] = ["collector"];

pub fn ensure(cache: &Cache) -> Result<()> {
    let inputs: Vec<_> = MODULE.texts().collect();
    let programs = [(go::BUILD, "kwitness/collector", "-s -w")];
    MODULE.ensure(cache, "OpenTelemetry Collector", &inputs, &programs)
}
