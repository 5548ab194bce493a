//! The report for people, in 80 columns, and for machines, one object a line.

use anyhow::{Context as _, Result};
use kwitness_core::units;
use serde::Serialize;

use super::tally::{Cell, Holds, Step, quantile};
use super::{Rate, Report, Settings, Way};

#[derive(Serialize)]
#[serde(tag = "survival", rename_all = "lowercase")]
enum Line<'a> {
    Cell(&'a Cell),
    Hold(Step),
}

pub fn json(report: &Report) -> Result<Vec<String>> {
    let cells = report.cells.iter().map(Line::Cell);
    let holds = [&report.by_write, &report.by_runtime].into_iter().flat_map(Holds::steps).map(Line::Hold);
    let lines = cells.chain(holds).map(|line| serde_json::to_string(&line));
    lines.collect::<Result<_, _>>().context("write a line as JSON")
}

pub(super) fn of_limit(cells: &[Cell], settings: &Settings) -> Vec<String> {
    let Some(first) = cells.first() else { return Vec::new() };
    let columns = |texts: Vec<String>| texts.iter().map(|text| format!("{text:>12}")).collect::<String>();
    let at = |rate: &Rate| cells.iter().filter(|cell| cell.wanted == rate.0).collect::<Vec<_>>();
    let rates: Vec<(Rate, Vec<&Cell>)> = settings.rates.iter().map(|rate| (*rate, at(rate))).collect();
    let limit = format!("limit {}", units::bytes(first.limit));
    let heads = rates.iter().map(|(rate, _)| rate.to_string()).collect();
    let mut lines = vec![String::new(), format!("{limit:<16}{}", columns(heads))];
    for way in Way::ALL {
        let of = |(_, cells): &(Rate, Vec<&Cell>)| {
            cells.iter().find(|cell| cell.way == way).map(|cell| survived(cell)).unwrap_or_default()
        };
        lines.push(format!("{:<16}{}", way.name(), columns(rates.iter().map(of).collect())));
    }
    let achieved = |(_, cells): &(Rate, Vec<&Cell>)| {
        let median = quantile(cells.iter().filter_map(|cell| cell.achieved).collect(), 0.5);
        let is_reached = cells.iter().all(|cell| cell.reached || cell.missing.is_some());
        let mark = if is_reached { "" } else { "!" };
        median.map_or_else(|| "-".to_owned(), |rate| format!("{:.0} MB/s{mark}", rate / 1e6))
    };
    lines.push(format!("{:<16}{}", "achieved", columns(rates.iter().map(achieved).collect())));
    lines.extend(notes(cells));
    lines
}

fn survived(cell: &Cell) -> String {
    match (&cell.missing, cell.stalled) {
        (Some(_), _) => "-".to_owned(),
        (None, 0) => format!("{}/{}", cell.survived, cell.runs),
        (None, _) => format!("{}/{}*", cell.survived, cell.runs),
    }
}

fn notes(cells: &[Cell]) -> Vec<String> {
    let mut notes = Vec::new();
    let rate = |cell: &Cell| Rate(cell.wanted);
    for cell in cells.iter().filter(|cell| cell.stalled > 0) {
        notes.push(format!("  * {}, {}: {} throttled until ended", cell.name, rate(cell), cell.stalled));
    }
    if cells.iter().any(|cell| !cell.reached && cell.missing.is_none()) {
        notes.push("  ! slower than requested: as fast as this machine fills".to_owned());
    }
    let mut missing: Vec<_> =
        cells.iter().filter_map(|cell| Some((cell.name, cell.missing.as_ref()?))).collect();
    missing.dedup();
    notes.extend(missing.into_iter().map(|(name, why)| format!("  - {name}: not measured: {why}")));
    notes
}

pub(super) fn of_holds(all: [&Holds; 2]) -> Vec<String> {
    let mut lines = Vec::new();
    for holds in all.into_iter().filter(|holds| holds.runs > 0) {
        let Holds { raised_by, runs, survived, refused, .. } = holds;
        lines.push(String::new());
        lines.push(format!("guard's holds, raised by {raised_by}: {survived} of {runs} survived"));
        lines.push(format!("  {:<14}{:>12}{:>12}{:>8}", "STEP", "P50", "P99", "HOLDS"));
        for Step { step, holds, p50_us, p99_us, .. } in holds.steps() {
            let ms = |us: f64| format!("{:.2} ms", us / 1e3);
            lines.push(format!("  {step:<14}{:>12}{:>12}{holds:>8}", ms(p50_us), ms(p99_us)));
        }
        lines.extend(refused.iter().map(|(reason, count)| format!("  refused {count} times: {reason}")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::tally::{Outcome, Ran, Tally};
    use super::*;

    fn cells(rate: Rate) -> Vec<Cell> {
        let of = |way| {
            let mut tally = Tally::default();
            let outcome = match way {
                Way::Guard => Outcome::Survived,
                Way::High => Outcome::Stalled,
                Way::Pressure => {
                    tally.missing = Some("no PSI".to_owned());
                    return tally.cell(way, 64 << 20, rate);
                }
                _ => Outcome::Killed,
            };
            (0..20).for_each(|_| tally.add(Ran { outcome, achieved: Some(99e6) }));
            tally.cell(way, 64 << 20, rate)
        };
        Way::ALL.map(of).into()
    }

    #[test]
    fn the_table_says_what_was_not_reached_not_measured_and_not_ended() {
        let rates: Vec<_> = ["100", "500"].map(|rate| rate.parse::<Rate>().unwrap()).into();
        let cells: Vec<_> = rates.iter().flat_map(|rate| cells(*rate)).collect();
        let settings = Settings { runs: 20, limits: vec![64 << 20], rates, by_runtime: 0 };
        let lines = of_limit(&cells, &settings);
        let expected = "
limit 64Mi          100 MB/s    500 MB/s
nothing                 0/20        0/20
memory.high            0/20*       0/20*
poll, 1 s               0/20        0/20
poll, 100 ms            0/20        0/20
PSI trigger                -           -
memory.events           0/20        0/20
high + events           0/20        0/20
guard                  20/20       20/20
achieved             99 MB/s    99 MB/s!
  * memory.high, 100 MB/s: 20 throttled until ended
  * memory.high, 500 MB/s: 20 throttled until ended
  ! slower than requested: as fast as this machine fills
  - PSI trigger: not measured: no PSI";
        assert_eq!(lines.join("\n"), expected);
        let report = Report { cells, ..Report::default() };
        let lines = json(&report).unwrap();
        assert_eq!(lines.len(), 16);
        assert!(lines[0].starts_with("{\"survival\":\"cell\",\"way\":\"nothing\""), "{}", lines[0]);
    }
}
