//! What the events say of the workload, counted: containers by state, OOM kills and verdicts by container, and sums for the node.
//!
//! ```text
//!  Created ──▶ Unnamed ──names──▶ Named(key) ── Deleted ──▶ the key's series stay for KEEP, then go
//!                        └─ no room ──▶ Omitted, counted
//! ```
//!
//! Series belong to a key (namespace, pod, container name), not to a container: a restarted container goes on with the same counter.
//! Owns the bound on keys: those that are gone give way to those that live, the oldest first. Pure: time comes in with each call.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kwitness_core::model::{
    CgroupId, ContainerState, ContainerType, KernelTime, LastVerdict, Resource, State, Subject,
};
use kwitness_service::metrics::{Histogram, label_value};

use super::words;
use crate::clock::Clock;
use crate::config::Labels;
use crate::hub::JournalEvent;
use crate::wire::verdicts;
use kwitness_api::{EventKind, proto};

/// How long a counter stays after the last container of its key is gone: several scrapes, and every usual range of a rule.
pub(super) const KEEP: Duration = Duration::from_secs(15 * 60);
/// Keys that have series: four times the containers of a full node (110 pods by default).
pub(super) const KEYS_MAX: usize = 4096;

/// From a millisecond to a minute: a container starts in tens to hundreds of milliseconds, a limit takes effect in about ten.
const DURATIONS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// What a container's series are labelled with; empty: that label is not configured, or there is none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub(super) namespace: Arc<str>,
    pub(super) pod: Arc<str>,
    pub(super) container: Arc<str>,
}

/// A key's counter.
#[derive(Debug, Default)]
pub(super) struct Series {
    pub(super) oom_kills: u64,
    /// Containers that have the key at present.
    live: usize,
    /// Since when there is none.
    gone: Option<Instant>,
}

/// Whose series a container's are.
#[derive(Debug)]
enum Naming {
    /// Not known yet; so many OOM kills wait for it.
    Unnamed {
        oom_kills: u64,
    },
    /// There was no room.
    Omitted,
    Named(Key),
    /// A sandbox, which has no series.
    Sandbox,
}

type Verdicts = [Option<proto::VerdictKind>; Resource::ALL.len()];

#[derive(Debug)]
struct Container {
    pod_uid: Option<Arc<str>>,
    naming: Naming,
    state: State,
    created: Option<KernelTime>,
    verdicts: Verdicts,
    /// The request for each limit that was last found in force.
    enforced: [Option<KernelTime>; Resource::ALL.len()],
}

/// A pod, as long as it has a container.
#[derive(Debug, Default)]
struct Pod {
    containers: usize,
    /// On its own limits.
    verdicts: Verdicts,
}

