//! What waits for the daemon: requests, and how many were missed.
//!
//! ```text
//!   request ──▶ of its container only what counts ──▶ in the order of the calls' ends ──batch──▶ the daemon
//!                 └─ set anew by others: superseded        └─ too many bytes: the oldest is missed
//!   missed ───▶ summed by container ──────────────────────────────────────────────────────batch──▶
//! ```
//!
//! Owns the queue, bounded in bytes. Of a container wait the youngest request that sets each limit, and the youngest of all: this is all
//! that the daemon would remember. So a container that is updated without end has no more than its share, and a kubelet's CPU manager,
//! whose requests set no limit, takes none of the others'. What is on its way stays until the daemon has taken it.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::super::counters::Counters;
use super::super::limits;
use super::report::Report;
use kwitness_api::REQUESTS_MAX;
use kwitness_api::proto::{self, CriMethod};

/// What a request may be the last to say: one of the limits, by the daemon's rules, or anything at all.
const SAYS: [fn(&proto::CriResources) -> bool; 6] = [
    |of| of.cpu_quota != 0,
    |of| of.cpu_shares > 0,
    |of| of.memory_limit_in_bytes != 0,
    |of| !of.memory_swap_max.is_empty(),
    |of| !of.memory_high.is_empty(),
    |_| true,
];

/// What waits.
#[derive(Debug)]
pub struct Backlog {
    waiting: Mutex<Waiting>,
    news: Notify,
    emptied: Notify,
    counters: Arc<Counters>,
}

/// Whose limits these are: a pod's, by its sandbox, or a container's; and the id.
type Whose = (bool, String);

#[derive(Debug, Default)]
struct Waiting {
    /// By number, in the order in which the calls ended.
    requests: BTreeMap<u64, proto::CriRequest>,
    /// Their numbers.
    of: HashMap<Whose, Vec<u64>>,
    /// The next request's number.
    next: u64,
    bytes: usize,
    /// Those before that number are on their way to the daemon.
    sent: u64,
    /// What was missed of the batch that is on its way, if one is.
    sent_missed: Option<Vec<proto::CriRequestsMissed>>,
    /// By the id, which is empty where it is not known.
    missed: BTreeMap<String, proto::CriRequestsMissed>,
}

impl Backlog {
    /// An empty one.
    pub fn new(counters: Arc<Counters>) -> Self {
        Self { waiting: Mutex::default(), news: Notify::new(), emptied: Notify::new(), counters }
    }

    /// Puts down what is to be reported.
    pub fn push(&self, report: Report) {
        let mut waiting = self.lock();
        match report {
            Report::Request(request) => {
                self.counters.requests_superseded.add(waiting.push(request));
                self.counters.requests_dropped.add(waiting.shrink());
            }
            Report::Missed(missed) => waiting.miss(missed),
        }
        self.news.notify_one();
    }

    /// What is to be sent next, as soon as there is anything. It is either [taken](Self::taken), or [not](Self::not_taken).
    pub async fn batch(&self) -> proto::ReportCriRequestsRequest {
        loop {
            if let Some(batch) = self.lock().batch() {
                return batch;
            }
            self.news.notified().await;
        }
    }

    /// The daemon has taken the last batch.
    pub fn taken(&self) {
        let mut waiting = self.lock();
        let taken: Vec<u64> = waiting.requests.range(..waiting.sent).map(|(number, _)| *number).collect();
        taken.into_iter().for_each(|number| drop(waiting.remove(number)));
        waiting.sent_missed = None;
        self.emptied.notify_one();
    }

    /// It has not: what it has is sent again.
    pub fn not_taken(&self) {
        let mut waiting = self.lock();
        waiting.sent = 0;
        waiting.sent_missed.take().into_iter().flatten().for_each(|missed| waiting.miss(missed));
    }

    /// All that waits, and what is on its way: it may be sent twice.
    pub fn all(&self) -> proto::ReportCriRequestsRequest {
        let waiting = self.lock();
        let (requests, missed) = (waiting.requests.values(), waiting.missed.values());
        proto::ReportCriRequestsRequest {
            requests: requests.cloned().collect(),
            missed: missed.chain(waiting.sent_missed.iter().flatten()).cloned().collect(),
        }
    }

