//! The daemon's HTTP socket: requests by hand, and a scrape of its metrics.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// The status line and the body of an answer.
pub fn get(socket: &Path, method: &str, path: &str) -> Result<(String, String)> {
    let mut stream = UnixStream::connect(socket).context("connect to the HTTP socket")?;
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: node\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("no HTTP: {answer}"))?;
    Ok((head.lines().next().unwrap_or_default().to_owned(), body.to_owned()))
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
