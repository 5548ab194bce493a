//! The way to the runtime: where its socket is, and one connection to it for each of the clients' connections.
//!
//! Owns the dialling. A connection is made by a client's first call and made anew by the first call after it was lost, so that the
//! runtime is used again at the moment it is back; nothing is retried that the runtime may have seen. One without a call for a
//! while is given up: calls that are under way on it end as ever. A client never shares a
//! connection with another: what it stalls, floods or breaks is its own. Never looks into what is said.
//!
//! What went wrong is said as grpc-go, the kubelet's library, says it of a runtime that it dials itself.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::rt::Executor as _;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::io::InspectReader;
use tonic::body::Body;

use super::budget::{Guarded, Meter, MeteredExecutor};
use super::counters::Counters;
use super::limits;
use kwitness_api::causes;
use kwitness_cri::{CANDIDATES, find_socket};
use kwitness_service::memory;

/// After that the task of a connection that was given up has ended.
pub const TASKS_END: Duration = Duration::from_millis(100);

/// Where the runtime listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuntimeSocket {
    /// At the first of the known places that exists when it is dialled.
    Auto,
    /// At this path.
    At(PathBuf),
}

impl RuntimeSocket {
    /// From the command line: "auto", or a path with or without `unix://`.
    pub fn parse(text: &str) -> Self {
        match text {
            "auto" => Self::Auto,
            path => Self::At(path.strip_prefix("unix://").unwrap_or(path).into()),
        }
    }

    /// The path, as of now.
    pub fn path(&self) -> &Path {
        match self {
            Self::At(path) => path,
            Self::Auto => find_socket().unwrap_or(Path::new(CANDIDATES[0])),
        }
    }
}

/// Why a call got no answer from the runtime.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// Connecting failed.
    #[error(
        "connection error: desc = \"transport: Error while dialing: dial unix {}: connect: {}\"",
        socket.display(),
        said_by_go(source)
    )]
    Dial {
        /// The socket.
        socket: PathBuf,
        /// The I/O error.
        source: io::Error,
    },
    /// A process accepted the connection and sent nothing.
    #[error(
        "connection error: desc = \"error reading server preface: nothing came from unix {} for {:?}\"",
        socket.display(),
        limits::RUNTIME_SILENCE
    )]
    Silent {
        /// The socket.
        socket: PathBuf,
    },
    /// The connection was lost.
    #[error("error reading from server: {}", match said_by_library(source) {
        reason if reason.is_empty() => "EOF".to_owned(),
        reason => reason,
    })]
    Lost {
        /// Why, as far as it is known.
        source: hyper::Error,
    },
}

/// "no such file or directory", without the number.
fn said_by_go(error: &io::Error) -> String {
    let code = error.raw_os_error().map(nix::errno::Errno::from_raw);
    code.map_or_else(|| error.to_string(), |code| code.desc().to_lowercase())
}

/// The innermost reason; empty for the end of the stream.
fn said_by_library(error: &hyper::Error) -> String {
    match causes(error).skip(1).last() {
        Some(cause) if !cause.is::<io::Error>() => cause.to_string(),
        _ => String::new(),
    }
}

/// Why there is no answer that could be passed on.
#[derive(Debug)]
pub enum Failure {
    /// The client gets `UNAVAILABLE`.
    Unavailable(Unavailable),
    /// The runtime reset the stream: the client's is reset for the same reason.
    Reset(hyper::Error),
}

/// Whether the runtime itself ended the stream, which is its answer.
pub fn is_reset(error: &hyper::Error) -> bool {
    let of_stream = causes(error).find_map(|cause| cause.downcast_ref::<h2::Error>());
    of_stream.is_some_and(|cause| cause.is_reset() && cause.is_remote())
}

/// The runtime.
#[derive(Debug)]
pub struct Runtime {
    /// Where it is.
    pub socket: RuntimeSocket,
    counters: Arc<Counters>,
    /// For metrics and the log: a line when that changes, not a line a call.
    reachable: AtomicBool,
    upstreams: std::sync::Mutex<Vec<Weak<Upstream>>>,
}

