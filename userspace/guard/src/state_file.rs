//! What the guard must still know when it is started again, in a file ([`state_file`]): a list, in JSON.
//!
//! It is on a file system that a reboot clears, as cgroups are: to sync it costs nothing.

use std::io;
use std::path::Path;

use kwitness_service::state_file;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The largest file that is read: many times what a list takes that names each container that can be armed.
const FILE_MAX: u64 = 16 << 20;

/// What is there; nothing, if there is no file.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Vec<T>> {
    match state_file::read(path, FILE_MAX)? {
        Some(text) => serde_json::from_slice(&text).map_err(io::Error::other),
        None => Ok(Vec::new()),
    }
}

/// Puts it down: all of it, or what was there stays.
pub(crate) fn write<T: Serialize>(path: &Path, list: &[T]) -> io::Result<()> {
    state_file::replace(path, &serde_json::to_vec(list).map_err(io::Error::other)?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_is_damaged_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("list.json");
        let read = || read::<u64>(&path);
        assert!(read().unwrap().is_empty(), "none");
        write(&path, &[1, 2]).unwrap();
        assert_eq!(read().unwrap(), [1, 2]);
        write(&path, &[3]).unwrap();
        assert_eq!(read().unwrap(), [3]);
        fs::write(&path, "[1,").unwrap();
        read().unwrap_err();
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        read().unwrap_err();
        write(&path, &[4]).unwrap();
        assert_eq!(read().unwrap(), [4], "the link was replaced");
    }
}
