//! Files of text that someone else writes: configuration, policies, checkpoints.
//!
//! What stands in the place of one, a FIFO, a device or a file without an end, is neither waited for nor read without a bound. Links are
//! followed: a mounted ConfigMap has them. Never looks at the text.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::libc;

/// Opens a regular file, without waiting for it.
///
/// # Errors
/// It cannot be opened, or is not a regular file.
pub fn open(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    Ok(file)
}

/// The text of a file, which has at most so many MiB.
///
/// # Errors
/// It cannot be read, is larger, or is not UTF-8.
pub fn text(file: File, max_mib: u64) -> io::Result<String> {
    let max = max_mib << 20;
    let mut text = String::new();
    if file.take(max + 1).read_to_string(&mut text)? as u64 > max {
        return Err(io::Error::other(format!("larger than {max_mib} MiB")));
    }
    Ok(text)
}

/// The text of the regular file at a path, see [`open`] and [`text`].
///
/// # Errors
/// As of these.
pub fn read(path: &Path, max_mib: u64) -> io::Result<String> {
    text(open(path)?, max_mib)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_no_file_of_text_is_neither_waited_for_nor_read_without_a_bound() {
        let directory = tempfile::tempdir().unwrap();
        let (path, link) = (directory.path().join("file"), directory.path().join("link"));
        std::os::unix::fs::symlink(&path, &link).unwrap();
        fs::write(&path, "a = 1\n").unwrap();
        assert_eq!(read(&link, 1).unwrap(), "a = 1\n");
        let refused = |path: &Path| read(path, 1).unwrap_err().to_string();
        File::options().write(true).open(&path).unwrap().set_len(1 << 20).unwrap();
        assert_eq!(read(&path, 1).unwrap().len(), 1 << 20);
        File::options().write(true).open(&path).unwrap().set_len((1 << 20) + 1).unwrap();
        assert_eq!(refused(&link), "larger than 1 MiB");
        let fifo = directory.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
        for path in [&*fifo, directory.path(), Path::new("/dev/zero")] {
            assert_eq!(refused(path), "not a regular file", "{}", path.display());
        }
    }
}
