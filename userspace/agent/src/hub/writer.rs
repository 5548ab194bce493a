//! The one writer of the journal: encodes events, and each version of a container once.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use bytes::{Bytes, BytesMut};
use kwitness_core::journal::Position;
use kwitness_core::model::{Event, KernelTime, Subject};
use prost::Message as _;

use super::Hub;
use super::entry::{Entry, NonContainerScope};
use super::subject::EncodedSubject;
use crate::clock::Clock;
use crate::wire::convert;

/// Puts events into the journal.
#[derive(Debug)]
pub struct Writer {
    hub: Arc<Hub>,
    /// By the subject's address, which stays its own as long as a weak reference to it is in here.
    subjects: HashMap<usize, (Weak<Subject>, Weak<EncodedSubject>)>,
    sweep_at: usize,
    /// The latest time of all events so far.
    latest: KernelTime,
    /// Entries' bodies lie here one after the other, so that an event costs no allocation of its own.
    block: BytesMut,
    entries: Vec<Entry>,
}

const SWEEP_MIN: usize = 1024;
const BLOCK: usize = 16 << 10;

impl Writer {
    pub(super) fn new(hub: Arc<Hub>, latest: KernelTime) -> Self {
        let (subjects, block) = (HashMap::new(), BytesMut::new());
        Self { hub, subjects, sweep_at: SWEEP_MIN, latest, block, entries: Vec::new() }
    }

    /// The place of the newest event; nothing else moves it.
    pub fn position(&self) -> Position {
        self.hub.position()
    }

    /// Appends the events, and wakes the watchers once.
    pub fn append(&mut self, events: impl IntoIterator<Item = Event>, clock: Clock) {
        for event in events {
            let entry = self.encode(&event, clock);
            self.entries.push(entry);
        }
        if !self.entries.is_empty() {
            self.hub.window.append(self.entries.drain(..));
        }
    }

    /// Keeps room for so many events at a time.
    pub(crate) fn shrink_to(&mut self, events: usize) {
        self.entries.shrink_to(events);
    }

    /// About what [`JournalUntil::kept`](super::JournalUntil::kept) needs for all of it: the names of pods whose events are of no container
    /// come on top.
    pub(crate) fn kept_bytes(&self) -> usize {
        self.hub.window.usage().bytes
    }

    pub(super) fn restore(&mut self, entry: Entry) {
        self.latest = self.latest.max(entry.at);
        self.hub.window.append([entry]);
    }

    /// An entry's body, as it was written.
    pub(super) fn body(&mut self, bytes: &[u8]) -> Bytes {
        self.make_room(bytes.len());
        self.block.extend_from_slice(bytes);
        self.block.split().freeze()
    }

    fn make_room(&mut self, bytes: usize) {
        if self.block.capacity() < bytes {
            self.block = BytesMut::with_capacity(BLOCK.max(bytes));
        }
    }

    pub(super) fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    fn encode(&mut self, event: &Event, clock: Clock) -> Entry {
        let (kind, message) = convert::event(event, clock);
        self.make_room(message.encoded_len());
        message.encode(&mut self.block).expect("a BytesMut grows");
        let latest_before = self.latest;
        self.latest = latest_before.max(event.at);
        Entry {
            at: event.at,
            latest_before,
            kind,
            body: self.block.split().freeze(),
            subject: event.subject.as_ref().map(|subject| self.subject(subject)),
            non_container: NonContainerScope::of(event),
        }
    }

    fn subject(&mut self, subject: &Arc<Subject>) -> Arc<EncodedSubject> {
        if self.subjects.len() >= self.sweep_at {
            // The journal no longer has any event of it.
            self.subjects.retain(|_, (_, encoded)| encoded.strong_count() > 0);
            self.sweep_at = SWEEP_MIN.max(2 * self.subjects.len());
        }
        let address = Arc::as_ptr(subject).addr();
        if let Some(known) = self.subjects.get(&address).and_then(|(_, encoded)| encoded.upgrade()) {
            return known;
        }
        let encoded = Arc::new(EncodedSubject::new(subject));
        self.subjects.insert(address, (Arc::downgrade(subject), Arc::downgrade(&encoded)));
        encoded
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn what_many_events_at_a_time_took_is_given_back() {
        let (_hub, mut writer) = hub(16);
        let subject = subject(1, None);
        writer.append((0..10_000).map(|_| stopped(&subject)), clock());
        assert!(writer.entries.capacity() >= 10_000);
        writer.shrink_to(16);
        assert!(writer.entries.capacity() <= 16, "{}", writer.entries.capacity());
    }

    #[test]
    fn subjects_that_left_the_journal_are_forgotten() {
        let (_hub, mut writer) = hub(16);
        for id in 1..10_000 {
            writer.append([created(&subject(id, None))], clock());
        }
        assert!(writer.subjects.len() <= SWEEP_MIN, "{}", writer.subjects.len());
    }
}
