//! What stands in a segment: a head, a state and entries, each with its length and tag.
//!
//! Owns the bytes. Never opens a file.

use kwitness_core::journal::Position;
use kwitness_core::lifecycle::Bounds;
use kwitness_core::model::{KernelTime, Observation};
use kwitness_core::seam::Seam;
use serde::{Deserialize, Serialize};

use crate::clock::{self, Clock};
use crate::engine::losses::Seen;
use crate::probe::SetId;
use crate::probe::mapped::MappedFile;

/// What a segment begins with; its last digit is the format's version.
pub(super) const MAGIC: [u8; 8] = *b"kwledg04";
/// What one may begin with that is read: version 2 does not have what clients report of limits, nor version 3 the journal.
pub(super) const READABLE: [[u8; 8]; 3] = [*b"kwledg02", *b"kwledg03", MAGIC];
/// Where the number of bytes that count stands, and where the entries begin.
pub(super) const COMMITTED: usize = 8;
pub(super) const ENTRIES: usize = 16;
/// Bytes of an entry before its payload: length and tag.
pub(super) const ENTRY_HEAD: usize = 5;

/// What an entry is; its number stands in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Tag {
    /// [`Head`].
    Head = 1,
    /// [`Memory`](super::Memory).
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
    /// [`LimitReport`](crate::reported::LimitReport).
    Report,
    /// A row of the journal, right after the state of a base.
    Journal,
}

impl Tag {
    const ALL: [Self; 11] = [
        Self::Head,
        Self::State,
        Self::Record,
        Self::Release,
        Self::Observation,
        Self::Publish,
        Self::Account,
        Self::Double,
        Self::Look,
        Self::Report,
        Self::Journal,
    ];
}

/// What a segment says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) boot: String,
    pub(super) bounds: Bounds,
    /// The last event that was published before.
    pub(super) position: Position,
    /// Of a base: after which event the journal begins that it has. A base of version 2 or 3 has none.
    #[serde(default)]
    pub(super) journal_after: Option<u64>,
    /// When it was made: no event before is later.
    pub(super) made: KernelTime,
    /// The steps of the wall clock.
    pub(super) clock: clock::History,
    /// See [`Memory`](super::Memory): what a daemon knows when it begins, and does not follow from what the one before wrote.
    pub(super) last_record: Option<Vec<u8>>,
    pub(super) seen: Seen,
    #[serde(default)]
    pub(super) seam: Option<Seam>,
    #[serde(default)]
    pub(super) outage: Option<KernelTime>,
    #[serde(default)]
    pub(super) sets: Vec<SetId>,
    #[serde(default)]
    pub(super) looked: Option<KernelTime>,
    /// Whether the entries before lead to the state that follows.
    #[serde(default)]
    pub(super) before: Before,
}

/// What was before a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Before {
    /// The entries before lead to its state.
    #[default]
    Whole,
    /// Something was observed that there was no room for: its state has what followed.
    Broken,
}

/// The events so far were published.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Published {
    /// The last one's number.
    pub(super) seq: u64,
    /// What their times are of.
    pub(super) clock: Clock,
}

/// Losses that were observed, and what of the kernel's counters they account for: the next daemon knows of both, or of neither.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Accounted {
    pub(crate) observations: Vec<Observation>,
    pub(crate) seen: Seen,
}

/// The offset after the entry, if it fits.
pub(super) fn append(file: &mut MappedFile, used: usize, tag: Tag, payload: &[u8]) -> Option<usize> {
    let end = used.checked_add(ENTRY_HEAD + payload.len()).filter(|end| *end <= file.size())?;
    file.write(used, &u32::try_from(payload.len()).ok()?.to_ne_bytes());
    file.write(used + 4, &[tag as u8]);
    file.write(used + ENTRY_HEAD, payload);
    Some(end)
}

/// Where the entry at an offset ends, by what it says.
pub(super) fn end_of_entry(bytes: &[u8], at: usize) -> Option<usize> {
    let length = u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?) as usize;
    (at + ENTRY_HEAD).checked_add(length)
}

/// The entry at an offset, and where the next one begins.
pub(super) fn entry(bytes: &[u8], at: usize) -> Option<(Tag, &[u8], usize)> {
    let end = end_of_entry(bytes, at)?;
    let number = *bytes.get(at + 4)?;
    let tag = Tag::ALL.into_iter().find(|tag| *tag as u8 == number)?;
    Some((tag, bytes.get(at + ENTRY_HEAD..end)?, end))
}
