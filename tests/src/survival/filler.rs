//! What fills a container: anonymous memory, page by page, at a rate. A program that measures survival is its own filler.

use std::fmt::{self, Display};
use std::io::Write;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::Rate;
use super::pace::Pace;

/// Set in a process that is to be a filler, to what it is to fill.
pub(super) const VARIABLE: &str = "KWITNESS_TEST_FILL";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fill {
    /// So much as fast as possible.
    pub(super) start: u64,
    /// Where the rate is reported that was achieved since.
    pub(super) mark: u64,
    /// So much in all.
    pub(super) target: u64,
    /// From the start on.
    pub(super) rate: Rate,
}

/// What a filler says when it has filled up to its mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// Since its start.
    filled: u64,
    took: Duration,
}

/// If this process is to be a filler: fills, and returns true when it has.
pub fn fill_if_requested() -> Result<bool> {
    let Some(words) = std::env::var_os(VARIABLE) else { return Ok(false) };
    let words = words.to_str().with_context(|| format!("{VARIABLE} is not in UTF-8"))?;
    let fill: Fill = words.parse().with_context(|| format!("{VARIABLE}=\"{words}\""))?;
    fill.run(std::io::stdout().lock())?;
    Ok(true)
}

impl Fill {
    fn run(&self, mut report: impl Write) -> Result<()> {
        let mut memory: Vec<u8> = Vec::new();
        // Reserved, it grows where it is, and each page is touched once.
        memory.try_reserve_exact(usize::try_from(self.target)?).context("reserve memory")?;
        memory.resize(usize::try_from(self.start)?, 1);
        let mut pace = Pace::new(self.rate);
        let mut is_marked = false;
        let began = Instant::now();
        let mut filled = self.start;
        while filled < self.target {
            filled = (filled + pace.slice()).min(self.target);
            memory.resize(usize::try_from(filled)?, 1);
            let paced = filled - self.start;
            if filled >= self.mark && !std::mem::replace(&mut is_marked, true) {
                writeln!(report, "{}", Mark { filled: paced, took: began.elapsed() })?;
                report.flush()?;
            }
            std::thread::sleep(pace.rest(paced, began.elapsed()));
        }
        std::hint::black_box(&memory);
        Ok(())
    }
}

impl Display for Fill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", self.start, self.mark, self.target, self.rate.0.unwrap_or(0))
    }
}

impl FromStr for Fill {
    type Err = anyhow::Error;

    fn from_str(words: &str) -> Result<Self> {
        let [start, mark, target, rate] = numbers(words)?;
        Ok(Self { start, mark, target, rate: Rate(Some(rate).filter(|rate| *rate > 0)) })
    }
}

impl Mark {
    /// Bytes per second.
    pub(super) fn rate(&self) -> f64 {
        self.filled as f64 / self.took.as_secs_f64()
    }
}

impl Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.filled, self.took.as_nanos())
    }
}

impl FromStr for Mark {
    type Err = anyhow::Error;

    fn from_str(words: &str) -> Result<Self> {
        let [filled, nanos] = numbers(words)?;
        Ok(Self { filled, took: Duration::from_nanos(nanos) })
    }
}

fn numbers<const N: usize>(words: &str) -> Result<[u64; N]> {
    let numbers = words.split_whitespace().map(str::parse).collect::<Result<Vec<u64>, _>>();
    let numbers = numbers.with_context(|| format!("numbers in \"{words}\""))?;
    numbers.try_into().map_err(|_| anyhow::anyhow!("not {N} numbers in \"{words}\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILL: Fill = Fill { start: 8192, mark: 65_536, target: 200_000, rate: Rate(None) };

    #[test]
    fn what_a_filler_is_given_and_reports_is_read_back() {
        for fill in [FILL, Fill { rate: Rate(Some(10_000_000)), ..FILL }] {
            assert_eq!(fill.to_string().parse::<Fill>().unwrap(), fill);
        }
        let mark = Mark { filled: 5_000_000, took: Duration::from_millis(500) };
        assert_eq!(mark.to_string().parse::<Mark>().unwrap(), mark);
        assert!((mark.rate() - 1e7).abs() < 1.0, "{}", mark.rate());
        for wrong in ["", "1 2 3", "1 2 3 4 5", "1 2 3 x"] {
            wrong.parse::<Fill>().unwrap_err();
        }
    }

    #[test]
    fn a_filler_reports_once_what_it_filled_up_to_its_mark() {
        let mut report = Vec::new();
        FILL.run(&mut report).unwrap();
        let report = String::from_utf8(report).unwrap();
        assert_eq!(report.lines().count(), 1, "{report}");
        // At full speed, the first slice goes beyond.
        assert_eq!(report.parse::<Mark>().unwrap().filled, FILL.target - FILL.start);
    }
}
