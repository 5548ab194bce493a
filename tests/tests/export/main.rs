//! `kwitness export` and a real OpenTelemetry Collector: a storm of containers, while each of both is stopped and started; and metrics.

mod metrics;

use std::collections::BTreeSet;

use kwitness_tests::alone;
use kwitness_tests::otel::{Collector, Exported, Exporter};
use kwitness_tests::outage::{Lived, Storm};
use kwitness_tests::prelude::*;

/// Lives between two incidents, at least.
const LIVES: usize = 20;
/// The smallest bound on what the journal keeps.
const WINDOW: usize = 1024;

fn main() -> Result<()> {
    handmade::become_container_if_requested()?;
    let ctx = TestContext::new()?;
    let cases = alone![
        nothing_is_missing_or_double,
        what_the_journal_did_not_keep_is_a_gap,
        metrics::metrics_are_those_of_a_scrape,
    ];
    suite::run(ctx, cases)
}

/// Whether each of these lives has come to its end.
fn are_over(lived: &[Lived], received: &[Exported]) -> bool {
    let deleted = received.iter().filter(|record| record.name == "kwitness.container.deleted");
    let deleted: BTreeSet<_> = deleted.filter_map(|record| record.attributes.get("container.id")).collect();
    lived.iter().all(|lived| deleted.contains(&lived.id))
}

/// The numbers of the journal that the records stand for, each once: those of events, and those that gaps of this watcher have in place
/// of events. Every number from the first to the last is among them.
fn check_numbers(received: &[Exported]) -> Result<()> {
    let mut numbers = Vec::new();
    for record in received {
        match (record.number("kwitness.gap.first_seq"), record.number("kwitness.gap.last_seq")) {
            (Some(first), Some(last)) => numbers.extend(first..=last),
            _ => numbers.push(record.number("kwitness.seq").context("a record without a number")?),
        }
    }
    numbers.sort_unstable();
    let jump = numbers.windows(2).find(|pair| pair[0] + 1 != pair[1]);
    ensure!(jump.is_none(), "double or missing: {jump:?}");
    let uids: BTreeSet<_> = received.iter().map(|record| record.attributes.get("log.record.uid")).collect();
    ensure!(uids.len() == received.len(), "{} records have {} UIDs", received.len(), uids.len());
    Ok(())
}

/// The collector is stopped in the storm and started again; then the exporter is.
async fn nothing_is_missing_or_double(ctx: &TestContext) -> Result<()> {
    let kubepods = Kubepods::make(&ctx.environment)?;
    ctx.with_agent(&[], async |agent| {
        let mut collector = Collector::start(&ctx.environment).await?;
        let mut exporter = Exporter::start(&ctx.environment, agent, &collector)?;
        let storm = Storm::begin(kubepods);
        collector.wait_until("the first records", |received| !received.is_empty()).await?;
        storm.more(LIVES).await?;
        collector.stop()?;
        storm.more(LIVES).await?;
        collector.start_again().await?;
        storm.more(LIVES).await?;
        exporter.stop()?;
        storm.more(LIVES).await?;
        exporter = Exporter::start(&ctx.environment, agent, &collector)?;
        storm.more(LIVES).await?;
        let (_kubepods, lived) = storm.end()?;
        let received =
            collector.wait_until("the last container's end", |received| are_over(&lived, received));
        let received = received.await.with_context(|| exporter.log_tail())?;
        check_numbers(&received)?;
        let gap = received.iter().find(|record| record.name == "kwitness.gap");
        ensure!(gap.is_none(), "{gap:?}");
        exporter.stop()?;
        collector.stop()
    })
    .await
}

/// While no exporter runs, more happens than the journal keeps.
async fn what_the_journal_did_not_keep_is_a_gap(ctx: &TestContext) -> Result<()> {
    let kubepods = Kubepods::make(&ctx.environment)?;
    ctx.with_agent(&[&format!("journal.replay_window={WINDOW}")], async |agent| {
        let mut collector = Collector::start(&ctx.environment).await?;
        let exporter = Exporter::start(&ctx.environment, agent, &collector)?;
        let storm = Storm::begin(kubepods);
        collector.wait_until("the first records", |received| !received.is_empty()).await?;
        exporter.stop()?;
        // At least four events each.
        storm.more(WINDOW / 4 + LIVES).await?;
        let exporter = Exporter::start(&ctx.environment, agent, &collector)?;
        let is_gap = |record: &Exported| record.name == "kwitness.gap";
        collector.wait_until("the gap", |received| received.iter().any(is_gap)).await?;
        let (_kubepods, lived) = storm.end()?;
        let last = lived.last().context("nothing lived")?;
        let last = std::slice::from_ref(last);
        let received = collector.wait_until("the last container's end", |received| are_over(last, received));
        let received = received.await.with_context(|| exporter.log_tail())?;
        check_numbers(&received)?;
        exporter.stop()?;
        collector.stop()
    })
    .await
}
