//! One instance at a time, and at most one that waits for its end: two locks on one file, which the kernel releases with the process.
//!
//! ```text
//!  acquire ────────────────▶ InstanceLock ── remove, drop, or the process' end ──▶ nothing
//!     or, if it is taken:      │      ▲  ▲
//!                    hand_over │      │  │ take_over: the other instance has ended
//!                              ▼      │  │
//!  acquire_or_stand_by ────▶ Standby ─┘  │
//!                              └── give_up: nothing, or the lock, if the other instance left it to this one meanwhile
//! ```
//!
//! The instance holds flock(2), the standby a record lock of its open file (`F_OFD_SETLK` of fcntl(2)); the kernel keeps these apart. A
//! second file would be one more to leave behind. And to ask for a record lock does not take it: an instance that looks for a standby
//! keeps none from becoming it.
//!
//! **Between an instance and its standby, one cleans up.** Both may be signalled to stop at once. The instance releases the lock before it
//! looks whether the standby is still there; the standby gives up its place before it tries the lock. So whichever comes last gets it.
//!
//! The file may be removed by the holder of the lock. Whoever then gets the lock of the removed file opens the path anew.

use std::{
    fs::{self, File, OpenOptions, Permissions, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    libc,
};

const MODE: u32 = 0o600;
/// Bytes of the lock file that are read: a process id.
const HOLDER_BYTES: u64 = 32;
/// How often the lock is tried that was left to a standby which has left, and the pause between: longer than a process takes to end.
const REGAIN_TRIES: usize = 100;
const REGAIN_PAUSE: Duration = Duration::from_millis(10);

/// Why the lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another instance has it.
    #[error(
        "another instance is running ({}): it holds the lock {}. Remedy: stop it, or give this one another socket",
        process(*holder),
        path.display()
    )]
    AlreadyRunning {
        /// The lock file.
        path: PathBuf,
        /// The process that wrote its id into the lock file.
        holder: Option<u32>,
    },
    /// Another instance has it, and one more waits for it.
    #[error(
        "another instance is running ({}), and another standby waits for the lock {}. Remedy: stop one of them, or give \
         this one another socket",
        process(*holder),
        path.display()
    )]
    AlreadyWaiting {
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

fn process(holder: Option<u32>) -> String {
    holder.map_or_else(|| "process unknown".to_owned(), |pid| format!("process {pid}"))
}

/// The lock, held until dropped.
#[derive(Debug)]
pub struct InstanceLock {
    path: PathBuf,
    file: File,
}

/// The place of the one instance that waits for the lock, held until dropped.
#[derive(Debug)]
pub struct Standby {
    path: PathBuf,
    file: File,
    holder: Option<u32>,
}

/// What an instance is that starts.
#[derive(Debug)]
pub enum Role {
    /// The only one.
    Instance(InstanceLock),
    /// The one that takes over when the other has ended.
    Standby(Standby),
}

impl InstanceLock {
    /// Takes the lock.
    ///
    /// # Errors
    /// Another instance has it, or the file cannot be used.
    pub fn acquire(path: &Path) -> Result<Self, LockError> {
        Self::try_acquire(path)?.map_err(|file| {
            let holder = holder(&file);
            LockError::AlreadyRunning { path: path.to_owned(), holder }
        })
    }

    /// Takes the lock, or the standby's place if another instance has it.
    ///
    /// # Errors
    /// Both are taken, or the file cannot be used.
    pub fn acquire_or_stand_by(path: &Path) -> Result<Role, LockError> {
        let file = match Self::try_acquire(path)? {
            Ok(lock) => return Ok(Role::Instance(lock)),
            Err(file) => file,
        };
        let (path, holder) = (path.to_owned(), holder(&file));
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&standby_lock(libc::F_WRLCK))) {
            Ok(_) => Ok(Role::Standby(Standby { path, file, holder })),
            Err(Errno::EAGAIN | Errno::EACCES) => Err(LockError::AlreadyWaiting { path, holder }),
            Err(errno) => Err(LockError::File { path, source: errno.into() }),
        }
    }

    /// Leaves the lock to the standby. If there is none (any more), it is returned: no instance goes on from here.
    ///
    /// # Errors
    /// The file cannot be locked; the lock is released.
    pub fn hand_over(self) -> Result<Option<Self>, LockError> {
        if !self.has_standby()? {
            return Ok(Some(self));
        }
        self.file.unlock().map_err(failed(&self.path))?;
        self.regain()
    }

    /// Releases the lock and removes its file.
    ///
    /// # Errors
    /// It cannot be removed; the lock is released.
    pub fn remove(self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }

    /// After its release: the lock again, unless the standby still waits for it, or another instance has it. A standby that has left its
    /// place may have it for a moment, until its process has ended: its [`waiter`](Standby::waiter) has just got it.
    fn regain(self) -> Result<Option<Self>, LockError> {
        for _ in 0..REGAIN_TRIES {
            if self.has_standby()? {
                return Ok(None);
            }
            match self.file.try_lock() {
                Ok(()) => return Self::of_locked(&self.path, self.file),
                Err(TryLockError::WouldBlock) => thread::sleep(REGAIN_PAUSE),
                Err(TryLockError::Error(error)) => return Err(failed(&self.path)(error)),
            }
        }
        Ok(None)
    }

    fn has_standby(&self) -> Result<bool, LockError> {
        let mut found = standby_lock(libc::F_WRLCK);
        fcntl(&self.file, FcntlArg::F_OFD_GETLK(&mut found))
            .map_err(|errno| failed(&self.path)(errno.into()))?;
        Ok(libc::c_int::from(found.l_type) != libc::F_UNLCK)
    }

    /// The lock, or the file that another instance has locked.
    fn try_acquire(path: &Path) -> Result<Result<Self, File>, LockError> {
        loop {
            let file = open(path).map_err(failed(path))?;
            match file.try_lock() {
                Ok(()) => {
                    if let Some(lock) = Self::of_locked(path, file)? {
                        return Ok(Ok(lock));
                    }
                }
                Err(TryLockError::WouldBlock) => return Ok(Err(file)),
                Err(TryLockError::Error(error)) => return Err(failed(path)(error)),
            }
        }
    }

    /// The lock of that file; none: another instance has it, or the file has been removed.
    fn of_free(path: &Path, file: File) -> Result<Option<Self>, LockError> {
        match file.try_lock() {
            Ok(()) => Self::of_locked(path, file),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(failed(path)(error)),
        }
    }

    /// Of a file that is locked; none: it has been removed.
    fn of_locked(path: &Path, mut file: File) -> Result<Option<Self>, LockError> {
        if !is_at(&file, path).map_err(failed(path))? {
            return Ok(None);
        }
        // The process id is for the reader of the next one's error; the lock itself does not need it.
        let _ = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| write!(file, "{}", std::process::id()));
        Ok(Some(Self { path: path.to_owned(), file }))
    }
}

