//! What the daemon has not taken when the proxy ends, in a file for the next one: the requests themselves, so that none has been missed.
//!
//! The file is in memory (`/run`), for this process's user alone, and is read once. One that another user could have written, of another
//! boot, that is larger than what can wait, or cannot be decoded, is removed and not used. A proxy that is killed leaves none.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use kwitness_api::proto;
use nix::fcntl::OFlag;
use prost::Message as _;

use super::super::limits;

/// The times of requests are those of one boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Permissions of group and others.
const OTHERS: u32 = 0o077;

/// Where the file is.
#[derive(Clone, Debug)]
pub struct Left(PathBuf);

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it belongs to user {uid}, with mode {mode:o}")]
    Foreign { uid: u32, mode: u32 },
    #[error("it has more than {max} bytes", max = limits::REQUESTS_LEFT)]
    Oversized,
    #[error("it was written before the last reboot")]
    OtherBoot,
    #[error(transparent)]
    Malformed(#[from] prost::DecodeError),
}

impl Left {
    /// In the directory that systemd gives the unit, or beside the socket.
    pub fn beside(socket: &Path) -> Self {
        Self::of(env::var_os("RUNTIME_DIRECTORY").as_deref(), socket)
    }

    /// The first directory, if there are several: systemd separates them as in `PATH`.
    fn of(given: Option<&OsStr>, socket: &Path) -> Self {
        let first = given.and_then(|given| env::split_paths(given).next());
        Self(match first.filter(|directory| !directory.as_os_str().is_empty()) {
            Some(directory) => directory.join("requests"),
            None => with_suffix(socket, ".requests"),
        })
    }

    /// What an earlier proxy left, if it did; the file is gone then.
    pub fn take(&self) -> Option<proto::ReportCriRequestsRequest> {
        let read = match self.read() {
            Err(Unusable::Io(error)) if error.kind() == io::ErrorKind::NotFound => return None,
            read => read,
        };
        let path = self.0.display();
        if let Err(error) = fs::remove_file(&self.0) {
            // They would be reported again by each later proxy.
            tracing::warn!(%path, %error, "cannot remove the requests that an earlier proxy left; ignoring them");
            return None;
        }
        read.inspect_err(
            |error| tracing::warn!(%path, %error, "the requests that an earlier proxy left are refused"),
        )
        .ok()
    }

    fn read(&self) -> Result<proto::ReportCriRequestsRequest, Unusable> {
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(&self.0)?;
        let found = file.metadata()?;
        let (uid, mode) = (found.uid(), found.mode() & 0o7777);
        if uid != nix::unistd::geteuid().as_raw() || mode & OTHERS != 0 {
            return Err(Unusable::Foreign { uid, mode });
        }
        let mut bytes = Vec::new();
        file.take(limits::REQUESTS_LEFT + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > limits::REQUESTS_LEFT {
            return Err(Unusable::Oversized);
        }
        let message = bytes.strip_prefix(&*fs::read(BOOT_ID)?).ok_or(Unusable::OtherBoot)?;
        Ok(proto::ReportCriRequestsRequest::decode(message)?)
    }

    /// Leaves that for the next proxy.
    ///
    /// # Errors
    /// It cannot be written; then there is nothing.
    pub fn put(&self, waiting: &proto::ReportCriRequestsRequest) -> io::Result<()> {
        let new = with_suffix(&self.0, ".new");
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        let mut file: File = options.write(true).create_new(true).mode(0o600).open(&new)?;
        let mut write = || {
            file.write_all(&fs::read(BOOT_ID)?)?;
            file.write_all(&waiting.encode_to_vec())?;
            fs::rename(&new, &self.0)
        };
        write().inspect_err(|_| drop(fs::remove_file(&new)))
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path: OsString = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn waiting() -> proto::ReportCriRequestsRequest {
        let missed = proto::CriRequestsMissed { id: "a".to_owned(), count: 1, from: 2, to: 3 };
        proto::ReportCriRequestsRequest { requests: Vec::new(), missed: vec![missed] }
    }

    #[test]
    fn what_is_left_is_taken_once() {
        let directory = tempfile::tempdir().unwrap();
        let left = Left(directory.path().join("requests"));
        assert_eq!(left.take(), None);
        left.put(&waiting()).unwrap();
        assert_eq!(fs::metadata(&left.0).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!((left.take(), left.take()), (Some(waiting()), None));
        left.put(&waiting()).unwrap();
        left.put(&proto::ReportCriRequestsRequest::default()).unwrap();
        assert_eq!(left.take(), Some(proto::ReportCriRequestsRequest::default()), "the last one's");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        Left(directory.path().join("missing/requests")).put(&waiting()).unwrap_err();
        // What cannot be put leaves nothing, either.
        fs::create_dir(&left.0).unwrap();
        left.put(&waiting()).unwrap_err();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn it_is_in_the_first_directory_of_the_unit_or_beside_the_socket() {
        let path = |given: Option<&str>| Left::of(given.map(OsStr::new), Path::new("/run/proxy.sock")).0;
        assert_eq!(path(Some("/run/a:/run/b")), Path::new("/run/a/requests"));
        assert_eq!(path(Some("/run/a")), Path::new("/run/a/requests"));
        for none in [Some(""), None] {
            assert_eq!(path(none), Path::new("/run/proxy.sock.requests"));
        }
    }

    #[test]
    fn what_is_foreign_or_damaged_is_removed_and_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let left = Left(directory.path().join("requests"));
        let is_refused = |what: &str| {
            let error = left.read().unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
            assert_eq!(left.take(), None);
            assert!(fs::symlink_metadata(&left.0).is_err(), "{what}");
        };
        left.put(&waiting()).unwrap();
        fs::set_permissions(&left.0, fs::Permissions::from_mode(0o640)).unwrap();
        is_refused("mode 640");
        left.put(&waiting()).unwrap();
        let whole = fs::read(&left.0).unwrap();
        let rewrite = |bytes: &[u8]| {
            left.put(&waiting()).unwrap();
            fs::write(&left.0, bytes).unwrap();
        };
        rewrite(&whole[..whole.len() - 1]);
        is_refused("");
        let mut other = whole.clone();
        other[0] ^= 1;
        rewrite(&other);
        is_refused("reboot");
        rewrite(b"");
        is_refused("reboot");
        rewrite(&vec![0; usize::try_from(limits::REQUESTS_LEFT).unwrap() + 1]);
        is_refused("bytes");
        let elsewhere = directory.path().join("elsewhere");
        fs::write(&elsewhere, &whole).unwrap();
        symlink(&elsewhere, &left.0).unwrap();
        is_refused("");
        assert!(elsewhere.exists(), "what it leads to stays");
        nix::unistd::mkfifo(&left.0, nix::sys::stat::Mode::S_IRUSR).unwrap();
        is_refused("reboot");
    }
}
