//! What was reported, against what was.

use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

use kwitness_api::Timestamp;
use kwitness_api::proto::{Event, Gap, GapCause, event};
use kwitness_tests::events::{Seen, WHOLE, kind};
use kwitness_tests::outage::Lived;

const SHOWN: usize = 20;

#[derive(Debug, Default)]
pub struct Account {
    whole: usize,
    in_gaps: usize,
    gaps: usize,
    restarts: usize,
    failures: Vec<String>,
}

#[derive(Debug)]
struct Cost {
    from: i128,
    to: i128,
    /// How many records it names that have not been found missing; none: it cannot know.
    left: Option<u64>,
}

impl Account {
    pub fn of(seen: &Seen, lived: &[Lived]) -> Self {
        let mut costs = costs(seen);
        let (gap_count, restarts) = (seen.count("gap"), seen.count("agentRestarted"));
        let mut account = Self { gaps: gap_count, restarts, ..Self::default() };
        let (by_container, nothing) = (seen.by_container(), Seen(Vec::new()));
        for life in lived {
            let own = by_container.get(&life.id).unwrap_or(&nothing);
            let milestones = own.milestones(&life.id);
            if milestones == WHOLE {
                account.whole += 1;
            } else if !is_double(own) && is_paid(&mut costs, life) {
                account.in_gaps += 1;
            } else {
                account.failures.push(format!("{}: {milestones:?}", life.id));
            }
        }
        account
    }

    /// Whether each event is there exactly once, or is one of those that a gap counts.
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
            "{whole} lives are whole, {in_gaps} are in one of {gaps} gaps, {} are missing or double; {restarts} restarts",
            failures.len()
        )
    }
}

/// Whether something of a container was reported twice in one epoch: a new one begins with what there is.
fn is_double(own: &Seen) -> bool {
    let mut counts = BTreeMap::new();
    for event in own.events().filter(|event| WHOLE.contains(&kind(event))) {
        *counts.entry((epoch(event), kind(event))).or_insert(0) += 1;
    }
    counts.values().any(|count| *count > 1)
}

/// Whether a gap says that something of a life may be missing, and has not said so of as many lives as it names records.
fn is_paid(costs: &mut [Cost], life: &Lived) -> bool {
    // A gap's end is when it was found, its beginning when it could begin: both are later and earlier than the loss.
    let touches = |cost: &&mut Cost| cost.from <= wall(life.ended) && wall(life.began) <= cost.to;
    let mut touched: Vec<_> = costs.iter_mut().filter(touches).collect();
    if touched.iter().any(|cost| cost.left.is_none()) {
        return true;
    }
    let payer = touched.iter_mut().find_map(|cost| cost.left.as_mut().filter(|left| **left > 0));
    payer.map(|left| *left -= 1).is_some()
}

/// The gaps that a life may touch; one without times is from the event before it until it was reported.
fn costs(seen: &Seen) -> Vec<Cost> {
    let events: Vec<_> = seen.events().collect();
    let mut costs = Vec::new();
    for (index, event) in events.iter().enumerate() {
        let Some(event::Kind::Gap(gap)) = &event.kind else { continue };
        let before = index.checked_sub(1).and_then(|index| events.get(index)).and_then(|event| event.time);
        if may_cost_a_life(gap)
            && let (Some(from), Some(to)) = (gap.from.or(before), gap.to.or(event.time))
        {
            let left = (!gap.lost.is_empty()).then(|| gap.lost.values().sum());
            costs.push(Cost { from: nanos(from), to: nanos(to), left });
        }
    }
    costs
}

fn epoch(event: &Event) -> Option<&str> {
    event.position.as_ref().map(|position| position.epoch.as_str())
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
