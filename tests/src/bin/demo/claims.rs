//! The scenes that claim something: what happens, live, then the chart and what of the claims holds.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use kwitness_tests::claims::Outcome;
use kwitness_tests::environment::{CgroupLayout, Environment, Tier};

use crate::stage;

/// Plays one, and leaves the picture in a file. Whether all that it claims is so.
pub(crate) async fn play(
    environment: &Environment,
    svg: Option<&Path>,
    scene: impl Future<Output = Result<Outcome>>,
) -> Result<bool> {
    ensure!(
        environment.layout == CgroupLayout::Unified && environment.tier == Tier::Vm,
        "needs cgroup v2 and a node of its own: shown in a guest only, with `cargo xtask demo`"
    );
    let outcome = scene.await?;
    for line in outcome.chart.lines() {
        anstream::println!("{line}");
    }
    if let Some(file) = svg {
        std::fs::write(file, outcome.chart.svg()).with_context(|| format!("write {}", file.display()))?;
    }
    stage::say(if outcome.wrong.is_empty() { "Every claim holds." } else { "A claim does not hold." });
    for wrong in &outcome.wrong {
        stage::item("WRONG", wrong);
    }
    Ok(outcome.wrong.is_empty())
}