impl Standby {
    /// The process that has the lock, as far as its file says.
    pub const fn holder(&self) -> Option<u32> {
        self.holder
    }

    /// What returns once the other instance has ended: for a thread of its own, because nothing else wakes it.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn waiter(&self) -> io::Result<impl FnOnce() -> io::Result<()> + Send + use<>> {
        let file = self.file.try_clone()?;
        Ok(move || {
            loop {
                match file.lock() {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    done => return done,
                }
            }
        })
    }

    /// The lock, after the [`waiter`](Self::waiter) has returned; none: the other instance removed its file, so that this one has to
    /// acquire it anew.
    ///
    /// # Errors
    /// The file cannot be used.
    pub fn take_over(self) -> Result<Option<InstanceLock>, LockError> {
        let (path, file) = self.leave()?;
        InstanceLock::of_locked(&path, file)
    }

    /// Leaves its place. The lock, if no other instance has it: none goes on from here.
    ///
    /// # Errors
    /// The file cannot be used.
    pub fn give_up(self) -> Result<Option<InstanceLock>, LockError> {
        let (path, file) = self.leave()?;
        InstanceLock::of_free(&path, file)
    }

    fn leave(self) -> Result<(PathBuf, File), LockError> {
        let Self { path, file, .. } = self;
        fcntl(&file, FcntlArg::F_OFD_SETLK(&standby_lock(libc::F_UNLCK)))
            .map_err(|errno| failed(&path)(errno.into()))?;
        Ok((path, file))
    }
}

fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        // Who may open the file may lock it, and keep every instance from starting.
        .mode(MODE)
        // What a link points to would be overwritten, and a FIFO never answers who has the lock.
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    // One that an earlier release made has another mode.
    file.set_permissions(Permissions::from_mode(MODE))?;
    Ok(file)
}

fn failed(path: &Path) -> impl Fn(io::Error) -> LockError {
    move |source| LockError::File { path: path.to_owned(), source }
}

fn holder(file: &File) -> Option<u32> {
    let mut text = String::new();
    file.take(HOLDER_BYTES).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Whether that file is still the one at that path.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let id = |metadata: &fs::Metadata| (metadata.dev(), metadata.ino());
    match fs::symlink_metadata(path) {
        Ok(found) => Ok(id(&found) == id(&file.metadata()?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// On the file's first byte, which need not exist.
const fn standby_lock(kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 1,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests;
