//! The journal over a restart: what it held is there, whatever one container did, and the ledger stays within its bound.

use std::sync::Arc;

use kwitness_api::proto::{self, event::Kind};
use kwitness_core::model;

use super::*;
use crate::hub::testing::{created, gap, numbers, rest, stopped, subject};
use crate::hub::{Filter, Start};

/// A daemon at whose next turn there is no room for a segment more.
fn full(place: &Place) -> (Place, Daemon) {
    let place = Place { bytes: SEGMENT, ..place.clone() };
    let daemon = Daemon::begin(&place);
    (place, daemon)
}

fn turn(daemon: &mut Daemon) {
    let memory = daemon.memory.borrowed();
    daemon.ledger.turn(daemon.writer.position(), &memory, Before::Whole, &daemon.writer).unwrap();
    if daemon.ledger.making.is_none() {
        return;
    }
    let before = daemon.ledger.bytes();
    daemon.ledger.settle().unwrap();
    let (_, base) = daemon.ledger.earlier[0];
    assert!(before + base <= daemon.ledger.place.bytes + 2 * SEGMENT, "{base} beside {before}");
}

/// Whether the last turn has begun a base.
fn has_base_anew(daemon: &Daemon) -> bool {
    daemon.ledger.since == 0
}

/// The first and the last number of a journal, and how many events it has.
fn held(hub: &Hub) -> (u64, u64, u64) {
    let extent = hub.extent();
    (extent.first_seq, extent.last_seq, extent.events)
}

async fn events(hub: &Arc<Hub>) -> Vec<proto::Event> {
    rest(&mut hub.watch(Start::After(start()), false, Filter::default()).unwrap()).await
}

#[tokio::test]
async fn a_storm_of_one_container_costs_no_other_an_event_over_restarts() {
    let directory = tempfile::tempdir().unwrap();
    let (place, mut daemon) = full(&place(directory.path()));
    let (quiet, storm) = (subject(1, None), subject(2, None));
    daemon.writer.append([created(&quiet), gap()], Clock::read());
    for _ in 0..10 {
        daemon.writer.append((0..1000).map(|_| stopped(&storm)), Clock::read());
        turn(&mut daemon);
    }
    daemon.observe(loss(1));
    daemon.publish();
    assert_eq!(held(&daemon.hub), (1, 10_003, 4096));

    let mut hub = daemon.hub;
    for restart in 1..=2 {
        let history = place.read().unwrap().unwrap();
        let (next, mut writer) = self::hub(history.position());
        let memory = history.replay(&mut writer).unwrap();
        assert_eq!(next.position(), hub.position());
        assert_eq!(held(&next), held(&hub), "restart {restart}");
        let events = events(&next).await;
        assert_eq!(numbers(&events)[..2], [1, 2], "the other's and the node's");
        let Some(Kind::Gap(gap)) = &events[2].kind else { panic!("{:?}", events[2]) };
        assert_eq!(events[2].container.as_ref().unwrap().id, &*storm.container_id.0);
        assert_eq!(gap.lost["event"], 10_003 - 4096, "each event or its place");
        place.clone().begin(writer.position(), &memory.borrowed(), &writer).unwrap();
        hub = next;
    }
}

#[test]
fn the_ledger_is_within_its_bound_and_leads_to_the_same_journal() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(directory.path());
    let mut daemon = Daemon::begin(&place);
    let mut bases = 0;
    for at in 1..=20 {
        daemon.observe(loss(at));
        daemon.publish();
        turn(&mut daemon);
        let numbers = numbers_in(&place);
        bases += usize::from(has_base_anew(&daemon));
        let bytes: u64 =
            numbers.iter().map(|number| fs::metadata(place.segment(*number)).unwrap().len()).sum();
        assert!(bytes <= place.bytes as u64 + SEGMENT as u64, "{bytes}");
        let (hub, _) = replay(&place);
        assert_eq!(hub.position(), daemon.hub.position());
        assert_eq!(held(&hub), held(&daemon.hub));
    }
    assert!((2..10).contains(&bases), "{bases}");
}

#[test]
fn a_full_journal_is_not_written_with_each_segment() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place { bytes: 8 * SEGMENT, ..place(directory.path()) };
    let mut daemon = Daemon::begin(&place);
    let large = |_| {
        let mut event = gap();
        let model::Kind::Gap(of) = &mut event.kind else { unreachable!() };
        of.lost = [("x".repeat(7000), 1)].into();
        event
    };
    daemon.writer.append((0..4096).map(large), Clock::read());
    assert!(daemon.writer.kept_bytes() > place.journal_bytes());
    let mut bases = 0;
    for _ in 0..20 {
        turn(&mut daemon);
        bases += usize::from(has_base_anew(&daemon));
    }
    assert!((2..=10).contains(&bases), "at most every second one: {bases}");
}

#[test]
fn what_is_left_before_a_base_is_of_no_account() {
    let directory = tempfile::tempdir().unwrap();
    let (place, mut daemon) = full(&place(directory.path()));
    daemon.observe(loss(1));
    daemon.publish();
    turn(&mut daemon);
    assert_eq!(numbers_in(&place), [1, 2]);
    let earlier = fs::read(place.segment(1)).unwrap();
    daemon.observe(loss(2));
    daemon.publish();
    turn(&mut daemon);
    assert_eq!(numbers_in(&place), [2, 3]);
    // The daemon ended before it had removed it.
    fs::write(place.segment(1), earlier).unwrap();
    fs::set_permissions(place.segment(1), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(
        place.read().unwrap().unwrap().made(),
        segment::Segment::read(&place, 2, &fs::read_to_string(BOOT_ID).unwrap()).unwrap().head.made
    );
    assert_eq!(held(&replay(&place).0), held(&daemon.hub));
    Daemon::begin(&place);
    assert_eq!(numbers_in(&place), [4]);
}

#[test]
fn a_journal_that_is_not_whole_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (place, mut daemon) = full(&place(directory.path()));
    daemon.writer.append([created(&subject(1, None)), gap()], Clock::read());
    turn(&mut daemon);
    let segment = place.segment(1);
    let whole = fs::read(&segment).unwrap();
    let (mut rows, mut next) = (Vec::new(), ENTRIES);
    while let Some((tag, _, after)) = format::entry(&whole, next) {
        rows.extend((tag == Tag::Journal).then_some(next + ENTRY_HEAD));
        next = after;
    }
    let [scope, first, second] = rows[..] else { panic!("{rows:?}") };
    let refusal = |changed: &[u8]| {
        fs::write(&segment, changed).unwrap();
        let history = place.read().unwrap().unwrap();
        let (_, mut writer) = hub(history.position());
        history.replay(&mut writer).unwrap_err()
    };
    for row in [scope, first, second] {
        let mut changed = whole.clone();
        changed[row] = 9;
        let refusal = refusal(&changed);
        assert!(matches!(&refusal, Refusal::Torn { what, .. } if what.contains("journal")), "{refusal}");
    }
    // One event less than there were.
    let mut changed = whole.clone();
    let committed = (second - ENTRY_HEAD) as u64;
    changed[COMMITTED..ENTRIES].copy_from_slice(&committed.to_ne_bytes());
    let refusal = refusal(&changed);
    assert!(matches!(refusal, Refusal::Differs { replayed: 1, written: 2, .. }), "{refusal}");
}

fn numbers_in(place: &Place) -> Vec<u64> {
    segment::numbers(&place.directory).unwrap()
}
