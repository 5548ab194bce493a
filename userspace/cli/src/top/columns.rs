//! The columns: what each says of a row, in how many characters, and which there is room for.

use std::time::Duration;

use anstyle::Style;
use chrono::{DateTime, Utc};
use kwitness_api::proto::VerdictKind;
use kwitness_core::units;

use super::row::{Amount, Row};
use crate::describe::{BAD, NOTICE, verdict_kind, verdict_style};
use crate::table::{Cell, Fit, Table};
use crate::text::{UNKNOWN, age, short_id};

/// Narrower terminals have no room for namespaces, nor for two spaces between columns.
const NARROW: usize = 100;

/// Columns that give way on a terminal that is narrower still, in this order: who is next, and how soon, stays.
static GIVE_WAY: [&str; 6] = ["THR", "OOM", "VERDICT", "FILL/S", "USAGE", "LIMIT"];

/// Who has less time than that is shown as urgent, or as next.
const URGENT: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(600);
/// Shares of the limit that are shown likewise.
const SHARE_URGENT: f64 = 0.95;
const SHARE_SOON: f64 = 0.8;
/// The share of throttled periods from which latency suffers visibly.
const THROTTLED: f64 = 0.25;

/// The columns for that width, and the cells of these rows.
pub(super) fn table(
    rows: &[&Row],
    width: Option<usize>,
    is_wide: bool,
    has_namespaces: bool,
    now: DateTime<Utc>,
) -> (Table, Vec<Vec<Cell>>) {
    let is_narrow = !is_wide && width.is_some_and(|width| width < NARROW);
    let has_namespaces = has_namespaces && !is_narrow;
    let mut columns = Vec::new();
    if has_namespaces {
        columns.push(("NAMESPACE", 0, Fit::Middle(9)));
    }
    columns.extend([("POD", 0, Fit::Middle(16)), ("CONTAINER", 0, Fit::Middle(9))]);
    // As wide as they become: numbers that change move no column.
    let numbers =
        [("USAGE", 6), ("LIMIT", 6), ("%LIM", 4), ("FILL/S", 7), ("LEFT", 4), ("THR", 4), ("OOM", 5)];
    columns.extend(numbers.map(|(heading, width)| (heading, width, Fit::Whole)));
    columns.push(("VERDICT", 0, Fit::End(8)));
    if is_wide {
        columns.extend(["HIGH", "CACHE", "KILLS", "QOS", "ID"].map(|heading| (heading, 0, Fit::Whole)));
    }
    let left_out = if is_narrow { left_out(&columns, width.unwrap_or(NARROW)) } else { &[] };
    let is_shown: Vec<_> = columns.iter().map(|(heading, ..)| !left_out.contains(heading)).collect();
    let shown =
        columns.into_iter().zip(&is_shown).filter_map(|(column, is_shown)| is_shown.then_some(column));
    let table = if is_narrow { Table::new(width).dense() } else { Table::new(width) };
    let table = shown.fold(table, |table, (heading, width, fit)| table.column(heading, width, fit));
    let cells = |row: &&Row| {
        let cells = cells(row, is_wide, has_namespaces, now).into_iter().zip(&is_shown);
        cells.filter_map(|(cell, is_shown)| is_shown.then_some(cell)).collect()
    };
    let cells = rows.iter().map(cells).collect();
    (table, cells)
}

/// What there is no room for, with one space between two columns.
fn left_out(columns: &[(&str, usize, Fit)], width: usize) -> &'static [&'static str] {
    let least = |(heading, least, fit): &(&str, usize, Fit)| match fit {
        Fit::Whole => heading.len().max(*least),
        Fit::Middle(least) | Fit::End(least) => *least,
    };
    let fits = |left_out: &[&str]| {
        let shown = columns.iter().filter(|(heading, ..)| !left_out.contains(heading));
        shown.map(|column| least(column) + 1).sum::<usize>() <= width + 1
    };
    (0..GIVE_WAY.len()).map(|count| &GIVE_WAY[..count]).find(|left_out| fits(left_out)).unwrap_or(&GIVE_WAY)
}

fn cells(row: &Row, is_wide: bool, has_namespaces: bool, now: DateTime<Utc>) -> Vec<Cell> {
    let limit = if is_wide { written(&row.limit) } else { short_limit(&row.limit) };
    let mut cells = Vec::new();
    if has_namespaces {
        cells.push(Cell::from(&row.names.namespace));
    }
    cells.extend([Cell::from(&row.names.pod), Cell::from(&row.names.container)]);
    cells.extend([Cell::from(rounded_amount(&row.usage)), Cell::from(limit)]);
    cells.push(share(row.share()));
    cells.push(row.fill_rate.map_or_else(|| UNKNOWN.to_owned(), rate).into());
    cells.push(time_left(row.time_to_limit));
    cells.push(throttled(row.throttled));
    cells.push(age(row.last_oom_kill, now).into());
    cells.push(row.verdict.as_ref().map_or_else(
        || Cell::from(UNKNOWN),
        |(_, verdict)| Cell::styled(verdict_kind(*verdict), verdict_style(*verdict)),
    ));
    if is_wide {
        cells.push(written(&row.high).into());
        cells.push(rounded_amount(&row.cache).into());
        cells.push(
            row.oom_kills.number().map_or_else(|| UNKNOWN.to_owned(), |kills| kills.to_string()).into(),
        );
        cells.extend([Cell::from(row.qos), Cell::from(short_id(&row.id))]);
    }
    cells
}

