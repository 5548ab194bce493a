//! Verdicts as rows of a table, and as lines below it. Never prints, and keeps nothing.

use std::time::Duration;

use kwitness_api::proto;
use kwitness_api::proto::VerdictKind;
use kwitness_core::units;

use crate::describe::limits::{self, reading};
use crate::describe::{Names, names, verdict_kind, verdict_style};
use crate::output::Format;
use crate::table::{Cell, Fit, Table};
use crate::text::UNKNOWN;
use crate::time::Times;

/// Why a limit is not in force, and what usage proves, in a line below the table.
pub(super) fn explanation(of: &proto::VerdictOf) -> Option<String> {
    let verdict = of.verdict.as_ref()?;
    let proof = of.proof.as_ref().map(|proof| proved(&verdict.file, proof));
    if verdict.verdict() == VerdictKind::InForce && proof.is_none() {
        return None;
    }
    let names = names_of(of, false);
    let text = [Some(verdict.reason.clone()).filter(|reason| !reason.is_empty()), proof];
    let text: Vec<_> = text.into_iter().flatten().collect();
    Some(format!(
        "{} {} {}: {}: {}",
        names.qualified(),
        names.container,
        verdict.file,
        verdict_kind(verdict.verdict()),
        text.join("; ")
    ))
}

pub(super) fn names_of(of: &proto::VerdictOf, full: bool) -> Names {
    match &of.container {
        Some(container) => names(Some(container), full),
        None => limits::names(of.verdict.as_ref().and_then(|verdict| verdict.cgroup.as_ref()), full),
    }
}

/// Narrower terminals have no room for what was written; `-o wide` has it, and so have the events.
const WRITTEN_WIDTH: usize = 100;

pub(super) fn has_written(limit: Option<usize>) -> bool {
    limit.is_none_or(|limit| limit >= WRITTEN_WIDTH)
}

pub(super) fn table(format: Format, times: Option<Times>, limit: Option<usize>, has_nodes: bool) -> Table {
    let mut table = Table::new(limit);
    if let Some(times) = times {
        table = table.column(times.heading(), 12, Fit::Whole);
    }
    if has_nodes {
        table = table.column("NODE", 0, Fit::Middle(6));
    }
    if format == Format::Wide {
        table = table.column("NAMESPACE", 0, Fit::Whole);
    }
    table = table.column("POD", 0, Fit::Middle(8)).column("CONTAINER", 0, Fit::Middle(7)).column(
        "LIMIT",
        0,
        Fit::Whole,
    );
    let columns = ["WANTED", "RUNTIME", "WRITTEN", "CGROUP", "EFFECTIVE"];
    let columns = columns.into_iter().filter(|heading| *heading != "WRITTEN" || has_written(limit));
    table = columns.fold(table, |table, heading| table.column(heading, 0, Fit::End(heading.len())));
    table = table.column("VERDICT", 0, Fit::Whole);
    if format == Format::Wide { table.column("REASON", 0, Fit::Whole) } else { table }
}

/// The limit as people write it; in full, as it stands in the file, and with all sources.
pub(super) fn row(of: &proto::VerdictOf, full: bool, is_one_namespace: bool, has_written: bool) -> Vec<Cell> {
    let verdict = of.verdict.clone().unwrap_or_default();
    let names = names_of(of, full);
    let file = &verdict.file;
    let unknown = || UNKNOWN.to_owned();
    let shown = |raw: &str| if full { raw.to_owned() } else { units::value(file, raw) };
    let runtime = |desired: &&proto::DesiredLimit| desired.source() == proto::Source::Runtime;
    let wanted = if full {
        let all = verdict.desired.iter().filter(|desired| !runtime(desired));
        let all: Vec<_> =
            all.map(|desired| format!("{} ({})", desired.value, source_name(desired.source()))).collect();
        if all.is_empty() { unknown() } else { all.join(", ") }
    } else {
        let compared = |desired: &&proto::DesiredLimit| desired.source() == verdict.compared_with();
        verdict.desired.iter().find(compared).map_or_else(unknown, |desired| shown(&desired.value))
    };
    let runtime = verdict.desired.iter().find(runtime).map_or_else(unknown, |desired| shown(&desired.value));
    let written = verdict.written.as_ref().map_or_else(unknown, |written| {
        let value = written.value.as_deref().map_or_else(unknown, shown);
        written.errno_name.as_ref().map_or(value.clone(), |errno| format!("{value} ({errno})"))
    });
    let cgroup =
        if full { reading("", verdict.in_force.as_ref()) } else { reading(file, verdict.in_force.as_ref()) };
    let effective = verdict.effective.as_ref().map_or_else(unknown, |effective| shown(&effective.value));
    let mut row = Vec::new();
    if full {
        row.push(Cell::from(&names.namespace));
    }
    row.push(if full || is_one_namespace { names.pod.clone() } else { names.qualified() }.into());
    row.extend([names.container, file.clone(), wanted, runtime].map(Cell::from));
    if has_written {
        row.push(written.into());
    }
    row.extend([cgroup, effective].map(Cell::from));
    row.push(Cell::styled(verdict_kind(verdict.verdict()), verdict_style(verdict.verdict())));
    if full {
        row.push(match &of.proof {
            Some(proof) => format!("{}; {}", verdict.reason, proved(file, proof)).into(),
            None => verdict.reason.into(),
        });
    }
    row
}

