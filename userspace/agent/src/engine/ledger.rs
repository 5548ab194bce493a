//! The ledger: what the engine took in, in files that survive the process, so that the next one goes on where it ended.
//!
//! ```text
//!  DIRECTORY/0000000000000007     a base: a state and the journal; the first one has room for what is taken in after it
//!  DIRECTORY/0000000000000008     a segment: what was taken in after it, and so on
//!  DIRECTORY/0000000000000009
//!
//!                     7 8 9 │ 10              a base is due: a thread writes it, while the engine goes on with 10
//!                       9'  │ 10 11           it takes the place of the last segment before it; those before are removed
//!
//!  record ──▶ ledger ──▶ consumed in the kernel's ring        a record that is in both is the last one here
//!  report of a limit ──▶ ledger ──▶ desired limits
//!  observation ──▶ ledger ──▶ node ──▶ events ──▶ ledger: published ──▶ clients
//! ```
//!
//! Events since the base are not kept: they follow from what was taken in ([`kwitness_core`] replays to the same events), with the same
//! numbers and times. Each publication says which number its last event has; if the replay comes to another, as it may in another
//! release, the ledger is refused. Those before are in the base as far as the journal still had them ([`crate::hub::JournalUntil`]), so
//! that the next daemon's journal has what this one's would: each container's share, whatever others have done.
//!
//! A replay begins with the last base. What a segment has no room for is not in it: the next one begins with a state that has what
//! followed, and the replay goes on from that.
//!
//! An entry counts once the number of bytes at the beginning of its segment includes it, and a file once it has its name: at whatever
//! instant the process ends, it is there whole or not at all. That needs no fsync(2): the files outlive the process, not the machine's
//! boot.
//!
//! What is left of a ledger that is removed, or cannot be, is never gone on with as if it were all: the oldest file goes first,
//! so that what is left begins without a state, and is refused, or with one and all that followed it; a ledger that is given up
//! says so.
//!
//! Bounded: a base is begun before there is no room for it beside the segments. If another segment has no room beside them before the base
//! is written, the engine waits for it.
//!
//! Owns the files: begins, fills, bounds and removes them. Never decides what follows from an observation.

mod base;
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
use crate::hub::Writer;
use crate::probe::mapped::MappedFile;
use crate::reported::LimitReport;
use base::{Base, Making};
use format::{COMMITTED, ENTRIES, ENTRY_HEAD, Head, MAGIC, Published, Tag, append};
use kwitness_service::private;
use segment::{SEGMENT_MAX, file_name, numbers};

pub(super) use format::{Accounted, Before};
pub(super) use memory::MemoryOf;

pub(crate) use memory::Memory;
pub(crate) use refusal::Refusal;
pub(crate) use replay::History;

/// A segment has so many bytes for entries, and room for the one more that the last one had none for. Their memory is allocated when it
/// begins, in about a millisecond.
const SEGMENT: usize = 4 << 20;
/// A base may have at least so many bytes of the journal.
const JOURNAL_MIN: usize = SEGMENT / 2;
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
    /// Bytes of all files together, and two segments more may be begun; a base alone may have more.
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
    /// The numbers of the files before, ascending, and the bytes of each.
    earlier: Vec<(u64, usize)>,
    /// The bytes of the last base's state.
    state: usize,
    /// The bytes of the segments since then, but for the last one.
    since: usize,
    /// The base that is being written.
    making: Option<Making>,
    /// Room that an entry would have needed.
    wanted: usize,
}

