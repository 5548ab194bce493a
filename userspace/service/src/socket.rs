//! The Unix socket that a program serves: bound, reclaimed from a process that died, refused to a second one, bound
//! again where its file was removed, and removed at the end.
//!
//! Owns the file and its mode. Never accepts a connection.

use std::fs::{self, DirBuilder, Permissions};
use std::io::ErrorKind;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, getsockopt, sockopt::PeerCredentials,
};
use nix::sys::stat::{Mode, fchmod};

/// For the daemon's user and group.
const DIRECTORY_MODE: u32 = 0o750;
const SOCKET_MODE: u32 = 0o660;

/// A listening socket; the file of one of our own is removed when this is dropped.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    /// Which file is ours; none for a socket that was passed, whose file belongs to the service manager.
    file: Option<FileId>,
    listener: Option<UnixListener>,
}

/// A file that may be replaced by another of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    fn of(path: &Path) -> std::io::Result<Self> {
        fs::symlink_metadata(path).map(|metadata| Self { device: metadata.dev(), inode: metadata.ino() })
    }
}

impl Socket {
    /// Makes the directory if it is missing, and warns if other users could replace the socket in it.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn make_directory(path: &Path) -> anyhow::Result<()> {
        let directory = path.parent().context("the socket's path has no directory")?;
        DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(directory)
            .with_context(|| format!("cannot create the socket's directory {}", directory.display()))?;
        if let Some(problem) = directory_problem(directory)? {
            tracing::warn!(directory = %directory.display(), problem, "other users can replace the socket");
        }
        Ok(())
    }

    /// Listens.
    ///
    /// # Errors
    /// Another process listens there, or the file is none of ours, or it cannot be made.
    pub fn listen(path: &Path) -> anyhow::Result<Self> {
        let mut socket = Self { path: path.to_owned(), file: None, listener: None };
        socket.bind()?;
        Ok(socket)
    }

    /// A listening socket that the service manager passed.
    pub fn passed(listener: UnixListener) -> anyhow::Result<Self> {
        listener.set_nonblocking(true)?;
        let path = listener.local_addr()?.as_pathname().map(Path::to_owned).unwrap_or_default();
        Ok(Self { path, file: None, listener: Some(listener) })
    }

    /// Where clients find it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The listener, once. Within a tokio runtime.
    ///
    /// # Errors
    /// It cannot be registered with the runtime, or was moved out before.
    pub fn listener(&mut self) -> anyhow::Result<tokio::net::UnixListener> {
        let listener = self.listener.take().context("the listener was moved out before")?;
        Ok(tokio::net::UnixListener::from_std(listener)?)
    }

    /// Whether the socket's file is still this socket's. One that was passed is its owner's to keep.
    pub fn is_reachable(&self) -> bool {
        self.file.is_none_or(|file| FileId::of(&self.path).is_ok_and(|found| found == file))
    }

    /// Listens at the same path anew.
    ///
    /// # Errors
    /// As [`Socket::listen`].
    pub fn listen_again(&mut self) -> anyhow::Result<()> {
        Self::make_directory(&self.path)?;
        self.bind()
    }

    fn bind(&mut self) -> anyhow::Result<()> {
        take_over(&self.path)?;
        let failed = || format!("cannot listen on {}", self.path.display());
        let listener = bind(&self.path).with_context(failed)?;
        // A umask may have removed the group's permission.
        fs::set_permissions(&self.path, Permissions::from_mode(SOCKET_MODE)).with_context(failed)?;
        self.file = Some(FileId::of(&self.path).with_context(failed)?);
        self.listener = Some(listener);
        Ok(())
    }
}

fn stream_socket() -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    nix::sys::socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)
}

/// Binds and listens. The mode is set before there is a file, so at no moment can more users connect than may.
fn bind(path: &Path) -> nix::Result<UnixListener> {
    let socket = stream_socket()?;
    // Linux gives the file the mode of the socket.
    fchmod(&socket, Mode::from_bits_truncate(SOCKET_MODE))?;
    nix::sys::socket::bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    nix::sys::socket::listen(&socket, Backlog::MAXCONN)?;
    Ok(UnixListener::from(socket))
}

