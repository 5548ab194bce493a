//! What a demo claims, and whether it is so.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::chart::Chart;

#[derive(Clone, Debug)]
pub struct Outcome {
    pub chart: Chart,
    pub wrong: Vec<String>,
}

impl Outcome {
    /// For a test: prints the chart, and fails unless it can be shown and every claim holds.
    pub fn check(&self) -> Result<()> {
        for line in self.chart.lines() {
            println!("{line}");
            ensure!(line.chars().count() <= 80, "wider than 80 columns: {line}");
        }
        ensure!(self.wrong.is_empty(), "{}", self.wrong.join("\n"));
        ensure!(self.chart.duration() > Duration::ZERO, "nothing was measured");
        ensure!(self.chart.svg().ends_with("</svg>\n"), "no picture");
        Ok(())
    }
}

/// Of claims, each with what to say if it does not hold, those that do not.
pub fn wrong(claims: impl IntoIterator<Item = (bool, String)>) -> Vec<String> {
    claims.into_iter().filter(|(holds, _)| !holds).map(|(_, wrong)| wrong).collect()
}
