//! `kwitness export`: the daemon's events as OpenTelemetry logs, its metrics as OpenTelemetry metrics, and rare events as
//! Kubernetes Events.
//!
//! ```text
//!                               ┌─ record ─▶ queue ─▶ collector ─▶ an OpenTelemetry Collector (OTLP logs over gRPC)
//!  the daemon's socket ─▶ watch ┤               └─ position ─▶ the state file
//!                               └─ notices ─▶ limiter ─▶ api ────▶ the API server (events.k8s.io/v1, create only)
//!  the daemon's /metrics ─▶ daemon_metrics ─────────▶ collector ─▶ the Collector (OTLP metrics over gRPC)
//! ```
//!
//! A process of its own, one more client of the daemon, without any privilege. It keeps no events: the daemon's journal is the buffer,
//! and the position in it moves only when the collector has answered. What the journal could not keep until then, what the collector
//! refused, and what found no room on the way to the API server, is exported as a gap.
//!
//! Never filters, samples or aggregates records: that is the collector's work.

mod collector;
mod counters;
mod daemon_metrics;
mod exporter;
mod fleet;
mod kubernetes;
mod metrics;
mod queue;
mod record;
mod replay;
mod reply;
mod retry;
mod state;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod waiting;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use futures_util::future::OptionFuture;
use kwitness_api::client::Address;
use kwitness_api::proto::Event;
use kwitness_service::heartbeat::Heartbeat;
use kwitness_service::http::{CONNECTIONS, HttpAddress, HttpCounters, HttpLimits, HttpServer};
use kwitness_service::program::Program;
use kwitness_service::{ConfigurationError, InstanceLock, Signal, Signals};

pub use collector::{CollectorOptions, Header};
pub use daemon_metrics::{MetricsOptions, Source as MetricsSource};
pub use fleet::{SimulatedNode, Tally};
pub use metrics::CATALOG;

use collector::Collector;
use counters::Shared;
use daemon_metrics::MetricsExporter;
use exporter::Exporter;
use kubernetes::Reporter;
use metrics::Metrics;
use queue::Queue;
use record::{Mapping, Node};
use replay::Replay;
use state::StateFile;
use waiting::Waiting;

/// Where the state file is if nothing else is said: on a disk, so that a reboot leaves the position to which everything was exported.
pub const DEFAULT_STATE: &str = "/var/lib/kwitness-export/state.json";

/// The exporter's settings.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the daemon listens.
    pub daemon: Address,
    /// Where records go, if anywhere.
    pub collector: Option<CollectorOptions>,
    /// Which metrics go there, too, if any.
    pub metrics: Option<MetricsOptions>,
    /// Whether Kubernetes Events are made.
    pub kubernetes_events: bool,
    /// Where the position is kept.
    pub state: PathBuf,
    /// The node's name; otherwise what the daemon says.
    pub node: Option<String>,
    /// The cluster's name.
    pub cluster: Option<String>,
    /// Where metrics and probes are served, if anywhere.
    pub http: Option<HttpAddress>,
    /// What an event says, in a sentence.
    pub sentence: fn(&Event) -> String,
}

