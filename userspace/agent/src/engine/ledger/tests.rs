//! Ledgers that are whole, truncated, foreign and full. What is observed are losses: each is an event.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::Arc;

use kwitness_abi::Counters;
use kwitness_core::decode::Decoder;
use kwitness_core::journal::Epoch;
use kwitness_core::model::{GapCause, Loss, Output};
use kwitness_core::seam::Seam;

use super::super::losses::{Look, Losses, Seen};
use super::replay::unless_panicked;
use super::*;
use crate::hub::{Capacity, Hub, Writer};
use crate::probe::SetId;

mod bases;
mod fixture;
mod reported;
mod shares;

fn place(directory: &Path) -> Place {
    Place { directory: directory.join("ledger"), bytes: 5 * SEGMENT, bounds: Bounds::default() }
}

fn loss(at: u64) -> Observation {
    let (from, to) = (KernelTime(at), KernelTime(at));
    Observation::Lost(Loss {
        from,
        to,
        cause: GapCause::RingFull,
        lost: [("task_exec".to_owned(), at)].into(),
        by_container: [].into(),
        capabilities: Vec::new(),
    })
}

fn hub(position: Position) -> (Arc<Hub>, Writer) {
    Hub::resumed(
        position,
        KernelTime(0),
        Capacity { items: NonZeroUsize::new(4096).unwrap(), bytes: 64 << 20 },
    )
}

fn start() -> Position {
    Position { epoch: Epoch("epoch".into()), seq: 0 }
}

/// A daemon without a kernel.
struct Daemon {
    memory: Memory,
    output: Output,
    hub: Arc<Hub>,
    writer: Writer,
    ledger: Ledger,
}

impl Daemon {
    fn begin(place: &Place) -> Self {
        let (hub, writer) = hub(start());
        let memory = Memory::new(Bounds::default());
        let ledger = place.clone().begin(start(), &memory.borrowed(), &writer).unwrap();
        Self { memory, output: Output::default(), hub, writer, ledger }
    }

    fn observe(&mut self, observation: Observation) {
        assert!(self.ledger.observation(&observation));
        self.memory.reported.observe(&observation);
        self.memory.node.observe(observation, &mut self.output);
    }

    fn publish(&mut self) {
        let clock = Clock::read();
        let seq = self.writer.position().seq + self.output.events.len() as u64;
        assert!(self.ledger.publish(seq, clock));
        self.writer.append(self.output.events.drain(..), clock);
    }
}

fn replay(place: &Place) -> (Arc<Hub>, Memory) {
    let history = place.read().unwrap().expect("a ledger");
    let (hub, mut writer) = hub(history.position());
    let memory = history.replay(&mut writer).unwrap();
    (hub, memory)
}

#[test]
fn the_next_daemon_has_what_the_last_one_had() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(directory.path());
    assert!(place.read().unwrap().is_none());
    let mut daemon = Daemon::begin(&place);
    fs::write(place.directory.join("1"), "the name of no segment").unwrap();
    for at in 1..=10 {
        daemon.observe(loss(at));
        daemon.publish();
        if at == 5 {
            daemon.memory.seen = Seen::all(Counters::default(), [("task_exit", 2)].into(), [(7, 3)].into());
            daemon
                .ledger
                .turn(daemon.writer.position(), &daemon.memory.borrowed(), Before::Whole, &daemon.writer)
                .unwrap();
        }
    }
    let (_, memory) = replay(&place);
    assert_eq!((memory.seen, memory.last_record), (daemon.memory.seen.clone(), None));
    assert!(daemon.ledger.record(b"the last record"));
    // Written down, and not published: no client has it.
    daemon.observe(loss(11));
    let (hub, memory) = replay(&place);
    assert_eq!(hub.position(), daemon.hub.position());
    assert_eq!(hub.extent(), daemon.hub.extent());
    assert_eq!(memory.events.len(), 1);
    assert_eq!(memory.last_record.as_deref(), Some(&b"the last record"[..]));
}

#[test]
fn an_earlier_releases_ledger_is_gone_on_with() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(directory.path());
    let mut daemon = Daemon::begin(&place);
    daemon.observe(loss(1));
    daemon.publish();
    let segment = place.segment(1);
    let mut bytes = fs::read(&segment).unwrap();
    bytes[..COMMITTED].copy_from_slice(b"kwledg02");
    fs::write(&segment, &bytes).unwrap();
    assert_eq!(replay(&place).0.position(), daemon.hub.position());
    bytes[..COMMITTED].copy_from_slice(b"kwledg01");
    fs::write(&segment, &bytes).unwrap();
    assert!(matches!(place.read(), Err(Refusal::OtherFormat { .. })));
}

