//! The state file: how far the collector has come, over restarts of the exporter.
//!
//! Written after every answer, and synced to the disk ([`state_file`]). After a crash of the machine the daemon's journal is
//! another one; the position shows that there was an earlier one, of which the daemon then reports the loss.

use std::io;
use std::path::{Path, PathBuf};

use kwitness_service::state_file;

use crate::queue::Progress;

/// The most bytes of a state file; more is none of ours.
const BYTES_MAX: u64 = 64 << 10;

/// Why there is no progress to go on with, though there is a file.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It cannot be read.
    #[error("cannot read the state file {path}: {error}", path = .path.display())]
    Unreadable {
        /// Its path.
        path: PathBuf,
        /// The I/O error.
        error: io::Error,
    },
    /// It is not what an exporter writes.
    #[error("{path} is no state file of kwitness export: {reason}. Remove it to start anew", path = .path.display())]
    Foreign {
        /// Its path.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}

/// The state file.
#[derive(Clone, Debug)]
pub struct StateFile {
    path: PathBuf,
}

impl StateFile {
    /// At that path.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// What an earlier exporter wrote; nothing if there was none.
    ///
    /// # Errors
    /// The file cannot be read, or is another one's.
    pub fn load(&self) -> Result<Progress, LoadError> {
        let foreign = |reason| LoadError::Foreign { path: self.path.clone(), reason };
        // A little more than a state file of ours has, at most.
        let text = match state_file::read(&self.path, BYTES_MAX + 1) {
            Ok(Some(text)) if text.len() as u64 > BYTES_MAX => {
                return Err(foreign(format!("it is larger than {BYTES_MAX} bytes")));
            }
            Ok(Some(text)) => text,
            Ok(None) => return Ok(Progress::default()),
            Err(error) => return Err(LoadError::Unreadable { path: self.path.clone(), error }),
        };
        serde_json::from_slice(&text).map_err(|error| foreign(error.to_string()))
    }

    /// Replaces what is there.
    ///
    /// # Errors
    /// Why it cannot be written.
    pub fn save(&self, progress: &Progress) -> io::Result<()> {
        state_file::replace(&self.path, &serde_json::to_vec(progress)?)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use kwitness_api::proto::Position;

    use super::*;
    use crate::queue::Refused;
    use crate::waiting::Waiting;

    #[test]
    fn what_is_saved_is_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let file = StateFile::new(&directory.path().join("state.json"));
        assert_eq!(file.load().unwrap(), Progress::default());
        let position = Position { epoch: "e".to_owned(), seq: u64::MAX };
        let refused =
            Refused { epoch: "e".to_owned(), first: 1, last: 2, records: 3, reason: "no".to_owned() };
        let kubernetes = Waiting { first: Some(position.clone()), events: 2, stale: 1 };
        for progress in [
            Progress {
                position: Some(position.clone()),
                refused: vec![refused],
                unaccounted: Some(position.clone()),
                kubernetes_lost: 7,
                kubernetes,
            },
            Progress { position: Some(position), ..Progress::default() },
        ] {
            file.save(&progress).unwrap();
            assert_eq!(file.load().unwrap(), progress);
        }
        let names = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(names.collect::<Vec<_>>(), ["state.json"], "nothing else is left");
    }

    #[test]
    fn a_failed_save_leaves_what_was_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        let file = StateFile::new(&path);
        let position = Some(Position { epoch: "e".to_owned(), seq: 1 });
        let progress = Progress { position, ..Progress::default() };
        file.save(&progress).unwrap();
        fs::create_dir(directory.path().join("state.json.new")).unwrap();
        file.save(&Progress::default()).unwrap_err();
        assert_eq!(file.load().unwrap(), progress);
    }

    #[test]
    fn what_others_have_put_there_is_neither_waited_for_nor_written_to() {
        let directory = tempfile::tempdir().unwrap();
        let (path, victim) = (directory.path().join("state.json"), directory.path().join("victim"));
        let file = StateFile::new(&path);
        fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, directory.path().join("state.json.new")).unwrap();
        file.save(&Progress::default()).unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = file.load().unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
    }

    #[test]
    fn a_file_of_an_earlier_release_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        fs::write(&path, r#"{"position":{"epoch":"e","seq":4}}"#).unwrap();
        let position = Some(Position { epoch: "e".to_owned(), seq: 4 });
        assert_eq!(StateFile::new(&path).load().unwrap(), Progress { position, ..Progress::default() });
    }

    #[test]
    fn another_file_is_not_taken_for_ours() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        let file = StateFile::new(&path);
        for text in [String::new(), "[]".to_owned(), "{\"position\":".to_owned(), " ".repeat(100_000)] {
            fs::write(&path, text).unwrap();
            let error = file.load().unwrap_err().to_string();
            assert!(error.contains("Remove it to start anew"), "{error}");
        }
        let unreadable = StateFile::new(directory.path()).load().unwrap_err();
        assert!(matches!(unreadable, LoadError::Unreadable { .. }), "{unreadable}");
    }
}
