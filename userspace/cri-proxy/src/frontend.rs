//! The clients' side: accepts connections, gives each an upstream of its own, and drains them all at shutdown.
//!
//! What a client does wrong ends its own connection or call, with a line in the log and a count.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::body::Body;

use super::budget::{Budget, CallInFlight, Guarded, Meter, Metered, MeteredExecutor};
use super::counters::Counters;
use super::events::{self, ConnectionEvents, ConnectionId, Events};
use super::limits;
use super::order::{Order, OrderedCall};
use super::requests::{ConnectionObserver, ObservedCall, RequestObserver};
use super::runtime::{Failure, Runtime, TASKS_END, Unavailable, Upstream, is_reset};
use kwitness_cri::Raw;
use kwitness_service::{Connection, Listener, memory};

/// What serves every connection.
#[derive(Clone, Debug)]
pub struct Frontend {
    /// Makes connections to the runtime.
    pub runtime: Arc<Runtime>,
    /// Events.
    pub events: Events,
    /// Memory for clients.
    pub budget: Arc<Budget>,
    /// Observes calls that carry limits.
    pub observer: RequestObserver,
    /// Holds answers until their event was sent.
    pub order: Order,
    /// Counts.
    pub counters: Arc<Counters>,
}

impl Frontend {
    /// Serves until stopped; calls that are under way get [`limits::DRAIN`] to end.
    pub async fn serve(self, mut listener: Listener, stop: CancellationToken) {
        let tasks = TaskTracker::new();
        // The connections that outlive the drain are dropped with it.
        let cut = CancellationToken::new();
        let mut number = 0;
        loop {
            let connection = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                connection = listener.accept() => connection,
            };
            let of = connection.peer();
            let peer = of.process.unwrap_or_default();
            let meter = self.budget.meter(peer);
            number += 1;
            let events = self.events.of_connection(ConnectionId { number, of });
            let connection =
                self.clone().connection(connection, peer, Arc::clone(&meter), events, stop.clone());
            let connection = Metered::new(connection, meter);
            let cut = cut.clone();
            tasks.spawn(async move {
                tokio::select! {
                    () = connection => {}
                    () = cut.cancelled() => {}
                }
            });
        }
        // Whoever connects from now on waits for the next instance, if the socket is systemd's.
        drop(listener);
        self.events.end();
        tasks.close();
        if timeout(limits::DRAIN, tasks.wait()).await.is_err() {
            tracing::warn!(connections = tasks.len(), "some calls did not end in time: they are cut off");
            cut.cancel();
            tasks.wait().await;
        }
    }

    async fn connection(
        self,
        stream: Connection,
        peer: i32,
        meter: Arc<Meter>,
        events: ConnectionEvents,
        stop: CancellationToken,
    ) {
        let counters = Arc::clone(&self.counters);
        // The connection to the runtime ends with the client's, also where the runtime reads nothing.
        let _closed = meter.closed.clone().drop_guard();
        let stream = Guarded::new(stream, Arc::clone(&meter));
        let upstream = self.runtime.upstream(Arc::clone(&meter));
        let executor = MeteredExecutor(Arc::clone(&meter));
        let closed = meter.closed.clone();
        let (observer, order) = (self.observer.of_connection(), self.order);
        let service = service_fn(move |request| {
            answer(Arc::clone(&upstream), &meter, events.clone(), &observer, &order, request)
        });
        let connection = http2::Builder::new(executor)
            .auto_date_header(false)
            .initial_stream_window_size(limits::STREAM_WINDOW)
            .initial_connection_window_size(limits::CONNECTION_WINDOW)
            .max_concurrent_streams(limits::CALLS)
            .max_header_list_size(limits::HEADERS)
            .max_send_buf_size(limits::SEND_BUFFER)
            .max_pending_accept_reset_streams(limits::CANCELLED_EARLY)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        let ended = tokio::select! {
            ended = &mut connection => ended,
            () = closed.cancelled() => {
                // What it held is free as soon as its tasks have ended.
                drop(tokio::spawn(memory_back()));
                return;
            }
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            // A client that is gone in the middle of something is a client that ended.
            let gone = std::error::Error::source(&error).is_some_and(|cause| cause.is::<io::Error>());
            if !gone {
                counters.connections_broken.count();
                let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                let error = error.to_string();
                tracing::warn!(peer, error, cause, "a client's connection was ended by an error");
            }
        }
    }
}

