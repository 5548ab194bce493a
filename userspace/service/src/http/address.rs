//! Where an HTTP listener listens: an IP address with a port, or a Unix socket.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// What a setting or a flag takes for one, for documentation.
pub const EXPECTS: &str = "an IP address with a port (\"127.0.0.1:9768\", \"[::]:9768\") or \"unix:///path\"";

/// The longest path that `sockaddr_un` holds.
const SOCKET_PATH_MAX: usize = 107;

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HttpAddress {
    /// TCP. The unspecified IPv6 address stands for all addresses of both families.
    Tcp(SocketAddr),
    /// A Unix socket at that absolute path.
    Unix(PathBuf),
}

impl FromStr for HttpAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some(path) = text.strip_prefix("unix://") else {
            return text.parse().map(Self::Tcp).map_err(|_| format!("\"{text}\" is not {EXPECTS}"));
        };
        if !path.starts_with('/') {
            return Err(format!("\"{path}\" is not an absolute path"));
        }
        if path.len() > SOCKET_PATH_MAX {
            return Err(format!("the path has {} bytes, more than {SOCKET_PATH_MAX}", path.len()));
        }
        Ok(Self::Unix(path.into()))
    }
}

impl fmt::Display for HttpAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_and_print_alike() {
        for text in ["127.0.0.1:9768", "[::]:9768", "unix:///run/kwitness/http.sock"] {
            assert_eq!(text.parse::<HttpAddress>().unwrap().to_string(), text);
        }
        let long = format!("unix:///{}", "x".repeat(107));
        for text in ["9768", ":9768", "localhost:9768", "::1:9768x", "unix://run/x", "", &long] {
            assert!(text.parse::<HttpAddress>().is_err(), "{text}");
        }
    }
}
