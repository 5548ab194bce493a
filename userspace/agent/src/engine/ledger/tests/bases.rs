//! A base that is written while the engine goes on: at whatever step the process ends, the next daemon has the same, once.

use std::sync::mpsc;
use std::thread;

use nix::unistd::gettid;

use super::super::base::Size;
use super::*;
use crate::hub::testing::{created, gap, rest, stopped, subject};
use crate::hub::{Filter, Start};

/// What a turn does at which a base is due, but for the thread.
fn due(daemon: &mut Daemon) -> (Base, Memory) {
    let Daemon { memory, writer, ledger, .. } = daemon;
    let memory = memory.borrowed();
    let head = head(&ledger.place, &ledger.boot, writer.position(), &memory, Before::Whole);
    ledger.begin_segment(&head, None).unwrap();
    (ledger.base(head, writer), memory.to_owned())
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
        let (base, memory) = due(&mut daemon);
        check(&mut daemon, &place, at).await;
        let (draft, _) = base.write(&memory.borrowed(), 0).unwrap();
        check(&mut daemon, &place, at + 1).await;
        let number = daemon.ledger.number - 1;
        let bytes = draft.name(&place, number).unwrap().size();
        assert!(place.segment(number - 1).exists());
        check(&mut daemon, &place, at + 2).await;
        base.remove_earlier().unwrap();
        assert_eq!(segment::numbers(&place.directory).unwrap(), [number, number + 1]);
        check(&mut daemon, &place, at + 3).await;
        daemon.ledger.earlier = vec![(number, bytes)];
    }
    // A draft that the daemon left is none of the next one's.
    let (base, memory) = due(&mut daemon);
    drop(base.write(&memory.borrowed(), 0).unwrap());
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
    // No base is due meanwhile.
    let place = Place { bytes: 16 * SEGMENT, ..place(directory.path()) };
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
    assert!(daemon.ledger.file.size() - daemon.ledger.used >= SEGMENT, "room for as much as in any other");
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

#[tokio::test]
async fn a_segment_that_is_full_before_a_base_is_written_waits_only_if_there_is_no_room_for_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(directory.path());
    let mut daemon = Daemon::begin(&place);
    check(&mut daemon, &place, 1).await;
    let (base, memory) = due(&mut daemon);
    let (go_on, goes_on) = mpsc::channel::<()>();
    let thread = thread::spawn(move || {
        goes_on.recv().unwrap();
        base.run(&memory.borrowed())
    });
    daemon.ledger.making = Some(Making::of(1, thread));
    let turn = |daemon: &mut Daemon| {
        let memory = daemon.memory.borrowed();
        daemon.ledger.turn(daemon.writer.position(), &memory, Before::Whole, &daemon.writer).unwrap();
    };
    let has_room = |daemon: &Daemon| daemon.ledger.has_room_beside_base(0, &daemon.writer);
    let mut at = 1;
    // As with a storm: the thread has not come to an end, nor does it before the engine goes on.
    while has_room(&daemon) {
        turn(&mut daemon);
        at += 1;
        check(&mut daemon, &place, at).await;
        let base = daemon.ledger.base_bytes(&daemon.writer);
        assert!(on_disk(&place) + base as u64 <= (place.bytes + 2 * SEGMENT) as u64);
    }
    assert!(at > 2 && daemon.ledger.making.is_some());
    go_on.send(()).unwrap();
    let last = daemon.ledger.number;
    turn(&mut daemon);
    let earlier: Vec<_> = daemon.ledger.earlier.iter().map(|(number, _)| *number).collect();
    assert_eq!(earlier, (1..=last).collect::<Vec<_>>(), "the base, and what is newer");
    assert!(daemon.ledger.earlier[0].1 < SEGMENT, "it has waited for the base");
    daemon.ledger.settle().unwrap();
    assert_eq!(on_disk(&place), daemon.ledger.bytes() as u64);
    check(&mut daemon, &place, at + 1).await;
}

#[test]
fn what_an_earlier_release_numbered_in_another_way_is_gone_on_with() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(directory.path());
    let mut daemon = Daemon::begin(&place);
    daemon.observe(loss(1));
    daemon.publish();
    let earlier = fs::read(place.segment(1)).unwrap();
    let begun = place.clone().begin(daemon.writer.position(), &daemon.memory.borrowed(), &daemon.writer);
    daemon.ledger = begun.unwrap();
    // One number further, and what it replaced could not be removed.
    fs::rename(place.segment(2), place.segment(3)).unwrap();
    daemon.ledger.number = 3;
    fs::write(place.segment(1), earlier).unwrap();
    fs::set_permissions(place.segment(1), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(replay(&place).0.position(), daemon.hub.position());
    assert_eq!(place.read().unwrap().unwrap().made(), made(&place, 3));
    // A segment that has a state although those before lead to it.
    daemon.observe(loss(2));
    daemon.publish();
    let memory = daemon.memory.borrowed();
    let head = head(&place, &daemon.ledger.boot, daemon.writer.position(), &memory, Before::Whole);
    daemon.ledger.begin_segment(&head, Some(&memory)).unwrap();
    daemon.observe(loss(3));
    daemon.publish();
    let (next, memory) = replay(&place);
    assert_eq!((next.position(), memory.events.len()), (daemon.hub.position(), 0));
    assert_eq!(next.extent(), daemon.hub.extent());
}

#[test]
fn only_the_last_of_two_turns_begins_a_base_and_that_has_its_own_state() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place { bytes: SEGMENT, ..place(directory.path()) };
    let Daemon { memory, writer, mut ledger, .. } = Daemon::begin(&place);
    let memory = memory.borrowed();
    ledger.turn_without_base(writer.position(), &memory, &writer).unwrap();
    assert!(ledger.making.is_none() && ledger.is_base_due(&writer));
    ledger.turn(writer.position(), &memory, Before::Broken, &writer).unwrap();
    ledger.settle().unwrap();
    let boot = fs::read_to_string(BOOT_ID).unwrap();
    let before = |number| segment::Segment::read(&place, number, &boot).unwrap().head.before;
    assert_eq!([before(2), before(3)], [Before::Whole, Before::Broken], "the base, and the segment");
}

fn on_disk(place: &Place) -> u64 {
    let files = segment::numbers(&place.directory).unwrap().into_iter();
    files.map(|number| fs::metadata(place.segment(number)).unwrap().len()).sum()
}

/// When that file was made.
fn made(place: &Place, number: u64) -> KernelTime {
    segment::Segment::read(place, number, &fs::read_to_string(BOOT_ID).unwrap()).unwrap().head.made
}

#[test]
fn what_a_thread_writes_is_there_before_the_ledgers_owner_does_anything_else() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(directory.path());
    for give_up in [false, true] {
        let mut daemon = Daemon::begin(&place);
        let late = directory.path().join(format!("late-{give_up}"));
        let written = late.clone();
        let owner = procfs::process::Process::myself().unwrap().task_from_tid(gettid().as_raw()).unwrap();
        let thread = thread::spawn(move || {
            // Its owner sleeps only to wait for it.
            while owner.stat().unwrap().state != 'S' {
                thread::yield_now();
            }
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
