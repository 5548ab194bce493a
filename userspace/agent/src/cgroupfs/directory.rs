//! A directory of cgroupfs by an open descriptor: what is in it is opened relative to that, so that no path is too long, and what
//! is read is that cgroup's, whatever is made in its place meanwhile.
//!
//! Cgroups may be nested deeper than the kernel takes a path for (`PATH_MAX`), and whoever has a delegated cgroup may do so.

use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path};

use kwitness_core::model::CgroupId;
use nix::NixPath;
use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};

/// An open directory.
#[derive(Debug)]
pub struct Directory(OwnedFd);

/// Something in a directory.
#[derive(Debug)]
pub struct Entry {
    /// Its name.
    pub name: CString,
    /// Of a directory, the id of its cgroup.
    pub id: CgroupId,
    /// Whether it is a directory.
    pub is_directory: bool,
}

const DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

impl Directory {
    /// Opens the directory of that path, however long it is.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(path: &Path) -> io::Result<Self> {
        match open_in(AT_FDCWD, path) {
            Ok(descriptor) => Ok(Self(descriptor)),
            Err(Errno::ENAMETOOLONG) => Self::open_by_names(path),
            Err(error) => Err(error.into()),
        }
    }

    fn open_by_names(path: &Path) -> io::Result<Self> {
        let start = if path.is_absolute() { c"/" } else { c"." };
        let mut directory = Self(open_in(AT_FDCWD, start)?);
        for component in path.components() {
            if let Component::Normal(name) = component {
                directory = Self(open_in(&directory.0, name)?);
            }
        }
        Ok(directory)
    }

    /// Opens a directory in it, or with `..` the one that it is in.
    ///
    /// # Errors
    /// The kernel's.
    pub fn child(&self, name: &CStr) -> io::Result<Self> {
        Ok(Self(open_in(&self.0, name)?))
    }

    /// The id of its cgroup.
    ///
    /// # Errors
    /// The kernel's.
    pub fn id(&self) -> io::Result<CgroupId> {
        Ok(self.id_and_owner()?.0)
    }

    /// The id of its cgroup, and the user who owns it.
    pub(super) fn id_and_owner(&self) -> io::Result<(CgroupId, u32)> {
        let FileStat { st_ino, st_uid, .. } = fstat(&self.0)?;
        Ok((CgroupId(st_ino), st_uid))
    }

    /// The id of what has that name in it.
    pub(super) fn id_of(&self, name: &CStr) -> io::Result<CgroupId> {
        Ok(CgroupId(fstatat(&self.0, name, AtFlags::AT_SYMLINK_NOFOLLOW)?.st_ino))
    }

    /// Whether it has not been removed: readdir(3) gives nothing of one that has, not even `.`.
    pub fn exists(&self) -> bool {
        self.list().is_ok_and(|mut list| list.iter().next().is_some())
    }

    /// What is in it; nothing, if it has been removed.
    ///
    /// # Errors
    /// The kernel's.
    pub fn entries(&self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in self.list()?.iter() {
            let entry = entry?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                entries.push(Entry {
                    name: entry.file_name().to_owned(),
                    id: CgroupId(entry.ino()),
                    is_directory: entry.file_type() == Some(Type::Directory),
                });
            }
        }
        Ok(entries)
    }

    fn list(&self) -> io::Result<Dir> {
        Ok(Dir::from_fd(open_in(&self.0, c".")?)?)
    }

    /// Opens a file in it.
    fn file(&self, name: &str) -> io::Result<File> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(File::from(openat(&self.0, name, flags, Mode::empty())?))
    }

    /// A file in it, as text.
    ///
    /// # Errors
    /// The kernel's, or the file is no text.
    pub fn text(&self, name: &str) -> io::Result<String> {
        let mut text = String::new();
        self.file(name)?.read_to_string(&mut text)?;
        Ok(text)
    }

    /// A file in it of at most so many bytes, as text.
    ///
    /// # Errors
    /// The kernel's, or the file is longer, or no text.
    pub fn text_within(&self, name: &str, longest: u64) -> io::Result<String> {
        let mut text = String::new();
        if self.file(name)?.take(longest + 1).read_to_string(&mut text)? as u64 > longest {
            return Err(io::Error::other(format!("longer than {} KiB", longest >> 10)));
        }
        Ok(text)
    }
}

