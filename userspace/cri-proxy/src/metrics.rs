//! Metrics and probes: what the proxy's HTTP listener serves. They are about the proxy alone: none calls the runtime or the daemon.
//!
//! Owns nothing: everything is read from where it is counted, and nothing here is what the proxy decides by.

use std::sync::Arc;
use std::time::Duration;

use kwitness_service::ConnectionCounters;
use kwitness_service::heartbeat::{Heartbeat, SILENCE_MAX};
use kwitness_service::http::{Health, Pages, Probe};
use kwitness_service::metrics::Exposition;
use kwitness_service::program::Program;

use super::budget::Budget;
use super::counters::Counters;
use super::events::{Events, SourceKind};
use super::limits;
use super::runtime::Runtime;

kwitness_service::metrics! {
    /// The proxy's own metrics, in the order of the reference page.
    CATALOG {
        EVENT_SOURCE: Gauge, "kwitness_cri_proxy_event_source", ["source"],
            "Where container events come from at present: 1 for daemon, runtime or none (no client wants any), 0 for the others.";
        EVENT_SOURCE_CHANGES: Counter, "kwitness_cri_proxy_event_source_changes_total", ["to"],
            "Changes of the source of container events: to daemon or runtime.";
        EVENT_STREAMS: Gauge, "kwitness_cri_proxy_event_streams", [], "Event streams of clients at present.";
        EVENT_STREAMS_LIMIT: Gauge, "kwitness_cri_proxy_event_streams_limit", [], "Event streams that there may be at a time.";
        EVENT_STREAMS_OPENED: Counter, "kwitness_cri_proxy_event_streams_opened_total", [], "Event streams that clients requested.";
        EVENT_STREAMS_ENDED: Counter, "kwitness_cri_proxy_event_streams_ended_total", ["reason"],
            "Event streams ended by the proxy: full (too many), slow (not read), late (the event of a start did not come in time) or \
             no_source (neither source has events).";
        EVENTS: Counter, "kwitness_cri_proxy_events_total", ["source"], "Container events received, by source.";
        EVENTS_DUPLICATE: Counter, "kwitness_cri_proxy_events_duplicate_total", [], "Of these, dropped because they came before.";
        EVENTS_UNDECODED: Counter, "kwitness_cri_proxy_events_undecoded_total", [], "Of these, passed on undecoded.";

        ANSWERS_HELD: Counter, "kwitness_cri_proxy_answers_held_total", [],
            "Answers to StartContainer and RunPodSandbox held until the client had the event of the start.";
        ANSWERS_BEFORE_EVENT: Counter, "kwitness_cri_proxy_answers_before_event_total", [],
            "Such answers passed on before the event, because it did not come in time or could not be waited for.";

        CALLS: Counter, "kwitness_cri_proxy_calls_total", [], "Calls passed on to the runtime, or tried to be.";
        CALLS_FAILED: Counter, "kwitness_cri_proxy_calls_failed_total", ["reason"],
            "Calls answered by the proxy: unavailable (no runtime) or memory (the connection's calls hold too much).";
        RUNTIME_UP: Gauge, "kwitness_cri_proxy_runtime_up", [],
            "Whether the last call reached the runtime: 1 or 0; 1 before the first.";
        RUNTIME_CONNECTIONS: Counter, "kwitness_cri_proxy_runtime_connections_total", ["result"],
            "Attempts to connect to the runtime: connected or failed.";
        CONNECTIONS: Counter, "kwitness_cri_proxy_connections_total", [], "Connections of clients.";
        CONNECTIONS_CLOSED: Counter, "kwitness_cri_proxy_connections_closed_total", ["reason"],
            "Connections closed by the proxy: refused (too many), silent (no HTTP/2 in time), broken (a protocol error) or memory.";
        MEMORY: Gauge, "kwitness_cri_proxy_clients_memory_bytes", [], "Memory that clients' connections take.";
        MEMORY_LIMIT: Gauge, "kwitness_cri_proxy_clients_memory_limit_bytes", [], "Memory that they may take.";

        REQUESTS: Counter, "kwitness_cri_proxy_limit_requests_total", ["result"],
            "Calls that carry limits: reported to the daemon, superseded (by a later one before it took them), dropped (no room until it \
             took them, or rejected), or not read: missed (too many of a connection), compressed, oversized, unfinished or malformed.";
        BEAT_AGE: Gauge, "kwitness_cri_proxy_answer_age_seconds", [],
            "Time since the thread that serves clients ran; it does so every 5 seconds.";
    }
}

