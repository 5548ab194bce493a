//! What is known of the limit files of one cgroup: what each says, and the writes to it that are not settled.
//!
//! A node has forty thousand cgroups with some twenty limit files each, and nearly all of these files are written once or never:
//! what only a write needs is kept apart, and only for files that were written to.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::{Attempt, KernelTime, LimitFile, LimitWrite, Reading, SeenWrite};

use super::initial;

/// The limit files of one cgroup.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Cgroup {
    /// As the last answer had it.
    pub(super) path: Option<Arc<str>>,
    /// What a limit file that is not in `limit_files` says.
    pub(super) others: Others,
    pub(super) limit_files: Vec<(LimitFile, Known)>,
    /// All are being read.
    pub(super) is_reading: bool,
    /// Since then, that reading is not enough, if it began before.
    #[serde(default)]
    pub(super) wanted: Option<KernelTime>,
    /// Writes that were only counted, since all were read last.
    pub(super) suppressed: u64,
}

/// What a limit file says that was never read by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Others {
    /// Unknown.
    #[default]
    Unknown,
    /// The cgroup's making was seen: what the kernel begins with.
    Initial,
    /// All were read, and it was not there.
    Absent,
}

/// One limit file.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Known {
    pub(super) reading: Option<Reading>,
    /// None: it was not written to.
    pub(super) writes: Option<Box<Writes>>,
}

/// The writes to one limit file.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Writes {
    /// Returned or given up, and not read back yet; the oldest first.
    pub(super) pending: Vec<Pending>,
    /// Of the last pending one: so many more.
    pub(super) coalesced: u64,
    /// The file is being read.
    pub(super) is_reading: bool,
    /// Begun and not returned.
    pub(super) running: Vec<(KernelTime, LimitWrite)>,
    /// The last ones that returned or were given up, the oldest first.
    pub(super) attempts: VecDeque<Attempt>,
}

/// A write that is to be read back.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Pending {
    pub(super) at: KernelTime,
    pub(super) write: SeenWrite,
}

impl Others {
    pub(super) fn reading(self, limit_file: LimitFile) -> Reading {
        match self {
            Self::Unknown => Reading::Unknown("not read before".into()),
            Self::Initial => initial(limit_file).map_or(Reading::Absent, Reading::Is),
            Self::Absent => Reading::Absent,
        }
    }
}

impl Cgroup {
    /// The writes to a file, if it was written to.
    pub(super) fn writes(&self, limit_file: LimitFile) -> Option<&Writes> {
        let (_, known) = self.limit_files.iter().find(|(of, _)| *of == limit_file)?;
        known.writes.as_deref()
    }

    /// What a file says, as far as known.
    pub(super) fn reading(&self, limit_file: LimitFile) -> Reading {
        let known = self.limit_files.iter().find(|(of, _)| *of == limit_file);
        let reading = known.and_then(|(_, known)| known.reading.clone());
        reading.unwrap_or_else(|| self.others.reading(limit_file))
    }

    /// What is known of a file, which is remembered from now on.
    pub(super) fn known_mut(&mut self, limit_file: LimitFile) -> &mut Known {
        let index = self.limit_files.iter().position(|(of, _)| *of == limit_file).unwrap_or_else(|| {
            self.limit_files.push((limit_file, Known::default()));
            self.limit_files.len() - 1
        });
        &mut self.limit_files[index].1
    }

    /// The writes to a file, which was written to.
    pub(super) fn writes_mut(&mut self, limit_file: LimitFile) -> &mut Writes {
        self.known_mut(limit_file).writes.get_or_insert_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_only_read_takes_little() {
        let (of_file, of_reading) = (size_of::<(LimitFile, Known)>(), size_of::<Option<Reading>>());
        // The reading itself, the file's number and a pointer.
        assert!(of_file <= of_reading + 2 * size_of::<usize>(), "{of_file}, {of_reading}");
        let mut cgroup = Cgroup::default();
        cgroup.known_mut(LimitFile::MemoryMax).reading = Some(Reading::Absent);
        assert!(cgroup.writes(LimitFile::MemoryMax).is_none());
        cgroup.writes_mut(LimitFile::MemoryMax).coalesced = 1;
        assert_eq!(cgroup.writes(LimitFile::MemoryMax).map(|writes| writes.coalesced), Some(1));
        assert_eq!(cgroup.limit_files.len(), 1);
        assert_eq!(cgroup.limit_files[0].1.reading, Some(Reading::Absent), "the reading stays");
    }
}
