//! One who reads the journal: a cursor, a filter, and what is said when the journal no longer has what comes next.
//!
//! ```text
//!            ┌──────────── read ≤ 512 ◀──────────────┐
//!  opening ─▶│ nothing wanted, more there ── yield ──┤
//!            │ nothing there ── follow? ── wait ─────┤
//!            │                    └── no ──▶ end     │
//!            └ a batch, a gap first if any was missed┘
//! ```
//!
//! A container's names come after its first events. To a watcher that asks for a name, those events are delivered late,
//! just before the `updated` event that made the container one it asked for; see [`Watcher::belated`].

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::Arc;

use kwitness_core::journal::{Cursor, Journal, Missed, Position, ResumeError};
use kwitness_core::model::{KernelTime, Subject};
use tokio::sync::watch;

use super::batch::{Batch, Item};
use super::{Beyond, Entry, Filter, Hub};
use crate::clock::Clock;
use kwitness_api::{EventKind, proto};

/// Events in one message at most.
const BATCH_MAX: NonZeroUsize = NonZeroUsize::new(512).expect("not zero");

/// Where a watcher begins.
#[derive(Clone, Debug)]
pub enum Start {
    /// With what happens from now on.
    Now,
    /// After that place.
    After(Position),
    /// With the first event at or after that time.
    Since(KernelTime),
    /// With a snapshot, and what happens after it.
    Snapshot {
        /// What it is as of.
        position: Position,
        /// The place that was asked for, and can no longer be resumed after.
        instead_of: Option<Position>,
    },
}

/// One who reads the journal.
#[derive(Debug)]
pub struct Watcher {
    hub: Arc<Hub>,
    changed: watch::Receiver<u64>,
    filter: Filter,
    cursor: Cursor,
    /// No event before is delivered, not even late.
    first_seq: u64,
    /// The number of the last event to deliver; none: follow.
    until: Option<u64>,
    /// Said before anything else.
    opening: Option<proto::Event>,
    /// What is missed now was expired before the watcher came.
    resuming: bool,
    /// The time of the last event read.
    last_at: Option<KernelTime>,
}

impl Hub {
    /// Whether everything after that place is still there.
    pub fn can_resume(&self, after: &Position) -> bool {
        let journal = self.read();
        journal.resume(after).is_ok_and(|cursor| cursor.seq() + 1 >= journal.first_seq())
    }

    /// A reader of what comes from now on.
    pub fn watch_from_now(self: &Arc<Self>, filter: Filter) -> Watcher {
        let journal = self.read();
        self.watcher(&journal, journal.end(), true, filter, None)
    }

    /// A reader of the journal.
    ///
    /// # Errors
    /// A place that this journal has not come to yet. A place in another epoch is none: a gap says so.
    pub fn watch(
        self: &Arc<Self>,
        start: Start,
        follow: bool,
        filter: Filter,
    ) -> Result<Watcher, ResumeError> {
        let journal = self.read();
        let mut opening = None;
        let cursor = match &start {
            Start::Now => journal.end(),
            Start::Snapshot { position, instead_of } => {
                opening = instead_of.as_ref().map(|asked| {
                    let same = asked.epoch == position.epoch;
                    let gap = proto::Gap {
                        cause: proto::GapCause::ReplayExpired.into(),
                        first_seq: same.then_some(asked.seq + 1),
                        last_seq: same.then_some(position.seq),
                        ..Default::default()
                    };
                    own_event(&journal, position.seq, gap)
                });
                journal.resume(position)?
            }
            Start::After(position) => match journal.resume(position) {
                Ok(cursor) => cursor,
                Err(ResumeError::OtherEpoch { .. }) => {
                    let gap =
                        proto::Gap { cause: proto::GapCause::ReplayExpired.into(), ..Default::default() };
                    opening = Some(own_event(&journal, journal.start().seq(), gap));
                    journal.start()
                }
                Err(not_yet) => return Err(not_yet),
            },
            Start::Since(time) => {
                let cursor = journal.since(|entry| entry.at >= *time);
                if cursor == journal.start() && cursor.seq() > 0 {
                    // Whether the events that are no longer there were younger than that, nobody knows.
                    let gap = proto::Gap {
                        cause: proto::GapCause::ReplayExpired.into(),
                        last_seq: Some(cursor.seq()),
                        ..Default::default()
                    };
                    opening = Some(own_event(&journal, cursor.seq(), gap));
                }
                cursor
            }
        };
        Ok(self.watcher(&journal, cursor, follow, filter, opening))
    }

    fn watcher(
        self: &Arc<Self>,
        journal: &Journal<Entry>,
        cursor: Cursor,
        follow: bool,
        filter: Filter,
        opening: Option<proto::Event>,
    ) -> Watcher {
        Watcher {
            hub: self.clone(),
            changed: self.last.subscribe(),
            filter,
            cursor,
            first_seq: cursor.seq() + 1,
            until: (!follow).then(|| journal.last_seq()),
            opening,
            resuming: true,
            last_at: None,
        }
    }
}