#[test]
fn what_there_was_no_room_for_has_followed() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(directory.path());
    let mut daemon = Daemon::begin(&place);
    daemon.observe(loss(1));
    daemon.publish();
    for at in [2, 3] {
        daemon.memory.node.observe(loss(at), &mut daemon.output);
    }
    daemon.memory.events = daemon.output.events.clone();
    daemon
        .ledger
        .turn(daemon.writer.position(), &daemon.memory.borrowed(), Before::Broken, &daemon.writer)
        .unwrap();
    assert_eq!(replay(&place).1.events.len(), 2);
    daemon.publish();
    let (hub, memory) = replay(&place);
    assert_eq!((hub.position(), memory.events.len()), (daemon.hub.position(), 0));
}

#[test]
fn an_outage_stays_until_it_is_reported() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(directory.path());
    let mut daemon = Daemon::begin(&place);
    // Not in the first segment, with which a replay begins.
    daemon.memory.outage = Some(KernelTime(5));
    daemon
        .ledger
        .turn(daemon.writer.position(), &daemon.memory.borrowed(), Before::Whole, &daemon.writer)
        .unwrap();
    daemon.observe(Observation::Tick { at: KernelTime(7) });
    let (_, memory) = replay(&place);
    assert_eq!(memory.outage, Some(KernelTime(5)));
    daemon.observe(Observation::AgentRestarted { from: KernelTime(5), to: KernelTime(8), records: 0 });
    assert_eq!(replay(&place).1.outage, None);
}

#[test]
fn what_was_lost_after_the_last_look_is_of_that_time() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(directory.path());
    let mut daemon = Daemon::begin(&place);
    assert_eq!(replay(&place).1.looked, None);
    assert!(daemon.ledger.look(KernelTime(5)));
    // It was seen to work later, and had not looked again.
    daemon.observe(Observation::Tick { at: KernelTime(7) });
    let memory = replay(&place).1;
    assert_eq!((memory.looked, memory.until), (Some(KernelTime(5)), KernelTime(7)));
    daemon.memory.looked = memory.looked;
    daemon
        .ledger
        .turn(daemon.writer.position(), &daemon.memory.borrowed(), Before::Whole, &daemon.writer)
        .unwrap();
    assert_eq!(replay(&place).1.looked, Some(KernelTime(5)));
}

#[test]
fn what_was_left_out_is_left_out_once_over_a_crash() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(directory.path());
    let mut daemon = Daemon::begin(&place);
    // Nothing but zeros and its kind: a cgroup that has lost its last process.
    let mut record = vec![0; RecordKind::CgroupPopulated.record_size()];
    record[16..18].copy_from_slice(&(RecordKind::CgroupPopulated as u16).to_ne_bytes());
    let event = Decoder::default().decode(&record).unwrap();
    let mut seam = Seam::default();
    seam.take(&event, event.at);
    daemon.memory.seam = Some(seam);
    daemon
        .ledger
        .turn(daemon.writer.position(), &daemon.memory.borrowed(), Before::Whole, &daemon.writer)
        .unwrap();
    let mut kept = replay(&place).1.seam.expect("what was taken is known");
    assert!(kept.is_double(&event));
    assert!(daemon.ledger.double(&record));
    let (_, memory) = replay(&place);
    assert!(!memory.seam.expect("as above").is_double(&event), "it has had its double");
    assert_eq!(memory.last_record, Some(record), "it may be in its ring still");
}

#[test]
fn what_could_not_be_decoded_is_reported_by_the_next_daemon_if_it_was_not() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(directory.path());
    let mut daemon = Daemon::begin(&place);
    assert!(daemon.ledger.record(b"no record"));
    let (_, memory) = replay(&place);
    let mut losses = Losses::resumed(&memory.seen, KernelTime(1));
    let losses = losses.since_last(Counters::default(), Look { began: KernelTime(2), ended: KernelTime(2) });
    assert_eq!(losses.iter().map(|loss| loss.cause).collect::<Vec<_>>(), [GapCause::MalformedRecord]);

    let observations = losses.into_iter().map(Observation::Lost).collect();
    assert!(daemon.ledger.account(&Accounted { observations, seen: Seen::default() }));
    let (_, memory) = replay(&place);
    assert_eq!((memory.events.len(), memory.seen), (1, Seen::default()));
}

#[test]
fn an_entry_that_was_not_finished_does_not_count() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(directory.path());
    let mut daemon = Daemon::begin(&place);
    daemon.observe(loss(1));
    daemon.publish();
    // All of an entry but the number that makes it count.
    append(&mut daemon.ledger.file, daemon.ledger.used, Tag::Observation, b"{").unwrap();
    let (hub, memory) = replay(&place);
    assert_eq!((hub.position().seq, memory.events.len()), (1, 0));
}

