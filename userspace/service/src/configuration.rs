//! Files of the configuration, and why a program's configuration cannot be used: the one error for that (`EX_CONFIG`), whichever file or
//! option it is. What a program checks in detail has errors of its own. Never looks at the text.

use std::io;
use std::path::{Path, PathBuf};

use crate::text_file;

/// The largest file that is read.
const LARGEST_MIB: u64 = 1;

/// Why the configuration cannot be used: with the same one, the next start fails, too.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// A file cannot be read.
    #[error("cannot read {what} {}: {error}; name another file with {option}", path.display())]
    Unreadable {
        /// What it is: "the configuration".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
        /// The flag or the setting that names it.
        option: &'static str,
    },
    /// An option makes no sense.
    #[error("{0}")]
    Invalid(String),
}

impl ConfigurationError {
    /// Whether this user may not read a file that another may.
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Unreadable { error, .. } if error.kind() == io::ErrorKind::PermissionDenied)
    }
}

/// The text of a file that `option` names: a regular one of at most 1 MiB.
///
/// # Errors
/// It cannot be read, is larger, or is not UTF-8.
pub fn read(what: &'static str, path: &Path, option: &'static str) -> Result<String, ConfigurationError> {
    text_file::read(path, LARGEST_MIB).map_err(|error| ConfigurationError::Unreadable {
        what,
        path: path.to_owned(),
        error,
        option,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn an_error_names_the_file_and_the_option() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("policy.toml");
        let error = || read("the policy", &path, "--policy").unwrap_err();
        let named = |why: &str| {
            format!("cannot read the policy {}: {why}; name another file with --policy", path.display())
        };
        assert_eq!(error().to_string(), named("No such file or directory (os error 2)"));
        fs::File::create(&path).unwrap().set_len(1 << 32).unwrap();
        assert_eq!(error().to_string(), named("larger than 1 MiB"));
        fs::write(&path, "a = 1").unwrap();
        assert_eq!(read("the policy", &path, "--policy").unwrap(), "a = 1");
    }
}