/// What usage proves, in words.
fn proved(file: &str, proof: &proto::Proof) -> String {
    let interval = Duration::from_nanos(proof.ended.saturating_sub(proof.began));
    let interval = format!("{:.1}s", interval.as_secs_f64());
    let (Some(used), Some(allowed)) = (proof.used, proof.allowed) else {
        let why = match proof.unproved() {
            proto::Unproved::LimitChanged => "nothing is proven: the limit changed meanwhile",
            proto::Unproved::TooManyWatched => {
                "nothing is proven: the usage of too many limits is watched now; select fewer containers, or try again later"
            }
            proto::Unproved::Unreadable | proto::Unproved::Unspecified => "usage cannot be read",
        };
        return why.to_owned();
    };
    let amount = |number: u64| match file {
        "cpu.max" => format!("{} ms", number / 1000),
        _ => units::amount(number),
    };
    let used = match file {
        "cpu.max" => format!("{} of at most {} of CPU time used", amount(used), amount(allowed)),
        _ => format!("at least {} of {} charged throughout", amount(used), amount(allowed)),
    };
    let times = |count: u64| if count == 1 { "once".to_owned() } else { format!("{count} times") };
    match (proof.proof(), proof.enforced) {
        (proto::ProofKind::Kept, Some(enforced)) => {
            format!("kept for {interval}: the kernel enforced it {}, {used}", times(enforced))
        }
        (proto::ProofKind::Exceeded, _) => format!("EXCEEDED for {interval}: {used}"),
        _ => format!("not reached within {interval}: {used}"),
    }
}

fn source_name(source: proto::Source) -> &'static str {
    match source {
        proto::Source::Client => "requested",
        proto::Source::KubeletAllocated => "allocated",
        proto::Source::CriRequest => "CRI request",
        proto::Source::KubeletActuated => "actuated",
        proto::Source::Runtime => "runtime",
        proto::Source::Guard => "guard",
        proto::Source::Unspecified => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proofs_in_words() {
        let proof = |kind: proto::ProofKind, used, enforced| proto::Proof {
            proof: kind.into(),
            began: 1,
            ended: 2_000_000_001,
            used,
            allowed: Some(1_072_000),
            enforced,
            unproved: proto::Unproved::Unspecified.into(),
        };
        let kept = proof(proto::ProofKind::Kept, Some(1_000_000), Some(19));
        assert_eq!(
            proved("cpu.max", &kept),
            "kept for 2.0s: the kernel enforced it 19 times, 1000 ms of at most 1072 ms of CPU time used"
        );
        let exceeded = proof(proto::ProofKind::Exceeded, Some(2_000_000), None);
        assert_eq!(
            proved("memory.max", &exceeded),
            "EXCEEDED for 2.0s: at least 2M of 1072k charged throughout"
        );
        let idle = proof(proto::ProofKind::NotReached, Some(0), None);
        assert!(proved("cpu.max", &idle).starts_with("not reached within 2.0s: 0 ms"));
        let unknown = proof(proto::ProofKind::Unknown, None, None);
        assert_eq!(proved("cpu.max", &unknown), "usage cannot be read");
        let unwatched = proto::Proof { unproved: proto::Unproved::TooManyWatched.into(), ..unknown };
        assert!(proved("cpu.max", &unwatched).starts_with("nothing is proven: the usage of too many limits"));
        let changed = proto::Proof { unproved: proto::Unproved::LimitChanged.into(), ..unknown };
        assert_eq!(proved("cpu.max", &changed), "nothing is proven: the limit changed meanwhile");
    }
}