#[test]
fn what_is_not_whole_or_not_ours_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(directory.path());
    drop(Daemon::begin(&place));
    let segment = place.segment(1);
    let refused = |place: &Place| place.read().unwrap_err().to_string();
    let named = |text: &str| assert!(text.contains(segment.to_str().unwrap()), "{text}");

    fs::set_permissions(&segment, fs::Permissions::from_mode(0o644)).unwrap();
    let text = refused(&place);
    named(&text);
    assert!(text.contains("mode 644"), "{text}");
    fs::set_permissions(&segment, fs::Permissions::from_mode(0o600)).unwrap();

    let text = refused(&Place { bounds: Bounds::for_cgroups(64), ..place.clone() });
    assert!(text.contains("kernel.tracked_capacity"), "{text}");

    let whole = fs::read(&segment).unwrap();
    let mut long = whole.clone();
    long[COMMITTED..ENTRIES].fill(0xff);
    for torn in [&whole[..100], &long[..]] {
        fs::write(&segment, torn).unwrap();
        let text = refused(&place);
        named(&text);
        assert!(text.contains("truncated"), "{text}");
    }
    fs::write(&segment, b"something else that is here").unwrap();
    assert!(refused(&place).contains("not a ledger of this release"));

    // A state that cannot be read.
    let mut broken = whole;
    let at = broken.windows(8).position(|bytes| bytes == b"\"reorder").unwrap();
    broken[at] = b'x';
    fs::write(&segment, &broken).unwrap();
    let history = place.read().unwrap().unwrap();
    let (_, mut writer) = hub(history.position());
    let text = history.replay(&mut writer).unwrap_err().to_string();
    assert!(text.contains("truncated"), "{text}");

    fs::set_permissions(&place.directory, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(refused(&place).contains("mode 755"));
    let memory = Memory::new(Bounds::default());
    let begun = place.begin(start(), &memory.borrowed(), &hub(start()).1);
    assert_eq!(begun.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
}

#[test]
fn no_link_is_followed() {
    let directory = tempfile::tempdir().unwrap();
    let (place, elsewhere) = (place(directory.path()), directory.path().join("elsewhere"));
    drop(Daemon::begin(&place));
    let memory = Memory::new(Bounds::default());
    let is_refused =
        |path: &Path| matches!(place.read(), Err(Refusal::Foreign { path: refused, .. }) if refused == path);
    for link in [place.segment(1), place.directory.clone()] {
        fs::rename(&link, &elsewhere).unwrap();
        symlink(&elsewhere, &link).unwrap();
        assert!(is_refused(&link), "{}", link.display());
        fs::remove_file(&link).unwrap();
        fs::rename(&elsewhere, &link).unwrap();
    }
    assert!(place.read().unwrap().is_some());
    fs::rename(&place.directory, &elsewhere).unwrap();
    symlink(&elsewhere, &place.directory).unwrap();
    let begun = place.clone().begin(start(), &memory.borrowed(), &hub(start()).1);
    assert_eq!(begun.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    // What it leads to stays.
    assert!(place.remove().unwrap() && elsewhere.join(file_name(1)).exists());
}

#[test]
fn a_replay_that_comes_to_other_events_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(directory.path());
    let mut daemon = Daemon::begin(&place);
    daemon.observe(loss(1));
    daemon.publish();
    let elsewhere = Position { seq: 7, ..daemon.writer.position() };
    daemon.ledger.turn(elsewhere, &daemon.memory.borrowed(), Before::Whole, &daemon.writer).unwrap();
    let history = place.read().unwrap().unwrap();
    let (_, mut writer) = hub(history.position());
    let refusal = history.replay(&mut writer).unwrap_err();
    assert!(matches!(refusal, Refusal::Differs { replayed: 1, written: 7, .. }), "{refusal}");
}

#[test]
fn a_publication_of_other_events_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(directory.path());
    let mut daemon = Daemon::begin(&place);
    daemon.observe(loss(1));
    assert!(daemon.ledger.publish(2, Clock::read()));
    let history = place.read().unwrap().unwrap();
    let (_, mut writer) = hub(history.position());
    let refusal = history.replay(&mut writer).unwrap_err();
    assert!(matches!(refusal, Refusal::Differs { replayed: 1, written: 2, .. }), "{refusal}");
}

#[test]
fn a_ledger_that_was_given_up_is_refused_even_if_it_is_still_there() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(directory.path());
    let mut daemon = Daemon::begin(&place);
    daemon.observe(loss(1));
    daemon.publish();
    daemon
        .ledger
        .turn(daemon.writer.position(), &daemon.memory.borrowed(), Before::Whole, &daemon.writer)
        .unwrap();
    let refusal = daemon.ledger.give_up().read().unwrap_err();
    assert!(matches!(&refusal, Refusal::Torn { path, .. } if *path == place.segment(2)), "{refusal}");
}