impl Runtime {
    /// Nothing is dialled yet.
    pub fn new(socket: RuntimeSocket, counters: Arc<Counters>) -> Self {
        Self { socket, counters, reachable: AtomicBool::new(true), upstreams: std::sync::Mutex::default() }
    }

    /// For one client.
    pub fn upstream(self: &Arc<Self>, meter: Arc<Meter>) -> Arc<Upstream> {
        let upstream = Arc::new(Upstream {
            runtime: Arc::clone(self),
            meter,
            connection: Mutex::default(),
            calls: AtomicU64::new(0),
            seen: AtomicU64::new(0),
        });
        self.upstreams().push(Arc::downgrade(&upstream));
        upstream
    }

    /// Gives up connections that no client uses, forever.
    pub async fn tidy(&self) {
        loop {
            sleep(limits::RUNTIME_IDLE).await;
            let upstreams: Vec<_> = {
                let mut upstreams = self.upstreams();
                upstreams.retain(|upstream| upstream.strong_count() > 0);
                upstreams.iter().filter_map(Weak::upgrade).collect()
            };
            let given_up = upstreams.iter().filter(|upstream| upstream.give_up_if_idle()).count();
            if given_up > 0 {
                self.counters.runtime_idle.add(given_up as u64);
                // Their buffers are free once their tasks have ended.
                sleep(TASKS_END).await;
                memory::give_back();
            }
        }
    }

    /// Nothing that could panic runs while the lock is held: what it guards is whole.
    fn upstreams(&self) -> std::sync::MutexGuard<'_, Vec<Weak<Upstream>>> {
        self.upstreams.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Whether the last call reached it.
    pub fn is_reachable(&self) -> bool {
        self.reachable.load(Ordering::Relaxed)
    }

    /// Counts and logs a call that failed.
    pub fn note(&self, unavailable: &Unavailable) {
        self.counters.calls_unavailable.count();
        let reason = unavailable.to_string();
        tracing::debug!(reason, "a call failed");
        if self.reachable.swap(false, Ordering::Relaxed) {
            tracing::warn!(socket = %self.socket.path().display(), reason, "the runtime is unreachable");
        }
    }

    async fn dial(&self, meter: &Arc<Meter>) -> Result<Connection, Unavailable> {
        let socket = self.socket.path();
        let dial = |source| Unavailable::Dial { socket: socket.to_owned(), source };
        let connected = connect(socket).await.inspect_err(|_| self.counters.runtime_unreachable.count());
        let stream = connected.map_err(dial)?;
        let received = Arc::new(AtomicBool::new(false));
        let is_received = Arc::clone(&received);
        let stream = InspectReader::new(stream, move |bytes| {
            if !bytes.is_empty() {
                is_received.store(true, Ordering::Relaxed);
            }
        });
        let executor = MeteredExecutor(Arc::clone(meter));
        let stream = Guarded::new(stream, Arc::clone(meter));
        let (send, connection) = http2::Builder::new(executor.clone())
            .initial_stream_window_size(limits::STREAM_WINDOW)
            .initial_connection_window_size(limits::CONNECTION_WINDOW)
            .max_header_list_size(limits::HEADERS)
            .max_send_buf_size(limits::SEND_BUFFER)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|source| Unavailable::Lost { source })?;
        self.counters.runtime_connections.count();
        // Ends with the last call and the last handle, or with the client; how, each call learns by itself.
        let closed = meter.closed.clone();
        executor.execute(async move {
            tokio::select! {
                _ = connection => {}
                () = closed.cancelled() => {}
            }
        });
        Ok(Connection {
            send,
            received,
            deadline: Instant::now() + limits::RUNTIME_SILENCE,
            socket: socket.to_owned(),
        })
    }

    fn note_reached(&self) {
        if !self.reachable.swap(true, Ordering::Relaxed) {
            tracing::info!(socket = %self.socket.path().display(), "the runtime is reachable again");
        }
    }
}

/// Connects; a queue that is full is waited for, which a kernel does not do for a socket that does not block.
async fn connect(socket: &Path) -> io::Result<UnixStream> {
    let began = Instant::now();
    loop {
        match UnixStream::connect(socket).await {
            Err(error)
                if error.kind() == io::ErrorKind::WouldBlock && began.elapsed() < limits::FULL_QUEUE =>
            {
                sleep(Duration::from_millis(10)).await;
            }
            connected => return connected,
        }
    }
}

