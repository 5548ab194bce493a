//! How the program ends: the exit codes, and what is printed on standard error before.

use std::io;

use kwitness_api::SourceError;
use kwitness_api::client::{Address, Error as ClientError};
use kwitness_api::proto::VerdictKind;
#[cfg(node)]
use kwitness_service::ConfigurationError;

use crate::output::note;

/// What the program's end means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Everything worked; also when the reader of the output stopped reading.
    Success,
    /// Something failed; `doctor`: the node cannot be watched.
    Failure,
    /// `verify`: not every limit is in force; the worst verdict.
    Verdict(VerdictKind),
    /// `verify --prove`: every limit is in force, and more was used than one allows.
    Exceeded,
    /// No such pod, namespace or container on this node (`EX_NOINPUT` of sysexits.h).
    NotHere,
    /// The daemon cannot be reached (`EX_UNAVAILABLE`).
    Unreachable,
    /// This user may not connect to the daemon or use a file, or has insufficient privileges (`EX_NOPERM`).
    Denied,
    /// The configuration cannot be read, or has errors (`EX_CONFIG`).
    Configuration,
    /// Ctrl-C, as shells have it.
    Interrupted,
}

/// For the help and the manual.
pub const CODES: &[(&str, &str)] = &[
    ("0", "success; also when the reader of the output closed it"),
    ("1", "failure; doctor: this node cannot be watched"),
    ("2", "wrong usage"),
    ("10", "verify: pending"),
    ("11", "verify: diverged"),
    ("12", "verify: rejected"),
    ("13", "verify: shadowed"),
    ("14", "verify: over limit"),
    ("15", "verify: killed"),
    ("16", "verify: reverted"),
    ("17", "verify: unknown, or no limit is set"),
    ("18", "verify --prove: in force, but exceeded"),
    ("66", "no such pod, namespace or container on this node"),
    ("69", "the daemon cannot be reached"),
    ("77", "permission denied, or missing privileges"),
    ("78", "the configuration cannot be read, or has errors"),
    ("130", "ended by Ctrl-C"),
];

impl From<Code> for u8 {
    fn from(code: Code) -> Self {
        match code {
            Code::Success => 0,
            Code::Failure => 1,
            Code::Verdict(kind) => match kind {
                VerdictKind::InForce => 0,
                VerdictKind::Pending => 10,
                VerdictKind::Diverged => 11,
                VerdictKind::Rejected => 12,
                VerdictKind::Shadowed => 13,
                VerdictKind::OverLimit => 14,
                VerdictKind::Killed => 15,
                VerdictKind::Reverted => 16,
                VerdictKind::Unknown | VerdictKind::Unspecified => 17,
            },
            Code::Exceeded => 18,
            Code::NotHere => 66,
            Code::Unreachable => 69,
            Code::Denied => 77,
            Code::Configuration => 78,
            Code::Interrupted => 130,
        }
    }
}

impl From<Code> for std::process::ExitCode {
    fn from(code: Code) -> Self {
        Self::from(u8::from(code))
    }
}

/// What was requested is not on this node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotHere(pub String);

/// The code of a result; an error is printed first.
pub fn code(done: anyhow::Result<Code>) -> Code {
    let error = match done {
        Ok(code) => return code,
        Err(error) => error,
    };
    let closed = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    };
    if error.chain().any(closed) {
        return Code::Success;
    }
    let of_source = error.downcast_ref::<SourceError>().and_then(|error| match error {
        SourceError::Client(error) => Some(error),
        SourceError::Recording(_) => None,
    });
    match of_source.or_else(|| error.downcast_ref::<ClientError>()) {
        Some(ClientError::Unreachable { .. }) => {
            note(&format!(
                "{error}; start one with `kwitness daemon`, or name its socket with --socket or KWITNESS_SOCKET"
            ));
            Code::Unreachable
        }
        Some(ClientError::PermissionDenied { address }) => {
            note(&format!("{error}{}: run with sudo, or join its group", owner(address)));
            Code::Denied
        }
        _ if is_configuration(&error) => {
            // One line for each error, and all of them at once.
            format!("{error:#}").lines().for_each(note);
            Code::Configuration
        }
        _ => {
            note(&format!("{error:#}"));
            if error.is::<NotHere>() {
                Code::NotHere
            } else if is_denied(&error) {
                Code::Denied
            } else {
                Code::Failure
            }
        }
    }
}

/// Who may connect: " (root:kwitness 0660)", of the socket, or of the innermost directory above it that can be seen.
#[cfg(unix)]
fn owner(address: &Address) -> String {
    use std::os::unix::fs::MetadataExt as _;

    let seen = address.unix_path().into_iter().flat_map(std::path::Path::ancestors).find_map(|path| {
        let metadata = std::fs::metadata(path).ok()?;
        let user = uzers::get_user_by_uid(metadata.uid());
        let group = uzers::get_group_by_gid(metadata.gid());
        let user =
            user.map_or_else(|| metadata.uid().to_string(), |user| user.name().to_string_lossy().into());
        let group =
            group.map_or_else(|| metadata.gid().to_string(), |group| group.name().to_string_lossy().into());
        let place =
            if Some(path) == address.unix_path() { String::new() } else { format!("{}: ", path.display()) };
        Some(format!(" ({place}{user}:{group} {:04o})", metadata.mode() & 0o7777))
    });
    seen.unwrap_or_default()
}

