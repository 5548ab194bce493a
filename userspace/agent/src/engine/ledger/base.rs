//! A base: a state, and the journal up to it. It takes time that grows with the node, so that a thread of its own writes it: from a copy
//! of the state, and from the journal while that goes on.
//!
//! ```text
//!  due ──▶ written, without a name ──▶ named: in the place of the segment before it ──▶ those before are removed
//!                                      └ a replay begins with it, whatever else is there
//! ```
//!
//! The first one of a daemon is written by the engine itself, before it takes a record: what an earlier daemon left is gone before a
//! record is consumed that is not in it, or the daemon does not start; and daemons that are killed at every start leave one ledger and a
//! draft, however many they are. One that is begun anew is written so, too: it is whole from its first entry on.
//!
//! Owns what it is made of. Never touches a segment that is being filled.

use std::fs;
use std::io;
use std::thread::{self, JoinHandle};

use super::format::{Before, ENTRY_HEAD, Head, Tag};
use super::{Draft, Memory, MemoryOf, Place, is_removed};
use crate::hub::JournalUntil;

/// A base that is to be written.
#[derive(Debug)]
pub(super) struct Base {
    place: Place,
    number: u64,
    head: Head,
    journal: JournalUntil,
    /// What it replaces, besides the file with its number.
    earlier: Vec<u64>,
}

/// How large one is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) bytes: usize,
    /// Without the journal.
    pub(super) state: usize,
}

/// One that is being written.
#[derive(Debug)]
pub(super) struct Making {
    number: u64,
    thread: JoinHandle<io::Result<Size>>,
}

impl Base {
    pub(super) fn new(
        place: Place,
        number: u64,
        head: Head,
        journal: JournalUntil,
        earlier: Vec<u64>,
    ) -> Self {
        Self { place, number, head, journal, earlier }
    }

    /// Has a thread do all of it, from a copy of the state.
    pub(super) fn start(self, memory: Memory) -> io::Result<Making> {
        let number = self.number;
        let run = move || self.run(&memory.borrowed());
        Ok(Making::of(number, thread::Builder::new().name("ledger".to_owned()).spawn(run)?))
    }

    pub(super) fn run(&self, memory: &MemoryOf<'_>) -> io::Result<Size> {
        let (draft, state) = self.write(memory, 0)?;
        let bytes = draft.name(&self.place, self.number)?.size();
        self.remove_earlier()?;
        Ok(Size { bytes, state })
    }

    /// Writes it, with room for so many bytes of entries; how many its head and state have.
    pub(super) fn write(&self, memory: &MemoryOf<'_>, room: usize) -> io::Result<(Draft, usize)> {
        let journal = self.journal.kept(self.place.journal_bytes(), ENTRY_HEAD);
        // It has its state, whatever was before.
        let head = Head { journal_after: Some(journal.after()), before: Before::Whole, ..self.head.clone() };
        let (head, state) = (serde_json::to_vec(&head)?, serde_json::to_vec(memory)?);
        let size = head.len() + state.len();
        let mut draft = Draft::begin(&self.place, Draft::BASE, size + journal.bytes() + room)?;
        draft.put(Tag::Head, &head)?;
        draft.put(Tag::State, &state)?;
        match journal.write(|row| draft.put(Tag::Journal, row).is_ok()) {
            true => Ok((draft, size)),
            false => Err(io::ErrorKind::FileTooLarge.into()),
        }
    }

    /// Removes what it has replaced, the oldest first.
    pub(super) fn remove_earlier(&self) -> io::Result<()> {
        let mut earlier = self.earlier.iter();
        earlier.try_for_each(|number| is_removed(fs::remove_file(self.place.segment(*number))).map(drop))
    }
}

impl Making {
    pub(super) fn of(number: u64, thread: JoinHandle<io::Result<Size>>) -> Self {
        Self { number, thread }
    }

    pub(super) fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for its end: its number and size.
    pub(super) fn wait(self) -> io::Result<(u64, Size)> {
        let ended = self
            .thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread that writes the ledger panicked")));
        Ok((self.number, ended?))
    }
}
