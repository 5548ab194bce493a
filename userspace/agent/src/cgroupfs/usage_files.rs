//! The files of a cgroup that say what it uses, and how often it was kept from more: the one rule of how each is read.
//!
//! What cannot be read is not 0: an [`Amount`] says why there is no number. Never writes, and never judges.

use std::fmt;
use std::io;

use super::Directory;

/// No such file is longer: `memory.stat` has some sixty lines.
const LONGEST: u64 = 64 << 10;
/// The largest limit that can be written to a v1 file, with pages of 64 KiB: it stands for none. `PAGE_COUNTER_MAX` of
/// `include/linux/page_counter.h`.
pub const V1_UNLIMITED: u64 = i64::MAX.unsigned_abs() & !0xffff;

/// What a file says, or one line of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Amount {
    /// The file's number, in its own unit.
    Is(u64),
    /// There is no limit.
    Unlimited,
    /// There is no such file, or line: the controller is not enabled, or the kernel does not have it.
    Absent,
    /// It could not be read.
    Unknown(String),
}

impl Amount {
    /// The number that a file holds, or "max".
    pub fn read(directory: &Directory, file: &str) -> Self {
        match directory.text_within(file, LONGEST) {
            Ok(text) => Self::parse(file, text.trim()),
            Err(error) => Self::from_error(directory, &error),
        }
    }

    /// The limit that a file of a v1 hierarchy holds.
    pub fn read_v1_limit(directory: &Directory, file: &str) -> Self {
        match Self::read(directory, file) {
            Self::Is(number) if number >= V1_UNLIMITED => Self::Unlimited,
            other => other,
        }
    }

    /// The number, if it is one.
    pub fn number(&self) -> Option<u64> {
        match self {
            Self::Is(number) => Some(*number),
            Self::Unlimited | Self::Absent | Self::Unknown(_) => None,
        }
    }

    fn parse(what: &str, text: &str) -> Self {
        match text {
            "max" => Self::Unlimited,
            _ => text.parse().map_or_else(|_| Self::Unknown(format!("{what} holds no number")), Self::Is),
        }
    }

    fn from_error(directory: &Directory, error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::NotFound && directory.exists() {
            Self::Absent
        } else {
            Self::Unknown(error.to_string())
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Is(number) => number.fmt(f),
            Self::Unlimited => f.write_str("max"),
            Self::Absent => f.write_str("absent"),
            Self::Unknown(reason) => f.write_str(reason),
        }
    }
}

/// A file of words and numbers, a pair a line (`cpu.stat`, `memory.events`), read once.
#[derive(Debug)]
pub struct FlatKeyed(Result<String, Amount>);

impl FlatKeyed {
    /// Reads a file of `NAME NUMBER` lines.
    pub fn read(directory: &Directory, file: &str) -> Self {
        Self(directory.text_within(file, LONGEST).map_err(|error| Amount::from_error(directory, &error)))
    }

    /// The number after that word. A line that is not known is passed over.
    pub fn get(&self, word: &str) -> Amount {
        let text = match &self.0 {
            Ok(text) => text,
            Err(missing) => return missing.clone(),
        };
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        let found = lines.find(|(first, _)| *first == word);
        found.map_or(Amount::Absent, |(_, number)| Amount::parse(word, number.trim()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(files: &[(&str, &str)]) -> (tempfile::TempDir, Directory) {
        let root = tempfile::tempdir().unwrap();
        for (file, text) in files {
            std::fs::write(root.path().join(file), text).unwrap();
        }
        let directory = Directory::open(root.path()).unwrap();
        (root, directory)
    }

    #[test]
    fn what_cannot_be_read_says_why_and_is_not_zero() {
        let (root, directory) = directory(&[
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("memory.high", "many\n"),
            ("memory.limit_in_bytes", "9223372036854771712\n"),
        ]);
        let read = |file| Amount::read(&directory, file);
        assert_eq!((read("memory.current"), read("memory.max")), (Amount::Is(4096), Amount::Unlimited));
        assert_eq!(read("memory.peak"), Amount::Absent);
        assert_eq!(read("memory.high").to_string(), "memory.high holds no number");
        assert_eq!(Amount::read_v1_limit(&directory, "memory.limit_in_bytes"), Amount::Unlimited);
        assert_eq!(Amount::read_v1_limit(&directory, "memory.current"), Amount::Is(4096));
        std::fs::remove_dir_all(root.path()).unwrap();
        assert!(
            matches!(read("memory.current"), Amount::Unknown(_)),
            "the cgroup is gone, not the file alone"
        );
    }

    #[test]
    fn a_counter_is_found_among_others_whatever_else_a_kernel_has() {
        let text = "usage_usec 12\nnew_field a b\nnr_throttled 3\nnr_throttled_more 4\n";
        let (_root, directory) = directory(&[("cpu.stat", text)]);
        let counters = FlatKeyed::read(&directory, "cpu.stat");
        assert_eq!(
            (counters.get("usage_usec"), counters.get("nr_throttled")),
            (Amount::Is(12), Amount::Is(3))
        );
        assert_eq!((counters.get("nr_periods"), counters.get("new_field").number()), (Amount::Absent, None));
        assert_eq!(FlatKeyed::read(&directory, "memory.events").get("oom_kill"), Amount::Absent);
    }
}