/// Gives memory back once the tasks of a connection that was closed have ended.
async fn memory_back() {
    sleep(TASKS_END).await;
    memory::give_back();
}

/// The answer to one call. An error resets the call's stream for the reason within.
fn answer(
    upstream: Arc<Upstream>,
    meter: &Arc<Meter>,
    events: ConnectionEvents,
    observer: &ConnectionObserver,
    order: &Order,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response<Body>, hyper::Error>> + use<> {
    let mut observed = observer.observe(request.uri().path());
    let ordered = order.follow(request.uri().path(), &events);
    let meter = Arc::clone(meter);
    async move {
        if request.uri().path() == events::METHOD {
            return Ok(tonic::server::Grpc::new(Raw).server_streaming(events, request).await);
        }
        let Some(call) = meter.call() else {
            let exhausted = "the calls in flight on this connection hold too much memory";
            return Ok(Status::resource_exhausted(exhausted).into_http());
        };
        // No method is both.
        let request = match (&observed, &ordered) {
            (Some(observed), _) => request.map(|body| observed.request(body)),
            (None, Some(ordered)) => request.map(|body| Body::new(ordered.request(body))),
            (None, None) => request.map(Body::new),
        };
        match upstream.call(request).await {
            Ok(response) => {
                let runtime = Arc::clone(&upstream.runtime);
                if let Some(observed) = &mut observed {
                    observed.status(response.headers());
                }
                Ok(response.map(|body| {
                    Body::new(Answer {
                        body,
                        runtime,
                        observed,
                        ordered,
                        held: None,
                        ended: false,
                        _call: call,
                    })
                }))
            }
            Err(Failure::Unavailable(unavailable)) => {
                upstream.runtime.note(&unavailable);
                let response = Status::unavailable(unavailable.to_string()).into_http();
                if let Some(observed) = &mut observed {
                    observed.status(response.headers());
                }
                Ok(response)
            }
            Err(Failure::Reset(error)) => Err(error),
        }
    }
}

/// The body of an answer, unchanged, its trailers perhaps [held](super::order); where the runtime goes away in the middle, the client
/// gets `UNAVAILABLE` in the trailers, as its library would report it.
struct Answer {
    body: Incoming,
    runtime: Arc<Runtime>,
    observed: Option<ObservedCall>,
    ordered: Option<OrderedCall>,
    /// The trailers, and what they wait for.
    held: Option<(BoxFuture<'static, ()>, HeaderMap)>,
    ended: bool,
    _call: CallInFlight,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some((wait, trailers)) = &mut self.held {
            ready!(wait.as_mut().poll(context));
            let trailers = std::mem::take(trailers);
            self.held = None;
            self.ended = true;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        let frame = match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(Some(Err(error))) if !is_reset(&error) => {
                self.ended = true;
                let lost = Unavailable::Lost { source: error };
                self.runtime.note(&lost);
                let mut trailers = HeaderMap::new();
                // It fails on a message that is no header value, and this is percent-encoded.
                let _ = Status::unavailable(lost.to_string()).add_header(&mut trailers);
                Ok(Frame::trailers(trailers))
            }
            Poll::Ready(Some(frame)) => frame,
            polled => return polled,
        };
        if let (Some(observed), Ok(frame)) = (&mut self.observed, &frame) {
            if let Some(data) = frame.data_ref() {
                observed.data(data);
            } else if let Some(trailers) = frame.trailers_ref() {
                observed.status(trailers);
                // The call is over, whenever the client comes to take this.
                self.observed = None;
            }
        }
        let Ok(frame) = frame else { return Poll::Ready(Some(frame)) };
        if let (Some(ordered), Some(data)) = (&mut self.ordered, frame.data_ref()) {
            ordered.data(data);
        }
        match frame.into_trailers() {
            Ok(trailers) => match self.ordered.take().and_then(|ordered| ordered.wait(&trailers)) {
                Some(wait) => {
                    self.held = Some((wait, trailers));
                    self.poll_frame(context)
                }
                None => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            },
            Err(frame) => Poll::Ready(Some(Ok(frame))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_none() && (self.ended || http_body::Body::is_end_stream(&self.body))
    }

    fn size_hint(&self) -> SizeHint {
        http_body::Body::size_hint(&self.body)
    }
}
