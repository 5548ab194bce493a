//! The `metrics` task: writes the tables of `docs/metrics.md`. The tests that compare them with the definitions write them, too.

use std::process::Command;

use anyhow::Result;

use crate::run;
use crate::workspace::Workspace;

/// The packages that define metrics.
const PACKAGES: &[&str] =
    &["kwitness-agent", "kwitness-cri-proxy", "kwitness-export", "kwitness-guard", "kwitness-service"];

pub fn task(workspace: &Workspace) -> Result<()> {
    let mut test = Command::new("cargo");
    test.args(["test", "--locked", "--quiet", "--lib"]).current_dir(&workspace.root);
    test.args(PACKAGES.iter().flat_map(|package| ["-p", package]));
    run::shown(test.arg("the_reference_page_has_every_metric").env("KWITNESS_BLESS", "1"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    fn repository(path: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
    }

    /// What a query may name: a histogram is exposed as three others.
    fn documented() -> Vec<String> {
        let page = fs::read_to_string(repository("docs/metrics.md")).unwrap();
        let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
        rows.flat_map(|(name, rest)| match rest.split(' ').next() {
            Some("counter" | "gauge") => vec![name.to_owned()],
            Some("histogram") => ["bucket", "sum", "count"].map(|part| format!("{name}_{part}")).into(),
            _ => Vec::new(),
        })
        .collect()
    }

    #[test]
    fn rules_and_dashboards_ask_for_metrics_that_exist() {
        let documented = documented();
        assert!(documented.len() > 60, "{documented:?}");
        for file in [
            "deploy/prometheus/alerts.yaml",
            "deploy/prometheus/alerts.test.yaml",
            "deploy/grafana/kwitness.json",
        ] {
            let text = fs::read_to_string(repository(file)).unwrap();
            let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let asked: Vec<_> =
                words.filter(|word| word.starts_with("kwitness_") || word.starts_with("process_")).collect();
            assert!(asked.len() > 5, "{file}");
            let unknown: Vec<_> =
                asked.into_iter().filter(|word| !documented.iter().any(|name| name == word)).collect();
            assert!(unknown.is_empty(), "{file} asks for {unknown:?}");
        }
    }

    #[test]
    fn every_alert_is_documented_and_tested() {
        let rules = fs::read_to_string(repository("deploy/prometheus/alerts.yaml")).unwrap();
        let tests = fs::read_to_string(repository("deploy/prometheus/alerts.test.yaml")).unwrap();
        let page = fs::read_to_string(repository("docs/metrics.md")).unwrap();
        let alerts: Vec<_> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
        assert!(alerts.len() > 10, "{alerts:?}");
        for alert in alerts {
            assert!(page.contains(&format!("| `{alert}` | ")), "{alert} is not in docs/metrics.md");
            assert!(tests.contains(alert), "{alert} is not in alerts.test.yaml");
        }
    }

    #[test]
    fn the_dashboard_is_one() {
        let text = fs::read_to_string(repository("deploy/grafana/kwitness.json")).unwrap();
        let dashboard: serde_json::Value = serde_json::from_str(&text).unwrap();
        let panels = dashboard["panels"].as_array().unwrap();
        for panel in panels.iter().filter(|panel| panel["type"] != "row") {
            let targets = panel["targets"].as_array().unwrap();
            assert!(
                !targets.is_empty() && targets.iter().all(|target| target["expr"].is_string()),
                "{panel}"
            );
        }
    }
}
