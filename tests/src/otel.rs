//! A real OpenTelemetry Collector on loopback, and the `kwitness export` under test that sends to it.
//!
//! Owns their processes and their files. The collector writes a message to its file before it acknowledges it.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::agent::Agent;
use crate::environment::Environment;
use crate::process::{Managed, wait_for};

const PORT: u16 = 4317;
/// An emulated guest needs many times what a machine does.
const LIMIT: Duration = Duration::from_secs(300);
/// How long one of both may take to end.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// A collector that comes and goes; what it received stays.
#[derive(Debug)]
pub struct Collector {
    process: Option<Managed>,
    program: PathBuf,
    directory: tempfile::TempDir,
}

/// A log record that it received.
#[derive(Clone, Debug)]
pub struct Exported {
    /// The name of the event.
    pub name: String,
    /// The attributes of the resource and of the record; numbers as text.
    pub attributes: BTreeMap<String, String>,
}

impl Exported {
    /// An attribute that is a number.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.attributes.get(key)?.parse().ok()
    }
}

impl Collector {
    /// Starts it and waits until it listens.
    pub async fn start(environment: &Environment) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("kwitness-collector-").tempdir_in("/run");
        let directory = directory.context("make the collector's directory in /run")?;
        let program = environment.job.join("bin/collector");
        let mut this = Self { process: None, program, directory };
        // JSON is YAML.
        let configuration = json!({
            "receivers": { "otlp": { "protocols": { "grpc": { "endpoint": format!("127.0.0.1:{PORT}") } } } },
            "exporters": { "lines": { "path": this.file() } },
            "service": {
                "telemetry": { "metrics": { "level": "none" } },
                "pipelines": { "logs": { "receivers": ["otlp"], "exporters": ["lines"] } },
            },
        });
        fs::write(this.configuration(), configuration.to_string()).context("write the configuration")?;
        this.start_again().await?;
        Ok(this)
    }

    /// Starts it again, after it was stopped.
    pub async fn start_again(&mut self) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.arg(format!("--config=file:{}", self.configuration().display()));
        let log = self.directory.path().join("collector.log");
        let process = self.process.insert(Managed::spawn("collector", command, &log)?);
        let listening = wait_for("the collector to listen", LIMIT, async || {
            process.check_running()?;
            Ok(TcpStream::connect(("127.0.0.1", PORT)).await.ok().map(drop))
        });
        let listening = listening.await;
        listening.with_context(|| self.log_tail())
    }

    /// Stops it with SIGTERM: it answers what it has taken.
    pub fn stop(&mut self) -> Result<()> {
        let mut process = self.process.take().context("it does not run")?;
        let status = process.terminate(STOP_LIMIT)?;
        ensure!(status.success(), "the collector ended badly: {status}\n{}", process.log_tail());
        Ok(())
    }

    /// What it has received, in the order of arrival.
    pub fn received(&self) -> Result<Vec<Exported>> {
        let path = self.file();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        let mut received = Vec::new();
        // The last line may be half written.
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            let message: Value = serde_json::from_str(line).context("parse a message")?;
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

    /// Waits until what it has received passes.
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

    /// The end of its log, if it runs.
    pub fn log_tail(&self) -> String {
        self.process.as_ref().map_or_else(|| "the collector does not run".to_owned(), Managed::log_tail)
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("received.jsonl")
    }

    fn configuration(&self) -> PathBuf {
        self.directory.path().join("collector.yaml")
    }
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

/// A running `kwitness export`; its state file is the test's.
#[derive(Debug)]
pub struct Exporter(Managed);

impl Exporter {
    /// Starts one that sends this daemon's events to the collector.
    pub fn start(environment: &Environment, agent: &Agent, collector: &Collector) -> Result<Self> {
        let at = |name: &str| collector.directory.path().join(name);
        let mut command = Command::new(environment.kwitness());
        command.arg("export").arg("--socket").arg(agent.socket());
        command.arg(format!("--otlp-endpoint=http://127.0.0.1:{PORT}"));
        command.arg("--state-file").arg(at("state.json")).arg("--log-level=debug");
        Ok(Self(Managed::spawn("kwitness export", command, &at("export.log"))?))
    }

    /// Stops it with SIGTERM.
    pub fn stop(mut self) -> Result<()> {
        let status = self.0.terminate(STOP_LIMIT)?;
        if !status.success() {
            bail!("kwitness export ended badly: {status}\n{}", self.0.log_tail());
        }
        Ok(())
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        self.0.log_tail()
    }
}
