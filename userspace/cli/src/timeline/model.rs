//! A timeline: tracks with spans, marks and curves, made of events. Pure: the same events make the same timeline.
//!
//! Owns what is a span and what is a mark. What the timeline means is [`super::answers`]'s, how it looks the outputs'.

mod guard;
mod lanes;
mod life;

use std::collections::{BTreeMap, HashMap};

use kwitness_api::proto::event::Kind;
use kwitness_api::proto::oom_kill::Exhausted;
use kwitness_api::proto::reading::Reading;
use kwitness_api::{EventKind, proto};
use serde::Serialize;

use lanes::lanes;

use super::answers::Answer;
use super::micros::{Micros, event_micros, micros};
use super::usage::Sampled;
use crate::describe::{detail, limits, names, verdict_kind};
use crate::time::Times;

/// What happened to a pod, or to a node.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Timeline {
    /// "prod/web-0", or the node's name.
    pub subject: String,
    /// The node's name.
    pub node: String,
    /// The first and the last moment.
    pub from: Micros,
    pub to: Micros,
    /// Wall-clock time minus `CLOCK_BOOTTIME`, in nanoseconds, at the last event: what a kernel trace is aligned by. None: something
    /// was in an earlier boot, of which that clock says nothing.
    #[serde(skip)]
    pub boot_offset: Option<i64>,
    /// The page's questions.
    pub answers: Vec<Answer>,
    pub tracks: Vec<Track>,
    /// Every event, as `kwitness events` shows it.
    pub events: Vec<Row>,
}

/// What a track is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum TrackKind {
    /// Losses: while one is open, what is not here may have happened.
    Node,
    /// The cgroup of a pod, or one above.
    Cgroup,
    /// A container.
    Container,
}

/// A container, a pod's cgroup, or the node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Track {
    pub name: String,
    /// The container's ID, or the cgroup's path.
    pub id: String,
    pub kind: TrackKind,
    /// Spans that overlap are in different lanes; those of one lane follow each other.
    pub lanes: Vec<Vec<Span>>,
    pub marks: Vec<Mark>,
    pub curves: Vec<Curve>,
}

/// Something that lasted.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Span {
    pub name: String,
    pub from: Micros,
    pub to: Micros,
    /// It had not ended by then.
    pub is_open: bool,
    /// It had begun before anything was seen of it.
    pub is_earlier: bool,
    pub style: Style,
    pub detail: String,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mark {
    pub name: String,
    pub at: Micros,
    pub style: Style,
    pub detail: String,
}

/// A quantity in bytes, where it was seen.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Curve {
    pub name: String,
    /// A limit holds until the next point; usage is known at its points only.
    pub is_step: bool,
    /// How long it is known.
    pub until: Micros,
    pub points: Vec<Point>,
}

/// A point of a [`Curve`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Point {
    pub at: Micros,
    /// In bytes; none: no limit.
    pub value: Option<u64>,
}

/// How a span or a mark looks. Of spans that begin and end together, the first of these is the uppermost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Style {
    Life,
    Main,
    Exec,
    Limit,
    Good,
    Notice,
    Bad,
    Gap,
}

/// An event in a table.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    pub at: Option<Micros>,
    pub kind: String,
    pub subject: String,
    pub detail: String,
    #[serde(skip)]
    pub time: Option<kwitness_api::Timestamp>,
}

impl Timeline {
    /// Of these events, in the order in which they were reported, and of what these containers were seen to use.
    pub fn new(
        subject: String,
        node: String,
        events: &[proto::Event],
        sampled: &[(&proto::Container, &[Sampled])],
        times: Times,
    ) -> Self {
        let mut builder = Builder::default();
        let mut timeline = Self { subject, node, ..Self::default() };
        let seen = sampled.iter().flat_map(|(_, points)| points.iter().map(|point| point.at));
        let at = events.iter().filter_map(event_micros).chain(seen);
        timeline.from = at.clone().min().unwrap_or_default();
        timeline.to = at.max().unwrap_or_default();
        for event in events {
            builder.event(event, times);
            let row = Row {
                at: event_micros(event),
                kind: EventKind::of(event).map_or("unknown", EventKind::name).to_owned(),
                subject: subject_of(event),
                detail: detail(event, times),
                time: event.time,
            };
            timeline.events.push(row);
            if let (Some(time), true) = (event.time, event.kernel_time > 0) {
                let boot = i64::try_from(event.kernel_time).unwrap_or(i64::MAX);
                timeline.boot_offset = Some(time.to_unix_nanos().saturating_sub(boot));
            }
        }
        timeline.boot_offset = timeline
            .boot_offset
            .filter(|boot| timeline.from.saturating_mul(1000).saturating_add(999) >= *boot);
        for (container, points) in sampled {
            builder.sampled(container, points);
        }
        timeline.tracks = builder.finish(timeline.from, timeline.to);
        timeline.answers = super::answers::answers(events, times);
        timeline
    }

