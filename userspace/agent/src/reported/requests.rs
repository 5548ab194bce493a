//! What the container runtime was requested to set, as `kwitness cri-proxy` reports it: of each container the last value of each limit, and
//! the last request; of each sandbox likewise, for its pod.
//!
//! Owns that memory, bounded, and with it when requests were not observed. What came to its end is forgotten when the next request is
//! reported or a verdict is requested; what never began, after [`UNBORN`]. Never asks the runtime.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kwitness_core::model::{ContainerId, DesiredLimit, KernelTime, Observation, Resource, Unobserved};
use serde::{Deserialize, Serialize};

use super::check::{self, Malformed};
use super::desired::{self, Desired};
use super::unobserved::UnobservedTimes;
use kwitness_api::proto;

/// Containers and sandboxes of which requests are remembered, far more than a node has; the oldest is forgotten first, and counted.
const KNOWN_MAX: usize = 8192;
/// How long a container may take from its creation to its cgroup, which is made when it is started.
const UNBORN: u64 = 600_000_000_000;

/// The memory. Clones share it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub struct Requests(Arc<Mutex<Known>>);

#[derive(Clone, Debug, Default)]
struct Known {
    of: BTreeMap<Arc<str>, Requested>,
    /// The same ones: whether born, when requested last, the id. The first is the next to be forgotten.
    order: BTreeSet<(bool, u64, Arc<str>)>,
    reported: u64,
    malformed: u64,
    evicted: u64,
    missed: u64,
    unobserved: UnobservedTimes,
    /// When requests came that had to be forgotten.
    forgotten: Option<Unobserved>,
}

/// The same as it is written down.
#[derive(Serialize, Deserialize)]
struct Written {
    requests: Vec<Requested>,
    /// Of any container.
    unobserved: Vec<Unobserved>,
    /// Of one container.
    #[serde(default)]
    missed: BTreeMap<ContainerId, Unobserved>,
    #[serde(default)]
    forgotten: Option<Unobserved>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Requested {
    /// A container or a sandbox that is or was there.
    born: bool,
    limits: BTreeMap<Resource, DesiredLimit>,
    last: proto::CriRequest,
}

impl From<Written> for Requests {
    fn from(Written { requests, unobserved, missed, forgotten }: Written) -> Self {
        let unobserved = UnobservedTimes { of_any: unobserved, of_one: missed };
        let mut known = Known { unobserved, forgotten, ..Known::default() };
        requests.into_iter().for_each(|of| known.put(of.last.id.as_str().into(), of));
        Self(Arc::new(Mutex::new(known)))
    }
}

impl From<Requests> for Written {
    fn from(requests: Requests) -> Self {
        let known = requests.lock();
        let UnobservedTimes { of_any: unobserved, of_one: missed } = known.unobserved.clone();
        let requests = known.of.values().cloned().collect();
        Self { requests, unobserved, missed, forgotten: known.forgotten }
    }
}

impl Requests {
    /// Of a daemon that begins now: what was requested before is not known.
    pub(super) fn begin(now: KernelTime) -> Self {
        let requests = Self::default();
        requests.unobserved_from(KernelTime(0), now);
        requests
    }

    pub(super) fn copied(&self) -> Self {
        Self(Arc::new(Mutex::new(self.lock().clone())))
    }

    /// Looks at what a client reports: a request that is as it should be, to be taken in.
    ///
    /// # Errors
    /// What is wrong with it; it is counted.
    pub fn check(&self, request: proto::CriRequest, now: KernelTime) -> Result<proto::CriRequest, Malformed> {
        let checked = check::request(request, now);
        let mut known = self.lock();
        match checked {
            Ok(_) => known.reported += 1,
            Err(_) => known.malformed += 1,
        }
        checked
    }

    /// Looks at what a client reports to have missed: what is to be observed of it.
    ///
    /// # Errors
    /// What is wrong with it; it is counted.
    pub fn check_missed(
        &self,
        missed: proto::CriRequestsMissed,
        now: KernelTime,
    ) -> Result<Observation, Malformed> {
        check::missed(missed, now).inspect_err(|_| self.lock().malformed += 1)
    }

