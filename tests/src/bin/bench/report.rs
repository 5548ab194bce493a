//! Rows: a figure with its target, its spread and what it was compared with; as a table and as JSON.

use anstyle::{AnsiColor, Style};
use anyhow::{Context, Result};
use kwitness_tests::environment::Environment;
use serde::Serialize;

pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
pub(crate) const BAD: Style = AnsiColor::Red.on_default().bold();
pub(crate) const HEAD: Style = Style::new().bold();
pub(crate) const FAINT: Style = Style::new().dimmed();

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Target {
    AtMost(f64),
    AtLeast(f64),
    /// Reported only.
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    Reached,
    NotReached,
    /// The baseline was slower than the product, so it is no baseline.
    Invalid,
    Reported,
}

/// A baseline is invalid if three quarters of the rounds have a ratio below this: noise alone does not do that.
const INVALID_BELOW: f64 = 0.99;

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    /// The median over the rounds.
    pub(crate) value: f64,
    /// The quartiles over the rounds.
    pub(crate) spread: (f64, f64),
    /// Its unit; a ratio has none.
    pub(crate) unit: &'static str,
    pub(crate) target: Target,
    /// Whether the value is a ratio to a floor, which a product cannot beat.
    is_ratio_to_floor: bool,
    pub(crate) note: String,
}

impl Row {
    pub(crate) fn of(name: &str, rounds: &[f64], unit: &'static str, target: Target, note: String) -> Self {
        let spread = (quantile(rounds, 0.25), quantile(rounds, 0.75));
        let value = quantile(rounds, 0.5);
        Self { name: name.to_owned(), value, spread, unit, target, is_ratio_to_floor: false, note }
    }

    pub(crate) fn missing(name: &str, reason: &str) -> Self {
        // Between them is the rest of a log, which ends with what a program said last.
        let mut lines = reason.lines().map(str::trim).filter(|line| !line.is_empty());
        let first = lines.next().unwrap_or_default();
        let last = lines.next_back().map(|line| format!(" {line}")).unwrap_or_default();
        Self::of(name, &[], "", Target::None, format!("not measured: {first}{last}"))
    }

    /// A ratio to a floor, round by round.
    pub(crate) fn ratio(name: &str, product: &[f64], floor: &[f64], target: Target, note: String) -> Self {
        let ratios: Vec<_> = product.iter().zip(floor).map(|(product, floor)| product / floor).collect();
        Self { is_ratio_to_floor: true, ..Self::of(name, &ratios, "x", target, note) }
    }

    /// Whether the row counts, and whether its target is reached.
    pub(crate) fn outcome(&self) -> Outcome {
        let reached = match self.target {
            _ if self.is_ratio_to_floor && (self.spread.1.is_nan() || self.spread.1 < INVALID_BELOW) => {
                return Outcome::Invalid;
            }
            Target::AtMost(limit) => self.value <= limit,
            Target::AtLeast(limit) => self.value >= limit,
            Target::None => return Outcome::Reported,
        };
        if reached { Outcome::Reached } else { Outcome::NotReached }
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

/// A figure as the tables show it; `-` for none.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        _ if value.is_nan() => "-".to_owned(),
        0.0..10.0 => format!("{value:.3}"),
        _ => format!("{value:.1}"),
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Table {
    /// Standard output is for JSON.
    pub(crate) json: bool,
}

impl Table {
    pub(crate) fn head(self, environment: &Environment) -> Result<()> {
        let kernel = nix::sys::utsname::uname().context("ask for the kernel's name")?;
        let cpus = std::thread::available_parallelism().context("ask for the number of CPUs")?;
        let (kernel, layout, tier) =
            (kernel.release().to_string_lossy(), environment.layout, environment.tier);
        self.line(&format!(
            "{FAINT}kernel {kernel}, {cpus} CPUs, cgroups {layout:?}, tier {tier:?}, load average {}{FAINT:#}",
            load_average()?
        ));
        Ok(())
    }

    pub(crate) fn columns(self) {
        self.line(&format!(
            "{HEAD}{:<50} {:>12} {:>21} {:>10}{HEAD:#}",
            "MEASURE", "MEDIAN", "QUARTILES", "TARGET"
        ));
    }

    pub(crate) fn row(self, row: &Row) {
        let unit = row.unit;
        let target = match row.target {
            Target::AtMost(limit) => format!("<= {limit}"),
            Target::AtLeast(limit) => format!(">= {limit}"),
            Target::None => String::new(),
        };
        let (style, verdict) = match row.outcome() {
            Outcome::Reached => (GOOD, "reached"),
            Outcome::NotReached => (BAD, "NOT REACHED"),
            Outcome::Invalid => (BAD, "INVALID: slower baseline"),
            Outcome::Reported => (FAINT, ""),
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

    pub(crate) fn foot(self, rows: &[Row]) -> Result<()> {
        let count = |outcome| rows.iter().filter(|row| row.outcome() == outcome).count();
        let (reached, invalid) = (count(Outcome::Reached), count(Outcome::Invalid));
        let judged = reached + count(Outcome::NotReached);
        self.line(&format!("{HEAD}{reached} of {judged} targets reached, {invalid} rows invalid{HEAD:#}"));
        self.load()
    }

    pub(crate) fn load(self) -> Result<()> {
        self.line(&format!("{FAINT}load average at the end {}{FAINT:#}", load_average()?));
        Ok(())
    }

    pub(crate) fn line(self, text: &str) {
        if self.json {
            anstream::eprintln!("{text}");
        } else {
            anstream::println!("{text}");
        }
    }
}

/// The load of the last minute: other work distorts every figure.
fn load_average() -> Result<String> {
    let text = std::fs::read_to_string("/proc/loadavg").context("read /proc/loadavg")?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}

/// The rows for machines, one object a line.
pub(crate) fn print_json(rows: &[Row]) -> Result<()> {
    #[derive(Serialize)]
    struct Judged<'a> {
        #[serde(flatten)]
        row: &'a Row,
        outcome: Outcome,
    }
    for row in rows {
        let judged = Judged { row, outcome: row.outcome() };
        println!("{}", serde_json::to_string(&judged).context("write a row as JSON")?);
    }
    Ok(())
}
