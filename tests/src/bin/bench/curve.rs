//! Curves: one figure at several sizes, with the exponent of its growth; as a table of at most 80 columns and as JSON.
//!
//! Owns what a curve may grow like and how it is shown. Never measures.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kwitness_tests::fit;
use serde::Serialize;

use crate::report::{BAD, FAINT, GOOD, HEAD, Table, number, quantile};

/// Nothing is wider.
const COLUMNS: usize = 80;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    Linear,
    Flat,
    /// Reported only.
    None,
}

impl Bound {
    const fn exponent(self) -> Option<f64> {
        match self {
            Self::Linear => Some(1.0),
            Self::Flat => Some(0.0),
            Self::None => None,
        }
    }
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Point {
    x: f64,
    /// The median.
    value: f64,
    /// The quartiles.
    spread: (f64, f64),
    note: String,
}

#[derive(Clone, Debug, Serialize)]
struct Missing {
    size: String,
    reason: String,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Curve {
    #[serde(rename = "curve")]
    pub(crate) name: String,
    x: &'static str,
    unit: &'static str,
    bound: Bound,
    /// The size at which the figure has a target, and the greatest value there.
    target: Option<(f64, f64)>,
    points: Vec<Point>,
    missing: Vec<Missing>,
}

impl Curve {
    pub(crate) fn new(name: &str, x: &'static str, unit: &'static str, bound: Bound) -> Self {
        Self { name: name.to_owned(), x, unit, bound, target: None, points: Vec::new(), missing: Vec::new() }
    }

    pub(crate) fn with_target(self, x: f64, limit: f64) -> Self {
        Self { target: Some((x, limit)), ..self }
    }

    /// Adds the median of the rounds at a size; without rounds nothing.
    pub(crate) fn add(&mut self, x: f64, rounds: &[f64], note: &str) {
        if rounds.is_empty() {
            return;
        }
        let [low, value, high] = [0.25, 0.5, 0.75].map(|share| quantile(rounds, share));
        self.points.push(Point { x, value, spread: (low, high), note: note.to_owned() });
        self.points.sort_by(|one, other| one.x.total_cmp(&other.x));
    }

    pub(crate) fn leave_out(&mut self, size: &str, reason: &anyhow::Error) {
        self.missing.push(Missing { size: size.to_owned(), reason: format!("{reason:#}") });
    }

    fn pairs(&self) -> Vec<(f64, f64)> {
        self.points.iter().map(|point| (point.x, point.value)).collect()
    }

    /// The sizes at which the figure has grown faster than its bound since the size before.
    fn too_fast(&self) -> Vec<f64> {
        self.bound.exponent().map(|bound| fit::faster(&self.pairs(), bound)).unwrap_or_default()
    }

    /// Whether the target is reached; none without a target, and without a point at its size.
    fn reached(&self) -> Option<bool> {
        let (x, limit) = self.target?;
        let point = self.points.iter().find(|point| point.x == x)?;
        Some(point.value <= limit)
    }

    pub(crate) fn show(&self, table: Table) {
        let Self { name, x, unit, .. } = self;
        table.line(&format!("{HEAD}{name} ({unit}) by {x}{HEAD:#}"));
        let fast = self.too_fast();
        for Point { x, value, spread: (low, high), note } in &self.points {
            let flag = if fast.contains(x) { format!("{BAD}FASTER{BAD:#} ") } else { String::new() };
            let spread = format!("{} .. {}", number(*low), number(*high));
            let text = format!("{:>10} {:>10} {spread:>23}  {flag}{note}", size(*x), number(*value));
            table.line(&text);
        }
        for Missing { size, reason } in &self.missing {
            let room = COLUMNS - 14 - size.len().max(10);
            let reason: String = reason.lines().next().unwrap_or_default().chars().take(room).collect();
            table.line(&format!("{size:>10}          - {reason}"));
        }
        let (mut words, pairs) = (Vec::new(), self.pairs());
        words.extend(fit::exponent(&pairs).map(|exponent| format!("exponent {exponent:.2}")));
        words.extend(fit::marginal(&pairs).map(|each| format!("{each:.2e} {unit} for each more")));
        let text = words.join(", ");
        let verdict = match (self.bound, fast.is_empty()) {
            (Bound::None, _) => String::new(),
            _ if self.points.len() < 2 => String::new(),
            (Bound::Linear, true) => format!("{GOOD}linear or better{GOOD:#}"),
            (Bound::Flat, true) => format!("{GOOD}flat or falling{GOOD:#}"),
            (Bound::Linear, false) => format!("{BAD}FASTER THAN LINEAR{BAD:#}"),
            (Bound::Flat, false) => format!("{BAD}RISING{BAD:#}"),
        };
        table.line(&format!("  {FAINT}{text}{FAINT:#} {verdict}"));
        if let (Some((at, limit)), Some(reached)) = (self.target, self.reached()) {
            let (style, word) = if reached { (GOOD, "reached") } else { (BAD, "NOT REACHED") };
            table.line(&format!("  target <= {limit} {unit} at {}: {style}{word}{style:#}", size(at)));
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    began: Instant,
    limit: Duration,
}

impl Budget {
    pub(crate) fn of(limit: Duration) -> Self {
        Self { began: Instant::now(), limit }
    }

    pub(crate) fn check(&self, expected: Duration) -> Result<()> {
        let is_early = self.began.elapsed() + expected <= self.limit;
        ensure!(is_early, "more than the {} s that these curves may take", self.limit.as_secs());
        Ok(())
    }
}

/// One object a line.
pub(crate) fn print_json(curves: &[Curve]) -> Result<()> {
    #[derive(Serialize)]
    struct Judged<'a> {
        #[serde(flatten)]
        curve: &'a Curve,
        exponent: Option<f64>,
        too_fast: Vec<f64>,
        reached: Option<bool>,
    }
    for curve in curves {
        let exponent = fit::exponent(&curve.pairs());
        let judged = Judged { curve, exponent, too_fast: curve.too_fast(), reached: curve.reached() };
        println!("{}", serde_json::to_string(&judged).context("write a curve as JSON")?);
    }
    Ok(())
}

pub(crate) fn foot(table: Table, curves: &[Curve]) -> Result<()> {
    let fast = curves.iter().filter(|curve| !curve.too_fast().is_empty()).count();
    let missed = curves.iter().filter(|curve| curve.reached() == Some(false)).count();
    let text = format!("{} curves, {fast} grow faster than they may, {missed} miss a target", curves.len());
    table.line(&format!("{HEAD}{text}{HEAD:#}"));
    table.load()
}

fn size(x: f64) -> String {
    if x < 10.0 { format!("{x:.1}") } else { format!("{x:.0}") }
}
