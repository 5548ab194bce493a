//! The ledger: what the engine took in, in files that survive the process, so that the next one goes on where it ended.
//!
//! ```text
//!  DIRECTORY/0000000000000007     a segment: a state, then everything that was taken in after it
//!  DIRECTORY/0000000000000008     the next: the state at which the first ended, and so on
//!
//!  record ──▶ ledger ──▶ consumed in the kernel's ring        a record that is in both is the last one here
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
//! Owns the files and their format. Never decides what follows from an observation.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::num::NonZeroUsize;
use std::os::unix::fs::DirBuilderExt as _;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};

use kwitness_abi::RecordKind;
use kwitness_core::decode::Decoder;
use kwitness_core::journal::Position;
use kwitness_core::lifecycle::Bounds;
use kwitness_core::model::{Event, KernelTime, Observation, Output};
use kwitness_core::node::Node;
use kwitness_core::reorder::ReorderBuffer;
use kwitness_core::seam::Seam;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::DRAIN_BUDGET;
use super::asked::Asked;
use super::losses::Seen;
use crate::clock::{self, Clock};
use crate::hub::Writer;
use crate::private::{self, Foreign};
use crate::probe::SetId;
use crate::probe::mapped::MappedFile;

/// What a segment begins with; its last digit is the format's version.
const MAGIC: [u8; 8] = *b"kwledg02";
/// Where the number of bytes that count stands, and where the entries begin.
const COMMITTED: usize = 8;
const ENTRIES: usize = 16;
/// Bytes of an entry before its payload: length and tag.
const ENTRY_HEAD: usize = 5;
/// A segment has at least so many bytes.
const SEGMENT: usize = 8 << 20;
/// And at most so many: a file that says it has more is not read. A node that needs more has no ledger.
const SEGMENT_MAX: usize = 1 << 30;
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

/// What an entry is; its number stands in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Tag {
    /// [`Head`].
    Head = 1,
    /// [`Memory`].
    State,
    /// A record, as it was in the ring.
    Record,
    /// [`KernelTime`]: the records until then were put in order and observed.
    Release,
    /// [`Observation`].
    Observation,
    /// [`Published`].
    Publish,
    /// [`Accounted`].
    Account,
    /// A record that was left out: the programs that were replaced had recorded the same.
    Double,
    /// [`KernelTime`]: what the kernel's counters showed until then is accounted for.
    Look,
}

impl Tag {
    const ALL: [Self; 9] = [
        Self::Head,
        Self::State,
        Self::Record,
        Self::Release,
        Self::Observation,
        Self::Publish,
        Self::Account,
        Self::Double,
        Self::Look,
    ];
}

/// Why the ledger of an earlier daemon is not used. A new epoch begins.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("{} cannot be read", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} is not to be trusted: {foreign}", path.display())]
    Foreign { path: PathBuf, foreign: Foreign },
    #[error("{} is not a ledger of this release", path.display())]
    OtherFormat { path: PathBuf },
    #[error("{} is torn, or another release's: {what}", path.display())]
    Torn { path: PathBuf, what: String },
    #[error("{} is of another boot of the machine", path.display())]
    OtherBoot { path: PathBuf },
    #[error("{} was written with another kernel.tracked_capacity", path.display())]
    OtherBounds { path: PathBuf },
    #[error("{} is not of the pinned programs: another daemon may have read what they recorded meanwhile", path.display())]
    OtherSet { path: PathBuf },
    #[error("{} leads to event {replayed}, and the earlier daemon had come to {written}", path.display())]
    Differs { path: PathBuf, replayed: u64, written: u64 },
    #[error("what {} has cannot be observed again without a panic", path.display())]
    Panicked { path: PathBuf },
}

