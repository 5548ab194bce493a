//! Where the one who writes events meets the many who read them.
//!
//! ```text
//!  engine ── Writer ──▶ Journal<Entry> (encoded once) ◀── Watcher: a cursor, a filter
//!                            │                                  │
//!                            └── the last number, watched ──────┘
//! ```
//!
//! Owns the journal and the encoding of events for the wire. A watcher has no queue: it reads the journal at its own
//! pace, and one that falls out of the window is told what it missed. So the writer never waits for a watcher, and
//! a slow watcher costs nobody anything.

mod batch;
mod filter;
#[cfg(test)]
mod testing;
mod watcher;

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use bytes::{Bytes, BytesMut};
use kwitness_core::journal::{Epoch, Journal, Position};
use kwitness_core::model::{Event, KernelTime, Kind, PodNames, Subject};
use prost::Message as _;
use tokio::sync::watch;

pub use batch::{Batch, BatchCodec};
pub use filter::Filter;
pub use watcher::{Start, Watcher};

use crate::clock::Clock;
use crate::wire::convert;
use kwitness_api::{EventKind, proto};

/// The journal, shared.
#[derive(Debug)]
pub struct Hub {
    journal: RwLock<Journal<Entry>>,
    /// The number of the last event; 0 before the first.
    last: watch::Sender<u64>,
}

/// An event as the journal keeps it. On the wire, a protobuf message is the same as the same fields in pieces:
/// the position is added when it is sent, the container's piece is shared by all its events.
#[derive(Clone, Debug)]
struct Entry {
    at: KernelTime,
    kind: EventKind,
    /// `kwitness.v1alpha1.Event` without position and container, encoded.
    body: Bytes,
    subject: Option<Arc<EncodedSubject>>,
    /// Without a subject: it concerns more than a container, but is no matter of the stream itself.
    beyond: Option<Beyond>,
}

/// More than a container.
#[derive(Clone, Debug)]
struct Beyond {
    /// That pod; none: more than a pod.
    pod: Option<PodNames>,
}

impl Beyond {
    fn of(event: &Event) -> Option<Self> {
        match &event.kind {
            Kind::LimitChanged(changed) if event.subject.is_none() => Some(Self { pod: changed.pod.clone() }),
            Kind::Verdict(judged) if event.subject.is_none() => Some(Self { pod: judged.pod.clone() }),
            _ => None,
        }
    }
}

#[derive(Debug)]
struct EncodedSubject {
    subject: Arc<Subject>,
    /// `kwitness.v1alpha1.Event` with nothing but the container, encoded.
    bytes: Box<[u8]>,
}

impl Hub {
    /// An empty journal of that epoch, and the only one who may write it.
    pub fn new(epoch: Epoch, capacity: NonZeroUsize) -> (Arc<Self>, Writer) {
        let hub = Arc::new(Self {
            journal: RwLock::new(Journal::new(epoch, capacity)),
            last: watch::Sender::new(0),
        });
        let writer = Writer {
            hub: hub.clone(),
            subjects: HashMap::new(),
            sweep_at: SWEEP_MIN,
            block: BytesMut::new(),
            entries: Vec::new(),
        };
        (hub, writer)
    }

    /// The place of the newest event.
    pub fn position(&self) -> Position {
        self.read().position()
    }

    /// What the journal holds.
    pub fn extent(&self) -> proto::Journal {
        let journal = self.read();
        proto::Journal {
            first_seq: journal.first_seq(),
            last_seq: journal.last_seq(),
            capacity: u32::try_from(journal.capacity().get()).unwrap_or(u32::MAX),
            ..Default::default()
        }
    }

    /// The number of the last event, to wait for the next.
    pub fn last(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }

    /// How many are watching.
    pub fn watchers(&self) -> usize {
        self.last.receiver_count()
    }

    /// Nothing that could panic runs while the lock is held for writing: what it guards is whole.
    fn read(&self) -> RwLockReadGuard<'_, Journal<Entry>> {
        self.journal.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts events into the journal.
#[derive(Debug)]
pub struct Writer {
    hub: Arc<Hub>,
    /// By the address of the subject, which stays its own as long as it is in here.
    subjects: HashMap<usize, Arc<EncodedSubject>>,
    sweep_at: usize,
    /// Entries' bodies lie here one after the other, so that an event costs no allocation of its own.
    block: BytesMut,
    entries: Vec<Entry>,
}

const SWEEP_MIN: usize = 1024;
const BLOCK: usize = 16 << 10;

impl Writer {
    /// The place of the newest event; nobody else can move it.
    pub fn position(&self) -> Position {
        self.hub.position()
    }

