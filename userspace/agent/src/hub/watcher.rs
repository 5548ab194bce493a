//! A reader of the journal: a cursor, a filter, and the gap that says what the journal no longer has.
//!
//! ```text
//!            ┌──────────── read ≤ 512, ≤ 1 MiB ◀──────┐
//!  opening ─▶│ nothing matches, more there ── yield ──┤
//!            │ nothing there ── follow? ── wait ──────┤
//!            │                    └── no ──▶ end      │
//!            └ a batch, a gap where any was missed ───┘
//! ```
//!
//! A gap in the place of events that the journal has given up names their container, and passes the filter as it would.
//!
//! A container's names come after its first events. To a watcher that asks for a name, those events are delivered late, just
//! before the `updated` event that made the container match ([`late`]); unless it requested resolved
//! names, then every event is matched by the names known when it is read.
//!
//! What the filter costs is paid outside of the journal's lock.

mod late;

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use kwitness_core::journal::{Cursor, Journal, Missed, Piece, Position, ResumeError};
use kwitness_core::model::{CgroupId, KernelTime};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::batch::{Batch, Item};
use super::filter::selects_pod;
use super::window::BatchMax;
use super::{EncodedSubject, Entry, Filter, Hub, NonContainerScope};
use crate::clock::Clock;
use kwitness_api::{EventKind, proto};
use late::Late;

/// Of one message at most. gRPC clients refuse messages above 4 MiB by default.
pub(super) const BATCH: BatchMax =
    BatchMax { items: NonZeroUsize::new(512).expect("not zero"), bytes: 1 << 20 };

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
        /// The requested position, which can no longer be resumed after.
        instead_of: Option<Position>,
    },
}

/// A reader of the journal.
#[derive(Debug)]
pub struct Watcher {
    hub: Arc<Hub>,
    changed: watch::Receiver<u64>,
    filter: Filter,
    cursor: Cursor,
    /// No event before is delivered, not even late. Of who resumes it is the first one, unless a gap stands for those before: while a
    /// container had no name, its events were not delivered either.
    first_seq: u64,
    /// The last range after that of which the watcher got a gap that names no container.
    missed: Option<Missed>,
    /// The number of the last event to deliver; none: follow.
    last_seq: Option<u64>,
    /// Delivered before anything else.
    opening: Option<proto::Event>,
    /// The journal's last number when the watcher came. What it misses of later ones, it was too slow for.
    present: u64,
    /// The time of the last event read.
    last_at: Option<KernelTime>,
    /// Events of a container that match only now.
    late: Option<Late>,
    /// The number of the last `updated` event before which late ones were looked for.
    late_before: u64,
    resolve_names: bool,
    /// No event of a later time is delivered; the stream ends at that instant.
    until: Option<(KernelTime, Instant)>,
    /// How many events are still to deliver; none: any number.
    remaining: Option<u32>,
    /// In tests: says that a batch has been read, and waits before it is matched.
    #[cfg(test)]
    pub(super) before_matching: Option<(std::sync::mpsc::Sender<()>, std::sync::mpsc::Receiver<()>)>,
}

impl Hub {
    /// Whether everything after that place is still there.
    pub fn can_resume(&self, after: &Position) -> bool {
        self.window.look(|journal, _| {
            journal.resume(after).is_ok_and(|cursor| cursor.seq() + 1 >= journal.first_seq())
        })
    }

    /// A reader of what has happened since a time, as far as the journal has it, which ends with that; and one of what comes.
    pub fn watch_since(self: &Arc<Self>, time: KernelTime, filter: Filter) -> [Watcher; 2] {
        let since =
            |journal: &Journal<Entry, CgroupId>| (journal.since(|entry| entry.at >= time), journal.end());
        let (since, end) = self.window.look(|journal, _| since(journal));
        let watcher = |cursor, last_seq| Watcher {
            last_seq,
            ..self.watcher(self.window.last(), cursor, end.seq(), filter.clone(), None)
        };
        [watcher(since, Some(end.seq())), watcher(end, None)]
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
        let changed = self.window.last();
        let expired = |first_seq, last_seq| proto::Gap {
            cause: proto::GapCause::ReplayExpired.into(),
            first_seq,
            last_seq,
            ..Default::default()
        };
        let (cursor, gap, present) = self.window.look(|journal, _| {
            let (cursor, gap) = match &start {
                Start::Now => (journal.end(), None),
                Start::Snapshot { position, instead_of } => {
                    let gap = instead_of.as_ref().map(|requested| {
                        let same = requested.epoch == position.epoch;
                        expired(same.then_some(requested.seq.saturating_add(1)), same.then_some(position.seq))
                    });
                    (journal.resume(position)?, gap)
                }
                Start::After(position) => match journal.resume(position) {
                    Ok(cursor) => (cursor, None),
                    Err(ResumeError::OtherEpoch { .. }) => (journal.start(), Some(expired(None, None))),
                    Err(not_yet) => return Err(not_yet),
                },
                Start::Since(time) => {
                    let cursor = journal.since(|entry| entry.at >= *time);
                    // Whether the events that are no longer there were younger than that is not known.
                    let may_miss = cursor == journal.start() && cursor.seq() > 0;
                    (cursor, may_miss.then(|| expired(None, Some(cursor.seq()))))
                }
            };
            Ok((cursor, gap, journal.last_seq()))
        })?;
        let opening = gap.map(|gap| self.own_event(cursor.seq(), gap));
        let has_gap = opening.is_some();
        let last_seq = (!follow).then_some(present);
        let watcher = self.watcher(changed, cursor, present, filter, opening);
        let first_seq = if matches!(start, Start::After(_)) && !has_gap { 1 } else { watcher.first_seq };
        Ok(Watcher { first_seq, last_seq, ..watcher })
    }

