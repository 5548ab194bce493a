//! The ledger: what the engine took in, in files that survive the process, so that the next one goes on where it ended.
//!
//! ```text
//!  DIRECTORY/0000000000000007     a base: a state, the journal, then everything that was taken in after it
//!  DIRECTORY/0000000000000008     a segment: the state at which the base ended, and so on
//!  DIRECTORY/000000000000000a     the next base: those before are removed
//!
//!  record ──▶ ledger ──▶ consumed in the kernel's ring        a record that is in both is the last one here
//!  report of a limit ──▶ ledger ──▶ desired limits
//!  observation ──▶ ledger ──▶ node ──▶ events ──▶ ledger: published ──▶ clients
//! ```
//!
//! Events since the base are not kept: they follow from what was taken in ([`kwitness_core`] replays to the same events), with the same
//! numbers and times. Each publication says which number its last event has; if the replay comes to another, as it may in another
//! release, the ledger is refused. Those before are in the base as far as the journal still had them ([`crate::hub::Kept`]), so that the
//! next daemon's journal has what this one's would: each container's share, whatever others have done.
//!
//! What a segment has no room for is not in it: the next one's state has what followed, and the replay goes on from that.
//!
//! An entry counts once the number of bytes at the beginning of its segment includes it: at whatever instant the process ends,
//! an entry is there whole or not at all. That needs no fsync(2): the files outlive the process, not the machine's boot.
//!
//! What is left of a ledger that is removed, or cannot be, is never gone on with as if it were all: the oldest segment goes first, a
//! ledger that is given up says so.
//!
//! Bounded: before there is no room for a base beside the segments, one is begun in place of the next segment, and they are removed. Its
//! number leaves one out, so that those before are of no account if the process ends meanwhile.
//!
//! Owns the files: begins, fills, bounds and removes them. Never decides what follows from an observation.

mod format;
mod memory;
mod refusal;
mod replay;
mod segment;
#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;

use kwitness_abi::RecordKind;
use kwitness_core::journal::Position;
use kwitness_core::lifecycle::Bounds;
use kwitness_core::model::{KernelTime, Observation};
use serde::Serialize;

use super::DRAIN_BUDGET;
use crate::clock::{self, Clock};
use crate::hub::{Kept, Writer};
use crate::private;
use crate::probe::mapped::MappedFile;
use crate::reported::LimitReport;
use format::{COMMITTED, ENTRIES, ENTRY_HEAD, Head, MAGIC, Published, Tag, append};
use segment::{SEGMENT_MAX, file_name, numbers};

pub(super) use format::{Accounted, Before};
pub(super) use memory::MemoryOf;

pub(crate) use memory::Memory;
pub(crate) use refusal::Refusal;
pub(crate) use replay::History;

/// A segment has at least so many bytes.
const SEGMENT: usize = 8 << 20;
/// A base may have at least so many bytes of the journal.
const JOURNAL_MIN: usize = SEGMENT / 4;
/// How far the number of a base is from the one before.
const BASE_STEP: u64 = 2;
/// Room that is there when the rings are drained.
const DRAIN_ROOM: usize = 1 << 20;
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

const _: () = {
    let mut kind = 0;
    while kind < RecordKind::ALL.len() {
        assert!(
            DRAIN_BUDGET * (ENTRY_HEAD + RecordKind::ALL[kind].record_size()) <= DRAIN_ROOM,
            "for all records of a drain"
        );
        kind += 1;
    }
};

/// Where the ledger is, and how much of it is kept.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// A directory of the daemon's own, in memory (`/run`).
    pub(crate) directory: PathBuf,
    /// Bytes of all segments together, and one more may be begun; a base alone may have more.
    pub(crate) bytes: usize,
    /// How much the node remembers.
    pub(crate) bounds: Bounds,
}

/// The ledger that is being written.
#[derive(Debug)]
pub(crate) struct Ledger {
    place: Place,
    file: MappedFile,
    used: usize,
    number: u64,
    boot: String,
    /// The bytes of the journal in that file.
    kept: usize,
    /// The numbers of the segments before, and their bytes.
    earlier: Vec<u64>,
    earlier_bytes: usize,
}

