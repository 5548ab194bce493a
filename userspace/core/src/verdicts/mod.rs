//! Whether a desired limit is in force. Pure: [`judge`] looks at what was wanted, what was written and what the
//! files say, and gives one verdict; [`VerdictHistory`] remembers enough to call a change back a reversal.
//!
//! ```text
//!                              no source says what is wanted ──────────────▶ unknown
//!                              the file cannot be read, the cgroup is gone ▶ unknown
//!  own file says what is wanted?
//!   ├─ no ─┬─ the write of it failed ──────────────────────────────────────▶ rejected (errno, writer)
//!   │      ├─ the deadline is to come ─────────────────────────────────────▶ pending
//!   │      ├─ a request that was not observed may have set another ────────▶ unknown
//!   │      ├─ it was in force before ──────────────────────────────────────▶ reverted (writer)
//!   │      ├─ the kubelet may have set another, by a rule of its own ──────▶ unknown
//!   │      └─ ─────────────────────────────────────────────────────────────▶ diverged
//!   └─ yes ┬─ a level above, or within, allows less ───────────────────────▶ shadowed (level)
//!          ├─ a level cannot be read ──────────────────────────────────────▶ unknown
//!          ├─ the OOM killer struck since the write began ─────────────────▶ killed
//!          ├─ more is used than it allows: reclaim is at it ───────────────▶ over limit
//!          └─ ─────────────────────────────────────────────────────────────▶ in force
//!
//!  in force ──a later write──▶ judged again ──▶ reverted, shadowed, …: each write is a new question
//! ```
//!
//! What counts as "says what is wanted" is [`convert`]'s table. Never reads a clock or a file: the case says it all.

pub mod convert;
pub mod kubernetes;
pub mod proof;
pub mod quantity;
mod tracker;
mod words;

use std::cmp::Ordering;
use std::sync::Arc;

pub use tracker::VerdictTracker;

use serde::{Deserialize, Serialize};

use crate::model::{
    Attempt, Bound, CpuMax, DesiredLimit, Ended, Format, Judgement, KernelTime, Level, LevelRole, Reading,
    Resource, Source, Unobserved, Value, Verdict, Wanted,
};

/// All that a verdict rests on.
#[derive(Clone, Debug)]
pub struct Case<'a> {
    /// What is judged.
    pub resource: Resource,
    /// Every source's word, in any order.
    pub desired: &'a [DesiredLimit],
    /// See [`Evidence::may_be_less`](crate::model::Evidence::may_be_less).
    pub may_be_less: bool,
    /// See [`Evidence::unobserved`](crate::model::Evidence::unobserved).
    pub unobserved: &'a [Unobserved],
    /// From the innermost to the root.
    pub levels: &'a [Level],
    /// Which of them is judged.
    pub own: usize,
    /// The attempts to write its file that are remembered, the oldest first.
    pub attempts: &'a [Attempt],
    /// Likewise, to [other files](Resource::other_writers) that change what the judged one says.
    pub other_writes: &'a [Attempt],
    /// What is used now, in the file's unit, if that is known.
    pub usage: Option<u64>,
    /// How often the OOM killer struck since the last write began, if that is known.
    pub kills: Option<u64>,
    /// Until then, what is not yet so may still become so; none: no longer.
    pub deadline: Option<KernelTime>,
    /// The time of the judgement.
    pub now: KernelTime,
    /// The kernel's page size in bytes.
    pub page: u64,
}

/// Gives the verdict.
pub fn judge(case: &Case<'_>, history: &VerdictHistory) -> Judgement {
    let desired = decisive(case);
    let own = case.levels.get(case.own);
    let in_force = own.map_or(Reading::Unknown("there is no such level".into()), |own| own.reading.clone());
    let tolerance =
        desired.zip(in_force.value()).and_then(|(desired, value)| desired.wanted.accepts(value, case.page));
    let effective = effective(case);
    let verdict = match desired {
        None => unknown("no source says what is wanted"),
        Some(desired) => match (own, tolerance) {
            (None, _) => unknown("there is no such level"),
            (Some(own), _) if own.reading.value().is_none() => unknown(&unread(case.resource, own)),
            (Some(_), None) => mismatch(case, history, &desired),
            (Some(own), Some(_)) => agreement(case, own, &desired),
        },
    };
    let disagreeing = desired.map(|desired| disagreeing(case, &desired)).unwrap_or_default();
    Judgement { resource: case.resource, verdict, desired, disagreeing, tolerance, in_force, effective }
}

