//! The run for a terminal: both containers below each other on one time line.

use std::time::Duration;

use super::{Life, MIB, Run, Sample, State, outcome, threshold};

/// Columns of the time line; with the axis before it, a line has 78.
const COLUMNS: usize = 68;
const ROWS: usize = 9;
/// Eighths of a cell, from one to seven, and the whole.
const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const BAR: char = '━';
const DASH: char = '╌';
const HELD: char = '■';
const IN_FORCE: char = '✓';

pub(super) fn lines(run: &Run) -> Vec<String> {
    let whole = run.duration().max(Duration::from_millis(1));
    // Room above the highest limit.
    let top = run.top() / 8 * 9;
    let mut lines = Vec::new();
    for (name, life) in [("without the guard", &run.unguarded), ("with the guard", &run.guarded)] {
        lines.push(format!("{:9}{name}: {}", "", life.end()));
        lines.extend(panel(life, whole, top));
    }
    let seconds = format!("{:.0} s", whole.as_secs_f64());
    lines.push(format!("{:9}0{seconds:>width$}", "", width = COLUMNS - 1));
    lines.push(format!(
        "{:9}{} usage  {BAR} limit  {DASH} threshold  {HELD} held  {IN_FORCE} raise in force",
        "", BLOCKS[7]
    ));
    lines.extend(run.holds.iter().map(|hold| format!("{:9}{}", "", outcome(hold))));
    lines
}

/// One container.
fn panel(life: &Life, whole: Duration, top: u64) -> Vec<String> {
    let columns = columns(&life.samples, whole);
    let per_row = (top / ROWS as u64).max(1);
    let mut lines = Vec::new();
    for row in (0..ROWS as u64).rev() {
        let bottom = row * per_row;
        let cells: String = columns.iter().map(|column| cell(column.as_ref(), bottom, per_row)).collect();
        let label = if row % 2 == 0 { format!("{:>3} MiB ", bottom / MIB) } else { String::new() };
        lines.push(format!("{label:8}│{cells}").trim_end().to_owned());
    }
    let states = columns.iter().map(|column| match column.map(|sample| sample.state) {
        Some(State::Held) => HELD,
        Some(State::InForce) => IN_FORCE,
        Some(State::Free) | None => '─',
    });
    lines.push(format!("{:8}└{}", "", states.collect::<String>()));
    lines
}

/// The sample with the highest usage of each column; without one of its own, the one before. Held, if any is.
fn columns(samples: &[Sample], whole: Duration) -> Vec<Option<Sample>> {
    let mut columns: Vec<Option<Sample>> = vec![None; COLUMNS];
    for sample in samples {
        let share = sample.at.as_secs_f64() / whole.as_secs_f64();
        let at = ((share * COLUMNS as f64) as usize).min(COLUMNS - 1);
        let column = &mut columns[at];
        let state = column.map_or(sample.state, |before| before.state.max(sample.state));
        let usage = column.map_or(sample.usage, |before| before.usage.max(sample.usage));
        *column = Some(Sample { state, usage, ..*sample });
    }
    let last = columns.iter().rposition(Option::is_some).unwrap_or_default();
    for at in 1..=last {
        columns[at] = columns[at].or(columns[at - 1]);
    }
    columns
}

/// What stands in a column between `bottom` and a row above it.
fn cell(column: Option<&Sample>, bottom: u64, per_row: u64) -> char {
    let Some(sample) = column else { return ' ' };
    let is_here = |level: u64| (bottom..bottom + per_row).contains(&level);
    let eighths = sample.usage.saturating_sub(bottom).min(per_row) * 8 / per_row;
    if is_here(sample.limit) {
        BAR
    } else if eighths > 0 {
        BLOCKS[eighths as usize - 1]
    } else if is_here(threshold(sample.limit)) {
        DASH
    } else {
        ' '
    }
}
