//! The floor for latency: the same hooks and the same rings, and of everything else the least that can be written by hand. Its own
//! reader waits on the ring's descriptor, never rests, and sends of each record nothing but its time and its cgroup, in an
//! encoding of its own, on the plainest stream that tonic can make.
//!
//! It shares no code with what it judges but the attachment of the hooks.

use std::mem::offset_of;
use std::path::Path;
use std::pin::Pin;
use std::task::Poll;

use anyhow::{Context, Result};
use aya::maps::{Array, HashMap, MapData, RingBuf};
use bytes::{Buf, BufMut};
use hyper_util::rt::TokioIo;
use kwitness_abi::Header;
use kwitness_agent::probe::{Loaded, Settings};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{Grpc, NamedService, ServerStreamingService};
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status, Streaming};

const METHOD: &str = "/bench.Floor/Records";

/// The ring of the records that are timed: execs of processes that are not a container's first.
const RING: &str = "TASKS";
/// [`kwitness_abi::Tracked`] of a cgroup without flags.
const TRACKED: u64 = 0;

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

/// Attaches the hooks and serves one stream of what their records begin with.
pub(crate) async fn serve(socket: &Path, cgroup: u64) -> Result<()> {
    let mut ebpf = Loaded::load(&Settings::default())?.attach()?.into_ebpf();
    let mut take = |name: &str| ebpf.take_map(name).with_context(|| format!("no map {name}"));
    // It is older than the programs, and no scan adds it here.
    let mut tracked = HashMap::<_, u64, u64>::try_from(take("TRACKED")?)?;
    tracked.insert(cgroup, TRACKED, 0).context("track the cgroup")?;
    let mut waits = Array::<_, u32>::try_from(take("READER_WAITS")?)?;
    let ring = RingBuf::try_from(take(RING)?)?;
    #[expect(
        deprecated,
        reason = "its replacement is unsafe; the ring owns its descriptor, as that asks for"
    )]
    let mut ring = AsyncFd::with_interest(ring, Interest::READABLE)?;
    let listener = UnixListener::bind(socket).with_context(|| format!("listen at {}", socket.display()))?;
    let (sender, receiver) = tokio::sync::mpsc::channel(64);
    let service = Records { receiver: std::sync::Arc::new(std::sync::Mutex::new(Some(receiver))) };
    let server =
        Server::builder().add_service(service).serve_with_incoming(UnixListenerStream::new(listener));
    let pump = async {
        loop {
            // The kernel wakes the reader of this ring once for each time that it is asked to.
            waits.set(0, 1, 0).context("ask for a wake-up")?;
            let mut records = drain(ring.get_mut());
            if records.is_empty() {
                ring.readable().await.context("wait for records")?.clear_ready();
                records = drain(ring.get_mut());
            }
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

fn drain(ring: &mut RingBuf<MapData>) -> Vec<Record> {
    std::iter::from_fn(|| ring.next().map(|item| Record::read(&item))).flatten().collect()
}

pub(crate) async fn watch(channel: Channel) -> Result<Streaming<Vec<Record>>> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.context("the floor's channel")?;
    let path = tonic::codegen::http::uri::PathAndQuery::from_static(METHOD);
    let answer = client.server_streaming(Request::new(Vec::new()), path, RecordsCodec).await;
    Ok(answer.context("call the floor")?.into_inner())
}

type Receiver = tokio::sync::mpsc::Receiver<Result<Vec<Record>, Status>>;

/// The service: hands its one receiver to its first client.
#[derive(Clone, Debug)]
struct Records {
    receiver: std::sync::Arc<std::sync::Mutex<Option<Receiver>>>,
}

impl NamedService for Records {
    const NAME: &'static str = "bench.Floor";
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

pub(crate) async fn connect(socket: &Path) -> Result<Channel> {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let endpoint = tonic::transport::Endpoint::from_static("http://floor.invalid");
    endpoint.connect_with_connector(connector).await.context("connect to the floor")
}
