//! The rows of the table at the end: a machine's run with its log, and the count of all.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::tally::{self, Tally};
use crate::{run, signals, step};

/// Lines of a log that are shown of a machine that failed without a test to quote.
const TAIL: usize = 60;

pub(super) struct Row {
    pub(super) name: String,
    pub(super) tally: Tally,
    pub(super) time: Duration,
}

/// Runs one machine with its log, and shows what that says of a failure.
pub(super) fn row(name: &str, logs: &Path, work: impl FnOnce(&Path) -> Result<Tally>) -> Row {
    if signals::caught() {
        return Row { name: name.to_owned(), tally: Tally::failure("interrupted"), time: Duration::ZERO };
    }
    let log = logs.join(format!("{}.log", name.replace(' ', "-")));
    // What an earlier run left would be shown as this one's, should this one not get that far.
    if let Err(error) = fs::write(&log, "") {
        let tally = Tally::failure(format!("write {}: {error}", log.display()));
        return Row { name: name.to_owned(), tally, time: Duration::ZERO };
    }
    step::say("  ..", name, &format!("log in {}", log.display()));
    let start = Instant::now();
    let tally = work(&log).unwrap_or_else(|error| Tally::failure(format!("{error:#}")));
    let time = start.elapsed();
    let mark = if tally.failed == 0 { "  ok" } else { "FAIL" };
    step::say(mark, name, &format!("{}  {}", step::seconds(time), tally::closing(&tally)));
    if tally.failed > 0 {
        for reason in &tally.reasons {
            eprintln!("     {reason}");
        }
        for quote in &tally.quotes {
            eprintln!("---- {quote}\n----");
        }
        if tally.quotes.is_empty() {
            eprintln!("---- the end of {} ----\n{}\n----", log.display(), run::tail(&log, TAIL));
        }
    }
    Row { name: name.to_owned(), tally, time }
}

pub(super) fn print(rows: &[Row]) -> Tally {
    let mut total = Tally::default();
    println!("\n{:<32} {:>7} {:>7} {:>9}", "where", "passed", "failed", "time");
    for row in rows {
        let time = step::seconds(row.time);
        println!("{:<32} {:>7} {:>7} {:>9}", row.name, row.tally.passed, row.tally.failed, time.trim());
        for (target, seconds) in &row.tally.seconds {
            println!("    {target:<44} {seconds:>7} s");
        }
        for name in &row.tally.names {
            println!("    FAILED {name}");
        }
        for reason in &row.tally.reasons {
            println!("    {}", reason.lines().next().unwrap_or_default());
        }
        total += row.tally.clone();
    }
    println!("\n{}", tally::closing(&total));
    total
}