/// A file that does not have its name yet.
struct Draft {
    path: PathBuf,
    file: MappedFile,
    used: usize,
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
        let number = earlier.last().map_or(Some(1), |last| last.checked_add(1));
        let number = number.ok_or(io::ErrorKind::FileTooLarge)?;
        // What an earlier daemon was about to write.
        is_removed(fs::remove_file(self.directory.join(Draft::SEGMENT)))?;
        let boot = fs::read_to_string(BOOT_ID)?;
        let head = head(&self, &boot, position, memory, Before::Whole);
        let base = Base::new(self.clone(), number, head, journal.until_now(), earlier);
        let (draft, state) = base.write(memory, SEGMENT)?;
        let used = draft.used;
        let file = draft.name(&self, number)?;
        let (earlier, making) = (Vec::new(), None);
        let ledger =
            Ledger { place: self, file, used, number, boot, earlier, state, since: 0, making, wanted: 0 };
        match base.remove_earlier() {
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

    /// Removes all segments, the oldest first: whenever the process ends, what is left begins without a state, and is refused, or with
    /// one and all that followed it.
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
        self.place.clone()
    }

    /// Whether a new segment is due before the rings are drained.
    pub(super) fn is_nearly_full(&self) -> bool {
        self.file.size() - self.used < DRAIN_ROOM
    }

    /// Begins the next segment; and a base, if there would be no room for one later.
    pub(super) fn turn(
        &mut self,
        position: Position,
        memory: &MemoryOf<'_>,
        before: Before,
        journal: &Writer,
    ) -> io::Result<()> {
        let head = self.begin_next(position, memory, before, journal)?;
        if self.making.is_none() && self.is_base_due(journal) {
            self.making = Some(self.base(head, journal).start(memory.to_owned())?);
        }
        Ok(())
    }

    /// Begins the next segment, and no base: for who turns again at once.
    pub(super) fn turn_without_base(
        &mut self,
        position: Position,
        memory: &MemoryOf<'_>,
        journal: &Writer,
    ) -> io::Result<()> {
        self.begin_next(position, memory, Before::Whole, journal).map(drop)
    }

    fn begin_next(
        &mut self,
        position: Position,
        memory: &MemoryOf<'_>,
        before: Before,
        journal: &Writer,
    ) -> io::Result<Head> {
        self.look_after_base()?;
        let state = if before == Before::Broken { self.state } else { 0 };
        if !self.has_room_beside_base(state, journal) {
            self.settle()?;
        }
        let head = head(&self.place, &self.boot, position, memory, before);
        self.begin_segment(&head, (before == Before::Broken).then_some(memory))?;
        Ok(head)
    }

    /// Takes note of a base that has been written meanwhile, and of why it has not.
    pub(super) fn look_after_base(&mut self) -> io::Result<()> {
        match &self.making {
            Some(making) if making.is_over() => self.settle(),
            _ => Ok(()),
        }
    }

    /// Waits for the base that is being written, if one is.
    fn settle(&mut self) -> io::Result<()> {
        let Some(making) = self.making.take() else { return Ok(()) };
        let (number, base) = making.wait()?;
        self.earlier.retain(|(earlier, _)| *earlier > number);
        (self.state, self.since) = (base.state, self.earlier_bytes());
        self.earlier.insert(0, (number, base.bytes));
        Ok(())
    }

    /// With a state, if the entries before do not lead to it.
    fn begin_segment(&mut self, head: &Head, state: Option<&MemoryOf<'_>>) -> io::Result<()> {
        let (head, state) = (serde_json::to_vec(head)?, state.map(serde_json::to_vec).transpose()?);
        let room = SEGMENT + std::mem::take(&mut self.wanted);
        let bytes = room + head.len() + state.as_ref().map_or(0, Vec::len);
        let mut draft = Draft::begin(&self.place, Draft::SEGMENT, bytes)?;
        draft.put(Tag::Head, &head)?;
        state.into_iter().try_for_each(|state| draft.put(Tag::State, &state))?;
        let (used, next) = (draft.used, self.number + 1);
        let file = draft.name(&self.place, next)?;
        self.earlier.push((self.number, self.file.size()));
        self.since += self.file.size();
        (self.file, self.used, self.number) = (file, used, next);
        Ok(())
    }

