//! The gRPC side: `runtime.v1.RuntimeService` with the two methods that are served here. All others are answered with
//! `UNIMPLEMENTED` and where to find them.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{BufMut as _, Bytes};
use futures_util::Stream;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{Grpc, NamedService, ServerStreamingService, UnaryService};
use tonic::{Request, Response, Status};

use super::worker::Events;
use crate::proto::cri as api;

/// Request metadata: a time of the wall clock in nanoseconds since the Unix epoch. The stream then begins with what happened after
/// it, as far as that is known. For one who was subscribed before.
pub const SINCE: &str = "kwitness-since";
/// Subscribers at most, each with its queue.
const SUBSCRIBERS_MAX: usize = 64;

/// The service.
#[derive(Clone, Debug)]
pub struct RuntimeEvents {
    events: Events,
    stop: CancellationToken,
}

impl RuntimeEvents {
    /// A service that ends its streams when stopped.
    pub fn new(events: Events, stop: CancellationToken) -> Self {
        Self { events, stop }
    }

    fn subscribe(&self, metadata: &tonic::metadata::MetadataMap) -> Result<Stream_, Status> {
        let since = match metadata.get(SINCE) {
            None => None,
            Some(text) => Some(text.to_str().ok().and_then(|text| text.parse().ok()).ok_or_else(|| {
                Status::invalid_argument(format!("{SINCE}: nanoseconds since the Unix epoch, as a number"))
            })?),
        };
        if self.events.subscribers() >= SUBSCRIBERS_MAX {
            return Err(Status::resource_exhausted(format!("{SUBSCRIBERS_MAX} are subscribed already")));
        }
        let subscription = self.events.subscribe(since);
        let state = Some((subscription, self.stop.clone()));
        Ok(Box::pin(futures_util::stream::unfold(state, async |state| {
            let (mut subscription, stop) = state?;
            tokio::select! {
                biased;
                event = subscription.next() => match event? {
                    Ok(event) => Some((Ok(event), Some((subscription, stop)))),
                    Err(lagged) => Some((Err(Status::resource_exhausted(lagged.to_string())), None)),
                },
                () = stop.cancelled() => Some((Err(Status::unavailable("the daemon is stopping")), None)),
            }
        })))
    }
}

type Stream_ = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

impl ServerStreamingService<()> for RuntimeEvents {
    type Response = Bytes;
    type ResponseStream = Stream_;
    type Future = std::future::Ready<Result<Response<Stream_>, Status>>;

    fn call(&mut self, request: Request<()>) -> Self::Future {
        std::future::ready(self.subscribe(request.metadata()).map(Response::new))
    }
}

impl UnaryService<api::VersionRequest> for RuntimeEvents {
    type Response = api::VersionResponse;
    type Future = BoxFuture<Response<api::VersionResponse>, Status>;

    fn call(&mut self, request: Request<api::VersionRequest>) -> Self::Future {
        let events = self.events.clone();
        Box::pin(async move { events.version(request.into_inner()).await.map(Response::new) })
    }
}

impl NamedService for RuntimeEvents {
    const NAME: &'static str = "runtime.v1.RuntimeService";
}

impl Service<http::Request<Body>> for RuntimeEvents {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            Ok(match request.uri().path() {
                "/runtime.v1.RuntimeService/GetContainerEvents" => {
                    Grpc::new(EncodedCodec).server_streaming(service, request).await
                }
                "/runtime.v1.RuntimeService/Version" => {
                    Grpc::new(tonic_prost::ProstCodec::default()).unary(service, request).await
                }
                path => unserved(path),
            })
        })
    }
}

/// `runtime.v1.ImageService`: nothing of it is served here.
#[derive(Clone, Copy, Debug)]
pub struct Unserved;

impl NamedService for Unserved {
    const NAME: &'static str = "runtime.v1.ImageService";
}

impl Service<http::Request<Body>> for Unserved {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        std::future::ready(Ok(unserved(request.uri().path())))
    }
}

fn unserved(path: &str) -> http::Response<Body> {
    let message = format!(
        "{path}: the kwitness daemon serves GetContainerEvents and Version of the CRI; ask the container runtime itself for the \
         rest, or run `kwitness cri-proxy` in front of it"
    );
    Status::unimplemented(message).into_http()
}

/// Events are encoded before, once for all subscribers; the request has no fields.
#[derive(Clone, Copy, Debug)]
struct EncodedCodec;

impl Codec for EncodedCodec {
    type Encode = Bytes;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for EncodedCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, event: Bytes, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.put(event);
        Ok(())
    }
}

impl Decoder for EncodedCodec {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        use bytes::Buf as _;
        buf.advance(buf.remaining());
        Ok(Some(()))
    }
}
