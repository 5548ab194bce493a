//! A recording that answers the calls of the API.
//!
//! Reads the files twice: once for the state at the end and for the names of containers, which become known after a container's
//! first events; and once for each watch. Holds one batch of events at a time.

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::filter::{wants_container, wants_event, wants_pod};
use super::state::State;
use super::write::parts;
use super::{At, Error, Header, Line, Lines, Part};
use crate::client::Item;
use crate::filter::Filter;
use crate::{EventKind, Timestamp, proto};

/// As many events as the daemon sends at once.
const BATCH: usize = 512;

/// A recording, as of a moment.
#[derive(Clone, Debug)]
pub struct Recording {
    /// Oldest first.
    parts: Arc<[Part]>,
    header: Header,
    until: Option<Timestamp>,
    state: State,
    names: Arc<Names>,
    first: Option<Timestamp>,
    last: Option<Timestamp>,
    torn: Option<PathBuf>,
}

/// Containers and pods with all that became known of them, by container ID and pod UID.
#[derive(Debug, Default)]
struct Names {
    containers: HashMap<String, proto::Container>,
    pods: HashMap<String, proto::Pod>,
}

impl Recording {
    /// Opens a recording with all its parts, as of its end, or as of an earlier time.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn open(path: &Path, until: Option<Timestamp>) -> Result<Self, Error> {
        Self::of(parts(path).into_iter().map(Part::File).collect(), until).await
    }

    /// Opens a recording that is built into the program, as of its end.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn embedded(bytes: &'static [u8]) -> Result<Self, Error> {
        Self::of([Part::Embedded(bytes)].into(), None).await
    }

    /// The newest part is the last one, and there is at least one.
    async fn of(parts: Arc<[Part]>, until: Option<Timestamp>) -> Result<Self, Error> {
        let newest = &parts[parts.len() - 1];
        let mut recording = Self {
            header: Lines::of(newest)?.header().clone(),
            parts: Arc::clone(&parts),
            until,
            state: State::default(),
            names: Arc::default(),
            first: None,
            last: None,
            torn: None,
        };
        let mut names = Names::default();
        let mut count = 0_usize;
        let mut before: Option<(&Part, proto::Position)> = None;
        for part in parts.iter() {
            let mut lines = Lines::of(part)?;
            let mut begin = None;
            let (found, expected) = (&lines.header().node, &recording.header.node);
            if found != expected {
                let (found, expected) = (found.clone(), expected.clone());
                return Err(Error::OtherNode { path: part.path().to_owned(), found, expected });
            }
            for line in &mut lines {
                let line = line?;
                if begin.is_none() {
                    begin = position(&line).cloned();
                    check_order(part, begin.as_ref(), before.as_ref())?;
                }
                names.learn(&line);
                recording.take(&line);
                count += 1;
                // Ctrl-C is noticed in between.
                if count.is_multiple_of(BATCH) {
                    tokio::task::yield_now().await;
                }
            }
            if lines.is_torn() {
                recording.torn = Some(part.path().to_owned());
            }
            before = begin.map(|begin| (part, begin)).or(before);
        }
        recording.names = Arc::new(names);
        Ok(recording)
    }

    fn take(&mut self, line: &Line) {
        let time = match line {
            Line::Header(_) => return,
            Line::Snapshot(snapshot) => Some(snapshot.time),
            Line::Verdicts(verdicts) => Some(verdicts.time),
            Line::Usage(sample) => sample.time,
            Line::Event(event) => event.time,
        };
        if self.until.zip(time).is_some_and(|(until, time)| time > until) {
            return;
        }
        if let (Line::Event(_), Some(time)) = (line, time) {
            self.first = Some(self.first.map_or(time, |first| first.min(time)));
        }
        self.last = self.last.max(time);
        self.state.apply(line);
    }

    /// The header of the newest part.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The time of the first event, and of the last line that is not later than the moment.
    pub fn span(&self) -> Option<(Timestamp, Timestamp)> {
        let last = self.last?;
        Some((self.first.unwrap_or(last), last))
    }

    /// The moment that it is read as of: what was requested, or its end.
    pub fn as_of(&self) -> Option<Timestamp> {
        self.until.or(self.last)
    }

    /// When the first snapshot was taken. Before it, only containers are known that an event named.
    pub fn known_since(&self) -> Option<Timestamp> {
        self.state.known_since
    }

    /// The last part that ends within a line or a frame. Everything before that was read.
    pub fn torn(&self) -> Option<&Path> {
        self.torn.as_deref()
    }

    /// As the daemon's `List`.
    pub fn list(&self, filter: &proto::Filter) -> proto::ListResponse {
        let mut containers: Vec<_> = self.state.containers.values().cloned().collect();
        for state in &mut containers {
            if let Some(container) = &mut state.container {
                self.names.name(container);
            }
        }
        let filter = Filter::unbounded(filter.clone());
        containers.retain(|state| state.container.as_ref().is_some_and(|of| wants_container(&filter, of)));
        let path = |state: &proto::ContainerState| state.container.as_ref().map(|of| of.cgroup_path.clone());
        containers.sort_by_cached_key(path);
        proto::ListResponse { position: self.state.position.clone(), containers }
    }

    /// As the daemon's `Verify`, without anything that only a running node can answer.
    ///
    /// # Errors
    /// [`Error::Unanswerable`].
    pub fn verify(&self, request: &proto::VerifyRequest) -> Result<proto::VerifyResponse, Error> {
        let is_plain = request.wanted.is_none_or(|of| of == proto::Wanted::default());
        if !is_plain || request.wait_ms > 0 || request.prove_ms > 0 {
            return Err(Error::Unanswerable(
                "a recording can neither wait, nor prove, nor compare with other limits",
            ));
        }
        let filter = Filter::unbounded(request.filter.clone().unwrap_or_default());
        let mut verdicts: Vec<_> = self.state.verdicts.values().cloned().collect();
        for of in &mut verdicts {
            if let Some(container) = &mut of.container {
                self.names.name(container);
            }
            if let Some(pod) =
                of.verdict.as_mut().and_then(|of| of.cgroup.as_mut()).and_then(|of| of.pod.as_mut())
            {
                self.names.name_pod(pod);
            }
        }
        verdicts.retain(|of| {
            let cgroup = of.verdict.as_ref().and_then(|of| of.cgroup.as_ref());
            match &of.container {
                Some(container) => wants_container(&filter, container),
                // A pod's own limits.
                None => wants_pod(&filter, cgroup.and_then(|of| of.pod.as_ref())),
            }
        });
        let path = |of: &proto::VerdictOf| {
            let verdict = of.verdict.as_ref();
            let path = verdict.and_then(|of| of.cgroup.as_ref()).and_then(|of| of.path.clone());
            (path, verdict.map(|of| of.file.clone()))
        };
        verdicts.sort_by_cached_key(path);
        Ok(proto::VerifyResponse { verdicts, unavailable: self.state.unavailable.clone() })
    }

    /// What is known of the usage of the containers that exist, in the shape of the daemon's `WatchUsage`. Its time is that of the
    /// newest sample; none if there is no sample, as in recordings of format 1: then limits, verdicts and OOM kills are known.
    pub fn usage(&self, filter: &proto::Filter) -> proto::UsageSample {
        let mut kills: HashMap<_, Timestamp> = HashMap::new();
        for (container, time) in self.state.usage.kills.values() {
            let mut container = container.clone();
            self.names.name(&mut container);
            let last = kills.entry(name(&container)).or_insert(*time);
            *last = (*last).max(*time);
        }
        let mut verdicts: HashMap<u64, Vec<proto::LimitVerdict>> = HashMap::new();
        for of in self.state.verdicts.values() {
            if let Some((container, verdict)) = of.container.as_ref().zip(of.verdict.as_ref()) {
                let verdict = proto::LimitVerdict { file: verdict.file.clone(), verdict: verdict.verdict };
                verdicts.entry(container.cgroup_id).or_default().push(verdict);
            }
        }
        let usage = |container: proto::Container| {
            let known = self.state.usage.of(&container);
            let mut verdicts = verdicts.remove(&container.cgroup_id).unwrap_or_default();
            verdicts.sort_by(|left, right| left.file.cmp(&right.file));
            proto::ContainerUsage {
                last_oom_kill: known.last_oom_kill.max(kills.get(&name(&container)).copied()),
                verdicts,
                container: Some(container),
                ..known
            }
        };
        let containers = self.list(filter).containers.into_iter().filter_map(|state| state.container);
        let containers = containers.map(usage).collect();
        proto::UsageSample { containers, ..self.state.usage.sampled.clone().unwrap_or_default() }
    }

    /// Gives every sample of usage since a time to `each`, oldest first. See [`Line::usage`] for what they have of containers.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn samples(
        &self,
        since: Option<Timestamp>,
        mut each: impl FnMut(proto::UsageSample),
    ) -> Result<(), Error> {
        let mut replay = self.watch(proto::WatchRequest::default());
        let is_in = |time: Timestamp| {
            since.is_none_or(|since| time >= since) && self.until.is_none_or(|until| time <= until)
        };
        let mut count = 0_usize;
        while let Some(line) = replay.line()? {
            match line {
                Line::Usage(sample) if sample.time.is_none_or(is_in) => each(*sample),
                _ => {}
            }
            count += 1;
            if count.is_multiple_of(BATCH) {
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }

    /// As the daemon's `Watch`, up to the end of the recording. Names are those that are known at its end.
    pub fn watch(&self, request: proto::WatchRequest) -> Replay {
        Replay {
            recording: self.clone(),
            parts: self.parts.to_vec().into(),
            lines: None,
            left: (request.limit > 0).then_some(request.limit),
            filter: Filter::unbounded(request.filter.clone().unwrap_or_default()),
            request,
        }
    }
}

/// The position that a line has.
fn position(line: &Line) -> Option<&proto::Position> {
    match line {
        Line::Snapshot(At { after, .. }) => after.as_ref(),
        Line::Event(event) => event.position.as_ref(),
        Line::Header(_) | Line::Verdicts(_) | Line::Usage(_) => None,
    }
}

/// That a part does not begin before the one that is to be older. Another epoch's numbers say nothing of that.
fn check_order(
    part: &Part,
    begin: Option<&proto::Position>,
    before: Option<&(&Part, proto::Position)>,
) -> Result<(), Error> {
    match (begin, before) {
        (Some(begin), Some((older, position)))
            if begin.epoch == position.epoch && begin.seq < position.seq =>
        {
            Err(Error::Order { path: part.path().to_owned(), before: older.path().to_owned() })
        }
        _ => Ok(()),
    }
}

/// By which a container and the one that was restarted in its place are the same, as for the daemon: namespace, pod and name. If
/// these are not known, its ID.
fn name(container: &proto::Container) -> [String; 3] {
    let pod = container.pod.as_ref();
    let names = (pod.and_then(|pod| pod.namespace.clone()), pod.and_then(|pod| pod.name.clone()));
    match (names, container.name.clone()) {
        ((Some(namespace), Some(pod)), Some(name)) => [namespace, pod, name],
        _ => [container.id.clone(), String::new(), String::new()],
    }
}

/// The events of a recording; see [`Recording::watch`].
#[derive(Debug)]
pub struct Replay {
    recording: Recording,
    parts: VecDeque<Part>,
    lines: Option<Lines>,
    /// How many events may follow.
    left: Option<u32>,
    filter: Filter,
    request: proto::WatchRequest,
}

impl Replay {
    /// The next batch of events; none at the end.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn next(&mut self) -> Result<Option<Item>, Error> {
        let mut batch = Vec::new();
        while batch.len() < BATCH && self.left != Some(0) {
            let Some(line) = self.line()? else { break };
            let Line::Event(mut event) = line else { continue };
            self.recording.names.name_event(&mut event);
            if self.wants(&event) {
                let is_counted = !EventKind::of(&event).is_some_and(EventKind::is_of_node);
                self.left = self.left.map(|left| left - u32::from(is_counted));
                batch.push(*event);
            }
        }
        tokio::task::yield_now().await;
        Ok((!batch.is_empty()).then_some(Item::Events(batch)))
    }

    fn wants(&self, event: &proto::Event) -> bool {
        let proto::WatchRequest { after, since, until, .. } = &self.request;
        let is_in = |time: Timestamp| {
            since.is_none_or(|since| time >= since)
                && until.is_none_or(|until| time <= until)
                && self.recording.until.is_none_or(|until| time <= until)
        };
        let is_before = |position: &proto::Position| {
            after.as_ref().is_some_and(|after| after.epoch == position.epoch && position.seq <= after.seq)
        };
        event.time.is_none_or(is_in)
            && !event.position.as_ref().is_some_and(is_before)
            && wants_event(&self.filter, event)
    }

    fn line(&mut self) -> Result<Option<Line>, Error> {
        loop {
            if let Some(lines) = &mut self.lines {
                if let Some(line) = lines.next().transpose()? {
                    return Ok(Some(line));
                }
                self.lines = None;
            }
            match self.parts.pop_front() {
                Some(part) => self.lines = Some(Lines::of(&part)?),
                None => return Ok(None),
            }
        }
    }
}

