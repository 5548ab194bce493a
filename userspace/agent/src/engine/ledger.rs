//! The ledger: what the engine took in, in files that survive the process, so that the next one goes on where it ended.
//!
//! ```text
//!  DIRECTORY/0000000000000007     a segment: a state, then everything that was taken in after it
//!  DIRECTORY/0000000000000008     the next: the state at which the first ended, and so on
//!
//!  record ──▶ ledger ──▶ consumed in the kernel's ring        a record that is in both is the last one here
//!  report of a limit ──▶ ledger ──▶ desired limits
//!  observation ──▶ ledger ──▶ node ──▶ events ──▶ ledger: published ──▶ clients
//! ```
//!
//! Events are not kept: they follow from what was taken in ([`kwitness_core`] replays to the same events), with the same numbers
//! and times. Each publication says which number its last event has; if the replay comes to another, as it may in another
//! release, the ledger is refused.
//!
//! What a segment has no room for is not in it: the next one's state has what followed, and the replay goes on from that.
//!
//! An entry counts once the number of bytes at the beginning of its segment includes it: at whatever instant the process ends,
//! an entry is there whole or not at all. That needs no fsync(2): the files outlive the process, not the machine's boot.
//!
//! What is left of a ledger that is removed, or cannot be, is never gone on with as if it were all: the oldest segment goes first, a
//! ledger that is given up says so, and one that is begun anew leaves a number out.
//!
//! Bounded: when the segments together have more bytes than allowed, the oldest goes; while one is begun, it comes on top.
//!
//! Owns the files: begins, fills, bounds and removes them. Never decides what follows from an observation.

mod format;
mod memory;
mod refusal;
mod replay;
mod segment;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
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

/// Whether a ledger goes on with the segments that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Series {
    /// The first segment has what follows from those before.
    Continued,
    /// Those before are of no account.
    New,
}

/// Where the ledger is, and how much of it is kept.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// A directory of the daemon's own, in memory (`/run`).
    pub(crate) directory: PathBuf,
    /// Bytes of all segments together; a single one may have more.
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
    /// The earlier segments' numbers and sizes.
    earlier: VecDeque<(u64, usize)>,
}

impl Place {
    /// Begins a segment after those that there are. If it cannot, there is none that could be gone on with.
    pub(super) fn begin(
        self,
        position: Position,
        memory: &MemoryOf<'_>,
        series: Series,
    ) -> io::Result<Ledger> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        if let Some(foreign) = private::foreign(&self.directory)? {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, foreign));
        }
        let mut earlier = VecDeque::new();
        for number in numbers(&self.directory)? {
            let size = fs::metadata(self.segment(number))?.len();
            earlier.push_back((number, usize::try_from(size).map_err(io::Error::other)?));
        }
        let step = match series {
            Series::Continued => 1,
            Series::New => 2,
        };
        let number = earlier.back().map_or(Some(1), |(last, _)| last.checked_add(step));
        let number = number.ok_or(io::ErrorKind::FileTooLarge)?;
        let boot = fs::read_to_string(BOOT_ID)?;
        let (file, used) = make(&self, number, &boot, position, memory, Before::Whole)?;
        let mut ledger = Ledger { place: self, file, used, number, boot, earlier };
        match ledger.bound() {
            Ok(()) => Ok(ledger),
            Err(error) => {
                ledger.give_up();
                Err(error)
            }
        }
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

    /// Begins the next segment.
    pub(super) fn turn(
        &mut self,
        position: Position,
        memory: &MemoryOf<'_>,
        before: Before,
    ) -> io::Result<()> {
        let next = self.number + 1;
        let (file, used) = make(&self.place, next, &self.boot, position, memory, before)?;
        self.earlier.push_back((self.number, self.file.size()));
        (self.file, self.used, self.number) = (file, used, next);
        self.bound()
    }

    fn bound(&mut self) -> io::Result<()> {
        let size = |earlier: &VecDeque<(u64, usize)>| earlier.iter().map(|(_, size)| size).sum::<usize>();
        while size(&self.earlier) + self.file.size() > self.place.bytes
            && let Some((oldest, _)) = self.earlier.pop_front()
        {
            is_removed(fs::remove_file(self.place.segment(oldest)))?;
        }
        Ok(())
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
) -> io::Result<(MappedFile, usize)> {
    let head = Head {
        boot: boot.to_owned(),
        bounds: place.bounds.clone(),
        position,
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
    if bytes > SEGMENT_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let (path, named) = (place.directory.join("new"), place.segment(number));
    is_removed(fs::remove_file(&path))?;
    let mut file = MappedFile::create(&path, NonZeroUsize::new(bytes).ok_or(io::ErrorKind::InvalidInput)?)?;
    file.write(0, &MAGIC);
    let used = append(&mut file, ENTRIES, Tag::Head, &head);
    let used = used.and_then(|used| append(&mut file, used, Tag::State, &state));
    let used = used.ok_or(io::ErrorKind::FileTooLarge)?;
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