/// What a segment says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Head {
    boot: String,
    bounds: Bounds,
    /// The last event that was published before.
    position: Position,
    /// When it was made: no event before is later.
    made: KernelTime,
    /// The steps of the wall clock.
    clock: clock::History,
    /// See [`Memory`]: what a daemon knows when it begins, and does not follow from what the one before wrote.
    last_record: Option<Vec<u8>>,
    seen: Seen,
    #[serde(default)]
    seam: Option<Seam>,
    #[serde(default)]
    outage: Option<KernelTime>,
    #[serde(default)]
    sets: Vec<SetId>,
    #[serde(default)]
    looked: Option<KernelTime>,
    /// Whether the entries before lead to the state that follows.
    #[serde(default)]
    before: Before,
}

/// What was before a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Before {
    /// The entries before lead to its state.
    #[default]
    Whole,
    /// Something was observed that there was no room for: its state has what followed.
    Broken,
}

/// Whether a ledger goes on with the segments that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Series {
    /// The first segment has what follows from those before.
    Continued,
    /// Those before are of no account.
    New,
}

/// The events so far were published.
#[derive(Debug, Serialize, Deserialize)]
struct Published {
    /// The last one's number.
    seq: u64,
    /// What their times are of.
    clock: Clock,
}

/// Losses that were observed, and what of the kernel's counters they account for: the next daemon knows of both, or of neither.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Accounted {
    pub(super) observations: Vec<Observation>,
    pub(super) seen: Seen,
}

/// All that the engine knows and that cannot be read from the kernel again.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Memory {
    pub(super) node: Node,
    pub(super) reorder: ReorderBuffer,
    /// Not published yet.
    pub(super) events: Vec<Event>,
    #[serde(skip)]
    pub(super) seen: Seen,
    pub(super) asked: Asked,
    /// The last record that was taken from a ring, if it may be there still.
    #[serde(skip)]
    pub(super) last_record: Option<Vec<u8>>,
    /// What was taken from programs that were replaced.
    #[serde(skip)]
    pub(super) seam: Option<Seam>,
    /// When the outage began that has not been reported yet, if there was one.
    #[serde(skip)]
    pub(super) outage: Option<KernelTime>,
    /// The sets of programs whose records may be gone on with; see [`Probe::sets`](super::Probe::sets).
    #[serde(skip)]
    pub(super) sets: Vec<SetId>,
    /// Until when the kernel's counters are accounted for; none if that is not known.
    #[serde(skip)]
    pub(super) looked: Option<KernelTime>,
    /// When the daemon was last seen to work.
    pub(super) until: KernelTime,
}

impl Memory {
    /// Of nothing.
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self {
            node: Node::new(bounds),
            reorder: ReorderBuffer::default(),
            events: Vec::new(),
            seen: Seen::default(),
            asked: Asked::default(),
            last_record: None,
            seam: None,
            outage: None,
            sets: Vec::new(),
            looked: None,
            until: KernelTime(0),
        }
    }

    /// Fails unless the rings of that set go on where this ends.
    pub(crate) fn check_set(&self, set: SetId, place: &Place) -> Result<(), Refusal> {
        match self.sets.contains(&set) {
            true => Ok(()),
            false => Err(Refusal::OtherSet { path: place.directory.clone() }),
        }
    }

    /// That record was the last to be taken from its ring.
    fn consumed(&mut self, record: &[u8]) {
        let last = self.last_record.get_or_insert_default();
        last.clear();
        last.extend_from_slice(record);
    }
}

/// The same, borrowed.
#[derive(Debug, Serialize)]
pub(super) struct MemoryOf<'a> {
    pub(super) node: &'a Node,
    pub(super) reorder: &'a ReorderBuffer,
    pub(super) events: &'a [Event],
    #[serde(skip)]
    pub(super) seen: Seen,
    pub(super) asked: Asked,
    #[serde(skip)]
    pub(super) last_record: Option<&'a [u8]>,
    #[serde(skip)]
    pub(super) seam: Option<&'a Seam>,
    #[serde(skip)]
    pub(super) outage: Option<KernelTime>,
    #[serde(skip)]
    pub(super) sets: Vec<SetId>,
    #[serde(skip)]
    pub(super) looked: Option<KernelTime>,
    pub(super) until: KernelTime,
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

