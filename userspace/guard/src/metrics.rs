//! Metrics and probes: what the guard's HTTP listener serves. They are about the guard alone: none calls the daemon or the runtime.
//!
//! Owns what is counted of holds, and the copy that a scrape reads. The guard's task replaces the copy at every heartbeat; its age
//! is the sign of life. No metric has a label of a container: however many are armed, the series stay as few.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kwitness_service::http::{Health, Pages, Probe};
use kwitness_service::metrics::{Exposition, Histogram};
use kwitness_service::program::Program;

use crate::reporter::ReportCounts;

kwitness_service::metrics! {
    /// The guard's own metrics, in the order of the reference page.
    CATALOG {
        HELD: Gauge, "kwitness_guard_held_processes", [], "Processes that are held at present.";
        HOLDS: Counter, "kwitness_guard_holds_total", [], "Processes that were held.";
        CONTINUED: Counter, "kwitness_guard_continued_total", ["state"],
            "Holds that ended, by what the process was seen to be: running, gone, or stopped (again and again, by another process).";
        HOLD_SECONDS: Histogram, "kwitness_guard_hold_seconds", [], "How long processes were held.";
        RAISES: Counter, "kwitness_guard_raises_total", [], "Holds that ended with a raise in force.";
        REFUSALS: Counter, "kwitness_guard_refusals_total", ["reason"],
            "Holds that ended without one, by reason as in the log.";
        LATE_RAISES: Counter, "kwitness_guard_late_raises_total", [], "Raises that came into force after their hold had ended.";
        LENT: Gauge, "kwitness_guard_raised_containers", [], "Armed containers whose limit the guard has raised and not given back.";
        RETURNS: Counter, "kwitness_guard_returns_total", [], "Limits that were given back, and are in force.";
        RETURN_REFUSALS: Counter, "kwitness_guard_return_refusals_total", ["reason"],
            "Limits that were not given back when it was time, by reason as in the log.";
        REPORTS: Counter, "kwitness_guard_reports_total", ["result"],
            "Reports to the daemon: accepted, rejected (it knows no such container) or dropped (it was away for too long).";
        NOT_HELD: Counter, "kwitness_guard_not_held_total", ["reason"],
            "Charges above a threshold whose task was not held, by reason.";
        BRAKES: Counter, "kwitness_guard_brakes_total", [],
            "Times that memory.high was lowered because a held process had not stopped.";
        ARMED: Gauge, "kwitness_guard_armed_containers", [], "Containers that are armed.";
        NOT_ARMED: Gauge, "kwitness_guard_not_armed_containers", ["reason"],
            "Containers that are not armed although a rule matches, or may match, them, by reason as in the status.";
        BUDGET_LEFT: Gauge, "kwitness_guard_budget_left_raises", [], "Raises that all armed containers together may still have.";
        BUDGET_SPENT: Gauge, "kwitness_guard_budget_spent_containers", [], "Armed containers that may have no further raise.";
        WATCHDOG_UP: Gauge, "kwitness_guard_watchdog_up", [],
            "Whether the watchdog looks on: 1 or 0. While it does not, nothing is held.";
        WATCHDOG_RESTARTS: Counter, "kwitness_guard_watchdog_restarts_total", [],
            "Watchdogs that were started because the one before hung or had ended.";
        DAEMON_UP: Gauge, "kwitness_guard_daemon_up", [], "Whether the daemon reports containers: 1 or 0.";
        BEAT_AGE: Gauge, "kwitness_guard_heartbeat_age_seconds", [],
            "Time since the last heartbeat, and age of all values here; one comes every 0.2 seconds.";
    }
}

