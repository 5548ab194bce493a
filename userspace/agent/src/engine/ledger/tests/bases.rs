//! A base that is written while the engine goes on: at whatever step the process ends, the next daemon has the same, once.

use std::thread;
use std::time::Duration;

use super::super::base::Size;
use super::*;
use crate::hub::testing::{created, gap, rest, stopped, subject};
use crate::hub::{Filter, Start};

/// What a turn does at which a base is due, but for the thread.
fn due(daemon: &mut Daemon) -> Base {
    let Daemon { memory, writer, ledger, .. } = daemon;
    let memory = memory.borrowed();
    let head = head(&ledger.place, &ledger.boot, writer.position(), &memory, Before::Whole);
    ledger.begin_segment(&head, None).unwrap();
    ledger.base(head, &memory, writer)
}

/// One event more; and the next daemon, if this one ended now.
async fn check(daemon: &mut Daemon, place: &Place, at: u64) {
    daemon.observe(loss(at));
    daemon.publish();
    let (next, memory) = replay(place);
    assert_eq!(next.position(), daemon.hub.position());
    let node = |node| serde_json::to_value::<&kwitness_core::node::Node>(node).unwrap();
    assert_eq!(node(&memory.node), node(&daemon.memory.node));
    assert_eq!(all(&next).await, all(&daemon.hub).await);
}

async fn all(hub: &Arc<Hub>) -> Vec<kwitness_api::proto::Event> {
    let mut events = rest(&mut hub.watch(Start::After(start()), false, Filter::default()).unwrap()).await;
    for event in events.iter_mut().filter(|event| event.basis() == kwitness_api::proto::Basis::Daemon) {
        // The watcher's own gap is of the time at which it came across it.
        (event.time, event.kernel_time) = (None, 0);
    }
    events
}

#[tokio::test]
async fn nothing_is_lost_or_double_at_whatever_step_of_a_base_the_daemon_ends() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(directory.path());
    let mut daemon = Daemon::begin(&place);
    let (quiet, storm) = (subject(1, None), subject(2, None));
    daemon.writer.append([created(&quiet), gap()], Clock::read());
    // More than the journal holds: it gives up the same one's oldest all the while.
    daemon.writer.append((0..5000).map(|_| stopped(&storm)), Clock::read());
    // The ledger does not know of these: it begins anew with them.
    let memory = Memory::new(Bounds::default());
    let begun = place.clone().begin(daemon.writer.position(), &memory.borrowed(), &daemon.writer);
    daemon.ledger = begun.unwrap();
    check(&mut daemon, &place, 1).await;
    for round in 0..3 {
        let at = 10 * (round + 1);
        let memory = daemon.memory.borrowed();
        daemon.ledger.turn(daemon.writer.position(), &memory, Before::Whole, &daemon.writer).unwrap();
        let base = due(&mut daemon);
        check(&mut daemon, &place, at).await;
        let (draft, _) = base.write(0).unwrap();
        check(&mut daemon, &place, at + 1).await;
        let number = daemon.ledger.number - 1;
        let bytes = draft.name(&place, number).unwrap().size();
        assert!(place.segment(number - 1).exists());
        check(&mut daemon, &place, at + 2).await;
        base.remove_earlier().unwrap();
        assert_eq!(segment::numbers(&place.directory).unwrap(), [number, number + 1]);
        check(&mut daemon, &place, at + 3).await;
        (daemon.ledger.earlier, daemon.ledger.earlier_bytes) = (vec![number], bytes);
    }
    // A draft that the daemon left is none of the next one's.
    drop(due(&mut daemon).write(0).unwrap());
    assert!(place.directory.join(Draft::BASE).exists());
    let (_, memory) = replay(&place);
    place.clone().begin(daemon.writer.position(), &memory.borrowed(), &daemon.writer).unwrap();
    let names = fs::read_dir(&place.directory).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.count(), 1);
}

#[test]
fn a_segment_that_follows_has_no_state_and_no_journal() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(directory.path());
    let mut daemon = Daemon::begin(&place);
    daemon.observe(loss(1));
    daemon.publish();
    let mut turn = |before| {
        let memory = daemon.memory.borrowed();
        daemon.ledger.turn(daemon.writer.position(), &memory, before, &daemon.writer).unwrap();
        let bytes = fs::read(place.segment(daemon.ledger.number)).unwrap();
        let (mut tags, mut next) = (Vec::new(), ENTRIES);
        while let Some((tag, _, after)) = format::entry(&bytes, next) {
            tags.push(tag);
            next = after;
        }
        tags
    };
    assert_eq!(turn(Before::Whole), [Tag::Head]);
    assert_eq!(turn(Before::Broken), [Tag::Head, Tag::State]);
}

#[test]
fn what_is_larger_than_a_segment_has_one_as_large() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(directory.path());
    let mut daemon = Daemon::begin(&place);
    let Observation::Lost(mut large) = loss(1) else { unreachable!() };
    large.lost = [("x".repeat(2 * SEGMENT), 1)].into();
    let large = Observation::Lost(large);
    assert!(!daemon.ledger.observation(&large));
    let turn = |ledger: &mut Ledger| {
        let memory = daemon.memory.borrowed();
        ledger.turn(daemon.writer.position(), &memory, Before::Whole, &daemon.writer).unwrap();
        fs::metadata(place.segment(ledger.number)).unwrap().len()
    };
    assert!(turn(&mut daemon.ledger) > 2 * SEGMENT as u64);
    assert!(daemon.ledger.observation(&large));
    assert!(turn(&mut daemon.ledger) < 2 * SEGMENT as u64);
    assert_eq!(replay(&place).1.events.len(), 1);
}

#[test]
fn a_base_that_cannot_be_written_costs_the_ledger_and_nothing_before() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place { bytes: SEGMENT, ..place(directory.path()) };
    let mut daemon = Daemon::begin(&place);
    let in_its_place = place.directory.join(Draft::BASE);
    fs::create_dir(&in_its_place).unwrap();
    let memory = daemon.memory.borrowed();
    daemon.ledger.turn(daemon.writer.position(), &memory, Before::Whole, &daemon.writer).unwrap();
    daemon.ledger.settle().unwrap_err();
    // What it was to take the place of is there.
    assert_eq!(replay(&place).0.position(), daemon.hub.position());
    daemon.ledger.give_up();
    assert!(matches!(place.read(), Err(Refusal::Torn { .. })));
}

#[test]
fn what_a_thread_writes_is_there_before_the_ledgers_owner_does_anything_else() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(directory.path());
    for give_up in [false, true] {
        let mut daemon = Daemon::begin(&place);
        let late = directory.path().join(format!("late-{give_up}"));
        let written = late.clone();
        let thread = thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            fs::write(written, "").map(|()| Size { bytes: 1, state: 1 })
        });
        daemon.ledger.making = Some(Making::of(1, thread));
        if give_up {
            daemon.ledger.give_up();
        } else {
            drop(daemon.ledger);
        }
        assert!(late.exists());
    }
}
