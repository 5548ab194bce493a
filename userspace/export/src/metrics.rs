//! Metrics and probes: what the exporter's HTTP listener serves. They are about the exporter alone: none calls the daemon, the collector or
//! the API server.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kwitness_service::heartbeat::{Heartbeat, SILENCE_MAX};
use kwitness_service::http::{Health, Pages, Probe};
use kwitness_service::metrics::Exposition;
use kwitness_service::program::Program;

use crate::counters::Shared;
use crate::queue;

kwitness_service::metrics! {
    /// The exporter's own metrics, in the order of the reference page.
    CATALOG {
        DAEMON_UP: Gauge, "kwitness_export_daemon_up", [], "Whether events come from the daemon: 1 or 0.";
        EVENTS: Counter, "kwitness_export_events_total", [], "Events received from the daemon.";
        GAPS: Counter, "kwitness_export_gaps_total", [],
            "Of these, gaps: what the daemon lost, and what its journal did not keep until the collector took it.";
        DAEMON_LOST: Counter, "kwitness_export_daemon_disconnects_total", [], "Connections to the daemon that were lost.";

        COLLECTOR_UP: Gauge, "kwitness_export_collector_up", [],
            "Whether the last attempt to send records succeeded: 1 or 0; 0 before the first.";
        RECORDS: Counter, "kwitness_export_records_total", ["result"],
            "Log records: accepted by the collector, rejected (one of a message) or refused (with the whole message).";
        REQUESTS: Counter, "kwitness_export_requests_total", ["result"],
            "Messages to the collector: accepted, or failed (each attempt).";
        QUEUE_RECORDS: Gauge, "kwitness_export_queue_records", [], "Records that the collector has not answered for.";
        QUEUE_BYTES: Gauge, "kwitness_export_queue_bytes", [], "Memory that they take.";
        QUEUE_LIMIT: Gauge, "kwitness_export_queue_limit_bytes", [], "Memory from which on no more events are read.";
        OLDEST_AGE: Gauge, "kwitness_export_oldest_record_age_seconds", [],
            "Time since the oldest of them happened; 0 if there is none.";
        STATE_FAILED: Counter, "kwitness_export_state_write_errors_total", [], "State files that could not be written.";

        METRICS: Counter, "kwitness_export_metrics_total", ["result"],
            "Exports of the daemon's metrics: accepted, unread (the daemon did not serve them) or failed (the collector did not take them).";
        POINTS_REJECTED: Counter, "kwitness_export_metric_points_rejected_total", [],
            "Data points of metrics that the collector rejected while it accepted the others.";

        KUBERNETES: Counter, "kwitness_export_kubernetes_events_total", ["result"],
            "Kubernetes Events: created, existing (made before), refused (by the API server), failed (no answer, busy or denied; each attempt), \
             similar (part of a series), limited (too many of a pod), skipped (no name, too old, or its namespace is gone) or dropped (no room, \
             or a gap in its place).";
        BEAT_AGE: Gauge, "kwitness_export_answer_age_seconds", [],
            "Time since the exporter's thread ran; it does so every 5 seconds.";
    }
}

/// The exporter's metrics.
#[derive(Debug)]
pub struct Metrics {
    program: Program,
    shared: Arc<Shared>,
    heartbeat: Arc<Heartbeat>,
}

impl Metrics {
    /// Of an exporter that begins; the heart beats on its thread.
    pub fn new(program: Program, shared: Arc<Shared>, heartbeat: Arc<Heartbeat>) -> Self {
        Self { program, shared, heartbeat }
    }
}

impl Pages for Metrics {
    fn metrics(&self) -> Exposition {
        let mut exposition = Exposition::default();
        self.program.expose(&mut exposition);
        expose(&self.shared, &mut exposition);
        exposition.set(&BEAT_AGE, self.heartbeat.silence().as_secs_f64());
        exposition
    }

