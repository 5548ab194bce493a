//! The Unix socket that the API is served on: made, taken over from a daemon that died, refused to one that lives,
//! removed at the end. Never what is said over it.

use std::fs::{self, DirBuilder, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

/// For the daemon's user and group.
const DIRECTORY_MODE: u32 = 0o750;
const SOCKET_MODE: u32 = 0o660;

/// A listening socket; its file is removed when this is dropped.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    inode: u64,
    listener: Option<UnixListener>,
}

impl Socket {
    /// Makes the directory if it is missing.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn make_directory(path: &Path) -> anyhow::Result<()> {
        let directory = path.parent().context("the socket's path has no directory")?;
        DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(directory)
            .with_context(|| format!("cannot make the socket's directory {}", directory.display()))
    }

    /// Listens.
    ///
    /// # Errors
    /// Another daemon listens there, or the file is none of ours, or it cannot be made.
    pub fn listen(path: &Path) -> anyhow::Result<Self> {
        take_over(path)?;
        let failed = || format!("cannot listen on {}", path.display());
        let listener = UnixListener::bind(path).with_context(failed)?;
        fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE)).with_context(failed)?;
        listener.set_nonblocking(true).with_context(failed)?;
        let inode = fs::symlink_metadata(path).with_context(failed)?.ino();
        Ok(Self { path: path.to_owned(), inode, listener: Some(listener) })
    }

    /// The listener, once. Within a tokio runtime.
    ///
    /// # Errors
    /// It cannot be registered with the runtime, or was taken before.
    pub fn listener(&mut self) -> anyhow::Result<tokio::net::UnixListener> {
        let listener = self.listener.take().context("the listener was taken before")?;
        Ok(tokio::net::UnixListener::from_std(listener)?)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Not another's, that was made in its place.
        if fs::symlink_metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode)
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
    match UnixStream::connect(path) {
        Ok(stream) => {
            let holder = getsockopt(&stream, PeerCredentials)
                .map_or_else(|_| "a process".to_owned(), |peer| format!("process {}", peer.pid()));
            bail!(
                "another instance is running: {holder} listens on {}; stop it, or listen on another path",
                path.display()
            )
        }
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "taking over the socket of a daemon that is gone");
            fs::remove_file(path)
                .with_context(|| format!("cannot remove the stale socket {}", path.display()))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error)
            .with_context(|| format!("cannot tell whether another instance listens on {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
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
    fn a_file_that_is_no_socket_is_left_alone() {
        let (_directory, path) = place();
        fs::write(&path, "precious").unwrap();
        assert!(Socket::listen(&path).unwrap_err().to_string().contains("not a socket"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
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
