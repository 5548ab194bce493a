//! The baseline for latency: the same programs in the kernel, their rings read in one thread, and of each record
//! nothing but its time and its cgroup sent on by the plainest stream that tonic can make. What kwitness adds to this
//! is decoding, the machine, the journal and the event's own content.

use std::mem::offset_of;
use std::path::Path;
use std::pin::Pin;
use std::task::Poll;

use anyhow::{Context, Result};
use bytes::{Buf, BufMut};
use hyper_util::rt::TokioIo;
use kwitness_abi::Header;
use kwitness_agent::probe::{Life, Loaded, Settings};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{Grpc, NamedService, ServerStreamingService};
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status, Streaming};

/// The one method.
const METHOD: &str = "/bench.Bare/Records";

/// Records handed out at a time.
const BUDGET: usize = 512;

/// Of a record, when it was made and whom it is about: the beginning of its header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    pub(crate) time: u64,
    pub(crate) cgroup: u64,
}

impl Record {
    fn read(bytes: &[u8]) -> Option<Self> {
        let field = |place: usize| Some(u64::from_ne_bytes(*bytes.get(place..)?.first_chunk()?));
        Some(Self { time: field(offset_of!(Header, ktime))?, cgroup: field(offset_of!(Header, cgroup_id))? })
    }
}

/// Loads the programs and serves one stream of what their records begin with.
pub(crate) async fn serve(socket: &Path, cgroup: u64) -> Result<()> {
    let settings = Settings::default();
    let mut running = Loaded::load(&settings)?.attach()?.run()?;
    // It is older than the programs, and nothing scans for such here.
    running.tracker().track(cgroup, Life::Unstarted).context("track the cgroup")?;
    let listener = UnixListener::bind(socket).with_context(|| format!("listen at {}", socket.display()))?;
    let (sender, receiver) = tokio::sync::mpsc::channel(64);
    let service = Records { receiver: std::sync::Arc::new(std::sync::Mutex::new(Some(receiver))) };
    let server =
        Server::builder().add_service(service).serve_with_incoming(UnixListenerStream::new(listener));
    let pump = async {
        loop {
            running.readable().await.context("wait for records")?;
            let mut records = Vec::new();
            running.drain(BUDGET, |record| {
                records.extend(Record::read(record));
            });
            if !records.is_empty() && sender.send(Ok(records)).await.is_err() {
                return anyhow::Ok(());
            }
        }
    };
    tokio::select! {
        served = server => served.context("serve"),
        pumped = pump => pumped,
    }
}

/// Opens the stream.
pub(crate) async fn watch(channel: Channel) -> Result<Streaming<Vec<Record>>> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.context("the bare loop's channel")?;
    let path = tonic::codegen::http::uri::PathAndQuery::from_static(METHOD);
    let answer = client.server_streaming(Request::new(Vec::new()), path, RecordsCodec).await;
    Ok(answer.context("call the bare loop")?.into_inner())
}

type Receiver = tokio::sync::mpsc::Receiver<Result<Vec<Record>, Status>>;

/// The service: hands its one receiver to the first who asks.
#[derive(Clone, Debug)]
struct Records {
    receiver: std::sync::Arc<std::sync::Mutex<Option<Receiver>>>,
}

impl NamedService for Records {
    const NAME: &'static str = "bench.Bare";
}

impl ServerStreamingService<Vec<Record>> for Records {
    type Response = Vec<Record>;
    type ResponseStream = ReceiverStream<Result<Vec<Record>, Status>>;
    type Future = std::future::Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, _: Request<Vec<Record>>) -> Self::Future {
        let receiver = self.receiver.lock().ok().and_then(|mut slot| slot.take());
        std::future::ready(match receiver {
            Some(receiver) => Ok(Response::new(ReceiverStream::new(receiver))),
            None => Err(Status::resource_exhausted("the stream has a subscriber already")),
        })
    }
}

impl tower::Service<tonic::codegen::http::Request<Body>> for Records {
    type Response = tonic::codegen::http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: tonic::codegen::http::Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move { Ok(Grpc::new(RecordsCodec).server_streaming(service, request).await) })
    }
}

/// Records as two numbers each.
#[derive(Clone, Copy, Debug, Default)]
struct RecordsCodec;

impl Codec for RecordsCodec {
    type Encode = Vec<Record>;
    type Decode = Vec<Record>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for RecordsCodec {
    type Item = Vec<Record>;
    type Error = Status;

    fn encode(&mut self, item: Self::Item, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        for Record { time, cgroup } in item {
            buffer.put_u64_le(time);
            buffer.put_u64_le(cgroup);
        }
        Ok(())
    }
}

impl Decoder for RecordsCodec {
    type Item = Vec<Record>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        let mut records = Vec::with_capacity(buffer.remaining() / 16);
        while buffer.remaining() >= 16 {
            records.push(Record { time: buffer.get_u64_le(), cgroup: buffer.get_u64_le() });
        }
        Ok(Some(records))
    }
}

/// Connects to the bare loop.
pub(crate) async fn connect(socket: &Path) -> Result<Channel> {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let endpoint = tonic::transport::Endpoint::from_static("http://bare.invalid");
    endpoint.connect_with_connector(connector).await.context("connect to the bare loop")
}