    fn watcher(
        self: &Arc<Self>,
        changed: watch::Receiver<u64>,
        cursor: Cursor,
        present: u64,
        filter: Filter,
        opening: Option<proto::Event>,
    ) -> Watcher {
        Watcher {
            hub: self.clone(),
            changed,
            filter,
            cursor,
            first_seq: cursor.seq() + 1,
            missed: None,
            last_seq: None,
            opening,
            present,
            last_at: None,
            late: None,
            late_before: 0,
            resolve_names: false,
            until: None,
            remaining: None,
            #[cfg(test)]
            before_matching: None,
        }
    }

    /// An event that the journal does not have: whoever resumes after it goes on with what the journal does have.
    fn own_event(&self, seq: u64, gap: proto::Gap) -> proto::Event {
        let clock = Clock::read();
        proto::Event {
            position: Some(proto::Position { epoch: self.epoch.0.to_string(), seq }),
            time: Some(clock.wall(clock.now())),
            kernel_time: clock.now().0,
            container: None,
            basis: proto::Basis::Daemon.into(),
            r#type: EventKind::Gap.name().to_owned(),
            kind: Some(proto::event::Kind::Gap(gap)),
        }
    }
}

impl Watcher {
    /// Matches and shows events with the names known when they are read.
    pub fn resolving_names(self) -> Self {
        Self { resolve_names: true, ..self }
    }

    /// Ends the stream after so many events that concern containers or pods.
    pub fn with_limit(self, events: u32) -> Self {
        Self { remaining: Some(events), ..self }
    }

    /// Delivers no event of a later time, and ends the stream then.
    pub fn until(self, time: KernelTime) -> Self {
        let left = time.0.saturating_sub(Clock::read().now().0);
        // A deadline that is too far away for the clock is none.
        let ends = Instant::now().checked_add(Duration::from_nanos(left));
        Self { until: ends.map(|ends| (time, ends)), ..self }
    }

    /// The first message: where the stream begins, and what it cannot begin with.
    pub fn opening(&mut self) -> Batch {
        let items = self.opening.take().into_iter().map(|event| Item::Own(Box::new(event))).collect();
        let begins_after = proto::Position { epoch: self.hub.epoch.0.to_string(), seq: self.cursor.seq() };
        Batch { begins_after: Some(begins_after), snapshot: None, epoch: self.hub.epoch.clone(), items }
    }

    /// The number of the last event that has been read.
    pub fn seq(&self) -> u64 {
        self.cursor.seq()
    }

    /// The next events, after the [`Self::opening`]; none when everything requested has been delivered.
    ///
    /// Nothing is lost when the future is dropped before it is ready.
    pub async fn next(&mut self) -> Option<Batch> {
        loop {
            if let Some((_, ends)) = self.until
                && self.last_seq.is_none()
                && Instant::now() >= ends
            {
                self.last_seq = Some(*self.changed.borrow());
            }
            let last = *self.changed.borrow_and_update();
            let is_over = self.last_seq.is_some_and(|last| self.cursor.seq() >= last) && self.late.is_none();
            if is_over || self.remaining == Some(0) {
                return None;
            }
            let items = match self.late.take() {
                Some(late) => self.read_late(late),
                None => self.read(),
            };
            if !items.is_empty() {
                let epoch = self.hub.epoch.clone();
                return Some(Batch { begins_after: None, snapshot: None, epoch, items });
            }
            if self.cursor.seq() < last || self.late.is_some() {
                // A filter that lets little through must not keep others from running.
                tokio::task::yield_now().await;
            } else if self.last_seq.is_none() {
                let ends = self.until.map(|(_, ends)| ends);
                tokio::select! {
                    changed = self.changed.changed() => changed.ok()?,
                    () = async { sleep_until(ends.unwrap_or_else(Instant::now)).await }, if ends.is_some() => {}
                }
            }
        }
    }

