//! A file in which a program keeps what it must still know when it is started again.
//!
//! ```text
//!  FILE.new, made anew, its owner's only ──▶ on the disk ──▶ takes the name FILE ──▶ the name is on the disk
//! ```
//!
//! So a process that is killed leaves the old file or the new one, and so does a crash of the machine. What others have put in the
//! place of either is neither waited for, nor followed, nor written to. Never looks at the contents.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::libc;

/// What the file has, but no more than so many bytes of it; nothing, if there is no file.
///
/// # Errors
/// It cannot be read, or is not a regular file.
pub fn read(path: &Path, max: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            return Err(io::Error::other("it is a symbolic link, which is not followed"));
        }
        file => file?,
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(max).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// Replaces the file, or makes it.
///
/// # Errors
/// Why that cannot be done; what was there stays, unless only the directory could not be synced.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = new_name(path);
    // One that a program has left in the middle of this; a link is removed, not what it points to.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Of an exclusive creation, no link is followed.
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
    let named = file.write_all(bytes).and_then(|()| file.sync_data()).and_then(|()| fs::rename(&new, path));
    // On a full disk, half of it would be in the way of others.
    named.inspect_err(|_| drop(fs::remove_file(&new)))?;
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

fn new_name(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".new");
    name.into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn what_is_written_is_read_and_replaced_as_a_whole_by_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        assert_eq!(read(&path, 9).unwrap(), None);
        replace(&path, b"one").unwrap();
        fs::write(new_name(&path), "half").unwrap();
        replace(&path, b"another").unwrap();
        assert_eq!(read(&path, 100).unwrap().unwrap(), b"another");
        assert_eq!(read(&path, 4).unwrap().unwrap(), b"anot");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing else is left");
        fs::create_dir(new_name(&path)).unwrap();
        replace(&path, b"third").unwrap_err();
        assert_eq!(read(&path, 100).unwrap().unwrap(), b"another", "it stays");
        fs::remove_dir(new_name(&path)).unwrap();
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        replace(&path, b"third").unwrap_err();
        assert!(!new_name(&path).exists(), "what could not be put in its place");
    }

    #[test]
    fn no_link_is_followed_and_no_writer_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let (path, victim) = (directory.path().join("state.json"), directory.path().join("victim"));
        fs::write(&victim, "precious").unwrap();
        symlink(&victim, &path).unwrap();
        let error = read(&path, 9).unwrap_err().to_string();
        assert!(error.contains("symbolic link"), "{error}");
        symlink(&victim, new_name(&path)).unwrap();
        replace(&path, b"ours").unwrap();
        assert_eq!(read(&path, 9).unwrap().unwrap(), b"ours", "the link was replaced");
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = read(&path, 9).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
    }
}
