//! What the daemon has not taken when the proxy ends, in a file for the next one: the requests themselves, so that none has been missed.
//!
//! The file is in memory (`/run`), for this process's user alone, and is read once. One that another user could have written, of another
//! boot, that is larger than what can wait, or cannot be decoded, is removed and not used. A proxy that is killed leaves none.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use kwitness_api::proto;
use kwitness_service::{private, state_file};
use prost::Message as _;

use super::super::limits;

/// The times of requests are those of one boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Where the file is.
#[derive(Clone, Debug)]
pub struct Left(PathBuf);

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Foreign(private::Foreign),
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
            None => socket.with_added_extension("requests"),
        })
    }

    /// What an earlier proxy left, if it did; the file is gone then.
    pub fn take(&self) -> Option<proto::ReportCriRequestsRequest> {
        let read = self.read().transpose()?;
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

    fn read(&self) -> Result<Option<proto::ReportCriRequestsRequest>, Unusable> {
        match private::foreign(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            foreign => foreign?.map_or(Ok(()), |foreign| Err(Unusable::Foreign(foreign)))?,
        }
        let Some(bytes) = state_file::read(&self.0, limits::REQUESTS_LEFT + 1)? else { return Ok(None) };
        if bytes.len() as u64 > limits::REQUESTS_LEFT {
            return Err(Unusable::Oversized);
        }
        let message = bytes.strip_prefix(&*fs::read(BOOT_ID)?).ok_or(Unusable::OtherBoot)?;
        Ok(Some(proto::ReportCriRequestsRequest::decode(message)?))
    }

    /// Leaves that for the next proxy.
    ///
    /// # Errors
    /// Why it cannot be written.
    pub fn put(&self, waiting: &proto::ReportCriRequestsRequest) -> io::Result<()> {
        state_file::replace(&self.0, &[fs::read(BOOT_ID)?, waiting.encode_to_vec()].concat())
    }
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
        is_refused("mode 777");
        assert!(elsewhere.exists(), "what it leads to stays");
        nix::unistd::mkfifo(&left.0, nix::sys::stat::Mode::S_IRUSR).unwrap();
        is_refused("not a regular file");
    }
}
