//! An API server that answers each request as a test has it answer.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// What it answers.
#[derive(Clone)]
pub(super) enum Answer {
    /// A status and an object.
    Json(u16, Value),
    /// A watch that ends after these lines.
    Lines(Vec<Value>),
    /// A watch that stays open after them.
    Hold(Vec<Value>),
    /// A watch that ends after them, and this beginning of a line.
    Cut(Vec<Value>, &'static str),
    /// The connection ends.
    Nothing,
}

/// A request.
pub(super) struct Request<'a> {
    /// Method, path and query.
    pub(super) line: &'a str,
    /// The how-manyth list or watch it is, from 1.
    pub(super) number: usize,
}

impl Request<'_> {
    pub(super) fn is_watch(&self) -> bool {
        is_watch(self.line)
    }
}

fn is_watch(line: &str) -> bool {
    line.contains("watch=true")
}

/// The API server of a test. It ends when it is dropped.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    serving: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Server {
    pub(super) async fn start(answer: impl Fn(Request<'_>) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let (seen, answer) = (Arc::clone(&requests), Arc::new(answer));
        let serving = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                connections.spawn(async move {
                    // A client that goes away is none of a test's business.
                    drop(serve(stream, &seen, &*answer).await);
                });
            }
        });
        Self { address, requests, serving }
    }

    /// The requests so far, each as method, path and query.
    pub(super) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

async fn serve(
    mut stream: TcpStream,
    seen: &Mutex<Vec<String>>,
    answer: &(impl Fn(Request<'_>) -> Answer + Sync),
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = stream.read_u8().await?;
        // A TLS handshake begins with that.
        if head.is_empty() && byte == 0x16 {
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await?;
            stream.shutdown().await?;
            // What is not read would reset the connection before the answer is.
            return stream.read_to_end(&mut head).await.map(drop);
        }
        head.push(byte);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let line = head.lines().next().unwrap_or_default();
    let line = line.strip_suffix(" HTTP/1.1").unwrap_or(line);
    let answer = {
        let mut seen = seen.lock().unwrap();
        seen.push(line.to_owned());
        let number = seen.iter().filter(|other| is_watch(other) == is_watch(line)).count();
        answer(Request { line, number })
    };
    let (code, body, hold) = match answer {
        Answer::Json(code, object) => (code, object.to_string(), false),
        Answer::Lines(lines) => (200, text(&lines), false),
        Answer::Hold(lines) => (200, text(&lines), true),
        Answer::Cut(lines, rest) => (200, text(&lines) + rest, false),
        Answer::Nothing => return Ok(()),
    };
    let head = format!("HTTP/1.1 {code} Any\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    if hold {
        std::future::pending::<()>().await;
    }
    stream.shutdown().await
}

fn text(lines: &[Value]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}