    /// Records one; returns whose requests had to be forgotten for that, if any.
    pub(super) fn take(&self, request: proto::CriRequest) -> Option<ContainerId> {
        let mut known = self.lock();
        let resources = request.resources.as_ref()?;
        let at = KernelTime(request.received);
        let new = match request.method() {
            proto::CriMethod::UpdatePodSandboxResources => desired::of_pod_request(resources, at),
            _ => desired::of_request(resources, at),
        };
        let is_full = known.of.len() >= KNOWN_MAX && !known.of.contains_key(request.id.as_str());
        let forgotten = is_full.then(|| known.evict()).flatten();
        let (id, mut requested) = known.take(&request.id).unwrap_or_else(|| {
            let last = request.clone();
            (request.id.as_str().into(), Requested { born: false, limits: BTreeMap::new(), last })
        });
        for (resource, limit) in new {
            // Reported in the order of the answers; what counts is the order of the requests.
            let last = requested.limits.entry(resource).or_insert(limit);
            if last.at <= limit.at {
                *last = limit;
            }
        }
        if requested.last.received <= request.received {
            requested.last = request;
        }
        known.put(id, requested);
        forgotten
    }

    /// From then to then, no request was observed.
    pub(super) fn unobserved_from(&self, from: KernelTime, to: KernelTime) {
        self.lock().unobserved.note(None, Unobserved { from, to });
    }

    /// So many were not, for that container's limits or for any.
    pub(super) fn missed(&self, container: Option<&ContainerId>, time: Unobserved, count: u64) {
        let mut known = self.lock();
        known.missed = known.missed.saturating_add(count);
        known.unobserved.note(container, time);
    }

    /// When requests for that container's limits may not have been observed.
    pub(super) fn unobserved(&self, id: &ContainerId) -> Vec<Unobserved> {
        let UnobservedTimes { of_any, of_one } = &self.lock().unobserved;
        of_any.iter().chain(of_one.get(id)).copied().collect()
    }

    /// When there were requests that may have been about this one: none is known that is.
    pub(super) fn forgotten(&self, id: &str) -> Option<Unobserved> {
        let known = self.lock();
        known.forgotten.filter(|_| !known.of.contains_key(id))
    }

    /// Whether none is remembered.
    pub(crate) fn is_empty(&self) -> bool {
        let known = self.lock();
        known.of.is_empty() && known.unobserved.of_one.is_empty()
    }

    /// Forgets what has ended, given all that is there.
    pub(crate) fn keep(&self, there: &BTreeSet<&str>, now: KernelTime) {
        let mut known = self.lock();
        known.unobserved.keep(there, now, UNBORN);
        let is_news = |(id, requested): &(&Arc<str>, &Requested)| {
            let waits_too_long = || now.0.saturating_sub(requested.last.answered) >= UNBORN;
            there.contains(&***id) != requested.born || !requested.born && waits_too_long()
        };
        let changed: Vec<_> = known.of.iter().filter(is_news).map(|(id, _)| id.clone()).collect();
        for id in changed {
            let taken = known.take(&id);
            if let Some((id, requested)) = taken.filter(|(id, _)| there.contains(&**id)) {
                known.put(id, Requested { born: true, ..requested });
            }
        }
    }

    /// What a container that is there, or the pod of such a sandbox, should have.
    pub(crate) fn desired(&self, id: &str) -> Vec<Desired> {
        let mut known = self.lock();
        let Some((id, mut requested)) = known.take(id) else { return Vec::new() };
        requested.born = true;
        let desired = requested.limits.iter().map(|(resource, limit)| (*resource, *limit)).collect();
        known.put(id, requested);
        desired
    }

    /// The last reported request.
    pub fn last(&self, id: &str) -> Option<proto::CriRequest> {
        self.lock().of.get(id).map(|requested| requested.last.clone())
    }

