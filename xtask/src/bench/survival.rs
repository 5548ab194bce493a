//! Who survived, as a picture: a table for each memory limit, in which each share is a bar with its 95 % interval.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::step;

/// What a line of the program about survival begins with, and no other.
pub(super) const LINE: &str = "{\"survival\":";

const NAMES: f64 = 130.0;
const COLUMN: f64 = 120.0;
const ROW: f64 = 26.0;
/// From a column's left to the bar's, and from the bar's right to the next column.
const GAP: f64 = 8.0;
/// Above the first row of a table: its title, and the rates.
const HEAD: f64 = 64.0;

const STYLE: &str = "\
  svg { color-scheme: light dark; font: 13px system-ui, sans-serif; }
  .ground { fill: #ffffff; } text { fill: #1f2328; } .soft { fill: #59636e; } .title { font-weight: 600; }
  .all { fill: #cf222e; fill-opacity: .18; } .survived { fill: #1a7f37; fill-opacity: .45; }
  .interval { stroke: #59636e; stroke-width: 1.5; }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #0d1117; } text { fill: #f0f6fc; } .soft { fill: #9198a1; }
    .all { fill: #f85149; } .survived { fill: #3fb950; } .interval { stroke: #9198a1; }
  }
";

#[derive(Debug, Deserialize)]
#[serde(tag = "survival", rename_all = "lowercase")]
enum Line {
    Cell(Cell),
    /// In the table only.
    Hold(IgnoredAny),
}

#[derive(Clone, Debug, Deserialize)]
struct Cell {
    name: String,
    limit: u64,
    wanted: Option<u64>,
    achieved: Option<f64>,
    reached: bool,
    runs: u32,
    survived: u32,
    stalled: u32,
    interval: (f64, f64),
    missing: Option<String>,
}

/// Writes the lines as they are, and the picture of them.
pub(super) fn write(out: &Path, lines: &[String]) -> Result<()> {
    fs::create_dir_all(out).with_context(|| format!("create {}", out.display()))?;
    let write = |name: &str, text: String| {
        let file = out.join(name);
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))
    };
    write("survival.jsonl", lines.iter().map(|line| format!("{line}\n")).collect())?;
    let parsed = lines.iter().map(|line| serde_json::from_str(line)).collect::<Result<Vec<Line>, _>>();
    let cells = parsed.context("read what survived")?.into_iter().filter_map(|line| match line {
        Line::Cell(cell) => Some(cell),
        Line::Hold(_) => None,
    });
    write("survival.svg", draw(&cells.collect::<Vec<_>>()))?;
    step::say("  --", "survival", &format!("survival.jsonl and survival.svg in {}", out.display()));
    Ok(())
}

/// What is there, each once, in its order.
fn distinct<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut all = Vec::new();
    for value in values {
        if !all.contains(&value) {
            all.push(value);
        }
    }
    all
}

fn draw(cells: &[Cell]) -> String {
    let limits = distinct(cells.iter().map(|cell| cell.limit));
    let rates = distinct(cells.iter().map(|cell| cell.wanted));
    let names = distinct(cells.iter().map(|cell| cell.name.as_str()));
    // A row more for the rates that were achieved.
    let table = HEAD + ROW * (names.len() + 1) as f64;
    let (width, height) =
        (NAMES + COLUMN * rates.len() as f64 + 2.0 * GAP, table * limits.len() as f64 + 2.0 * GAP);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\">\n\
         <title>Processes that survived reaching their memory limit</title>\n<style>\n{STYLE}</style>\n\
         <rect class=\"ground\" width=\"{width}\" height=\"{height}\"/>\n"
    );
    for (index, limit) in limits.iter().enumerate() {
        let top = table * index as f64 + HEAD;
        text(&mut out, (GAP, top - 40.0), "title", &format!("limit {} MiB: survived", limit >> 20));
        for (column, wanted) in rates.iter().enumerate() {
            let left = NAMES + COLUMN * column as f64 + GAP;
            let of_rate: Vec<_> =
                cells.iter().filter(|cell| (cell.limit, cell.wanted) == (*limit, *wanted)).collect();
            text(&mut out, (left, top - 12.0), "title", &rate(*wanted));
            for (row, name) in names.iter().enumerate() {
                if let Some(cell) = of_rate.iter().find(|cell| cell.name == *name) {
                    bar(&mut out, (left, top + ROW * row as f64), cell);
                }
            }
            let y = top + ROW * names.len() as f64 + 17.0;
            text(&mut out, (left, y), "soft", &achieved(&of_rate));
        }
        for (row, name) in names.iter().chain([&"achieved"]).enumerate() {
            text(&mut out, (GAP, top + ROW * row as f64 + 17.0), "name", name);
        }
    }
    out.push_str("</svg>\n");
    out
}

