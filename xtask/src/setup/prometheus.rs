//! Prometheus and promtool: Debian's programs, for the alert rules' own tests and for a test that scrapes a daemon.

use anyhow::Result;

use super::apt;
use crate::versions::PROMETHEUS_SUITE;
use crate::workspace::Cache;

/// The programs' names, in the cache's tools and in a job.
pub const NAMES: [&str; 2] = ["prometheus", PROMTOOL];
/// Checks and tests rules.
pub const PROMTOOL: &str = "promtool";
const PACKAGE: &str = "prometheus";

pub fn ensure(cache: &Cache) -> Result<()> {
    apt::programs(cache, PROMETHEUS_SUITE, PACKAGE, &NAMES)
}