impl Names {
    fn learn(&mut self, line: &Line) {
        match line {
            Line::Header(_) | Line::Usage(_) => {}
            Line::Snapshot(snapshot) => {
                let containers =
                    snapshot.answer.containers.iter().filter_map(|state| state.container.as_ref());
                containers.for_each(|container| self.learn_container(container));
            }
            Line::Verdicts(verdicts) => {
                let containers = verdicts.answer.verdicts.iter().filter_map(|of| of.container.as_ref());
                containers.for_each(|container| self.learn_container(container));
            }
            Line::Event(event) => {
                if let Some(container) = &event.container {
                    self.learn_container(container);
                }
            }
        }
    }

    fn learn_container(&mut self, container: &proto::Container) {
        if container.name.is_some() || container.r#type() != proto::ContainerType::Unspecified {
            self.containers.insert(container.id.clone(), container.clone());
        }
        if let Some(pod) = container.pod.as_ref().filter(|pod| pod.name.is_some()) {
            self.pods.insert(pod.uid.clone(), pod.clone());
        }
    }

    fn name(&self, container: &mut proto::Container) {
        if let Some(known) = self.containers.get(&container.id).filter(|_| container.name.is_none()) {
            let proto::Container { name, image, labels, r#type, .. } = known.clone();
            (container.name, container.image, container.labels, container.r#type) =
                (name, image, labels, r#type);
        }
        if let Some(pod) = &mut container.pod {
            self.name_pod(pod);
        }
    }

    fn name_pod(&self, pod: &mut proto::Pod) {
        if let Some(known) = self.pods.get(&pod.uid).filter(|_| pod.name.is_none()) {
            pod.clone_from(known);
        }
    }

    fn name_event(&self, event: &mut proto::Event) {
        use proto::event::Kind;

        if let Some(container) = &mut event.container {
            self.name(container);
        }
        let cgroup = match &mut event.kind {
            Some(Kind::LimitChanged(changed)) => changed.cgroup.as_mut(),
            Some(Kind::Verdict(verdict)) => verdict.cgroup.as_mut(),
            Some(Kind::Pressure(pressure)) => pressure.cgroup.as_mut(),
            Some(Kind::OomKill(kill)) => match &mut kill.exhausted {
                Some(proto::oom_kill::Exhausted::LimitOf(cgroup)) => Some(cgroup),
                _ => None,
            },
            _ => None,
        };
        if let Some(pod) = cgroup.and_then(|cgroup| cgroup.pod.as_mut()) {
            self.name_pod(pod);
        }
    }
}
