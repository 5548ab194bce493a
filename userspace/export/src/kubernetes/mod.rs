//! Kubernetes Events for what is rare and actionable: an OOM kill, a limit that does not come into force, one that was reverted.
//!
//! ```text
//!  event ──▶ notices: is it worth one? ──▶ limiter: like one before? too many of the pod? ──▶ api: create
//!                │ not in force: for 30 s?          │ a series, when its time is over            (one at a time)
//!                └──────── tick ────────────────────┘
//! ```
//!
//! Needs one permission, to create events, and makes each once: a name that follows from the event's place in the journal is refused the
//! second time. Best effort: what the API server does not take is counted and logged, and never holds the log records up.

mod api;
mod limiter;
mod notices;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kwitness_api::proto;
use tokio::sync::mpsc;

use crate::counters::Shared;
use limiter::{Admission, Limiter, Post};
use notices::{Found, Notices};

/// How many wait for the API server at a time.
const WAITING_MAX: usize = 256;
/// Nobody acts on what is older; the API server keeps events for an hour.
const AGE_MAX: Duration = Duration::from_secs(3600);

/// See the module's description.
#[derive(Debug)]
pub struct Reporter {
    notices: Notices,
    limiter: Limiter,
    posts: mpsc::Sender<Post>,
    sentence: fn(&proto::Event) -> String,
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
        let (posts, receiver) = mpsc::channel(WAITING_MAX);
        drop(tokio::spawn(api::post_all(client, node, receiver, Arc::clone(&shared))));
        Self { notices: Notices::default(), limiter: Limiter::default(), posts, sentence, shared }
    }

    /// Looks at an event.
    pub fn observe(&mut self, event: &proto::Event, now: Instant) {
        match self.notices.observe(event, self.sentence, now) {
            Found::Nothing => {}
            Found::Unnamed => self.shared.counters.kubernetes_skipped.count(),
            Found::Notice(notice) => self.admit(*notice, now),
        }
    }

    /// Reports what has become due.
    pub fn tick(&mut self, now: Instant) {
        for notice in self.notices.due(now) {
            self.admit(notice, now);
        }
        for post in self.limiter.due(now) {
            self.send(post);
        }
    }

    fn admit(&mut self, notice: notices::Notice, now: Instant) {
        let counters = &self.shared.counters;
        let time = u64::try_from(notice.time.to_unix_nanos()).unwrap_or(0);
        let age = SystemTime::now().duration_since(UNIX_EPOCH + Duration::from_nanos(time));
        if age.is_ok_and(|age| age > AGE_MAX) {
            return counters.kubernetes_skipped.count();
        }
        match self.limiter.admit(notice, now) {
            Admission::Post(post) => self.send(*post),
            Admission::Similar => counters.kubernetes_similar.count(),
            Admission::Limited => counters.kubernetes_limited.count(),
        }
    }

    fn send(&self, post: Post) {
        if self.posts.try_send(post).is_err() {
            self.shared.counters.kubernetes_dropped.count();
        }
    }
}
