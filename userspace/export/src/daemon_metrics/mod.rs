//! The daemon's own metrics as OTLP metrics.
//!
//! ```text
//!  every interval: scrape (the daemon's /metrics) ──▶ text ──▶ convert ──▶ Export, once
//! ```
//!
//! The page that Prometheus scrapes is read, rather than something of another form: the daemon has nothing more to serve, its bounds on
//! series hold here, too, and both ways lead to the same names and values. Nothing waits for a collector that is away: a metric is a
//! state, its counters are cumulative, and the next export has what one that failed would have had.

mod convert;
mod scrape;
mod text;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use opentelemetry_proto::tonic::resource::v1::Resource;
use tokio::time::{Instant, MissedTickBehavior};

use crate::collector::{Collector, short, words};
use crate::counters::Shared;

pub use scrape::Source;
use text::Family;

/// What to export, and how often.
#[derive(Clone, Debug)]
pub struct MetricsOptions {
    /// Where the daemon serves `/metrics`.
    pub source: Source,
    /// From one export to the next.
    pub interval: Duration,
}

/// Exports the daemon's metrics.
#[derive(Debug)]
pub struct MetricsExporter {
    options: MetricsOptions,
    resource: Resource,
    collector: Collector,
    shared: Arc<Shared>,
}

impl MetricsExporter {
    /// To that collector, with that resource for all.
    pub fn new(
        options: MetricsOptions,
        resource: Resource,
        collector: Collector,
        shared: Arc<Shared>,
    ) -> Self {
        Self { options, resource, collector, shared }
    }

    /// Exports for as long as it runs. A fleet's exporters that start together do not export together: the first time is by chance.
    pub async fn run(self) -> Infallible {
        let interval = self.options.interval;
        let part = f64::from(getrandom::u32().unwrap_or(0)) / f64::from(u32::MAX);
        let mut ticks = tokio::time::interval_at(Instant::now() + interval.mul_f64(part), interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The same error is logged once.
        let mut logged = String::new();
        loop {
            ticks.tick().await;
            match self.export().await {
                Ok(is_exported) if logged.is_empty() || !is_exported => {}
                Ok(_) => {
                    tracing::info!("the daemon's metrics are exported again");
                    logged.clear();
                }
                Err(error) if error == logged => {}
                Err(error) => {
                    tracing::warn!(
                        error,
                        "the daemon's metrics were not exported: the next export will have them"
                    );
                    logged = error;
                }
            }
        }
    }

    /// Once, unless what answers is a standby; whether it was exported. What failed is counted.
    pub(crate) async fn export(&self) -> Result<bool, String> {
        let counters = &self.shared.counters;
        let scraped = self.options.source.scrape().await.and_then(|page| {
            text::parse(&page).map_err(|line| format!("line {line} of the page is no metric"))
        });
        let families = scraped.map_err(|error| {
            counters.metrics_unread.count();
            format!("scrape {}: {}", self.options.source, short(&error))
        })?;
        // While a rollout has two pods on the node, the address leads to either: the next time it is the daemon's.
        if is_standby(&families) {
            return Ok(false);
        }
        for message in convert::messages(families, &self.resource, crate::exporter::now()) {
            let (connection, request) = self.collector.call(message);
            let answer = MetricsServiceClient::new(connection).export(request).await.map_err(|status| {
                counters.metrics_failed.count();
                words(&status)
            })?;
            let partial = answer.into_inner().partial_success.unwrap_or_default();
            let rejected = u64::try_from(partial.rejected_data_points).unwrap_or(0);
            counters.metric_points_rejected.add(rejected);
            if rejected > 0 {
                tracing::warn!(
                    rejected,
                    reason = short(&partial.error_message),
                    "the collector rejected metrics"
                );
            }
        }
        counters.metrics_exported.count();
        Ok(true)
    }
}

/// Whether a page is of a process that waits for the daemon's end.
fn is_standby(families: &[Family]) -> bool {
    let of_standby = families.iter().filter(|family| family.name == "kwitness_standby");
    of_standby.flat_map(|family| &family.samples).any(|sample| sample.value == "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standby_is_not_the_daemon() {
        let is = |page: &str| is_standby(&text::parse(page).unwrap());
        let page = |value: u8| {
            format!(
                "# TYPE kwitness_build_info gauge\nkwitness_build_info 1\n# TYPE kwitness_standby gauge\nkwitness_standby {value}\n"
            )
        };
        assert!(is(&page(1)));
        assert!(!is(&page(0)) && !is("kwitness_up 1\n") && !is(""));
    }
}