/// Upper bounds of the buckets in seconds: from a raise that is answered at once to the longest hold that a policy allows, and
/// the second within which every hold ends after that.
const BOUNDS: &[f64] = &[0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 11.0];
/// How long there may be no heartbeat before the guard counts as dead. It holds nothing long before.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// What was counted of holds.
#[derive(Clone, Debug)]
pub(crate) struct Counts {
    pub holds: u64,
    /// By the state in which the process was seen.
    pub continued: BTreeMap<&'static str, u64>,
    pub hold_seconds: Histogram,
    pub raises: u64,
    pub refusals: BTreeMap<&'static str, u64>,
    pub late_raises: u64,
    pub returns: u64,
    pub return_refusals: BTreeMap<&'static str, u64>,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { holds, raises, late_raises, returns, refusals, .. } = self;
        write!(f, "holds={holds} raises={raises} late_raises={late_raises} returns={returns}")?;
        refusals.iter().try_for_each(|(reason, count)| write!(f, " refused_{reason}={count}"))
    }
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            holds: 0,
            continued: BTreeMap::from([("running", 0), ("gone", 0), ("stopped", 0)]),
            hold_seconds: Histogram::new(BOUNDS),
            raises: 0,
            refusals: BTreeMap::new(),
            late_raises: 0,
            returns: 0,
            return_refusals: BTreeMap::new(),
        }
    }
}

/// The guard at one heartbeat.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    pub counts: Counts,
    pub held: usize,
    pub armed: usize,
    pub not_armed: BTreeMap<&'static str, u64>,
    pub not_held: Vec<(&'static str, u64)>,
    pub brakes: u64,
    pub reports: ReportCounts,
    pub is_watched: bool,
    pub watchdog_restarts: u64,
    pub lent: usize,
    pub budget_left: u64,
    pub budget_spent: usize,
}

/// The guard's metrics.
#[derive(Debug)]
pub(crate) struct Metrics {
    program: Program,
    is_daemon_up: Arc<AtomicBool>,
    last: Mutex<(Instant, Snapshot)>,
}

impl Metrics {
    /// Of a guard that begins to work.
    pub fn new(program: Program, is_daemon_up: Arc<AtomicBool>) -> Self {
        Self { program, is_daemon_up, last: Mutex::new((Instant::now(), Snapshot::default())) }
    }

    /// Publishes the snapshot of a heartbeat.
    pub fn publish(&self, snapshot: Snapshot) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = (Instant::now(), snapshot);
    }

    fn last(&self) -> (Duration, Snapshot) {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        (last.0.elapsed(), last.1.clone())
    }
}

impl Pages for Metrics {
    fn metrics(&self) -> Exposition {
        let mut exposition = Exposition::default();
        self.program.expose(&mut exposition);
        let (age, snapshot) = self.last();
        snapshot.expose(&mut exposition);
        exposition.set(&DAEMON_UP, u64::from(self.is_daemon_up.load(Ordering::Relaxed)));
        exposition.set(&BEAT_AGE, age.as_secs_f64());
        exposition
    }

    fn probe(&self, probe: Probe) -> Health {
        health(probe, self.last().0, self.is_daemon_up.load(Ordering::Relaxed))
    }
}

impl Snapshot {
    fn expose(&self, exposition: &mut Exposition) {
        let Self { counts, held, armed, not_armed, not_held, brakes, reports, .. } = self;
        let Self { lent, budget_left, budget_spent, is_watched, watchdog_restarts, .. } = self;
        exposition.set(&HELD, *held);
        exposition.set(&HOLDS, counts.holds);
        let mut continued = exposition.family(&CONTINUED);
        counts.continued.iter().for_each(|(state, count)| continued.add([state], *count));
        exposition.set(&HOLD_SECONDS, &counts.hold_seconds);
        exposition.set(&RAISES, counts.raises);
        let mut refusals = exposition.family(&REFUSALS);
        counts.refusals.iter().for_each(|(reason, count)| refusals.add([reason], *count));
        exposition.set(&LATE_RAISES, counts.late_raises);
        exposition.set(&LENT, *lent);
        exposition.set(&RETURNS, counts.returns);
        let mut refusals = exposition.family(&RETURN_REFUSALS);
        counts.return_refusals.iter().for_each(|(reason, count)| refusals.add([reason], *count));
        let ReportCounts { accepted, rejected, dropped } = *reports;
        let mut of = exposition.family(&REPORTS);
        for (result, count) in [("accepted", accepted), ("rejected", rejected), ("dropped", dropped)] {
            of.add([result], count);
        }
        let mut of = exposition.family(&NOT_HELD);
        not_held.iter().for_each(|(reason, count)| of.add([reason], *count));
        exposition.set(&BRAKES, *brakes);
        exposition.set(&ARMED, *armed);
        let mut of = exposition.family(&NOT_ARMED);
        not_armed.iter().for_each(|(reason, count)| of.add([reason], *count));
        exposition.set(&BUDGET_LEFT, *budget_left);
        exposition.set(&BUDGET_SPENT, *budget_spent);
        exposition.set(&WATCHDOG_UP, u64::from(*is_watched));
        exposition.set(&WATCHDOG_RESTARTS, *watchdog_restarts);
    }
}

