//! The bench of survival, with one run of each way: that it measures, not what.

use kwitness_tests::prelude::*;
use kwitness_tests::survival::{self, Rate, Report, Settings, Stage};

/// Nothing raises: killed. The guard raises: survived. The others may be in time or not.
pub(crate) async fn bench(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_both(&[], async |node, agent| {
        let rates = vec![Rate(Some(100_000_000))];
        let settings = Settings { runs: 1, limits: vec![64 << 20], rates, by_runtime: 1 };
        let environment = &ctx.environment;
        let stage = Stage { environment, node, agent, handler: ctx.combination.handler };
        let mut report = Report::default();
        survival::measure(stage, &settings, &mut report, |line| eprintln!("{line}")).await?;
        let wrong = report.wrong();
        ensure!(wrong.is_empty(), "{wrong:?}");
        let steps = report.by_write.steps();
        ensure!(steps.len() == 6, "steps of the holds are missing: {steps:?}");
        ensure!(report.by_runtime.runs == 1, "{:?}", report.by_runtime);
        Ok(())
    })
    .await
}
