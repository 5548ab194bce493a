//! The chart for a terminal: the containers below each other on one time line.

use std::time::Duration;

use super::{Chart, Mark, Panel, Point, Unit};

/// Columns of the time line; with the axis before it, a line has 78.
const COLUMNS: usize = 68;
const ROWS: usize = 9;
/// Eighths of a cell, from one to seven, and the whole.
const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const BAR: char = '━';
const DASH: char = '╌';
const BUSY: char = '■';
const IN_FORCE: char = '✓';

pub(super) fn lines(chart: &Chart) -> Vec<String> {
    let whole = chart.duration().max(Duration::from_millis(1));
    let mut lines = Vec::new();
    for of in &chart.panels {
        lines.push(format!("{:9}{}: {}", "", of.name, of.end));
        lines.extend(panel(of, chart.unit, whole, chart.top()));
    }
    let seconds = format!("{:.0} s", whole.as_secs_f64());
    lines.push(format!("{:9}0{seconds:>width$}", "", width = COLUMNS - 1));
    let threshold = if chart.has_threshold() { format!("  {DASH} threshold") } else { String::new() };
    lines.push(format!(
        "{:9}{} usage  {BAR} limit{threshold}  {BUSY} {}  {IN_FORCE} raise in force",
        "", BLOCKS[7], chart.busy
    ));
    lines.extend(chart.notes.iter().map(|note| format!("{:9}{note}", "")));
    lines
}

fn panel(panel: &Panel, unit: Unit, whole: Duration, top: u64) -> Vec<String> {
    let columns = columns(&panel.points, whole);
    let per_row = (top / ROWS as u64).max(1);
    let mut lines = Vec::new();
    for row in (0..ROWS as u64).rev() {
        let bottom = row * per_row;
        let cells: String = columns.iter().map(|column| cell(column.as_ref(), bottom, per_row)).collect();
        let label = if row % 2 == 0 { format!("{:>7} ", unit.label(bottom)) } else { String::new() };
        lines.push(format!("{label:8}│{cells}").trim_end().to_owned());
    }
    let marks = columns.iter().map(|column| match column.map(|point| point.mark) {
        Some(Mark::Busy) => BUSY,
        Some(Mark::InForce) => IN_FORCE,
        Some(Mark::None) | None => '─',
    });
    lines.push(format!("{:8}└{}", "", marks.collect::<String>()));
    lines
}

/// The point with the highest usage of each column; without one of its own, the one before. The highest mark, too.
fn columns(points: &[Point], whole: Duration) -> Vec<Option<Point>> {
    let mut columns: Vec<Option<Point>> = vec![None; COLUMNS];
    for point in points {
        let share = point.at.as_secs_f64() / whole.as_secs_f64();
        let at = ((share * COLUMNS as f64) as usize).min(COLUMNS - 1);
        let column = &mut columns[at];
        let mark = column.map_or(point.mark, |before| before.mark.max(point.mark));
        let used = column.map_or(point.used, |before| before.used.max(point.used));
        *column = Some(Point { mark, used, ..*point });
    }
    let last = columns.iter().rposition(Option::is_some).unwrap_or_default();
    for at in 1..=last {
        columns[at] = columns[at].or(columns[at - 1]);
    }
    columns
}

/// What stands in a column between `bottom` and a row above it.
fn cell(column: Option<&Point>, bottom: u64, per_row: u64) -> char {
    let Some(point) = column else { return ' ' };
    let is_here = |level: Option<u64>| level.is_some_and(|level| (bottom..bottom + per_row).contains(&level));
    let eighths = point.used.saturating_sub(bottom).min(per_row) * 8 / per_row;
    if is_here(point.limit) {
        BAR
    } else if eighths > 0 {
        BLOCKS[eighths as usize - 1]
    } else if is_here(point.threshold) {
        DASH
    } else {
        ' '
    }
}
