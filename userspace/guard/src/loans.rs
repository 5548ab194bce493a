//! What containers have been lent, on disk: a guard that is started again goes on to give it back.
//!
//! Owns the file. It is on a file system that a reboot clears, as the containers' cgroups are; what it says of a cgroup that is gone,
//! or is another container's, is left out.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::give_back::Loan;

/// The largest file that is read: many times what as many loans take as containers can be armed.
const FILE_MAX: u64 = 16 << 20;

/// A loan, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Lent {
    pub cgroup_id: u64,
    pub cgroup_path: String,
    pub container_id: String,
    #[serde(flatten)]
    pub loan: Loan,
}

/// The file.
#[derive(Debug)]
pub(crate) struct Loans {
    path: PathBuf,
    /// For the log: a line when that changes.
    is_failing: bool,
}

impl Loans {
    /// In that file.
    pub fn new(path: PathBuf) -> Self {
        Self { path, is_failing: false }
    }

    /// What an earlier guard has lent. A file that cannot be read is no reason not to guard.
    pub fn load(&self) -> Vec<Lent> {
        match read(&self.path) {
            Ok(lent) => lent,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                let path = self.path.display();
                tracing::warn!(%path, %error, "cannot read what was raised before: it is not given back");
                Vec::new()
            }
        }
    }

    /// Puts it down: all of it, or what was there stays.
    pub fn save(&mut self, lent: &[Lent]) {
        match write(&self.path, lent) {
            Ok(()) if std::mem::take(&mut self.is_failing) => {
                tracing::info!(path = %self.path.display(), "what is raised is recorded again");
            }
            Ok(()) => {}
            Err(error) => {
                if !std::mem::replace(&mut self.is_failing, true) {
                    let path = self.path.display();
                    tracing::warn!(%path, %error, "cannot record what is raised: the next guard will not give it back");
                }
            }
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<Lent>> {
    let mut text = String::new();
    let file =
        File::options().read(true).custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    file.take(FILE_MAX).read_to_string(&mut text)?;
    serde_json::from_str(&text).map_err(io::Error::other)
}

fn write(path: &Path, lent: &[Lent]) -> io::Result<()> {
    let text = serde_json::to_vec(lent).map_err(io::Error::other)?;
    let new = path.with_extension("new");
    // One that a guard has left in the middle of this.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(&text)?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Change;
    use crate::policy::Bytes;

    fn lent(cgroup_id: u64) -> Lent {
        let loan = Loan::requested(None, Change { from: Bytes(64), to: Bytes(128) });
        Lent { cgroup_id, cgroup_path: "/pod/c".to_owned(), container_id: "c".to_owned(), loan }
    }

    #[test]
    fn what_is_saved_is_loaded_and_replaced_as_a_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("loans.json");
        let mut loans = Loans::new(path.clone());
        assert_eq!(loans.load(), []);
        loans.save(&[lent(1), lent(2)]);
        assert_eq!(loans.load(), [lent(1), lent(2)]);
        fs::write(path.with_extension("new"), "half").unwrap();
        loans.save(&[lent(3)]);
        assert_eq!(loans.load(), [lent(3)]);
        fs::write(&path, "[{\"cgroupId\": 1").unwrap();
        assert_eq!(loans.load(), [], "broken");
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        assert_eq!(loans.load(), [], "a link");
        loans.save(&[lent(4)]);
        assert_eq!(loans.load(), [lent(4)], "the link was replaced");
    }
}
