//! Kubernetes Events for what is rare and actionable: an OOM kill, a limit that does not come into force, one that was reverted.
//!
//! ```text
//!  event ──▶ notices: is it worth one? ──▶ limiter: like one before? too many of the pod? ──▶ api: create
//!                │ not in force: for 30 s?          │ a series, when its time is over            (one at a time)
//!                └──────── tick ────────────────────┘
//! ```
//!
//! Needs one permission, to create events, and makes each once: a name that follows from the event's place in the journal is refused the
//! second time. So a restarted exporter reads the journal again from where what waits begins ([`crate::waiting`]), and comes to the same.
//! Best effort: what the API server does not take is counted and logged, and never holds the log records up; what finds no room here is
//! a gap among those.

mod api;
mod limiter;
mod notices;
mod pending;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kwitness_api::{Timestamp, proto};
use tokio::sync::mpsc;

use crate::counters::Shared;
use crate::record::is_of_watcher;
use crate::waiting::Waiting;
pub use api::client;
pub use limiter::Post;
use limiter::{Admission, Limiter};
use notices::{Found, Notices};
use pending::Pending;

/// How many wait for the API server at a time.
const WAITING_MAX: usize = 256;
/// What is older is no longer actionable; the API server keeps events for an hour.
const AGE_MAX: Duration = Duration::from_secs(3600);

/// Reports events to the API server.
#[derive(Debug)]
pub struct Reporter {
    notices: Notices,
    limiter: Limiter,
    posts: mpsc::Sender<Post>,
    pending: Pending,
    sentence: fn(&proto::Event) -> String,
    /// The epoch of the last event.
    epoch: String,
    /// What found no room, and is not yet part of a gap.
    lost: u64,
    shared: Arc<Shared>,
}

impl Reporter {
    /// Reports to that API server in the name of this node, for as long as the reporter lives.
    pub fn start(
        client: kube::Client,
        node: String,
        sentence: fn(&proto::Event) -> String,
        shared: Arc<Shared>,
    ) -> Self {
        let (reporter, receiver) = Self::new(sentence, Arc::clone(&shared));
        drop(tokio::spawn(api::post_all(client, node, receiver, reporter.pending.clone(), shared)));
        reporter
    }

    /// One whose posts go there.
    pub(crate) fn new(
        sentence: fn(&proto::Event) -> String,
        shared: Arc<Shared>,
    ) -> (Self, mpsc::Receiver<Post>) {
        let (posts, receiver) = mpsc::channel(WAITING_MAX);
        let reporter = Self {
            notices: Notices::default(),
            limiter: Limiter::default(),
            posts,
            pending: Pending::default(),
            sentence,
            epoch: String::new(),
            lost: 0,
            shared,
        };
        (reporter, receiver)
    }

    /// Looks at an event. If it is a gap in the place of events, returns how many that wait are forgotten because of it: the caller knows
    /// whether these are lost.
    pub fn observe(&mut self, event: &proto::Event, now: Instant) -> u64 {
        if let Some(position) = event.position.as_ref().filter(|position| position.epoch != self.epoch) {
            self.epoch.clone_from(&position.epoch);
        }
        if is_of_watcher(event) {
            return self.notices.forget();
        }
        match self.notices.observe(event, self.sentence, now) {
            Found::Nothing => {}
            Found::Unnamed => self.shared.counters.kubernetes_skipped.count(),
            Found::Overflow => self.lose(1),
            Found::Notice(notice) => self.admit(*notice, now),
        }
        0
    }

    /// Reports what has become due.
    pub fn tick(&mut self, now: Instant) {
        for notice in self.notices.due(now) {
            self.admit(notice, now);
        }
        self.shared.counters.kubernetes_skipped.add(self.notices.age_out(now));
        for admission in self.limiter.due(now) {
            self.take(admission);
        }
    }

    /// No events come at present.
    pub fn is_blind(&mut self, now: Instant) {
        self.notices.postpone(now);
    }

    /// What is yet to become a Kubernetes Event.
    pub fn waiting(&self) -> Waiting {
        let pending = self.pending.all();
        let places = self.notices.waiting().chain(self.limiter.waiting()).chain(&pending);
        Waiting::of(&self.epoch, places)
    }

    /// So many will not become one.
    pub fn lose(&mut self, events: u64) {
        self.shared.counters.kubernetes_dropped.add(events);
        self.lost = self.lost.saturating_add(events);
    }

    /// What was lost since this was last called.
    pub fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    fn admit(&mut self, notice: notices::Notice, now: Instant) {
        if is_too_old(notice.time) {
            return self.shared.counters.kubernetes_skipped.count();
        }
        let admission = self.limiter.admit(notice, now);
        self.take(admission);
    }

    fn take(&mut self, admission: Admission) {
        let counters = &self.shared.counters;
        match admission {
            Admission::Post(post) => self.send(*post),
            Admission::Similar => counters.kubernetes_similar.count(),
            Admission::Limited => counters.kubernetes_limited.count(),
            Admission::Overflow => self.lose(1),
        }
    }

    fn send(&mut self, post: Post) {
        let Ok(permit) = self.posts.try_reserve() else { return self.lose(1) };
        self.pending.push(post.notice.since.clone());
        permit.send(post);
    }
}

/// Whether what happened then is of no use to anyone.
fn is_too_old(time: Timestamp) -> bool {
    let time = u64::try_from(time.to_unix_nanos()).unwrap_or(0);
    let age = SystemTime::now().duration_since(UNIX_EPOCH + Duration::from_nanos(time));
    age.is_ok_and(|age| age > AGE_MAX)
}
