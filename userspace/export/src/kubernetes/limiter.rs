//! How many Kubernetes Events there are: one for what is alike, and few for each pod.
//!
//! The first of its kind (pod, container, reason) is made at once. Those that follow within [`SERIES`] are counted, and become one event
//! with their number when that time is over. Beyond that, a pod has [`BURST`] events and one more every [`REFILL`], as client-go allows.
//!
//! Pure: time is an argument.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use kwitness_api::proto::Position;

use super::notices::Notice;

/// For how long those that are alike are counted.
const SERIES: Duration = Duration::from_secs(300);
/// How many a pod may have at once.
const BURST: u32 = 25;
/// How often it may have one more.
const REFILL: Duration = Duration::from_secs(300);
/// Pods and series that are remembered at a time. Those of one more series are made one by one, and one more pod has no events.
const REMEMBERED: usize = 4096;

/// An event that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Post {
    /// What it says.
    pub notice: Notice,
    /// How many it stands for, if it stands for a series.
    pub series: Option<u32>,
}

/// What becomes of a notice.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is made now.
    Post(Box<Post>),
    /// It is counted in a series.
    Similar,
    /// Its pod has had too many.
    Limited,
    /// Too many other pods have had some of late.
    Overflow,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Alike {
    uid: String,
    container: Option<String>,
    reason: &'static str,
}

#[derive(Debug)]
struct Series {
    ends: Instant,
    /// Those after the first.
    count: u32,
    last: Option<Notice>,
    /// Where the first of them begins.
    first: Option<Position>,
}

impl Series {
    fn begin(now: Instant) -> Self {
        Self { ends: now + SERIES, count: 0, last: None, first: None }
    }
}

/// What a pod may still have: it fills by one every [`REFILL`].
#[derive(Debug)]
struct Bucket {
    left: u32,
    filled: Instant,
}

/// Limits the rate of Kubernetes Events.
#[derive(Debug, Default)]
pub struct Limiter {
    series: HashMap<Alike, Series>,
    pods: HashMap<String, Bucket>,
}

impl Limiter {
    /// Whether a notice is made.
    pub fn admit(&mut self, notice: Notice, now: Instant) -> Admission {
        let alike =
            Alike { uid: notice.uid.clone(), container: notice.container.clone(), reason: notice.reason };
        if let Some(series) = self.series.get_mut(&alike) {
            series.count = series.count.saturating_add(1);
            series.first.get_or_insert_with(|| notice.since.clone());
            series.last = Some(notice);
            return Admission::Similar;
        }
        let admission = self.decide(Post { notice, series: None }, now);
        if matches!(admission, Admission::Post(_)) && self.series.len() < REMEMBERED {
            self.series.insert(alike, Series::begin(now));
        }
        admission
    }

    /// What becomes of the series whose time is over, in the order of what they end with; those that go on are counted anew. Pods that may
    /// have all they could ever have are forgotten.
    pub fn due(&mut self, now: Instant) -> Vec<Admission> {
        let mut due = Vec::new();
        self.series.retain(|_, series| {
            if series.ends > now {
                return true;
            }
            let ended = std::mem::replace(series, Series::begin(now));
            let Some(notice) = ended.last else { return false };
            let since = ended.first.unwrap_or_else(|| notice.since.clone());
            // A series of Kubernetes has at least two, and the first of this one was made at its time.
            due.push(Post {
                notice: Notice { since, ..notice },
                series: Some(ended.count.saturating_add(1)),
            });
            true
        });
        due.sort_by_key(|post| post.notice.position.seq);
        let admissions = due.into_iter().map(|post| self.decide(post, now)).collect();
        self.forget_full(now);
        admissions
    }

    /// Whether the pod of an event may have it.
    fn decide(&mut self, post: Post, now: Instant) -> Admission {
        match self.spend(&post.notice.uid, now) {
            Some(true) => Admission::Post(Box::new(post)),
            Some(false) => Admission::Limited,
            None => Admission::Overflow,
        }
    }

    /// Where those begin that wait for the end of their series.
    pub fn waiting(&self) -> impl Iterator<Item = &Position> {
        self.series.values().filter_map(|series| series.first.as_ref())
    }

    /// Whether the pod may have one more; none if too many pods are remembered to say.
    fn spend(&mut self, uid: &str, now: Instant) -> Option<bool> {
        if !self.pods.contains_key(uid) && self.pods.len() >= REMEMBERED {
            self.forget_full(now);
            if self.pods.len() >= REMEMBERED {
                return None;
            }
        }
        let bucket = self.pods.entry(uid.to_owned()).or_insert(Bucket { left: BURST, filled: now });
        bucket.fill(now);
        let left = bucket.left.checked_sub(1);
        bucket.left = left.unwrap_or(0);
        Some(left.is_some())
    }

    fn forget_full(&mut self, now: Instant) {
        self.pods.retain(|_, bucket| {
            bucket.fill(now);
            bucket.left < BURST
        });
    }
}

