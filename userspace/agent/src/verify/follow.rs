//! Verdicts that no client asks for: whatever the core wants judged is followed until its verdict is final.
//!
//! ```text
//!  core ── Action::Judge(scope) ──▶ engine ──▶ JudgeQueue ──▶ due at once ──judged──▶ final: done
//!                                                                ▲             └──▶ pending: again after 50 ms, 100 ms, … 2 s
//!                                                                └── judged again: from the beginning
//! ```
//!
//! Due at once, but for what was looked at just before: a workload that writes limits of its own does not decide how often the
//! runtime is asked.
//!
//! The runtime's word changes some time after the files that it wrote: so what does not agree is pending at first, and called
//! diverged or reverted only when it still does not agree after [`SETTLE`]. Nothing is dropped: when more scopes are due than
//! the queue holds, all containers are.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kwitness_core::model::{KernelTime, Requester, VerdictScope};
use tokio::time::Instant;

use super::{CHANGES_SHARE, Look, Verifier, VerifyError, now};
use crate::engine::Stopped;
use crate::hub::Filter;

/// How long a change may take to settle. A runtime reports a request within milliseconds of the write, in a slow
/// guest within half a second.
const SETTLE: Duration = Duration::from_secs(2);
/// Between the first two looks at one that is pending; doubled each time.
const PAUSE: Duration = Duration::from_millis(50);
/// Between two looks at which reported CRI requests are still of something.
const FORGET: Duration = Duration::from_secs(10);

/// What is followed.
struct Following {
    /// When it is looked at next.
    due: Instant,
    pause: Duration,
    /// What does not agree then never will.
    until: Instant,
    deadline: KernelTime,
}

impl Following {
    /// `earliest`: no look comes before.
    fn from_now(earliest: Option<Instant>) -> Self {
        let settle = u64::try_from(SETTLE.as_nanos()).unwrap_or(u64::MAX);
        let started = Instant::now();
        let deadline = KernelTime(now().0.saturating_add(settle));
        let due = earliest.map_or(started, |earliest| started.max(earliest));
        Self { due, pause: PAUSE, until: started + SETTLE, deadline }
    }
}

impl Verifier {
    /// Follows what the core wants judged, until the engine has stopped.
    pub async fn follow(self) {
        let mut following: BTreeMap<VerdictScope, Following> = BTreeMap::new();
        // When those that were looked at just before may be looked at again.
        let mut resting: BTreeMap<VerdictScope, Instant> = BTreeMap::new();
        let mut forget = Instant::now() + FORGET;
        loop {
            let next = following
                .iter()
                .min_by_key(|(_, of)| of.due)
                .map(|(of, following)| (of.clone(), following.due));
            tokio::select! {
                biased;
                () = self.queue.added.notified() => {
                    let at = Instant::now();
                    resting.retain(|_, earliest| *earliest > at);
                    let follow = |scope: VerdictScope| {
                        let of = Following::from_now(resting.get(&scope).copied());
                        (scope, of)
                    };
                    following.extend(self.queue.take().into_iter().map(follow));
                }
                Some(scope) = due(next) => {
                    let Some(mut of) = following.remove(&scope) else { continue };
                    let began = Instant::now();
                    let is_last = began >= of.until;
                    let looked = self.look_at(&scope, (!is_last).then_some(of.deadline)).await;
                    resting.insert(scope.clone(), Instant::now() + began.elapsed() * CHANGES_SHARE);
                    match looked {
                        Err(Stopped) => return,
                        Ok(true) if !is_last => {
                            of.due = (Instant::now() + of.pause).min(of.until);
                            of.pause *= 2;
                            following.insert(scope, of);
                        }
                        Ok(_) => {}
                    }
                }
                () = tokio::time::sleep_until(forget) => {
                    forget = Instant::now() + FORGET;
                    if self.forget_ended().await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Forgets the requests and the guard's limits for what has ended.
    pub(super) async fn forget_ended(&self) -> Result<(), Stopped> {
        // On a node without CRI proxy and guard, there is never any: no list of all containers is made for that.
        let (requests, guard) = (self.reported.requests(), self.reported.guard());
        if requests.is_empty() && guard.is_empty() {
            return Ok(());
        }
        let subjects = self.engine.subjects(VerdictScope::All).await?;
        let there: BTreeSet<&str> = subjects.iter().map(|(subject, _)| &*subject.container_id.0).collect();
        requests.keep(&there, now());
        guard.keep(&there);
        Ok(())
    }

    /// Judges these limits; whether any verdict is still open.
    async fn look_at(&self, scope: &VerdictScope, deadline: Option<KernelTime>) -> Result<bool, Stopped> {
        let filter = Filter::default();
        let requester = Requester::Node;
        let status_age = Duration::ZERO;
        let look = Look { filter: &filter, desired: &[], requester, deadline, status_age, is_clients: false };
        match self.look(look, scope.clone()).await {
            Ok(report) => Ok(report.is_open()),
            Err(VerifyError::NoContainer) => Ok(false),
            Err(VerifyError::Stopped(stopped)) => Err(stopped),
        }
    }
}

async fn due(next: Option<(VerdictScope, Instant)>) -> Option<VerdictScope> {
    let (scope, at) = next?;
    tokio::time::sleep_until(at).await;
    Some(scope)
}
