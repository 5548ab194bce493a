//! Where the engine's events meet the clients that watch them.
//!
//! ```text
//!  engine ── Writer ──▶ Window<Entry> (encoded once) ◀── Watcher: a cursor, a filter
//!                            │                                  │
//!                            └── the last number, watched ──────┘
//! ```
//!
//! Owns the journal and the encoding of events for the wire. A watcher has no queue: it reads the journal independently, and
//! one that falls out of the window gets a gap. So the writer never waits for a watcher, and a slow or demanding watcher costs
//! the others nothing.

mod batch;
mod entry;
#[cfg(test)]
mod fairness;
mod filter;
mod holdings;
mod kept;
mod names;
mod reader;
mod subject;
#[cfg(test)]
pub(crate) mod testing;
mod until;
mod watcher;
pub mod window;
mod writer;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use kwitness_core::journal::{Epoch, Position};
use kwitness_core::model::KernelTime;
use tokio::sync::watch;

pub use batch::{Batch, BatchCodec};
pub(crate) use filter::{scope_of, selects};
pub use kwitness_api::filter::Filter;
pub use reader::{JournalEvent, JournalReader};
pub(crate) use until::JournalUntil;
pub use watcher::{Start, Watcher};
pub use window::Capacity;
pub use writer::Writer;

use entry::{Entry, NonContainerScope};
use kwitness_api::proto;
use subject::EncodedSubject;
use window::{Usage, Window};

/// The journal, shared.
#[derive(Debug)]
pub struct Hub {
    epoch: Epoch,
    capacity: Capacity,
    window: Window<Entry>,
    /// Events that watchers fell too far behind for, summed over all of them.
    lagged: AtomicU64,
}

impl Hub {
    /// An empty journal of that epoch, and the only writer.
    pub fn new(epoch: Epoch, capacity: Capacity) -> (Arc<Self>, Writer) {
        Self::resumed(Position { epoch, seq: 0 }, KernelTime(0), capacity)
    }

    /// An empty journal that goes on after that place, and the only writer. No event before it is later than `latest`.
    pub fn resumed(position: Position, latest: KernelTime, capacity: Capacity) -> (Arc<Self>, Writer) {
        let epoch = position.epoch.clone();
        let window = Window::resumed(position, capacity);
        let hub = Arc::new(Self { epoch, capacity, window, lagged: AtomicU64::new(0) });
        let writer = Writer::new(hub.clone(), latest);
        (hub, writer)
    }

    /// The place of the newest event.
    pub fn position(&self) -> Position {
        self.window.look(|journal, _| journal.position())
    }

    /// What the journal holds.
    pub fn extent(&self) -> proto::Journal {
        let Usage { bytes, max } = self.window.usage();
        let (first_seq, last_seq, events) =
            self.window.look(|journal, _| (journal.first_seq(), journal.last_seq(), journal.len()));
        proto::Journal {
            first_seq,
            last_seq,
            events: events as u64,
            capacity: u32::try_from(self.capacity.items.get()).unwrap_or(u32::MAX),
            bytes: bytes as u64,
            capacity_bytes: max as u64,
        }
    }

    /// When the oldest event that the journal has happened; none: it has none.
    pub fn oldest(&self) -> Option<KernelTime> {
        self.window.look(|journal, _| journal.oldest().map(|entry| entry.at))
    }

    /// How many events watchers missed because they fell out of the window, summed over all watchers.
    pub fn lagged(&self) -> u64 {
        self.lagged.load(Relaxed)
    }

    /// The number of the last event, to wait for the next.
    pub fn last(&self) -> watch::Receiver<u64> {
        self.window.last()
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::sync::mpsc;
    use std::time::Duration;

    use futures_util::FutureExt as _;
    use tokio::time::timeout;

    use super::testing::*;
    use super::*;
    use crate::clock::Clock;
    use crate::wire::convert;
    use kwitness_api::EventKind;
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
        assert!(watcher.next().now_or_never().is_none(), "nothing came");
        let waiting = tokio::spawn(async move { (decode(watcher.next().await.unwrap()), watcher) });
        tokio::task::yield_now().await;
        writer.append([stopped(&subject)], clock());
        let (events, _) = timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap();
        assert_eq!(numbers(&events), [2]);
    }

