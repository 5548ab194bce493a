//! What containers have been lent, on disk: a guard that is started again goes on to give it back.
//!
//! Owns the file. What it says of a cgroup that is gone, or is another container's, is left out.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::give_back::Loan;
use crate::state_file;

/// A loan, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Lent {
    pub cgroup_id: u64,
    pub cgroup_path: String,
    pub container_id: String,
    /// How many raises it took; none: a guard has put it down that did not record that.
    #[serde(default)]
    pub raises: Option<u32>,
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
        state_file::read(&self.path).unwrap_or_else(|error| {
            let path = self.path.display();
            tracing::warn!(%path, %error, "cannot read what was raised before: it is not given back");
            Vec::new()
        })
    }

    /// Puts it down: all of it, or what was there stays.
    pub fn save(&mut self, lent: &[Lent]) {
        match state_file::write(&self.path, lent) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Change;
    use crate::policy::Bytes;

    #[test]
    fn what_is_saved_is_loaded_and_what_is_broken_is_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("loans.json");
        let mut loans = Loans::new(path.clone());
        assert_eq!(loans.load(), []);
        let loan = Loan::requested(None, Change { from: Bytes(64), to: Bytes(128) });
        let (cgroup_path, container_id) = ("/pod/c".to_owned(), "c".to_owned());
        let lent = Lent { cgroup_id: 1, cgroup_path, container_id, raises: Some(1), loan };
        loans.save(std::slice::from_ref(&lent));
        assert_eq!(loans.load(), std::slice::from_ref(&lent));
        let text = std::fs::read_to_string(&path).unwrap();
        let earlier = text.replace("\"raises\":1,", "");
        assert_ne!(earlier, text);
        std::fs::write(&path, earlier).unwrap();
        assert_eq!(loans.load(), [Lent { raises: None, ..lent }], "of an earlier release");
        std::fs::write(&path, "[{\"cgroupId\": 1").unwrap();
        assert_eq!(loans.load(), []);
    }
}
