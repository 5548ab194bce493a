//! gRPC over Unix sockets, for every client here: of the daemon, and of a container runtime.
//!
//! Owns how a socket is dialled and how a failed dial is worded. Makes no call.

use std::path::Path;

use tonic::codegen::http::Uri;
use tonic::transport::{self, Endpoint};

use crate::cause::innermost;

/// Why there is no connection. Its text is the innermost cause: tonic's own is "transport error".
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// gRPC names a socket by a URI.
    #[error("the path of the socket is not UTF-8")]
    NotUtf8,
    /// A node is reached over a tunnel, which only who made it can open again.
    #[error("a node has no address; make a channel to it")]
    NoTunnel,
    /// Connecting failed, or the connection was lost.
    #[error("{}", innermost(.0))]
    Transport(#[from] transport::Error),
}

/// The endpoint of a Unix socket; [`Endpoint::connect`] dials it. Calls carry grpc-go's `:authority` for a socket,
/// "localhost": some servers refuse others.
///
/// # Errors
/// [`DialError::NotUtf8`].
pub fn unix_endpoint(socket: &Path) -> Result<Endpoint, DialError> {
    let path = socket.to_str().ok_or(DialError::NotUtf8)?;
    let endpoint = Endpoint::from_shared(format!("unix://{path}"))?;
    Ok(endpoint.origin(Uri::from_static("http://localhost")))
}

#[cfg(all(test, unix))]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    use super::*;

    #[tokio::test]
    async fn a_failed_dial_names_its_cause() {
        let directory = tempfile::tempdir().unwrap();
        let endpoint = unix_endpoint(&directory.path().join("no one.sock")).unwrap();
        let error = DialError::from(endpoint.connect().await.unwrap_err());
        assert_eq!(error.to_string(), "No such file or directory (os error 2)");
    }

    #[test]
    fn a_path_that_is_not_utf8_is_rejected() {
        let path = Path::new(OsStr::from_bytes(b"/run/\xff.sock"));
        assert!(matches!(unix_endpoint(path), Err(DialError::NotUtf8)));
    }
}