/// Exports until SIGTERM or SIGINT. SIGUSR1 writes the counters to the log.
///
/// # Errors
/// What keeps it from starting, or from going on; each with what to do.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let Options { daemon, collector, metrics, kubernetes_events, state, node, cluster, http, sentence } =
        options;
    let invalid =
        |why: &str| -> anyhow::Result<()> { Err(ConfigurationError::Invalid(why.to_owned()).into()) };
    if collector.is_none() && !kubernetes_events {
        return invalid("nothing to do: name a collector with --otlp-endpoint, or set --kubernetes-events");
    }
    if collector.is_none() && metrics.is_some() {
        return invalid("--metrics-from needs a collector to send to: --otlp-endpoint");
    }
    let mut signals = Signals::handle()?;
    let shared = Arc::<Shared>::default();
    let collector = collector.map(|options| Collector::new(&options, Arc::clone(&shared))).transpose()?;
    if let Some(directory) = state.parent() {
        fs::create_dir_all(directory).with_context(|| {
            format!("cannot create {}, the directory of --state-file", directory.display())
        })?;
    }
    let state_file = StateFile::new(&state);
    let mut lock = state.clone().into_os_string();
    lock.push(".lock");
    let _lock = InstanceLock::acquire(lock.as_ref()).context("a state file has one exporter")?;
    let mut progress = state_file.load()?;
    state_file.save(&progress).with_context(|| format!("write the state file {}", state.display()))?;
    let _http = http.map(|address| serve_metrics(&address, Arc::clone(&shared))).transpose()?;
    // Like its probes: it can wait for the daemon as long as that is away, and whoever starts it is not to wait along.
    kwitness_service::notify_ready();

    // Without Kubernetes Events nothing is read again for them.
    let waiting = if kubernetes_events { progress.kubernetes.clone() } else { Waiting::default() };
    let (replay, again) = Replay::plan(progress.position.as_ref(), &waiting).unzip();
    let after = again.or_else(|| progress.position.clone());
    let prepared = async {
        let client = exporter::connect(&daemon).await?;
        let name = match node {
            Some(name) => name,
            None => exporter::node_name(&client).await?,
        };
        let reporter = match kubernetes_events {
            true => {
                let api = kubernetes::client().await?;
                let mut reporter = Reporter::start(api, name.clone(), sentence, Arc::clone(&shared));
                reporter.lose(waiting.stale);
                Some(reporter)
            }
            false => None,
        };
        let watch = exporter::watch(&client, after).await.with_context(|| {
            format!("if the daemon does not know the position in {}, remove that file", state.display())
        })?;
        anyhow::Ok((name, reporter, watch))
    };
    let (name, reporter, mut watch) = tokio::select! {
        prepared = prepared => prepared?,
        () = stopped(&mut signals, &shared) => return Ok(()),
    };
    tracing::info!(node = name, daemon = %daemon, position = ?progress.position, "exporting");
    let mapping = Mapping { node: Node { name, cluster }, sentence };
    let resource = mapping.agent_resource();
    let metrics = metrics.zip(collector.clone()).map(|(options, collector)| {
        MetricsExporter::new(options, resource, collector, Arc::clone(&shared)).run()
    });
    if reporter.is_some() {
        // The reporter has counted these as lost.
        progress.kubernetes.stale = 0;
    }
    let queue = Queue::new(queue::BYTES_MAX, progress);
    let mut exporter =
        Exporter::new(mapping, collector, reporter, queue, state_file, replay, Arc::clone(&shared));
    let ended = tokio::select! {
        ended = exporter.run(&mut watch) => ended,
        Some(never) = OptionFuture::from(metrics) => match never {},
        () = stopped(&mut signals, &shared) => Ok(()),
    };
    exporter.finish().await;
    tracing::info!("stopped: {}", shared.counters);
    ended
}

/// Ends with the signal to stop.
async fn stopped(signals: &mut Signals, shared: &Shared) {
    loop {
        match signals.next().await {
            Signal::Stop => return,
            Signal::LogCounters => tracing::info!("counters: {}", shared.counters),
            // Its options are all on the command line.
            Signal::Reload => tracing::info!("SIGHUP ignored: restart to apply other options"),
        }
    }
}

fn serve_metrics(address: &HttpAddress, shared: Arc<Shared>) -> anyhow::Result<HttpServer> {
    let (http, heartbeat) = (Arc::<HttpCounters>::default(), Arc::<Heartbeat>::default());
    let metrics = Metrics::new(Program::new(Arc::clone(&http)), shared, Arc::clone(&heartbeat));
    let limits = HttpLimits::with_connections(CONNECTIONS);
    let server = HttpServer::start("--http-listen", address, limits, Arc::new(metrics), http)?;
    drop(tokio::spawn(async move { heartbeat.beat().await }));
    Ok(server)
}