impl Watcher {
    /// What is said first: where the stream begins, and what it cannot begin with.
    pub fn opening(&mut self) -> Batch {
        let hub = self.hub.clone();
        let journal = hub.read();
        let items = self.opening.take().into_iter().map(|event| Item::Own(Box::new(event))).collect();
        Batch {
            begins_after: Some(proto::Position {
                epoch: journal.epoch().0.to_string(),
                seq: self.cursor.seq(),
            }),
            snapshot: None,
            epoch: journal.epoch().clone(),
            items,
        }
    }

    /// The number of the last event that has been read.
    pub fn seq(&self) -> u64 {
        self.cursor.seq()
    }

    /// The next events, after the [`Self::opening`]; none when everything that was asked for has been delivered.
    ///
    /// Nothing is lost when the future is dropped before it is ready.
    pub async fn next(&mut self) -> Option<Batch> {
        loop {
            let last = *self.changed.borrow_and_update();
            let batch = self.read();
            if !batch.items.is_empty() {
                return Some(batch);
            }
            if self.until.is_some_and(|until| self.cursor.seq() >= until) {
                return None;
            }
            if self.cursor.seq() < last {
                // A filter that lets little through must not keep others from running.
                tokio::task::yield_now().await;
            } else {
                self.changed.changed().await.ok()?;
            }
        }
    }

    fn read(&mut self) -> Batch {
        let hub = self.hub.clone();
        let journal = hub.read();
        let read = journal.read(self.cursor, BATCH_MAX);
        let mut items = Vec::with_capacity(read.items.len() + usize::from(read.missed.is_some()));
        if let Some(missed) = read.missed {
            let gap = self.gap(missed, read.items.clone().next().map(|entry| entry.at));
            items.push(Item::Own(Box::new(own_event(&journal, missed.last, gap))));
        }
        self.resuming = false;
        for (seq, entry) in (read.first_seq..).zip(read.items) {
            if self.until.is_some_and(|until| seq > until) {
                break;
            }
            self.last_at = Some(entry.at);
            let wanted = match (&entry.subject, &entry.beyond) {
                (Some(of), _) => self.filter.wants_container(&of.subject),
                (None, Some(Beyond { pod })) => self.filter.wants_pod(pod.as_ref()),
                (None, None) => true,
            };
            if !wanted {
                continue;
            }
            if entry.kind == EventKind::Updated
                && let Some(of) = &entry.subject
            {
                self.belated(&journal, seq, &of.subject, &mut items);
            }
            let is_of_node = entry.subject.is_none() && entry.beyond.is_none();
            if is_of_node || self.filter.wants_kind(entry.kind) {
                items.push(Item::Recorded(seq, entry.clone()));
            }
        }
        self.cursor = read.next;
        Batch { begins_after: None, snapshot: None, epoch: journal.epoch().clone(), items }
    }

    /// The events of a container, before the number `before`, whose subject was not yet known to be one that the
    /// watcher asks for.
    fn belated(&self, journal: &Journal<Entry>, before: u64, subject: &Subject, items: &mut Vec<Item>) {
        if !self.filter.asks_for_names() {
            return;
        }
        let mut found = VecDeque::new();
        let mut end = before;
        let oldest = self.first_seq.max(journal.first_seq());
        'back: while end > oldest {
            let from = end.saturating_sub(BATCH_MAX.get() as u64).max(oldest);
            let place = Position { epoch: journal.epoch().clone(), seq: from - 1 };
            let (Ok(cursor), Some(count)) =
                (journal.resume(&place), NonZeroUsize::new((end - from) as usize))
            else {
                break;
            };
            let newest_first = journal.read(cursor, count).items.rev();
            for (seq, entry) in (from..end).rev().zip(newest_first) {
                let Some(of) = entry.subject.as_ref().filter(|of| of.subject.cgroup_id == subject.cgroup_id)
                else {
                    continue;
                };
                if self.filter.wants_container(&of.subject) {
                    break 'back;
                }
                if self.filter.wants_kind(entry.kind) {
                    found.push_front(Item::Recorded(seq, entry.clone()));
                }
                if entry.kind == EventKind::Created {
                    break 'back;
                }
            }
            end = from;
        }
        items.extend(found);
    }

    fn gap(&self, missed: Missed, next_at: Option<KernelTime>) -> proto::Gap {
        let clock = Clock::read();
        let cause =
            if self.resuming { proto::GapCause::ReplayExpired } else { proto::GapCause::WatcherLagged };
        proto::Gap {
            cause: cause.into(),
            lost: [("event".to_owned(), missed.last - missed.first + 1)].into(),
            from: self.last_at.map(|at| clock.wall(at)),
            to: next_at.map(|at| clock.wall(at)),
            first_seq: Some(missed.first),
            last_seq: Some(missed.last),
        }
    }
}

/// An event that the journal does not have: whoever resumes after it goes on with what the journal does have.
fn own_event(journal: &Journal<Entry>, seq: u64, gap: proto::Gap) -> proto::Event {
    let clock = Clock::read();
    proto::Event {
        position: Some(proto::Position { epoch: journal.epoch().0.to_string(), seq }),
        time: Some(clock.wall(clock.now())),
        kernel_time: clock.now().0,
        container: None,
        basis: proto::Basis::Daemon.into(),
        r#type: EventKind::Gap.name().to_owned(),
        kind: Some(proto::event::Kind::Gap(gap)),
    }
}
