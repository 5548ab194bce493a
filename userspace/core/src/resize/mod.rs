//! Whether a limit that was asked for is in force. Pure: [`judge`] looks at what was wanted, what was written and what the
//! files say, and gives one verdict; [`Standing`] remembers enough to call a change back a reversal.
//!
//! ```text
//!                              no source says what is wanted ──────────────▶ unknown
//!                              the file cannot be read, the cgroup is gone ▶ unknown
//!  own file says what is wanted?
//!   ├─ no ─┬─ the write of it failed ──────────────────────────────────────▶ rejected (errno, writer)
//!   │      ├─ the deadline is to come ─────────────────────────────────────▶ pending
//!   │      ├─ it was in force before ──────────────────────────────────────▶ reverted (writer)
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
pub mod proof;
pub mod quantity;
mod verdicts;
mod words;

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use convert::{Tolerance, Wanted};
pub use verdicts::{Asker, Evidence, Judged, Verdicts};

use crate::ids::KernelTime;
use crate::limit_file::LimitFile;
pub use crate::limits::LevelRole;
use crate::limits::{Bound, Format, Reading, Value, format};
use crate::observation::WriteResult;

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// CPU time: `cpu.max`.
    Cpu,
    /// The share of the CPU under contention: `cpu.weight`.
    CpuWeight,
    /// Memory: `memory.max`.
    Memory,
    /// Memory from which on whoever takes more is slowed down: `memory.high`.
    MemoryHigh,
    /// Swap: `memory.swap.max`.
    Swap,
}

impl Resource {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Cpu, Self::CpuWeight, Self::Memory, Self::MemoryHigh, Self::Swap];

    /// The file that says it.
    pub const fn file(self) -> LimitFile {
        match self {
            Self::Cpu => LimitFile::CpuMax,
            Self::CpuWeight => LimitFile::CpuWeight,
            Self::Memory => LimitFile::MemoryMax,
            Self::MemoryHigh => LimitFile::MemoryHigh,
            Self::Swap => LimitFile::MemorySwapMax,
        }
    }

    /// The resource that this file limits, if it is judged.
    pub fn of(limit_file: LimitFile) -> Option<Self> {
        Self::ALL.into_iter().find(|resource| resource.file() == limit_file)
    }

    /// Whether a level's file binds all levels below it. A weight is only a share among siblings.
    const fn is_inherited(self) -> bool {
        !matches!(self, Self::CpuWeight)
    }
}

/// Who says what is wanted; the one that is nearest to the intention comes first, and is what is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Whoever asks for a verdict.
    Client,
    /// The kubelet's checkpoint of what it has admitted.
    KubeletAllocated,
    /// The request to the container runtime, as it passed by.
    CriRequest,
    /// The kubelet's checkpoint of what it has told the runtime.
    KubeletActuated,
    /// What the container runtime says that it was told.
    Runtime,
}

/// One source's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Claim {
    /// Whose.
    pub source: Source,
    /// When it was learned.
    pub at: KernelTime,
    /// What it says.
    pub wanted: Wanted,
}

/// A cgroup on the way from the processes to the root, and what its file says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Level {
    /// The cgroup's path from the root of the hierarchy.
    pub path: Arc<str>,
    /// What it is.
    pub role: LevelRole,
    /// What the file says.
    pub reading: Reading,
}

/// Who wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writer {
    /// Its pid.
    pub pid: u32,
    /// Its `comm`.
    pub comm: Arc<str>,
    /// The path of the cgroup that it is in, if that is known.
    pub cgroup: Option<Arc<str>>,
}

impl fmt::Display for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.comm, self.pid)
    }
}

/// An attempt to write the judged file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// What was written; none: that was not seen.
    pub value: Option<Arc<str>>,
    /// What became of it, as far as the hook tells; of one that has not returned, nobody knows.
    pub result: WriteResult,
    /// Who wrote, if that was seen.
    pub writer: Option<Writer>,
    /// When the write began, if that was seen.
    pub began: Option<KernelTime>,
    /// When it was over; none: it is not.
    pub ended: Option<Ended>,
}

/// How an attempt was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// It returned at that time.
    Returned(KernelTime),
    /// It was not seen to return, and was given up at that time.
    GivenUp(KernelTime),
}