fn open_in<P: ?Sized + NixPath>(directory: impl AsFd, path: &P) -> nix::Result<OwnedFd> {
    #[cfg(test)]
    testing::count();
    openat(directory, path, DIRECTORY, Mode::empty())
}

/// A name as text; what is no UTF-8 in it is replaced.
pub(super) fn text_of(name: &CStr) -> String {
    String::from_utf8_lossy(name.to_bytes()).into_owned()
}

/// A name as a part of a path.
pub(super) fn part_of_path(name: &CStr) -> &OsStr {
    OsStr::from_bytes(name.to_bytes())
}

#[cfg(test)]
pub(crate) mod testing {
    use std::cell::Cell;

    use nix::unistd::{UnlinkatFlags, unlinkat};

    use super::*;

    thread_local!(static OPENED: Cell<u64> = const { Cell::new(0) });

    pub(super) fn count() {
        OPENED.set(OPENED.get() + 1);
    }

    /// How many directories this thread has opened.
    pub(crate) fn opened() -> u64 {
        OPENED.get()
    }

    /// A nest of so many directories with that name, each with the file that every cgroup has; removed when dropped. No path need
    /// reach into it.
    pub(crate) struct Nest<'a> {
        top: &'a Path,
        name: CString,
        depth: usize,
    }

    impl<'a> Nest<'a> {
        pub(crate) fn make(top: &'a Path, name: &str, depth: usize) -> Self {
            let name = CString::new(name).unwrap();
            let mut directory = Directory::open(top).unwrap();
            for _ in 0..depth {
                nix::sys::stat::mkdirat(&directory.0, &*name, Mode::S_IRWXU).unwrap();
                directory = directory.child(&name).unwrap();
                write(&directory, "cgroup.events", "populated 0\n");
            }
            Self { top, name, depth }
        }

        /// The path of its innermost directory from the top.
        pub(crate) fn path(&self) -> String {
            format!("/{}", self.name.to_str().unwrap()).repeat(self.depth)
        }

        pub(crate) fn innermost(&self) -> Directory {
            (0..self.depth)
                .fold(Directory::open(self.top).unwrap(), |directory, _| directory.child(&self.name).unwrap())
        }

        /// Makes a file in its innermost directory.
        pub(crate) fn write(&self, file: &str, text: &str) {
            write(&self.innermost(), file, text);
        }
    }

    fn write(directory: &Directory, file: &str, text: &str) {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_CLOEXEC;
        let file = openat(&directory.0, file, flags, Mode::S_IRWXU).unwrap();
        nix::unistd::write(file, text.as_bytes()).unwrap();
    }

    impl Drop for Nest<'_> {
        fn drop(&mut self) {
            let mut directory = self.innermost();
            for _ in 0..self.depth {
                for file in directory.entries().unwrap() {
                    unlinkat(&directory.0, &*file.name, UnlinkatFlags::NoRemoveDir).unwrap();
                }
                directory = directory.child(c"..").unwrap();
                unlinkat(&directory.0, &*self.name, UnlinkatFlags::RemoveDir).unwrap();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::Nest;
    use super::*;
    use crate::cgroupfs::usage_files::Amount;

    #[test]
    fn a_path_longer_than_the_kernel_takes_is_opened_by_its_names() {
        let root = tempfile::tempdir().unwrap();
        let nest = Nest::make(root.path(), &"x".repeat(250), 18);
        nest.write("memory.max", "4096\n");
        let path = format!("{}{}", root.path().display(), nest.path());
        assert_eq!(std::fs::metadata(&path).unwrap_err().kind(), io::ErrorKind::InvalidFilename);
        let directory = Directory::open(Path::new(&path)).unwrap();
        assert_eq!(directory.id().unwrap(), nest.innermost().id().unwrap());
        let read = |file| Amount::read(&directory, file);
        assert_eq!((read("memory.max"), read("memory.min")), (Amount::Is(4096), Amount::Absent));
    }

    #[test]
    fn a_directory_that_was_removed_does_not_exist_and_is_empty() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("a")).unwrap();
        let directory = Directory::open(&root.path().join("a")).unwrap();
        assert!(directory.exists() && directory.entries().unwrap().is_empty());
        std::fs::remove_dir(root.path().join("a")).unwrap();
        assert!(!directory.exists() && directory.entries().unwrap().is_empty());
    }
}