impl Place {
    /// Begins a ledger with all that is known; what is there already is removed. If it cannot, there is none that could be gone on with.
    pub(super) fn begin(
        self,
        position: Position,
        memory: &MemoryOf<'_>,
        journal: &Writer,
    ) -> io::Result<Ledger> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        if let Some(foreign) = private::foreign(&self.directory)? {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, foreign));
        }
        let earlier = numbers(&self.directory)?;
        let number = earlier.last().map_or(Some(1), |last| last.checked_add(BASE_STEP));
        let number = number.ok_or(io::ErrorKind::FileTooLarge)?;
        let boot = fs::read_to_string(BOOT_ID)?;
        let rows = journal.kept(self.journal_bytes(), ENTRY_HEAD);
        let kept = rows.bytes();
        let (file, used) = make(&self, number, &boot, position, memory, Before::Whole, Some(rows))?;
        let mut ledger = Ledger { place: self, file, used, number, boot, kept, earlier, earlier_bytes: 0 };
        match ledger.forget_earlier() {
            Ok(()) => Ok(ledger),
            Err(error) => {
                ledger.give_up();
                Err(error)
            }
        }
    }

    /// Bytes of the journal in a base, at most: so that there is room for two of them.
    fn journal_bytes(&self) -> usize {
        (self.bytes / 8 * 3).clamp(JOURNAL_MIN, SEGMENT_MAX / 2)
    }

    /// Removes all of it; whether there was anything.
    pub(crate) fn remove(&self) -> io::Result<bool> {
        match fs::symlink_metadata(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
            Ok(found) if !found.is_dir() => is_removed(fs::remove_file(&self.directory)),
            Ok(_) => {
                self.remove_segments()?;
                is_removed(fs::remove_dir_all(&self.directory))
            }
        }
    }

    /// Removes all segments, the oldest first: whenever the process ends, what is left leads to the last state, as all did.
    pub(super) fn remove_segments(&self) -> io::Result<()> {
        let found = match numbers(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            found => found?,
        };
        found.into_iter().try_for_each(|number| is_removed(fs::remove_file(self.segment(number))).map(drop))
    }

    fn segment(&self, number: u64) -> PathBuf {
        self.directory.join(file_name(number))
    }
}

impl Ledger {
    /// Ends it: what it has must not be gone on with, not even if it cannot be removed.
    pub(super) fn give_up(mut self) -> Place {
        self.file.publish(COMMITTED, 0);
        self.place
    }

    /// Whether a new segment is due before the rings are drained.
    pub(super) fn is_nearly_full(&self) -> bool {
        self.file.size() - self.used < DRAIN_ROOM
    }

    /// Begins the next segment: a base, if there would be no room for one later.
    pub(super) fn turn(
        &mut self,
        position: Position,
        memory: &MemoryOf<'_>,
        before: Before,
        journal: &Writer,
    ) -> io::Result<()> {
        let max = self.place.journal_bytes();
        let base = self.file.size() - self.kept + journal.kept_bytes().min(max);
        let is_base = self.earlier_bytes + self.file.size() + base > self.place.bytes;
        let rows = is_base.then(|| journal.kept(max, ENTRY_HEAD));
        let kept = rows.as_ref().map_or(0, Kept::bytes);
        let next = self.number + if is_base { BASE_STEP } else { 1 };
        let (file, used) = make(&self.place, next, &self.boot, position, memory, before, rows)?;
        self.earlier.push(self.number);
        self.earlier_bytes += self.file.size();
        (self.file, self.used, self.number, self.kept) = (file, used, next, kept);
        if is_base { self.forget_earlier() } else { Ok(()) }
    }

    fn forget_earlier(&mut self) -> io::Result<()> {
        self.earlier_bytes = 0;
        self.earlier
            .drain(..)
            .try_for_each(|number| is_removed(fs::remove_file(self.place.segment(number))).map(drop))
    }