#[cfg(not(unix))]
fn owner(_: &Address) -> String {
    String::new()
}

#[cfg(node)]
fn is_configuration(error: &anyhow::Error) -> bool {
    error.is::<kwitness_agent::config::Problems>()
        || error.is::<kwitness_guard::policy::PolicyError>()
        || error.downcast_ref().is_some_and(|error: &ConfigurationError| !error.is_denied())
}

#[cfg(not(node))]
fn is_configuration(_: &anyhow::Error) -> bool {
    false
}

/// Whether this user may not do it, by the kernel's answer or by the privileges that were found.
fn is_denied(error: &anyhow::Error) -> bool {
    let refused = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    };
    is_unprivileged(error) || error.chain().any(refused)
}

#[cfg(node)]
fn is_unprivileged(error: &anyhow::Error) -> bool {
    error.downcast_ref::<kwitness_agent::probe::Advised>().is_some_and(|error| error.is_denied)
        || error.downcast_ref().is_some_and(kwitness_guard::Unable::is_denied)
        || error.downcast_ref().is_some_and(ConfigurationError::is_denied)
}

#[cfg(not(node))]
fn is_unprivileged(_: &anyhow::Error) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn each_error_has_its_code() {
        let closed = Err(io::Error::from(io::ErrorKind::BrokenPipe)).context("cannot write");
        assert_eq!(code(closed), Code::Success);
        assert_eq!(code(Err(anyhow::anyhow!("other"))), Code::Failure);
        let address = Address::Unix("/x".into());
        let unreachable = ClientError::Unreachable { address: address.clone(), reason: "gone".into() };
        assert_eq!(code(Err(unreachable.into())), Code::Unreachable);
        let unreachable = ClientError::Unreachable { address: address.clone(), reason: "gone".into() };
        assert_eq!(code(Err(SourceError::Client(unreachable).into())), Code::Unreachable);
        assert_eq!(code(Err(ClientError::PermissionDenied { address }.into())), Code::Denied);
        assert_eq!(code(Err(NotHere("no pod".into()).into())), Code::NotHere);
        let refused = Err(io::Error::from(io::ErrorKind::PermissionDenied)).context("cannot create /x");
        assert_eq!(code(refused), Code::Denied);
    }

    #[cfg(node)]
    #[test]
    fn missing_privileges_are_a_permission_denied() {
        use kwitness_agent::probe::{Advised, ProbeError};

        let missing = Advised::from(ProbeError::Unprivileged { missing: vec!["CAP_BPF"] });
        assert_eq!(code(Err(missing.into())), Code::Denied);
        assert_eq!(code(Err(Advised::from(ProbeError::Lockdown).into())), Code::Failure);
        assert_eq!(code(Err(kwitness_guard::Unable::Signal.into())), Code::Denied);
        assert_eq!(code(Err(kwitness_guard::Unable::Clock("1 s".into()).into())), Code::Failure);
    }

    #[cfg(node)]
    #[test]
    fn a_configuration_that_cannot_be_used_has_one_code_whosever_it_is() {
        use kwitness_agent::config::{Config, Flag};
        use kwitness_service::configuration;

        let missing = std::path::Path::new("/nonexistent/file");
        let unreadable = configuration::read("the policy", missing, "--policy").unwrap_err();
        let invalid = ConfigurationError::Invalid("no endpoint".to_owned());
        for error in [
            Config::load(Some(missing), &[]).unwrap_err(),
            Config::load(Some(std::path::Path::new("/dev/zero")), &[]).unwrap_err(),
            Config::load(None, &[Flag::Set("no.such=setting".to_owned())]).unwrap_err(),
            unreadable.into(),
            anyhow::Error::from(invalid).context("cannot start"),
        ] {
            assert_eq!(code(Err(error)), Code::Configuration);
        }
        let (what, path, option) = ("the policy", missing.to_owned(), "--policy");
        let error = io::ErrorKind::PermissionDenied.into();
        let denied = ConfigurationError::Unreadable { what, path, error, option };
        assert_eq!(code(Err(denied.into())), Code::Denied, "another user may");
    }

    #[test]
    fn every_code_is_documented() {
        let verdicts = (0..=9).filter_map(|number| VerdictKind::try_from(number).ok()).map(Code::Verdict);
        let codes = [
            Code::Success,
            Code::Failure,
            Code::Exceeded,
            Code::NotHere,
            Code::Unreachable,
            Code::Denied,
            Code::Configuration,
            Code::Interrupted,
        ];
        for code in codes.into_iter().chain(verdicts) {
            let number = u8::from(code).to_string();
            assert!(CODES.iter().any(|(documented, _)| *documented == number), "{code:?}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_denied_user_learns_who_may() {
        let address = Address::Unix("/etc/passwd/kwitness.sock".into());
        assert!(owner(&address).starts_with(" (/etc/passwd: root:root 0"), "{}", owner(&address));
    }
}
