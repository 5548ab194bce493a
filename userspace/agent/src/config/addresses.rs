//! Values that say where something is served: loopback addresses and socket paths. Never a setting's meaning.

use std::net::SocketAddr;
use std::path::PathBuf;

/// The longest path that `sockaddr_un` holds.
const SOCKET_PATH_MAX: usize = 107;

/// Nothing authenticates who connects, so no other address will do.
pub(super) fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| "it is not an IP address with a port".to_owned())?;
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err("it is no loopback address, and there is no authentication".to_owned())
    }
}

/// An absolute path of a socket, with or without `unix://`.
pub(super) fn socket(text: &str) -> Result<PathBuf, String> {
    let path = text.strip_prefix("unix://").unwrap_or(text);
    if !path.starts_with('/') {
        return Err("it is not an absolute path".to_owned());
    }
    if path.len() > SOCKET_PATH_MAX {
        return Err(format!("it has {} bytes", path.len()));
    }
    Ok(PathBuf::from(path))
}