    #[tokio::test]
    async fn a_watcher_that_lags_gets_a_gap_and_goes_on() {
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
    async fn a_gap_reaches_until_the_latest_event_that_it_stands_for() {
        let (subject, capacity) =
            (subject(1, None), Capacity { items: NonZeroUsize::new(1).unwrap(), bytes: 1 << 20 });
        let position = |seq| Position { epoch: Epoch("epoch".into()), seq };
        let (hub, mut writer) = Hub::resumed(position(5), KernelTime(800), capacity);
        let resumed = async |seq| {
            let mut watcher = hub.watch(Start::After(position(seq)), false, Filter::default()).unwrap();
            let events = rest(&mut watcher).await;
            let Some(ApiKind::Gap(gap)) = &events[0].kind else { panic!("{:?}", events[0]) };
            gap.to
        };
        let wall = |at| Some(clock().wall(KernelTime(at)));
        let at = |at| kwitness_core::model::Event { at: KernelTime(at), ..stopped(&subject) };
        writer.append([at(700)], clock());
        assert_eq!(resumed(3).await, wall(800), "what an earlier daemon published may be later");
        writer.append([at(900), at(850)], clock());
        assert_eq!(resumed(3).await, wall(900), "so may what is kept no longer");
        writer.append([at(1000)], clock());
        assert_eq!(resumed(3).await, wall(1000));
    }

    #[tokio::test]
    async fn a_gap_in_late_events_begins_when_they_happened() {
        let (hub, mut writer) = hub(4);
        let (unnamed, named) = (subject(1, None), subject(1, Some(facts("prod", "web", "nginx"))));
        let other = subject(2, Some(facts("prod", "web", "sidecar")));
        let filter: Filter =
            proto::Filter { pods: vec!["web".into()], ..Default::default() }.try_into().unwrap();
        let mut watcher = hub.watch(Start::Now, true, filter).unwrap();
        let at = |at, event| kwitness_core::model::Event { at: KernelTime(at), ..event };
        let events = [at(100, created(&unnamed)), at(200, stopped(&other)), at(300, updated(&named))];
        writer.append(events, clock());
        assert_eq!(numbers(&decode(watcher.next().await.unwrap())), [2], "the first is yet to be delivered");
        writer.append((0..4).map(|_| at(400, stopped(&other))), clock());
        let events = decode(watcher.next().await.unwrap());
        let Some(ApiKind::Gap(gap)) = &events[0].kind else { panic!("{:?}", events[0]) };
        assert_eq!((gap.first_seq, gap.from), (Some(1), Some(clock().wall(KernelTime(100)))));
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

        assert!(hub.watch(start(31, "epoch"), false, Filter::default()).is_err(), "has not been issued");
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

    #[test]
    fn a_snapshot_in_place_of_any_number_begins() {
        let (hub, _writer) = hub(16);
        for seq in [0, 1, u64::MAX] {
            let instead_of = Some(Position { epoch: Epoch("epoch".into()), seq });
            let start = Start::Snapshot { position: hub.position(), instead_of };
            let mut watcher = hub.watch(start, true, Filter::default()).unwrap();
            let events = decode(watcher.opening());
            let [event] = &events[..] else { panic!("no gap for {seq}") };
            let Some(ApiKind::Gap(gap)) = &event.kind else { panic!("{event:?}") };
            assert_eq!(gap.first_seq, Some(seq.saturating_add(1)));
        }
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
    async fn a_containers_gap_passes_whatever_the_kinds_and_no_other_containers() {
        let (hub, mut writer) = hub(16);
        let (wanted, other) = (subject(1, None), subject(2, None));
        writer.append([gap_of(Some(&other)), gap_of(Some(&wanted)), stopped(&wanted)], clock());
        let filter = proto::Filter {
            pods: vec!["uid-1".into()],
            kinds: vec![EventKind::OomKill.into()],
            ..Default::default()
        };
        let mut watcher = hub.watch(Start::Since(KernelTime(0)), false, filter.try_into().unwrap()).unwrap();
        assert_eq!(numbers(&rest(&mut watcher).await), [2]);
        let mut hints =
            hub.watch(Start::Since(KernelTime(0)), false, Filter::of_kinds([EventKind::Created])).unwrap();
        assert_eq!(numbers(&rest(&mut hints).await), [1, 2]);
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

        // Who resumes did not get the first one before: it had no name then. Once it had, no event comes twice.
        for (seq, expected) in [(1001, &[1, 1002, 1003, 1004, 1005][..]), (1003, &[1004, 1005])] {
            let after = Position { epoch: Epoch("epoch".into()), seq };
            let mut watcher = hub.watch(Start::After(after), false, filter.clone()).unwrap();
            assert_eq!(numbers(&rest(&mut watcher).await), expected);
        }
        let at = Position { epoch: Epoch("epoch".into()), seq: 1001 };
        let snapshot = Start::Snapshot { position: at, instead_of: None };
        let mut watcher = hub.watch(snapshot, false, filter).unwrap();
        assert_eq!(
            numbers(&rest(&mut watcher).await),
            [1002, 1003, 1004, 1005],
            "none from before its start"
        );
    }

    #[tokio::test]
    async fn what_had_its_names_when_it_left_is_not_owed_to_who_resumes() {
        let (unnamed, named) = (subject(1, None), subject(1, Some(facts("prod", "web", "nginx"))));
        let (filter, other) =
            (proto::Filter { pods: vec!["web".into()], ..Default::default() }, subject(2, None));
        // Who gets a gap for what has left of all, gets no second one for what has left of one.
        for (before, epoch, seq, expected) in [
            (&named, "epoch", 5, &[7][..]),
            (&named, "epoch", 0, &[2, 7]),
            (&unnamed, "epoch", 5, &[2, 7]),
            (&unnamed, "epoch", 0, &[2, 7]),
            (&unnamed, "epoch", 1, &[2, 1, 7]),
            (&unnamed, "another", 1, &[2, 7]),
        ] {
            let (hub, mut writer) = hub(8);
            writer.append([updated(before), stopped(before)], clock());
            writer.append((0..4).map(|_| stopped(&other)), clock());
            writer.append([updated(&named)], clock());
            writer.append((0..3).map(|_| stopped(&other)), clock());
            let after = Position { epoch: Epoch(epoch.into()), seq };
            let filter = filter.clone().try_into().unwrap();
            let events = rest(&mut hub.watch(Start::After(after), false, filter).unwrap()).await;
            assert_eq!(numbers(&events), expected, "{epoch}");
        }
    }

    #[test]
    fn large_labels_are_held_once_and_bounded_in_bytes() {
        const LABELS: usize = 700_000;
        let capacity = Capacity { items: NonZeroUsize::new(65_536).unwrap(), bytes: 16 << 20 };
        let (hub, mut writer) = Hub::new(Epoch("epoch".into()), capacity);
        let large = |id| {
            let mut facts = facts("prod", "web", "nginx");
            facts.labels.insert("large".to_owned(), "x".repeat(LABELS));
            subject(id, Some(facts))
        };
        let one = large(1);
        writer.append((0..100).map(|_| created(&one)), clock());
        let bytes = hub.extent().bytes as usize;
        assert!((LABELS..LABELS + 100_000).contains(&bytes), "100 events share them: {bytes}");
        for id in 2..100 {
            writer.append([created(&large(id)), stopped(&large(id))], clock());
            let extent = hub.extent();
            assert!(extent.bytes <= extent.capacity_bytes, "{extent:?}");
        }
        let extent = hub.extent();
        let kept = extent.last_seq + 1 - extent.first_seq;
        assert!((2..=24).contains(&kept), "{extent:?}");
    }

    #[tokio::test]
    async fn a_batch_is_bounded_in_bytes() {
        let (hub, mut writer) = hub(1024);
        let mut facts = facts("prod", "web", "nginx");
        facts.labels.insert("large".to_owned(), "x".repeat(700_000));
        let large = subject(1, Some(facts));
        writer.append((0..10).map(|_| stopped(&large)), clock());
        let mut watcher = hub.watch(Start::Since(KernelTime(0)), false, Filter::default()).unwrap();
        watcher.opening();
        let mut sizes = Vec::new();
        while let Some(batch) = watcher.next().await {
            sizes.push(decode(batch).len());
        }
        assert_eq!(sizes, [2; 5], "2 × 0.7 MB a message");
    }

    /// A watcher in the middle of matching a batch against its filter keeps neither the engine nor `Status` waiting.
    #[test]
    fn no_lock_is_held_while_a_filter_is_matched() {
        let (hub, mut writer) = hub(32_768);
        let of = subject(1, Some(facts("prod", "web", "nginx")));
        writer.append((0..17_000).map(|_| stopped(&of)), clock());
        let filter = proto::Filter {
            pods: (0..256).map(|number| format!("{number:0253}")).collect(),
            ..Default::default()
        };
        let mut watcher = hub.watch(Start::Since(KernelTime(0)), false, filter.try_into().unwrap()).unwrap();
        watcher.opening();
        let (reached, is_matching) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel();
        watcher.before_matching = Some((reached, may_go_on));
        let reader = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(watcher.next()).is_none()
        });
        is_matching.recv().unwrap();
        // It stands in the middle now. These would wait for ever if it held the lock.
        let (done, is_done) = mpsc::channel();
        let beside = hub.clone();
        std::thread::spawn(move || {
            writer.append([stopped(&of)], clock());
            done.send(beside.extent().last_seq).unwrap();
        });
        assert_eq!(is_done.recv_timeout(Duration::from_secs(30)), Ok(17_001));
        drop(go_on);
        assert!(reader.join().unwrap(), "nothing matched");
    }

    #[tokio::test]
    async fn history_with_resolved_names_is_in_order_and_named() {
        let (hub, mut writer) = hub(64);
        let (unnamed, named) = (subject(1, None), subject(1, Some(facts("prod", "web", "nginx"))));
        let other = subject(2, Some(facts("prod", "db", "postgres")));
        writer.append([created(&unnamed), created(&other), stopped(&unnamed), updated(&named)], clock());
        let filter: Filter =
            proto::Filter { pods: vec!["web".into()], ..Default::default() }.try_into().unwrap();
        let start = Start::Since(KernelTime(0));
        let mut watcher = hub.watch(start, false, filter).unwrap().resolving_names();
        let events = rest(&mut watcher).await;
        assert_eq!(numbers(&events), [1, 3, 4]);
        for event in &events {
            assert_eq!(event.container.as_ref().unwrap().name.as_deref(), Some("nginx"));
        }
    }

    #[tokio::test]
    async fn a_stream_ends_after_its_limit_or_its_time() {
        let (hub, mut writer) = hub(64);
        let of = subject(1, None);
        writer.append([created(&of), gap(), stopped(&of), stopped(&of), stopped(&of)], clock());
        let since = || hub.watch(Start::Since(KernelTime(0)), true, Filter::default()).unwrap();
        let mut watcher = since().with_limit(2);
        assert_eq!(numbers(&rest(&mut watcher).await), [1, 2, 3], "a gap does not count");
        // All events in these tests have the time 7.
        let mut watcher = since().until(KernelTime(7));
        assert_eq!(numbers(&rest(&mut watcher).await), [1, 2, 3, 4, 5]);
        let mut watcher = since().until(KernelTime(6));
        assert_eq!(numbers(&rest(&mut watcher).await), [0; 0]);
        let soon = KernelTime(Clock::read().now().0 + 20_000_000);
        let mut watcher = hub.watch(Start::Now, true, Filter::default()).unwrap().until(soon);
        watcher.opening();
        assert!(timeout(Duration::from_secs(5), watcher.next()).await.unwrap().is_none());
        assert!(Clock::read().now() >= soon);
    }
}