    /// What was counted.
    pub(super) fn counters(&self) -> [(&'static str, u64); 5] {
        let known = self.lock();
        [
            ("cri_requests_reported", known.reported),
            ("cri_requests_malformed", known.malformed),
            ("cri_requests_missed", known.missed),
            ("cri_requests_evicted", known.evicted),
            ("cri_requests_known", known.of.len() as u64),
        ]
    }

    /// Nothing that could panic runs while it is held.
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn take(&mut self, id: &str) -> Option<(Arc<str>, Requested)> {
        let (id, requested) = self.of.remove_entry(id)?;
        self.order.remove(&requested.rank(&id));
        Some((id, requested))
    }

    fn put(&mut self, id: Arc<str>, requested: Requested) {
        self.order.insert(requested.rank(&id));
        self.of.insert(id, requested);
    }

    /// The oldest goes first of those that are not seen to be there: what is reported of containers that do not exist costs those
    /// that are there nothing.
    fn evict(&mut self) -> Option<ContainerId> {
        let (_, _, oldest) = self.order.first()?.clone();
        let (oldest, Requested { limits, last, .. }) = self.take(&oldest)?;
        self.evicted += 1;
        let first = limits.values().map(|limit| limit.at).min().unwrap_or(KernelTime(last.received));
        super::extend(&mut self.forgotten, first, KernelTime(last.answered));
        Some(ContainerId(oldest))
    }
}

impl Requested {
    fn rank(&self, id: &Arc<str>) -> (bool, u64, Arc<str>) {
        (self.born, self.last.received, id.clone())
    }
}

#[cfg(test)]
mod tests {
    use kwitness_api::REQUEST_ID_BYTES_MAX as ID_MAX;
    use kwitness_core::model::{Bound, Wanted};

    use super::*;

    const NOW: KernelTime = KernelTime(1_000_000_000_000);

    fn update(id: &str, received: u64, memory: i64, shares: i64) -> proto::CriRequest {
        proto::CriRequest {
            method: proto::CriMethod::UpdateContainerResources.into(),
            id: id.to_owned(),
            received,
            answered: received + 5,
            code: Some(0),
            resources: Some(proto::CriResources {
                memory_limit_in_bytes: memory,
                cpu_shares: shares,
                ..Default::default()
            }),
        }
    }

    fn take(requests: &Requests, request: proto::CriRequest) -> Result<Option<ContainerId>, Malformed> {
        requests.check(request, NOW).map(|request| requests.take(request))
    }

    fn id(text: &str) -> ContainerId {
        ContainerId(text.into())
    }

    fn unobserved(from: u64, to: u64) -> Unobserved {
        Unobserved { from: KernelTime(from), to: KernelTime(to) }
    }

    fn wanted(requests: &Requests, id: &str) -> Vec<(u64, Wanted)> {
        requests.desired(id).into_iter().map(|(_, limit)| (limit.at.0, limit.wanted)).collect()
    }

    #[test]
    fn of_each_limit_the_last_word_counts_in_the_order_of_the_requests() {
        let requests = Requests::default();
        take(&requests, update("a", 10, 4096, 256)).unwrap();
        take(&requests, update("a", 30, 8192, 0)).unwrap();
        take(&requests, update("a", 20, 1, 512)).unwrap();
        let (shares, memory) = (Wanted::Shares(512), Wanted::Memory(Bound::At(8192)));
        assert_eq!(wanted(&requests, "a"), [(20, shares), (30, memory)]);
        assert_eq!(requests.last("a").unwrap().received, 30);
        assert_eq!(wanted(&requests, "b"), []);
    }

