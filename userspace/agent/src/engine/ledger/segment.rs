//! A segment or a base as an earlier daemon left it: whose it is, how much of it counts, what it begins with.
//!
//! Trusts no file that another user could have written, nor any number in it. Never changes one.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::format::{ENTRIES, ENTRY_HEAD, Head, READABLE, Tag, end_of_entry, entry};
use super::{Memory, Place, Refusal};
use kwitness_service::private;

/// And at most so many: a file that says it has more is not read. A node that needs more has no ledger.
pub(super) const SEGMENT_MAX: usize = 1 << 30;

#[derive(Debug)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    pub(super) head: Head,
    /// As it was read, until the bytes that count.
    pub(super) bytes: Vec<u8>,
    /// Where the entry after the head begins.
    pub(super) next: usize,
}

/// How much of one is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Head,
    Whole,
}

impl Segment {
    /// Reads one that was written in this boot, with these bounds.
    pub(super) fn read(place: &Place, number: u64, boot: &str) -> Result<Self, Refusal> {
        Self::read_part(place, number, boot, Part::Whole)
    }

    /// Whether that one is a base with a journal, as far as its head says.
    pub(super) fn is_base(place: &Place, number: u64, boot: &str) -> Result<bool, Refusal> {
        Ok(Self::read_part(place, number, boot, Part::Head)?.head.journal_after.is_some())
    }

    fn read_part(place: &Place, number: u64, boot: &str, part: Part) -> Result<Self, Refusal> {
        let path = place.segment(number);
        check_owner(&path)?;
        let bytes = read_committed(&path, part)?;
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

    /// The state that it begins with.
    pub(super) fn state(&self) -> Result<Memory, Refusal> {
        match entry(&self.bytes, self.next) {
            Some((Tag::State, payload, _)) => parse(&self.path, payload),
            _ => Err(Refusal::Torn { path: self.path.clone(), what: "it has no state".to_owned() }),
        }
    }
}

/// What counts of a segment, or its head. The rest of the file, which may be much, is not read.
fn read_committed(path: &Path, part: Part) -> Result<Vec<u8>, Refusal> {
    let failed = |source| Refusal::Io { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    let mut start = [0; ENTRIES];
    let is_whole = length >= ENTRIES as u64 && file.read_exact(&mut start).is_ok();
    if !is_whole || !READABLE.iter().any(|magic| start.starts_with(magic)) {
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
    let mut bytes = start.to_vec();
    let mut read_on = |bytes: &mut Vec<u8>, end: usize| {
        let read = bytes.len();
        bytes.resize(end.clamp(read, committed), 0);
        file.read_exact(&mut bytes[read..]).map_err(failed)
    };
    if part == Part::Head {
        read_on(&mut bytes, ENTRIES + ENTRY_HEAD)?;
        let end = end_of_entry(&bytes, ENTRIES).unwrap_or(0);
        read_on(&mut bytes, end)?;
    } else {
        read_on(&mut bytes, committed)?;
    }
    Ok(bytes)
}

pub(super) fn parse<T: DeserializeOwned>(path: &Path, payload: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(payload)
        .map_err(|error| Refusal::Torn { path: path.to_owned(), what: error.to_string() })
}

/// The numbers of the segments in a directory, ascending.
pub(super) fn numbers(directory: &Path) -> io::Result<Vec<u64>> {
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

pub(super) fn file_name(number: u64) -> String {
    format!("{number:016x}")
}

pub(super) fn check_owner(path: &Path) -> Result<(), Refusal> {
    match private::foreign(path) {
        Ok(None) => Ok(()),
        Ok(Some(foreign)) => Err(Refusal::Foreign { path: path.to_owned(), foreign }),
        Err(source) => Err(Refusal::Io { path: path.to_owned(), source }),
    }
}