    /// What is said where there is no answer.
    pub fn without_answers(&self) -> &'static str {
        if self.events.iter().any(|row| row.kind == EventKind::Gap.name()) {
            "No kill and no failure was seen, but events are missing: see the gaps."
        } else {
            "Nothing was killed and nothing failed."
        }
    }
}

fn subject_of(event: &proto::Event) -> String {
    let names = crate::describe::names_of(event, false);
    [names.pod, names.container]
        .into_iter()
        .filter(|name| name != crate::text::UNKNOWN)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Which track. Neither a cgroup ID nor a container ID alone is one: the first begins anew with a boot, and what the runtime is asked
/// to start again has a new cgroup.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Node,
    /// By epoch and cgroup ID.
    Cgroup(String, u64),
    /// By cgroup ID and container ID: it is the same one to a daemon that begins a new epoch.
    Container(u64, String),
}

#[derive(Default)]
struct Builder {
    tracks: BTreeMap<Key, Draft>,
    /// The containers whose cgroups these are, by epoch and cgroup ID.
    containers: HashMap<(String, u64), Key>,
    /// Of the event that is drawn.
    epoch: String,
}

/// A track in the making.
#[derive(Default)]
struct Draft {
    name: String,
    id: String,
    kind: Option<TrackKind>,
    order: usize,
    created: Option<Start>,
    running: Option<Start>,
    /// By PID and start time.
    processes: HashMap<(u32, u64), (Start, String, Style)>,
    spans: Vec<Span>,
    marks: Vec<Mark>,
    limits: BTreeMap<String, Vec<Point>>,
    usage: Vec<Point>,
}

#[derive(Clone, Copy)]
struct Start {
    at: Micros,
    is_earlier: bool,
}