    #[test]
    fn what_is_written_down_is_read_again() {
        let requests = Requests::begin(KernelTime(5));
        take(&requests, update("a", 10, 4096, 256)).unwrap();
        take(&requests, update("a", 30, 8192, 0)).unwrap();
        take(&requests, update("b", 20, 1, 0)).unwrap();
        requests.missed(Some(&id("b")), unobserved(6, 7), 2);
        assert_eq!(wanted(&requests, "a").len(), 2, "it is there");
        let text = serde_json::to_string(&requests).unwrap();
        let again: Requests = serde_json::from_str(&text).unwrap();
        assert_eq!(wanted(&again, "a"), wanted(&requests, "a"));
        assert_eq!(again.last("b"), requests.last("b"));
        assert_eq!(again.lock().unobserved, requests.lock().unobserved);
        let (before, missed) = (unobserved(0, 5), unobserved(6, 7));
        assert_eq!(again.unobserved(&id("a")), [before]);
        assert_eq!(again.unobserved(&id("b")), [before, missed]);
        let (one, other) = (requests.lock(), again.lock());
        assert_eq!(one.order, other.order, "what is seen to be there stays longer");
    }

    #[test]
    fn what_is_reported_late_or_again_counts_as_of_its_request() {
        let requests = Requests::default();
        take(&requests, update("a", 30, 8192, 0)).unwrap();
        for _ in 0..2 {
            take(&requests, update("a", 20, 4096, 512)).unwrap();
            let (shares, memory) = (Wanted::Shares(512), Wanted::Memory(Bound::At(8192)));
            assert_eq!(wanted(&requests, "a"), [(20, shares), (30, memory)]);
            assert_eq!(requests.last("a").unwrap().received, 30);
        }
    }

    #[test]
    fn a_container_is_remembered_by_a_missed_request_alone_until_it_has_ended() {
        let requests = Requests::default();
        requests.missed(Some(&id("a")), unobserved(10, 20), 3);
        assert!(!requests.is_empty());
        assert_eq!(BTreeMap::from(requests.counters())["cri_requests_missed"], 3);
        requests.keep(&["a"].into(), KernelTime(20 + UNBORN));
        assert_eq!(
            (requests.unobserved(&id("a")), requests.unobserved(&id("b"))),
            (vec![unobserved(10, 20)], vec![])
        );
        requests.keep(&BTreeSet::new(), KernelTime(20 + UNBORN));
        assert!(requests.is_empty());
    }

    /// The kubelet's CPU manager sends these every ten seconds.
    #[test]
    fn a_thousand_requests_without_limits_change_only_the_last_one() {
        let requests = Requests::default();
        take(&requests, update("a", 10, 8192, 512)).unwrap();
        let limits = wanted(&requests, "a");
        assert_eq!(limits.len(), 2);
        for received in (20..).step_by(10).take(1000) {
            assert_eq!(take(&requests, update("a", received, 0, 0)).unwrap(), None);
            assert_eq!(requests.last("a").unwrap().received, received);
        }
        assert_eq!(wanted(&requests, "a"), limits);
        let known = requests.lock();
        assert_eq!((known.of.len(), known.order.len(), known.evicted), (1, 1, 0));
    }

    #[test]
    fn what_ended_is_forgotten_and_what_was_not_begun_is_waited_for() {
        let requests = Requests::default();
        for id in ["old", "new", "stays"] {
            take(&requests, update(id, NOW.0 - 10, 4096, 0)).unwrap();
        }
        requests.keep(&["old", "stays"].into(), NOW);
        requests.keep(&["stays"].into(), NOW);
        assert!(requests.last("old").is_none(), "it was there, and is no longer");
        assert!(requests.last("new").is_some() && requests.last("stays").is_some());
        requests.keep(&["stays"].into(), KernelTime(NOW.0 + UNBORN));
        assert!(requests.last("new").is_none(), "it never was");
        assert_eq!(BTreeMap::from(requests.counters())["cri_requests_known"], 1);
    }

    #[test]
    fn what_was_judged_and_ended_between_two_looks_is_forgotten() {
        let requests = Requests::default();
        take(&requests, update("a", NOW.0 - 10, 4096, 0)).unwrap();
        assert_eq!(requests.desired("a").len(), 1);
        requests.keep(&BTreeSet::new(), NOW);
        assert!(requests.last("a").is_none());
    }