    /// Waits until the daemon has taken all of it. For one at a time.
    pub async fn emptied(&self) {
        while !self.lock().is_empty() {
            self.emptied.notified().await;
        }
    }

    /// Nothing that could panic runs while it is held.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// Puts down a request; returns how many need not be reported any more.
    fn push(&mut self, request: proto::CriRequest) -> u64 {
        let (number, whose) = (self.next, whose(&request));
        self.next += 1;
        self.bytes += cost(&request);
        self.requests.insert(number, request);
        let numbers = self.of.entry(whose).or_default();
        numbers.push(number);
        let mut counts = BTreeSet::new();
        for says in SAYS {
            let received = |number: &u64| {
                let request = self.requests.get(number)?;
                request.resources.as_ref().is_some_and(says).then_some((request.received, *number))
            };
            counts.extend(numbers.iter().filter_map(received).max().map(|(_, number)| number));
        }
        let is_superseded = |number: &u64| *number >= self.sent && !counts.contains(number);
        let superseded: Vec<u64> = numbers.iter().copied().filter(is_superseded).collect();
        superseded.iter().for_each(|number| drop(self.remove(*number)));
        superseded.len() as u64
    }

    /// Makes the oldest ones missed while they are too large; returns how many.
    fn shrink(&mut self) -> u64 {
        let mut count = 0;
        while self.bytes > limits::REQUESTS_WAITING {
            let oldest = self.requests.range(self.sent..).next().map(|(number, _)| *number);
            let Some(request) = oldest.and_then(|number| self.remove(number)) else { break };
            let proto::CriRequest { id, received: from, answered: to, .. } = request;
            self.miss(proto::CriRequestsMissed { id, count: 1, from, to });
            count += 1;
        }
        count
    }

    fn remove(&mut self, number: u64) -> Option<proto::CriRequest> {
        let request = self.requests.remove(&number)?;
        self.bytes -= cost(&request);
        if let Entry::Occupied(mut of) = self.of.entry(whose(&request)) {
            of.get_mut().retain(|other| *other != number);
            if of.get().is_empty() {
                of.remove();
            }
        }
        Some(request)
    }

    /// Adds to what was missed; of too many containers, without the id.
    fn miss(&mut self, missed: proto::CriRequestsMissed) {
        let proto::CriRequestsMissed { mut id, count, from, to } = missed;
        if self.missed.len() >= REQUESTS_MAX - 1 && !self.missed.contains_key(&id) {
            id.clear();
        }
        let of = self.missed.entry(id).or_insert_with_key(|id| {
            let id = id.clone();
            proto::CriRequestsMissed { id, count: 0, from, to }
        });
        of.count += count;
        (of.from, of.to) = (of.from.min(from), of.to.max(to));
    }

    fn batch(&mut self) -> Option<proto::ReportCriRequestsRequest> {
        let first = self.requests.iter().take(REQUESTS_MAX);
        let (numbers, requests): (Vec<u64>, Vec<_>) = first.map(|(number, of)| (*number, of.clone())).unzip();
        if let Some(last) = numbers.last() {
            self.sent = last + 1;
        }
        let missed: Vec<_> = mem::take(&mut self.missed).into_values().collect();
        if requests.is_empty() && missed.is_empty() {
            return None;
        }
        self.sent_missed = Some(missed.clone());
        Some(proto::ReportCriRequestsRequest { requests, missed })
    }

    fn is_empty(&self) -> bool {
        self.requests.is_empty() && self.missed.is_empty() && self.sent_missed.is_none()
    }
}

fn whose(request: &proto::CriRequest) -> Whose {
    (request.method() == CriMethod::UpdatePodSandboxResources, request.id.clone())
}