    fn probe(&self, probe: Probe) -> Health {
        let silence = self.heartbeat.silence();
        match probe {
            Probe::Live | Probe::Ready if silence > SILENCE_MAX => {
                Err(format!("the exporter's thread is stuck: it has not run for {} s", silence.as_secs())
                    .into())
            }
            Probe::Live | Probe::Ready | Probe::Startup => Ok("exporting".into()),
        }
    }
}

fn expose(shared: &Shared, exposition: &mut Exposition) {
    let Shared { counters, daemon_up, collector_up, queue_bytes, queue_records, oldest } = shared;
    exposition.set(&DAEMON_UP, daemon_up.get());
    exposition.set(&EVENTS, counters.events.get());
    exposition.set(&GAPS, counters.gaps.get());
    exposition.set(&DAEMON_LOST, counters.daemon_lost.get());
    exposition.set(&COLLECTOR_UP, collector_up.get());
    let mut records = exposition.family(&RECORDS);
    records.add(["accepted"], counters.records_accepted.get());
    records.add(["rejected"], counters.records_rejected.get());
    records.add(["refused"], counters.records_refused.get());
    let mut requests = exposition.family(&REQUESTS);
    requests.add(["accepted"], counters.requests_accepted.get());
    requests.add(["failed"], counters.requests_failed.get());
    exposition.set(&QUEUE_RECORDS, queue_records.get());
    exposition.set(&QUEUE_BYTES, queue_bytes.get());
    exposition.set(&QUEUE_LIMIT, queue::BYTES_MAX);
    let age = match oldest.get() {
        0 => Duration::ZERO,
        nanos => {
            SystemTime::now().duration_since(UNIX_EPOCH + Duration::from_nanos(nanos)).unwrap_or_default()
        }
    };
    exposition.set(&OLDEST_AGE, age.as_secs_f64());
    exposition.set(&STATE_FAILED, counters.state_failed.get());
    let mut metrics = exposition.family(&METRICS);
    metrics.add(["accepted"], counters.metrics_exported.get());
    metrics.add(["unread"], counters.metrics_unread.get());
    metrics.add(["failed"], counters.metrics_failed.get());
    exposition.set(&POINTS_REJECTED, counters.metric_points_rejected.get());
    let mut kubernetes = exposition.family(&KUBERNETES);
    for (result, count) in [
        ("created", &counters.kubernetes_created),
        ("existing", &counters.kubernetes_existing),
        ("refused", &counters.kubernetes_refused),
        ("failed", &counters.kubernetes_failed),
        ("similar", &counters.kubernetes_similar),
        ("limited", &counters.kubernetes_limited),
        ("skipped", &counters.kubernetes_skipped),
        ("dropped", &counters.kubernetes_dropped),
    ] {
        kubernetes.add([result], count.get());
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use kwitness_service::http::HttpCounters;
    use kwitness_service::metrics::{Format, breaches, in_page};

    use super::*;

    #[test]
    fn a_scrape_has_every_metric_from_the_start() {
        let program = Program::new(Arc::<HttpCounters>::default());
        let metrics = Metrics::new(program, Arc::default(), Arc::default());
        let text = metrics.metrics().text(Format::Prometheus);
        for metric in CATALOG {
            assert!(text.contains(&format!("\n{}", metric.name)), "{} is not in {text}", metric.name);
        }
        for probe in [Probe::Live, Probe::Ready, Probe::Startup] {
            assert!(metrics.probe(probe).is_ok());
        }
    }

    /// `cargo xtask metrics` writes the table anew.
    #[test]
    fn the_reference_page_has_every_metric() {
        assert_eq!(breaches(CATALOG), Vec::<String>::new());
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
        let text = fs::read_to_string(&page).unwrap();
        let expected = in_page(&text, "exporter", CATALOG).expect("marks around the table");
        if std::env::var_os("KWITNESS_BLESS").is_some() {
            fs::write(&page, expected).unwrap();
        } else {
            assert_eq!(text, expected, "{} is not up to date", page.display());
        }
    }
}
