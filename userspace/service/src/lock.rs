//! One instance at a time: a lock on a file, which the kernel gives up with the process.

use std::{
    fs::{File, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

const MODE: u32 = 0o600;

/// Why the lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another instance has it.
    #[error(
        "another instance is running ({}): it holds the lock {}. Remedy: stop it, or give this one another run directory",
        holder.map_or_else(|| "process unknown".to_owned(), |pid| format!("process {pid}")),
        path.display()
    )]
    AlreadyRunning {
        /// The lock file.
        path: PathBuf,
        /// The process that wrote its id into the lock file.
        holder: Option<u32>,
    },
    /// The lock file cannot be used.
    #[error("the lock file {} cannot be opened and locked. Remedy: make its directory exist and writable", path.display())]
    File {
        /// The lock file.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
}

/// The lock, held until dropped.
#[derive(Debug)]
pub struct InstanceLock(#[expect(dead_code, reason = "holds the lock")] Flock<File>);

impl InstanceLock {
    /// Takes the lock.
    ///
    /// # Errors
    /// Another instance has it, or the file cannot be used.
    pub fn acquire(path: &Path) -> Result<Self, LockError> {
        let failed = |source| LockError::File { path: path.to_owned(), source };
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            // Who may open the file may lock it, and keep every instance from starting.
            .mode(MODE)
            // What a link points to would be overwritten, and a FIFO never answers who has the lock.
            .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
            .open(path)
            // One that an earlier release made has another mode.
            .and_then(|file| file.set_permissions(Permissions::from_mode(MODE)).map(|()| file));
        match Flock::lock(file.map_err(failed)?, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                // The process id is for the reader of the next one's error; the lock itself does not need it.
                let _ = file.set_len(0).and_then(|()| write!(file, "{}", std::process::id()));
                Ok(Self(file))
            }
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut text = String::new();
                let holder = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
                Err(LockError::AlreadyRunning { path: path.to_owned(), holder })
            }
            Err((_, errno)) => Err(failed(errno.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_learns_who_the_first_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let first = InstanceLock::acquire(&path).unwrap();
        let refusal = InstanceLock::acquire(&path).unwrap_err();
        assert!(
            matches!(&refusal, LockError::AlreadyRunning { holder: Some(pid), .. } if *pid == std::process::id()),
            "{refusal:?}"
        );
        drop(first);
        InstanceLock::acquire(&path).unwrap();
    }

    #[test]
    fn no_other_user_can_take_it_and_no_link_is_followed() {
        let directory = tempfile::tempdir().unwrap();
        let (path, precious) = (directory.path().join("lock"), directory.path().join("precious"));
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let _held = InstanceLock::acquire(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        std::fs::write(&precious, "precious").unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&precious, &link).unwrap();
        InstanceLock::acquire(&link).unwrap_err();
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "precious");
    }

    #[test]
    fn a_fifo_does_not_make_the_second_wait() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let _first = InstanceLock::acquire(&path).unwrap();
        let refusal = InstanceLock::acquire(&path).unwrap_err();
        assert!(matches!(&refusal, LockError::AlreadyRunning { holder: None, .. }), "{refusal:?}");
    }

    #[test]
    fn a_missing_directory_is_named() {
        let error = InstanceLock::acquire(Path::new("/nonexistent/run/lock")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/run/lock"), "{error}");
    }
}