/// One connection to the runtime.
#[derive(Clone, Debug)]
struct Connection {
    send: SendRequest<Body>,
    /// Whether a byte ever came.
    received: Arc<AtomicBool>,
    /// When it is given up if none did.
    deadline: Instant,
    socket: PathBuf,
}

impl Connection {
    async fn call(&mut self, request: Request<Body>) -> Result<Response<Incoming>, Unanswered> {
        let answer = self.send.try_send_request(request);
        if self.received.load(Ordering::Relaxed) {
            return Unanswered::of(answer.await);
        }
        let silence = async {
            sleep_until(self.deadline).await;
            if self.received.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            answer = answer => Unanswered::of(answer),
            () = silence => {
                let silent = Unavailable::Silent { socket: self.socket.clone() };
                Err(Unanswered::Failed(Failure::Unavailable(silent)))
            }
        }
    }
}

enum Unanswered {
    /// The connection was lost before the request was sent: the runtime has not seen it.
    Unsent(Box<Request<Body>>),
    Failed(Failure),
}

impl Unanswered {
    fn of(answer: Result<Response<Incoming>, http2_error::Sending>) -> Result<Response<Incoming>, Self> {
        answer.map_err(|mut error| match error.take_message() {
            Some(request) => Self::Unsent(Box::new(request)),
            None => Self::Failed(match error.into_error() {
                error if is_reset(&error) => Failure::Reset(error),
                source => Failure::Unavailable(Unavailable::Lost { source }),
            }),
        })
    }
}

/// hyper's name for it is hidden in another module.
mod http2_error {
    pub type Sending = hyper::client::conn::TrySendError<hyper::Request<tonic::body::Body>>;
}

/// A client's connection to the runtime.
#[derive(Debug)]
pub struct Upstream {
    /// The runtime.
    pub runtime: Arc<Runtime>,
    /// What it costs.
    meter: Arc<Meter>,
    connection: Mutex<Option<Connection>>,
    /// Calls so far.
    calls: AtomicU64,
    /// Of them, when it was last looked whether there are any.
    seen: AtomicU64,
}

impl Upstream {
    /// Passes a call on, and its answer back as soon as its headers are there.
    ///
    /// # Errors
    /// There is no answer to pass back.
    pub async fn call(&self, mut request: Request<Body>) -> Result<Response<Incoming>, Failure> {
        self.runtime.counters.calls.count();
        self.calls.fetch_add(1, Ordering::Relaxed);
        loop {
            let mut connection = self.connected().await.map_err(Failure::Unavailable)?;
            match connection.call(request).await {
                Ok(answer) => {
                    self.runtime.note_reached();
                    return Ok(answer);
                }
                // It is closed, so the next is another; each turn needs a runtime that takes a connection.
                Err(Unanswered::Unsent(unsent)) => request = *unsent,
                Err(Unanswered::Failed(failure)) => {
                    if matches!(failure, Failure::Unavailable(Unavailable::Silent { .. })) {
                        self.forget(&connection).await;
                    }
                    return Err(failure);
                }
            }
        }
    }

    async fn connected(&self) -> Result<Connection, Unavailable> {
        let mut slot = self.connection.lock().await;
        if let Some(connection) = slot.as_ref().filter(|connection| !connection.send.is_closed()) {
            return Ok(connection.clone());
        }
        Ok(slot.insert(self.runtime.dial(&self.meter).await?).clone())
    }

    /// Gives the connection up if there was no call since the last look; whether there was one to give up.
    pub fn give_up_if_idle(&self) -> bool {
        let calls = self.calls.load(Ordering::Relaxed);
        if self.seen.swap(calls, Ordering::Relaxed) != calls {
            return false;
        }
        // Who holds it is making a call.
        self.connection.try_lock().is_ok_and(|mut connection| connection.take().is_some())
    }

    async fn forget(&self, connection: &Connection) {
        self.connection.lock().await.take_if(|held| Arc::ptr_eq(&held.received, &connection.received));
    }
}
