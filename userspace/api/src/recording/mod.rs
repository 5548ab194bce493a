//! Recordings: what a daemon reported, in files that answer like the daemon itself.
//!
//! A recording is a sequence of JSON objects, one per line, each with a `type`:
//!
//! | `type` | Contents |
//! |---|---|
//! | `recording` | [`Header`]: first line of each file |
//! | `snapshot` | all containers ([`proto::Snapshot`]) and the `time` at which they were listed |
//! | `verdicts` | all verdicts ([`proto::VerifyResponse`]) and the `time` at which they were judged |
//! | `usage` | what containers used at a time ([`proto::UsageSample`]), without their names and verdicts; since format 2 |
//! | anything else | an event, exactly as `kwitness events -o json` prints it |
//!
//! A file is plain text, or a sequence of zstd frames that each hold whole lines: `zstd -dc` turns one into the other.
//! `FILE` is the newest part of a recording, `FILE.1` the one before. Each part begins with a header, a snapshot and verdicts, so that
//! it can be read alone.
//!
//! Owns the format: writing, rotating, recognizing a torn end, and answering from it. Never talks to a daemon, and never prints.

mod filter;
mod read;
mod replay;
mod state;
#[cfg(test)]
mod tests;
mod usage;
mod write;

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Timestamp, proto};

pub use read::Lines;
pub use replay::{Recording, Replay};
pub use write::{Options, Writer};

/// The version of the format that this release writes. A release reads this one and all before it.
pub const FORMAT: u32 = 2;

/// No header is longer: names are at most 253 bytes.
const HEADER_MAX: usize = 4096;

/// The first line of each file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Header {
    /// See [`FORMAT`].
    pub format: u32,
    /// The node's name.
    pub node: String,
    /// The node's kernel release.
    pub kernel: String,
    /// The version of the daemon.
    pub daemon: String,
    /// The daemon's epoch when the file was begun.
    pub epoch: String,
    /// The version of the recorder.
    pub recorder: String,
    /// When the file was begun.
    pub time: Option<Timestamp>,
}

/// A line of a recording.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    /// `recording`
    Header(Header),
    /// `snapshot`
    Snapshot(At<proto::Snapshot>),
    /// `verdicts`
    Verdicts(At<proto::VerifyResponse>),
    /// `usage`; see [`Line::usage`].
    Usage(Box<proto::UsageSample>),
    /// Any other `type`.
    Event(Box<proto::Event>),
}

/// What the daemon answered, and when.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct At<T> {
    /// By the recorder's clock.
    pub time: Timestamp,
    /// The recording has every event up to this one: where a recorder resumes that has nothing newer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<proto::Position>,
    /// The answer.
    #[serde(flatten)]
    pub answer: T,
}

/// A part of a recording.
#[derive(Clone, Debug)]
enum Part {
    File(PathBuf),
    /// Built into the program.
    Embedded(&'static [u8]),
}

impl Part {
    /// What errors call it.
    fn path(&self) -> &Path {
        match self {
            Self::File(path) => path,
            Self::Embedded(_) => Path::new("(embedded)"),
        }
    }
}

/// The `type` of each line that is no event.
const HEADER: &str = "recording";
const SNAPSHOT: &str = "snapshot";
const VERDICTS: &str = "verdicts";
const USAGE: &str = "usage";

#[derive(Deserialize)]
struct Kind {
    #[serde(default)]
    r#type: String,
}

#[derive(Deserialize)]
struct Time {
    time: Timestamp,
    after: Option<proto::Position>,
}

#[derive(Serialize)]
struct Tagged<'a, T> {
    r#type: &'static str,
    #[serde(flatten)]
    line: &'a T,
}

impl Line {
    /// From a line of JSON.
    fn parse(text: &[u8]) -> serde_json::Result<Self> {
        fn at<T: serde::de::DeserializeOwned>(text: &[u8]) -> serde_json::Result<At<T>> {
            let Time { time, after } = serde_json::from_slice(text)?;
            Ok(At { time, after, answer: serde_json::from_slice(text)? })
        }
        match &*serde_json::from_slice::<Kind>(text)?.r#type {
            HEADER => serde_json::from_slice(text).map(Self::Header),
            SNAPSHOT => at(text).map(Self::Snapshot),
            VERDICTS => at(text).map(Self::Verdicts),
            USAGE => serde_json::from_slice(text).map(|sample| Self::Usage(Box::new(sample))),
            _ => serde_json::from_slice(text).map(|event| Self::Event(Box::new(event))),
        }
    }

    /// Appends the line as JSON, with its end.
    ///
    /// # Errors
    /// A time that is out of range.
    pub fn write(&self, to: &mut Vec<u8>) -> serde_json::Result<()> {
        match self {
            Self::Header(line) => serde_json::to_writer(&mut *to, &Tagged { r#type: HEADER, line })?,
            Self::Snapshot(line) => serde_json::to_writer(&mut *to, &Tagged { r#type: SNAPSHOT, line })?,
            Self::Verdicts(line) => serde_json::to_writer(&mut *to, &Tagged { r#type: VERDICTS, line })?,
            Self::Usage(line) => serde_json::to_writer(&mut *to, &Tagged { r#type: USAGE, line })?,
            Self::Event(event) => serde_json::to_writer(&mut *to, event)?,
        }
        to.push(b'\n');
        Ok(())
    }
}

/// Why a recording cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be opened, read, written or renamed.
    #[error("cannot {action} {}: {error}", path.display())]
    Io {
        /// "open", "read"
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The I/O error.
        error: io::Error,
    },
    /// A FIFO, a device or a directory: a recording is read more than once, and written in place.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// What has that name.
        path: PathBuf,
    },
    /// What may be another user's is not written to by way of a link.
    #[error("{} is a symbolic link, which is not followed: name the file itself", path.display())]
    SymbolicLink {
        /// The link.
        path: PathBuf,
    },
    /// Two writers would rename each other's parts.
    #[error("{} is being written by another recorder; choose another file, or stop it", path.display())]
    InUse {
        /// The newest part.
        path: PathBuf,
    },
    /// The file begins with something else than a header.
    #[error("{} is not a recording of kwitness: it does not begin with a header", path.display())]
    NoHeader {
        /// The file.
        path: PathBuf,
        /// The file ends within its first line or frame.
        is_torn: bool,
    },
    /// The file was written by a newer release.
    #[error("{} has format {format}; this release reads up to {FORMAT}", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u32,
    },
    /// A complete line or frame is not what was written.
    #[error("{} is damaged after byte {offset}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How much of it is intact.
        offset: u64,
        /// What is wrong with the rest.
        reason: String,
    },
    /// The parts of a recording are not in the order of their names.
    #[error(
        "{} was begun before {}: rename them so that FILE is the newest part, FILE.1 the one before",
        path.display(), before.display()
    )]
    Order {
        /// The part that should be the newer one.
        path: PathBuf,
        /// The part that should be the older one.
        before: PathBuf,
    },
    /// Another node's recording has this name.
    #[error("{} is a recording of node {found}, not {expected}; choose another file", path.display())]
    OtherNode {
        /// The file.
        path: PathBuf,
        /// Its node.
        found: String,
        /// The node to record.
        expected: String,
    },
    /// A message has no JSON: a time out of range.
    #[error("cannot record a message: {0}")]
    Message(#[from] serde_json::Error),
    /// Only a daemon can answer this.
    #[error("{0}")]
    Unanswerable(&'static str),
}

impl Error {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::Io { action, path, error }
    }
}
