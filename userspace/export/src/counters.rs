//! What the exporter counted, for the log and for metrics. Never what it decides by.

use std::sync::atomic::{AtomicU64, Ordering};

kwitness_service::counters! {
    /// Since the exporter started.
    Counters {
        /// Events from the daemon.
        events,
        /// Of these: gaps.
        gaps,
        /// Connections to the daemon that were lost.
        daemon_lost,
        /// Records that the collector took.
        records_accepted,
        /// Records of messages that it took but for these.
        records_rejected,
        /// Records of messages that it will never take.
        records_refused,
        /// Messages that the collector took.
        requests_accepted,
        /// Attempts to send a message that failed.
        requests_failed,
        /// Times that the collector took the daemon's metrics.
        metrics_exported,
        /// Times that the daemon's metrics could not be read.
        metrics_unread,
        /// Times that the collector did not take them.
        metrics_failed,
        /// Data points of metrics that it took but for these.
        metric_points_rejected,
        /// State files that could not be written.
        state_failed,
        /// Kubernetes Events that were made.
        kubernetes_created,
        /// Those that the API server had already: an earlier exporter made them.
        kubernetes_existing,
        /// Those that the API server refused.
        kubernetes_refused,
        /// Attempts that failed, and were repeated.
        kubernetes_failed,
        /// What stands in a series: it is like one before.
        kubernetes_similar,
        /// What was left out: the pod has had too many.
        kubernetes_limited,
        /// What was left out: the pod's name is not known, its namespace is gone, or it happened too long ago.
        kubernetes_skipped,
        /// What was lost: too many wait for the API server, too much is watched, or a gap stands in its place. Exported as a gap.
        kubernetes_dropped,
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// It is that now.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The present value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the exporter's tasks and its HTTP listener share.
#[derive(Debug, Default)]
pub struct Shared {
    /// Counters.
    pub counters: Counters,
    /// Whether the daemon's events come, 0 or 1.
    pub daemon_up: Gauge,
    /// Whether the collector took the last message, 0 or 1.
    pub collector_up: Gauge,
    /// Bytes that wait for the collector.
    pub queue_bytes: Gauge,
    /// Records that do.
    pub queue_records: Gauge,
    /// The time of the oldest of them in nanoseconds since the Unix epoch; 0: there is none.
    pub oldest: Gauge,
}
