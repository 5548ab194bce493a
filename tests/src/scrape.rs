//! HTTP by hand: the daemon's socket with a scrape of its metrics, and what others serve at a port.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The status line and the body of an answer.
pub fn get(socket: &Path, method: &str, path: &str) -> Result<(String, String)> {
    let mut stream = UnixStream::connect(socket).context("connect to the HTTP socket")?;
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: node\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("no HTTP: {answer}"))?;
    Ok((head.lines().next().unwrap_or_default().to_owned(), body.to_owned()))
}

/// The body of what is served at a port of loopback.
pub(crate) async fn get_at(port: u16, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.context("connect")?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.context("ask")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.context("read the answer")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer has no body")?;
    let status = head.lines().next().unwrap_or_default();
    ensure!(status.split(' ').nth(1) == Some("200"), "{path}: {status}");
    Ok(body.to_owned())
}

pub fn scrape(socket: &Path) -> Result<BTreeMap<String, f64>> {
    let (status, text) = get(socket, "GET", "/metrics")?;
    ensure!(status == "HTTP/1.1 200 OK", "{status}: {text}");
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').with_context(|| format!("no sample: {line}"))?;
            Ok((name.to_owned(), value.parse().with_context(|| format!("no number: {line}"))?))
        })
        .collect()
}