/// The answer to a probe. Without a daemon the guard works on, and learns of no further container.
fn health(probe: Probe, silence: Duration, is_daemon_up: bool) -> Health {
    match probe {
        Probe::Live | Probe::Ready if silence > SILENCE_MAX => {
            Err(format!("no heartbeat for {} s: the guard is stuck and holds nothing", silence.as_secs())
                .into())
        }
        Probe::Ready if !is_daemon_up => {
            Err("the daemon is away: containers that start now are not guarded".into())
        }
        Probe::Live | Probe::Ready | Probe::Startup => Ok("guarding".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use kwitness_service::metrics::{Format, breaches, in_page};

    use super::*;

    #[test]
    fn probes_are_about_the_heartbeat_and_only_readiness_about_the_daemon() {
        for probe in [Probe::Live, Probe::Ready, Probe::Startup] {
            assert!(health(probe, SILENCE_MAX, true).is_ok());
            assert_eq!(health(probe, SILENCE_MAX, false).is_ok(), probe != Probe::Ready, "{probe:?}");
            let silence = SILENCE_MAX + Duration::from_millis(1);
            assert_eq!(health(probe, silence, true).is_ok(), probe == Probe::Startup, "{probe:?}");
        }
    }

    #[test]
    fn counts_are_fields_of_the_log() {
        let refusals = BTreeMap::from([("atCeiling", 2), ("gone", 1)]);
        let counts = Counts { holds: 4, raises: 1, refusals, ..Counts::default() };
        let expected = "holds=4 raises=1 late_raises=0 returns=0 refused_atCeiling=2 refused_gone=1";
        assert_eq!(counts.to_string(), expected);
    }

    #[test]
    fn a_scrape_has_what_was_published() {
        let is_up = Arc::new(AtomicBool::new(true));
        let metrics = Metrics::new(Program::new(Arc::default()), is_up);
        let mut snapshot = Snapshot { armed: 2, budget_left: 9, is_watched: true, ..Snapshot::default() };
        snapshot.not_armed.insert("full", 3);
        snapshot.not_held.push(("traced", 4));
        snapshot.counts.refusals.insert("atCeiling", 5);
        snapshot.counts.return_refusals.insert("limitChanged", 6);
        snapshot.reports.dropped = 7;
        snapshot.counts.hold_seconds.observe(0.3);
        metrics.publish(snapshot);
        let text = metrics.metrics().text(Format::Prometheus);
        for metric in CATALOG {
            assert!(text.contains(&format!("\n{}", metric.name)), "{} is not in {text}", metric.name);
        }
        for line in [
            "kwitness_guard_armed_containers 2",
            "kwitness_guard_not_armed_containers{reason=\"full\"} 3",
            "kwitness_guard_not_held_total{reason=\"traced\"} 4",
            "kwitness_guard_refusals_total{reason=\"atCeiling\"} 5",
            "kwitness_guard_return_refusals_total{reason=\"limitChanged\"} 6",
            "kwitness_guard_reports_total{result=\"dropped\"} 7",
            "kwitness_guard_hold_seconds_bucket{le=\"0.5\"} 1",
            "kwitness_guard_continued_total{state=\"gone\"} 0",
            "kwitness_guard_daemon_up 1",
            "kwitness_guard_watchdog_up 1",
        ] {
            assert!(text.contains(&format!("\n{line}\n")), "{line} is not in {text}");
        }
    }

    /// `cargo xtask metrics` writes the table anew.
    #[test]
    fn the_reference_page_has_every_metric() {
        assert_eq!(breaches(CATALOG), Vec::<String>::new());
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
        let text = fs::read_to_string(&page).unwrap();
        let expected = in_page(&text, "guard", CATALOG).expect("marks around the table");
        if std::env::var_os("KWITNESS_BLESS").is_some() {
            fs::write(&page, expected).unwrap();
        } else {
            assert_eq!(text, expected, "{} is not up to date", page.display());
        }
    }
}