/// The word that is compared with: of the source nearest to the intention, the last. A checkpoint that is older than a request which
/// says something else is stale: the kubelet could not write it (a full disk), and goes on by its memory. The guard changes a limit
/// that others have set: its word precedes theirs until one of them says something else after it.
fn decisive(case: &Case<'_>) -> Option<DesiredLimit> {
    let others = decisive_of_others(case);
    let guards = case.desired.iter().filter(|desired| desired.source == Source::Guard);
    let Some(guards) = guards.max_by_key(|desired| desired.at) else { return others };
    let is_overruled = case.desired.iter().any(|other| {
        let is_younger = other.source != Source::Guard && other.at > guards.at;
        other.source == Source::Client || is_younger && !says_the_same(guards, other, case.page)
    });
    if is_overruled { others } else { Some(*guards) }
}

fn decisive_of_others(case: &Case<'_>) -> Option<DesiredLimit> {
    let is_word = |of: &&DesiredLimit| of.wanted != Wanted::NoQuotaSent && of.source != Source::Guard;
    let desired = || case.desired.iter().filter(is_word);
    let first = desired().min_by_key(|desired| (desired.source, std::cmp::Reverse(desired.at)))?;
    let younger = desired()
        .filter(|desired| desired.source == Source::CriRequest && desired.at > first.at)
        .filter(|desired| !says_the_same(first, desired, case.page))
        .max_by_key(|desired| desired.at);
    Some(*younger.filter(|_| first.source == Source::KubeletAllocated).unwrap_or(first))
}

fn unknown(missing: &str) -> Verdict {
    Verdict::Unknown { missing: missing.into() }
}

fn unread(resource: Resource, level: &Level) -> String {
    let (file, path) = (resource.file(), &level.path);
    match &level.reading {
        Reading::Gone => format!("the cgroup {path} is gone"),
        Reading::Absent => format!(
            "{path} has no {file}: its controller is not enabled there (cgroup v1 and hybrid nodes have none in the v2 hierarchy)"
        ),
        Reading::Unknown(why) => format!("{path}/{file}: {why}"),
        Reading::Is(_) => String::new(),
    }
}

/// The file says something else.
fn mismatch(case: &Case<'_>, history: &VerdictHistory, desired: &DesiredLimit) -> Verdict {
    let format = case.resource.file().format();
    let is_of_desired = |attempt: &&Attempt| {
        let value =
            attempt.value.as_deref().and_then(|text| Value::parse(format, &written(format, text)).ok());
        value.is_some_and(|value| desired.wanted.is_meant_by(&value, case.page))
    };
    let refused = case
        .attempts
        .iter()
        .rev()
        .find(is_of_desired)
        .and_then(|attempt| Some((attempt, attempt.result.errno()?)));
    if let Some((Attempt { value: Some(value), writer, .. }, errno)) = refused {
        return Verdict::Rejected { value: value.trim().into(), errno, writer: writer.clone() };
    }
    match case.deadline {
        Some(until) if case.now < until => Verdict::Pending { until },
        _ if may_be_requested(case, desired) => unknown(
            "the runtime may have been sent this limit by a request that was not observed: no daemon ran then, the CRI \
             proxy missed it, or nothing is left of what was reported",
        ),
        _ if history.was_in_force(&desired.wanted) => {
            let writes = case.attempts.iter().chain(case.other_writes);
            let last = writes
                .filter(|attempt| attempt.result.may_be_accepted())
                .max_by_key(|attempt| attempt.ended.map_or(KernelTime(u64::MAX), Ended::at));
            Verdict::Reverted { writer: last.and_then(|attempt| attempt.writer.clone()) }
        }
        _ => not_set(case, desired).map_or(Verdict::Diverged, unknown),
    }
}

/// Whether what the file says may be the work of a request that would count, had it been observed: the runtime says the same, or
/// nothing of a write that was not seen, and so does not the kubelet.
fn may_be_requested(case: &Case<'_>, desired: &DesiredLimit) -> bool {
    let is_overruled_by_requests =
        matches!(desired.source, Source::KubeletAllocated | Source::CriRequest | Source::KubeletActuated);
    let Some(value) = case.levels.get(case.own).and_then(|own| own.reading.value()) else { return false };
    if !is_overruled_by_requests {
        return false;
    }
    let says = |source| {
        let mut of =
            case.desired.iter().filter(move |of| of.source == source && of.wanted != Wanted::NoQuotaSent);
        of.next().map(|of| of.wanted.accepts(value, case.page).is_some())
    };
    let writes = case.attempts.iter().chain(case.other_writes);
    let seen = |of: &Attempt| of.began.or(of.ended.map(Ended::at));
    let last = writes.filter(|of| of.result.may_be_accepted()).max_by_key(|of| seen(of));
    let began = last.and_then(|of| of.began);
    let is_possible = match says(Source::Runtime) {
        Some(same) => same,
        None => began.is_none(),
    };
    // A write that was not seen was before anything was; so may be one of which only the end was.
    let written = [began, last.and_then(seen)].map(|at| at.unwrap_or(KernelTime(0)));
    let mut unobserved = case.unobserved.iter();
    is_possible
        && says(Source::KubeletActuated) != Some(true)
        && unobserved.any(|of| written.iter().any(|at| (of.from..=of.to).contains(at)) && desired.at < of.to)
}

