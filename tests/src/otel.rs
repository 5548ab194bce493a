//! A real OpenTelemetry Collector on loopback, and the `kwitness export` under test that sends to it.
//!
//! Owns their processes and their files. The collector writes a message to its file before it acknowledges it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::agent::Agent;
use crate::environment::Environment;
use crate::process::{self, Managed, wait_for};

const PORT: u16 = 4317;
const LIMIT: Duration = Duration::from_secs(300);
const STOP_LIMIT: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub struct Collector {
    process: Option<Managed>,
    program: PathBuf,
    directory: tempfile::TempDir,
}

#[derive(Clone, Debug)]
pub struct Exported {
    pub name: String,
    /// The attributes of the resource and of the record; numbers as text.
    pub attributes: BTreeMap<String, String>,
}

impl Exported {
    pub fn number(&self, key: &str) -> Option<u64> {
        self.attributes.get(key)?.parse().ok()
    }
}

/// A number that it received: a data point of a sum or of a gauge.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    pub value: f64,
    /// When it was read, in nanoseconds since the Unix epoch.
    pub time: u64,
    /// Since when it has been counted, likewise; 0 for a gauge.
    pub start: u64,
}

/// One export of metrics: the attributes of the resource, and the points by name and attributes, as Prometheus writes them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub resource: BTreeMap<String, String>,
    /// `name{label="value"}`, labels in the order in which they came.
    pub points: BTreeMap<String, Point>,
}

impl Collector {
    pub async fn start(environment: &Environment) -> Result<Self> {
        Self::start_with(environment, true).await
    }

    /// The same, but what it receives is dropped once it has been decoded.
    pub async fn start_dropping(environment: &Environment) -> Result<Self> {
        Self::start_with(environment, false).await
    }

    async fn start_with(environment: &Environment, keeps: bool) -> Result<Self> {
        let directory = process::directory("collector")?;
        let program = environment.job.join("bin/collector");
        let mut this = Self { process: None, program, directory };
        // JSON is YAML.
        let configuration = json!({
            "receivers": { "otlp": { "protocols": { "grpc": { "endpoint": format!("127.0.0.1:{PORT}") } } } },
            "exporters": { "lines": { "path": if keeps { this.file() } else { PathBuf::new() } } },
            "service": {
                "telemetry": { "metrics": { "level": "none" } },
                "pipelines": {
                    "logs": { "receivers": ["otlp"], "exporters": ["lines"] },
                    "metrics": { "receivers": ["otlp"], "exporters": ["lines"] },
                },
            },
        });
        fs::write(this.configuration(), configuration.to_string()).context("write the configuration")?;
        this.start_again().await?;
        Ok(this)
    }

    pub async fn start_again(&mut self) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.arg(format!("--config=file:{}", self.configuration().display()));
        let log = self.directory.path().join("collector.log");
        let process = self.process.insert(Managed::spawn("collector", command, &log)?);
        let listens = async || Ok(TcpStream::connect(("127.0.0.1", PORT)).await.ok().map(drop));
        process.wait_for("the collector to listen", LIMIT, listens).await
    }

    /// Stops it with SIGTERM: it answers what it has taken.
    pub fn stop(&mut self) -> Result<()> {
        self.process.take().context("it does not run")?.end(STOP_LIMIT)
    }

    pub fn pid(&self) -> Result<u32> {
        Ok(self.process.as_ref().context("it does not run")?.pid())
    }

    pub fn endpoint() -> String {
        format!("http://127.0.0.1:{PORT}")
    }

    /// The log records that it has received, in the order of arrival.
    pub fn received(&self) -> Result<Vec<Exported>> {
        let mut received = Vec::new();
        for message in self.messages()? {
            for group in list(&message["resourceLogs"]) {
                for scope in list(&group["scopeLogs"]) {
                    for log in list(&scope["logRecords"]) {
                        let attributes =
                            list(&group["resource"]["attributes"]).chain(list(&log["attributes"]));
                        let attributes = attributes.map(attribute).collect::<Result<_>>()?;
                        let name = log["eventName"].as_str().context("a record without a name")?.to_owned();
                        received.push(Exported { name, attributes });
                    }
                }
            }
        }
        Ok(received)
    }

    /// The metrics that it has received, one element for each message.
    pub fn metrics(&self) -> Result<Vec<Metrics>> {
        let mut received = Vec::new();
        for message in self.messages()? {
            for group in list(&message["resourceMetrics"]) {
                let resource =
                    list(&group["resource"]["attributes"]).map(attribute).collect::<Result<_>>()?;
                let mut metrics = Metrics { resource, ..Metrics::default() };
                for metric in list(&group["scopeMetrics"]).flat_map(|scope| list(&scope["metrics"])) {
                    let name = metric["name"].as_str().context("a metric without a name")?;
                    for point in
                        list(&metric["sum"]["dataPoints"]).chain(list(&metric["gauge"]["dataPoints"]))
                    {
                        metrics.points.insert(series(name, point)?, self::point(point)?);
                    }
                }
                received.push(metrics);
            }
        }
        Ok(received)
    }

    fn messages(&self) -> Result<Vec<Value>> {
        let path = self.file();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        // The last line may be half written.
        let lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        lines.map(|line| serde_json::from_str(line).context("parse a message")).collect()
    }

    pub async fn wait_until(
        &self,
        what: &str,
        passes: impl Fn(&[Exported]) -> bool,
    ) -> Result<Vec<Exported>> {
        let waited = wait_for(what, LIMIT, async || {
            let received = self.received()?;
            Ok(passes(&received).then_some(received))
        });
        waited.await.with_context(|| self.log_tail())
    }

    pub fn log_tail(&self) -> String {
        self.process.as_ref().map_or_else(|| "the collector does not run".to_owned(), Managed::log_tail)
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("received.jsonl")
    }

    fn configuration(&self) -> PathBuf {
        self.directory.path().join("collector.yaml")
    }

    fn state_file(&self) -> PathBuf {
        self.directory.path().join("state.json")
    }
}

