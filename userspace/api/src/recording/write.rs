//! Writing a recording: whole lines or whole frames, appended, so that whatever a crash leaves behind can be read and continued.
//!
//! ```text
//!  FILE (newest) ── is full ──▶ FILE.1 ──▶ FILE.2 ──▶ … ──▶ FILE.(keep - 1) ──▶ removed
//! ```
//!
//! Whoever writes FILE has a lock on it (flock), by which another writer is refused. A link in its place is not followed.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::ops::Deref;
use std::path::{Path, PathBuf};

use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use super::read::ZSTD_MAGIC;
use super::{Error, FORMAT, HEADER_MAX, Header, Line, Lines};
use crate::proto;

/// What is held back at most before it is written: a larger frame compresses better, a crash costs what is in it.
const BUFFER: usize = 256 << 10;

/// How a recording is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The size in bytes at which a new file is begun.
    pub max_size: u64,
    /// How many files are kept, the newest included; at least 1.
    pub keep: u32,
    /// Compress with zstd.
    pub zstd: bool,
}

/// Appends to a recording.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    options: Options,
    file: OwnFile,
    size: u64,
    /// Whole lines that are not written yet.
    buffer: Vec<u8>,
}

impl Writer {
    /// Continues the recording of that name, or begins it. A torn end is cut off. Returns the position to resume after; none if
    /// the recording is new.
    ///
    /// # Errors
    /// [`Error::OtherNode`], [`Error::SymbolicLink`], [`Error::InUse`], and all of [`Lines`].
    pub fn open(
        path: &Path,
        options: Options,
        header: &Header,
    ) -> Result<(Self, Option<proto::Position>), Error> {
        let Some(file) = existing(path)? else {
            let before = last_position(&part(path, 1), header)?;
            return Ok((Self::begin(path, create(path)?, options, header)?, before));
        };
        if file.metadata().map_err(Error::io("read", path))?.len() == 0 {
            let before = last_position(&part(path, 1), header)?;
            return Ok((Self::begin(path, file, options, header)?, before));
        }
        let mut lines = match Lines::open(path) {
            // The writer did not come to finish the first line.
            Err(Error::NoHeader { is_torn: true, .. }) if is_begun(path)? => {
                let before = last_position(&part(path, 1), header)?;
                file.set_len(0).map_err(Error::io("truncate", path))?;
                return Ok((Self::begin(path, file, options, header)?, before));
            }
            lines => lines?,
        };
        check_node(path, lines.header(), header)?;
        let position = last(&mut lines)?;
        let position = match position {
            None => last_position(&part(path, 1), header)?,
            position => position,
        };
        let (intact, zstd) = (lines.intact(), lines.is_compressed());
        let is_ours = zstd == options.zstd && lines.header().format == FORMAT;
        file.set_len(intact).map_err(Error::io("truncate", path))?;
        // A file is compressed as a whole or not at all, and has one format; the next one follows the option and this release.
        let mut writer = Self { path: path.to_owned(), options, file, size: intact, buffer: Vec::new() };
        if !is_ours {
            writer.rotate(header)?;
        }
        Ok((writer, position))
    }

    /// In an empty file.
    fn begin(path: &Path, file: OwnFile, options: Options, header: &Header) -> Result<Self, Error> {
        let mut writer = Self { path: path.to_owned(), options, file, size: 0, buffer: Vec::new() };
        writer.append(&Line::Header(header.clone()))?;
        writer.flush()?;
        Ok(writer)
    }

    /// Appends a line. It is written with the next [`Writer::flush`], or earlier.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Message`].
    pub fn append(&mut self, line: &Line) -> Result<(), Error> {
        let before = self.buffer.len();
        if let Err(error) = line.write(&mut self.buffer) {
            self.buffer.truncate(before);
            return Err(error.into());
        }
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    /// Writes what was appended: after this, a crash of this process loses nothing.
    ///
    /// # Errors
    /// [`Error::Io`]: the file is as it was before, if the error can be undone.
    pub fn flush(&mut self) -> Result<(), Error> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let frame;
        let bytes = if self.options.zstd {
            frame = compress_to_vec(&*self.buffer, CompressionLevel::Fastest);
            &frame
        } else {
            &self.buffer
        };
        if let Err(error) = (&*self.file).write_all(bytes) {
            // Half a line is not left in the middle of a file that goes on later (a disk that was full).
            _ = self.file.set_len(self.size);
            return Err(Error::io("write", &self.path)(error));
        }
        self.size += bytes.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Whether the file has its full size.
    pub fn is_full(&self) -> bool {
        self.size >= self.options.max_size
    }

    /// Begins a new file. A snapshot and verdicts are to follow.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn rotate(&mut self, header: &Header) -> Result<(), Error> {
        self.finish()?;
        let mut oldest = 1;
        while part(&self.path, oldest).exists() {
            oldest += 1;
        }
        for number in (0..oldest).rev() {
            let from = part(&self.path, number);
            if number + 1 >= self.options.keep.max(1) {
                fs::remove_file(&from).map_err(Error::io("remove", &from))?;
            } else {
                fs::rename(&from, part(&self.path, number + 1)).map_err(Error::io("rename", &from))?;
            }
        }
        *self = Self::begin(&self.path, create(&self.path)?, self.options, header)?;
        Ok(())
    }

    /// Writes what was appended, to the disk.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finish(&mut self) -> Result<(), Error> {
        self.flush()?;
        self.file.sync_data().map_err(Error::io("sync", &self.path))
    }
}