/// Who else may replace files in a directory.
fn directory_problem(directory: &Path) -> anyhow::Result<Option<String>> {
    // The parent of a name without a directory.
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    let metadata =
        fs::metadata(directory).with_context(|| format!("cannot look at {}", directory.display()))?;
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    let this = nix::unistd::geteuid().as_raw();
    Ok(if owner != 0 && owner != this {
        Some(format!("it belongs to user {owner}: give it to the user of this process"))
    } else if mode & 0o002 != 0 {
        Some(format!("its mode is {mode:04o}: chmod o-w"))
    } else {
        None
    })
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Not another's, that was made in its place.
        if self.file.is_some()
            && self.is_reachable()
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

/// Removes what a dead daemon left.
fn take_over(path: &Path) -> anyhow::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {}
        Ok(_) => bail!("{} exists and is not a socket; remove it, or listen on another path", path.display()),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot look at {}", path.display())),
    }
    let unknown = || format!("cannot find out whether another instance listens on {}", path.display());
    let running = |holder: &str| {
        let path = path.display();
        anyhow!("another instance is running: {holder} listens on {path}; stop it, or listen on another path")
    };
    let socket = stream_socket().with_context(unknown)?;
    let address = UnixAddr::new(path).with_context(unknown)?;
    match nix::sys::socket::connect(socket.as_raw_fd(), &address) {
        Ok(()) => {
            let peer = getsockopt(&socket, PeerCredentials);
            Err(running(
                &peer.map_or_else(|_| "a process".to_owned(), |peer| format!("process {}", peer.pid())),
            ))
        }
        // It accepts none of those that wait: a hung one is not gone.
        Err(Errno::EAGAIN) => Err(running("a process that does not accept connections")),
        Err(Errno::ECONNREFUSED) => {
            tracing::info!(path = %path.display(), "taking over the socket of a process that is gone");
            fs::remove_file(path)
                .with_context(|| format!("cannot remove the stale socket {}", path.display()))
        }
        Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno).with_context(unknown),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn place() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/kwitness.sock");
        Socket::make_directory(&path).unwrap();
        (directory, path)
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn only_user_and_group_come_in_and_nothing_is_left() {
        let (_directory, path) = place();
        let socket = Socket::listen(&path).unwrap();
        assert_eq!(mode(path.parent().unwrap()), 0o750);
        assert_eq!(mode(&path), 0o660);
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn the_file_is_never_open_to_others_whatever_the_umask() {
        let (_directory, path) = place();
        let before = nix::sys::stat::umask(Mode::empty());
        let listener = bind(&path);
        nix::sys::stat::umask(before);
        drop(listener.unwrap());
        assert_eq!(mode(&path), SOCKET_MODE);
    }

    #[test]
    fn a_directory_that_others_can_write_is_named() {
        let (_directory, path) = place();
        let directory = path.parent().unwrap();
        assert_eq!(directory_problem(directory).unwrap(), None);
        fs::set_permissions(directory, Permissions::from_mode(0o777)).unwrap();
        assert!(directory_problem(directory).unwrap().unwrap().contains("0777"));
    }

    #[test]
    fn a_stale_socket_is_taken_over() {
        let (_directory, path) = place();
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a listener of std leaves its file");
        let _socket = Socket::listen(&path).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_live_one_is_not_and_its_owner_is_named() {
        let (_directory, path) = place();
        let first = Socket::listen(&path).unwrap();
        let error = Socket::listen(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        assert!(error.contains(path.to_str().unwrap()), "{error}");
        UnixStream::connect(&path).unwrap();
        drop(first);
    }

    #[test]
    fn one_that_accepts_nothing_is_not_waited_for_and_left_alone() {
        let (_directory, path) = place();
        let hung = stream_socket().unwrap();
        nix::sys::socket::bind(hung.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        nix::sys::socket::listen(&hung, Backlog::new(0).unwrap()).unwrap();
        // One has room to wait.
        let _waiting = UnixStream::connect(&path).unwrap();
        let error = Socket::listen(&path).unwrap_err().to_string();
        assert!(error.contains("another instance is running: a process that does not accept"), "{error}");
        assert!(path.exists());
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let (_directory, path) = place();
        fs::write(&path, "precious").unwrap();
        assert!(Socket::listen(&path).unwrap_err().to_string().contains("not a socket"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        let fifo = path.with_extension("fifo");
        nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        assert!(Socket::listen(&fifo).unwrap_err().to_string().contains("not a socket"));
        assert!(fifo.exists());
    }

    #[test]
    fn anothers_socket_is_not_removed() {
        let (_directory, path) = place();
        let first = Socket::listen(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let second = UnixListener::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
    }
}