impl Bucket {
    fn fill(&mut self, now: Instant) {
        let periods = now.saturating_duration_since(self.filled).as_secs() / REFILL.as_secs();
        let periods = u32::try_from(periods).unwrap_or(u32::MAX);
        self.left = self.left.saturating_add(periods).min(BURST);
        if self.left == BURST {
            self.filled = now;
        } else {
            self.filled += REFILL * periods;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::position;

    fn notice(uid: &str, container: &str, seq: u64) -> Notice {
        Notice {
            is_warning: true,
            reason: "OOMKilled",
            action: "OOMKill",
            namespace: "prod".to_owned(),
            pod: "web-0".to_owned(),
            uid: uid.to_owned(),
            container: Some(container.to_owned()),
            time: Default::default(),
            note: String::new(),
            position: position(seq),
            since: position(seq),
        }
    }

    fn series(notice: Notice, count: u32) -> Admission {
        Admission::Post(Box::new(Post { notice, series: Some(count) }))
    }

    fn is_posted(limiter: &mut Limiter, notice: Notice, now: Instant) -> bool {
        matches!(limiter.admit(notice, now), Admission::Post(_))
    }

    #[test]
    fn those_that_are_alike_are_a_series() {
        let (mut limiter, start) = (Limiter::default(), Instant::now());
        assert!(is_posted(&mut limiter, notice("a", "app", 1), start));
        for seq in 2..=100 {
            assert_eq!(limiter.admit(notice("a", "app", seq), start), Admission::Similar);
        }
        assert!(is_posted(&mut limiter, notice("a", "sidecar", 101), start), "another container");
        assert!(is_posted(&mut limiter, notice("b", "app", 102), start), "another pod");
        assert_eq!(limiter.due(start + SERIES - Duration::from_secs(1)), []);
        assert_eq!(limiter.waiting().collect::<Vec<_>>(), [&position(2)], "the first was made");
        let last = Notice { since: position(2), ..notice("a", "app", 100) };
        assert_eq!(limiter.due(start + SERIES), [series(last, 100)]);
        assert_eq!(limiter.waiting().count(), 0);
        assert_eq!(limiter.admit(notice("a", "app", 103), start + SERIES), Admission::Similar, "it goes on");
        assert!(is_posted(&mut limiter, notice("b", "app", 104), start + SERIES), "that was no series");
        let due = limiter.due(start + 2 * SERIES);
        assert_eq!(due, [series(notice("a", "app", 103), 2)]);
        assert_eq!(limiter.due(start + 3 * SERIES), []);
        assert!(limiter.series.is_empty(), "{limiter:?}");
    }

    #[test]
    fn a_pod_has_few() {
        let (mut limiter, start) = (Limiter::default(), Instant::now());
        let posted = |limiter: &mut Limiter, uid: &str, now: Instant, round: u32| {
            let all = (0..100).filter(|n| {
                let container = format!("{round}-{n}");
                is_posted(limiter, notice(uid, &container, 1), now)
            });
            all.count() as u32
        };
        assert_eq!(posted(&mut limiter, "a", start, 0), BURST);
        assert_eq!(limiter.admit(notice("a", "x", 1), start), Admission::Limited);
        assert_eq!(posted(&mut limiter, "b", start, 0), BURST, "each pod has its own");
        assert_eq!(posted(&mut limiter, "a", start + REFILL * 3, 1), 3);
        assert_eq!(posted(&mut limiter, "a", start + REFILL * 1000, 2), BURST);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut limiter, start) = (Limiter::default(), Instant::now());
        for pod in 0..REMEMBERED {
            assert!(is_posted(&mut limiter, notice(&pod.to_string(), "app", 1), start));
        }
        assert_eq!(limiter.admit(notice("one more", "app", 1), start), Admission::Overflow);
        assert!(is_posted(&mut limiter, notice("one more", "app", 1), start + REFILL));
        assert!(limiter.pods.len() <= REMEMBERED && limiter.series.len() <= REMEMBERED);
        limiter.due(start + REFILL * 2);
        assert!(limiter.pods.is_empty(), "pods that are gone do not stay");
    }

    #[test]
    fn a_series_of_a_pod_that_has_had_too_many_is_counted() {
        let (mut limiter, start) = (Limiter::default(), Instant::now());
        assert!(is_posted(&mut limiter, notice("a", "app", 1), start + SERIES / 2));
        assert_eq!(limiter.admit(notice("a", "app", 2), start + SERIES / 2), Admission::Similar);
        let others = (0..BURST - 1).map(|n| notice("a", &n.to_string(), 3));
        assert!(others.into_iter().all(|other| is_posted(&mut limiter, other, start + SERIES)));
        // No refill yet: the bucket was full until the first.
        assert_eq!(limiter.due(start + SERIES + SERIES / 2 - Duration::from_secs(1)), []);
        limiter.pods.get_mut("a").unwrap().filled = start + SERIES + SERIES / 2;
        assert_eq!(limiter.due(start + SERIES + SERIES / 2), [Admission::Limited]);
    }

    #[test]
    fn a_series_of_a_pod_for_which_there_is_no_room_is_lost() {
        let (mut limiter, start) = (Limiter::default(), Instant::now());
        assert!(is_posted(&mut limiter, notice("a", "app", 1), start));
        assert_eq!(limiter.admit(notice("a", "app", 2), start), Admission::Similar);
        limiter.pods.remove("a");
        for pod in 0..REMEMBERED {
            let filled = start + SERIES;
            limiter.pods.insert(pod.to_string(), Bucket { left: 0, filled });
        }
        assert_eq!(limiter.due(start + SERIES), [Admission::Overflow]);
    }
}