/// Where the values come from.
#[derive(Debug)]
pub struct Sources {
    /// Connections.
    pub connections: Arc<ConnectionCounters>,
    /// What else was counted.
    pub counters: Arc<Counters>,
    /// The clients' event streams.
    pub events: Events,
    /// Whether it is reached.
    pub runtime: Arc<Runtime>,
    /// Memory for clients.
    pub budget: Arc<Budget>,
}

/// The proxy's metrics.
#[derive(Debug)]
pub struct Metrics {
    program: Program,
    sources: Sources,
    heartbeat: Arc<Heartbeat>,
}

impl Metrics {
    /// Of a proxy that begins to serve; the heart beats on the thread that serves clients.
    pub fn new(program: Program, sources: Sources, heartbeat: Arc<Heartbeat>) -> Self {
        Self { program, sources, heartbeat }
    }
}

impl Pages for Metrics {
    fn metrics(&self) -> Exposition {
        let mut exposition = Exposition::default();
        self.program.expose(&mut exposition);
        self.sources.expose(&mut exposition);
        exposition.set(&BEAT_AGE, self.heartbeat.silence().as_secs_f64());
        exposition
    }

    fn probe(&self, probe: Probe) -> Health {
        health(probe, self.heartbeat.silence())
    }
}

impl Sources {
    fn expose(&self, exposition: &mut Exposition) {
        let Self { connections, counters, events, runtime, budget } = self;
        let mut source = exposition.family(&EVENT_SOURCE);
        let current = events.source();
        for (name, of) in
            [("daemon", Some(SourceKind::Daemon)), ("runtime", Some(SourceKind::Runtime)), ("none", None)]
        {
            source.add([name], u64::from(of == current));
        }
        let mut changes = exposition.family(&EVENT_SOURCE_CHANGES);
        changes.add(["daemon"], counters.moves_to_daemon.get());
        changes.add(["runtime"], counters.moves_to_runtime.get());
        exposition.set(&EVENT_STREAMS, events.streams());
        exposition.set(&EVENT_STREAMS_LIMIT, limits::EVENT_STREAMS);
        exposition.set(&EVENT_STREAMS_OPENED, counters.event_streams.get());
        let mut ended = exposition.family(&EVENT_STREAMS_ENDED);
        ended.add(["full"], counters.event_streams_exhausted.get());
        ended.add(["slow"], counters.event_streams_overflowed.get());
        ended.add(["late"], counters.event_streams_late.get());
        ended.add(["no_source"], counters.event_streams_refused.get());
        let mut received = exposition.family(&EVENTS);
        received.add(["daemon"], counters.events_daemon.get());
        received.add(["runtime"], counters.events_runtime.get());
        exposition.set(&EVENTS_DUPLICATE, counters.events_double.get());
        exposition.set(&EVENTS_UNDECODED, counters.events_opaque.get());
        exposition.set(&ANSWERS_HELD, counters.answers_held.get());
        exposition.set(&ANSWERS_BEFORE_EVENT, counters.answers_before_event.get());

        exposition.set(&CALLS, counters.calls.get());
        let mut failed = exposition.family(&CALLS_FAILED);
        failed.add(["unavailable"], counters.calls_unavailable.get());
        failed.add(["memory"], counters.calls_exhausted.get());
        exposition.set(&RUNTIME_UP, u64::from(runtime.is_reachable()));
        let mut dialled = exposition.family(&RUNTIME_CONNECTIONS);
        dialled.add(["connected"], counters.runtime_connections.get());
        dialled.add(["failed"], counters.runtime_unreachable.get());
        exposition.set(&CONNECTIONS, connections.connections.get());
        let mut closed = exposition.family(&CONNECTIONS_CLOSED);
        closed.add(["refused"], connections.connections_refused.get());
        closed.add(["silent"], connections.connections_silent.get());
        closed.add(["broken"], counters.connections_broken.get());
        closed.add(["memory"], counters.connections_exhausted.get());
        // What one task allocated and another freed may leave it below zero.
        exposition.set(&MEMORY, u64::try_from(budget.used()).unwrap_or(0));
        exposition.set(&MEMORY_LIMIT, limits::CLIENTS_MEMORY.unsigned_abs());

        let mut requests = exposition.family(&REQUESTS);
        for (result, count) in [
            ("reported", &counters.requests_reported),
            ("superseded", &counters.requests_superseded),
            ("dropped", &counters.requests_dropped),
            ("missed", &counters.requests_missed),
            ("compressed", &counters.requests_compressed),
            ("oversized", &counters.requests_oversized),
            ("unfinished", &counters.requests_unfinished),
            ("malformed", &counters.requests_malformed),
        ] {
            requests.add([result], count.get());
        }
    }
}

