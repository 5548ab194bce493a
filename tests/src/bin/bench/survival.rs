//! Survival against fill rate: `--survival`. What is measured, and how, is [`kwitness_tests::survival`]'s.

use clap::Args;
use kwitness_tests::environment::Handler;
use kwitness_tests::prelude::*;
use kwitness_tests::survival::{self, Rate, Report, Settings, Stage, table};

use crate::report::Table;

/// How much of it.
#[derive(Clone, Debug, Args)]
pub(crate) struct Survival {
    /// Measure who survives reaching a memory limit.
    #[arg(long, conflicts_with = "only")]
    pub(crate) survival: bool,
    /// Runs of each way at each rate and limit.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Memory limits.
    #[arg(long, value_delimiter = ',', default_values = ["64Mi", "1Gi"], value_parser = survival::limit)]
    limits: Vec<u64>,
    /// Fill rates in megabytes per second, or max.
    #[arg(long, value_delimiter = ',', default_values = ["10", "100", "500", "max"])]
    rates: Vec<Rate>,
}

pub(crate) async fn measure(environment: &Environment, options: &Survival, table: Table) -> Result<()> {
    ensure!(
        environment.layout == CgroupLayout::Unified && environment.tier == Tier::Vm,
        "the guard stops processes: measured in a guest only, with `cargo xtask bench --survival`"
    );
    let Survival { runs, limits, rates, .. } = options.clone();
    let settings = Settings { runs, limits, rates, by_runtime: runs };
    let driver = environment.first_combination()?.driver;
    let node = Node::start(environment, driver).await?;
    let agent = Agent::start(environment, &["log.level=warn"]).await?;
    let stage = Stage { environment, node: &node, agent: &agent, handler: Handler::Crun };
    let mut report = Report::default();
    let measured = survival::measure(stage, &settings, &mut report, |line| table.line(line)).await;
    // What took hours is not lost by what went wrong after it.
    if table.json {
        table::json(&report)?.iter().for_each(|line| println!("{line}"));
    }
    measured.with_context(|| agent.log_tail()).with_context(|| node.log_tail())?;
    agent.stop()?;
    node.shutdown().await?;
    let wrong = report.wrong();
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}