    /// A record, before it is consumed.
    pub(super) fn record(&mut self, bytes: &[u8]) -> bool {
        self.append(Tag::Record, bytes)
    }

    /// A record that is left out, before it is consumed.
    pub(super) fn double(&mut self, bytes: &[u8]) -> bool {
        self.append(Tag::Double, bytes)
    }

    pub(super) fn release(&mut self, until: KernelTime) -> bool {
        self.append(Tag::Release, &until.0.to_ne_bytes())
    }

    pub(super) fn observation(&mut self, observation: &Observation) -> bool {
        self.append_json(Tag::Observation, observation)
    }

    /// What a client reports, before it is taken in.
    pub(super) fn report(&mut self, report: &LimitReport) -> bool {
        self.append_json(Tag::Report, report)
    }

    /// The events up to that number.
    pub(super) fn publish(&mut self, seq: u64, clock: Clock) -> bool {
        self.append_json(Tag::Publish, &Published { seq, clock })
    }

    /// The kernel's counters are accounted for until then.
    pub(super) fn look(&mut self, at: KernelTime) -> bool {
        self.append(Tag::Look, &at.0.to_ne_bytes())
    }

    pub(super) fn account(&mut self, accounted: &Accounted) -> bool {
        self.append_json(Tag::Account, accounted)
    }

    fn append_json(&mut self, tag: Tag, value: &impl Serialize) -> bool {
        serde_json::to_vec(value).is_ok_and(|bytes| self.append(tag, &bytes))
    }

    /// Whether there was room for it.
    fn append(&mut self, tag: Tag, payload: &[u8]) -> bool {
        match append(&mut self.file, self.used, tag, payload) {
            Some(used) => {
                self.used = used;
                self.file.publish(COMMITTED, used as u64);
                true
            }
            None => false,
        }
    }
}

/// Writes a segment's head and state; it gets its name when both are there.
fn make(
    place: &Place,
    number: u64,
    boot: &str,
    position: Position,
    memory: &MemoryOf<'_>,
    before: Before,
    journal: Option<Kept<'_>>,
) -> io::Result<(MappedFile, usize)> {
    let head = Head {
        boot: boot.to_owned(),
        bounds: place.bounds.clone(),
        position,
        journal_after: journal.as_ref().map(Kept::after),
        made: Clock::read().now(),
        clock: clock::History::get(),
        last_record: memory.last_record.map(<[u8]>::to_owned),
        seen: memory.seen.clone(),
        seam: memory.seam.cloned(),
        outage: memory.outage,
        sets: memory.sets.clone(),
        looked: memory.looked,
        before,
    };
    let (head, state) = (serde_json::to_vec(&head)?, serde_json::to_vec(memory)?);
    // As much again as the state has, so that states are the smaller part of what is written.
    let bytes = SEGMENT.max(2 * (head.len() + state.len()) + 2 * DRAIN_ROOM);
    let bytes = bytes + journal.as_ref().map_or(0, Kept::bytes);
    if bytes > SEGMENT_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let (path, named) = (place.directory.join("new"), place.segment(number));
    is_removed(fs::remove_file(&path))?;
    let mut file = MappedFile::create(&path, NonZeroUsize::new(bytes).ok_or(io::ErrorKind::InvalidInput)?)?;
    file.write(0, &MAGIC);
    let used = append(&mut file, ENTRIES, Tag::Head, &head);
    let used = used.and_then(|used| append(&mut file, used, Tag::State, &state));
    let mut used = used.ok_or(io::ErrorKind::FileTooLarge)?;
    let mut put = |row: &[u8]| match append(&mut file, used, Tag::Journal, row) {
        Some(after) => {
            used = after;
            true
        }
        None => false,
    };
    if !journal.is_none_or(|journal| journal.write(&mut put)) {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    file.publish(COMMITTED, used as u64);
    fs::rename(path, named)?;
    Ok((file, used))
}

/// Whether there was something to be removed.
fn is_removed(removed: io::Result<()>) -> io::Result<bool> {
    match removed {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
