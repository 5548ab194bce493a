//! A real Prometheus on loopback, with the alert rules and the dashboard of `deploy/`.
//!
//! Owns its process and its data. Scrapes and evaluates every second, so that a test waits for what it forces and for nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::environment::Environment;
use crate::process::{self, Managed, wait_for};
use crate::scrape;

const PORT: u16 = 9090;
const LIMIT: Duration = Duration::from_secs(300);
const PAUSE: Duration = Duration::from_millis(300);

#[derive(Debug)]
pub struct Prometheus {
    process: Managed,
    deploy: PathBuf,
    _directory: tempfile::TempDir,
}

/// One element of an instant vector: its labels and its value.
pub type Sample = (BTreeMap<String, String>, f64);

impl Prometheus {
    /// Starts it with a target for each job, at that port of loopback, and waits until all have been scraped.
    pub async fn start(environment: &Environment, jobs: &[(&str, u16)]) -> Result<Self> {
        let directory = process::directory("prometheus")?;
        let at = |name: &str| directory.path().join(name);
        let deploy = environment.job.join("deploy");
        let rules = fs::read_to_string(deploy.join("prometheus/alerts.yaml")).context("read the rules")?;
        // As many seconds as minutes: what is short enough to be no alert is shorter than a test.
        let rules = rules.replace("for: 2m\n", "for: 2s\n").replace("for: 10m\n", "for: 10s\n");
        fs::write(at("alerts.yaml"), rules).context("write the rules")?;
        let job = |(name, port): &(&str, u16)| {
            let target = format!("127.0.0.1:{port}");
            json!({ "job_name": name, "static_configs": [{ "targets": [target] }] })
        };
        // JSON is YAML.
        let configuration = json!({
            "global": { "scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s" },
            "rule_files": [at("alerts.yaml")],
            "scrape_configs": jobs.iter().map(job).collect::<Vec<_>>(),
        });
        fs::write(at("prometheus.yaml"), configuration.to_string()).context("write the configuration")?;
        let mut command = Command::new(environment.job.join("bin/prometheus"));
        command
            .arg(format!("--config.file={}", at("prometheus.yaml").display()))
            .arg(format!("--storage.tsdb.path={}", at("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{PORT}"));
        let process = Managed::spawn("prometheus", command, &at("prometheus.log"))?;
        let mut this = Self { process, deploy, _directory: directory };
        let wanted = jobs.len();
        let scraped = wait_for("Prometheus to have scraped every target", LIMIT, async || {
            this.process.check_running()?;
            tokio::time::sleep(PAUSE).await;
            let up = this.query("up == 1").await.unwrap_or_default();
            Ok((up.len() == wanted).then_some(()))
        });
        scraped.await.with_context(|| this.log_tail())?;
        Ok(this)
    }

    pub async fn query(&self, expression: &str) -> Result<Vec<Sample>> {
        let encoded: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let answer = scrape::get_at(PORT, &format!("/api/v1/query?query={encoded}")).await?;
        let answer: Value = serde_json::from_str(&answer).context("parse the answer")?;
        ensure!(answer["status"] == "success", "{expression}: {answer}");
        ensure!(answer["data"]["resultType"] == "vector", "{expression}: {answer}");
        let samples = answer["data"]["result"].as_array().context("no result")?;
        samples
            .iter()
            .map(|sample| {
                let labels = serde_json::from_value(sample["metric"].clone()).context("the labels")?;
                let value = sample["value"][1].as_str().context("no value")?;
                Ok((labels, value.parse().with_context(|| format!("the value {value}"))?))
            })
            .collect()
    }

    /// Waits until an alert fires for something with these labels; all its labels.
    pub async fn wait_for_alert(
        &self,
        alert: &str,
        labels: &[(&str, &str)],
    ) -> Result<BTreeMap<String, String>> {
        let selected: String = labels.iter().map(|(name, value)| format!(",{name}={value:?}")).collect();
        let firing = format!("ALERTS{{alertname={alert:?},alertstate=\"firing\"{selected}}}");
        Ok(self.wait_for_sample(&firing).await?.0)
    }

    /// Waits until an expression gives something; its first sample.
    pub async fn wait_for_sample(&self, expression: &str) -> Result<Sample> {
        wait_for(expression, LIMIT, async || {
            tokio::time::sleep(PAUSE).await;
            Ok(self.query(expression).await?.into_iter().next())
        })
        .await
        .with_context(|| self.log_tail())
    }

    /// The expressions of the dashboard, by the panel's title, for every instance and namespace.
    pub fn dashboard(&self) -> Result<Vec<(String, String)>> {
        let path = self.deploy.join("grafana/kwitness.json");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let dashboard: Value = serde_json::from_str(&text).context("parse the dashboard")?;
        let panels = dashboard["panels"].as_array().context("no panels")?;
        let targets = panels.iter().flat_map(|panel| {
            let title = panel["title"].as_str().unwrap_or_default();
            panel["targets"].as_array().into_iter().flatten().map(move |target| (title, target))
        });
        targets
            .map(|(title, target)| {
                let expression = target["expr"].as_str().context("a target without an expression")?;
                let expression = expression.replace("$__rate_interval", "10m");
                let expression = expression.replace("$instance", ".*").replace("$namespace", ".*");
                Ok((title.to_owned(), expression))
            })
            .collect()
    }

    pub fn log_tail(&self) -> String {
        self.process.log_tail()
    }
}