/// The answer to a probe: it serves from the start on, whatever the runtime does.
fn health(probe: Probe, silence: Duration) -> Health {
    match probe {
        Probe::Live | Probe::Ready if silence > SILENCE_MAX => {
            Err(format!("no client has been served for {} s: the thread is stuck", silence.as_secs()).into())
        }
        Probe::Live | Probe::Ready | Probe::Startup => Ok("serving".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use kwitness_service::http::HttpCounters;
    use kwitness_service::metrics::{Format, breaches, in_page};

    use super::super::testing::{Bench, FakeSource, eventually};
    use super::*;

    #[test]
    fn probes_are_about_the_thread_that_serves() {
        for probe in [Probe::Live, Probe::Ready, Probe::Startup] {
            assert!(health(probe, SILENCE_MAX).is_ok());
            assert_eq!(
                health(probe, SILENCE_MAX + Duration::from_secs(1)).is_ok(),
                probe == Probe::Startup,
                "{probe:?}"
            );
        }
    }

    /// `cargo xtask metrics` writes the table anew.
    #[test]
    fn the_reference_page_has_every_metric() {
        assert_eq!(breaches(CATALOG), Vec::<String>::new());
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
        let text = fs::read_to_string(&page).unwrap();
        let expected = in_page(&text, "proxy", CATALOG).expect("marks around the table");
        if std::env::var_os("KWITNESS_BLESS").is_some() {
            fs::write(&page, expected).unwrap();
        } else {
            assert_eq!(text, expected, "{} is not up to date", page.display());
        }
    }

    #[tokio::test]
    async fn a_scrape_says_which_source_is_in_use_and_has_every_metric() {
        let bench = Bench::start();
        let metrics =
            Metrics::new(Program::new(Arc::<HttpCounters>::default()), bench.sources(), Arc::default());
        let text = || metrics.metrics().text(Format::Prometheus);
        let uses = |source: &str| {
            let text = text();
            let of = |name: &str, value: u8| {
                text.contains(&format!("kwitness_cri_proxy_event_source{{source=\"{name}\"}} {value}\n"))
            };
            ["daemon", "runtime", "none"].iter().all(|name| of(name, u8::from(*name == source)))
        };
        for metric in CATALOG {
            assert!(text().contains(&format!("\n{}", metric.name)), "{} is not in {}", metric.name, text());
        }
        assert!(uses("none"), "{}", text());

        let (daemon, runtime) = (FakeSource::daemon(), FakeSource::default());
        let _runtime = runtime.serve(&bench.runtime());
        let mut client = bench.client().await;
        let events = client.events().await;
        eventually("the runtime's events", || uses("runtime")).await;
        let _daemon = daemon.serve(&bench.daemon());
        eventually("the daemon's events", || uses("daemon")).await;
        assert!(text().contains("\nkwitness_cri_proxy_event_streams 1\n"), "{}", text());
        drop(events);
        eventually("no source", || uses("none")).await;
        assert!(text().contains("\nkwitness_cri_proxy_event_streams 0\n"), "{}", text());
    }
}
