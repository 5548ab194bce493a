//! A timeline on a terminal: the answers, a chart of one line per track, and the events.

use crate::output::{Format, Output};
use crate::table::{Cell, Fit, Table, beginning, wrap};
use crate::time::Times;
use kwitness_api::Timestamp;
use kwitness_api::text::escape;
use unicode_width::UnicodeWidthStr as _;

use super::micros::Micros;
use super::model::{Style, Timeline, Track};

/// Of a chart that goes nowhere near a terminal.
const WIDTH: usize = 80;
/// The most columns of a track's name.
const NAME: usize = 16;

/// Writes it.
pub fn write(out: &mut Output, timeline: &Timeline, times: Times) -> anyhow::Result<()> {
    let limit = out.width(Format::Table);
    for line in lines(timeline, times, limit) {
        out.line(&line)?;
    }
    out.text(&events(timeline, times, limit))?;
    Ok(())
}

/// Everything but the events, for a terminal of that width.
pub fn lines(timeline: &Timeline, times: Times, limit: Option<usize>) -> Vec<String> {
    let width = limit.unwrap_or(WIDTH);
    let at = |micros: Micros| {
        let time = Timestamp::from_unix_nanos(micros.saturating_mul(1000));
        (timeline.to > 0).then_some(time)
    };
    let node = if timeline.node.is_empty() { String::new() } else { format!(" on {}", timeline.node) };
    let mut lines = wrap(&format!("{}{node}", timeline.subject), "", width);
    let (first, last) = (times.show(at(timeline.from)), times.show_alone(at(timeline.to)));
    lines.extend(wrap(&format!("{first} to {last}, {} events", timeline.events.len()), "", width));
    lines.push(String::new());
    for answer in &timeline.answers {
        lines.extend(wrap(&answer.what, "", width));
        for (label, fact) in &answer.facts {
            let mut wrapped = wrap(fact, &format!("  {:<9}", ""), width);
            if let Some(first) = wrapped.first_mut() {
                first.replace_range(..11, &format!("  {label:<9}"));
            }
            lines.extend(wrapped);
        }
        lines.push(String::new());
    }
    if timeline.answers.is_empty() {
        lines.extend([timeline.without_answers().to_owned(), String::new()]);
    }
    if timeline.to > timeline.from {
        lines.extend(chart(timeline, width));
        lines.push(String::new());
    }
    lines
}

fn chart(timeline: &Timeline, width: usize) -> Vec<String> {
    let columns = width.saturating_sub(NAME + 2).max(8);
    let mut lines: Vec<_> = timeline.tracks.iter().map(|track| bar(timeline, track, columns)).collect();
    lines.extend(wrap("─ cgroup  ━ running  L limit  V verdict  ! failure  X OOM kill  ? gap", "", width));
    lines
}

fn bar(timeline: &Timeline, track: &Track, columns: usize) -> String {
    let span = (timeline.to - timeline.from).max(1);
    let column = |at: Micros| {
        let last = columns as i64 - 1;
        ((at.clamp(timeline.from, timeline.to) - timeline.from) as i128 * i128::from(last) / i128::from(span))
            as usize
    };
    let mut bar = vec![' '; columns];
    for (style, character) in [(Style::Notice, '─'), (Style::Life, '━'), (Style::Gap, '?')] {
        for span in track.lanes.iter().flatten().filter(|span| span.style == style) {
            bar[column(span.from)..=column(span.to)].fill(character);
        }
    }
    // What is worse hides what is better.
    let rank = |character| "LV!X".find(character).map_or(0, |rank| rank + 1);
    for mark in &track.marks {
        let character = match (mark.style, &*mark.name) {
            (Style::Bad, "OOMKilled") => 'X',
            (Style::Bad, _) => '!',
            (Style::Limit, _) => 'L',
            _ => 'V',
        };
        let place = &mut bar[column(mark.at)];
        if rank(character) > rank(*place) {
            *place = character;
        }
    }
    let bar: String = bar.into_iter().collect();
    let name = escape(&track.name);
    let name = beginning(&name, NAME);
    let pad = NAME.saturating_sub(name.width());
    format!("{name}{:pad$}  {}", "", bar.trim_end())
}

fn events(timeline: &Timeline, times: Times, limit: Option<usize>) -> String {
    let times = if limit.is_some_and(|limit| limit < 100) { times.to_seconds() } else { times };
    // The date of its last day stands above.
    let last = Timestamp::from_unix_nanos(timeline.to.saturating_mul(1000)).to_utc();
    let times = last.map_or(times, |last| times.on_the_day_of(last));
    let mut table = Table::new(limit)
        .column(times.heading(), 8, Fit::Whole)
        .column("EVENT", 12, Fit::End(12))
        .column("SUBJECT", 0, Fit::Middle(12))
        .column("DETAIL", 0, Fit::End(31));
    let rows: Vec<Vec<Cell>> = timeline
        .events
        .iter()
        .map(|row| {
            vec![times.show(row.time).into(), (&row.kind).into(), (&row.subject).into(), (&row.detail).into()]
        })
        .collect();
    table.fit(&rows);
    let mut text = table.header();
    rows.iter().for_each(|row| text += &table.line(row));
    text
}