    /// Whether there would be no room for a base at the next turn. Between two, at least two fifths of a base are written: what there is is
    /// not mostly written again.
    fn is_base_due(&self, journal: &Writer) -> bool {
        let base = self.base_bytes(journal);
        self.bytes() + base > self.place.bytes && 5 * self.since >= 2 * base
    }

    /// Whether there is room for the next segment, with a state of so many bytes, too, while a base is written.
    fn has_room_beside_base(&self, state: usize, journal: &Writer) -> bool {
        let next = SEGMENT + self.wanted + state;
        self.bytes() + self.base_bytes(journal) + next <= self.place.bytes + 2 * SEGMENT
    }

    /// How large a base is, about.
    fn base_bytes(&self, journal: &Writer) -> usize {
        self.state + journal.kept_bytes().min(self.place.journal_bytes())
    }

    /// Of all files, without a base that is being written.
    fn bytes(&self) -> usize {
        self.earlier_bytes() + self.file.size()
    }

    fn earlier_bytes(&self) -> usize {
        self.earlier.iter().map(|(_, bytes)| bytes).sum()
    }

    /// The base of the state with which the last segment begins.
    fn base(&self, head: Head, journal: &Writer) -> Base {
        let mut earlier: Vec<_> = self.earlier.iter().map(|(number, _)| *number).collect();
        let number = earlier.pop().expect("the segment that has just ended");
        Base::new(self.place.clone(), number, head, journal.until_now(), earlier)
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

    /// Whether there was room for it. If not, the next segment has.
    fn append(&mut self, tag: Tag, payload: &[u8]) -> bool {
        match append(&mut self.file, self.used, tag, payload) {
            Some(used) => {
                self.used = used;
                self.file.publish(COMMITTED, used as u64);
                true
            }
            None => {
                self.wanted = ENTRY_HEAD + payload.len();
                false
            }
        }
    }
}

impl Drop for Ledger {
    /// What a thread writes must not come after what its owner does with the files.
    fn drop(&mut self) {
        if let Err(error) = self.settle() {
            tracing::debug!(%error, "the last base of the ledger was not written");
        }
    }
}

impl Draft {
    /// The names until then: of a segment, which the engine writes, and of a base.
    const SEGMENT: &str = "new";
    const BASE: &str = "base";

    fn begin(place: &Place, name: &str, bytes: usize) -> io::Result<Self> {
        if bytes > SEGMENT_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let path = place.directory.join(name);
        is_removed(fs::remove_file(&path))?;
        // Before the first entry, and before that of each.
        let bytes = NonZeroUsize::new(ENTRIES + 2 * ENTRY_HEAD + bytes).ok_or(io::ErrorKind::InvalidInput)?;
        let mut file = MappedFile::create(&path, bytes)?;
        file.write(0, &MAGIC);
        Ok(Self { path, file, used: ENTRIES })
    }

    fn put(&mut self, tag: Tag, payload: &[u8]) -> io::Result<()> {
        let used = append(&mut self.file, self.used, tag, payload);
        self.used = used.ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(())
    }

    /// All that has been put there counts; it has the place of the file with that number.
    fn name(mut self, place: &Place, number: u64) -> io::Result<MappedFile> {
        self.file.publish(COMMITTED, self.used as u64);
        fs::rename(self.path, place.segment(number))?;
        Ok(self.file)
    }
}

/// What a segment or a base says of itself.
fn head(place: &Place, boot: &str, position: Position, memory: &MemoryOf<'_>, before: Before) -> Head {
    Head {
        boot: boot.to_owned(),
        bounds: place.bounds.clone(),
        position,
        journal_after: None,
        made: Clock::read().now(),
        clock: clock::History::get(),
        last_record: memory.last_record.map(<[u8]>::to_owned),
        seen: memory.seen.clone(),
        seam: memory.seam.cloned(),
        outage: memory.outage,
        sets: memory.sets.clone(),
        looked: memory.looked,
        before,
    }
}

/// Whether there was something to be removed.
fn is_removed(removed: io::Result<()>) -> io::Result<bool> {
    match removed {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