/// What an earlier daemon left.
#[derive(Debug)]
pub(crate) struct History {
    place: Place,
    boot: String,
    first: Segment,
    /// The numbers of those that follow.
    later: Vec<u64>,
}

#[derive(Debug)]
struct Segment {
    path: PathBuf,
    head: Head,
    /// As it was read, until the bytes that count.
    bytes: Vec<u8>,
    /// Where the entry after the head begins.
    next: usize,
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
    /// What an earlier daemon left; none if nothing.
    pub(crate) fn read(&self) -> Result<Option<History>, Refusal> {
        let failed = |source| Refusal::Io { path: self.directory.clone(), source };
        if !self.directory.exists() {
            return Ok(None);
        }
        check_owner(&self.directory)?;
        let boot = fs::read_to_string(BOOT_ID).map_err(failed)?;
        let mut series: Vec<u64> = Vec::new();
        for number in numbers(&self.directory).map_err(failed)? {
            // One that does not follow the one before: those before are older than a failure to remove one.
            if series.last().is_some_and(|last| number - last != 1) {
                series.clear();
            }
            series.push(number);
        }
        let Some((first, later)) = series.split_first() else { return Ok(None) };
        let first = Segment::read(self, *first, &boot)?;
        Ok(Some(History { place: self.clone(), boot, first, later: later.to_vec() }))
    }

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

/// The offset after the entry, if it fits.
fn append(file: &mut MappedFile, used: usize, tag: Tag, payload: &[u8]) -> Option<usize> {
    let end = used.checked_add(ENTRY_HEAD + payload.len()).filter(|end| *end <= file.size())?;
    file.write(used, &u32::try_from(payload.len()).ok()?.to_ne_bytes());
    file.write(used + 4, &[tag as u8]);
    file.write(used + ENTRY_HEAD, payload);
    Some(end)
}

/// The numbers of the segments in a directory, ascending.
fn numbers(directory: &Path) -> io::Result<Vec<u64>> {
    let names =
        fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
    let number = |name: &std::ffi::OsString| {
        let number = u64::from_str_radix(name.to_str()?, 16).ok()?;
        (file_name(number).as_str() == name).then_some(number)
    };
    let mut numbers: Vec<u64> = names.iter().filter_map(number).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

fn file_name(number: u64) -> String {
    format!("{number:016x}")
}

/// Whether there was something to be removed.
fn is_removed(removed: io::Result<()>) -> io::Result<bool> {
    match removed {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn check_owner(path: &Path) -> Result<(), Refusal> {
    match private::foreign(path) {
        Ok(None) => Ok(()),
        Ok(Some(foreign)) => Err(Refusal::Foreign { path: path.to_owned(), foreign }),
        Err(source) => Err(Refusal::Io { path: path.to_owned(), source }),
    }
}

impl Segment {
    /// Reads one that was written in this boot, with these bounds.
    fn read(place: &Place, number: u64, boot: &str) -> Result<Self, Refusal> {
        let path = place.segment(number);
        check_owner(&path)?;
        let bytes = read_committed(&path)?;
        let torn = |what: &str| Refusal::Torn { path: path.clone(), what: what.to_owned() };
        let (tag, payload, next) = entry(&bytes, ENTRIES).ok_or_else(|| torn("it has no head"))?;
        if tag != Tag::Head {
            return Err(torn("it does not begin with a head"));
        }
        let head: Head = parse(&path, payload)?;
        if head.boot != boot {
            return Err(Refusal::OtherBoot { path });
        }
        if head.bounds != place.bounds {
            return Err(Refusal::OtherBounds { path });
        }
        Ok(Self { path, head, next, bytes })
    }
}

impl Segment {
    /// The state that it begins with.
    fn state(&self) -> Result<Memory, Refusal> {
        match entry(&self.bytes, self.next) {
            Some((Tag::State, payload, _)) => parse(&self.path, payload),
            _ => Err(Refusal::Torn { path: self.path.clone(), what: "it has no state".to_owned() }),
        }
    }
}

/// What counts of a segment. The rest of the file, which may be much, is not read.
fn read_committed(path: &Path) -> Result<Vec<u8>, Refusal> {
    let failed = |source| Refusal::Io { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    let mut start = [0; ENTRIES];
    if length < ENTRIES as u64 || file.read_exact(&mut start).is_err() || start[..COMMITTED] != MAGIC {
        return Err(Refusal::OtherFormat { path: path.to_owned() });
    }
    let committed = start.last_chunk().map(|word| u64::from_ne_bytes(*word));
    let committed = committed.and_then(|committed| usize::try_from(committed).ok());
    let is_there = |committed: &usize| {
        (ENTRIES..=SEGMENT_MAX).contains(committed)
            && u64::try_from(*committed).is_ok_and(|end| end <= length)
    };
    let Some(committed) = committed.filter(is_there) else {
        let what = "it is shorter than it says".to_owned();
        return Err(Refusal::Torn { path: path.to_owned(), what });
    };
    let mut bytes = vec![0; committed];
    let (head, entries) = bytes.split_at_mut(ENTRIES);
    head.copy_from_slice(&start);
    file.read_exact(entries).map_err(failed)?;
    Ok(bytes)
}

fn parse<T: DeserializeOwned>(path: &Path, payload: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(payload)
        .map_err(|error| Refusal::Torn { path: path.to_owned(), what: error.to_string() })
}

/// The entry at an offset, and where the next one begins.
fn entry(bytes: &[u8], at: usize) -> Option<(Tag, &[u8], usize)> {
    let length = u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?) as usize;
    let number = *bytes.get(at + 4)?;
    let tag = Tag::ALL.into_iter().find(|tag| *tag as u8 == number)?;
    let end = (at + ENTRY_HEAD).checked_add(length)?;
    Some((tag, bytes.get(at + ENTRY_HEAD..end)?, end))
}

impl History {
    /// After which event the replay begins.
    pub(crate) fn position(&self) -> &Position {
        &self.first.head.position
    }

    /// No event before [`Self::position`] is later.
    pub(crate) fn made(&self) -> KernelTime {
        self.first.head.made
    }

    /// Observes all of it again. The writer is that of an empty journal at [`Self::position`]; after a refusal it is of no use.
    pub(crate) fn replay(self, writer: &mut Writer) -> Result<Memory, Refusal> {
        let directory = self.place.directory.clone();
        unless_panicked(directory, || self.observe_again(writer))
    }

    fn observe_again(self, writer: &mut Writer) -> Result<Memory, Refusal> {
        let Self { place, boot, first, later } = self;
        let mut replay = Replay::of(&first)?;
        replay.segment(first, writer)?;
        for number in later {
            replay.segment(Segment::read(&place, number, &boot)?, writer)?;
        }
        Ok(replay.end())
    }
}

/// What ended the earlier daemon may be in its ledger: it must not end every later one at its start.
fn unless_panicked<T>(path: PathBuf, replay: impl FnOnce() -> Result<T, Refusal>) -> Result<T, Refusal> {
    // Whatever the replay has changed is given up with the refusal.
    panic::catch_unwind(AssertUnwindSafe(replay)).unwrap_or(Err(Refusal::Panicked { path }))
}

/// What is observed again.
struct Replay {
    memory: Memory,
    decoder: Decoder,
    output: Output,
}

impl Replay {
    /// From the state that a segment begins with.
    fn of(segment: &Segment) -> Result<Self, Refusal> {
        let mut memory = segment.state()?;
        let output = Output { events: std::mem::take(&mut memory.events), actions: Vec::new() };
        Ok(Self { memory, decoder: Decoder::default(), output })
    }

    fn segment(&mut self, segment: Segment, writer: &mut Writer) -> Result<(), Refusal> {
        if segment.head.before == Before::Broken {
            *self = Self::of(&segment)?;
        }
        let Segment { path, head, bytes, mut next } = segment;
        check_number(&path, writer, head.position.seq)?;
        if writer.position().epoch != head.position.epoch {
            return Err(Refusal::Torn {
                path,
                what: "it has another epoch than the segment before".to_owned(),
            });
        }
        head.clock.restore();
        // Every record before has been consumed, but for that one.
        self.memory.last_record = head.last_record;
        self.memory.seen = head.seen;
        (self.memory.seam, self.memory.outage, self.memory.sets) = (head.seam, head.outage, head.sets);
        self.memory.looked = head.looked;
        while next < bytes.len() {
            let torn = || Refusal::Torn { path: path.clone(), what: format!("no entry at byte {next}") };
            let (tag, payload, after) = entry(&bytes, next).ok_or_else(torn)?;
            self.step(&path, tag, payload, writer)?;
            next = after;
        }
        Ok(())
    }

    fn step(&mut self, path: &Path, tag: Tag, payload: &[u8], writer: &mut Writer) -> Result<(), Refusal> {
        let Self { memory, decoder, output } = self;
        match tag {
            Tag::Record => {
                match decoder.decode(payload) {
                    Ok(event) => memory.reorder.push(event),
                    // If it has been reported, an account follows.
                    Err(error) => memory.seen.malformed(&error),
                }
                memory.consumed(payload);
            }
            Tag::Double => {
                if let (Some(seam), Ok(event)) = (&mut memory.seam, decoder.decode(payload)) {
                    seam.is_double(&event);
                }
                memory.consumed(payload);
            }
            Tag::Release => {
                let until = time(path, payload)?;
                for event in memory.reorder.release(until) {
                    memory.node.observe(Observation::Kernel(event), output);
                }
                memory.until = memory.until.max(until);
            }
            Tag::Observation => {
                let observation: Observation = parse(path, payload)?;
                match observation {
                    Observation::Tick { at } => memory.until = memory.until.max(at),
                    Observation::AgentRestarted { .. } => memory.outage = None,
                    _ => {}
                }
                memory.asked.answered(&observation);
                memory.node.observe(observation, output);
            }
            Tag::Publish => {
                let Published { seq, clock } = parse(path, payload)?;
                clock.restore();
                memory.until = memory.until.max(clock.now());
                writer.append(output.events.drain(..), clock);
                check_number(path, writer, seq)?;
            }
            Tag::Account => {
                let Accounted { observations, seen } = parse(path, payload)?;
                observations.into_iter().for_each(|observation| memory.node.observe(observation, output));
                memory.seen = seen;
            }
            Tag::Look => memory.looked = Some(time(path, payload)?),
            // The replay has come to it already, or begins with it.
            Tag::Head | Tag::State => {}
        }
        output.actions.drain(..).for_each(|action| memory.asked.note(&action));
        Ok(())
    }

    fn end(self) -> Memory {
        Memory { events: self.output.events, ..self.memory }
    }
}

fn time(path: &Path, payload: &[u8]) -> Result<KernelTime, Refusal> {
    let time = payload.first_chunk().map(|bytes| KernelTime(u64::from_ne_bytes(*bytes)));
    let what = || "a time of another size".to_owned();
    time.ok_or_else(|| Refusal::Torn { path: path.to_owned(), what: what() })
}

/// Whether the replay has come to the event that the earlier daemon had.
fn check_number(path: &Path, writer: &Writer, written: u64) -> Result<(), Refusal> {
    let replayed = writer.position().seq;
    if replayed != written {
        return Err(Refusal::Differs { path: path.to_owned(), replayed, written });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
