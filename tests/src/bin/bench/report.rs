//! Rows: a figure with its target, its spread and what it was compared with; as a table and as JSON.

use anstyle::{AnsiColor, Style};
use anyhow::{Context, Result};
use kwitness_tests::environment::Environment;
use serde::Serialize;

const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();
const HEAD: Style = Style::new().bold();
const FAINT: Style = Style::new().dimmed();

/// What a figure must be.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Target {
    /// Not more than that.
    AtMost(f64),
    /// Not less than that.
    AtLeast(f64),
    /// For information only.
    None,
}

/// A figure.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    /// What was measured.
    pub(crate) name: String,
    /// The median over the rounds.
    pub(crate) value: f64,
    /// The quartiles over the rounds.
    pub(crate) spread: (f64, f64),
    /// Its unit; a ratio has none.
    pub(crate) unit: &'static str,
    /// What it must be.
    pub(crate) target: Target,
    /// What it rests on.
    pub(crate) note: String,
}

impl Row {
    /// A figure from its rounds.
    pub(crate) fn of(name: &str, rounds: &[f64], unit: &'static str, target: Target, note: String) -> Self {
        let spread = (quantile(rounds, 0.25), quantile(rounds, 0.75));
        Self { name: name.to_owned(), value: quantile(rounds, 0.5), spread, unit, target, note }
    }

    /// Whether the target is reached; none if there is none.
    pub(crate) fn reached(&self) -> Option<bool> {
        match self.target {
            Target::AtMost(limit) => Some(self.value <= limit),
            Target::AtLeast(limit) => Some(self.value >= limit),
            Target::None => None,
        }
    }
}

/// The value below which that share of the values lies.
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = (sorted.len().saturating_sub(1)) as f64 * share;
    let (low, high) = (place.floor() as usize, place.ceil() as usize);
    match (sorted.get(low), sorted.get(high)) {
        (Some(low_value), Some(high_value)) => low_value + (high_value - low_value) * (place - low as f64),
        _ => f64::NAN,
    }
}

/// The table for people.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table {
    /// Standard output is for JSON.
    pub(crate) json: bool,
}

impl Table {
    /// Where it is measured, and the table's head.
    pub(crate) fn head(self, environment: &Environment) -> Result<()> {
        let kernel = nix::sys::utsname::uname().context("ask for the kernel's name")?;
        let cpus = std::thread::available_parallelism().context("ask for the number of CPUs")?;
        let (kernel, layout, tier) =
            (kernel.release().to_string_lossy(), environment.layout, environment.tier);
        self.line(&format!(
            "{FAINT}kernel {kernel}, {cpus} CPUs, cgroups {layout:?}, tier {tier:?}{FAINT:#}"
        ));
        self.line(&format!(
            "{HEAD}{:<50} {:>12} {:>21} {:>10}{HEAD:#}",
            "MEASURE", "MEDIAN", "QUARTILES", "TARGET"
        ));
        Ok(())
    }

    /// One line, and one that says what it rests on.
    pub(crate) fn row(self, row: &Row) {
        let unit = row.unit;
        let number =
            |value: f64| if value.abs() < 10.0 { format!("{value:.3}") } else { format!("{value:.1}") };
        let target = match row.target {
            Target::AtMost(limit) => format!("<= {limit}"),
            Target::AtLeast(limit) => format!(">= {limit}"),
            Target::None => String::new(),
        };
        let (style, verdict) = match row.reached() {
            Some(true) => (GOOD, "reached"),
            Some(false) => (BAD, "NOT REACHED"),
            None => (FAINT, ""),
        };
        let (low, high) = row.spread;
        let value = format!("{} {unit}", number(row.value));
        let spread = format!("{} .. {}", number(low), number(high));
        self.line(&format!(
            "{:<50} {value:>12} {spread:>21} {target:>10} {style}{verdict}{style:#}",
            row.name
        ));
        self.line(&format!("  {FAINT}{}{FAINT:#}", row.note));
    }

    /// The sum.
    pub(crate) fn foot(self, rows: &[Row]) {
        let judged = rows.iter().filter_map(Row::reached).count();
        let reached = rows.iter().filter_map(Row::reached).filter(|reached| *reached).count();
        self.line(&format!("{HEAD}{reached} of {judged} targets reached{HEAD:#}"));
    }

    fn line(self, text: &str) {
        if self.json {
            anstream::eprintln!("{text}");
        } else {
            anstream::println!("{text}");
        }
    }
}

/// The rows for machines, one object a line.
pub(crate) fn print_json(rows: &[Row]) -> Result<()> {
    #[derive(Serialize)]
    struct Judged<'a> {
        #[serde(flatten)]
        row: &'a Row,
        reached: Option<bool>,
    }
    for row in rows {
        let judged = Judged { row, reached: row.reached() };
        println!("{}", serde_json::to_string(&judged).context("write a row as JSON")?);
    }
    Ok(())
}
