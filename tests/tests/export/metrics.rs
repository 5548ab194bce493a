//! The daemon's metrics by way of the exporter: what the collector gets is what a scrape says.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use kwitness_tests::otel::{Collector, Exporter, Metrics};
use kwitness_tests::outage::Storm;
use kwitness_tests::prelude::*;
use kwitness_tests::scrape::scrape;

/// Containers that live before anything is compared.
const LIVES: usize = 20;
/// Only a hang takes as long.
const LIMIT: Duration = Duration::from_secs(120);

/// The second export that begins from now on: whatever it has was read after now.
async fn next_export(collector: &Collector) -> Result<Metrics> {
    let now = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?;
    let waited = wait_for("two exports of metrics", LIMIT, async || {
        let mut later = collector
            .metrics()?
            .into_iter()
            .filter(|metrics| metrics.points.values().next().is_some_and(|point| point.time > now));
        Ok(later.nth(1))
    });
    waited.await.with_context(|| collector.log_tail())
}

/// Each counter lies between two scrapes around the export, and those of events, which have come to rest, are equal to both.
pub(crate) async fn metrics_are_those_of_a_scrape(ctx: &TestContext) -> Result<()> {
    let directory = tempfile::tempdir_in("/run").context("make a directory in /run")?;
    let socket = directory.path().join("http.sock");
    let address = format!("unix://{}", socket.display());
    let kubepods = Kubepods::make(&ctx.environment)?;
    ctx.with_agent(&[&format!("http.listen={address}")], async |agent| {
        let mut collector = Collector::start(&ctx.environment).await?;
        let arguments = ["--metrics-from", &address, "--metrics-interval=1", "--node-name=node-1"];
        let exporter = Exporter::start_with(&ctx.environment, agent, &collector, &arguments)?;
        let storm = Storm::begin(kubepods);
        storm.more(LIVES).await?;
        let (_kubepods, lived) = storm.end()?;
        let deleted = |scraped: &BTreeMap<String, f64>| {
            scraped.get("kwitness_events_total{type=\"deleted\"}").copied().unwrap_or_default()
        };
        let before = wait_for("the last container's end in a scrape", LIMIT, async || {
            let scraped = scrape(&socket)?;
            Ok((deleted(&scraped) >= lived.len() as f64).then_some(scraped))
        });
        let before = before.await?;
        let exported = next_export(&collector).await.with_context(|| exporter.log_tail())?;
        let after = scrape(&socket)?;

        let counters: Vec<_> =
            exported.points.iter().filter(|(series, _)| series.contains("_total")).collect();
        ensure!(counters.len() > 20, "{exported:?}");
        for (series, point) in counters {
            let (low, high) = (before.get(series).copied().unwrap_or_default(), after.get(series).copied());
            let high = high.with_context(|| format!("{series} is not in a scrape"))?;
            ensure!((low..=high).contains(&point.value), "{series}: {low}, {}, {high}", point.value);
            let is_of_events = series.starts_with("kwitness_events_total");
            ensure!(!is_of_events || low == high, "{series} did not come to rest: {low}, {high}");
            let started = after.get("process_start_time_seconds").context("no start in a scrape")?;
            let difference = (point.start as f64 / 1e9 - started).abs();
            ensure!(difference < 1e-3, "{series} began {difference} s from the daemon's start");
        }
        let missing: Vec<_> = before
            .keys()
            .filter(|series| {
                !series.contains("_bucket")
                    && !series.contains("_seconds_sum")
                    && !series.contains("_seconds_count")
            })
            .filter(|series| !exported.points.contains_key(*series))
            .collect();
        ensure!(missing.is_empty(), "not exported: {missing:?}");
        for (key, value) in
            [("k8s.node.name", "node-1"), ("service.name", "kwitness"), ("service.instance.id", "node-1")]
        {
            ensure!(exported.resource.get(key).map(String::as_str) == Some(value), "{:?}", exported.resource);
        }

        // A metric is a state: the first export after an outage of the collector has it.
        collector.stop()?;
        collector.start_again().await?;
        next_export(&collector).await.with_context(|| exporter.log_tail())?;
        exporter.stop()?;
        collector.stop()
    })
    .await
}