/// Everything that is known of a row, in a line: with the namespace, exact amounts, and why something is not known.
pub(super) fn details(row: &Row, now: DateTime<Utc>) -> String {
    let mut parts = vec![format!("{} of {}", exact(&row.usage), exact(&row.limit))];
    match (row.time_to_limit, row.fill_rate) {
        (Some(Duration::ZERO), _) => parts.push("at its limit".to_owned()),
        (Some(left), Some(rate)) => {
            parts.push(format!("{}/s: full in {}", self::rate(rate), short_time(left)))
        }
        _ => {}
    }
    if let Amount::Is(high) = row.high {
        parts.push(format!("high {}", units::bytes(high)));
    }
    if let Some(cache) = row.cache.number().filter(|cache| *cache > 0) {
        parts.push(format!("{} inactive cache", units::rounded(cache)));
    }
    match &row.verdict {
        Some((_, VerdictKind::InForce)) => parts.push("limits in force".to_owned()),
        Some((file, verdict)) => parts.push(format!("{file} {}", verdict_kind(*verdict))),
        None => {}
    }
    if row.last_oom_kill.is_some() {
        parts.push(format!("OOMKilled {} ago", age(row.last_oom_kill, now)));
    }
    format!("{}: {}", row.full_name(), parts.join(", "))
}

fn exact(amount: &Amount) -> String {
    match amount {
        Amount::Is(bytes) => units::amount(*bytes),
        Amount::Unlimited => "no limit".to_owned(),
        Amount::Absent => "unknown (no such file on this node)".to_owned(),
        Amount::Unknown(reason) => format!("unknown ({reason})"),
    }
}

/// As people write it.
fn written(amount: &Amount) -> String {
    match amount {
        Amount::Is(bytes) => units::bytes(*bytes),
        Amount::Unlimited => "max".to_owned(),
        Amount::Absent | Amount::Unknown(_) => UNKNOWN.to_owned(),
    }
}

fn short_limit(limit: &Amount) -> String {
    match limit {
        Amount::Is(bytes) => units::amount(*bytes),
        other => written(other),
    }
}

fn rounded_amount(amount: &Amount) -> String {
    amount.number().map_or_else(|| UNKNOWN.to_owned(), units::rounded)
}

fn rate(bytes: i64) -> String {
    let sign = match bytes {
        0 => return "0".to_owned(),
        1.. => '+',
        _ => '-',
    };
    format!("{sign}{}", units::rounded(bytes.unsigned_abs()))
}

/// Rounded down: who is at 100 % is at the limit.
fn percent(share: f64) -> String {
    format!("{:.0}%", (share * 100.0).floor())
}

fn share(share: Option<f64>) -> Cell {
    let Some(share) = share else { return UNKNOWN.into() };
    let style = match share {
        _ if share >= SHARE_URGENT => BAD,
        _ if share >= SHARE_SOON => NOTICE,
        _ => Style::new(),
    };
    Cell::styled(percent(share), style)
}

fn time_left(left: Option<Duration>) -> Cell {
    let Some(left) = left else { return UNKNOWN.into() };
    let style = match left {
        _ if left < URGENT => BAD.bold(),
        _ if left < SOON => NOTICE,
        _ => Style::new(),
    };
    Cell::styled(short_time(left), style)
}

/// In at most four characters, rounded down.
fn short_time(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        172_800..8_640_000 => format!("{}d", seconds / 86_400),
        _ => ">99d".to_owned(),
    }
}

fn throttled(share: Option<f64>) -> Cell {
    let Some(share) = share else { return UNKNOWN.into() };
    Cell::styled(percent(share), if share >= THROTTLED { NOTICE } else { Style::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_a_sign() {
        assert_eq!((rate(0), rate(1 << 20), rate(-512)), ("0".into(), "+1.00Mi".into(), "-512".into()));
        assert_eq!(rate(i64::MIN), "-8.00Ei");
    }

    #[test]
    fn limits_are_as_people_write_them_and_rounded_only_where_there_is_no_room() {
        assert_eq!(short_limit(&Amount::Is(64 << 20)), "64Mi");
        assert_eq!(short_limit(&Amount::Is(99_999_744)), "95.4Mi");
        assert_eq!(written(&Amount::Is(99_999_744)), "97656Ki");
        assert_eq!(short_limit(&Amount::Unlimited), "max");
        assert_eq!(short_limit(&Amount::Absent), UNKNOWN);
    }

    #[test]
    fn times_take_four_characters() {
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (7199, "119m"),
            (7200, "2h"),
            (172_800, "2d"),
            (8_640_000, ">99d"),
            (u64::MAX, ">99d"),
        ] {
            assert_eq!(short_time(Duration::from_secs(seconds)), text, "{seconds}");
        }
    }

    #[test]
    fn a_share_is_rounded_down() {
        assert_eq!((percent(0.999), percent(1.0), percent(0.0)), ("99%".into(), "100%".into(), "0%".into()));
    }
}