impl Builder {
    fn event(&mut self, event: &proto::Event, times: Times) {
        let (Some(at), Some(kind)) = (event_micros(event), &event.kind) else { return };
        self.epoch = event.position.as_ref().map(|position| position.epoch.clone()).unwrap_or_default();
        if let Some(container) = &event.container {
            let key = Key::Container(container.cgroup_id, container.id.clone());
            self.containers.insert((self.epoch.clone(), container.cgroup_id), key);
        }
        let text = detail(event, times);
        let mark = |name: &str, style| Mark { name: name.to_owned(), at, style, detail: text.clone() };
        match kind {
            Kind::LimitChanged(changed) => {
                let Some(cgroup) = &changed.cgroup else { return };
                let track = self.track(event.container.as_ref(), cgroup);
                let is_refused = changed.write.as_ref().is_some_and(|write| write.errno.is_some());
                track.marks.push(mark(&changed.file, if is_refused { Style::Bad } else { Style::Limit }));
                if let (true, Some(new)) = (is_memory_limit(&changed.file), bytes(changed.new.as_ref())) {
                    let points = track.limits.entry(changed.file.clone()).or_default();
                    if let (true, Some(old)) = (points.is_empty(), bytes(changed.old.as_ref())) {
                        points.push(Point { at: Micros::MIN, value: old });
                    }
                    if points.last().is_none_or(|last| last.value != new) {
                        points.push(Point { at, value: new });
                    }
                }
            }
            Kind::Verdict(verdict) => {
                let Some(cgroup) = &verdict.cgroup else { return };
                let track = self.track(event.container.as_ref(), cgroup);
                let style = match verdict.verdict() {
                    proto::VerdictKind::InForce => Style::Good,
                    proto::VerdictKind::Pending
                    | proto::VerdictKind::Unknown
                    | proto::VerdictKind::Unspecified => Style::Notice,
                    _ => Style::Bad,
                };
                let name = format!("{} {}", verdict.file, verdict_kind(verdict.verdict()));
                track.marks.push(mark(&name, style));
                if let (true, Some(usage)) = (verdict.file.starts_with("memory."), verdict.usage) {
                    track.usage.push(Point { at, value: Some(usage) });
                }
                if let (true, Some(value)) = (verdict.file == "memory.max", bytes(verdict.in_force.as_ref()))
                {
                    let points = track.limits.entry(verdict.file.clone()).or_default();
                    if points.last().is_none_or(|last| last.value != value) {
                        points.push(Point { at, value });
                    }
                }
            }
            Kind::OomKill(kill) => {
                if let Some(Exhausted::LimitOf(cgroup)) = &kill.exhausted {
                    let is_own = event.container.as_ref().is_some_and(|of| of.cgroup_id == cgroup.id);
                    let track = self.track(event.container.as_ref().filter(|_| is_own), cgroup);
                    track.usage.extend(kill.usage_bytes.map(|usage| Point { at, value: Some(usage) }));
                    if let Some(limit) = kill.limit_bytes {
                        let points = track.limits.entry("memory.max".to_owned()).or_default();
                        if points.last().is_none_or(|last| last.value != Some(limit)) {
                            points.push(Point { at, value: Some(limit) });
                        }
                    }
                    if !is_own {
                        track.marks.push(mark("OOMKilled", Style::Bad));
                    }
                }
                if let Some(container) = &event.container {
                    self.container(container).marks.push(mark("OOMKilled", Style::Bad));
                }
            }
            Kind::Pressure(pressure) => {
                let Some(cgroup) = &pressure.cgroup else { return };
                let track = self.track(event.container.as_ref(), cgroup);
                let is_up = pressure.direction() == proto::PressureDirection::Up;
                let name = format!("{} {} %", if is_up { "≥" } else { "<" }, pressure.threshold_percent);
                track.marks.push(mark(&name, if is_up { Style::Notice } else { Style::Good }));
                track.usage.push(Point { at, value: Some(pressure.usage_bytes) });
            }
            Kind::Gap(gap) => {
                let track = self.node();
                let from = gap.from.map_or(at, micros);
                let to = gap.to.map_or(at, micros).max(from);
                let (is_open, is_earlier) = (false, false);
                let name = "gap".to_owned();
                let span = Span { name, from, to, is_open, is_earlier, style: Style::Gap, detail: text };
                track.spans.push(span);
            }
            Kind::Resynced(_) => {
                let mark = mark("resynced", Style::Notice);
                self.node().marks.push(mark);
            }
            Kind::AgentRestarted(_) => {
                let mark = mark("agentRestarted", Style::Notice);
                self.node().marks.push(mark);
            }
            Kind::Created(_)
            | Kind::Started(_)
            | Kind::Exec(_)
            | Kind::Exited(_)
            | Kind::Stopped(_)
            | Kind::Deleted(_)
            | Kind::Updated(_)
            | Kind::GuardHeld(_)
            | Kind::GuardRaised(_)
            | Kind::GuardContinued(_)
            | Kind::GuardRefused(_)
            | Kind::GuardReturned(_) => {
                if let Some(container) = &event.container {
                    let is_earlier =
                        matches!(event.basis(), proto::Basis::InitialScan | proto::Basis::RepairScan);
                    let start = Start { at, is_earlier };
                    let track = self.container(container);
                    let guard::Drawn { span, mark, usage } = guard::drawn(kind, at, text.clone());
                    track.spans.extend(span);
                    track.marks.extend(mark);
                    track.usage.extend(usage);
                    track.life(kind, start, text);
                }
            }
        }
    }

    /// After all events: what they say of the limit is more exact.
    fn sampled(&mut self, container: &proto::Container, points: &[Sampled]) {
        let track = self.container(container);
        track.usage.extend(points.iter().map(|of| Point { at: of.at, value: Some(of.usage) }));
        track.usage.sort_by_key(|point| point.at);
        let mut limits: Vec<_> =
            points.iter().filter_map(|of| Some(Point { at: of.at, value: of.limit? })).collect();
        limits.dedup_by_key(|point| point.value);
        if limits.iter().any(|point| point.value.is_some()) {
            track.limits.entry("memory.max".to_owned()).or_insert(limits);
        }
    }

    fn node(&mut self) -> &mut Draft {
        let draft = self.draft(Key::Node);
        draft.kind = Some(TrackKind::Node);
        "losses".clone_into(&mut draft.name);
        draft
    }

    fn container(&mut self, container: &proto::Container) -> &mut Draft {
        let draft = self.draft(Key::Container(container.cgroup_id, container.id.clone()));
        draft.kind = Some(TrackKind::Container);
        draft.name = names(Some(container), false).container;
        draft.id.clone_from(&container.id);
        draft
    }

