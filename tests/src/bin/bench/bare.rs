//! The baseline for latency: the same programs in the kernel, their rings read in one thread, and of each record
//! nothing but its time sent on by the plainest stream that tonic can make. What kwitness adds to this is decoding,
//! the machine, the journal and the event's own content.

use std::path::Path;
use std::pin::Pin;
use std::task::Poll;

use anyhow::{Context, Result};
use bytes::{Buf, BufMut};
use hyper_util::rt::TokioIo;
use kwitness::probe::{Loaded, Settings};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{Grpc, NamedService, ServerStreamingService};
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status, Streaming};

/// The one method.
const METHOD: &str = "/bench.Bare/Times";

/// Records handed out at a time.
const BUDGET: usize = 512;

/// Loads the programs and serves one stream of times.
pub(crate) async fn serve(socket: &Path) -> Result<()> {
    let settings = Settings::default();
    let mut running = Loaded::load(&settings)?.attach()?.run()?;
    let listener = UnixListener::bind(socket).with_context(|| format!("listen at {}", socket.display()))?;
    let (sender, receiver) = tokio::sync::mpsc::channel(64);
    let service = Times { receiver: std::sync::Arc::new(std::sync::Mutex::new(Some(receiver))) };
    let server =
        Server::builder().add_service(service).serve_with_incoming(UnixListenerStream::new(listener));
    let pump = async {
        loop {
            running.readable().await.context("wait for records")?;
            let mut times = Vec::new();
            running.drain(BUDGET, |record| {
                times.extend(record.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes)));
            });
            if !times.is_empty() && sender.send(Ok(times)).await.is_err() {
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
pub(crate) async fn watch(channel: Channel) -> Result<Streaming<Vec<u64>>> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.context("the bare loop's channel")?;
    let path = tonic::codegen::http::uri::PathAndQuery::from_static(METHOD);
    let answer = client.server_streaming(Request::new(Vec::new()), path, TimesCodec).await;
    Ok(answer.context("call the bare loop")?.into_inner())
}

type Receiver = tokio::sync::mpsc::Receiver<Result<Vec<u64>, Status>>;

/// The service: hands its one receiver to the first who asks.
#[derive(Clone, Debug)]
struct Times {
    receiver: std::sync::Arc<std::sync::Mutex<Option<Receiver>>>,
}

impl NamedService for Times {
    const NAME: &'static str = "bench.Bare";
}

impl ServerStreamingService<Vec<u64>> for Times {
    type Response = Vec<u64>;
    type ResponseStream = ReceiverStream<Result<Vec<u64>, Status>>;
    type Future = std::future::Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, _: Request<Vec<u64>>) -> Self::Future {
        let receiver = self.receiver.lock().ok().and_then(|mut slot| slot.take());
        std::future::ready(match receiver {
            Some(receiver) => Ok(Response::new(ReceiverStream::new(receiver))),
            None => Err(Status::resource_exhausted("somebody has the stream already")),
        })
    }
}

impl tower::Service<tonic::codegen::http::Request<Body>> for Times {
    type Response = tonic::codegen::http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: tonic::codegen::http::Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move { Ok(Grpc::new(TimesCodec).server_streaming(service, request).await) })
    }
}

/// Times as they lie in memory.
#[derive(Clone, Copy, Debug, Default)]
struct TimesCodec;

impl Codec for TimesCodec {
    type Encode = Vec<u64>;
    type Decode = Vec<u64>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for TimesCodec {
    type Item = Vec<u64>;
    type Error = Status;

    fn encode(&mut self, item: Self::Item, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.into_iter().for_each(|time| buffer.put_u64_le(time));
        Ok(())
    }
}

impl Decoder for TimesCodec {
    type Item = Vec<u64>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        let mut times = Vec::with_capacity(buffer.remaining() / 8);
        while buffer.remaining() >= 8 {
            times.push(buffer.get_u64_le());
        }
        Ok(Some(times))
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
