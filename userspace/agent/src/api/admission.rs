//! How many calls of each kind may be active at a time: the one table of what is long-lived or expensive, and a limit on all others.
//!
//! ```text
//!  request ──▶ the kind by its path ──┬── room: served; the place is held until the response body is gone, and so
//!                                     │         are the bytes of the request (byte_budget)
//!                                     └── none: RESOURCE_EXHAUSTED, which names the setting
//! ```
//!
//! A call counts until its client has read the response or has left, so that slow readers are counted, too. Never looks into
//! requests.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::{Either, Ready, ready};
use http_body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tower::Layer;

use super::byte_budget::{ByteBudget, Charge, Metered};
use crate::config::{Call, MaxCalls};
use kwitness_api::proto;
use kwitness_service::ConnectionId;

/// A call's name in `Status`, its setting, and its paths; none: every other.
const fn row(call: Call) -> (&'static str, &'static str, &'static [&'static str]) {
    match call {
        Call::Watch => ("watch", "api.max_watchers", &["/kwitness.v1alpha1.Kwitness/Watch"]),
        Call::Verify => ("verify", "api.max_verify_calls", &["/kwitness.v1alpha1.Kwitness/Verify"]),
        Call::List => ("list", "api.max_list_calls", &["/kwitness.v1alpha1.Kwitness/List"]),
        Call::WatchUsage => {
            ("watch_usage", "api.max_usage_watchers", &["/kwitness.v1alpha1.Kwitness/WatchUsage"])
        }
        Call::Report => (
            "report",
            "api.max_report_calls",
            &[
                "/kwitness.v1alpha1.Kwitness/ReportCriRequests",
                "/kwitness.v1alpha1.Kwitness/ReportGuardEvents",
            ],
        ),
        Call::HealthCheck => ("health_check", "api.max_health_checks", &["/grpc.health.v1.Health/Check"]),
        Call::HealthWatch => ("health_watch", "api.max_health_watchers", &["/grpc.health.v1.Health/Watch"]),
        Call::ContainerEvents => (
            "container_events",
            "api.max_cri_subscribers",
            &["/runtime.v1.RuntimeService/GetContainerEvents"],
        ),
        Call::Other => ("other", "api.max_other_calls", &[]),
    }
}

/// Bytes of a response that the HTTP/2 server gets at a time: it keeps what it has got until the client reads it.
const PIECE: usize = 64 << 10;

/// The table. Clones share it.
#[derive(Clone, Debug)]
pub struct Admission {
    slots: Arc<[Slot; Call::ALL.len()]>,
    requests: ByteBudget,
    answers: ByteBudget,
}

#[derive(Debug)]
struct Slot {
    call: Call,
    max: u32,
    free: Arc<Semaphore>,
    refused: AtomicU64,
}

impl Admission {
    /// No client is admitted yet.
    pub fn new(max: MaxCalls) -> Self {
        let slots = Call::ALL.map(|call| Slot {
            call,
            max: max.get(call),
            free: Arc::new(Semaphore::new(max.get(call) as usize)),
            refused: AtomicU64::new(0),
        });
        Self {
            slots: Arc::new(slots),
            requests: ByteBudget::of_requests(),
            answers: ByteBudget::of_answers(),
        }
    }

    /// As many calls for other clients, who take none of these; the bytes are shared.
    pub fn apart(&self) -> Self {
        let slots = Call::ALL.map(|call| {
            let max = self.slots[call as usize].max;
            Slot { call, max, free: Arc::new(Semaphore::new(max as usize)), refused: AtomicU64::new(0) }
        });
        Self { slots: Arc::new(slots), ..self.clone() }
    }

    /// How many calls of a kind are active.
    pub fn active(&self, call: Call) -> u32 {
        self.slots[call as usize].active()
    }

    /// How many calls of all kinds may be active.
    pub fn max(&self) -> u32 {
        self.slots.iter().map(|slot| slot.max).sum()
    }

    /// The table for `Status`.
    pub fn limits(&self) -> Vec<proto::CallLimit> {
        let limit = |slot: &Slot| {
            let (name, setting, _) = row(slot.call);
            proto::CallLimit {
                name: name.to_owned(),
                setting: setting.to_owned(),
                max: slot.max,
                active: slot.active(),
                refused: slot.refused.load(Relaxed),
            }
        };
        self.slots.iter().map(limit).collect()
    }

    /// What was refused because requests, or unread answers, of active calls had too many bytes; by the counter's name.
    pub fn bytes_refused(&self) -> [(&'static str, u64); 2] {
        [("request_bytes_refused", self.requests.refused()), ("answer_bytes_refused", self.answers.refused())]
    }

    fn slot(&self, path: &str) -> &Slot {
        let listed = Call::ALL.into_iter().find(|call| row(*call).2.contains(&path));
        &self.slots[listed.unwrap_or(Call::Other) as usize]
    }
}

impl Slot {
    fn active(&self) -> u32 {
        let free = u32::try_from(self.free.available_permits()).unwrap_or(u32::MAX);
        self.max.saturating_sub(free)
    }

    fn admit(&self) -> Result<OwnedSemaphorePermit, Status> {
        self.free.clone().try_acquire_owned().map_err(|_| {
            self.refused.fetch_add(1, Relaxed);
            let (name, setting, _) = row(self.call);
            Status::resource_exhausted(format!(
                "{} {name} calls are active, the maximum; end one or raise {setting}",
                self.max
            ))
        })
    }
}

impl<S> Layer<S> for Admission {
    type Service = Admitted<S>;