/// Why the kubelet itself may have set another limit than a source says, if there is a sign of that.
fn not_set(case: &Case<'_>, desired: &DesiredLimit) -> Option<&'static str> {
    let value = case.levels.get(case.own)?.reading.value()?;
    if case.may_be_less
        && desired.source != Source::Client
        && order(value, &desired.wanted.ideal()) == Some(Ordering::Less)
    {
        return Some(
            "the sum of the containers' limits is more, but the pod may have a limit of its own: no source says that it \
             has none (kubelets record pod-level resources in their checkpoints from 1.36 on)",
        );
    }
    if !matches!(desired.source, Source::KubeletAllocated | Source::KubeletActuated) {
        return None;
    }
    // It has sent something else, but not yet what it has admitted.
    let of_actuated = case.desired.iter().filter(|other| other.source == Source::KubeletActuated);
    if of_actuated.into_iter().any(|other| !says_the_same(desired, other, case.page)) {
        return None;
    }
    let is_unlimited = |wanted: Wanted| wanted == Wanted::NoQuotaSent || wanted.is_unlimited(case.page);
    let sent = || {
        let of = |source| matches!(source, Source::CriRequest | Source::Runtime);
        case.desired.iter().filter(move |other| of(other.source)).map(|other| other.wanted)
    };
    match value {
        Value::Cpu(CpuMax { quota: Bound::Unlimited, .. }) if sent().any(is_unlimited) => Some(
            "CPU limits are not enforced here: the runtime was sent no CPU quota \
             (kubelet setting `cpuCFSQuota: false`, or a container with exclusive CPUs)",
        ),
        Value::Cpu(CpuMax { quota: Bound::Unlimited, .. }) if sent().next().is_none() => Some(
            "there is no CPU quota, and no source says whether the runtime was sent one \
             (kubelet setting `cpuCFSQuota: false`, or a container with exclusive CPUs)",
        ),
        Value::Cpu(_) | Value::Bound(_)
            if is_unlimited(desired.wanted)
                && sent()
                    .any(|wanted| !is_unlimited(wanted) && wanted.accepts(value, case.page).is_some()) =>
        {
            Some("the kubelet's checkpoint has no limit, but the runtime was sent this one")
        }
        _ => None,
    }
}

/// What was written, as the file would show it: a quota without a period leaves the period as it is.
fn written(format: Format, text: &str) -> String {
    let text = text.trim();
    if format == Format::Cpu && text.split_ascii_whitespace().count() == 1 {
        return format!("{text} {}", CpuMax::DEFAULT_PERIOD);
    }
    text.to_owned()
}

/// The file says what is wanted.
fn agreement(case: &Case<'_>, own: &Level, desired: &DesiredLimit) -> Verdict {
    let Some(value) = own.reading.value() else { return unknown(&unread(case.resource, own)) };
    if case.resource.is_inherited() {
        // Where no limit is desired, what all pods of the node may have together takes nothing away.
        let is_unlimited = desired.wanted.is_unlimited(case.page);
        let is_nodes = |role| matches!(role, LevelRole::Qos | LevelRole::Kubepods | LevelRole::Other);
        let others = || {
            let others = case.levels.iter().enumerate().filter(|(index, _)| *index != case.own);
            others.map(|(_, level)| level).filter(|level| !(is_unlimited && is_nodes(level.role)))
        };
        let tighter = others()
            .filter_map(|level| Some((level.reading.value()?, level)))
            .filter(|(limit, _)| order(limit, value) == Some(Ordering::Less))
            // Less than a rounded value, and still what is wanted: crun's inner cgroup keeps the exact quota.
            .filter(|(limit, _)| desired.wanted.accepts(limit, case.page).is_none())
            .reduce(
                |least, other| if order(other.0, least.0) == Some(Ordering::Less) { other } else { least },
            );
        if let Some((limit, level)) = tighter {
            return Verdict::Shadowed { role: level.role, path: level.path.clone(), limit: limit.clone() };
        }
        // No file is no limit; what cannot be read may be one.
        let unreadable = |level: &&Level| matches!(level.reading, Reading::Unknown(_) | Reading::Gone);
        if let Some(level) = others().find(unreadable) {
            return unknown(&unread(case.resource, level));
        }
    }
    if let Some(kills) = case.kills.filter(|kills| *kills > 0 && case.resource == Resource::Memory) {
        return Verdict::Killed { kills };
    }
    match (case.usage, value) {
        (Some(usage), Value::Bound(Bound::At(limit))) if usage > *limit => Verdict::OverLimit { usage },
        _ => Verdict::InForce,
    }
}

/// The least that any level allows.
fn effective(case: &Case<'_>) -> Option<(Value, Arc<str>)> {
    if !case.resource.is_inherited() {
        let own = case.levels.get(case.own)?;
        return Some((own.reading.value()?.clone(), own.path.clone()));
    }
    let mut least: Option<(&Value, &Level)> = None;
    for level in case.levels {
        let value = match &level.reading {
            Reading::Is(value) => value,
            Reading::Absent => continue,
            Reading::Gone | Reading::Unknown(_) => return None,
        };
        if least.is_none_or(|(least, _)| order(value, least) == Some(Ordering::Less)) {
            least = Some((value, level));
        }
    }
    least.map(|(value, level)| (value.clone(), level.path.clone()))
}

/// Which of two contents of the same file allows less; none: they do not compare.
fn order(one: &Value, other: &Value) -> Option<Ordering> {
    match (one, other) {
        (Value::Bound(one), Value::Bound(other)) => Some(one.cmp(other)),
        (Value::Cpu(one), Value::Cpu(other)) => Some(one.order(*other)),
        (Value::Number(one), Value::Number(other)) => Some(one.cmp(other)),
        _ => None,
    }
}

/// Whether a file that is right by one of two words is right by the other, too.
fn says_the_same(one: &DesiredLimit, other: &DesiredLimit, page: u64) -> bool {
    one.wanted.accepts(&other.wanted.ideal(), page).is_some()
        || other.wanted.accepts(&one.wanted.ideal(), page).is_some()
}

/// The sources whose word differs from the one that is compared with.
fn disagreeing(case: &Case<'_>, chosen: &DesiredLimit) -> Vec<Source> {
    let same = |other: &DesiredLimit| says_the_same(chosen, other, case.page);
    let mut sources: Vec<Source> =
        case.desired.iter().filter(|desired| !same(desired)).map(|desired| desired.source).collect();
    sources.sort_unstable();
    sources.dedup();
    sources
}

/// What is remembered of one limit between verdicts.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct VerdictHistory {
    /// What the file would say to the letter.
    in_force: Option<Value>,
    /// Likewise, of what one client requested last.
    requested: Option<Value>,
    last: Option<Verdict>,
}

