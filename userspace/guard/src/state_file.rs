//! What the guard must still know when it is started again, on disk: a list, in JSON.
//!
//! Owns how such a file is read and replaced. It is on a file system that a reboot clears, as cgroups are.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The largest file that is read: many times what a list takes that names each container that can be armed.
const FILE_MAX: u64 = 16 << 20;

/// What is there; nothing, if there is no file.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Vec<T>> {
    let mut text = String::new();
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = match File::options().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file?,
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    file.take(FILE_MAX).read_to_string(&mut text)?;
    serde_json::from_str(&text).map_err(io::Error::other)
}

/// Puts it down: all of it, or what was there stays.
pub(crate) fn write<T: Serialize>(path: &Path, list: &[T]) -> io::Result<()> {
    let text = serde_json::to_vec(list).map_err(io::Error::other)?;
    let new = path.with_extension("new");
    // One that a guard has left in the middle of this.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(&text)?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_replaced_as_a_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("list.json");
        let read = || read::<u64>(&path);
        assert!(read().unwrap().is_empty(), "none");
        write(&path, &[1, 2]).unwrap();
        assert_eq!(read().unwrap(), [1, 2]);
        fs::write(path.with_extension("new"), "half").unwrap();
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
