//! A runtime, a daemon and a client for the tests: HTTP/2 as it is, so that every header and every frame can be looked at.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body::Frame;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;
use tonic::body::Body;

use super::budget::Budget;
use super::counters::Counters;
use super::events::{self, EventName, Timing};
use super::limits;
use super::metrics::Sources;
use super::requests::{Daemon, Left};
use super::runtime::RuntimeSocket;
use kwitness_api::causes;
use kwitness_service::{ConnectionCounters, Limits, Listener, Socket};

/// What a server does with a request.
pub type Handler = Arc<dyn Fn(Request<Incoming>) -> BoxFuture<'static, Response<Body>> + Send + Sync>;

/// A server; when it is dropped its connections are gone, as those of a process are, and its socket's file stays.
pub struct Server(Option<tokio::runtime::Runtime>);

impl Server {
    pub fn start(socket: &Path, handler: Handler) -> Self {
        let _ = std::fs::remove_file(socket);
        let process =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let _within = process.enter();
        let listener = UnixListener::bind(socket).unwrap();
        process.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let handler = Arc::clone(&handler);
                let service = service_fn(move |request| {
                    let answer = handler(request);
                    async move { Ok::<_, std::convert::Infallible>(answer.await) }
                });
                tokio::spawn(
                    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .max_header_list_size(1 << 20)
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self(Some(process))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(process) = self.0.take() {
            process.shutdown_background();
        }
    }
}

/// A body of given frames; after them it ends, or stays open.
pub struct Frames {
    pub frames: VecDeque<Result<Frame<Bytes>, h2::Error>>,
    pub open: bool,
}

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        match self.frames.pop_front() {
            None if self.open => Poll::Pending,
            frame => Poll::Ready(frame),
        }
    }
}

pub fn body(frames: impl IntoIterator<Item = Frame<Bytes>>) -> Body {
    Body::new(Frames { frames: frames.into_iter().map(Ok).collect(), open: false })
}

/// A message in gRPC's frame.
pub fn framed(message: &[u8]) -> Bytes {
    let mut frame = vec![0];
    frame.extend((message.len() as u32).to_be_bytes());
    frame.extend(message);
    frame.into()
}

pub fn headers(pairs: &[(&str, &[u8])]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        let name = hyper::header::HeaderName::from_bytes(name.as_bytes()).unwrap();
        map.append(name, hyper::header::HeaderValue::from_bytes(value).unwrap());
    }
    map
}

/// An answer with headers, data and trailers.
pub fn answered(head: &[(&str, &[u8])], data: Bytes, trailers: &[(&str, &[u8])]) -> Response<Body> {
    let mut response = Response::new(body([Frame::data(data), Frame::trailers(headers(trailers))]));
    *response.headers_mut() = headers(head);
    response
}

/// A well-behaved answer.
pub fn good(message: &[u8]) -> Response<Body> {
    answered(&[("content-type", b"application/grpc")], framed(message), &[("grpc-status", b"0")])
}

/// An answer that is only a status.
pub fn refused(status: Status) -> Response<Body> {
    status.into_http()
}

/// What a client saw of a call.
#[derive(Debug, PartialEq)]
pub struct Seen {
    pub head: HeaderMap,
    pub data: Bytes,
    pub trailers: Option<HeaderMap>,
    /// The code that the stream was reset with.
    pub reset: Option<h2::Reason>,
}

impl Seen {
    /// From trailers, or from headers where there is nothing else.
    pub fn status(&self) -> Status {
        Status::from_header_map(self.trailers.as_ref().unwrap_or(&self.head)).unwrap()
    }
}

/// A client with a connection of its own.
#[derive(Clone)]
pub struct Client(SendRequest<Body>);

impl Client {
    pub async fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).await.unwrap();
        let (send, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .max_header_list_size(1 << 20)
            // As grpc-go's, whose connections are not held up by streams that are not read.
            .initial_stream_window_size(64 << 10)
            .initial_connection_window_size(64 << 20)
            .handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        Self(send)
    }

    pub fn request(path: &str, head: &[(&str, &[u8])], body: Body) -> Request<Body> {
        let mut request = Request::post(format!("http://localhost{path}")).body(body).unwrap();
        *request.headers_mut() =
            headers(&[("content-type", b"application/grpc".as_slice()), ("te", b"trailers")]);
        request.headers_mut().extend(headers(head));
        request
    }

    pub async fn send(&mut self, request: Request<Body>) -> Result<Response<Incoming>, hyper::Error> {
        self.0.ready().await?;
        self.0.send_request(request).await
    }

    /// A call with all that came back.
    pub async fn call(&mut self, path: &str, head: &[(&str, &[u8])], message: &[u8]) -> Seen {
        let request = Self::request(path, head, Body::new(Full::new(framed(message))));
        match self.send(request).await {
            Ok(response) => collect(response).await,
            Err(error) => Seen {
                head: HeaderMap::new(),
                data: Bytes::new(),
                trailers: None,
                reset: Some(reason(&error)),
            },
        }
    }

    /// Events: the names of what comes.
    pub async fn events(&mut self) -> EventReader {
        let request = Self::request(events::METHOD, &[], Body::new(Full::new(framed(b""))));
        let response = self.send(request).await.unwrap();
        EventReader { response, buffered: Vec::new() }
    }
}