#[test]
fn a_segment_that_cannot_be_begun_costs_the_ledger() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(directory.path());
    let mut daemon = Daemon::begin(&place);
    // As where no memory is left: the next segment cannot be made.
    let blocked = place.directory.join("new");
    fs::create_dir(&blocked).unwrap();
    daemon
        .ledger
        .turn(daemon.writer.position(), &daemon.memory.borrowed(), Before::Whole, &daemon.writer)
        .unwrap_err();
    daemon.ledger.give_up();
    let refusal = place.read().unwrap_err();
    assert!(matches!(&refusal, Refusal::Torn { path, .. } if *path == place.segment(1)), "{refusal}");
    assert!(place.clone().begin(start(), &daemon.memory.borrowed(), &daemon.writer).is_err());
    // Once there is room again, it is begun anew; what was given up is of no account, even if it is still there.
    fs::remove_dir(&blocked).unwrap();
    let later = Position { seq: 5, ..start() };
    place.clone().begin(later.clone(), &daemon.memory.borrowed(), &hub(later.clone()).1).unwrap();
    assert_eq!(replay(&place).0.position(), later);
}

#[test]
fn what_cannot_be_bounded_is_not_left_to_be_gone_on_with() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place { bytes: 1, ..place(directory.path()) };
    fs::DirBuilder::new().mode(0o700).create(&place.directory).unwrap();
    fs::create_dir(place.segment(1)).unwrap();
    let memory = Memory::new(Bounds::default());
    place.clone().begin(start(), &memory.borrowed(), &hub(start()).1).unwrap_err();
    let refusal = place.read().unwrap_err();
    assert!(matches!(&refusal, Refusal::Torn { path, .. } if *path == place.segment(2)), "{refusal}");
}

#[test]
fn what_is_left_of_a_removed_ledger_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(directory.path());
    let mut daemon = Daemon::begin(&place);
    for at in 1..=2 {
        daemon.observe(loss(at));
        daemon.publish();
        daemon
            .ledger
            .turn(daemon.writer.position(), &daemon.memory.borrowed(), Before::Whole, &daemon.writer)
            .unwrap();
    }
    // The removal ends at the second of three segments, as with a crash.
    let (segment, whole) = (place.segment(2), place.directory.join("whole"));
    fs::rename(&segment, &whole).unwrap();
    fs::create_dir(&segment).unwrap();
    place.remove().unwrap_err();
    fs::remove_dir(&segment).unwrap();
    fs::rename(&whole, &segment).unwrap();
    let history = place.read().unwrap().unwrap();
    let (_, mut writer) = hub(history.position());
    let refusal = history.replay(&mut writer).unwrap_err();
    assert!(matches!(&refusal, Refusal::Torn { path, .. } if *path == segment), "{refusal}");
    assert!(place.remove().unwrap() && !place.remove().unwrap());
    // Whatever is in its place.
    fs::write(&place.directory, "no directory").unwrap();
    assert!(place.read().is_err() && place.remove().unwrap());
}

#[test]
fn a_segment_of_another_epoch_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(directory.path());
    let mut daemon = Daemon::begin(&place);
    let elsewhere = Position { epoch: Epoch("another".into()), ..start() };
    daemon.ledger.turn(elsewhere, &daemon.memory.borrowed(), Before::Whole, &daemon.writer).unwrap();
    let history = place.read().unwrap().unwrap();
    let (_, mut writer) = hub(history.position());
    let refusal = history.replay(&mut writer).unwrap_err().to_string();
    assert!(refusal.contains(place.segment(2).to_str().unwrap()) && refusal.contains("epoch"), "{refusal}");
}

#[test]
fn the_programs_that_it_is_of_are_those_of_the_last_segment() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(directory.path());
    let mut daemon = Daemon::begin(&place);
    assert!(matches!(replay(&place).1.check_set(SetId(7), &place), Err(Refusal::OtherSet { .. })));
    daemon.memory.sets = vec![SetId(7)];
    daemon
        .ledger
        .turn(daemon.writer.position(), &daemon.memory.borrowed(), Before::Whole, &daemon.writer)
        .unwrap();
    replay(&place).1.check_set(SetId(7), &place).unwrap();
}

#[test]
fn a_replay_that_panics_is_refused() {
    let panics = || -> Result<(), Refusal> { panic!("as the earlier daemon did") };
    let refusal = unless_panicked("ledger".into(), panics).unwrap_err();
    assert!(matches!(refusal, Refusal::Panicked { .. }), "{refusal}");
}
