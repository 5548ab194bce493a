//! The scene `oom`: the same work without and with the guard, live, then as a chart.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use kwitness_tests::environment::{CgroupLayout, Environment, Tier};
use kwitness_tests::oom;

use crate::stage;

/// Plays it, and leaves the picture in a file. Whether all that it claims is so.
pub(crate) async fn play(environment: &Environment, svg: Option<&Path>) -> Result<bool> {
    ensure!(
        environment.layout == CgroupLayout::Unified && environment.tier == Tier::Vm,
        "the guard stops processes: shown in a guest only, with `cargo xtask demo oom`"
    );
    let run = oom::run(environment, stage::say).await?;
    for line in run.chart() {
        anstream::println!("{line}");
    }
    if let Some(file) = svg {
        std::fs::write(file, run.svg()).with_context(|| format!("write {}", file.display()))?;
    }
    let wrong = run.wrong();
    stage::say(if wrong.is_empty() { "Every claim holds." } else { "A claim does not hold." });
    for wrong in &wrong {
        stage::item("WRONG", wrong);
    }
    Ok(wrong.is_empty())
}