impl Ended {
    /// From then on it was over.
    pub const fn at(self) -> KernelTime {
        match self {
            Self::Returned(at) | Self::GivenUp(at) => at,
        }
    }

    /// When it returned, if that was seen.
    pub const fn returned(self) -> Option<KernelTime> {
        match self {
            Self::Returned(at) => Some(at),
            Self::GivenUp(_) => None,
        }
    }
}

/// All that a verdict rests on.
#[derive(Clone, Debug)]
pub struct Case<'a> {
    /// What is judged.
    pub resource: Resource,
    /// Every source's word, in any order.
    pub claims: &'a [Claim],
    /// From the innermost to the root.
    pub levels: &'a [Level],
    /// Which of them is judged.
    pub own: usize,
    /// The attempts to write its file that are remembered, the oldest first.
    pub attempts: &'a [Attempt],
    /// What is used now, in the file's unit, if that is known.
    pub usage: Option<u64>,
    /// How often the OOM killer struck since the last write began, if that is known.
    pub kills: Option<u64>,
    /// Until then, what is not yet so may still become so; none: no longer.
    pub deadline: Option<KernelTime>,
    /// Now.
    pub now: KernelTime,
    /// The kernel's page size in bytes.
    pub page: u64,
}

/// What a limit that was asked for has become.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The file says it, and nothing else allows less.
    InForce,
    /// Not yet, and the deadline is to come.
    Pending {
        /// The deadline.
        until: KernelTime,
    },
    /// The file says something else.
    Diverged,
    /// The kernel refused the write of it.
    Rejected {
        /// What was written, in the writer's words: in the file's it might not show what the kernel minded.
        value: Arc<str>,
        /// With that.
        errno: i32,
        /// Whose write it was, if that was seen.
        writer: Option<Writer>,
    },
    /// The file says it, but another level allows less.
    Shadowed {
        /// What that level is.
        role: LevelRole,
        /// Its path.
        path: Arc<str>,
        /// What it allows.
        limit: Value,
    },
    /// The file says it, but more is used: the kernel is reclaiming.
    OverLimit {
        /// In bytes.
        usage: u64,
    },
    /// The OOM killer struck since the write of it began.
    Killed {
        /// How often.
        kills: u64,
    },
    /// It was in force, and something else was written since.
    Reverted {
        /// By whom, if that was seen.
        writer: Option<Writer>,
    },
    /// It cannot be told.
    Unknown {
        /// What is missing for that.
        missing: Arc<str>,
    },
}

/// A verdict, and what it rests on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judgement {
    /// What was judged.
    pub resource: Resource,
    /// The verdict.
    pub verdict: Verdict,
    /// The word that was compared with; none: there is none.
    pub claim: Option<Claim>,
    /// Sources that want something else.
    pub disagreeing: Vec<Source>,
    /// How the file agrees with what is wanted, if it does.
    pub tolerance: Option<Tolerance>,
    /// What the level's own file says.
    pub in_force: Reading,
    /// The least that any level allows, and that level's path; none: some level is not known.
    pub effective: Option<(Value, Arc<str>)>,
}