impl VerdictHistory {
    fn was_in_force(&self, wanted: &Wanted) -> bool {
        let ideal = Some(wanted.ideal());
        self.in_force == ideal || self.requested == ideal
    }

    /// Takes note of a judgement; whether its verdict is another one than the last.
    pub fn note(&mut self, judgement: &Judgement) -> bool {
        if let Some(desired) = &judgement.desired {
            match &judgement.verdict {
                Verdict::InForce
                | Verdict::Shadowed { .. }
                | Verdict::OverLimit { .. }
                | Verdict::Killed { .. } => {
                    self.in_force = Some(desired.wanted.ideal());
                }
                // Something else is wanted now: that the old was in force is of no account any more.
                _ if !self.was_in_force(&desired.wanted) => self.in_force = None,
                _ => {}
            }
        }
        let changed = self.last.as_ref().map(Verdict::name) != Some(judgement.verdict.name());
        self.last = Some(judgement.verdict.clone());
        changed
    }

    /// Takes note of a judgement by one client's own word: it is no verdict of the node's, but of a limit that was in force for that
    /// client, a change is a reversal.
    fn note_requested(&mut self, judgement: &Judgement) {
        if let Some(desired) = judgement.desired.filter(|_| judgement.tolerance.is_some()) {
            self.requested = Some(desired.wanted.ideal());
        }
    }

    /// The last verdict.
    pub fn last(&self) -> Option<&Verdict> {
        self.last.as_ref()
    }
}
