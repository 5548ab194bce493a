//! critest's report: what became of each test. The format is Ginkgo's own (`--ginkgo.json-report`).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

pub(crate) type Report = BTreeMap<String, String>;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Suite {
    spec_reports: Vec<Spec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_text: String,
    leaf_node_type: String,
    state: String,
}

pub(crate) fn read(path: &Path) -> Result<Report> {
    let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let suites: Vec<Suite> =
        serde_json::from_slice(&text).with_context(|| format!("{} as Ginkgo's report", path.display()))?;
    let specs = suites.into_iter().flat_map(|suite| suite.spec_reports);
    let tests = specs.filter(|spec| spec.leaf_node_type == "It").map(|spec| {
        let mut words = spec.container_hierarchy_texts.unwrap_or_default();
        words.push(spec.leaf_node_text);
        (words.join(" "), spec.state)
    });
    Ok(tests.collect())
}
