//! What the runs came to: counts with their confidence, the rates that were achieved, and the times of the guard's holds.

use std::collections::BTreeMap;
use std::time::Duration;

use kwitness_guard::status::{Ended, Steps};
use serde::Serialize;

use super::{Rate, Way};

/// Of a normal distribution, for 95 %.
const Z: f64 = 1.96;
/// A rate that is not within a tenth of what was requested was not reached.
const REACHED: f64 = 0.9;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Survived,
    Killed,
    /// It was throttled until the bench ended it.
    Stalled,
}

#[derive(Clone, Copy, Debug)]
pub struct Ran {
    pub outcome: Outcome,
    /// The rate up to the filler's mark, in bytes per second; none: it was killed before.
    pub achieved: Option<f64>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    runs: Vec<Ran>,
    pub(super) missing: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    pub way: Way,
    pub name: &'static str,
    /// In bytes.
    pub limit: u64,
    /// The rate that was requested, in bytes per second; none: full speed.
    pub wanted: Option<u64>,
    pub achieved: Option<f64>,
    pub reached: bool,
    pub runs: u32,
    pub survived: u32,
    /// Those that were throttled until they were ended; the others were OOM-killed.
    pub stalled: u32,
    /// The share that survived, with 95 % confidence (Wilson's score interval).
    pub interval: (f64, f64),
    pub missing: Option<String>,
}

impl Tally {
    pub(super) fn add(&mut self, ran: Ran) {
        self.runs.push(ran);
    }

    pub(super) fn cell(&self, way: Way, limit: u64, rate: Rate) -> Cell {
        let count = |outcome| self.runs.iter().filter(|ran| ran.outcome == outcome).count() as u32;
        let (runs, survived) = (self.runs.len() as u32, count(Outcome::Survived));
        let achieved = quantile(self.runs.iter().filter_map(|ran| ran.achieved).collect(), 0.5);
        let reached = match (rate.0, achieved) {
            (Some(wanted), Some(achieved)) => achieved >= REACHED * wanted as f64,
            (None, _) => true,
            (Some(_), None) => false,
        };
        Cell {
            way,
            name: way.name(),
            limit,
            wanted: rate.0,
            achieved,
            reached,
            runs,
            survived,
            stalled: count(Outcome::Stalled),
            interval: wilson(survived, runs),
            missing: self.missing.clone(),
        }
    }
}

/// Wilson's score interval of a share, for 95 %: unlike the normal one it says something of 0 and of all.
fn wilson(successes: u32, runs: u32) -> (f64, f64) {
    if runs == 0 {
        return (0.0, 1.0);
    }
    let (n, share) = (f64::from(runs), f64::from(successes) / f64::from(runs));
    let center = share + Z * Z / (2.0 * n);
    let half = Z * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + Z * Z / n;
    (((center - half) / scale).max(0.0), ((center + half) / scale).min(1.0))
}

/// The smallest value that is not exceeded by that share of all; none: there are none.
pub(super) fn quantile(mut values: Vec<f64>, share: f64) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let rank = (share * values.len() as f64).ceil() as usize;
    values.get(rank.saturating_sub(1)).copied()
}

/// The guard's holds, by how the limit was raised.
#[derive(Clone, Debug)]
pub struct Holds {
    /// `memory.max`: by the bench's own write; `cri`: by the container runtime.
    pub raised_by: &'static str,
    pub runs: u32,
    pub survived: u32,
    /// Holds that ended without a raise, by reason.
    pub refused: BTreeMap<String, u32>,
    steps: Vec<Steps>,
    /// The writes themselves, in the bench's server.
    writes: Vec<Duration>,
    seen: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Step {
    /// As [`Holds::raised_by`].
    pub raised_by: &'static str,
    pub step: &'static str,
    pub holds: usize,
    pub p50_us: f64,
    /// With fewer than a hundred holds, the longest.
    pub p99_us: f64,
}

impl Holds {
    pub(super) fn new(raised_by: &'static str) -> Self {
        let (refused, steps, writes) = (BTreeMap::new(), Vec::new(), Vec::new());
        Self { raised_by, runs: 0, survived: 0, refused, steps, writes, seen: 0 }
    }

    pub(super) fn add(&mut self, ended: &[Ended], ran: Ran) {
        self.runs += 1;
        self.survived += u32::from(ran.outcome == Outcome::Survived);
        self.seen += ended.len() as u64;
        for ended in ended {
            match &ended.refused {
                Some(reason) => *self.refused.entry(reason.clone()).or_default() += 1,
                None => self.steps.push(ended.steps),
            }
        }
    }

    /// The next guard has held nothing yet; `writes` is how long those of this one took.
    pub(super) fn end_of_guard(&mut self, writes: &[Duration]) {
        self.writes.extend(writes);
        self.seen = 0;
    }

