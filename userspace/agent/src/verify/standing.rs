//! The verdicts that nobody asked for: each change of a limit that can be judged is followed until its verdict is final.
//!
//! ```text
//!  engine: LimitChanged ──touched──▶ due at once ──judged──▶ final: done
//!                                      ▲               └──▶ pending: again after 50 ms, 100 ms, … until 2 s are over
//!                                      └── touched again: from the beginning
//! ```
//!
//! The runtime's word changes some time after the files that it wrote: so what does not agree is pending at first, and called
//! diverged or reverted only when it still does not agree after [`SETTLE`]. One who has more changes than can be followed loses
//! verdicts, not changes: what does not fit is counted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use kwitness_core::model::{ContainerId, KernelTime, PodUid, Requester, Verdict};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Verifier, now};
use crate::hub::Filter;
use kwitness_api::proto;

/// How long a change may take to settle. A runtime tells what it was told within milliseconds of the write, in a slow guest
/// within half a second.
const SETTLE: Duration = Duration::from_secs(2);
/// Between the first two looks at one that is pending; doubled each time.
const PAUSE: Duration = Duration::from_millis(50);
/// Changes on their way here.
const TOUCHED: usize = 1024;

/// Whose limit was changed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Touched {
    /// A container's.
    Container(ContainerId),
    /// A pod's, and so all of its containers.
    Pod(PodUid),
    /// All pods'.
    All,
}

/// Where the engine tells of changes.
#[derive(Clone, Debug)]
pub struct TouchedSender {
    sender: mpsc::Sender<Touched>,
    dropped: Arc<AtomicU64>,
}

impl TouchedSender {
    /// Tells of a change. Never waits.
    pub fn tell(&self, touched: Touched) {
        if self.sender.try_send(touched).is_err() {
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    /// Changes that were not followed, for there were too many.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }
}

/// A way to tell of changes, and where they come out.
pub fn touched() -> (TouchedSender, mpsc::Receiver<Touched>) {
    let (sender, receiver) = mpsc::channel(TOUCHED);
    (TouchedSender { sender, dropped: Arc::default() }, receiver)
}

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
    fn from_now() -> Self {
        let settle = u64::try_from(SETTLE.as_nanos()).unwrap_or(u64::MAX);
        let started = Instant::now();
        let deadline = KernelTime(now().0.saturating_add(settle));
        Self { due: started, pause: PAUSE, until: started + SETTLE, deadline }
    }
}

impl Verifier {
    /// Follows changes until nobody tells of any.
    pub async fn follow(self, mut touched: mpsc::Receiver<Touched>) {
        let mut following: BTreeMap<Touched, Following> = BTreeMap::new();
        loop {
            let next = following
                .iter()
                .min_by_key(|(_, of)| of.due)
                .map(|(of, following)| (of.clone(), following.due));
            let due = next.as_ref().map(|(_, due)| *due);
            tokio::select! {
                biased;
                told = touched.recv() => match told {
                    Some(touched) => { following.insert(touched, Following::from_now()); }
                    None => return,
                },
                () = sleep_until(due), if due.is_some() => {
                    let Some((whose, _)) = next else { continue };
                    let Some(mut of) = following.remove(&whose) else { continue };
                    let is_last = Instant::now() >= of.until;
                    let is_pending = self.look(&whose, (!is_last).then_some(of.deadline)).await;
                    if is_pending && !is_last {
                        of.due = (Instant::now() + of.pause).min(of.until);
                        of.pause *= 2;
                        following.insert(whose, of);
                    }
                }
            }
        }
    }

    /// Judges what was touched; whether anything of it is pending.
    async fn look(&self, whose: &Touched, deadline: Option<KernelTime>) -> bool {
        let filter = match whose {
            Touched::Container(id) => {
                proto::Filter { containers: vec![id.to_string()], ..Default::default() }
            }
            Touched::Pod(uid) => proto::Filter { pods: vec![uid.to_string()], ..Default::default() },
            Touched::All => proto::Filter::default(),
        };
        let pods = !matches!(whose, Touched::Container(_));
        let Ok(filter) = Filter::try_from(filter) else { return false };
        // It is gone, or the daemon is going down.
        let Ok(subjects) = self.subjects(&filter).await else { return false };
        let heard = self.hear(&subjects).await;
        let targets = self.targets(&subjects.apps, &proto::Wanted::default(), &heard, pods);
        match self.judge(targets, deadline, Requester::Node).await {
            Ok(judged) => judged.iter().any(|(_, judged)| {
                matches!(judged.judgement.verdict, Verdict::Pending { .. } | Verdict::OverLimit { .. })
            }),
            Err(_) => false,
        }
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
