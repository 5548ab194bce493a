//! The account of a series: what was requested, who interfered, what the daemon reported, step by step, for a log or for a person.

use std::time::Duration;

use anstyle::{AnsiColor, Style};
use kwitness_api::proto::{Verdict, VerdictKind};

use crate::matrix::short;

const STEP: Style = AnsiColor::Cyan.on_default().bold();
const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();
const SABOTAGE: Style = AnsiColor::Yellow.on_default();

#[derive(Debug, Default)]
pub struct Account {
    steps: usize,
    sabotaged: usize,
    /// Since the last step.
    meddled: bool,
    pause: Duration,
}

impl Account {
    /// One that lets its reader read so long after each step.
    pub fn with_pause(pause: Duration) -> Self {
        Self { pause, ..Self::default() }
    }

    pub fn steps(&self) -> usize {
        self.steps
    }

    pub fn sabotaged(&self) -> usize {
        self.sabotaged
    }

    pub(super) fn part(&self, text: &str) {
        anstream::println!("\n{STEP}▶ {text}{STEP:#}");
    }

    pub(super) fn requested(&self, text: &str) {
        anstream::println!("     {text}");
    }

    pub(super) fn meddled(&mut self, text: &str) {
        self.meddled = true;
        anstream::println!("     {SABOTAGE}{text}{SABOTAGE:#}");
    }

    pub(super) async fn judged(&mut self, step: &str, verdict: &Verdict, expected: VerdictKind) -> bool {
        let is_right = verdict.verdict() == expected;
        self.meddled |= expected != VerdictKind::InForce;
        self.head(step);
        if !is_right {
            let (said, due) = (short(verdict.verdict()), short(expected));
            anstream::println!("     {BAD}✗ {said}, should be {due}{BAD:#}: {}", verdict.reason);
            return false;
        }
        anstream::println!("     {GOOD}✓ {}{GOOD:#}: {}", short(expected), verdict.reason);
        self.count().await;
        true
    }

    /// A step went well whose outcome is not one verdict on one file.
    pub(super) async fn reported(&mut self, step: &str, outcome: &str) {
        self.head(step);
        anstream::println!("     {GOOD}✓{GOOD:#} {outcome}");
        self.count().await;
    }

    fn head(&self, step: &str) {
        anstream::println!("  {STEP}{:>2} {step}{STEP:#}", self.steps + 1);
    }

    async fn count(&mut self) {
        self.steps += 1;
        self.sabotaged += usize::from(self.meddled);
        self.meddled = false;
        tokio::time::sleep(self.pause).await;
    }
}
