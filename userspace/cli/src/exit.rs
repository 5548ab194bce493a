//! How the program ends: the exit codes, and what is said on standard error before.

use std::io::{self, Write as _};

use kwitness_api::proto::VerdictKind;

/// What the program's end means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// All is well; also when whoever read the output stopped reading.
    Success,
    /// Something failed; `doctor`: something vital is missing.
    Failure,
    /// The daemon cannot be reached (`EX_UNAVAILABLE` of sysexits.h).
    Unreachable,
    /// The configuration has mistakes (`EX_CONFIG` of sysexits.h).
    Configuration,
    /// `verify`: not every limit is in force; the worst verdict.
    Verdict(VerdictKind),
    /// `verify --prove`: every limit is in force, and more was used than one allows.
    Exceeded,
    /// Ctrl-C, as shells have it.
    Interrupted,
}

/// For the help and the manual.
pub const CODES: &[(&str, &str)] = &[
    ("0", "success; also when the reader of the output closed it"),
    ("1", "failure; doctor: something vital is missing"),
    ("2", "wrong usage"),
    ("10", "verify: pending"),
    ("11", "verify: diverged"),
    ("12", "verify: rejected"),
    ("13", "verify: shadowed"),
    ("14", "verify: over limit"),
    ("15", "verify: killed"),
    ("16", "verify: reverted"),
    ("17", "verify: unknown, or nothing to verify"),
    ("18", "verify --prove: in force, and exceeded all the same"),
    ("69", "the daemon cannot be reached"),
    ("78", "the configuration has mistakes"),
    ("130", "ended by Ctrl-C"),
];

impl From<Code> for std::process::ExitCode {
    fn from(code: Code) -> Self {
        Self::from(match code {
            Code::Success => 0,
            Code::Failure => 1,
            Code::Unreachable => 69,
            Code::Configuration => 78,
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
            Code::Interrupted => 130,
        })
    }
}

/// The daemon cannot be reached; says what to do.
#[derive(Debug, thiserror::Error)]
#[error(
    "no daemon at {}: {reason}; start one with `kwitness daemon`, or name its socket with --socket or KWITNESS_SOCKET",
    socket.display()
)]
pub struct Unreachable {
    /// Where it was looked for.
    pub socket: std::path::PathBuf,
    /// Why it cannot.
    pub reason: String,
}

/// The code of a result; an error is said first.
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
    // Nowhere is left to complain to.
    let _ = writeln!(anstream::stderr(), "kwitness: {error:#}");
    if error.is::<Unreachable>() {
        Code::Unreachable
    } else if is_configuration(&error) {
        Code::Configuration
    } else {
        Code::Failure
    }
}

fn is_configuration(error: &anyhow::Error) -> bool {
    #[cfg(node)]
    return error.is::<kwitness_agent::config::Problems>();
    #[cfg(not(node))]
    false
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let closed = Err(io::Error::from(io::ErrorKind::BrokenPipe)).context("cannot write");
        assert_eq!(code(closed), Code::Success);
        assert_eq!(code(Err(anyhow::anyhow!("other"))), Code::Failure);
        let unreachable = Unreachable { socket: "/x".into(), reason: "gone".into() };
        assert_eq!(code(Err(unreachable.into())), Code::Unreachable);
    }
}
