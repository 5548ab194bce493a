//! What is this process's user's alone. Owns the rule by which something that an earlier process left may be trusted.

use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path};

/// Permissions of group and others.
const OTHERS: u32 = 0o077;

/// Why something may not be trusted: another user owns it, or may read or change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it belongs to user {uid}, with mode {mode:o}")]
pub struct Foreign {
    /// Its owner.
    pub uid: u32,
    /// Its permissions.
    pub mode: u32,
}

/// Why a file or directory may not be trusted, if so. A symbolic link is not followed, and never trusted: its mode is 777.
///
/// # Errors
/// It is not there, or cannot be looked at.
pub fn foreign(path: &Path) -> io::Result<Option<Foreign>> {
    let metadata = fs::symlink_metadata(path)?;
    let (uid, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    let is_ours = uid == nix::unistd::geteuid().as_raw() && mode & OTHERS == 0;
    Ok((!is_ours).then_some(Foreign { uid, mode }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn what_others_may_use_is_foreign() {
        let directory = tempfile::tempdir().unwrap();
        let (path, link) = (directory.path().join("file"), directory.path().join("link"));
        fs::write(&path, "").unwrap();
        symlink(&path, &link).unwrap();
        for (mode, is_foreign) in [(0o600, false), (0o700, false), (0o640, true), (0o602, true)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(foreign(&path).unwrap().map(|foreign| foreign.mode), is_foreign.then_some(mode));
        }
        assert!(foreign(&link).unwrap().is_some());
        // Only root can give a file away.
        if std::os::unix::fs::chown(&path, Some(1), None).is_ok() {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            assert_eq!(foreign(&path).unwrap(), Some(Foreign { uid: 1, mode: 0o600 }));
        }
        foreign(&directory.path().join("missing")).unwrap_err();
    }
}