    /// The track whose limit a cgroup has: an inner cgroup counts as its container's.
    fn track(&mut self, container: Option<&proto::Container>, cgroup: &proto::Cgroup) -> &mut Draft {
        if let Some(container) = container {
            return self.container(container);
        }
        let place = (self.epoch.clone(), cgroup.id);
        let key = self.containers.get(&place).cloned().unwrap_or(Key::Cgroup(place.0, place.1));
        let draft = self.draft(key);
        if draft.kind.is_none() {
            draft.kind = Some(TrackKind::Cgroup);
            draft.name = limits::names(Some(cgroup), false).container;
            draft.id = cgroup.path.clone().unwrap_or_default();
        }
        draft
    }

    fn draft(&mut self, key: Key) -> &mut Draft {
        let order = self.tracks.len();
        self.tracks.entry(key).or_insert_with(|| Draft { order, ..Draft::default() })
    }

    fn finish(self, from: Micros, to: Micros) -> Vec<Track> {
        let mut drafts: Vec<_> = self.tracks.into_values().collect();
        drafts.sort_by_key(|draft| (draft.kind, draft.order));
        drafts.into_iter().map(|draft| draft.finish(from, to)).collect()
    }
}

impl Draft {
    /// A process that executed a program. A second program of the same process continues the first one's span.
    fn process(&mut self, of: Option<&proto::Process>, start: Start, program: Option<&str>, style: Style) {
        let Some(process) = of else { return };
        // A program that was opened before has no name of its own: "/proc/self/exe", "/dev/fd/6".
        let is_named = |program: &&str| !["/proc/", "/dev/"].iter().any(|place| program.starts_with(place));
        let program = program.filter(is_named).unwrap_or(&process.comm);
        let name = format!("{} ({})", program.rsplit('/').next().unwrap_or(program), process.pid);
        let entry = self.processes.entry((process.pid, process.start_time));
        entry.and_modify(|(_, old, _)| old.clone_from(&name)).or_insert((start, name, style));
    }

    fn finish(mut self, from: Micros, to: Micros) -> Track {
        if let Some(start) = self.running.take() {
            self.spans.push(span("running".to_owned(), start, None, Style::Life, "still running".to_owned()));
        }
        if let Some(start) = self.created.take() {
            self.spans.push(span("cgroup".to_owned(), start, None, Style::Notice, "still there".to_owned()));
        }
        for (_, (start, name, style)) in self.processes.drain() {
            self.spans.push(span(name, start, None, style, "still running".to_owned()));
        }
        for span in &mut self.spans {
            span.from = if span.is_earlier { from } else { span.from };
            span.to = if span.is_open { to } else { span.to.max(span.from) };
        }
        // A limit is there as long as its cgroup is.
        let begin = self.spans.iter().map(|span| span.from).min().unwrap_or(from);
        let until = self.spans.iter().map(|span| span.to).max().unwrap_or(to);
        let mut curves: Vec<_> = std::mem::take(&mut self.limits)
            .into_iter()
            .map(|(name, mut points)| {
                points.iter_mut().for_each(|point| point.at = point.at.max(begin));
                Curve { name, is_step: true, until, points }
            })
            .collect();
        if !self.usage.is_empty() {
            curves.push(Curve { name: "usage".to_owned(), is_step: false, until, points: self.usage });
        }
        Track {
            name: self.name,
            id: self.id,
            kind: self.kind.unwrap_or(TrackKind::Cgroup),
            lanes: lanes(self.spans),
            marks: self.marks,
            curves,
        }
    }
}

fn span(name: String, start: Start, end: Option<Micros>, style: Style, detail: String) -> Span {
    let Start { at: from, is_earlier } = start;
    Span { name, from, to: end.unwrap_or(from), is_open: end.is_none(), is_earlier, style, detail }
}

/// The limits whose value is an amount of memory that usage can be compared with.
fn is_memory_limit(file: &str) -> bool {
    matches!(file, "memory.max" | "memory.high")
}

/// A reading as bytes; inside, none is "max".
fn bytes(reading: Option<&proto::Reading>) -> Option<Option<u64>> {
    match reading?.reading.as_ref()? {
        Reading::Value(value) if value == "max" => Some(None),
        Reading::Value(value) => value.parse().ok().map(Some),
        _ => None,
    }
}