/// The files of a recording, oldest first.
pub(super) fn parts(path: &Path) -> Vec<PathBuf> {
    let older = (1..).map(|number| part(path, number)).take_while(|part| part.exists());
    let mut parts: Vec<_> = std::iter::once(path.to_owned()).chain(older).collect();
    parts.reverse();
    parts
}

/// The name of a part: 0 is the newest.
fn part(path: &Path, number: u32) -> PathBuf {
    if number == 0 {
        return path.to_owned();
    }
    let mut name = OsString::from(path);
    name.push(format!(".{number}"));
    name.into()
}

/// The file that has the name, for this writer alone; none: there is none.
fn existing(path: &Path) -> Result<Option<OwnFile>, Error> {
    loop {
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("open", path)(error)),
            Ok(found) if found.is_symlink() => return Err(Error::SymbolicLink { path: path.to_owned() }),
            Ok(found) if !found.is_file() => return Err(Error::NotAFile { path: path.to_owned() }),
            Ok(_) => {}
        }
        let mut options = OpenOptions::new();
        options.append(true);
        // What has taken the place of the file since.
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let file = OwnFile::lock(options.open(path).map_err(Error::io("open", path))?, path)?;
        // Another writer may have made an older part of it meanwhile.
        if has_name(&file, path).map_err(Error::io("open", path))? {
            return Ok(Some(file));
        }
    }
}

/// A new file, for this writer alone.
fn create(path: &Path) -> Result<OwnFile, Error> {
    let mut options = OpenOptions::new();
    options.append(true).create_new(true);
    // Names of pods and processes are the owner's only.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = match options.open(path) {
        // There was none, and there is one.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(Error::InUse { path: path.to_owned() });
        }
        file => file.map_err(Error::io("create", path))?,
    };
    OwnFile::lock(file, path)
}

/// A file that keeps other writers out. It is unlocked, not only closed: a child that another thread is starting may still have it open.
#[derive(Debug)]
struct OwnFile(File);

impl OwnFile {
    #[cfg(unix)]
    fn lock(file: File, path: &Path) -> Result<Self, Error> {
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(fs::TryLockError::WouldBlock) => Err(Error::InUse { path: path.to_owned() }),
            // Not every file system has locks.
            Err(fs::TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                Ok(Self(file))
            }
            Err(fs::TryLockError::Error(error)) => Err(Error::io("lock", path)(error)),
        }
    }

    /// Here a lock would keep readers out as well.
    #[cfg(not(unix))]
    fn lock(file: File, _: &Path) -> Result<Self, Error> {
        Ok(Self(file))
    }
}

impl Drop for OwnFile {
    fn drop(&mut self) {
        _ = self.0.unlock();
    }
}

impl Deref for OwnFile {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

/// Whether the file is what has that name now.
#[cfg(unix)]
fn has_name(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let file = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(named) => Ok((file.dev(), file.ino()) == (named.dev(), named.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Without a lock there is nothing to compare.
#[cfg(not(unix))]
fn has_name(_: &File, _: &Path) -> io::Result<bool> {
    Ok(true)
}

/// Whether a file that ends within its first line or frame is one that a writer began: nothing else is overwritten.
fn is_begun(path: &Path) -> Result<bool, Error> {
    let mut start = Vec::new();
    let file = File::open(path).map_err(Error::io("open", path))?;
    file.take(HEADER_MAX as u64).read_to_end(&mut start).map_err(Error::io("read", path))?;
    let plain: &[u8] = br#"{"type":"recording""#;
    let is_start = |magic: &[u8]| magic.starts_with(&start) || start.starts_with(magic);
    Ok(start.len() < HEADER_MAX && (is_start(plain) || is_start(&ZSTD_MAGIC)))
}

fn check_node(path: &Path, found: &Header, expected: &Header) -> Result<(), Error> {
    if found.node == expected.node {
        return Ok(());
    }
    let (found, expected) = (found.node.clone(), expected.node.clone());
    Err(Error::OtherNode { path: path.to_owned(), found, expected })
}

/// The last position of a whole file; none if there is no such file.
fn last_position(path: &Path, header: &Header) -> Result<Option<proto::Position>, Error> {
    match Lines::open(path) {
        Ok(mut lines) => {
            check_node(path, lines.header(), header)?;
            last(&mut lines)
        }
        Err(Error::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where the lines end. Another epoch is another daemon's, a lower number is that of an event that came late.
fn last(lines: &mut Lines) -> Result<Option<proto::Position>, Error> {
    let mut last: Option<proto::Position> = None;
    for line in lines {
        let position = match line? {
            Line::Event(event) => event.position,
            Line::Snapshot(snapshot) => snapshot.after,
            Line::Header(_) | Line::Verdicts(_) | Line::Usage(_) => None,
        };
        if let Some(position) = position {
            let is_later = |last: &proto::Position| last.epoch != position.epoch || last.seq < position.seq;
            if last.as_ref().is_none_or(is_later) {
                last = Some(position);
            }
        }
    }
    Ok(last)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn who_still_has_the_file_open_keeps_no_writer_out() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("r");
        let file = create(&path).unwrap();
        // As a child has it between fork(2) and execve(2).
        let inherited = file.try_clone().unwrap();
        assert!(matches!(existing(&path), Err(Error::InUse { .. })));
        drop(file);
        assert!(existing(&path).unwrap().is_some());
        drop(inherited);
    }
}
