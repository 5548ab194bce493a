//! One HTTP request to the daemon's `/metrics`, bounded in time and bytes.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// The longest that a scrape may take.
const LIMIT: Duration = Duration::from_secs(10);
/// The most bytes of a page: several times what the daemon's bound on series allows.
const BYTES_MAX: usize = 16 << 20;

/// Where the daemon serves its metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// TCP, at that `HOST:PORT`.
    Tcp(String),
    /// A Unix socket.
    Unix(PathBuf),
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix://") {
            return match path.starts_with('/') {
                true => Ok(Self::Unix(path.into())),
                false => Err(format!("\"{path}\" is not an absolute path")),
            };
        }
        let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
        let is_valid = text.rsplit_once(':').is_some_and(|(host, port)| {
            let is_bracketed = host.starts_with('[') && host.ends_with(']');
            !host.is_empty() && !host.contains('/') && (is_bracketed || !host.contains(':')) && is_port(port)
        });
        match is_valid {
            true => Ok(Self::Tcp(text.to_owned())),
            false => Err(format!("\"{text}\" is neither HOST:PORT nor unix:///path")),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

impl Source {
    /// The page, in Prometheus' text format.
    pub async fn scrape(&self) -> Result<String, String> {
        let page = async {
            match self {
                Self::Tcp(address) => {
                    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
                    get(stream, address).await
                }
                Self::Unix(path) => {
                    let stream = UnixStream::connect(path).await.map_err(|error| error.to_string())?;
                    get(stream, "localhost").await
                }
            }
        };
        let page = tokio::time::timeout(LIMIT, page).await;
        page.unwrap_or_else(|_| Err(format!("no answer within {} s", LIMIT.as_secs())))
    }
}

async fn get(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    host: &str,
) -> Result<String, String> {
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    // It ends with the response: the daemon closes after one.
    drop(tokio::spawn(connection));
    let request = http::Request::get("/metrics")
        .header(http::header::HOST, host)
        .header(http::header::ACCEPT, "text/plain; version=0.0.4")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    if response.status() != http::StatusCode::OK {
        return Err(format!("HTTP status {}", response.status().as_u16()));
    }
    let body = Limited::new(response.into_body(), BYTES_MAX).collect().await;
    let body = body.map_err(|error| error.to_string())?.to_bytes();
    String::from_utf8(body.into()).map_err(|_| "the page is not UTF-8".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_read_and_print_alike() {
        for text in ["127.0.0.1:9768", "[::1]:9768", "kwitness.monitoring.svc:9768", "unix:///run/k.sock"] {
            assert_eq!(text.parse::<Source>().unwrap().to_string(), text);
        }
        for text in
            ["", "9768", ":9768", "host:", "host:0", "::1:9768", "http://host:9768", "unix://run/k.sock"]
        {
            assert!(text.parse::<Source>().is_err(), "{text}");
        }
    }
}
