//! Metrics and probes: what the daemon's HTTP listener serves.
//!
//! ```text
//!  journal ──JournalReader──▶ Workload ───┐
//!  engine ──Report, every 5 s──▶ Pulse ───┼──▶ Exposition ──▶ a scrape
//!  hub, admission, resolver: their counters┘
//! ```
//!
//! Everything here runs on the listener's thread. A scrape reads what is in memory: the journal as any watcher does, the last report
//! of the engine, and counters; it never waits for the engine, and the engine never waits for it. Owns the state of the probes:
//! startup and readiness are about the first scan, liveness is about the engine, a standby passes all three, and none is about the
//! container runtime.

mod catalog;
mod expose;
mod words;
mod workload;

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use kwitness_service::http::{Health, HttpCounters, Pages, Probe};
use kwitness_service::metrics::Exposition;
use kwitness_service::program::Program;
use kwitness_service::{BindingState, ConnectionCounters};
use tokio::sync::Notify;

pub use catalog::CATALOG;

use crate::api::Admission;
use crate::config::Labels;
use crate::cri::Resolver;
use crate::cri_events::Events;
use crate::engine::{Handle, Report};
use crate::hub::{Hub, JournalReader};
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
    /// The addresses that are served besides the socket.
    pub bindings: Vec<BindingState>,
}

/// How far the daemon is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Another daemon runs; this one takes over when that ends.
    Standby,
    /// The probes are being loaded and attached.
    Loading,
    /// The first scan is under way.
    Scanning,
    /// It serves.
    Ready,
    /// It ends.
    Stopping,
}

/// The daemon's metrics.
pub struct Metrics {
    program: Program,
    sources: OnceLock<Sources>,
    is_connected: Notify,
    state: Mutex<Collected>,
}

struct Collected {
    stage: Stage,
    /// Since when it serves.
    ready: Option<Instant>,
    reader: Option<JournalReader>,
    workload: Workload,
    /// There may be containers and verdicts of which no event was taken.
    is_behind: bool,
    /// The last answer of the engine, and when it came.
    report: Option<(Report, Instant)>,
}

impl Collected {
    /// How long the engine has been silent; none: it need not answer yet.
    fn silence(&self) -> Option<Duration> {
        let answered = self.report.as_ref().map(|(_, at)| *at);
        self.ready.max(answered).map(|at| at.elapsed())
    }
}

impl Metrics {
    /// Nothing to show yet but that the daemon starts.
    pub fn new(labels: Labels, http: Arc<HttpCounters>) -> Self {
        let workload = Workload::new(labels);
        Self {
            program: Program::new(http),
            sources: OnceLock::new(),
            is_connected: Notify::new(),
            state: Mutex::new(Collected {
                stage: Stage::Loading,
                ready: None,
                reader: None,
                workload,
                is_behind: false,
                report: None,
            }),
        }
    }

    /// The daemon has come that far.
    pub fn reached(&self, stage: Stage) {
        let mut collected = self.collected();
        collected.stage = stage;
        if stage == Stage::Ready {
            collected.ready = Some(Instant::now());
        }
    }

    /// From now on there is something to show. Events of an earlier daemon say what there is, and were counted by that one.
    pub fn connect(&self, sources: Sources) {
        let mut reader = sources.hub.reader();
        {
            let Collected { reader: followed, workload, is_behind, .. } = &mut *self.collected();
            let now = Instant::now();
            reader.read(|event| workload.take(event, now));
            workload.begin();
            // The journal has forgotten how the oldest containers began.
            *is_behind = sources.hub.position().seq > 0;
            *followed = Some(reader);
        }
        if self.sources.set(sources).is_ok() {
            self.is_connected.notify_one();
        }
    }

    /// Takes what the journal has.
    fn collect(&self, now: Instant) {
        let Collected { reader, workload, is_behind, .. } = &mut *self.collected();
        workload.forget(now);
        let missed = reader.as_mut().map_or(0, |reader| reader.read(|event| workload.take(event, now)));
        if missed > 0 {
            workload.missed += missed;
            *is_behind = true;
            tracing::warn!(
                missed,
                "metrics missed events: too many came at a time; see kwitness_metrics_missed_events_total"
            );
        }
    }

    /// Has the engine say what there is, if events do not. Meanwhile none is taken: those after its answer are applied to it.
    async fn catch_up(&self, sources: &Sources) {
        let reader = {
            let Collected { reader, is_behind, .. } = &mut *self.collected();
            if std::mem::take(is_behind) { reader.take() } else { None }
        };
        let Some(reader) = reader else { return };
        let state = sources.engine.state().await;
        let mut collected = self.collected();
        if let Ok((snapshot, verdicts)) = state {
            collected.workload.resync(&snapshot.containers, &verdicts, Instant::now());
        }
        collected.reader = Some(reader);
    }

    /// Follows the journal, so that no event leaves it unseen however rare the scrapes.
    async fn follow(&self, sources: &Sources) -> Infallible {
        let mut last = sources.hub.last();
        loop {
            self.catch_up(sources).await;
            // The hub outlives its receivers.
            if last.changed().await.is_err() {
                return std::future::pending().await;
            }
            self.collect(Instant::now());
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
        let Collected { stage, workload, report, .. } = &*self.collected();
        self.program.expose(&mut exposition);
        expose::standby(&mut exposition, *stage == Stage::Standby);
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
        let collected = self.collected();
        health(probe, collected.stage, collected.silence())
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

/// The answer to a probe; `silence`: since the engine answered, or has to.
fn health(probe: Probe, stage: Stage, silence: Option<Duration>) -> Health {
    match (probe, stage, silence) {
        // A rollout waits for readiness: it must not go on with a daemon that hangs.
        (Probe::Live | Probe::Ready, Stage::Ready, Some(silence)) if silence > SILENCE_MAX => {
            Err(format!("the engine has not answered for {} s", silence.as_secs()).into())
        }
        // A rollout ends the other one only once this one is ready.
        (_, Stage::Standby, _) => {
            Ok("standby: another daemon runs, and this one takes over when it ends".into())
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
