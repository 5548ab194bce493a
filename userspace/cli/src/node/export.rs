//! `kwitness export`: flags into options, logging, the runtime.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use kwitness_api::proto::Event;
use kwitness_export::{CollectorOptions, DEFAULT_STATE, Header, MetricsOptions, MetricsSource, Options};
use kwitness_service::ConfigurationError;
use kwitness_service::http::HttpAddress;
use kwitness_service::log;
use kwitness_service::log::LogFormat;
use kwitness_service::privileges::{CapabilitySet, keep_only};

use crate::connect;
use crate::describe;
use crate::exit::Code;
use crate::time::{TimeFormat, Times};

#[derive(Debug, clap::Args)]
pub struct Export {
    /// Send every event as an OpenTelemetry log record to this collector: http://HOST:4317 or https://HOST:4317
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
    /// CA certificates (PEM) to verify an https collector with [default: the system's]
    #[arg(long, value_name = "FILE", env = "OTEL_EXPORTER_OTLP_CERTIFICATE", requires = "otlp_endpoint")]
    pub otlp_ca: Option<PathBuf>,
    /// Send this header with every call; from the environment, it is in no process list
    #[arg(
        long,
        value_name = "NAME=VALUE",
        value_delimiter = ',',
        env = "OTEL_EXPORTER_OTLP_HEADERS",
        hide_env_values = true
    )]
    pub otlp_header: Vec<String>,
    /// Send the daemon's metrics, too, from where it serves them (http.listen): HOST:PORT or unix:///PATH
    #[arg(long, value_name = "ADDRESS")]
    pub metrics_from: Option<MetricsSource>,
    /// Seconds between two messages with metrics
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 60,
        value_parser = clap::value_parser!(u16).range(1..=3600),
        requires = "metrics_from"
    )]
    pub metrics_interval: u16,
    /// Create Kubernetes Events for OOM kills and for limits that are not in force
    #[arg(long)]
    pub kubernetes_events: bool,
    /// Remember in this file what the collector has, so that a restart continues after it
    #[arg(long, value_name = "FILE", default_value = DEFAULT_STATE)]
    pub state_file: PathBuf,
    /// The node's name [default: the daemon's]
    #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub node_name: Option<String>,
    /// The cluster's name: k8s.cluster.name of every record
    #[arg(long, value_name = "NAME")]
    pub cluster_name: Option<String>,
    /// What is logged to standard error, as the setting log.level
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = super::log_level)]
    pub log_level: String,
    /// Log format
    #[arg(long, default_value = "text", value_name = "FORMAT")]
    pub log_format: LogFormat,
    /// Serve /metrics, /livez, /readyz and /startupz at this address: IP:PORT or unix:///PATH [default: nowhere]
    #[arg(long, value_name = "ADDRESS")]
    pub http_listen: Option<HttpAddress>,
}

pub fn run(options: Export, socket: Option<OsString>) -> anyhow::Result<Code> {
    let Export {
        otlp_endpoint,
        otlp_ca,
        otlp_header,
        metrics_from,
        metrics_interval,
        kubernetes_events,
        state_file,
        node_name,
        cluster_name,
        log_level,
        log_format,
        http_listen,
    } = options;
    // Before there is another thread. Its files and the daemon's socket are its user's and its groups'.
    keep_only(CapabilitySet::empty())?;
    let _log = log::start(&log_level, log_format)?;
    // Not by clap, whose error has the value.
    let headers = otlp_header.iter().map(|text| text.parse::<Header>()).collect::<Result<Vec<_>, _>>();
    let headers = headers.map_err(|error| {
        ConfigurationError::Invalid(format!("--otlp-header, OTEL_EXPORTER_OTLP_HEADERS: {error}"))
    })?;
    let collector = otlp_endpoint.map(|endpoint| CollectorOptions { endpoint, ca: otlp_ca, headers });
    let interval = Duration::from_secs(metrics_interval.into());
    let options = Options {
        daemon: connect::address(socket),
        collector,
        metrics: metrics_from.map(|source| MetricsOptions { source, interval }),
        kubernetes_events,
        state: state_file,
        node: node_name,
        cluster: cluster_name,
        http: http_listen,
        sentence,
    };
    // One thread: it waits for others most of the time.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the runtime")?;
    let ended = runtime.block_on(kwitness_export::run(options));
    // A disk that hangs is nothing to wait for.
    runtime.shutdown_background();
    ended.map(|()| Code::Success)
}

/// What an event says, as `kwitness events` prints it; times are in full, for a reader elsewhere.
fn sentence(event: &Event) -> String {
    describe::detail(event, Times::new(TimeFormat::Rfc3339, true))
}