/// The metrics of containers.
#[derive(Debug)]
pub(super) struct Workload {
    labels: Labels,
    containers: HashMap<CgroupId, Container>,
    /// The pods of these containers, by UID.
    pods: HashMap<Arc<str>, Pod>,
    series: HashMap<Key, Series>,
    pub(super) events: [u64; EventKind::ALL.len()],
    pub(super) gaps: BTreeMap<&'static str, u64>,
    pub(super) oom_kills: BTreeMap<&'static str, u64>,
    pub(super) stops: BTreeMap<&'static str, u64>,
    pub(super) limit_changes: BTreeMap<(String, &'static str), u64>,
    pub(super) start: Histogram,
    pub(super) enforcement: [Histogram; Resource::ALL.len()],
    pub(super) omitted: u64,
    pub(super) missed: u64,
}

impl Workload {
    pub(super) fn new(labels: Labels) -> Self {
        let zeros = |names: &[&'static str]| names.iter().map(|name| (*name, 0)).collect();
        Self {
            labels,
            containers: HashMap::new(),
            pods: HashMap::new(),
            series: HashMap::new(),
            events: [0; EventKind::ALL.len()],
            gaps: zeros(words::GAP_CAUSES),
            oom_kills: zeros(words::OOM_SCOPES),
            stops: zeros(words::STOP_REASONS),
            limit_changes: Resource::ALL
                .into_iter()
                .flat_map(|resource| {
                    words::OUTCOMES.iter().map(move |of| ((resource.file().to_string(), *of), 0))
                })
                .collect(),
            start: Histogram::new(DURATIONS),
            enforcement: Resource::ALL.map(|_| Histogram::new(DURATIONS)),
            omitted: 0,
            missed: 0,
        }
    }

    /// Begins to count. What was taken so far says what there is; an earlier daemon has counted it.
    pub(super) fn begin(&mut self) {
        let uncounted = Self::new(self.labels);
        let Self { containers, pods, series, .. } = std::mem::replace(self, uncounted);
        (self.containers, self.pods, self.series) = (containers, pods, series);
        self.series.values_mut().for_each(|series| series.oom_kills = 0);
        for container in self.containers.values_mut() {
            if let Naming::Unnamed { oom_kills } = &mut container.naming {
                *oom_kills = 0;
            }
        }
    }

    /// Takes the next event.
    pub(super) fn take(&mut self, event: &JournalEvent, now: Instant) {
        if let Some(counter) = EventKind::ALL.iter().position(|kind| *kind == event.kind) {
            self.events[counter] += 1;
        }
        // Most events are these, and only their number is of interest.
        if matches!(event.kind, EventKind::Exec | EventKind::Exited | EventKind::Resynced) {
            return;
        }
        let subject = event.subject.as_deref();
        if let Some(subject) = subject {
            if event.kind == EventKind::Created {
                self.containers.entry(subject.cgroup_id).or_insert_with(|| Container::new(State::Created));
            }
            self.name(subject);
        }
        self.count(event, subject);
        if let (EventKind::Deleted, Some(subject)) = (event.kind, subject) {
            self.remove(subject.cgroup_id, now);
        }
    }

    fn count(&mut self, event: &JournalEvent, subject: Option<&Subject>) {
        use proto::event::Kind;
        let message = event.decode();
        let by_kernel = matches!(message.basis(), proto::Basis::CgroupMkdir | proto::Basis::TaskExec);
        let container = subject.and_then(|subject| self.containers.get_mut(&subject.cgroup_id));
        match (message.kind, container) {
            (Some(Kind::Created(_)), Some(container)) if by_kernel => container.created = Some(event.at),
            (Some(Kind::Started(_)), Some(container)) => {
                container.state = State::Running;
                if let Some(created) = container.created.take().filter(|_| by_kernel)
                    && !matches!(container.naming, Naming::Sandbox)
                {
                    self.start.observe(seconds(created, event.at));
                }
            }
            (Some(Kind::Stopped(stopped)), container) => {
                let is_sandbox = container.as_ref().is_some_and(|of| matches!(of.naming, Naming::Sandbox));
                if let Some(container) = container {
                    container.state = State::Stopped;
                }
                if !is_sandbox {
                    *self.stops.entry(words::stop_reason(&stopped)).or_default() += 1;
                }
            }
            (Some(Kind::OomKill(kill)), container) => {
                *self.oom_kills.entry(words::oom_scope(&kill)).or_default() += 1;
                match container.map(|container| &mut container.naming) {
                    Some(Naming::Unnamed { oom_kills }) => *oom_kills += 1,
                    Some(Naming::Named(key)) => {
                        if let Some(series) = self.series.get_mut(key) {
                            series.oom_kills += 1;
                        }
                    }
                    Some(Naming::Omitted | Naming::Sandbox) | None => {}
                }
            }
            (Some(Kind::LimitChanged(change)), _) => {
                let outcome = words::outcome(change.write.as_ref());
                *self.limit_changes.entry((change.file, outcome)).or_default() += 1;
            }
            (Some(Kind::Verdict(verdict)), _) => self.judged(&verdict, subject),
            (Some(Kind::Gap(gap)), _) => *self.gaps.entry(words::gap_cause(gap.cause())).or_default() += 1,
            _ => {}
        }
    }

    fn judged(&mut self, verdict: &proto::Verdict, subject: Option<&Subject>) {
        let Some(at) = Resource::ALL.iter().position(|resource| resource.file().to_string() == verdict.file)
        else {
            return;
        };
        if let Some(subject) = subject {
            let Some(container) = self.containers.get_mut(&subject.cgroup_id) else { return };
            container.verdicts[at] = Some(verdict.verdict());
            if let Some((requested, returned)) = enforcement(verdict)
                && container.enforced[at].replace(requested) != Some(requested)
            {
                self.enforcement[at].observe(seconds(requested, returned));
            }
        } else if let Some(pod) = verdict.cgroup.as_ref().and_then(|cgroup| cgroup.pod.as_ref())
            && let Some(pod) = self.pods.get_mut(pod.uid.as_str())
        {
            pod.verdicts[at] = Some(verdict.verdict());
        }
    }

    /// Gives a container the series of its names, once they are known.
    fn name(&mut self, subject: &Subject) {
        let Some(container) = self.containers.get_mut(&subject.cgroup_id) else { return };
        if let (None, Some(pod)) = (&container.pod_uid, &subject.pod) {
            let uid = Arc::clone(&pod.uid.0);
            self.pods.entry(Arc::clone(&uid)).or_default().containers += 1;
            container.pod_uid = Some(uid);
        }
        let (Some(facts), Naming::Unnamed { oom_kills }) = (&subject.facts, &container.naming) else {
            return;
        };
        if facts.container_type == ContainerType::Sandbox {
            container.naming = Naming::Sandbox;
            return;
        }
        let text = |is_on, text: &Option<Arc<str>>| match text {
            Some(text) if is_on => label_value(text).into(),
            _ => Arc::from(""),
        };
        let key = Key {
            namespace: text(self.labels.namespace, &facts.pod_namespace),
            pod: text(self.labels.pod, &facts.pod_name),
            container: text(self.labels.container, &facts.name),
        };
        let oom_kills = *oom_kills;
        container.naming = if has_room(&mut self.series, &key) {
            let series = self.series.entry(key.clone()).or_default();
            series.live += 1;
            series.gone = None;
            series.oom_kills += oom_kills;
            Naming::Named(key)
        } else {
            self.omitted += 1;
            Naming::Omitted
        };
    }

    fn remove(&mut self, cgroup: CgroupId, now: Instant) {
        let Some(container) = self.containers.remove(&cgroup) else { return };
        if let Naming::Named(key) = &container.naming
            && let Some(series) = self.series.get_mut(key)
        {
            series.live -= 1;
            series.gone = (series.live == 0).then_some(now);
        }
        if let Some(uid) = container.pod_uid
            && let Some(pod) = self.pods.get_mut(&uid)
        {
            pod.containers -= 1;
            if pod.containers == 0 {
                self.pods.remove(&uid);
            }
        }
    }

    /// Lets go of the counters whose containers have been gone for long enough.
    pub(super) fn forget(&mut self, now: Instant) {
        self.series
            .retain(|_, series| series.gone.is_none_or(|gone| now.saturating_duration_since(gone) < KEEP));
    }

    /// Takes the containers and the last verdicts that there are instead of those known, after events were missed.
    pub(super) fn resync(&mut self, containers: &[ContainerState], last: &[LastVerdict], now: Instant) {
        let there: HashMap<CgroupId, &ContainerState> =
            containers.iter().map(|state| (state.subject.cgroup_id, state)).collect();
        let gone: Vec<CgroupId> =
            self.containers.keys().filter(|cgroup| !there.contains_key(cgroup)).copied().collect();
        gone.into_iter().for_each(|cgroup| self.remove(cgroup, now));
        for (cgroup, state) in there {
            self.containers.entry(cgroup).or_insert_with(|| Container::new(state.state)).state = state.state;
            self.name(&state.subject);
        }
        self.pods.values_mut().for_each(|pod| pod.verdicts = Verdicts::default());
        self.containers.values_mut().for_each(|container| container.verdicts = Verdicts::default());
        for LastVerdict { subject, pod, resource, verdict } in last {
            let all = match (subject, pod) {
                (Some(subject), _) => {
                    self.containers.get_mut(&subject.cgroup_id).map(|container| &mut container.verdicts)
                }
                (None, Some(uid)) => self.pods.get_mut(&uid.0).map(|pod| &mut pod.verdicts),
                (None, None) => None,
            };
            let at = Resource::ALL.iter().position(|of| of == resource);
            if let Some(known) = all.zip(at).and_then(|(all, at)| all.get_mut(at)) {
                *known = Some(verdicts::kind(verdict));
            }
        }
    }

    /// How many containers are in that state, without sandboxes.
    pub(super) fn in_state(&self, state: State) -> usize {
        let is_app = |container: &&Container| !matches!(container.naming, Naming::Sandbox);
        self.containers.values().filter(is_app).filter(|container| container.state == state).count()
    }

    /// Every key's counter.
    pub(super) fn series(&self) -> impl ExactSizeIterator<Item = (&Key, &Series)> {
        self.series.iter()
    }

    /// How many limits of each key have which verdict.
    pub(super) fn verdicts(&self) -> BTreeMap<(Key, &'static str, &'static str), u64> {
        let mut sums = BTreeMap::new();
        let mut pod_keys: HashMap<&str, Key> = HashMap::new();
        let mut add = |key: &Key, verdicts: &Verdicts| {
            for (resource, verdict) in Resource::ALL.into_iter().zip(verdicts) {
                let Some(verdict) = verdict else { continue };
                let key = (key.clone(), words::resource(resource), words::verdict(*verdict));
                *sums.entry(key).or_insert(0) += 1;
            }
        };
        for container in self.containers.values() {
            let Naming::Named(key) = &container.naming else { continue };
            add(key, &container.verdicts);
            if let Some(uid) = &container.pod_uid {
                pod_keys.insert(uid, Key { container: "".into(), ..key.clone() });
            }
        }
        for (uid, pod) in &self.pods {
            if let Some(key) = pod_keys.get(&**uid) {
                add(key, &pod.verdicts);
            }
        }
        sums
    }
}

impl Container {
    fn new(state: State) -> Self {
        Self {
            pod_uid: None,
            naming: Naming::Unnamed { oom_kills: 0 },
            state,
            created: None,
            verdicts: Verdicts::default(),
            enforced: Default::default(),
        }
    }
}

/// Whether the key has series, or may have: then the longest gone has made room.
fn has_room(series: &mut HashMap<Key, Series>, key: &Key) -> bool {
    if series.len() < KEYS_MAX || series.contains_key(key) {
        return true;
    }
    let gone = series.iter().filter_map(|(key, series)| Some((series.gone?, key)));
    let oldest = gone.min().map(|(_, key)| key.clone());
    oldest.is_some_and(|oldest| series.remove(&oldest).is_some())
}

/// When the limit was requested by way of the CRI proxy, and when the write that followed returned, if it is in force by that.
fn enforcement(verdict: &proto::Verdict) -> Option<(KernelTime, KernelTime)> {
    let is_cri_request = |desired: &&proto::DesiredLimit| desired.source() == proto::Source::CriRequest;
    let requested = verdict.desired.iter().find(is_cri_request)?.time?;
    let requested = Clock::read().kernel(requested);
    let returned = KernelTime(verdict.written.as_ref()?.returned?);
    let is_in_force = verdict.verdict() == proto::VerdictKind::InForce;
    (is_in_force && requested <= returned).then_some((requested, returned))
}

fn seconds(from: KernelTime, to: KernelTime) -> f64 {
    Duration::from_nanos(to.0.saturating_sub(from.0)).as_secs_f64()
}

#[cfg(test)]
mod tests;
