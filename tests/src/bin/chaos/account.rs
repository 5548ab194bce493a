//! What was reported, against what was.

use std::fmt;
use std::time::SystemTime;

use kwitness_api::Timestamp;
use kwitness_api::proto::{Gap, GapCause, event};
use kwitness_tests::events::Seen;
use kwitness_tests::outage::Lived;

/// The events of a whole life.
const WHOLE: [&str; 4] = ["created", "started", "stopped", "deleted"];
/// Failures that are shown.
const SHOWN: usize = 20;

/// What became of each life.
#[derive(Debug, Default)]
pub struct Account {
    whole: usize,
    in_gaps: usize,
    gaps: usize,
    restarts: usize,
    failures: Vec<String>,
}

impl Account {
    /// Of these lives, in what a client has received.
    pub fn of(seen: &Seen, lived: &[Lived]) -> Self {
        let gaps = gaps_of(seen);
        let (gap_count, restarts) = (seen.count("gap"), seen.count("agentRestarted"));
        let mut account = Self { gaps: gap_count, restarts, ..Self::default() };
        for life in lived {
            let milestones = seen.milestones(&life.id);
            let is_double = WHOLE.iter().any(|one| milestones.iter().filter(|seen| *seen == one).count() > 1);
            // A gap's end is when it was found, its beginning when it could begin: both are later and earlier than the loss.
            let touches = |(from, to): &(Timestamp, Timestamp)| {
                nanos(*from) <= wall(life.ended) && wall(life.began) <= nanos(*to)
            };
            if milestones == WHOLE {
                account.whole += 1;
            } else if !is_double && gaps.iter().any(touches) {
                account.in_gaps += 1;
            } else {
                account.failures.push(format!("{}: {milestones:?}", life.id));
            }
        }
        account
    }

    /// Whether each event is there exactly once, or its container's life touches a gap.
    pub fn is_balanced(&self) -> bool {
        self.failures.is_empty()
    }

    /// What is missing without a gap, or double.
    pub fn failures(&self) -> String {
        let shown = self.failures.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join("\n");
        match self.failures.len().saturating_sub(SHOWN) {
            0 => shown,
            more => format!("{shown}\nand {more} more"),
        }
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { whole, in_gaps, gaps, restarts, failures } = self;
        write!(
            f,
            "{whole} lives are whole, {in_gaps} touch one of {gaps} gaps, {} are missing or double; {restarts} restarts",
            failures.len()
        )
    }
}

/// The gaps that a life may touch; one without a beginning begins with the event before it.
fn gaps_of(seen: &Seen) -> Vec<(Timestamp, Timestamp)> {
    let mut gaps = Vec::new();
    let mut before = None;
    for event in seen.events() {
        if let Some(event::Kind::Gap(gap)) = &event.kind
            && may_cost_a_life(gap)
            && let (Some(from), Some(to)) = (gap.from.or(before), gap.to)
        {
            gaps.push((from, to));
        }
        before = event.time;
    }
    gaps
}

/// Where limit writes are seen by what ends with the daemon, each outage is a gap of them alone.
fn may_cost_a_life(gap: &Gap) -> bool {
    let only_limits = gap.capabilities.iter().all(|capability| capability == "limit_write");
    gap.cause() != GapCause::AgentDown || !only_limits
}

fn nanos(time: Timestamp) -> i128 {
    i128::from(time.to_unix_nanos())
}

fn wall(time: SystemTime) -> i128 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i128::try_from(since.as_nanos()).unwrap_or(i128::MAX)
}