    fn read(&mut self) -> Vec<Item> {
        let hub = self.hub.clone();
        let resolve = self.resolve_names;
        let read = hub.window.read(
            self.cursor,
            BATCH,
            |entry, names| {
                if resolve { entry.resolved(names) } else { entry }
            },
        );
        #[cfg(test)]
        if let Some((reached, go_on)) = &self.before_matching {
            let _ = (reached.send(()), go_on.recv());
        }
        self.cursor = read.next;
        let mut items = Vec::with_capacity(read.pieces.len() + usize::from(read.missed.is_some()));
        let mut pieces = read.pieces.into_iter().peekable();
        if let Some(missed) = read.missed {
            let count = missed.last - missed.first + 1;
            let gap = self.gap(missed, count, self.last_at, pieces.peek().and_then(entry_of));
            items.push(Item::Own(Box::new(hub.own_event(missed.last, gap))));
            // That gap stands for all of them: whoever they were of, no other one follows.
            if missed.first <= self.first_seq {
                self.first_seq = missed.last + 1;
            } else {
                self.missed = Some(missed);
            }
        }
        let mut matching = Matching::default();
        while let Some(piece) = pieces.next() {
            let (seq, entry) = match piece {
                Piece::Item(seq, entry) => (seq, entry),
                Piece::GivenUp(given_up) => {
                    self.given_up(&given_up, pieces.peek().and_then(entry_of), &mut items);
                    continue;
                }
            };
            if self.last_seq.is_some_and(|last| seq > last) || self.remaining == Some(0) {
                break;
            }
            self.last_at = Some(entry.at);
            let wanted = match (&entry.subject, &entry.non_container) {
                (Some(of), _) => matching.matches(&self.filter, of),
                (None, Some(NonContainerScope { pod })) => selects_pod(&self.filter, pod.as_ref()),
                (None, None) => true,
            };
            if !wanted || self.until.is_some_and(|(until, _)| entry.at > until) {
                continue;
            }
            if let Some(of) = entry.subject.as_ref().filter(|_| entry.kind == EventKind::Updated)
                && let Some(late) = self.late_start(of, seq)
            {
                // This event is read again, once those before it have been delivered.
                (self.late, self.cursor) = (Some(late), Cursor::after(seq - 1));
                break;
            }
            self.deliver(seq, entry, &mut items);
        }
        items
    }

    fn deliver(&mut self, seq: u64, entry: Entry, items: &mut Vec<Item>) {
        let is_of_node = entry.kind.is_of_node();
        if is_of_node || self.filter.wants_kind(Some(entry.kind)) {
            items.push(Item::Recorded(seq, entry));
            if !is_of_node {
                self.remaining = self.remaining.map(|remaining| remaining.saturating_sub(1));
            }
        }
    }

    /// Of so many events, in that range of numbers.
    fn gap(&self, missed: Missed, count: u64, from: Option<KernelTime>, next: Option<&Entry>) -> proto::Gap {
        let clock = Clock::read();
        let cause = if missed.first <= self.present {
            proto::GapCause::ReplayExpired
        } else {
            self.hub.lagged.fetch_add(count, Relaxed);
            proto::GapCause::WatcherLagged
        };
        proto::Gap {
            cause: cause.into(),
            lost: [("event".to_owned(), count)].into(),
            from: from.map(|at| clock.wall(at)),
            to: next.map(|next| clock.wall(next.at.max(next.latest_before))),
            first_seq: Some(missed.first),
            last_seq: Some(missed.last),
            ..Default::default()
        }
    }
}

fn entry_of<O>(piece: &Piece<Entry, O>) -> Option<&Entry> {
    match piece {
        Piece::Item(_, entry) => Some(entry),
        Piece::GivenUp(_) => None,
    }
}

/// Which containers match, remembered for one batch: its events share few of them.
#[derive(Default)]
struct Matching(HashMap<*const EncodedSubject, bool>);

impl Matching {
    fn matches(&mut self, filter: &Filter, of: &Arc<EncodedSubject>) -> bool {
        *self.0.entry(Arc::as_ptr(of)).or_insert_with(|| of.matches(filter))
    }
}
