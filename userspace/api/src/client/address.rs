//! Where a daemon listens, in the spellings that people know from crictl and the kubelet.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where a daemon listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A Unix socket: `/run/kwitness/kwitness.sock`, `unix:///run/kwitness/kwitness.sock`.
    Unix(PathBuf),
    /// Another endpoint, such as a forwarded port: `http://127.0.0.1:9000`.
    Uri(String),
    /// A node's daemon, over a tunnel that the caller makes ([`Client::from_channel`](super::Client::from_channel)).
    Node(String),
}

impl Address {
    /// The path of the Unix socket.
    pub fn unix_path(&self) -> Option<&std::path::Path> {
        match self {
            Self::Unix(path) => Some(path),
            Self::Uri(_) | Self::Node(_) => None,
        }
    }
}

impl Default for Address {
    fn default() -> Self {
        Self::Unix(crate::DEFAULT_SOCKET.into())
    }
}

impl From<OsString> for Address {
    fn from(text: OsString) -> Self {
        match text.to_str() {
            Some(text) if text.starts_with("http://") || text.starts_with("https://") => {
                Self::Uri(text.to_owned())
            }
            Some(text) => {
                let path = text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:"));
                Self::Unix(path.unwrap_or(text).into())
            }
            None => Self::Unix(text.into()),
        }
    }
}

impl FromStr for Address {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(OsString::from(text).into())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(f),
            Self::Uri(uri) => f.write_str(uri),
            Self::Node(node) => write!(f, "node {node}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_a_path_with_or_without_a_scheme() {
        let unix = Address::Unix("/run/x y.sock".into());
        for text in ["/run/x y.sock", "unix:///run/x y.sock", "unix:/run/x y.sock"] {
            assert_eq!(text.parse(), Ok(unix.clone()), "{text}");
        }
        assert_eq!("http://[::1]:80".parse(), Ok(Address::Uri("http://[::1]:80".into())));
        assert_eq!(Address::default().to_string(), crate::DEFAULT_SOCKET);
    }
}