    /// Holds of the guard that runs now.
    pub(super) fn seen(&self) -> u64 {
        self.seen
    }

    /// Each step of the holds that ended with a raise in force; the write is part of the raise.
    pub fn steps(&self) -> Vec<Step> {
        let of = |value: fn(&Steps) -> Option<u64>| -> Vec<f64> {
            self.steps.iter().filter_map(value).map(|us| us as f64).collect()
        };
        let total = |steps: &Steps| {
            Some(
                steps.detect_us
                    + steps.decide_us
                    + steps.raise_us.unwrap_or(0)
                    + steps.verify_us.unwrap_or(0),
            )
        };
        let writes = self.writes.iter().map(|time| time.as_secs_f64() * 1e6).collect();
        let all = [
            ("detect", of(|steps| Some(steps.detect_us))),
            ("decide", of(|steps| Some(steps.decide_us))),
            ("raise", of(|steps| steps.raise_us)),
            ("of it: kernel", writes),
            ("verify", of(|steps| steps.verify_us)),
            ("hold", of(total)),
        ];
        let steps = all.into_iter().filter_map(|(step, values)| {
            let (holds, raised_by) = (values.len(), self.raised_by);
            let (p50_us, p99_us) = (quantile(values.clone(), 0.5)?, quantile(values, 0.99)?);
            Some(Step { raised_by, step, holds, p50_us, p99_us })
        });
        steps.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_honest_about_none_and_all() {
        let near = |(low, high): (f64, f64), (from, to): (f64, f64)| {
            assert!((low - from).abs() < 0.001 && (high - to).abs() < 0.001, "{low} {high}");
        };
        near(wilson(0, 20), (0.0, 0.161));
        near(wilson(20, 20), (0.839, 1.0));
        near(wilson(10, 20), (0.299, 0.701));
        near(wilson(1, 1), (0.207, 1.0));
        near(wilson(0, 0), (0.0, 1.0));
    }

    #[test]
    fn a_quantile_is_one_of_the_values() {
        let values = || (1..=20).rev().map(f64::from).collect::<Vec<_>>();
        assert_eq!((quantile(values(), 0.5), quantile(values(), 0.99)), (Some(10.0), Some(20.0)));
        assert_eq!((quantile(vec![7.0], 0.5), quantile(Vec::new(), 0.5)), (Some(7.0), None));
    }

    #[test]
    fn a_rate_that_the_machine_cannot_reach_is_not_pretended() {
        let mut tally = Tally::default();
        for achieved in [Some(120e6), Some(130e6), None] {
            tally.add(Ran { outcome: Outcome::Killed, achieved });
        }
        tally.add(Ran { outcome: Outcome::Stalled, achieved: Some(125e6) });
        let cell = tally.cell(Way::High, 64 << 20, Rate(Some(500_000_000)));
        assert_eq!((cell.runs, cell.survived, cell.stalled), (4, 0, 1));
        assert_eq!((cell.achieved, cell.reached), (Some(125e6), false));
        assert!(tally.cell(Way::High, 64 << 20, Rate(Some(130_000_000))).reached);
        assert!(tally.cell(Way::High, 64 << 20, Rate(None)).reached);
        let json = serde_json::to_value(&cell).unwrap();
        assert_eq!((&json["way"], &json["wanted"]), (&"high".into(), &500_000_000.into()));
    }

    #[test]
    fn only_holds_with_a_raise_in_force_have_times() {
        let ended = |refused: Option<&str>, detect_us| Ended {
            container_id: "c".to_owned(),
            held: vec![7],
            usage: 58 << 20,
            limit: 64 << 20,
            raised_to: None,
            unverified: false,
            refused: refused.map(str::to_owned),
            raised_ms: None,
            decided_ms: 1,
            steps: Steps { detect_us, decide_us: 20, raise_us: Some(300), verify_us: Some(4000) },
        };
        let mut holds = Holds::new("cri");
        let ran = |outcome| Ran { outcome, achieved: None };
        holds.add(&[ended(None, 1), ended(Some("tooLate"), 9)], ran(Outcome::Survived));
        holds.add(&[ended(None, 3)], ran(Outcome::Killed));
        assert_eq!((holds.runs, holds.survived, holds.seen()), (2, 1, 3));
        assert_eq!(holds.refused, BTreeMap::from([("tooLate".to_owned(), 1)]));
        let steps = holds.steps();
        let names: Vec<_> = steps.iter().map(|step| (step.step, step.holds)).collect();
        assert_eq!(names, [("detect", 2), ("decide", 2), ("raise", 2), ("verify", 2), ("hold", 2)]);
        assert_eq!((steps[0].p50_us, steps[0].p99_us), (1.0, 3.0));
        assert_eq!((steps[4].p50_us, steps[4].p99_us), (4321.0, 4323.0));
    }
}
