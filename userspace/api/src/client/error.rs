//! Why a call failed, in the terms that a client acts on: permission, reachability, a wrong request.

use std::error::Error as StdError;
use std::io;

use tonic::{Code, Status};

use super::Address;
use crate::cause::{causes, innermost};

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// This process may not connect to the socket, or its user may not use the tunnel.
    #[error("permission denied on {address}")]
    PermissionDenied {
        /// The socket, or the node.
        address: Address,
    },
    /// No daemon answers, or it went away.
    #[error("no daemon at {address}: {reason}")]
    Unreachable {
        /// Where it was expected.
        address: Address,
        /// The innermost cause.
        reason: String,
    },
    /// As many clients as the daemon allows are served already.
    #[error("{0}")]
    Exhausted(String),
    /// Nothing on the node matches the request.
    #[error("{0}")]
    NotFound(String),
    /// The daemon does not accept the request.
    #[error("invalid request: {0}")]
    InvalidRequest(String),
    /// Another release of kwitness, or another program.
    #[error(
        "{address} does not implement this call: a different release of kwitness, or another program, listens there"
    )]
    Unimplemented {
        /// Where it listens.
        address: Address,
    },
    /// Anything else.
    #[error("{message} ({})", code.description())]
    Failed {
        /// The status code of gRPC.
        code: Code,
        /// The daemon's message.
        message: String,
    },
}

impl Error {
    /// Whether the same call may succeed later without anything being changed by the caller. A [`Watch`](super::Watch)
    /// that has been connected once retries these; all others are final.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::PermissionDenied { .. } | Self::Exhausted(_))
    }

    /// Of a connection that could not be made.
    pub(super) fn connecting(address: &Address, error: &(dyn StdError + 'static)) -> Self {
        if is_denied(error) {
            return Self::PermissionDenied { address: address.clone() };
        }
        Self::unreachable(address, innermost(error))
    }

    /// Of a call, or of a stream that ended early.
    pub(super) fn calling(address: &Address, status: &Status) -> Self {
        let message = || status.message().to_owned();
        match status.code() {
            // What the daemon itself answers has no source; what tonic found out on the way has.
            _ if status.source().is_some() => Self::connecting(address, status),
            Code::Unavailable => Self::unreachable(address, message()),
            Code::ResourceExhausted => Self::Exhausted(message()),
            Code::NotFound => Self::NotFound(message()),
            Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition => {
                Self::InvalidRequest(message())
            }
            Code::Unimplemented => Self::Unimplemented { address: address.clone() },
            code => Self::Failed { code, message: message() },
        }
    }

    /// Of a stream that was open: a reset by a daemon that dies comes under several names.
    pub(super) fn streaming(address: &Address, status: &Status) -> Self {
        match status.code() {
            Code::Cancelled | Code::Internal | Code::Unknown => {
                Self::unreachable(address, status.message().to_owned())
            }
            _ => Self::calling(address, status),
        }
    }

    pub(super) fn unreachable(address: &Address, reason: impl Into<String>) -> Self {
        Self::Unreachable { address: address.clone(), reason: reason.into() }
    }
}

fn is_denied(error: &(dyn StdError + 'static)) -> bool {
    causes(error)
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::PermissionDenied)
}