pub async fn collect(response: Response<Incoming>) -> Seen {
    let (head, mut body) = response.into_parts();
    let mut seen = Seen { head: head.headers, data: Bytes::new(), trailers: None, reset: None };
    let mut data = Vec::new();
    while let Some(frame) = body.frame().await {
        match frame.map(Frame::into_data) {
            Ok(Ok(more)) => data.extend(more),
            Ok(Err(frame)) => seen.trailers = frame.into_trailers().ok(),
            Err(error) => seen.reset = Some(reason(&error)),
        }
    }
    seen.data = data.into();
    seen
}

fn reason(error: &hyper::Error) -> h2::Reason {
    causes(error)
        .find_map(|cause| cause.downcast_ref::<h2::Error>()?.reason())
        .unwrap_or_else(|| panic!("no reason in {error:?}"))
}

/// Reads a stream of events.
pub struct EventReader {
    response: Response<Incoming>,
    buffered: Vec<u8>,
}

impl EventReader {
    /// The next event as "id:kind", or how the stream ended.
    pub async fn next(&mut self) -> Result<String, Status> {
        tokio::time::timeout(Duration::from_secs(10), self.read()).await.expect("an event, or the end")
    }

    /// That nothing comes for a while.
    pub async fn silent(&mut self, time: Duration) {
        if let Ok(read) = tokio::time::timeout(time, self.read()).await {
            panic!("{read:?} came");
        }
    }

    async fn read(&mut self) -> Result<String, Status> {
        loop {
            if let Some(head) = self.buffered.first_chunk::<5>() {
                let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
                if self.buffered.len() >= 5 + length {
                    let message: Vec<u8> = self.buffered.drain(..5 + length).skip(5).collect();
                    let EventName { container_id, kind } = EventName::decode(&*message).unwrap();
                    return Ok(format!("{}:{kind}", String::from_utf8_lossy(&container_id)));
                }
            }
            match self.response.body_mut().frame().await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.buffered.extend(data),
                    Err(frame) => {
                        return Err(Status::from_header_map(&frame.into_trailers().unwrap()).unwrap());
                    }
                },
                Some(Err(error)) => return Err(Status::unknown(error.to_string())),
                None => return Err(Status::from_header_map(self.response.headers()).unwrap()),
            }
        }
    }
}

/// What a source of events does with a subscription.
#[derive(Clone, Debug, Default)]
pub enum Conduct {
    #[default]
    Serve,
    /// Ends it at once, with that.
    Refuse(Result<(), Status>),
    /// Never answers.
    Hang,
}

/// A source of events.
#[derive(Clone, Default)]
pub struct FakeSource {
    state: Arc<Mutex<FakeSourceState>>,
}

#[derive(Default)]
struct FakeSourceState {
    conduct: Conduct,
    subscribers: Vec<mpsc::Sender<Bytes>>,
    subscriptions: usize,
    /// For the next subscriber.
    backlog: Vec<Bytes>,
    /// Whether headers come before the first event; grpc-go's do not.
    headers_at_once: bool,
}

impl FakeSource {
    pub fn daemon() -> Self {
        let source = Self::default();
        source.state.lock().unwrap().headers_at_once = true;
        source
    }

    pub fn conduct(&self, conduct: Conduct) {
        self.state.lock().unwrap().conduct = conduct;
    }

    pub fn serve(&self, socket: &Path) -> Server {
        self.state.lock().unwrap().subscribers.clear();
        let source = self.clone();
        Server::start(socket, Arc::new(move |request| Box::pin(source.clone().answer(request))))
    }

    pub fn backlog(&self, events: &[&str]) {
        self.state.lock().unwrap().backlog = events.iter().map(|event| encoded(event)).collect();
    }

    /// How many follow it now.
    pub fn followers(&self) -> usize {
        let mut state = self.state.lock().unwrap();
        state.subscribers.retain(|subscriber| !subscriber.is_closed());
        state.subscribers.len()
    }

    pub fn subscriptions(&self) -> usize {
        self.state.lock().unwrap().subscriptions
    }

    pub async fn followed(&self, by: usize) {
        eventually(&format!("{by} followers"), || self.followers() == by).await;
    }

    /// Sends an event, "id:kind", to each.
    pub async fn send(&self, event: &str) {
        self.send_bytes(encoded(event)).await;
    }