fn rate(wanted: Option<u64>) -> String {
    wanted.map_or_else(|| "full speed".to_owned(), |rate| format!("{} MB/s", rate / 1_000_000))
}

/// The rate that the machine made of it: from the slowest way's to the fastest's.
fn achieved(cells: &[&Cell]) -> String {
    let rates = || cells.iter().filter_map(|cell| cell.achieved).map(|rate| rate / 1e6);
    let (low, high) = (rates().fold(f64::MAX, f64::min), rates().fold(0.0, f64::max));
    let is_reached = cells.iter().all(|cell| cell.reached || cell.missing.is_some());
    let not_reached = if is_reached { "" } else { " (!)" };
    match (low > high, format!("{low:.0}"), format!("{high:.0}")) {
        (true, ..) => "-".to_owned(),
        (false, low, high) if low == high => format!("{low} MB/s{not_reached}"),
        (false, low, high) => format!("{low} to {high} MB/s{not_reached}"),
    }
}

fn bar(out: &mut String, (left, top): (f64, f64), cell: &Cell) {
    let full = COLUMN - 2.0 * GAP;
    if cell.missing.is_some() {
        return text(out, (left, top + 17.0), "soft", "not measured");
    }
    let share = f64::from(cell.survived) / f64::from(cell.runs.max(1));
    let mut rect = |class: &str, width: f64| {
        // A String takes everything.
        _ = writeln!(
            out,
            "<rect class=\"{class}\" x=\"{left:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"20.0\"/>",
            top + 3.0
        );
    };
    rect("all", full);
    rect("survived", full * share);
    let (low, high) = cell.interval;
    _ = writeln!(
        out,
        "<line class=\"interval\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>",
        left + full * low,
        left + full * high,
        y = top + 21.0
    );
    let stalled = if cell.stalled > 0 { ", throttled" } else { "" };
    text(out, (left + 6.0, top + 17.0), "share", &format!("{}/{}{stalled}", cell.survived, cell.runs));
}

fn text(out: &mut String, (x, y): (f64, f64), class: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    _ = writeln!(out, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{text}</text>");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, wanted: &str, survived: u32, stalled: u32, missing: &str) -> String {
        format!(
            r#"{{"survival":"cell","way":"x","name":"{name}","limit":67108864,"wanted":{wanted},"achieved":99000000.0,"reached":{},"runs":20,"survived":{survived},"stalled":{stalled},"interval":[0.25,0.75],"missing":{missing}}}"#,
            wanted != "500000000"
        )
    }

    fn cells(lines: &[String]) -> Vec<Cell> {
        let cell = |line: &String| match serde_json::from_str(line).unwrap() {
            Line::Cell(cell) => cell,
            Line::Hold(_) => panic!("{line}"),
        };
        lines.iter().map(cell).collect()
    }

    #[test]
    fn a_bar_is_as_long_as_the_share_and_has_its_interval() {
        let drawn = draw(&cells(&[line("guard", "100000000", 10, 0, "null")]));
        for part in [
            r#"<rect class="all" x="138.0" y="67.0" width="104.0" height="20.0"/>"#,
            r#"<rect class="survived" x="138.0" y="67.0" width="52.0" height="20.0"/>"#,
            r#"<line class="interval" x1="164.0" x2="216.0" y1="85.0" y2="85.0"/>"#,
            ">10/20<",
            ">limit 64 MiB: survived<",
            ">100 MB/s<",
            ">99 MB/s<",
        ] {
            assert!(drawn.contains(part), "{part} in {drawn}");
        }
    }

    #[test]
    fn what_was_not_measured_not_ended_or_not_reached_is_drawn_as_that() {
        let drawn = draw(&cells(&[
            line("psi & <x>", "null", 0, 0, "\"no PSI\""),
            line("high", "null", 0, 20, "null"),
            line("high", "500000000", 0, 0, "null"),
        ]));
        for part in
            [">not measured<", ">psi &amp; &lt;x><", ">0/20, throttled<", ">99 MB/s (!)<", ">full speed<"]
        {
            assert!(drawn.contains(part), "{part} in {drawn}");
        }
        assert!(!draw(&[]).contains("NaN"));
    }

    #[test]
    fn lines_are_kept_and_drawn() {
        let out = tempfile::tempdir().unwrap();
        let hold =
            r#"{"survival":"hold","raised_by":"cri","step":"raise","holds":20,"p50_us":1.0,"p99_us":2.0}"#;
        let lines = [line("guard", "null", 20, 0, "null"), hold.to_owned()];
        assert!(lines.iter().all(|line| line.starts_with(LINE)));
        write(out.path(), &lines).unwrap();
        let read = |name: &str| fs::read_to_string(out.path().join(name)).unwrap();
        assert_eq!(read("survival.jsonl"), format!("{}\n{hold}\n", lines[0]));
        assert!(read("survival.svg").contains(">20/20<"));
    }
}