/// Gives the verdict.
pub fn judge(case: &Case<'_>, standing: &Standing) -> Judgement {
    let claim = case.claims.iter().min_by_key(|claim| (claim.source, std::cmp::Reverse(claim.at))).copied();
    let own = case.levels.get(case.own);
    let in_force = own.map_or(Reading::Unknown("there is no such level".into()), |own| own.reading.clone());
    let tolerance =
        claim.zip(in_force.value()).and_then(|(claim, value)| claim.wanted.accepts(value, case.page));
    let effective = effective(case);
    let verdict = match claim {
        None => unknown("no source says what is wanted"),
        Some(claim) => match (own, tolerance) {
            (None, _) => unknown("there is no such level"),
            (Some(own), _) if own.reading.value().is_none() => unknown(&unread(case.resource, own)),
            (Some(_), None) => mismatch(case, standing, &claim),
            (Some(own), Some(_)) => agreement(case, own, &claim),
        },
    };
    let disagreeing = claim.map(|claim| disagreeing(case, &claim)).unwrap_or_default();
    Judgement { resource: case.resource, verdict, claim, disagreeing, tolerance, in_force, effective }
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
fn mismatch(case: &Case<'_>, standing: &Standing, claim: &Claim) -> Verdict {
    let format = format(case.resource.file());
    let of_claim = |attempt: &&Attempt| {
        let value =
            attempt.value.as_deref().and_then(|text| Value::parse(format, &written(format, text)).ok());
        value.is_some_and(|value| claim.wanted.is_meant_by(&value, case.page))
    };
    let refused = case
        .attempts
        .iter()
        .rev()
        .find(of_claim)
        .and_then(|attempt| Some((attempt, attempt.result.errno()?)));
    if let Some((Attempt { value: Some(value), writer, .. }, errno)) = refused {
        return Verdict::Rejected { value: value.trim().into(), errno, writer: writer.clone() };
    }
    match case.deadline {
        Some(until) if case.now < until => Verdict::Pending { until },
        _ if standing.was_in_force(&claim.wanted) => {
            let last = case.attempts.iter().rev().find(|attempt| attempt.result.may_have_taken());
            Verdict::Reverted { writer: last.and_then(|attempt| attempt.writer.clone()) }
        }
        _ => Verdict::Diverged,
    }
}

/// What was written, as the file would show it: a quota without a period leaves the period as it is.
fn written(format: Format, text: &str) -> String {
    let text = text.trim();
    if format == Format::Cpu && text.split_ascii_whitespace().count() == 1 {
        return format!("{text} {}", crate::limits::CpuMax::DEFAULT_PERIOD);
    }
    text.to_owned()
}

/// The file says what is wanted.
fn agreement(case: &Case<'_>, own: &Level, claim: &Claim) -> Verdict {
    let Some(value) = own.reading.value() else { return unknown(&unread(case.resource, own)) };
    if case.resource.is_inherited() {
        let others =
            || case.levels.iter().enumerate().filter(|(index, _)| *index != case.own).map(|(_, level)| level);
        let tighter = others()
            .filter_map(|level| Some((level.reading.value()?, level)))
            .filter(|(limit, _)| order(limit, value) == Some(Ordering::Less))
            // Less than a rounded value, and still what is wanted: crun's inner cgroup keeps the exact quota.
            .filter(|(limit, _)| claim.wanted.accepts(limit, case.page).is_none())
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

/// The sources whose word differs from the one that is compared with.
fn disagreeing(case: &Case<'_>, chosen: &Claim) -> Vec<Source> {
    let same = |other: &Claim| {
        chosen.wanted.accepts(&other.wanted.ideal(), case.page).is_some()
            || other.wanted.accepts(&chosen.wanted.ideal(), case.page).is_some()
    };
    let mut sources: Vec<Source> =
        case.claims.iter().filter(|claim| !same(claim)).map(|claim| claim.source).collect();
    sources.sort_unstable();
    sources.dedup();
    sources
}

/// What is remembered of one limit between verdicts.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// What the file would say to the letter.
    in_force: Option<Value>,
    /// Likewise, of what one client asked for last.
    asked: Option<Value>,
    last: Option<Verdict>,
}

impl Standing {
    fn was_in_force(&self, wanted: &Wanted) -> bool {
        let ideal = Some(wanted.ideal());
        self.in_force == ideal || self.asked == ideal
    }

    /// Takes note of a judgement; whether its verdict is another one than the last.
    pub fn note(&mut self, judgement: &Judgement) -> bool {
        if let Some(claim) = &judgement.claim {
            match &judgement.verdict {
                Verdict::InForce
                | Verdict::Shadowed { .. }
                | Verdict::OverLimit { .. }
                | Verdict::Killed { .. } => {
                    self.in_force = Some(claim.wanted.ideal());
                }
                // Something else is wanted now: that the old was in force is of no account any more.
                _ if !self.was_in_force(&claim.wanted) => self.in_force = None,
                _ => {}
            }
        }
        let changed = self.last.as_ref().map(Verdict::name) != Some(judgement.verdict.name());
        self.last = Some(judgement.verdict.clone());
        changed
    }

    /// Takes note of a judgement by one client's own word: it is no verdict of the node's, but of a limit that was in force for that
    /// client, a change is a reversal.
    fn note_asked(&mut self, judgement: &Judgement) {
        if let Some(claim) = judgement.claim.filter(|_| judgement.tolerance.is_some()) {
            self.asked = Some(claim.wanted.ideal());
        }
    }

    /// The last verdict.
    pub fn last(&self) -> Option<&Verdict> {
        self.last.as_ref()
    }
}