    pub async fn send_bytes(&self, event: Bytes) {
        let subscribers = self.state.lock().unwrap().subscribers.clone();
        for subscriber in subscribers {
            let _ = subscriber.send(framed(&event)).await;
        }
    }

    async fn answer(self, request: Request<Incoming>) -> Response<Body> {
        if request.uri().path() != events::METHOD {
            return good(b"");
        }
        let (sender, mut receiver) = mpsc::channel(16);
        let (conduct, backlog, headers_at_once) = {
            let mut state = self.state.lock().unwrap();
            state.subscriptions += 1;
            if matches!(state.conduct, Conduct::Serve) {
                state.subscribers.push(sender);
            }
            (state.conduct.clone(), std::mem::take(&mut state.backlog), state.headers_at_once)
        };
        match conduct {
            Conduct::Serve => {}
            Conduct::Refuse(Err(status)) => return refused(status),
            Conduct::Refuse(Ok(())) => {
                return answered(
                    &[("content-type", b"application/grpc")],
                    Bytes::new(),
                    &[("grpc-status", b"0")],
                );
            }
            Conduct::Hang => std::future::pending().await,
        }
        let mut first: Vec<Bytes> = backlog.iter().map(|event| framed(event)).collect();
        if !headers_at_once && first.is_empty() {
            first.extend(receiver.recv().await);
        }
        let first = futures_util::stream::iter(first);
        let rest = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let frames = futures_util::StreamExt::chain(first, rest);
        let frames = futures_util::StreamExt::map(frames, |data| Ok::<_, h2::Error>(Frame::data(data)));
        let mut response = Response::new(Body::new(http_body_util::StreamBody::new(frames)));
        *response.headers_mut() = headers(&[("content-type", b"application/grpc")]);
        response
    }
}

fn encoded(event: &str) -> Bytes {
    let (id, kind) = event.split_once(':').unwrap();
    EventName { container_id: id.into(), kind: kind.parse().unwrap() }.encode_to_vec().into()
}

/// Waits until it is so.
pub async fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what} did not come");
}

/// A proxy in a directory of its own, with places for a runtime and a daemon.
pub struct Bench {
    pub directory: tempfile::TempDir,
    pub counters: Arc<Counters>,
    pub budget: Arc<Budget>,
    pub connections: Arc<ConnectionCounters>,
    pub serving: tokio::task::JoinHandle<()>,
    pub stop: CancellationToken,
    sources: Mutex<Option<Sources>>,
    _stop: DropGuard,
}

impl Bench {
    pub fn start() -> Self {
        Self::with(Timing::default())
    }

    pub fn with(timing: Timing) -> Self {
        Self::within(timing, limits::CLIENTS_MEMORY, limits::CALLS_MEMORY)
    }

    /// With bounds of memory: of all clients, and of one connection's calls.
    pub fn within(timing: Timing, clients: i64, calls: i64) -> Self {
        Self::at(tempfile::tempdir().unwrap(), timing, clients, calls)
    }

    /// The proxy is stopped, and another one takes its place.
    pub async fn restarted(self) -> Self {
        self.stop.cancel();
        self.serving.await.unwrap();
        Self::at(self.directory, Timing::default(), limits::CLIENTS_MEMORY, limits::CALLS_MEMORY)
    }

    fn at(directory: tempfile::TempDir, timing: Timing, clients: i64, calls: i64) -> Self {
        let at = |name: &str| directory.path().join(name);
        let socket = Socket::listen(&at("cri.sock")).unwrap();
        let listener = Listener::new(socket, Limits::for_descriptors(10_000, 2)).unwrap();
        let connections = listener.counters();
        let counters = Arc::new(Counters::default());
        let budget = Budget::new(clients, calls, Arc::clone(&counters));
        let stop = CancellationToken::new();
        let (sources, serving) = super::serve(
            listener,
            RuntimeSocket::At(at("runtime.sock")),
            Daemon { socket: at("daemon.sock"), left: Left::beside(&at("cri.sock")) },
            timing,
            Arc::clone(&budget),
            Arc::clone(&counters),
            stop.clone(),
        );
        let serving = tokio::spawn(serving);
        let sources = Mutex::new(Some(sources));
        let _stop = stop.clone().drop_guard();
        Self { directory, counters, budget, connections, serving, stop, sources, _stop }
    }

    /// What metrics are made of; once.
    pub fn sources(&self) -> Sources {
        self.sources.lock().unwrap().take().unwrap()
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("cri.sock")
    }

    pub fn runtime(&self) -> PathBuf {
        self.directory.path().join("runtime.sock")
    }

    pub fn daemon(&self) -> PathBuf {
        self.directory.path().join("daemon.sock")
    }

    pub async fn client(&self) -> Client {
        Client::connect(&self.socket()).await
    }
}