    /// Appends the events, and wakes the watchers once.
    pub fn append(&mut self, events: impl IntoIterator<Item = Event>, clock: Clock) {
        for event in events {
            let entry = self.encode(&event, clock);
            self.entries.push(entry);
        }
        if self.entries.is_empty() {
            return;
        }
        let last = {
            let mut journal = self.hub.journal.write().unwrap_or_else(PoisonError::into_inner);
            for entry in self.entries.drain(..) {
                journal.push(entry);
            }
            journal.last_seq()
        };
        self.hub.last.send_replace(last);
    }

    fn encode(&mut self, event: &Event, clock: Clock) -> Entry {
        let (kind, message) = convert::event(event, clock);
        let length = message.encoded_len();
        if self.block.capacity() < length {
            self.block = BytesMut::with_capacity(BLOCK.max(length));
        }
        message.encode(&mut self.block).expect("a BytesMut grows");
        Entry {
            at: event.at,
            kind,
            body: self.block.split().freeze(),
            subject: event.subject.as_ref().map(|subject| self.subject(subject)),
            beyond: Beyond::of(event),
        }
    }

    fn subject(&mut self, subject: &Arc<Subject>) -> Arc<EncodedSubject> {
        if self.subjects.len() >= self.sweep_at {
            // Only the cache still has it: the container is gone, or more is known of it now.
            self.subjects.retain(|_, encoded| Arc::strong_count(&encoded.subject) > 1);
            self.sweep_at = SWEEP_MIN.max(2 * self.subjects.len());
        }
        self.subjects
            .entry(Arc::as_ptr(subject).addr())
            .or_insert_with(|| {
                let container = Some(convert::container(subject));
                let bytes = proto::Event { container, ..Default::default() }.encode_to_vec().into();
                Arc::new(EncodedSubject { subject: subject.clone(), bytes })
            })
            .clone()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::testing::*;
    use super::*;
    use kwitness_api::proto::event::Kind as ApiKind;

    #[tokio::test]
    async fn what_was_encoded_in_pieces_is_the_whole_event() {
        let (hub, mut writer) = hub(16);
        let subject = subject(1, Some(facts("prod", "web", "nginx")));
        writer.append([created(&subject), stopped(&subject)], clock());
        let mut watcher = hub.watch(Start::Since(KernelTime(0)), false, Filter::default()).unwrap();
        let events = rest(&mut watcher).await;
        assert_eq!(numbers(&events), [1, 2]);
        for event in &events {
            assert_eq!(event.container, Some(convert::container(&subject)));
            assert_eq!(event.position.as_ref().unwrap().epoch, "epoch");
            assert_eq!(event.kernel_time, 7);
            assert_eq!(event.r#type, EventKind::of(event).unwrap().name());
        }
        assert!(matches!(events[0].kind, Some(ApiKind::Created(_))));
        assert!(matches!(events[1].kind, Some(ApiKind::Stopped(proto::Stopped { never_started: true, .. }))));
    }

    #[tokio::test]
    async fn a_watcher_is_woken_for_what_comes() {
        let (hub, mut writer) = hub(16);
        let subject = subject(1, None);
        writer.append([created(&subject)], clock());
        let mut watcher = hub.watch(Start::Now, true, Filter::default()).unwrap();
        assert!(timeout(Duration::from_millis(20), watcher.next()).await.is_err(), "nothing came");
        let waiting = tokio::spawn(async move { (decode(watcher.next().await.unwrap()), watcher) });
        tokio::task::yield_now().await;
        writer.append([stopped(&subject)], clock());
        let (events, _) = timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap();
        assert_eq!(numbers(&events), [2]);
    }

    #[tokio::test]
    async fn a_watcher_that_lags_is_told_what_it_missed_and_goes_on() {
        let (hub, mut writer) = hub(16);
        let subject = subject(1, None);
        let mut slow = hub.watch(Start::Now, true, Filter::default()).unwrap();
        writer.append([created(&subject)], clock());
        assert_eq!(numbers(&decode(slow.next().await.unwrap())), [1]);
        for _ in 0..20 {
            writer.append([stopped(&subject)], clock());
        }
        let events = decode(slow.next().await.unwrap());
        let Some(ApiKind::Gap(gap)) = &events[0].kind else { panic!("{:?}", events[0]) };
        assert_eq!(gap.cause(), proto::GapCause::WatcherLagged);
        assert_eq!((gap.first_seq, gap.last_seq, gap.lost["event"]), (Some(2), Some(5), 4));
        assert_eq!(events[0].position.as_ref().unwrap().seq, 5, "resuming after the gap skips nothing");
        assert_eq!(numbers(&events[1..]), (6..=21).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_watcher_resumes_after_its_place() {
        let (hub, mut writer) = hub(16);
        let subject = subject(1, None);
        writer.append((0..10).map(|_| stopped(&subject)), clock());
        let start = |seq, epoch: &str| Start::After(Position { epoch: Epoch(epoch.into()), seq });
        let mut watcher = hub.watch(start(7, "epoch"), false, Filter::default()).unwrap();
        assert_eq!(numbers(&rest(&mut watcher).await), [8, 9, 10]);

        writer.append((0..20).map(|_| stopped(&subject)), clock());
        let mut watcher = hub.watch(start(7, "epoch"), false, Filter::default()).unwrap();
        let events = rest(&mut watcher).await;
        let Some(ApiKind::Gap(gap)) = &events[0].kind else { panic!("{:?}", events[0]) };
        assert_eq!(gap.cause(), proto::GapCause::ReplayExpired);
        assert_eq!((gap.first_seq, gap.last_seq), (Some(8), Some(14)));
        assert_eq!(numbers(&events[1..]), (15..=30).collect::<Vec<_>>());

        let mut watcher = hub.watch(start(7, "before"), false, Filter::default()).unwrap();
        let events = rest(&mut watcher).await;
        let Some(ApiKind::Gap(gap)) = &events[0].kind else { panic!("{:?}", events[0]) };
        assert_eq!(gap.cause(), proto::GapCause::ReplayExpired);
        assert_eq!((gap.first_seq, gap.last_seq), (None, None), "numbers of two epochs do not compare");
        assert_eq!(numbers(&events[1..]), (15..=30).collect::<Vec<_>>());

        assert!(hub.watch(start(31, "epoch"), false, Filter::default()).is_err(), "never given");
    }

    #[tokio::test]
    async fn no_follow_ends_with_what_was_there_at_the_call() {
        let (hub, mut writer) = hub(16);
        let subject = subject(1, None);
        writer.append((0..3).map(|_| stopped(&subject)), clock());
        let mut watcher = hub.watch(Start::Since(KernelTime(0)), false, Filter::default()).unwrap();
        writer.append((0..3).map(|_| stopped(&subject)), clock());
        assert_eq!(numbers(&rest(&mut watcher).await), [1, 2, 3]);
    }

    #[tokio::test]
    async fn a_filter_by_kind_and_container_is_applied_here() {
        let (hub, mut writer) = hub(2048);
        let (wanted, other) = (subject(1, None), subject(2, None));
        writer.append([created(&wanted)], clock());
        writer.append((0..1500).map(|_| stopped(&other)), clock());
        writer.append([stopped(&wanted), gap(), created(&other)], clock());
        let filter: Filter = proto::Filter {
            pods: vec!["uid-1".into()],
            kinds: vec![EventKind::Stopped.into()],
            ..Default::default()
        }
        .try_into()
        .unwrap();
        let mut watcher = hub.watch(Start::Since(KernelTime(0)), false, filter).unwrap();
        assert_eq!(numbers(&rest(&mut watcher).await), [1502, 1503], "gaps always pass");
    }

    #[tokio::test]
    async fn events_from_before_the_names_were_known_come_late_and_once() {
        let (hub, mut writer) = hub(2048);
        let (unnamed, named) = (subject(1, None), subject(1, Some(facts("prod", "web", "nginx"))));
        let other = subject(2, Some(facts("prod", "db", "postgres")));
        let filter: Filter =
            proto::Filter { pods: vec!["web".into()], ..Default::default() }.try_into().unwrap();
        let mut watcher = hub.watch(Start::Now, true, filter.clone()).unwrap();
        writer.append([created(&unnamed)], clock());
        writer.append((0..1000).map(|_| stopped(&other)), clock());
        writer.append([stopped(&unnamed), updated(&named), updated(&named), stopped(&named)], clock());
        let mut events = Vec::new();
        while events.len() < 5 {
            events.extend(decode(timeout(Duration::from_secs(5), watcher.next()).await.unwrap().unwrap()));
        }
        assert_eq!(numbers(&events), [1, 1002, 1003, 1004, 1005]);

        let after = Position { epoch: Epoch("epoch".into()), seq: 1001 };
        let mut watcher = hub.watch(Start::After(after), false, filter).unwrap();
        assert_eq!(
            numbers(&rest(&mut watcher).await),
            [1002, 1003, 1004, 1005],
            "none from before its start"
        );
    }

    #[test]
    fn subjects_that_nobody_has_any_more_are_forgotten() {
        let (_hub, mut writer) = hub(16);
        let live = subject(1, None);
        writer.append([created(&live)], clock());
        for id in 2..10_000 {
            writer.append([created(&subject(id, None))], clock());
        }
        assert!(writer.subjects.len() <= SWEEP_MIN, "{}", writer.subjects.len());
        assert!(writer.subjects.contains_key(&Arc::as_ptr(&live).addr()));
    }
}
