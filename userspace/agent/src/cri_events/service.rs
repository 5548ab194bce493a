//! The gRPC side: `runtime.v1.RuntimeService` with the two methods that are served here. All others are answered with
//! `UNIMPLEMENTED` and where to find them.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{Grpc, NamedService, ServerStreamingService, UnaryService};
use tonic::{Request, Response, Status};

use super::worker::Events;
use kwitness_cri::{Raw, SINCE};

/// The most bytes in a request: those of `GetContainerEvents` and `Version` are all but empty.
const REQUEST_BYTES_MAX: usize = 64 << 10;

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

impl ServerStreamingService<Bytes> for RuntimeEvents {
    type Response = Bytes;
    type ResponseStream = Stream_;
    type Future = std::future::Ready<Result<Response<Stream_>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        std::future::ready(self.subscribe(request.metadata()).map(Response::new))
    }
}

impl UnaryService<Bytes> for RuntimeEvents {
    type Response = Bytes;
    type Future = BoxFuture<Response<Bytes>, Status>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
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
                    grpc().server_streaming(service, request).await
                }
                "/runtime.v1.RuntimeService/Version" => grpc().unary(service, request).await,
                path => unserved(path),
            })
        })
    }
}

fn grpc() -> Grpc<Raw> {
    Grpc::new(Raw).max_decoding_message_size(REQUEST_BYTES_MAX)
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

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use kwitness_core::journal::Epoch;
    use tokio::net::UnixListener;
    use tokio_stream::wrappers::UnixListenerStream;
    use tonic::Code;
    use tonic::codegen::http::uri::PathAndQuery;
    use tonic::transport::{Channel, Endpoint, Server};
    use tonic_prost::ProstCodec;

    use super::*;
    use crate::config::RuntimeChoice;
    use crate::cri_events::start;
    use crate::hub::Capacity;
    use crate::hub::Hub;
    use kwitness_cri::events as wire;

    struct Served {
        _directory: tempfile::TempDir,
        channel: Channel,
        events: Events,
        stop: CancellationToken,
    }

    async fn serve() -> Served {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cri.sock");
        let (hub, _) =
            Hub::new(Epoch("now".into()), Capacity { items: NonZeroUsize::new(4).unwrap(), bytes: 1 << 20 });
        let resolver = crate::cri::start(RuntimeChoice::Never, tokio::sync::mpsc::channel(1).0).0;
        let events = start(resolver, hub).0;
        let stop = CancellationToken::new();
        let connections = UnixListenerStream::new(UnixListener::bind(&path).unwrap());
        let service = RuntimeEvents::new(events.clone(), stop.clone());
        let server = Server::builder().add_service(service).add_service(Unserved);
        tokio::spawn(server.serve_with_incoming(connections));
        // HTTP/2's own window, so that what is not read is not buffered, either.
        let endpoint = Endpoint::from_shared(format!("unix://{}", path.display())).unwrap();
        let channel = endpoint.initial_stream_window_size(65_535).connect().await.unwrap();
        Served { _directory: directory, channel, events, stop }
    }

    impl Served {
        async fn subscribe(
            &self,
            since: &str,
        ) -> Result<tonic::Streaming<wire::ContainerEventResponse>, Status> {
            let mut request = Request::new(wire::Nothing {});
            if !since.is_empty() {
                request.metadata_mut().insert(SINCE, since.parse().unwrap());
            }
            let mut grpc = tonic::client::Grpc::new(self.channel.clone());
            grpc.ready().await.unwrap();
            let path = PathAndQuery::from_static("/runtime.v1.RuntimeService/GetContainerEvents");
            grpc.server_streaming(request, path, ProstCodec::default()).await.map(Response::into_inner)
        }
    }

    fn event(number: usize) -> Bytes {
        use prost::Message as _;
        let event =
            wire::ContainerEventResponse { container_id: format!("{number:0500}"), ..Default::default() };
        event.encode_to_vec().into()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_client_that_does_not_read_hurts_only_itself() {
        let served = serve().await;
        let mut slow = served.subscribe("").await.unwrap();
        let mut quick = served.subscribe("").await.unwrap();
        const MANY: usize = 5000;
        for number in 0..MANY {
            served.events.publish(&event(number));
            let got = quick.message().await.unwrap().unwrap();
            assert_eq!(got.container_id, format!("{number:0500}"));
        }
        let mut got = 0;
        let status = loop {
            match slow.message().await {
                Ok(Some(event)) => {
                    assert_eq!(event.container_id, format!("{got:0500}"), "without a hole up to the end");
                    got += 1;
                }
                Ok(None) => panic!("it ended without a reason"),
                Err(status) => break status,
            }
        };
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        assert!((1..MANY).contains(&got), "{got}");
        assert_eq!(served.events.counters()["cri_events_slow_subscribers"], 1);
    }

    #[tokio::test]
    async fn what_is_refused_says_why() {
        let served = serve().await;
        let status = served.subscribe("yesterday").await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        let mut all = Vec::new();
        all.push(served.subscribe("12").await.unwrap());
        served.stop.cancel();
        let status = all[0].message().await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::Unavailable, "the daemon is stopping"));
    }
}