    #[test]
    fn the_memory_is_bounded_and_the_oldest_goes_first() {
        let requests = Requests::default();
        let report = |number: usize| {
            let forgotten = take(&requests, update(&number.to_string(), 1 + number as u64, 4096, 0));
            forgotten.unwrap().map(|id| id.to_string())
        };
        assert_eq!(report(0), None);
        assert_eq!(requests.desired("0").len(), 1, "a container that is there");
        assert!((1..KNOWN_MAX).all(|number| report(number).is_none()));
        assert_eq!(report(KNOWN_MAX).as_deref(), Some("1"));
        assert!(requests.last("1").is_none() && requests.last("0").is_some() && requests.last("2").is_some());
        let counters = BTreeMap::from(requests.counters());
        assert_eq!((counters["cri_requests_known"], counters["cri_requests_evicted"]), (KNOWN_MAX as u64, 1));
        let when = Unobserved { from: KernelTime(2), to: KernelTime(7) };
        assert_eq!((requests.forgotten("1"), requests.forgotten("2")), (Some(when), None));
        let again: Requests = serde_json::from_str(&serde_json::to_string(&requests).unwrap()).unwrap();
        assert_eq!(again.forgotten("1"), Some(when));
        // What is requested again, is seen to be there or ends changes its place.
        take(&requests, update("2", NOW.0 - 10, 4096, 0)).unwrap();
        requests.keep(&["0", "3"].into(), KernelTime(0));
        assert_eq!(report(KNOWN_MAX + 1).as_deref(), Some("4"));
        requests.keep(&["0"].into(), KernelTime(0));
        assert_eq!(report(KNOWN_MAX + 2), None, "in the place of the one that ended");
        let known = requests.lock();
        assert!(known.of.iter().map(|(id, of)| of.rank(id)).collect::<BTreeSet<_>>() == known.order);
    }

    #[test]
    fn what_is_malformed_is_named_and_counted() {
        let requests = Requests::default();
        let good = || update("a", 10, 4096, 0);
        for (request, why) in [
            (proto::CriRequest { method: 0, ..good() }, Malformed::Method(0)),
            (proto::CriRequest { method: 99, ..good() }, Malformed::Method(99)),
            (proto::CriRequest { id: String::new(), ..good() }, Malformed::Id),
            (proto::CriRequest { id: "x".repeat(ID_MAX + 1), ..good() }, Malformed::Id),
            (proto::CriRequest { received: 0, ..good() }, Malformed::Time),
            (proto::CriRequest { answered: 9, ..good() }, Malformed::Time),
            (update("a", NOW.0 + 1, 4096, 0), Malformed::Time),
            // It would never be too old to be kept.
            (proto::CriRequest { answered: u64::MAX, ..good() }, Malformed::Time),
            (proto::CriRequest { resources: None, ..good() }, Malformed::Resources),
        ] {
            assert_eq!(take(&requests, request), Err(why));
        }
        let missed = || proto::CriRequestsMissed { id: String::new(), count: 1, from: 10, to: 20 };
        for wrong in [
            proto::CriRequestsMissed { id: "x".repeat(ID_MAX + 1), ..missed() },
            proto::CriRequestsMissed { count: 0, ..missed() },
            proto::CriRequestsMissed { from: 0, ..missed() },
            proto::CriRequestsMissed { from: 21, ..missed() },
            proto::CriRequestsMissed { to: NOW.0 + 1, ..missed() },
        ] {
            assert_eq!(requests.check_missed(wrong, NOW), Err(Malformed::Missed));
        }
        assert!(requests.check_missed(missed(), NOW).is_ok());
        assert_eq!(BTreeMap::from(requests.counters())["cri_requests_malformed"], 14);
        assert_eq!(BTreeMap::from(requests.counters())["cri_requests_reported"], 0);
        let resources = Some(proto::CriResources {
            memory_swap_max: "9".repeat(1000),
            memory_high: "max, or so".to_owned(),
            ..Default::default()
        });
        take(&requests, proto::CriRequest { resources, ..good() }).unwrap();
        assert_eq!(requests.last("a").unwrap().resources, Some(proto::CriResources::default()));
    }
}
