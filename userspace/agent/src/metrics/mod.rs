//! Metrics and probes: what the daemon's HTTP listener serves.
//!
//! ```text
//!  journal ──Tap──▶ Workload ─────────────┐
//!  engine ──Report, every 5 s──▶ Pulse ───┼──▶ Exposition ──▶ a scrape
//!  hub, admission, resolver: their counters┘
//! ```
//!
//! Everything here runs on the listener's thread. A scrape reads what is in memory: the journal as any watcher does, the last report
//! of the engine, and counters; it never waits for the engine, and the engine never waits for it. Owns the state of the probes:
//! startup and readiness are about the first scan, liveness is about the engine, and none is about the container runtime.

mod catalog;
mod expose;
mod words;
mod workload;

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use kwitness_service::ConnectionCounters;
use kwitness_service::http::{Health, HttpCounters, Pages, Probe};
use kwitness_service::metrics::Exposition;
use tokio::sync::Notify;

pub use catalog::CATALOG;

use crate::api::Admission;
use crate::config::Labels;
use crate::cri::Resolver;
use crate::cri_events::Events;
use crate::engine::{Handle, Report};
use crate::hub::{Hub, Tap};
use crate::probe::Capabilities;
use crate::verify::Verifier;
use workload::Workload;

/// Between two questions to the engine.
const PULSE: Duration = Duration::from_secs(5);
/// How long the engine may stay silent before the daemon counts as dead: longer than any scan or stall of a loaded node.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How long events are collected before they are read: the engine wakes this thread no more often.
const REST: Duration = Duration::from_millis(250);

/// Where the values come from.
pub struct Sources {
    /// The journal.
    pub hub: Arc<Hub>,
    /// The engine.
    pub engine: Handle,
    /// The container runtime.
    pub resolver: Resolver,
    /// Desired limits.
    pub verifier: Verifier,
    /// The CRI's events.
    pub cri_events: Events,
    /// The API's calls.
    pub admission: Admission,
    /// The API's connections.
    pub connections: Arc<ConnectionCounters>,
    /// What the kernel offers.
    pub capabilities: Capabilities,
    /// The most cgroups that are tracked.
    pub tracked_capacity: u32,
}

/// How far the daemon is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The probes are being loaded and attached.
    Loading,
    /// The first scan is under way.
    Scanning,
    /// It serves.
    Ready,
    /// It ends.
    Stopping,
}

/// See the module's description.
pub struct Metrics {
    started: SystemTime,
    http: Arc<HttpCounters>,
    sources: OnceLock<Sources>,
    is_connected: Notify,
    state: Mutex<Collected>,
}

struct Collected {
    stage: Stage,
    tap: Option<Tap>,
    workload: Workload,
    /// The last answer of the engine, and when it came.
    report: Option<(Report, Instant)>,
}

impl Metrics {
    /// Nothing to show yet but that the daemon starts.
    pub fn new(labels: Labels, http: Arc<HttpCounters>) -> Self {
        let workload = Workload::new(labels);
        Self {
            started: SystemTime::now(),
            http,
            sources: OnceLock::new(),
            is_connected: Notify::new(),
            state: Mutex::new(Collected { stage: Stage::Loading, tap: None, workload, report: None }),
        }
    }

    /// The daemon has come that far.
    pub fn reached(&self, stage: Stage) {
        self.collected().stage = stage;
    }

    /// From now on there is something to show: everything from the journal's first event.
    pub fn connect(&self, sources: Sources) {
        self.collected().tap = Some(sources.hub.tap());
        if self.sources.set(sources).is_ok() {
            self.is_connected.notify_one();
        }
    }

    /// Takes what the journal has; whether some of it was missed.
    fn collect(&self, now: Instant) -> bool {
        let Collected { tap, workload, .. } = &mut *self.collected();
        workload.forget(now);
        let missed = tap.as_mut().map_or(0, |tap| tap.read(|event| workload.take(event, now)));
        workload.missed += missed;
        missed > 0
    }

    /// Follows the journal, so that no event leaves it unseen however rare the scrapes.
    async fn follow(&self, sources: &Sources) -> Infallible {
        let mut last = sources.hub.last();
        loop {
            // The hub outlives its receivers.
            if last.changed().await.is_err() {
                return std::future::pending().await;
            }
            if self.collect(Instant::now()) {
                tracing::warn!(
                    "metrics missed events: too many came at a time; see kwitness_metrics_missed_events_total"
                );
                if let Ok(snapshot) = sources.engine.snapshot().await {
                    self.collected().workload.resync(&snapshot.containers, Instant::now());
                }
            }
            tokio::time::sleep(REST).await;
        }
    }

    /// Asks the engine what it counted, and notes that it answers.
    async fn pulse(&self, sources: &Sources) -> Infallible {
        loop {
            if let Ok(report) = sources.engine.report().await {
                self.collected().report = Some((report, Instant::now()));
            }
            tokio::time::sleep(PULSE).await;
        }
    }

    /// What it guards is whole after a panic: counters.
    fn collected(&self) -> MutexGuard<'_, Collected> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pages for Metrics {
    fn metrics(&self) -> Exposition {
        let now = Instant::now();
        self.collect(now);
        let mut exposition = Exposition::default();
        let Collected { workload, report, .. } = &*self.collected();
        expose::process(&mut exposition, self.started, &self.http);
        if let Some(sources) = self.sources.get() {
            expose::daemon(&mut exposition, sources);
            expose::workload(&mut exposition, workload);
        }
        if let Some((report, at)) = report {
            expose::report(&mut exposition, report, now.saturating_duration_since(*at));
        }
        exposition
    }

    fn probe(&self, probe: Probe) -> Health {
        let Collected { stage, report, .. } = &*self.collected();
        health(probe, *stage, report.as_ref().map(|(_, at)| at.elapsed()))
    }

    async fn work(&self) -> Infallible {
        self.is_connected.notified().await;
        let Some(sources) = self.sources.get() else { return std::future::pending().await };
        tokio::select! {
            never = self.follow(sources) => never,
            never = self.pulse(sources) => never,
        }
    }
}

/// The answer to a probe; `silence`: since the engine answered, if it ever did.
fn health(probe: Probe, stage: Stage, silence: Option<Duration>) -> Health {
    match (probe, stage, silence) {
        (Probe::Live, Stage::Ready, Some(silence)) if silence > SILENCE_MAX => {
            Err(format!("the engine has not answered for {} s", silence.as_secs()).into())
        }
        (Probe::Live, Stage::Loading | Stage::Scanning, _) => Ok("starting".into()),
        (Probe::Live, Stage::Ready | Stage::Stopping, _) => Ok("running".into()),
        (_, Stage::Loading, _) => Err("the probes are not attached yet".into()),
        (_, Stage::Scanning, _) => Err("the probes are attached; the first scan is not complete".into()),
        (_, Stage::Ready, _) | (Probe::Startup, Stage::Stopping, _) => {
            Ok("the probes are attached, the first scan is complete".into())
        }
        (Probe::Ready, Stage::Stopping, _) => Err("the daemon is stopping".into()),
    }
}

#[cfg(test)]
mod tests;