/// Bytes that one takes, with its place in both tables.
fn cost(request: &proto::CriRequest) -> usize {
    let texts = request.resources.as_ref().map_or(0, |of| of.memory_swap_max.len() + of.memory_high.len());
    size_of::<(u64, proto::CriRequest)>() + size_of::<(Whose, Vec<u64>)>() + 2 * request.id.len() + texts
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::time::timeout;

    use super::*;

    fn update(id: &str, received: u64, resources: proto::CriResources) -> proto::CriRequest {
        proto::CriRequest {
            method: CriMethod::UpdateContainerResources.into(),
            id: id.to_owned(),
            received,
            answered: received + 5,
            code: Some(0),
            resources: Some(resources),
        }
    }

    fn memory(bytes: i64) -> proto::CriResources {
        proto::CriResources { memory_limit_in_bytes: bytes, ..Default::default() }
    }

    fn received(batch: &proto::ReportCriRequestsRequest) -> Vec<u64> {
        batch.requests.iter().map(|request| request.received).collect()
    }

    /// What the daemon would remember of these: the last word on each limit, and the last request.
    fn remembered(requests: &[proto::CriRequest]) -> BTreeMap<(String, usize), (u64, proto::CriRequest)> {
        let mut last = BTreeMap::new();
        for request in requests {
            for (limit, says) in SAYS.into_iter().enumerate() {
                if says(request.resources.as_ref().unwrap()) {
                    let known = last
                        .entry((request.id.clone(), limit))
                        .or_insert((request.received, request.clone()));
                    if known.0 <= request.received {
                        *known = (request.received, request.clone());
                    }
                }
            }
        }
        last
    }

    fn ids() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec!["a", "b"])
    }

    fn texts() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec!["", "max", "7"])
    }

    proptest! {
        #[test]
        fn what_is_superseded_is_nothing_to_the_daemon(
            calls in prop::collection::vec((ids(), 0_u64..20, -1_i64..2, -1_i64..2, -1_i64..2, texts(), texts()), 0..60),
            outages in prop::collection::vec(any::<bool>(), 0..60),
        ) {
            let (mut waiting, mut all, mut taken) = (Waiting::default(), Vec::new(), Vec::new());
            let mut outages = outages.into_iter().cycle();
            let mut pending: Option<proto::ReportCriRequestsRequest> = None;
            for (id, received, quota, shares, bytes, swap, high) in calls {
                let request = update(id, received, proto::CriResources {
                    cpu_period: 100_000,
                    cpu_quota: quota,
                    cpu_shares: shares,
                    memory_limit_in_bytes: bytes,
                    memory_swap_max: swap.to_owned(),
                    memory_high: high.to_owned(),
                });
                all.push(request.clone());
                waiting.push(request);
                // A batch is on its way while others come, and arrives or not.
                match pending.take() {
                    Some(batch) if outages.next() == Some(true) => {
                        let numbers: Vec<_> = waiting.requests.range(..waiting.sent).map(|(of, _)| *of).collect();
                        prop_assert_eq!(numbers.len(), batch.requests.len());
                        numbers.into_iter().for_each(|of| drop(waiting.remove(of)));
                        taken.extend(batch.requests);
                    }
                    Some(_) => waiting.sent = 0,
                    None => pending = waiting.batch(),
                }
            }
            taken.extend(waiting.requests.values().cloned());
            prop_assert_eq!(remembered(&taken), remembered(&all));
        }
    }

    #[test]
    fn a_container_that_is_updated_without_end_costs_no_other_its_requests() {
        let mut waiting = Waiting::default();
        let quiet = update("quiet", 1, memory(1));
        waiting.push(quiet.clone());
        for received in 2..10_000 {
            let resources = proto::CriResources {
                cpu_quota: received % 2,
                memory_limit_in_bytes: received % 3,
                ..Default::default()
            };
            waiting.push(update("busy", received.unsigned_abs(), resources));
            assert_eq!(waiting.shrink(), 0);
        }
        assert!(waiting.requests.len() <= 1 + SAYS.len(), "{waiting:?}");
        assert_eq!(waiting.batch().unwrap().requests[0], quiet);
        assert!(waiting.missed.is_empty());
    }

    #[test]
    fn of_too_many_the_oldest_are_missed_by_their_containers_and_of_too_many_of_these_without() {
        let mut waiting = Waiting::default();
        let mut number = 0;
        while waiting.shrink() == 0 {
            number += 1;
            waiting.push(update(&format!("{number:064}"), number, memory(1)));
        }
        assert_eq!(waiting.requests.len() as u64, number - 1, "the least that had to go");
        for _ in 0..REQUESTS_MAX {
            number += 1;
            waiting.push(update(&format!("{number:064}"), number, memory(1)));
            assert_eq!(waiting.shrink(), 1);
        }
        assert!(waiting.bytes <= limits::REQUESTS_WAITING);
        let batch = waiting.batch().unwrap();
        assert_eq!(batch.missed.len(), REQUESTS_MAX);
        let [unnamed, named @ ..] = &batch.missed[..] else { panic!("{batch:?}") };
        let missed = |id: &str, count, from, to| {
            let id = id.to_owned();
            proto::CriRequestsMissed { id, count, from, to }
        };
        assert_eq!(*unnamed, missed("", 2, 256, 262));
        assert_eq!(named[0], missed(&format!("{:064}", 1), 1, 1, 6));
        assert_eq!(batch.requests[0].received, 258);
    }

    #[test]
    fn what_is_on_its_way_stays_until_it_is_taken() {
        let backlog = Backlog::new(Arc::default());
        let push = |received| backlog.push(Report::Request(update("a", received, memory(1))));
        let missed = proto::CriRequestsMissed { id: String::new(), count: 2, from: 10, to: 20 };
        push(1);
        backlog.push(Report::Missed(missed.clone()));
        let batch = backlog.lock().batch().unwrap();
        assert_eq!((received(&batch), &batch.missed), (vec![1], &vec![missed.clone()]));
        push(2);
        let later = proto::CriRequestsMissed { from: 30, to: 40, ..missed.clone() };
        backlog.push(Report::Missed(later.clone()));
        let all = backlog.all();
        assert_eq!(
            (received(&all), &all.missed),
            (vec![1, 2], &vec![later, missed.clone()]),
            "what is on its way, too"
        );
        backlog.not_taken();
        // It had been sent, so that it may be known already.
        let batch = backlog.lock().batch().unwrap();
        assert_eq!(received(&batch), [1, 2]);
        assert_eq!(batch.missed, [proto::CriRequestsMissed { count: 4, from: 10, to: 40, ..missed }]);
        push(3);
        backlog.taken();
        let batch = backlog.lock().batch().unwrap();
        assert_eq!((received(&batch), batch.missed), (vec![3], vec![]));
        backlog.taken();
        assert!(backlog.lock().batch().is_none());
        let waiting = backlog.lock();
        assert_eq!((waiting.bytes, waiting.requests.len(), waiting.of.len()), (0, 0, 0));
        assert_eq!(backlog.counters.requests_superseded.get(), 0);
    }

    #[tokio::test]
    async fn it_is_empty_once_the_daemon_has_taken_all() {
        let backlog = Backlog::new(Arc::default());
        let is_empty = async || timeout(Duration::ZERO, backlog.emptied()).await.is_ok();
        let missed = proto::CriRequestsMissed { id: String::new(), count: 1, from: 10, to: 20 };
        assert!(is_empty().await);
        backlog.push(Report::Missed(missed.clone()));
        assert!(!is_empty().await);
        assert_eq!(backlog.batch().await.missed, std::slice::from_ref(&missed));
        assert!(!is_empty().await, "on its way");
        backlog.not_taken();
        assert!(!is_empty().await, "it waits again");
        backlog.push(Report::Request(update("a", 1, memory(1))));
        assert_eq!(backlog.batch().await.missed, [missed]);
        let ((), ()) = tokio::join!(backlog.emptied(), async { backlog.taken() });
        assert!(is_empty().await);
    }

    #[test]
    fn a_pod_and_a_container_of_one_id_are_two() {
        let mut waiting = Waiting::default();
        let pod = CriMethod::UpdatePodSandboxResources.into();
        waiting.push(update("a", 1, memory(1)));
        assert_eq!(waiting.push(proto::CriRequest { method: pod, ..update("a", 2, memory(1)) }), 0);
        assert_eq!(waiting.push(update("a", 3, memory(1))), 1);
        assert_eq!(received(&waiting.batch().unwrap()), [2, 3]);
    }
}