    fn layer(&self, inner: S) -> Admitted<S> {
        Admitted { inner, admission: self.clone() }
    }
}

/// A service behind the table.
#[derive(Clone, Debug)]
pub struct Admitted<S> {
    inner: S,
    admission: Admission,
}

impl<S> Service<http::Request<Body>> for Admitted<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Either<Ready<Result<Self::Response, S::Error>>, BoxFuture<Self::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match self.admission.slot(request.uri().path()).admit() {
            Err(status) => Either::Left(ready(Ok(status.into_http()))),
            Ok(permit) => {
                let (head, body) = request.into_parts();
                let connection = head.extensions.get::<ConnectionId>().copied().unwrap_or_default();
                let (body, request) = Metered::wrap(body, self.admission.requests.open(connection));
                let unread = self.admission.answers.open(connection);
                let response = self.inner.call(http::Request::from_parts(head, body));
                let held = |body| {
                    let rest = Bytes::new();
                    Held { body, rest, unread, _permit: permit, _request: request }
                };
                Either::Right(Box::pin(async move { Ok(response.await?.map(|body| Body::new(held(body)))) }))
            }
        }
    }
}

/// A response body that holds a place in the table, and its request's bytes. What is large in it is handed out in pieces, as the client
/// reads them: what it has not read is charged to its connection.
struct Held {
    body: Body,
    /// Of the frame that is being handed out.
    rest: Bytes,
    unread: Charge,
    _permit: OwnedSemaphorePermit,
    _request: Arc<Charge>,
}

impl Held {
    /// Ends the response because there is no room for what comes next.
    fn refuse(&mut self, status: &Status) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.body = Body::empty();
        let mut trailers = http::HeaderMap::new();
        let added = status.add_header(&mut trailers);
        Poll::Ready(Some(added.map(|()| Frame::trailers(trailers))))
    }
}

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.rest.is_empty() {
            match std::task::ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.len() > PIECE => {
                        if let Err(status) = self.unread.add(data.len()) {
                            return self.refuse(&status);
                        }
                        self.rest = data;
                    }
                    Ok(data) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                ended => return Poll::Ready(ended),
            }
        }
        let length = self.rest.len().min(PIECE);
        let piece = self.rest.split_to(length);
        self.unread.give_back(length);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.rest.is_empty() { self.body.size_hint() } else { SizeHint::default() }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body::Body as _;
    use http_body_util::BodyExt as _;
    use tonic::Code;
    use tower::{ServiceExt as _, service_fn};

    use super::*;

    async fn call(
        service: &(impl Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible> + Clone),
        path: &str,
    ) -> http::Response<Body> {
        let request = http::Request::builder().uri(path).body(Body::empty()).unwrap();
        service.clone().oneshot(request).await.unwrap()
    }

    #[tokio::test]
    async fn each_kind_has_its_own_limit_and_a_refusal_names_the_setting() {
        let admission = Admission::new(MaxCalls::all(1));
        let served = admission.layer(service_fn(async |_: http::Request<Body>| {
            let body = http_body_util::Full::new(Bytes::from_static(b"response"));
            Ok::<_, Infallible>(http::Response::new(Body::new(body)))
        }));
        let mut held = Vec::new();
        for kind in Call::ALL {
            let (name, setting, paths) = row(kind);
            let path = paths.last().copied();
            let path = path.unwrap_or("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo");
            held.push(call(&served, path).await);
            let refused = call(&served, path).await;
            let status = Status::from_header_map(refused.headers()).unwrap();
            assert_eq!(status.code(), Code::ResourceExhausted);
            assert!(status.message().contains(setting), "{status}");
            let row = &admission.limits()[kind as usize];
            assert_eq!((&*row.name, row.max, row.active, row.refused), (name, 1, 1, 1));
        }
        // As long as the response has not been read, it counts.
        held.clear();
        assert!(Call::ALL.iter().all(|kind| admission.active(*kind) == 0));
        let _other = call(&served, "/x").await;
        let refused = call(&served, "/y").await;
        assert!(Status::from_header_map(refused.headers()).is_some(), "all others together");
    }

    #[tokio::test]
    async fn an_answer_comes_in_pieces_and_unread_ones_are_bounded_by_connection() {
        const LENGTH: usize = 30 << 20;
        let admission = Admission::new(MaxCalls::all(1000));
        let served = admission.layer(service_fn(async |_: http::Request<Body>| {
            let body = http_body_util::Full::new(Bytes::from(vec![7; LENGTH]));
            Ok::<_, Infallible>(http::Response::new(Body::new(body)))
        }));
        let begin = async |connection| {
            let mut request = http::Request::new(Body::empty());
            request.extensions_mut().insert(ConnectionId(connection));
            let mut body = served.clone().oneshot(request).await.unwrap().into_body();
            let first = body.frame().await.unwrap().unwrap();
            (first, body)
        };
        let (first, one) = begin(1).await;
        assert_eq!(first.into_data().unwrap().len(), PIECE);
        let (refused, ended) = begin(1).await;
        let refused = Status::from_header_map(refused.trailers_ref().unwrap()).unwrap();
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
        assert!(ended.is_end_stream());
        let (_, other) = begin(2).await;
        assert_eq!(admission.bytes_refused(), [("request_bytes_refused", 0), ("answer_bytes_refused", 1)]);
        let rest = one.collect().await.unwrap().to_bytes();
        assert!(rest.len() == LENGTH - PIECE && rest.iter().all(|byte| *byte == 7));
        drop(other);
        assert!(begin(1).await.0.is_data(), "what was read is given back");
    }
}