fn export(environment: &Environment, agent: &Agent, collector: &Collector) -> Command {
    let mut command = Command::new(environment.kwitness());
    command.arg("export").arg("--socket").arg(agent.socket());
    command.arg(format!("--otlp-endpoint={}", Collector::endpoint()));
    command.arg("--state-file").arg(collector.state_file()).arg("--log-level=debug");
    command
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn attribute(attribute: &Value) -> Result<(String, String)> {
    let key = attribute["key"].as_str().context("an attribute without a key")?;
    let value = &attribute["value"];
    let text = [&value["stringValue"], &value["intValue"]].into_iter().find_map(Value::as_str);
    Ok((key.to_owned(), text.map_or_else(|| value.to_string(), str::to_owned)))
}

fn series(name: &str, point: &Value) -> Result<String> {
    let labels = list(&point["attributes"]).map(attribute).collect::<Result<Vec<_>>>()?;
    let labels: Vec<_> = labels.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
    Ok(if labels.is_empty() { name.to_owned() } else { format!("{name}{{{}}}", labels.join(",")) })
}

fn point(point: &Value) -> Result<Point> {
    // OTLP's JSON has 64-bit numbers as text.
    let whole = |key: &str| point[key].as_str().and_then(|text| text.parse::<u64>().ok());
    let value = whole("asInt").map(|value| value as f64).or_else(|| point["asDouble"].as_f64());
    Ok(Point {
        value: value.with_context(|| format!("a point without a value: {point}"))?,
        time: whole("timeUnixNano").context("a point without a time")?,
        start: whole("startTimeUnixNano").unwrap_or(0),
    })
}

/// A running `kwitness export`; its state file is the test's.
#[derive(Debug)]
pub struct Exporter(Managed);

impl Exporter {
    pub fn start(environment: &Environment, agent: &Agent, collector: &Collector) -> Result<Self> {
        Self::start_with(environment, agent, collector, &[])
    }

    pub fn start_with(
        environment: &Environment,
        agent: &Agent,
        collector: &Collector,
        arguments: &[&str],
    ) -> Result<Self> {
        let mut command = export(environment, agent, collector);
        command.args(arguments);
        Self::spawn(command, collector)
    }

    /// Starts one that creates Kubernetes Events, too, as whom the kubeconfig names.
    pub fn start_reporting(
        environment: &Environment,
        agent: &Agent,
        collector: &Collector,
        kubeconfig: &Path,
        arguments: &[&str],
    ) -> Result<Self> {
        let mut command = export(environment, agent, collector);
        command.arg("--kubernetes-events").args(arguments).env("KUBECONFIG", kubeconfig);
        Self::spawn(command, collector)
    }

    fn spawn(command: Command, collector: &Collector) -> Result<Self> {
        let log = collector.directory.path().join("export.log");
        Ok(Self(Managed::spawn("kwitness export", command, &log)?))
    }

    /// Stops it, and lets the next one know nothing of what it exported.
    pub fn stop_for_good(self, collector: &Collector) -> Result<()> {
        self.stop()?;
        fs::remove_file(collector.state_file()).context("remove the state file")
    }

    /// What it and those before it have logged.
    pub fn log(&self) -> Result<String> {
        self.0.log()
    }

    pub fn stop(mut self) -> Result<()> {
        self.0.end(STOP_LIMIT)
    }

    pub fn log_tail(&self) -> String {
        self.0.log_tail()
    }
}
