//! The journal as the daemon itself reads it: in one go to its end, each event with what is known of its container by now.
//! Never waits, and never keeps the writer from anything that a watcher would not.

use std::sync::Arc;

use bytes::Bytes;
use kwitness_core::journal::{Cursor, Piece};
use kwitness_core::model::{KernelTime, Subject};
use prost::Message as _;

use super::Hub;
use super::watcher::BATCH;
use kwitness_api::{EventKind, proto};

/// A reader of all events from the first that the journal has.
#[derive(Debug)]
pub struct JournalReader {
    hub: Arc<Hub>,
    cursor: Cursor,
}

/// An event.
#[derive(Debug)]
pub struct JournalEvent {
    /// Its kind.
    pub kind: EventKind,
    /// When it happened.
    pub at: KernelTime,
    /// Whom it concerns, without labels.
    pub subject: Option<Arc<Subject>>,
    body: Bytes,
}

impl JournalEvent {
    /// The event without position and container.
    pub fn decode(&self) -> proto::Event {
        proto::Event::decode(self.body.clone()).expect("the journal holds what was encoded")
    }
}

impl Hub {
    /// A reader of all events from the first that the journal has.
    pub fn reader(self: &Arc<Self>) -> JournalReader {
        JournalReader { hub: Arc::clone(self), cursor: self.window.look(|journal, _| journal.start()) }
    }
}

impl JournalReader {
    /// Takes what the journal has by now; returns how many events it no longer had.
    pub fn read(&mut self, mut take: impl FnMut(&JournalEvent)) -> u64 {
        let end = self.hub.window.look(|journal, _| journal.end());
        let mut missed = 0;
        while self.cursor < end {
            let read = self.hub.window.read(self.cursor, BATCH, |entry, names| entry.resolved(names));
            missed += read.missed.map_or(0, |missed| missed.last - missed.first + 1);
            self.cursor = read.next;
            for piece in read.pieces {
                let entry = match piece {
                    Piece::Item(_, entry) => entry,
                    Piece::GivenUp(given_up) => {
                        missed += given_up.of.iter().map(|(_, count)| count).sum::<u64>();
                        continue;
                    }
                };
                let subject = entry.subject.map(|of| Arc::clone(&of.subject));
                take(&JournalEvent { kind: entry.kind, at: entry.at, subject, body: entry.body });
            }
        }
        missed
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use kwitness_core::journal::{Epoch, Position};
    use kwitness_core::model::KernelTime;

    use super::super::Capacity;
    use super::super::testing::*;
    use super::*;

    #[test]
    fn all_events_once_with_the_names_known_by_now_and_what_is_missed_counted() {
        let (hub, mut writer) = hub(16);
        let mut reader = hub.reader();
        let (unnamed, named) = (subject(1, None), subject(1, Some(facts("prod", "web", "nginx"))));
        writer.append([created(&unnamed), updated(&named), gap()], clock());
        let mut seen = Vec::new();
        let read = |reader: &mut JournalReader, seen: &mut Vec<_>| {
            reader.read(|event| {
                assert_eq!(EventKind::of(&event.decode()), Some(event.kind));
                let named = event.subject.as_ref().is_some_and(|subject| subject.facts.is_some());
                seen.push((event.kind, named));
            })
        };
        assert_eq!(read(&mut reader, &mut seen), 0);
        assert_eq!(seen, [(EventKind::Created, true), (EventKind::Updated, true), (EventKind::Gap, false)]);
        assert_eq!((read(&mut reader, &mut seen), seen.len()), (0, 3), "nothing is new");
        writer.append((0..20).map(|_| stopped(&named)), clock());
        assert_eq!((read(&mut reader, &mut seen), seen.len()), (4, 19));
        assert_eq!(hub.reader().read(|_| ()), 0, "what was gone before it came is not missed");
    }

    #[test]
    fn in_a_journal_that_goes_on_nothing_before_its_beginning_is_missed() {
        let position = Position { epoch: Epoch("epoch".into()), seq: 5000 };
        let capacity = Capacity { items: NonZeroUsize::new(16).unwrap(), bytes: 1 << 20 };
        let (hub, mut writer) = Hub::resumed(position, KernelTime(0), capacity);
        let mut reader = hub.reader();
        writer.append([gap()], clock());
        let mut seen = 0;
        assert_eq!(reader.read(|_| seen += 1), 0);
        assert_eq!(seen, 1);
    }
}
